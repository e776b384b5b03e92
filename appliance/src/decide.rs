//! Policy, flow and peek in; a permit or a refusal out.
//!
//! Pure, and the only maker of [`Permit`]s: nothing is dialled without one. Whatever is not
//! listed is refused.

use std::{net::IpAddr, sync::Arc};

use crate::{
    accept::Flow,
    peek::{Hello, Peeked, PlainHead},
    policy::{
        Api, Carry, DialledRule, Group, Host, HostPattern, Pass, Policy, RuleName, Tcp, Upstream,
    },
    reason::Reason,
};

/// Leave to dial one name on one port, and how the connection is to be carried.
///
/// It is not `Clone`: one decision, one upstream.
#[derive(Debug)]
pub struct Permit {
    route: Route,
    host: Host,
    port: u16,
    given: Option<IpAddr>,
}

/// How a permitted connection is carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Opaque, byte for byte.
    Splice(Arc<Pass>),
    /// Opaque, byte for byte, and without having been looked at: the protocol names no host.
    Tcp(Arc<Tcp>),
    /// TLS ends here; placeholders become secrets.
    Intercept(Arc<Api>),
    /// TLS ends here; authority, method and path are checked.
    Inspect(Arc<Pass>),
}

impl Permit {
    /// How the connection is to be carried.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// The name to resolve and dial.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The TCP port to dial.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How the upstream is reached and verified.
    pub fn upstream(&self) -> &Upstream {
        match &self.route {
            Route::Splice(pass) | Route::Inspect(pass) => &pass.upstream,
            Route::Intercept(api) => &api.upstream,
            Route::Tcp(tcp) => &tcp.upstream,
        }
    }

    /// The address to dial where the agent dialled one that it was given for the name, and nothing
    /// but that says which host it means; `None` where the name is resolved.
    ///
    /// A name can have several addresses that are not alike: one server of a database writes and
    /// the others read, and its clients try one after the other. Who dials one of them means that
    /// one. What the agent chooses from is what the gateway told it.
    pub fn given(&self) -> Option<IpAddr> {
        self.given
    }

    /// Which addresses the agent may have dialled. Where TLS ends here, the name in the
    /// certificate and in every request is checked, and the dialled address is only recorded.
    pub fn dialled(&self) -> DialledRule {
        match &self.route {
            Route::Splice(pass) => pass.dialled,
            Route::Tcp(_) => DialledRule::Answered,
            Route::Intercept(_) | Route::Inspect(_) => DialledRule::Any,
        }
    }
}

impl Route {
    /// The word that the audit uses.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Splice(_) => "splice",
            Self::Tcp(_) => "tcp",
            Self::Intercept(_) => "intercept",
            Self::Inspect(_) => "inspect",
        }
    }

    /// The rule that allowed it.
    pub fn rule(&self) -> &RuleName {
        match self {
            Self::Splice(pass) | Self::Inspect(pass) => &pass.name,
            Self::Intercept(api) => &api.name,
            Self::Tcp(tcp) => &tcp.name,
        }
    }
}

/// Decides on one connection.
pub fn decide(policy: &Policy, flow: &Flow, peeked: &Peeked) -> Result<Permit, Reason> {
    let port = flow.dialled.0.port();
    if policy.ports.binary_search(&port).is_err() {
        return Err(Reason::PortDenied);
    }
    match peeked {
        Peeked::Tls(hello) => decide_tls(policy, &flow.group, port, hello),
        Peeked::Http(head) => decide_plain(policy, &flow.group, port, head),
        Peeked::Unread(names) => decide_unread(policy, flow, names),
        Peeked::Other => Err(Reason::ProtocolDenied),
    }
}

/// The application protocols that the gateway can carry once TLS ends here (RFC 7301).
pub const CARRIED_ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

