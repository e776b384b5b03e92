//! Mistakes that show only beside another part of the file: names that are taken or not defined,
//! rules that contradict each other. Every rule that could be read in two ways is an error.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Display,
    net::IpAddr,
};

use ipnet::IpNet;
use toml::Spanned;

use super::{
    credential::NO_CREDENTIAL,
    error::{Report, Span, nearest},
    gateway::GatewaySection,
    prefixes::SeenPrefixes,
    rules::{ApiRule, BindingRule, GroupRule, PassRule, Requests, TcpRule},
};
use crate::policy::{
    BodyPlace, Constraints, Folded, Host, HostPattern, InterfaceName, Mac, PathSlot, Place,
    Placeholder, Plain, SecretRef, fold_query, is_credential_query, permits, queries_of,
};

/// The content of a file, as far as it could be read.
pub(super) struct Draft {
    pub(super) gateway: Option<GatewaySection>,
    pub(super) groups: Vec<GroupRule>,
    pub(super) apis: Vec<ApiRule>,
    pub(super) passes: Vec<PassRule>,
    pub(super) tcp: Vec<TcpRule>,
    /// Whether `[vault]` is there, right or wrong.
    pub(super) vault: bool,
    /// Whether `[secrets]` is there, right or wrong.
    pub(super) secret_file: bool,
}

impl Draft {
    /// Reports the parts that contradict each other.
    pub(super) fn check(&self, report: &Report<'_>) {
        let groups = self.groups.iter().filter_map(|group| group.name.as_ref());
        unique("a group", groups.map(|name| (name.get_ref().as_str(), name.span())), report);
        unique("a rule", self.rule_names(), report);
        self.check_agents(report);
        self.check_bound_agents(report);
        self.check_number_of_bound(report);
        self.check_group_names(report);
        self.check_api_hosts(report);
        self.check_pass_hosts(report);
        self.check_tcp_hosts(report);
        self.check_tcp_ports(report);
        self.check_secrets(report);
        let mints = self.apis.iter().flat_map(|api| &api.mints);
        let names = mints.filter_map(|mint| mint.name.as_ref());
        unique("a mint", names.map(|name| (name.get_ref().as_str(), name.span())), report);
        check_mints(&self.apis, report);
        for api in &self.apis {
            check_placeholders(api, report);
            let places = self.places(api);
            self.check_unbound(api, report);
            check_paths_apart(&places, report);
            check_bodies(api, &places, report);
            check_paths_allowed(api, report);
            check_plain(api, &places, report);
            check_websocket(api, &places, report);
            check_aws(api, &places, report);
        }
        let inspected = self
            .passes
            .iter()
            .filter_map(|it| Some((it.websocket.as_ref()?, it.inspect.as_ref()?)));
        inspected.for_each(|(flag, requests)| check_handshake(flag, requests, report));
        self.check_ports(report);
        self.check_metrics(report);
        self.check_resolvers(report);
    }

    /// Refuses constraints that are not critical: Vault's engine makes none.
    pub(super) fn refuse_noted(&self, report: &Report<'_>) {
        let apis = self.apis.iter().filter_map(|api| api.constraints.as_ref());
        let passes = self.passes.iter().filter_map(|pass| pass.constraints.as_ref());
        let noted = apis.chain(passes).filter(|said| *said.get_ref() == Constraints::Noted);
        noted.for_each(|said| {
            let text = "constraints: with [vault.pki] Vault signs the issuing CAs, and its engine \
                        makes them \"critical\" alone; write that, or remove one of the two";
            report.add(&said.span(), text);
        });
    }

    /// Returns the ports that rules name, each with the place where it is first named. A default
    /// port has the place of its rule.
    pub(super) fn rule_ports(&self) -> BTreeMap<u16, Span> {
        let tcp = self.tcp.iter().flat_map(|tcp| &tcp.ports);
        first_named(self.peeked_ports().chain(tcp))
    }

    /// Returns the ports of rules that need a name in the first bytes.
    fn peeked_ports(&self) -> impl Iterator<Item = &Spanned<u16>> {
        let apis = self.apis.iter().map(|api| &api.port);
        apis.chain(self.passes.iter().flat_map(|pass| &pass.ports))
    }

