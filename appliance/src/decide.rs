//! Policy, flow and peek in; a permit or a refusal out.
//!
//! Pure, and the only maker of [`Permit`]s: nothing is dialled without one. Whatever is not
//! listed is refused.

use std::sync::Arc;

use crate::{
    accept::Flow,
    peek::{Hello, Peeked, PlainHead},
    policy::{Api, Carry, DialledRule, Group, Host, HostPattern, Pass, Policy, RuleName, Upstream},
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
}

/// How a permitted connection is carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Opaque, byte for byte.
    Splice(Arc<Pass>),
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
        }
    }
}

impl Permit {
    /// Which addresses the agent may have dialled. Where TLS ends here, the name in the
    /// certificate and in every request is checked, and the dialled address is only recorded.
    pub fn dialled(&self) -> DialledRule {
        match &self.route {
            Route::Splice(pass) => pass.dialled,
            Route::Intercept(_) | Route::Inspect(_) => DialledRule::Any,
        }
    }
}

impl Route {
    /// The word that the audit uses.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Splice(_) => "splice",
            Self::Intercept(_) => "intercept",
            Self::Inspect(_) => "inspect",
        }
    }

    /// The rule that allowed it.
    pub fn rule(&self) -> &RuleName {
        match self {
            Self::Splice(pass) | Self::Inspect(pass) => &pass.name,
            Self::Intercept(api) => &api.name,
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
        Route::Splice(_) => {}
        Route::Intercept(_) | Route::Inspect(_) => check_alpn(hello)?,
    }
    Ok(Permit { route, host: host.clone(), port })
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
            Ok(Permit { route: Route::Splice(pass), host: host.clone(), port })
        }
        _ if policy.names(group, host) => Err(Reason::NotTls),
        _ => Err(Reason::DestinationDenied),
    }
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
        ports = [80, 443, 8443]
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
