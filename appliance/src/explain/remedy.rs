//! The change of a configuration that would undo a refusal, where policy decides it.
//!
//! The change is the smallest that is known: this name, this method, this path, and never a
//! pattern.

use std::fmt::Display;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    header::{AUTHORIZATION, COOKIE},
    request::Parts,
};
use ipnet::IpNet;
use serde_json::Value;

use super::{
    ask::{Question, Who},
    verdict::{Refused, group_of, judge},
};
use crate::{
    catalogue,
    config::{Config, Edit, TableAt},
    decide::Route,
    peek::Peeked,
    policy::{
        Anonymous, Api, Binding, Carry, Group, GroupName, Host, PathRule, Policy, RuleName, Scheme,
        fold_query, never_allowed, query_pairs,
    },
    reason::Reason,
    substitute::SubstitutionRules,
};

/// A change of the configuration, and the right that it gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    /// The reason that it answers.
    pub reason: Reason,
    /// The changes of the text.
    pub edits: Vec<Edit>,
    /// The new right, and the groups that get it.
    pub opens: String,
    /// The extent of that right.
    pub reach: Reach,
    /// The port, if the rule is new.
    pub(super) port: Option<u16>,
}

/// The extent of a change, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// One more request at a host that is open.
    Request,
    /// Another way to speak to a host that is open.
    Manner,
    /// Another host.
    Host,
    /// Another secret, or a secret for more hosts or groups.
    Secret,
}

impl Remedy {
    /// Returns the edit that captures the port, where the configuration lists the captured ports.
    pub(super) fn captured(&self, policy: &Policy) -> Vec<Edit> {
        let new = self.port.filter(|port| !policy.ports.contains(port));
        let ports = |port| list(policy.ports.iter().copied().chain([port]).map(i64::from));
        let set = |port| Edit::Set { table: TableAt::Gateway, key: "ports", value: ports(port) };
        new.map(set).into_iter().collect()
    }
}

/// The context of a remedy, which its methods share.
struct At<'a> {
    config: &'a Config,
    question: &'a Question,
    group: &'a Group,
    refused: &'a Refused,
}

/// Returns the change for one refusal.
///
/// # Errors
///
/// Policy does not decide it, or the change cannot be shown. The text is a note for the operator.
pub(super) fn remedy(
    config: &Config,
    question: &Question,
    refused: &Refused,
) -> Result<Remedy, &'static str> {
    use Reason as R;
    if refused.reason == R::NoGroup {
        if matches!(question.who, Who::Group(_)) {
            return Err(UNKNOWN);
        }
        return join(config, question).ok_or(
            "The address is in the prefixes of no [[group]] on its interface; list it in those of \
             the group that the agent is to belong to.",
        );
    }
    let group = group_of(&config.policy, &question.who).ok_or(UNKNOWN)?;
    let at = At { config, question, group, refused };
    if let Some(text) = at.left_to_api() {
        return Err(text);
    }
    let is_cut = question.request.is_none()
        && matches!(refused.reason, R::MethodDenied | R::PathDenied | R::PlaceholderMissing);
    at.change().ok_or(if is_cut { CUT } else { no_remedy(refused.reason) })
}