    pub(super) fn rule_names(&self) -> impl Iterator<Item = (&str, Span)> {
        let apis = self.apis.iter().filter_map(|api| api.name.as_ref());
        let passes = self.passes.iter().filter_map(|pass| pass.name.as_ref());
        let tcp = self.tcp.iter().filter_map(|tcp| tcp.name.as_ref());
        apis.chain(passes).chain(tcp).map(|name| (name.get_ref().as_str(), name.span()))
    }

    /// Refuses an API without bindings, which has no use.
    fn check_unbound(&self, api: &ApiRule, report: &Report<'_>) {
        let mut mints = self.apis.iter().flat_map(|api| &api.mints);
        let takes_tickets = mints.any(|mint| mint.is_redeemed_at(&api.hosts));
        if let Some(span) = api.unbound.as_ref().filter(|_| !takes_tickets) {
            report.add(span, "[[api]] lacks \"binding\"; write [[api.binding]] below it");
        }
    }

    /// Returns the places at an API, each with a text that stands there.
    fn places<'a>(&'a self, api: &'a ApiRule) -> Vec<PlaceWithText<'a>> {
        let bound = api.bindings.iter().flat_map(|binding| {
            let text = binding.placeholder.as_ref().map_or("x", |text| text.get_ref().as_str());
            binding.places.iter().map(move |place| (place, text))
        });
        let mints = self.apis.iter().flat_map(|other| &other.mints);
        let minted =
            mints.filter(|mint| mint.is_redeemed_at(&api.hosts)).flat_map(|mint| &mint.places);
        bound.chain(minted.map(|place| (place, "ticket"))).collect()
    }

    fn bindings(&self) -> impl Iterator<Item = &BindingRule> {
        self.apis.iter().flat_map(|api| &api.bindings)
    }

    /// Checks that no packet can belong to two groups, and that each address has one interface: the
    /// way back to the address leads through it, and on any other its packets are dropped as
    /// spoofed.
    fn check_agents(&self, report: &Report<'_>) {
        let on = |group: &'_ GroupRule| group.interface.as_ref().map(|name| name.get_ref().clone());
        let prefixes = self.groups.iter().flat_map(|group| {
            group.prefixes.iter().filter_map(move |prefix| on(group).zip(Some(prefix)))
        });
        let mut all: Vec<(InterfaceName, &Spanned<IpNet>)> = Vec::new();
        let mut seen = SeenPrefixes::default();
        for (interface, prefix) in prefixes {
            let first = seen.see(prefix.get_ref()).and_then(|number| all.get(number));
            if let Some((other, first)) = first {
                let line = report.line(&first.span());
                let (own, theirs) = (prefix.get_ref(), first.get_ref());
                let why = if *other == interface {
                    "on that interface; an agent belongs to one group".to_owned()
                } else {
                    format!(
                        "on interface \"{other}\"; the way back to an address leads through one \
                         interface, so give each its own addresses"
                    )
                };
                let text =
                    format!("prefixes: \"{own}\" overlaps \"{theirs}\" of line {line} {why}");
                report.add(&prefix.span(), text);
            }
            all.push((interface, prefix));
        }
    }

    /// Checks that a network card and an address belong to one agent, and that its group has the
    /// address.
    fn check_bound_agents(&self, report: &Report<'_>) {
        let mut cards: Vec<(&InterfaceName, &Spanned<Mac>)> = Vec::new();
        let mut addresses: Vec<(&InterfaceName, &Spanned<IpAddr>)> = Vec::new();
        for group in &self.groups {
            let Some(interface) = group.interface.as_ref().map(Spanned::get_ref) else { continue };
            for agent in &group.agents {
                if let Some(mac) = &agent.mac {
                    one_agents("mac", interface, mac, &mut cards, report);
                }
                for address in &agent.addresses {
                    one_agents("addresses", interface, address, &mut addresses, report);
                    let inside =
                        |prefix: &Spanned<IpNet>| prefix.get_ref().contains(address.get_ref());
                    if !group.prefixes.iter().any(inside) {
                        let text = format!(
                            "addresses: \"{}\" is in none of the group's prefixes",
                            address.get_ref()
                        );
                        report.add(&address.span(), text);
                    }
                }
            }
        }
    }

