//! Turns a record of the audit back into the question that it answered.
//!
//! A record holds no query, no fields and no value. The parts that policy looks at are restored
//! from what the record does hold: the placeholder and the place that it names, or the placeholder
//! that the rule wants.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::{HeaderMap, Method, request::Parts};

use super::ask::{Question, Who, handshake, head, plain, put, tls, with_placeholder};
use crate::{
    audit::{self, AuditLine, RecordKind},
    peek::{Hello, Peeked},
    policy::{Api, Binding, GroupName, Host, InterfaceName, Place, Policy, RuleName, Scheme},
    reason::Reason,
};

/// A refusal of the audit.
#[derive(Debug)]
pub struct Recorded {
    /// The reason.
    pub reason: Reason,
    /// The request or connection, in a line.
    pub asked: String,
    /// The question that it answers.
    pub question: Question,
    /// Whether the question holds more than the record says.
    pub guessed: bool,
}

impl Recorded {
    /// Returns the name that was looked up, if the record is of a look-up.
    pub(super) fn looked_up(&self) -> Option<&Host> {
        self.question.hosts().first().filter(|_| self.reason == Reason::DnsDenied)
    }
}

/// Reads a record; returns `None` where it refuses nothing, or sums up several refusals.
pub fn recorded(record: &AuditLine, policy: &Policy) -> Option<Recorded> {
    let reason = record.known_reason()?;
    match record.kind()? {
        RecordKind::Connection if record.is_refusal() => Some(connection(record, reason)),
        RecordKind::Request if record.is_refusal() => request(record, reason, policy),
        RecordKind::Dns => query(record, reason),
        _ => None,
    }
}

fn connection(record: &AuditLine, reason: Reason) -> Recorded {
    let to = address(record.dialled.as_deref());
    let who = who(record);
    let opening = opening(record, to.port(), reason);
    let name = record.sni.as_deref().or(record.host.as_deref());
    let asked = format!("{} at {to}", name.unwrap_or("no name"));
    let later = (!is_of_policy(reason) || opening.is_none()).then_some(reason);
    let question =
        Question { who, to, opening, request: None, fills: false, looks_up: false, later };
    Recorded { reason, asked, question, guessed: false }
}

fn who(record: &AuditLine) -> Who {
    match group(record) {
        Some(group) => Who::Group(group),
        None => {
            let interface = record.interface.as_deref();
            let interface = interface.and_then(|it| InterfaceName::parse(it).ok());
            let interface = interface.unwrap_or_else(|| InterfaceName("-".into()));
            Who::At(interface, address(record.agent.as_deref()).ip())
        }
    }
}

fn group(record: &AuditLine) -> Option<GroupName> {
    GroupName::parse(record.group.as_deref()?).ok()
}

fn opening(record: &AuditLine, port: u16, reason: Reason) -> Option<Peeked> {
    let names = record.answered_names().iter();
    let answered: Vec<Host> = names.filter_map(|name| Host::parse(name).ok()).collect();
    if !answered.is_empty() {
        return Some(Peeked::Unread(answered));
    }
    let parsed = |name: &Option<String>| name.as_ref().and_then(|name| Host::parse(name).ok());
    if let Some(sni) = parsed(&record.sni) {
        let alpn = record.alpn.iter().flatten().map(|name| name.as_bytes().into());
        let ech = record.ech.unwrap_or_default();
        return Some(Peeked::Tls(Hello { sni: Some(sni), alpn: alpn.collect(), ech }));
    }
    match (parsed(&record.host), reason) {
        // The record does not say what else the head held.
        (Some(_), Reason::HostMismatch | Reason::PlaintextPlaceholder) | (None, _) => None,
        (Some(host), _) => Some(plain(host, port, &HeaderMap::new())),
    }
}

/// Returns the question of a query for a name that policy does not list. Where it is for a service,
/// that service is what the agent is about to connect to. A record of any other query does not say
/// what the agent would do with the name; most often it is HTTPS.
fn query(record: &AuditLine, reason: Reason) -> Option<Recorded> {
    let (group, name) = (group(record)?, record.name.as_deref()?);
    if reason != Reason::DnsDenied {
        return None;
    }
    let (opening, port, guessed) = match record.query_type.as_deref()? {
        "A" | "AAAA" => (tls(Host::parse(name).ok()?), HTTPS, true),
        "SRV" => {
            let (opening, port) = service(name)?;
            (opening, port, false)
        }
        _ => return None,
    };
    let question = Question {
        who: Who::Group(group),
        to: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        opening: Some(opening),
        request: None,
        fills: false,
        looks_up: true,
        later: None,
    };
    Some(Recorded { reason, asked: format!("the name {name}"), question, guessed })
}

/// Returns how a connection to a service begins, and its port. The name of a service begins with
/// the service and the transport (RFC 2782). An agent that gets no answer connects to the usual
/// port at the rest of the name, as apt does.
fn service(name: &str) -> Option<(Peeked, u16)> {
    let (service, rest) = name.split_once('.')?;
    let (transport, host) = rest.split_once('.')?;
    let host = Host::parse(host).ok()?;
    match (service.to_ascii_lowercase().as_str(), transport.to_ascii_lowercase().as_str()) {
        ("_http", "_tcp") => Some((plain(host, HTTP, &HeaderMap::new()), HTTP)),
        ("_https", "_tcp") => Some((tls(host), HTTPS)),
        _ => None,
    }
}