/// Returns the note on a refusal for which no change of a rule is shown.
pub(super) const fn no_remedy(reason: Reason) -> &'static str {
    use Reason as R;
    match reason {
        R::ProtocolDenied | R::SniMissing => {
            "The first bytes name no host, so no rule for this port can allow it; a protocol that \
             names none goes by [[tcp]], on a port that no other rule has."
        }
        R::AlpnDenied => {
            "TLS ends at the gateway here, which speaks HTTP alone; where no secret is put in, a \
             [[splice]] in place of the rule carries any protocol."
        }
        R::PrivateAddress => {
            "The name leads to an address that is not public; see what it resolves to, and where \
             that is meant, list that address in the rule as private_prefixes = [\"ADDRESS/32\"]. \
             Addresses of the gateway, its Vault and resolvers, agents and never_dial stay closed."
        }
        R::UpstreamTlsInvalid => {
            "The upstream did not prove that it is its host; where a CA of your own signs for it, \
             name that in the rule as upstream_ca = \"FILE\"."
        }
        R::AgentTlsFailed => {
            "The agent does not trust the gateway's CA: `cloakroom env GROUP` prints the variables \
             that it needs, and docs/tls-stacks.md what stacks differ in."
        }
        R::ForeignCredential => {
            "A credential of the agent's own goes to no API; give it the placeholder that \
             `cloakroom env GROUP` prints."
        }
        R::PlaceholderMissing => {
            "The agent is to send its placeholder; `cloakroom env GROUP` prints it with the \
             variables that clients read."
        }
        R::ScopeDenied => {
            "The [[api]] lists what is signed for it; add the service or the region to \
             aws = { services = [...], regions = [...] }."
        }
        R::DuplicateCredential => {
            "Beside the placeholder stands what looks like another credential; where that name opens \
             nothing there, the [[api]] lists it in plain = [\"header NAME\"]."
        }
        R::PlaintextPlaceholder => "The agent is to use https, where nobody reads along.",
        R::HeaderLimit => "[limits] has head_bytes and head_fields.",
        R::DnsRate => "[limits] has dns_rate.",
        R::ConnectionLimit => "[limits] has agent_connections and connections.",
        R::RateLimit => "[limits] has agent_new_connections, agent_new_requests and agent_leaves.",
        R::PeekTimeout | R::HttpTimeout => "[limits] has peek_time and head_time.",
        R::SecretUnavailable | R::AuditUnavailable | R::InternalError | R::ShuttingDown => {
            "It is not for policy to say: `cloakroom status` has the cause and the remedy."
        }
        R::Quarantined => "The group is cut off until `cloakroom release GROUP`.",
        R::ResponseUnscannable => {
            "The answer could not be read; where it is a part (206), keep_ranges = true in the \
             [[api]] lets it through."
        }
        _ => "It is not for policy to allow; docs/audit.md says what to do.",
    }
}

/// Adds the address to the group of the interface, if there is one that can take it.
fn join(config: &Config, question: &Question) -> Option<Remedy> {
    let Who::At(interface, address) = &question.who else { return None };
    let mut groups = config.policy.groups.iter().filter(|group| group.interface == *interface);
    let group = groups.next().filter(|group| group.agents.is_empty())?;
    if groups.next().is_some() {
        return None;
    }
    let prefixes = group.prefixes.iter().copied().chain([IpNet::from(*address)]);
    let table = TableAt::Named { kind: "group", name: group.name.to_string() };
    Some(Remedy {
        reason: Reason::NoGroup,
        edits: vec![Edit::Set { table, key: "prefixes", value: texts(prefixes) }],
        opens: format!("what {} may, to {address}", group.name),
        reach: Reach::Secret,
        port: None,
    })
}