    /// Checks the number of bound addresses: each needs one or more rules in a single transaction,
    /// whose size is bounded.
    fn check_number_of_bound(&self, report: &Report<'_>) {
        let agents = self.groups.iter().flat_map(|group| &group.agents);
        let mut addresses = agents.flat_map(|agent| &agent.addresses);
        if let Some(beyond) = addresses.nth(MAX_BOUND) {
            let text = format!("addresses: more than {MAX_BOUND} are bound to cards in all");
            report.add(&beyond.span(), text);
        }
    }

    fn check_group_names(&self, report: &Report<'_>) {
        // Where a group's name is missing, only that is reported, and not every use of it.
        if self.groups.is_empty() || self.groups.iter().any(|group| group.written.is_none()) {
            return;
        }
        let passes = self.passes.iter().flat_map(|pass| &pass.groups);
        let passes = passes.chain(self.tcp.iter().flat_map(|tcp| &tcp.groups));
        let known = self.groups.iter().filter_map(|group| group.written.as_deref());
        let known: HashSet<&str> = known.collect();
        let used = self.bindings().flat_map(|binding| &binding.groups).chain(passes);
        for group in used.filter(|group| !known.contains(group.get_ref().as_str())) {
            if let Some(text) = self.no_such_group(group.get_ref().as_str()) {
                report.add(&group.span(), text);
            }
        }
    }

    /// Returns the error of naming the group `name`, which no group has; `None` where it was
    /// reported already.
    fn no_such_group(&self, name: &str) -> Option<String> {
        let known = || self.groups.iter().filter_map(|group| group.written.as_deref());
        let Some(meant) = nearest(name, known()) else {
            let names = list(known());
            return Some(format!("groups: no group is named {name:?}; the groups are {names}"));
        };
        let is_meant = |group: &&GroupRule| group.written.as_deref() == Some(meant);
        let broken = self.groups.iter().find(is_meant).is_some_and(|group| group.name.is_none());
        // Where the group's own name is invalid, the mistake is reported there.
        (!broken).then(|| format!("groups: no group is named {name:?}; did you mean {meant:?}?"))
    }

    /// Checks that no request can belong to two APIs.
    fn check_api_hosts(&self, report: &Report<'_>) {
        let mut seen: BTreeMap<(&Host, u16), Span> = BTreeMap::new();
        for (api, host) in self.apis.iter().flat_map(|api| api.hosts.iter().map(move |h| (api, h)))
        {
            let (name, port) = (host.get_ref(), *api.port.get_ref());
            if let Some(first) = seen.get(&(name, port)) {
                let line = report.line(first);
                let text = format!(
                    "hosts: \"{name}\" on port {port} is already in line {line}; a host and port \
                     belong to one API"
                );
                report.add(&host.span(), text);
            } else {
                seen.insert((name, port), host.span());
            }
        }
    }

    /// Checks that a name that a pass lists exactly belongs to no API, and to no other pass of the
    /// same group.
    fn check_pass_hosts(&self, report: &Report<'_>) {
        let apis = self.api_ports();
        let mut seen: HashMap<&HostPattern, Vec<(&PassRule, Span)>> = HashMap::new();
        let hosts = self.passes.iter().flat_map(|pass| pass.hosts.iter().map(move |h| (pass, h)));
        for (pass, host) in hosts {
            let name = host.get_ref();
            let alike = seen.entry(name).or_default();
            let first =
                alike.iter().find(|(other, _)| std::ptr::eq(*other, pass) || meet(other, pass));
            if let Some(api) = api_span(&apis, pass, name) {
                report.add(&host.span(), shadow(name, report.line(api)));
            } else if let Some((_, first)) = first {
                let line = report.line(first);
                let text = format!(
                    "hosts: \"{name}\" is already in line {line} for the same groups and ports; \
                     keep one"
                );
                report.add(&host.span(), text);
            }
            alike.push((pass, host.span()));
        }
    }