fn request(record: &AuditLine, reason: Reason, policy: &Policy) -> Option<Recorded> {
    let group = group(record)?;
    let (told, path) = (record.method.as_deref()?, record.path.as_deref());
    let host = Host::parse(record.host.as_deref()?).ok()?;
    let is_cut = |text: Option<&str>| text.is_some_and(audit::is_cut);
    // One that was cut stands for itself in the line that is shown, and nowhere else.
    let method = if audit::is_cut(told) { Method::GET } else { told.parse().ok()? };
    let rule = record.rule.as_deref().and_then(|name| RuleName::parse(name).ok());
    let api = policy.apis.iter().find(|api| Some(&api.name) == rule.as_ref());
    let pass = policy.passes.iter().find(|pass| Some(&pass.name) == rule.as_ref());
    let port = api.map(|api| api.port).or_else(|| pass?.ports.first().copied()).unwrap_or(443);
    let bare = head(&method, (&host, port), path.unwrap_or("/"), &[]).ok()?;
    let asked = format!("{told} https://{host}{}", path.unwrap_or("/"));
    let carried = carried(record, reason, (&group, api.map(AsRef::as_ref)), bare.clone());
    // The request had another method, another path or another field than the record shows.
    let is_cut = [Some(told), path, record.credential.as_deref()].into_iter().any(is_cut);
    let request = match reason {
        _ if is_cut => None,
        Reason::UpgradeDenied => Some(handshake(carried.unwrap_or(bare))),
        _ => carried,
    };
    let later = (!is_of_policy(reason) || request.is_none()).then_some(reason);
    let question = Question {
        who: Who::Group(group),
        to: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        opening: Some(tls(host)),
        request,
        fills: false,
        looks_up: false,
        later,
    };
    Some(Recorded { reason, asked, question, guessed: true })
}

/// Returns the request with the credential that it had; `None` where it cannot be restored.
fn carried(
    record: &AuditLine,
    reason: Reason,
    (group, api): (&GroupName, Option<&Api>),
    head: Parts,
) -> Option<Parts> {
    let Some(api) = api else { return Some(head) };
    let mut own = api.bindings.iter().filter(|binding| binding.groups.contains(group));
    let text = match reason {
        Reason::PlaceholderMissing => return Some(head),
        Reason::PlaceholderWrongPlace | Reason::PlaceholderWrongHost => {
            record.placeholders.as_ref()?.first()?
        }
        Reason::ForeignCredential => FOREIGN,
        Reason::DuplicateCredential | Reason::CredentialMalformed | Reason::TicketEnded => {
            return None;
        }
        _ => return Some(own.next().map(|it| with_placeholder(head.clone(), it)).unwrap_or(head)),
    };
    let binding = own.find(|binding| binding.placeholder.as_str() == text);
    let place = place(record.credential.as_deref()?, binding.map(AsRef::as_ref))?;
    put(&head, &place, text)
}

/// Returns the place that a record names, in its most usual form that the binding does not have.
fn place(credential: &str, binding: Option<&Binding>) -> Option<Place> {
    let listed = |place: &Place| binding.is_some_and(|binding| binding.places.contains(place));
    match credential.split_once(' ') {
        Some(("header", name)) => {
            let name: http::HeaderName = name.parse().ok()?;
            let usual: [&[&str]; 3] = match name.as_str() {
                "authorization" => [&["bearer"], &["token"], &["raw"]],
                _ => [&["raw"], &["bearer"], &["token"]],
            };
            let schemes = usual.into_iter().filter_map(|words| Scheme::parse(words).ok());
            let mut places = schemes.map(|scheme| Place::Header { name: name.clone(), scheme });
            places.find(|place| !listed(place))
        }
        Some(("query", name)) => Some(Place::Query { name: name.into() }),
        Some(("cookie", name)) => Some(Place::Cookie { name: name.into() }),
        None if credential == "cookies" => Some(Place::Cookie { name: "session".into() }),
        _ => None,
    }
}

/// Returns whether policy alone may have caused the reason.
const fn is_of_policy(reason: Reason) -> bool {
    use Reason as R;
    matches!(
        reason,
        R::NoGroup
            | R::DestinationDenied
            | R::PortDenied
            | R::ProtocolDenied
            | R::NotTls
            | R::SniMissing
            | R::SniDenied
            | R::EchDenied
            | R::AlpnDenied
            | R::DnsDenied
            | R::HostMismatch
            | R::ConnectDenied
            | R::UpgradeDenied
            | R::MethodDenied
            | R::PathDenied
            | R::PlaceholderMissing
            | R::PlaceholderWrongHost
            | R::PlaceholderWrongPlace
            | R::ForeignCredential
    )
}

fn address(text: Option<&str>) -> SocketAddr {
    let nowhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    text.and_then(|text| text.parse().ok()).unwrap_or(nowhere)
}

const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// Stands for any credential of an agent's own.
const FOREIGN: &str = "a-credential-of-the-agents-own";