fn decide_tls(policy: &Policy, group: &Group, port: u16, hello: &Hello) -> Result<Permit, Reason> {
    let host = hello.sni.as_ref().ok_or(Reason::SniMissing)?;
    let route = route_of(policy, group, host, port).ok_or(Reason::SniDenied)?;
    match &route {
        // What is hidden in an encrypted hello would be carried to a name nobody checked. Where
        // TLS ends here it is only an extension that the gateway does not answer.
        Route::Splice(_) if hello.ech => return Err(Reason::EchDenied),
        Route::Splice(_) | Route::Tcp(_) => {}
        Route::Intercept(_) | Route::Inspect(_) => check_alpn(hello)?,
    }
    Ok(Permit { route, host: host.clone(), port, given: None })
}

fn check_alpn(hello: &Hello) -> Result<(), Reason> {
    let carried = |protocol: &[u8]| CARRIED_ALPN.contains(&protocol);
    if hello.alpn.is_empty() || hello.alpn.iter().any(|protocol| carried(protocol)) {
        return Ok(());
    }
    Err(Reason::AlpnDenied)
}

fn route_of(policy: &Policy, group: &Group, host: &Host, port: u16) -> Option<Route> {
    if let Some(api) = api_of(policy, group, host, port) {
        return Some(Route::Intercept(api));
    }
    let pass = pass_of(policy, group, host, port)?;
    Some(match pass.carry {
        Carry::Splice => Route::Splice(pass),
        Carry::Inspect { .. } => Route::Inspect(pass),
    })
}

/// An API's host is never passed around the API: a group that has no binding there has no use
/// of the name on that port at all, however wide its other rules are.
fn api_of(policy: &Policy, group: &Group, host: &Host, port: u16) -> Option<Arc<Api>> {
    let api = policy.apis.iter().find(|api| api.port == port && api.hosts.contains(host))?;
    api.serves(&group.name).then(|| Arc::clone(api))
}

/// A host of an API is passed around it only where policy names that very host, for another port
/// than the API's: never because a pattern happens to cover it.
fn pass_of(policy: &Policy, group: &Group, host: &Host, port: u16) -> Option<Arc<Pass>> {
    let mut homes = policy.apis.iter().filter(|api| api.hosts.contains(host)).peekable();
    let is_api_host = homes.peek().is_some();
    if homes.any(|api| api.port == port) {
        return None;
    }
    let covers = |pattern: &HostPattern| match pattern {
        HostPattern::Exact(_) => pattern.matches(host),
        HostPattern::Suffix(_) | HostPattern::Any => !is_api_host && pattern.matches(host),
    };
    let listed = |pass: &&Arc<Pass>| {
        pass.ports.contains(&port)
            && pass.groups.contains(&group.name)
            && pass.hosts.iter().any(covers)
    };
    let mut passes = policy.passes.iter().filter(listed);
    let first = passes.next()?;
    // Where two rules name one host, the one that looks inside wins.
    let inspecting = passes.chain([first]).find(|pass| pass.carry != Carry::Splice);
    Some(Arc::clone(inspecting.unwrap_or(first)))
}

fn decide_plain(
    policy: &Policy,
    group: &Group,
    port: u16,
    head: &PlainHead,
) -> Result<Permit, Reason> {
    if carries_placeholder(policy, group, head) {
        return Err(Reason::PlaintextPlaceholder);
    }
    let host = head.host.as_ref().ok_or(Reason::HttpMalformed)?;
    if head.port.is_some_and(|named| named != port) || (head.port.is_none() && port != 80) {
        return Err(Reason::HostMismatch);
    }
    match pass_of(policy, group, host, port) {
        Some(pass) if pass.carry == Carry::Splice => {
            Ok(Permit { route: Route::Splice(pass), host: host.clone(), port, given: None })
        }
        _ if policy.names(group, host) => Err(Reason::NotTls),
        _ => Err(Reason::DestinationDenied),
    }
}