    /// Returns the hosts of all APIs, each with its ports and their places in the file.
    fn api_ports(&self) -> ApiPorts<'_> {
        let mut ports = ApiPorts::new();
        for api in &self.apis {
            for host in &api.hosts {
                let port = *api.port.get_ref();
                ports.entry(host.get_ref()).or_default().push((port, host.span()));
            }
        }
        ports
    }

    /// Checks that a group has one rule for a name and port.
    fn check_tcp_hosts(&self, report: &Report<'_>) {
        let mut seen: HashMap<&Host, Vec<(&TcpRule, Span)>> = HashMap::new();
        for (tcp, host) in self.tcp.iter().flat_map(|tcp| tcp.hosts.iter().map(move |h| (tcp, h))) {
            let alike = seen.entry(host.get_ref()).or_default();
            let first = alike.iter().find(|(other, _)| {
                std::ptr::eq(*other, tcp)
                    || share(&other.groups, &tcp.groups) && share(&other.ports, &tcp.ports)
            });
            if let Some((_, first)) = first {
                let text = format!(
                    "hosts: \"{}\" is already in line {} for the same groups and ports; keep one",
                    host.get_ref(),
                    report.line(first)
                );
                report.add(&host.span(), text);
            }
            alike.push((tcp, host.span()));
        }
    }

    /// Checks that all groups agree on each port: the port alone decides whether a connection is
    /// peeked at.
    fn check_tcp_ports(&self, report: &Report<'_>) {
        let peeked = first_named(self.peeked_ports());
        for port in self.tcp.iter().flat_map(|tcp| &tcp.ports) {
            if let Some(other) = peeked.get(port.get_ref()) {
                let (own, line) = (port.get_ref(), report.line(other));
                let whose = self.adding(*own, other).map_or_else(
                    || format!("the rule in line {line}"),
                    |client| format!("a rule that the client {client:?} in line {line} adds"),
                );
                let text = format!(
                    "ports: {own} is also the port of {whose}; on a port of [[tcp]] the gateway reads no \
                     host name, so no other rule can use {own}; take it out of one of the two"
                );
                report.add(&port.span(), text);
            }
        }
    }

    /// The client for which a rule was added that names the port, and stands in the file there.
    fn adding(&self, port: u16, at: &Span) -> Option<&'static str> {
        let names = |pass: &&PassRule| {
            pass.ports.iter().any(|own| *own.get_ref() == port && own.span() == *at)
        };
        self.passes.iter().filter(|pass| pass.client.is_some()).find(names)?.client
    }

    fn check_secrets(&self, report: &Report<'_>) {
        for secret in self.bindings().filter_map(|binding| binding.secret.as_ref()) {
            let lacks = match secret.get_ref() {
                SecretRef::Vault { .. } if !self.vault => "[vault]",
                SecretRef::File { .. } if !self.secret_file => "[secrets]",
                _ => continue,
            };
            let text =
                format!("secret: \"{}\" needs {lacks}, which is not there", secret.get_ref());
            report.add(&secret.span(), text);
        }
    }

    /// Checks that no agent can reach the metrics, which are for the gateway's operators.
    fn check_metrics(&self, report: &Report<'_>) {
        let Some(gateway) = &self.gateway else { return };
        if let Some(metrics) = &gateway.metrics
            && let Some(text) = self.is_agents(metrics.get_ref().ip())
        {
            let text =
                format!("metrics: {text}; take one that is not on their side, such as 127.0.0.1");
            report.add(&metrics.span(), text);
        }
    }

    /// Checks that no resolver is an agent: it would answer for every name that others ask for.
    fn check_resolvers(&self, report: &Report<'_>) {
        let Some(gateway) = &self.gateway else { return };
        for resolver in &gateway.resolvers {
            if let Some(text) = self.is_agents(resolver.get_ref().address.ip()) {
                let text = format!("resolvers: {text}; name a server that is not on their side");
                report.add(&resolver.span(), text);
            }
        }
    }

    fn is_agents(&self, address: IpAddr) -> Option<String> {
        let mut prefixes = self.groups.iter().flat_map(|group| &group.prefixes);
        let within = prefixes.find(|prefix| prefix.get_ref().contains(&address))?;
        Some(format!("{address} is an agents' address, in \"{}\"", within.get_ref()))
    }

    /// Checks that rules name captured ports, where alone they have an effect, and never the
    /// listeners' own.
    fn check_ports(&self, report: &Report<'_>) {
        let Some(gateway) = &self.gateway else { return };
        let own = *gateway.proxy_port.get_ref();
        let listed = gateway.ports.as_deref().unwrap_or_default();
        let mut captured: BTreeMap<u16, Span> = self.rule_ports();
        captured.extend(listed.iter().map(|port| (*port.get_ref(), port.span())));
        if let Some(span) = captured.get(&own) {
            let text = format!(
                "{own} is the gateway's proxy_port and cannot be captured; change one of the two"
            );
            report.add(span, text);
        }
        if gateway.ports.is_none() {
            return;
        }
        for (port, span) in self.rule_ports() {
            if !listed.iter().any(|listed| *listed.get_ref() == port) {
                let whose = self
                    .adding(port, &span)
                    .map(|client| format!(" of a rule that the client {client:?} adds"));
                let text = format!(
                    "port {port}{} is not in the ports that [gateway] captures; add it there",
                    whose.unwrap_or_default()
                );
                report.add(&span, text);
            }
        }
    }
}