impl At<'_> {
    /// Returns the change that would allow what was refused, where one of a rule does.
    fn change(&self) -> Option<Remedy> {
        use Reason as R;
        match self.refused.reason {
            R::NoGroup => None,
            R::DnsDenied | R::SniDenied | R::DestinationDenied | R::PortDenied => self.open_host(),
            R::NotTls => self.open_plain(),
            R::EchDenied => {
                self.set_splice("ech", text("allow"), "names that a server hides (ECH)")
            }
            R::DialledElsewhere => {
                self.set_splice("dialled", text("any"), "its hosts at whatever address is dialled")
            }
            R::MethodDenied => self.method(),
            R::PathDenied => self.path(),
            R::PlaceholderMissing => self.anonymous(),
            R::PlaceholderWrongPlace => self.place(),
            R::PlaceholderWrongHost => self.binding(),
            R::UpgradeDenied => self.websocket(),
            R::SpoofedSource
            | R::MulticastDenied
            | R::ProtocolDenied
            | R::SelfDestination
            | R::PrivateAddress
            | R::PeekTimeout
            | R::TlsMalformed
            | R::SniMissing
            | R::AlpnDenied
            | R::ResolveFailed
            | R::UpstreamUnreachable
            | R::UpstreamTlsInvalid
            | R::AgentTlsFailed
            | R::DnsRate
            | R::HostMismatch
            | R::HttpMalformed
            | R::HttpTimeout
            | R::HeaderLimit
            | R::BodyLimit
            | R::ConnectDenied
            | R::WebsocketMalformed
            | R::WebsocketLimit
            | R::PathAmbiguous
            | R::TrailerDenied
            | R::PlaintextPlaceholder
            | R::ForeignCredential
            | R::TicketEnded
            | R::TicketLimit
            | R::DuplicateCredential
            | R::CredentialMalformed
            | R::ScopeDenied
            | R::SignatureDenied
            | R::SignatureExpired
            | R::SecretUnavailable
            | R::ResponseUnscannable
            | R::ResponseMasked
            | R::SecretProbed
            | R::AuditUnavailable
            | R::ConnectionLimit
            | R::RateLimit
            | R::PolicyRevoked
            | R::Quarantined
            | R::ShuttingDown
            | R::InternalError => None,
        }
    }

    fn remedy(&self, reach: Reach, edits: Vec<Edit>, opens: String) -> Option<Remedy> {
        Some(Remedy { reason: self.refused.reason, edits, opens, reach, port: None })
    }

    /// Returns a change of the rule that carries the connection, for all groups of the rule.
    fn of_rule(&self, reach: Reach, edit: Edit, opens: &str) -> Option<Remedy> {
        let groups = match self.route()? {
            Route::Splice(pass) | Route::Inspect(pass) => pass.groups.iter().collect(),
            Route::Tcp(tcp) => tcp.groups.iter().collect(),
            Route::Intercept(api) => {
                api.bindings.iter().flat_map(|binding| &binding.groups).collect()
            }
        };
        let opens = format!("{opens}, for {}", named(groups));
        self.remedy(reach, vec![edit], opens)
    }

    /// Returns the note on a connection to an API's host for which no edit is right.
    fn left_to_api(&self) -> Option<&'static str> {
        use Reason as R;
        let reason = self.refused.reason;
        if !matches!(
            reason,
            R::DnsDenied | R::SniDenied | R::DestinationDenied | R::PortDenied | R::NotTls
        ) {
            return None;
        }
        let host = self.question.hosts().first()?;
        let mut apis = self.config.policy.apis.iter().filter(|api| api.hosts.contains(host));
        let (mut here, mut elsewhere) = (None, false);
        for api in &mut apis {
            match api.port == self.question.port() {
                true => here = Some(api),
                false => elsewhere = true,
            }
        }
        match (&self.question.opening, here) {
            (Some(Peeked::Http(_)), api) if elsewhere || api.is_some() => Some(PLAIN_API),
            (_, Some(api)) => self.shared(api).is_none().then_some(SEVERAL_PLACEHOLDERS),
            (_, None) => elsewhere.then_some(OTHER_PORT),
        }
    }

    /// Returns the binding of an API that the group is to share: the one whose placeholder the
    /// request holds, or the only one.
    fn shared<'b>(&self, api: &'b Api) -> Option<&'b Binding> {
        let held = |binding: &&std::sync::Arc<Binding>| {
            self.head().is_some_and(|head| sent(head, binding, &self.group.name).is_some())
        };
        let only = || api.bindings.first().filter(|_| api.bindings.len() == 1);
        api.bindings.iter().find(held).or_else(only).map(AsRef::as_ref)
    }

    /// Opens a host that no rule of the group names on this port.
    fn open_host(&self) -> Option<Remedy> {
        let (host, port) = (self.question.hosts().first()?, self.question.port());
        let mut apis = self.config.policy.apis.iter();
        if let Some(api) = apis.find(|api| api.port == port && api.hosts.contains(host)) {
            return self.share(api);
        }
        let remedy = match &self.question.opening {
            Some(Peeked::Unread(_)) => self.tcp(host, port),
            Some(Peeked::Tls(_)) => self.provider(host, port).or_else(|| self.splice(host, port)),
            _ => self.splice(host, port),
        };
        remedy.map(|remedy| Remedy { port: Some(port), ..remedy })
    }

    /// Shares an API that other groups use.
    fn share(&self, api: &Api) -> Option<Remedy> {
        let (group, binding) = (&self.group.name, self.shared(api)?);
        let table = binding_at(api, binding);
        let groups = texts(binding.groups.iter().chain([group]));
        let opens = format!("{} with the secret {}, to {group}", api.name, binding.secret);
        self.remedy(Reach::Secret, vec![Edit::Set { table, key: "groups", value: groups }], opens)
    }

    /// Adds an API that the catalogue knows and that is of no use without its key.
    fn provider(&self, host: &Host, port: u16) -> Option<Remedy> {
        let provider = catalogue::providers().iter().find(|it| it.is_keyed_at(host.as_str()))?;
        let secret = self.secret(provider.name).filter(|_| port == 443)?;
        let (policy, group) = (&self.config.policy, &self.group.name);
        let name = free_name(policy, provider.name);
        let own = if name == provider.name { String::new() } else { format!("name = {name:?}\n") };
        let text = format!(
            "[[api]]\n{own}provider = {:?}\n[[api.binding]]\ngroups = [{:?}]\nsecret = {secret:?}\n",
            provider.name,
            group.as_str()
        );
        let opens = format!(
            "{} with the secret {secret}, to {group}; `cloakroom ca issue` makes its issuing CA",
            provider.title()
        );
        self.remedy(Reach::Secret, vec![Edit::Append(text)], opens)
    }

    /// Returns a reference where a value of this name could be.
    fn secret(&self, name: &str) -> Option<String> {
        let settings = &self.config.settings;
        let file = settings.secret_file.as_ref().map(|_| format!("file:{name}"));
        file.or_else(|| settings.vault.as_ref().map(|_| format!("vault:secret/{name}#api_key")))
    }

    fn splice(&self, host: &Host, port: u16) -> Option<Remedy> {
        let ports = if port == 443 { String::new() } else { format!("ports = [{port}]\n") };
        self.pass("splice", host, &ports, port)
    }

    fn tcp(&self, host: &Host, port: u16) -> Option<Remedy> {
        self.pass("tcp", host, &format!("ports = [{port}]\n"), port)
    }

    fn pass(&self, kind: &str, host: &Host, ports: &str, port: u16) -> Option<Remedy> {
        let (name, group) = (free_name(&self.config.policy, host.as_str()), &self.group.name);
        let text = format!(
            "[[{kind}]]\nname = {name:?}\ngroups = [{:?}]\nhosts = [{:?}]\n{ports}",
            group.as_str(),
            host.as_str()
        );
        let opens = format!("{host} on port {port}, byte for byte, to {group}");
        self.remedy(Reach::Host, vec![Edit::Append(text)], opens)
    }

    /// Opens a host to plain HTTP that is open over TLS only.
    fn open_plain(&self) -> Option<Remedy> {
        let (host, port) = (self.question.hosts().first()?, self.question.port());
        let remedy = self.splice(host, port)?;
        let opens = format!("{}, in the clear", remedy.opens);
        Some(Remedy { opens, port: Some(port), ..remedy })
    }

    fn set_splice(&self, key: &'static str, value: String, opens: &str) -> Option<Remedy> {
        // The same code decides which rule it is, for a connection without the refused part.
        let name = self.route().map(|route| route.rule().clone());
        let name = name.or_else(|| self.splice_rule())?;
        let table = TableAt::Named { kind: "splice", name: name.to_string() };
        let opens = format!("{opens}, by the rule {name}");
        self.remedy(Reach::Manner, vec![Edit::Set { table, key, value }], opens)
    }

    fn splice_rule(&self) -> Option<RuleName> {
        let Some(Peeked::Tls(hello)) = &self.question.opening else { return None };
        let plain = Peeked::Tls(crate::peek::Hello { ech: false, ..hello.clone() });
        let question = Question {
            who: self.question.who.clone(),
            to: self.question.to,
            opening: Some(plain),
            request: None,
            fills: false,
            looks_up: false,
            later: None,
        };
        let route = judge(&self.config.policy, &question).route?;
        Some(route.rule().clone())
    }

    fn route(&self) -> Option<&Route> {
        self.refused.route.as_ref()
    }

    fn api(&self) -> Option<&Api> {
        match self.route()? {
            Route::Intercept(api) => Some(api),
            _ => None,
        }
    }

    fn head(&self) -> Option<&Parts> {
        self.question.request.as_ref()
    }

    fn method(&self) -> Option<Remedy> {
        let (route, method) = (self.route()?, &self.head()?.method);
        if never_allowed(method.as_str()).is_some() {
            return None;
        }
        let methods = match route {
            Route::Intercept(api) => &api.methods,
            Route::Inspect(pass) => match &pass.carry {
                Carry::Inspect { methods, .. } => methods,
                Carry::Splice { .. } => return None,
            },
            Route::Splice(_) | Route::Tcp(_) => return None,
        };
        let edit = set(route, "methods", texts(methods.iter().chain([method])));
        let opens = format!("{method} on every path of {}", route.rule());
        self.of_rule(Reach::Manner, edit, &opens)
    }

    fn path(&self) -> Option<Remedy> {
        let (route, path) = (self.route()?, self.exact_path()?);
        let paths = match route {
            Route::Intercept(api) => &api.paths,
            Route::Inspect(pass) => match &pass.carry {
                Carry::Inspect { paths, .. } => paths,
                Carry::Splice { .. } => return None,
            },
            Route::Splice(_) | Route::Tcp(_) => return None,
        };
        let edit = set(route, "paths", texts(paths.iter().chain([&path])));
        let opens = format!("the path {path} at {}", route.rule());
        self.of_rule(Reach::Request, edit, &opens)
    }

    /// Returns the path as a rule, if it means one path to every reader. A placeholder in its place
    /// there goes by its name, as in all rules, whichever of its texts the agent sent.
    fn exact_path(&self) -> Option<PathRule> {
        let path = self.head()?.uri.path();
        let named = match self.route()? {
            Route::Intercept(api) => {
                let rules = SubstitutionRules::new(&self.config.policy, &self.group.name, api);
                rules.named(path).into_owned()
            }
            Route::Splice(_) | Route::Inspect(_) | Route::Tcp(_) => path.to_owned(),
        };
        let path = PathRule::parse(&named).ok()?;
        path.is_exact().then_some(path)
    }

    fn anonymous(&self) -> Option<Remedy> {
        let (api, path, method) = (self.api()?, self.exact_path()?, &self.head()?.method);
        let listed: Vec<String> = match &api.anonymous {
            Anonymous::Listed(requests) => requests.iter().map(ToString::to_string).collect(),
            Anonymous::Never => vec![],
            Anonymous::Always => return None,
        };
        let new = format!("{method} {path}");
        let opens = format!("{new} at {} without any credential", api.name);
        let value = texts(listed.into_iter().chain([new]));
        self.of_rule(Reach::Request, self.set_api(api, "anonymous", value), &opens)
    }

    fn set_api(&self, api: &Api, key: &'static str, value: String) -> Edit {
        let table = TableAt::Named { kind: "api", name: api.name.to_string() };
        Edit::Set { table, key, value }
    }

    /// Adds a place, where a placeholder of this API stands in one that its binding does not list.
    fn place(&self) -> Option<Remedy> {
        let (api, placeholder) = (self.api()?, self.refused.placeholder.as_ref()?);
        let own = |binding: &&std::sync::Arc<Binding>| {
            binding.placeholder == *placeholder && binding.groups.contains(&self.group.name)
        };
        let binding = api.bindings.iter().find(own)?;
        let Stands { place, beside } = self.stands(binding)?;
        let table = binding_at(api, binding);
        let places = binding.places.iter().map(ToString::to_string).chain([place.clone()]);
        let mut edits =
            vec![Edit::Set { table: table.clone(), key: "places", value: texts(places) }];
        edits.extend(beside.map(|(key, value)| Edit::Set { table, key, value: text(&value) }));
        let opens = format!("the secret {} in {place:?} at {}", binding.secret, api.name);
        self.remedy(Reach::Manner, edits, opens)
    }

    /// Adds a binding, where a placeholder of another API means nothing here so far.
    fn binding(&self) -> Option<Remedy> {
        let (api, placeholder) = (self.api()?, self.refused.placeholder.as_ref()?);
        let bindings = self.config.policy.apis.iter().flat_map(|api| &api.bindings);
        let mut own = bindings.filter(|binding| binding.groups.contains(&self.group.name));
        let other = own.find(|binding| binding.placeholder == *placeholder)?;
        let Stands { place, beside } = self.stands(other)?;
        let beside = beside.map(|(key, value)| format!("{key} = {}\n", text(&value)));
        let is_shaped =
            |head| sent(head, other, &self.group.name) == other.shaped_text(&self.group.name);
        let shape = other.shaped.as_ref().filter(|_| self.head().is_some_and(is_shaped));
        let shape = shape.map(|it| text(&it.shape().to_string()));
        let binding = format!(
            "[[api.binding]]\ngroups = [{}]\nplaceholder = {}\n{}places = [{}]\n{}secret = {}\n",
            text(self.group.name.as_str()),
            text(placeholder.as_str()),
            shape.map(|shape| format!("shape = {shape}\n")).unwrap_or_default(),
            text(&place),
            beside.unwrap_or_default(),
            text(&other.secret.to_string()),
        );
        let opens = format!("the secret {} to the hosts of {} too", other.secret, api.name);
        let edit = Edit::Below { api: api.name.to_string(), text: binding };
        self.remedy(Reach::Secret, vec![edit], opens)
    }

    fn websocket(&self) -> Option<Remedy> {
        let route = self.route()?;
        let opens = format!("WebSockets at {}", route.rule());
        self.of_rule(Reach::Manner, set(route, "websocket", "true".into()), &opens)
    }

    /// Returns the place in the request where the placeholder stands, as a binding has it.
    fn stands(&self, binding: &Binding) -> Option<Stands> {
        let (head, credential) = (self.head()?, self.refused.credential.as_deref()?);
        let placeholder = sent(head, binding, &self.group.name);
        let placeholder = placeholder.unwrap_or(binding.placeholder.as_str());
        match credential.split_once(' ') {
            Some(("header", name)) => in_header(head, name, placeholder),
            Some(("query", folded)) => {
                let mut pairs = query_pairs(head.uri.query().unwrap_or_default());
                let (name, _) = pairs.find(|(name, _)| fold_query(name) == folded)?;
                Some(Stands { place: format!("query {name}"), beside: None })
            }
            None if credential == "cookies" => in_cookie(head, placeholder),
            Some(("cookie" | "path", _)) => {
                Some(Stands { place: credential.to_owned(), beside: None })
            }
            _ => None,
        }
    }
}