/// Which of the names the agent means cannot be told, so it must be allowed to reach all of them.
fn decide_unread(policy: &Policy, flow: &Flow, names: &[Host]) -> Result<Permit, Reason> {
    let (group, dialled) = (&flow.group.name, flow.dialled.0);
    let (address, port) = (dialled.ip(), dialled.port());
    if !policy.tcp.iter().any(|tcp| tcp.serves(group, port)) {
        return Err(Reason::PortDenied);
    }
    let rule_for = |host| policy.tcp.iter().find(|tcp| tcp.allows(group, host, port));
    let rules: Option<Vec<_>> = names.iter().map(|host| Some((host, rule_for(host)?))).collect();
    let rules = rules.ok_or(Reason::DestinationDenied)?;
    // The address is checked by the one rule that is in the permit: by one that does not list it as
    // private, if there is any.
    let lists = |tcp: &Tcp| tcp.upstream.private_prefixes.iter().any(|it| it.contains(&address));
    let strictest = rules.into_iter().min_by_key(|(_, tcp)| lists(tcp));
    let (host, tcp) = strictest.ok_or(Reason::DialledElsewhere)?;
    let route = Route::Tcp(Arc::clone(tcp));
    Ok(Permit { route, host: host.clone(), port, given: Some(address) })
}