/// The place of each host of an API in the file, with its port, in the order of the APIs.
type ApiPorts<'a> = HashMap<&'a Host, Vec<(u16, Span)>>;

/// Returns the place of an API's host that the pass names on one of its ports.
fn api_span<'a>(apis: &'a ApiPorts<'_>, pass: &PassRule, host: &HostPattern) -> Option<&'a Span> {
    let HostPattern::Exact(name) = host else { return None };
    let mut ports = apis.get(name)?.iter();
    ports.find(|(port, _)| has_port(pass, *port)).map(|(_, span)| span)
}

/// Reports a value that another agent of the interface already has.
fn one_agents<'a, T: PartialEq + Display>(
    key: &str,
    interface: &'a InterfaceName,
    value: &'a Spanned<T>,
    seen: &mut Vec<(&'a InterfaceName, &'a Spanned<T>)>,
    report: &Report<'_>,
) {
    let first = seen
        .iter()
        .find(|(other, first)| *other == interface && first.get_ref() == value.get_ref());
    if let Some((_, first)) = first {
        let line = report.line(&first.span());
        let text = format!(
            "{key}: \"{}\" is already in line {line} on that interface; it is one agent's",
            value.get_ref()
        );
        report.add(&value.span(), text);
    }
    seen.push((interface, value));
}

/// Reports mints whose hosts belong to no API, or whose requests no rule allows.
fn check_mints(apis: &[ApiRule], report: &Report<'_>) {
    for mint in apis.iter().flat_map(|api| &api.mints) {
        let takers: Vec<_> = apis.iter().filter(|api| mint.is_redeemed_at(&api.hosts)).collect();
        for host in &mint.hosts {
            if !takers.iter().any(|api| api.hosts.iter().any(|own| own.get_ref() == host.get_ref()))
            {
                let text = format!(
                    "hosts: \"{}\" is a host of no [[api]], and TLS has to end here where a ticket is \
                     taken back; add one, which needs no binding",
                    host.get_ref()
                );
                report.add(&host.span(), text);
            }
        }
        mint.places.iter().for_each(|place| check_mint_body(place, &takers, report));
        for place in mint.places.iter().filter(|place| *place.get_ref() == Place::Aws) {
            report.add(&place.span(), "places: a ticket is no pair of keys, and cannot sign");
        }
    }
}

fn check_mint_body(place: &Spanned<Place>, takers: &[&ApiRule], report: &Report<'_>) {
    let Place::Body(body) = place.get_ref() else { return };
    let allows = |api: &&ApiRule| {
        let requests = &api.requests;
        let path = body.path().to_string();
        permits(&requests.methods, &requests.paths, body.method(), &path).is_ok()
    };
    if !takers.is_empty() && !takers.iter().any(allows) {
        let text = format!(
            "places: \"{body}\" is of a request that no API of these hosts allows; add {} to its \
             methods and {} to its paths",
            body.method(),
            body.path()
        );
        report.add(&place.span(), text);
    }
}