/// The text that stands for the placeholder in the request.
fn sent<'b>(head: &Parts, binding: &'b Binding, group: &GroupName) -> Option<&'b str> {
    binding.texts(group).find(|text| stands_anywhere(head, text))
}

fn stands_anywhere(head: &Parts, placeholder: &str) -> bool {
    let in_uri = head.uri.to_string().contains(placeholder);
    let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    in_uri
        || head.headers.values().map(text).any(|value| {
            let basic = Scheme::basic_credential(value.as_bytes());
            let decoded = basic.and_then(|encoded| STANDARD.decode(encoded).ok());
            let pair = decoded.and_then(|pair| String::from_utf8(pair).ok());
            value.contains(placeholder) || pair.is_some_and(|pair| pair.contains(placeholder))
        })
}

/// A place, and the fixed half beside it if the place is in Basic.
struct Stands {
    place: String,
    beside: Option<(&'static str, String)>,
}

fn in_header(head: &Parts, name: &str, placeholder: &str) -> Option<Stands> {
    let value = head.headers.get(name)?.to_str().ok()?;
    let encoded = Scheme::basic_credential(value.as_bytes());
    if let Some(encoded) = encoded.filter(|_| name == AUTHORIZATION.as_str()) {
        let pair = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
        let (user, password) = pair.split_once(':')?;
        let (place, key, other) = match user == placeholder {
            true => ("basic user", "basic_password", password),
            false => ("basic password", "basic_user", user),
        };
        let beside = (!other.is_empty()).then(|| (key, other.to_owned()));
        return Some(Stands { place: place.to_owned(), beside });
    }
    let scheme = match value.split_once(' ') {
        _ if value == placeholder => "raw".to_owned(),
        Some((word, _)) if word.eq_ignore_ascii_case("bearer") => "bearer".to_owned(),
        Some((word, _)) if word.eq_ignore_ascii_case("token") => "token".to_owned(),
        Some((word, _)) => format!("scheme {word}"),
        None => return None,
    };
    Some(Stands { place: format!("header {name} {scheme}"), beside: None })
}

fn in_cookie(head: &Parts, placeholder: &str) -> Option<Stands> {
    let mut pairs = head.headers.get(COOKIE)?.to_str().ok()?.split(';');
    let (name, _) = pairs
        .find_map(|pair| pair.trim().split_once('=').filter(|(_, value)| *value == placeholder))?;
    Some(Stands { place: format!("cookie {name}"), beside: None })
}

fn binding_at(api: &Api, binding: &Binding) -> TableAt {
    let placeholder = binding.placeholder.to_string();
    TableAt::Binding { api: api.name.to_string(), placeholder }
}

fn set(route: &Route, key: &'static str, value: String) -> Edit {
    let kind = match route {
        Route::Splice(_) => "splice",
        Route::Tcp(_) => "tcp",
        Route::Intercept(_) => "api",
        Route::Inspect(_) => "inspect",
    };
    Edit::Set { table: TableAt::Named { kind, name: route.rule().to_string() }, key, value }
}

fn named(groups: std::collections::BTreeSet<&GroupName>) -> String {
    groups.into_iter().map(GroupName::as_str).collect::<Vec<_>>().join(", ")
}

/// Returns a name for a rule on this host that no other rule has.
fn free_name(policy: &Policy, host: &str) -> String {
    let plain: String = host
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte) } else { '-' })
        .take(MAX_NAME)
        .collect();
    let apis = policy.apis.iter().map(|api| &api.name);
    let passes = policy.passes.iter().map(|pass| &pass.name);
    let taken: Vec<&str> = apis
        .chain(passes)
        .chain(policy.tcp.iter().map(|tcp| &tcp.name))
        .map(RuleName::as_str)
        .collect();
    let numbered = (2..).map(|number| format!("{plain}-{number}"));
    let mut names = [plain.clone()].into_iter().chain(numbered);
    names.find(|name| !taken.contains(&name.as_str())).unwrap_or(plain)
}

/// Leaves room for a number after the name.
const MAX_NAME: usize = 56;

/// Formats a text for TOML: JSON's escapes are among those of TOML.
fn text(value: &str) -> String {
    Value::from(value).to_string()
}

fn texts(items: impl Iterator<Item = impl Display>) -> String {
    list(items.map(|item| item.to_string()))
}

fn list(items: impl Iterator<Item = impl Into<Value>>) -> String {
    let items: Vec<String> = items.map(|item| item.into().to_string()).collect();
    format!("[{}]", items.join(", "))
}

const CUT: &str = "The audit holds only the beginning of this method or path.";

const PLAIN_API: &str = "The agent is to use https; this host is one of an [[api]].";

const OTHER_PORT: &str =
    "An [[api]] has this host on another port; a rule on this one would pass credentials unseen.";

const SEVERAL_PLACEHOLDERS: &str = "The API has several placeholders; add the group to the groups \
    of the [[api.binding]] whose placeholder it is to hold.";

const UNKNOWN: &str = "There is no such group; `cloakroom check` lists them.";
