//! The question: a connection, and the request on it if there is one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderName, HeaderValue, Method, Request,
    header::{
        AUTHORIZATION, CONNECTION, COOKIE, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
    request::Parts,
};

use crate::{
    peek::{Hello, Peeked, PlainHead, read_credentials},
    policy::{Binding, GroupName, Host, InterfaceName, Place, Policy},
    reason::Reason,
};

/// An act of an agent, as far as policy looks at it.
#[derive(Debug)]
pub struct Question {
    /// The agent.
    pub who: Who,
    /// The address and port that it dials.
    pub to: SocketAddr,
    /// The first bytes; `None` where they are not known.
    pub opening: Option<Peeked>,
    /// The request, if there is one.
    pub request: Option<Parts>,
    /// Whether the request gets the placeholder that its API wants, whichever that is.
    pub fills: bool,
    /// Whether the name is looked up first.
    pub looks_up: bool,
    /// The reason of a refusal that comes after policy, such as one for the addresses of a name.
    pub later: Option<Reason>,
}

/// The agent that acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// An agent of this group.
    Group(GroupName),
    /// The owner of this address behind this interface.
    At(InterfaceName, IpAddr),
}

impl Question {
    /// Returns the names that the agent means.
    pub fn hosts(&self) -> &[Host] {
        match &self.opening {
            Some(Peeked::Tls(Hello { sni: Some(host), .. })) => std::slice::from_ref(host),
            Some(Peeked::Http(PlainHead { host: Some(host), .. })) => std::slice::from_ref(host),
            Some(Peeked::Unread(hosts)) => hosts,
            _ => &[],
        }
    }

    /// Returns the port that the agent dials.
    pub fn port(&self) -> u16 {
        self.to.port()
    }
}

/// Returns the question of a request to a URL: `https`, `http`, or `tcp://HOST:PORT` for a protocol
/// that names no host. The request has a credential only if `fields` hold one.
///
/// # Errors
///
/// The URL or a field is wrong. The text tells its author how.
pub fn request(
    policy: &Policy,
    group: GroupName,
    method: &str,
    url: &str,
    fields: &[(HeaderName, HeaderValue)],
) -> Result<Question, String> {
    let method: Method = method.parse().map_err(|_| format!("{method:?} is not a method"))?;
    let (scheme, rest) = url.split_once("://").ok_or_else(|| not_a_url(url))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse().map_err(|_| not_a_url(url))?)),
        None => (authority, None),
    };
    let host = Host::parse(name).map_err(|error| format!("{url:?}: {name:?} {error}"))?;
    let usual = match scheme {
        "https" | "wss" => Some(443),
        "http" | "ws" => Some(80),
        _ => None,
    };
    let port =
        port.or(usual).ok_or_else(|| format!("{url:?}: write its port, as in tcp://HOST:22"))?;
    let opening = match scheme {
        _ if policy.names_no_host(port) || usual.is_none() => Peeked::Unread(vec![host.clone()]),
        "http" | "ws" => plain(host.clone(), port, fields),
        _ => tls(host.clone()),
    };
    let request = match &opening {
        Peeked::Tls(_) => {
            let head = head(&method, (&host, port), target, fields)?;
            Some(if scheme == "wss" { handshake(head) } else { head })
        }
        _ => None,
    };
    let to = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    let who = Who::Group(group);
    Ok(Question {
        who,
        to,
        opening: Some(opening),
        request,
        fills: false,
        looks_up: true,
        later: None,
    })
}

fn not_a_url(url: &str) -> String {
    format!("{url:?} is not a URL; write it whole, as in https://api.example.com/v1/models")
}

/// Returns the ClientHello of a client that speaks HTTP.
pub(super) fn tls(host: Host) -> Peeked {
    Peeked::Tls(Hello { sni: Some(host), alpn: vec![b"http/1.1"[..].into()], ech: false })
}

/// Returns a plain request for this host.
pub(super) fn plain(host: Host, port: u16, fields: &[(HeaderName, HeaderValue)]) -> Peeked {
    let named = (port != 80).then_some(port);
    let fields = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let credentials = read_credentials(fields);
    Peeked::Http(PlainHead { host: Some(host), port: named, credentials })
}

/// Returns the head of a request.
pub(super) fn head(
    method: &Method,
    (host, port): (&Host, u16),
    target: &str,
    fields: &[(HeaderName, HeaderValue)],
) -> Result<Parts, String> {
    let target = target.split('#').next().unwrap_or_default();
    let target = if target.starts_with('/') { target.into() } else { format!("/{target}") };
    let authority = if port == 443 { host.to_string() } else { format!("{host}:{port}") };
    let request = Request::builder().method(method).uri(&target).header(HOST, authority);
    let request = request.body(()).map_err(|_| format!("{target:?} is not a path and a query"))?;
    let mut head = request.into_parts().0;
    head.headers.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
    Ok(head)
}

/// Returns the head with the placeholder that the API at this place wants of the group.
pub(super) fn filled(
    policy: &Policy,
    group: &GroupName,
    (host, port): (&Host, u16),
    head: Parts,
) -> Parts {
    let api = policy.apis.iter().find(|api| api.port == port && api.hosts.contains(host));
    let mut bindings = api.into_iter().flat_map(|api| &api.bindings);
    match bindings.find(|binding| binding.groups.contains(group)) {
        Some(binding) => with_placeholder(head, binding),
        None => head,
    }
}

/// Returns the head with the placeholder in the first place of its binding that can be filled here;
/// unchanged where there is none.
pub(super) fn with_placeholder(head: Parts, binding: &Binding) -> Parts {
    let text = binding.placeholder.as_str();
    let filled = binding.places.iter().find_map(|place| put(&head, place, text));
    filled.unwrap_or(head)
}

/// Returns the head with the text in a place; `None` where that place needs a path or a body of its
/// own.
pub(super) fn put(head: &Parts, place: &Place, text: &str) -> Option<Parts> {
    let mut head = head.clone();
    let mut field = |name: &HeaderName, value: String| {
        let value = HeaderValue::try_from(value).ok()?;
        head.headers.append(name.clone(), value);
        Some(())
    };
    match place {
        Place::Header { name, scheme } => field(name, format!("{scheme}{text}"))?,
        Place::BasicUser { password } => field(&AUTHORIZATION, basic(text, password))?,
        Place::BasicPassword { user } => field(&AUTHORIZATION, basic(user, text))?,
        Place::Cookie { name } => field(&COOKIE, format!("{name}={text}"))?,
        Place::Query { name } => {
            let path = head.uri.path_and_query()?.as_str();
            let sign = if path.contains('?') { '&' } else { '?' };
            head.uri = format!("{path}{sign}{name}={text}").parse().ok()?;
        }
        Place::Path(_) | Place::Body(_) | Place::Subprotocol(_) | Place::Aws => return None,
    }
    Some(head)
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Returns the request as a WebSocket's handshake (RFC 6455, section 4.1).
pub(super) fn handshake(mut head: Parts) -> Parts {
    for (name, value) in [
        (CONNECTION, "Upgrade"),
        (UPGRADE, "websocket"),
        (SEC_WEBSOCKET_VERSION, "13"),
        (SEC_WEBSOCKET_KEY, SOME_KEY),
    ] {
        head.headers.insert(name, HeaderValue::from_static(value));
    }
    head
}

/// Any sixteen bytes in base64.
const SOME_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAA==";