/// Checks that one placeholder of one group in one place means one secret.
fn check_placeholders(api: &ApiRule, report: &Report<'_>) {
    let mut seen: Vec<(&BindingRule, &Spanned<Place>)> = Vec::new();
    let places =
        api.bindings.iter().flat_map(|own| own.places.iter().map(move |place| (own, place)));
    for (binding, place) in places {
        let first = seen.iter().find(|(first, other)| {
            same_place(other.get_ref(), place.get_ref())
                && (std::ptr::eq(*first, binding) || claims_same(first, binding))
        });
        if let Some((first, other)) = first {
            let line = report.line(&other.span());
            let text = if std::ptr::eq(*first, binding) {
                format!("places: this place is already in line {line}; list it once")
            } else {
                format!(
                    "places: the same placeholder of the same group is already bound to this place \
                     in line {line}; one of the two must go"
                )
            };
            report.add(&place.span(), text);
        }
        seen.push((binding, place));
    }
}

/// Checks that no segment of a path belongs to two places: it would be two credentials, and a
/// request with one of them would be refused because of the other.
fn check_paths_apart(places: &[PlaceWithText<'_>], report: &Report<'_>) {
    let slots: Vec<_> = places
        .iter()
        .filter_map(|(place, text)| match place.get_ref() {
            Place::Path(slot) => Some((*place, slot, *text)),
            _ => None,
        })
        .collect();
    for (nth, (place, slot, text)) in slots.iter().enumerate() {
        let meets = |(_, other, beside): &&(_, &PathSlot, &str)| {
            other != slot
                && (other.is_found_beside(slot, text) || slot.is_found_beside(other, beside))
        };
        if let Some((first, other, _)) = slots.iter().take(nth).find(meets) {
            let line = report.line(&first.span());
            let text = format!(
                "places: \"path {slot}\" and \"path {other}\" in line {line} are found in the same \
                 paths, so each has the requests of the other refused; keep one"
            );
            report.add(&place.span(), text);
        }
    }
}

/// Checks that a placeholder in a path stands in a request that the API allows.
fn check_paths_allowed(api: &ApiRule, report: &Report<'_>) {
    for binding in &api.bindings {
        let Some(placeholder) = &binding.placeholder else { continue };
        let text = placeholder.get_ref().as_str();
        // A rule on paths may spell it in another way.
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)) {
            continue;
        }
        let slots = binding.places.iter().filter_map(|place| match place.get_ref() {
            Place::Path(slot) => Some((place, slot)),
            _ => None,
        });
        for (place, slot) in slots.filter(|(_, it)| !it.is_allowed(text, &api.requests.paths)) {
            let path = slot.to_string().replace("{}", text);
            let below = if path.ends_with('/') { "*" } else { "" };
            let text = format!(
                "places: \"path {slot}\" is of a request that the API does not allow; add \
                 \"{path}{below}\" to its paths"
            );
            report.add(&place.span(), text);
        }
    }
}

