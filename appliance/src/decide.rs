//! The decision: takes policy, flow and peek, and returns a permit or a refusal.
//!
//! Pure, and the only maker of [`Permit`]s: nothing is dialled without one. A connection that is
//! not listed is refused.

use std::{net::IpAddr, sync::Arc};

use crate::{
    identity::Flow,
    peek::{Hello, Peeked, PlainHead},
    policy::{
        Api, Carry, DialledRule, Group, Host, MeantBy, Pass, Policy, RuleName, Tcp, Upstream,
    },
    reason::Reason,
};

/// The right to dial one name on one port, and how the connection is to be carried.
///
/// It is not `Clone`: one decision allows one upstream.
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
    /// Opaque, byte for byte, and without a peek: the protocol names no host.
    Tcp(Arc<Tcp>),
    /// TLS ends here; placeholders become secrets.
    Intercept(Arc<Api>),
    /// TLS ends here; authority, method and path are checked.
    Inspect(Arc<Pass>),
}

impl Permit {
    /// Returns how the connection is to be carried.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Returns the name to resolve and dial.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns the TCP port to dial.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns how the upstream is reached and verified.
    pub fn upstream(&self) -> &Upstream {
        match &self.route {
            Route::Splice(pass) | Route::Inspect(pass) => &pass.upstream,
            Route::Intercept(api) => &api.upstream,
            Route::Tcp(tcp) => &tcp.upstream,
        }
    }

    /// Returns the address to dial where the agent dialled an address that it was given for the
    /// name, and only that address tells which host it means; `None` where the name is resolved.
    ///
    /// The addresses of a name may differ: one server of a database writes and the others read, and
    /// its clients try one after the other. An agent that dials one of them means that one. The
    /// agent chooses among the addresses that the gateway told it.
    pub fn given(&self) -> Option<IpAddr> {
        self.given
    }

    /// Returns which addresses the agent may have dialled. Where TLS ends here, the name in the
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
    /// Returns the word that the audit uses.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Splice(_) => "splice",
            Self::Tcp(_) => "tcp",
            Self::Intercept(_) => "intercept",
            Self::Inspect(_) => "inspect",
        }
    }

    /// Returns the rule that allowed the connection.
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

/// The application protocols that the gateway can carry where TLS ends here (RFC 7301).
pub const CARRIED_ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

fn decide_tls(policy: &Policy, group: &Group, port: u16, hello: &Hello) -> Result<Permit, Reason> {
    let host = hello.sni.as_ref().ok_or(Reason::SniMissing)?;
    let route = route_of(policy, group, host, port).ok_or(Reason::SniDenied)?;
    match &route {
        // The names hidden in an encrypted hello would reach a server that nobody checked. Where
        // TLS ends here, the encrypted hello is only an extension that the gateway does not answer.
        Route::Splice(pass) if hello.ech && !pass.carry.allows_ech() => {
            return Err(Reason::EchDenied);
        }
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
        Carry::Splice { .. } => Route::Splice(pass),
        Carry::Inspect { .. } => Route::Inspect(pass),
    })
}

/// Returns the API of a host. An API's host is never passed around the API: a group without a
/// binding there may not use the name on that port at all, however wide its other rules are.
fn api_of(policy: &Policy, group: &Group, host: &Host, port: u16) -> Option<Arc<Api>> {
    let api = policy.apis.naming(host).find(|api| api.port == port)?;
    api.serves(&group.name).then(|| Arc::clone(api))
}

/// Returns the pass rule of a host. A host of an API is passed around the API only where policy
/// names that very host, for another port than the API's: never because a pattern happens to cover
/// it.
fn pass_of(policy: &Policy, group: &Group, host: &Host, port: u16) -> Option<Arc<Pass>> {
    let mut homes = policy.apis.naming(host).peekable();
    let by = match homes.peek() {
        Some(_) => MeantBy::Name,
        None => MeantBy::NameOrPattern,
    };
    if homes.any(|api| api.port == port) {
        return None;
    }
    let listed = policy.passes.of(&group.name, host, by);
    let mut passes = listed.filter(|pass| pass.ports.contains(&port));
    let first = passes.next()?;
    // Where two rules name one host, the one that inspects wins.
    let inspecting = passes.chain([first]).find(|pass| !pass.carry.is_splice());
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
        Some(pass) if pass.carry.is_splice() => {
            Ok(Permit { route: Route::Splice(pass), host: host.clone(), port, given: None })
        }
        _ if policy.names(group, host) => Err(Reason::NotTls),
        _ => Err(Reason::DestinationDenied),
    }
}

/// Decides on a connection that names no host. Nothing tells which of the names the agent means, so
/// it must be allowed to reach all of them.
fn decide_unread(policy: &Policy, flow: &Flow, names: &[Host]) -> Result<Permit, Reason> {
    let (group, dialled) = (&flow.group.name, flow.dialled.0);
    let (address, port) = (dialled.ip(), dialled.port());
    if !policy.tcp.iter().any(|tcp| tcp.serves(group, port)) {
        return Err(Reason::PortDenied);
    }
    let rule_for = |host| {
        let mut rules = policy.tcp.of(group, host, MeantBy::Name);
        rules.find(|tcp| tcp.ports.contains(&port))
    };
    let rules: Option<Vec<_>> = names.iter().map(|host| Some((host, rule_for(host)?))).collect();
    let rules = rules.ok_or(Reason::DestinationDenied)?;
    // The one rule in the permit decides how the address is checked: a rule that does not list the
    // address as private is taken, if there is any.
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
mod tests;