fn carries_placeholder(policy: &Policy, group: &Group, head: &PlainHead) -> bool {
    let bindings = policy.apis.iter().flat_map(|api| &api.bindings);
    let mut own = bindings.filter(|binding| binding.groups.contains(&group.name));
    own.any(|binding| {
        let placeholder = binding.placeholder.as_str().as_bytes();
        head.credentials.iter().any(|credential| **credential == *placeholder)
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{
        accept::{AgentAddr, Dialled, FlowId},
        config,
    };

    const POLICY: &str = r#"
        [gateway]
        audit = "stdout"
        ca_dir = "/ca"
        resolvers = ["203.0.113.53"]
        ports = [22, 80, 443, 5432, 8443]
        [secrets]
        file = "/secrets"
        [[group]]
        name = "red"
        interface = "a0"
        prefixes = ["192.0.2.0/25"]
        [[group]]
        name = "blue"
        interface = "b0"
        prefixes = ["192.0.2.128/25"]
        [[api]]
        name = "openai"
        hosts = ["api.openai.example"]
        [[api.binding]]
        groups = ["red"]
        placeholder = "OPENAI_API_KEY"
        places = ["header authorization bearer"]
        secret = "file:openai"
        [[splice]]
        name = "pypi"
        groups = ["red"]
        hosts = ["pypi.example", "*.cdn.example", "*.openai.example"]
        ports = [443, 80]
        [[inspect]]
        name = "docs"
        groups = ["red"]
        hosts = ["docs.cdn.example"]
        [[splice]]
        name = "everything-openai"
        groups = ["blue"]
        hosts = ["*.openai.example"]
        [[tcp]]
        name = "git"
        groups = ["red"]
        hosts = ["git.example", "api.openai.example"]
        ports = [22]
        [[tcp]]
        name = "internal-git"
        groups = ["red"]
        hosts = ["forge.example"]
        ports = [22]
        private_prefixes = ["10.1.0.0/16"]
        [[tcp]]
        name = "database"
        groups = ["blue"]
        hosts = ["db.example"]
        ports = [5432]
    "#;

    fn policy() -> Policy {
        let read = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        config::parse(POLICY, None, "test.toml", &read)
            .unwrap_or_else(|errors| panic!("{errors}"))
            .policy
    }

    fn flow(policy: &Policy, group: &str, dialled: &str) -> Flow {
        let group = policy.groups.iter().find(|g| g.name.as_str() == group).unwrap();
        let dialled: SocketAddr = dialled.parse().unwrap();
        let agent: SocketAddr = "192.0.2.9:40000".parse().unwrap();
        Flow {
            id: FlowId(7),
            group: Arc::clone(group),
            agent: AgentAddr(agent),
            dialled: Dialled(dialled),
        }
    }

    fn unread(group: &str, dialled: &str, names: &[&str]) -> Result<String, Reason> {
        let names = names.iter().map(|name| Host::parse(name).unwrap()).collect();
        outcome(group, dialled, &Peeked::Unread(names))
    }

    fn hello(sni: Option<&str>, alpn: &[&str], ech: bool) -> Peeked {
        Peeked::Tls(Hello {
            sni: sni.map(|name| Host::parse(name).unwrap()),
            alpn: alpn.iter().map(|p| p.as_bytes().into()).collect(),
            ech,
        })
    }

    fn outcome(group: &str, dialled: &str, peeked: &Peeked) -> Result<String, Reason> {
        let policy = policy();
        let permit = decide(&policy, &flow(&policy, group, dialled), peeked)?;
        Ok(format!("{} {} {}", permit.route.word(), permit.route.rule(), permit.host))
    }

    fn tls(group: &str, sni: &str) -> Result<String, Reason> {
        outcome(group, "198.51.100.7:443", &hello(Some(sni), &["h2"], false))
    }

    #[test]
    fn each_group_gets_what_its_rules_say_and_nothing_else() {
        assert_eq!(
            tls("red", "api.openai.example").unwrap(),
            "intercept openai api.openai.example"
        );
        assert_eq!(tls("red", "pypi.example").unwrap(), "splice pypi pypi.example");
        assert_eq!(tls("red", "a.cdn.example").unwrap(), "splice pypi a.cdn.example");
        assert_eq!(tls("red", "cdn.example"), Err(Reason::SniDenied));
        assert_eq!(tls("red", "evil.example"), Err(Reason::SniDenied));
        assert_eq!(tls("blue", "pypi.example"), Err(Reason::SniDenied));
    }

    #[test]
    fn a_host_of_an_api_is_never_passed_around_it() {
        assert_eq!(
            tls("blue", "chat.openai.example").unwrap(),
            "splice everything-openai chat.openai.example"
        );
        assert_eq!(tls("blue", "api.openai.example"), Err(Reason::SniDenied));
        let elsewhere = hello(Some("api.openai.example"), &[], false);
        assert_eq!(outcome("red", "198.51.100.7:80", &elsewhere), Err(Reason::SniDenied));
    }

    #[test]
    fn the_rule_that_looks_inside_wins() {
        assert_eq!(tls("red", "docs.cdn.example").unwrap(), "inspect docs docs.cdn.example");
    }

    #[test]
    fn a_hello_without_a_name_or_with_a_hidden_one_is_refused() {
        let to = "198.51.100.7:443";
        assert_eq!(outcome("red", to, &hello(None, &[], false)), Err(Reason::SniMissing));
        assert_eq!(
            outcome("red", to, &hello(Some("pypi.example"), &[], true)),
            Err(Reason::EchDenied)
        );
        assert!(outcome("red", to, &hello(Some("api.openai.example"), &[], true)).is_ok());
    }

    #[test]
    fn protocols_that_the_gateway_cannot_carry_are_refused_where_tls_ends_here() {
        let to = "198.51.100.7:443";
        let offer =
            |alpn: &[&str]| outcome("red", to, &hello(Some("api.openai.example"), alpn, false));
        assert_eq!(offer(&["acme-tls/1"]), Err(Reason::AlpnDenied));
        assert!(offer(&["acme-tls/1", "http/1.1"]).is_ok());
        assert!(outcome("red", to, &hello(Some("pypi.example"), &["acme-tls/1"], false)).is_ok());
    }

    #[test]
    fn an_api_is_reached_on_its_own_port_only() {
        let peeked = hello(Some("api.openai.example"), &[], false);
        assert_eq!(outcome("red", "198.51.100.7:8443", &peeked), Err(Reason::SniDenied));
        assert_eq!(outcome("red", "198.51.100.7:9999", &peeked), Err(Reason::PortDenied));
        assert_eq!(outcome("red", "198.51.100.7:443", &Peeked::Other), Err(Reason::ProtocolDenied));
    }

    #[test]
    fn every_name_of_a_nameless_connections_address_must_be_allowed() {
        let to = "198.51.100.7:22";
        assert_eq!(unread("red", to, &["git.example"]).unwrap(), "tcp git git.example");
        assert_eq!(
            unread("red", to, &["api.openai.example", "git.example"]).unwrap(),
            "tcp git api.openai.example"
        );
        let shared = ["git.example", "pypi.example"];
        assert_eq!(unread("red", to, &shared), Err(Reason::DestinationDenied));
        assert_eq!(unread("red", to, &["pypi.example"]), Err(Reason::DestinationDenied));
        assert_eq!(unread("red", to, &["db.example"]), Err(Reason::DestinationDenied));
        assert_eq!(unread("red", to, &[]), Err(Reason::DialledElsewhere));
    }

    #[test]
    fn a_nameless_connection_needs_a_rule_of_its_group_for_its_port() {
        assert_eq!(
            unread("blue", "198.51.100.7:5432", &["db.example"]).unwrap(),
            "tcp database db.example"
        );
        for (group, port) in [("blue", 22), ("red", 5432), ("red", 443), ("blue", 8443)] {
            for name in ["git.example", "db.example", "pypi.example"] {
                let to = format!("198.51.100.7:{port}");
                assert_eq!(unread(group, &to, &[name]), Err(Reason::PortDenied), "{group} {to}");
            }
        }
        assert_eq!(outcome("red", "198.51.100.7:22", &Peeked::Other), Err(Reason::ProtocolDenied));
        let looked_at = hello(Some("git.example"), &[], false);
        assert_eq!(outcome("red", "198.51.100.7:22", &looked_at), Err(Reason::SniDenied));
    }

    #[test]
    fn only_a_nameless_connection_is_dialled_where_the_agent_dialled() {
        let policy = policy();
        let permit = |dialled, peeked: &Peeked| {
            decide(&policy, &flow(&policy, "red", dialled), peeked).unwrap()
        };
        let names = Peeked::Unread(vec![Host::parse("git.example").unwrap()]);
        let given = permit("198.51.100.7:22", &names).given();
        assert_eq!(given, Some(IpAddr::from([198, 51, 100, 7])));
        for name in ["pypi.example", "api.openai.example", "docs.cdn.example"] {
            let peeked = hello(Some(name), &[], false);
            assert_eq!(permit("198.51.100.7:443", &peeked).given(), None, "{name}");
        }
    }

    #[test]
    fn an_address_is_private_unless_the_rule_of_each_of_its_names_lists_it() {
        let to = "10.1.2.3:22";
        let rule = |names: &[&str]| unread("red", to, names).unwrap();
        assert_eq!(rule(&["forge.example"]), "tcp internal-git forge.example");
        assert_eq!(rule(&["forge.example", "git.example"]), "tcp git git.example");
    }

    #[test]
    fn plain_http_is_for_spliced_hosts_that_list_its_port() {
        let head = |host: &str, port, credentials: &[&str]| {
            Peeked::Http(PlainHead {
                host: Host::parse(host).ok(),
                port,
                credentials: credentials.iter().map(|c| c.as_bytes().into()).collect(),
            })
        };
        let to = |peeked: &Peeked| outcome("red", "198.51.100.7:80", peeked);
        assert_eq!(to(&head("pypi.example", None, &[])).unwrap(), "splice pypi pypi.example");
        assert_eq!(to(&head("pypi.example", Some(81), &[])), Err(Reason::HostMismatch));
        assert_eq!(to(&head("api.openai.example", None, &[])), Err(Reason::NotTls));
        assert_eq!(to(&head("evil.example", None, &[])), Err(Reason::DestinationDenied));
        assert_eq!(to(&head("10.0.0.1", None, &[])), Err(Reason::HttpMalformed));
        for host in ["api.openai.example", "pypi.example", "evil.example"] {
            let peeked = head(host, None, &["OPENAI_API_KEY"]);
            assert_eq!(to(&peeked), Err(Reason::PlaintextPlaceholder), "{host}");
        }
    }
}