/// Checks that a place in a body is in a request that the API allows, and that no other place is in
/// it.
fn check_bodies(api: &ApiRule, places: &[PlaceWithText<'_>], report: &Report<'_>) {
    let bodies: Vec<_> = places
        .iter()
        .filter_map(|(place, _)| match place.get_ref() {
            Place::Body(body) => Some((*place, body)),
            _ => None,
        })
        .collect();
    let own: Vec<_> = api.bindings.iter().flat_map(|binding| &binding.places).collect();
    for (nth, (place, body)) in bodies.iter().enumerate() {
        let (method, path) = (body.method(), body.path());
        let allowed =
            permits(&api.requests.methods, &api.requests.paths, method, &path.to_string());
        let is_own = own.iter().any(|own| std::ptr::eq(*own, *place));
        if allowed.is_err() && is_own {
            let text = format!(
                "places: \"{body}\" is of a request that the API does not allow; add {method} to its \
                 methods and {path} to its paths"
            );
            report.add(&place.span(), text);
        }
        let within = |(_, other): &&(_, &BodyPlace)| {
            let (own, theirs) = (body.spot(), other.spot());
            own != theirs
                && body.shares_requests_with(other)
                && (own.holds(theirs) || theirs.holds(own))
        };
        if let Some((first, other)) = bodies.iter().take(nth).find(within) {
            let line = report.line(&first.span());
            let text = format!(
                "places: of \"{body}\" and \"{other}\" in line {line} one is in the other; keep one"
            );
            report.add(&place.span(), text);
        }
    }
}

/// A place, and a text that stands there.
type PlaceWithText<'a> = (&'a Spanned<Place>, &'a str);

/// Checks that no field with a placeholder is listed as plain, and that a plain name in a query is
/// one that would otherwise count as a credential.
fn check_plain(api: &ApiRule, places: &[PlaceWithText<'_>], report: &Report<'_>) {
    let places = || places.iter().map(|(place, _)| *place);
    let bound = |plain: &Plain, place: &Place| match (plain, place) {
        (Plain::Header(name), Place::Header { name: other, .. }) => {
            Folded(name.as_str().as_bytes()) == Folded(other.as_str().as_bytes())
        }
        (Plain::Query(name), Place::Query { name: other }) => **name == *fold_query(other),
        _ => false,
    };
    for plain in &api.plain {
        if let Some(place) = places().find(|place| bound(plain.get_ref(), place.get_ref())) {
            let line = report.line(&place.span());
            let text = format!("plain: a placeholder stands there by line {line}; list it once");
            report.add(&plain.span(), text);
        }
        if let Plain::Query(name) = plain.get_ref()
            && !is_credential_query(name)
            && !places().any(|place| queries_of_place(place.get_ref()).any(|one| *one == **name))
        {
            report.add(&plain.span(), NO_CREDENTIAL);
        }
    }
}

/// Checks that an API with a place in the WebSocket handshake allows such a handshake.
fn check_websocket(api: &ApiRule, places: &[PlaceWithText<'_>], report: &Report<'_>) {
    let allowed = api.websocket.as_ref().is_some_and(|flag| *flag.get_ref());
    let places = places.iter().map(|(place, _)| *place);
    for place in places.filter(|place| matches!(place.get_ref(), Place::Subprotocol(_))) {
        if !allowed {
            let text = "places: this one is in the handshake of a WebSocket; write websocket = true \
                        in the API";
            report.add(&place.span(), text);
        }
    }
    if let Some(flag) = &api.websocket {
        check_handshake(flag, &api.requests, report);
    }
}

/// Checks that the services to sign for and the keys that sign are both there, that the keys have
/// no other place, and that their placeholder can stand in a signature.
fn check_aws(api: &ApiRule, places: &[PlaceWithText<'_>], report: &Report<'_>) {
    let mut signed = false;
    for binding in &api.bindings {
        let is_aws = |place: &&Spanned<Place>| *place.get_ref() == Place::Aws;
        let Some(place) = binding.places.iter().find(is_aws) else { continue };
        signed = true;
        if api.aws.is_none() {
            let text = "places: \"aws\" needs what requests may be signed for; write aws = { services \
                        = [\"s3\"], regions = [\"eu-central-1\"] } in the API";
            report.add(&place.span(), text);
        }
        if binding.places.len() > 1 {
            let text = "places: the value at \"aws\" is a pair of keys and stands in no other place; \
                        make another binding";
            report.add(&place.span(), text);
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        let odd = |text: &&Spanned<Placeholder>| !text.get_ref().as_str().bytes().all(plain);
        if let Some(text) = binding.placeholder.as_ref().filter(odd) {
            let wrong = "placeholder: at \"aws\" it is the id of an access key, and has letters, \
                         digits, '_' and '-' alone";
            report.add(&text.span(), wrong);
        }
    }
    let in_body = |place: &&Spanned<Place>| matches!(place.get_ref(), Place::Body(_));
    let mut places = places.iter().map(|(place, _)| *place);
    if let Some(place) = places.find(in_body).filter(|_| signed) {
        let text = "places: what stands in a body is signed at an API with the place \"aws\"; make \
                    another API";
        report.add(&place.span(), text);
    }
    if let Some(aws) = api.aws.as_ref().filter(|_| !signed) {
        report.add(&aws.span, "aws: no binding of the API has the place \"aws\"");
    }
}

/// Checks that the API allows GET, which a handshake needs (RFC 6455, section 4.1).
fn check_handshake(flag: &Spanned<bool>, requests: &Requests, report: &Report<'_>) {
    if *flag.get_ref() && !requests.methods.contains(&http::Method::GET) {
        report.add(&flag.span(), "websocket: its handshake is a GET, which methods does not list");
    }
}

fn queries_of_place(place: &Place) -> impl Iterator<Item = Box<str>> {
    let (field, query) = match place {
        Place::Header { name, .. } => (Some(name.as_str()), None),
        Place::Body(place) => (None, Some(place.spot().query())),
        _ => (None, None),
    };
    field.into_iter().flat_map(queries_of).chain(query.map(|name| fold_query(&name).into()))
}

/// Whether one text of some group stands for both.
fn claims_same(one: &BindingRule, other: &BindingRule) -> bool {
    let Some((first, second)) = one.placeholder.as_ref().zip(other.placeholder.as_ref()) else {
        return false;
    };
    let (first, second) = (first.get_ref(), second.get_ref());
    let makes_up = |rule: &BindingRule, own: &Placeholder, text: &Placeholder| {
        let shape = rule.shape.as_ref().filter(|shape| shape.length() == text.as_str().len());
        let groups = one.groups.iter().map(Spanned::get_ref);
        let shared = groups.filter(|group| is_among(*group, &other.groups));
        shape.is_some_and(|shape| {
            shared.into_iter().any(|group| &*shape.made_up(group, own) == text.as_str())
        })
    };
    // Two texts that are made up agree where the names do, and else not by chance.
    first == second && share(&one.groups, &other.groups)
        || makes_up(one, first, second)
        || makes_up(other, second, first)
}

/// Returns whether two places read the same bytes. Two places of the same half of Basic do, however
/// the fixed half differs.
fn same_place(one: &Place, other: &Place) -> bool {
    match (one, other) {
        (Place::BasicUser { .. }, Place::BasicUser { .. }) => true,
        (Place::BasicPassword { .. }, Place::BasicPassword { .. }) => true,
        _ => one == other,
    }
}

fn meet(one: &PassRule, other: &PassRule) -> bool {
    share(&one.groups, &other.groups) && share(&one.ports, &other.ports)
}

fn share<T: PartialEq>(one: &[Spanned<T>], other: &[Spanned<T>]) -> bool {
    one.iter().any(|value| is_among(value.get_ref(), other))
}

fn is_among<T: PartialEq>(value: &T, all: &[Spanned<T>]) -> bool {
    all.iter().any(|other| other.get_ref() == value)
}

/// Returns each port with the place where it is named first.
fn first_named<'a>(ports: impl Iterator<Item = &'a Spanned<u16>>) -> BTreeMap<u16, Span> {
    let mut first = BTreeMap::new();
    for port in ports {
        first.entry(*port.get_ref()).or_insert(port.span());
    }
    first
}

fn has_port(pass: &PassRule, port: u16) -> bool {
    pass.ports.iter().any(|own| *own.get_ref() == port)
}

fn unique<'a>(what: &str, names: impl Iterator<Item = (&'a str, Span)>, report: &Report<'_>) {
    let mut seen: BTreeMap<&str, Span> = BTreeMap::new();
    for (name, span) in names {
        if let Some(first) = seen.get(name) {
            let line = report.line(first);
            report.add(
                &span,
                format!(
                    "name: {what} named {name:?} is already in line {line}; choose another name"
                ),
            );
        } else {
            seen.insert(name, span);
        }
    }
}

fn shadow(host: &HostPattern, line: usize) -> String {
    format!(
        "hosts: \"{host}\" belongs to the API in line {line} on the same port, so this rule could \
         never hold; take it out of one of the two"
    )
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

/// Most addresses, of all groups together, that may be bound to network cards.
const MAX_BOUND: usize = 512;
