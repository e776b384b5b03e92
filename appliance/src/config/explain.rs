//! A configuration in plain words: which group may reach which hosts, and how. The text is made
//! from the checked policy alone, so it says what will be done and not what was written.

mod warnings;

use std::{
    collections::BTreeSet,
    fmt::{self, Display, Write},
    sync::Arc,
};

use super::{
    AgentServices, AuditFile, AuditTarget, Config, Settings, VaultLogin, VaultSettings,
    value::duration,
};
use crate::policy::{
    Anonymous, AnonymousRequest, Api, Binding, Carry, CredentialNames, Group, HostPattern, Limits,
    Mint, Pass, Pick, PickPart, Place, Placeholder, Policy, Quota, SecretRef, Site, Tcp, Upstream,
    VaultLocation, fold_query, is_credential_header, is_credential_query, queries_of,
};

/// Returns the whole configuration as text for people: the gateway, each group with all that it may
/// do, and the warnings. Ends with a line end.
pub fn explain(config: &Config) -> String {
    let mut page = PolicyReport(String::new());
    page.gateway(config);
    config.policy.groups.iter().for_each(|group| page.group(group, &config.policy));
    if !config.policy.apis.is_empty() {
        page.credentials();
    }
    page.warnings(&warnings::warnings(config));
    page.0
}

/// Text under construction. Writing to a string cannot fail.
struct PolicyReport(String);

impl PolicyReport {
    fn heading(&mut self, text: impl Display) {
        let blank = if self.0.is_empty() { "" } else { "\n" };
        let _ = writeln!(self.0, "{blank}{text}");
    }

    fn rule(&mut self, text: impl Display) {
        let _ = writeln!(self.0, "\n  {text}");
    }

    fn line(&mut self, label: &str, text: impl Display) {
        let _ = writeln!(self.0, "    {label:<12}{text}");
    }

    fn gateway(&mut self, config: &Config) {
        let Config { settings, policy } = config;
        self.heading("The gateway");
        let families = if settings.ipv6 { "IPv4 and IPv6" } else { "IPv4; all IPv6 is dropped" };
        self.line("captures", format!("TCP ports {}, {families}", list(&policy.ports)));
        self.line("", "all other TCP is reset");
        self.line("resolves", format!("names through {}", list(&settings.resolvers)));
        self.site(&policy.site);
        self.line("answers", "the agents' DNS, for the names that their rules list");
        let services = services(settings);
        if !services.is_empty() {
            self.line("", format!("{} at its own address", list(&services)));
        }
        self.line("records", audit(settings));
        if let Some(vault) = &settings.vault {
            self.vault(vault);
        }
        if let Some(file) = &settings.secret_file {
            let encrypted = if file.key.is_some() { "encrypted" } else { "plain" };
            self.line("secrets", format!("from the {encrypted} file {}", file.path.display()));
        }
        self.line("obeys", format!("root, at {}", settings.control.display()));
        self.issuing_cas(settings);
        self.bounds(&policy.limits, policy.groups.len());
    }

    fn site(&mut self, site: &Site) {
        if !site.never_dial.is_empty() {
            let prefixes = list(&site.never_dial);
            self.line("dials never", format!("{prefixes}, whatever a rule lists"));
        }
        if !site.public_addresses.is_empty() {
            let own = list(&site.public_addresses);
            self.line("is known as", format!("{own}, where no agent gets to either"));
        }
        let translators = match &site.nat64_prefixes {
            None => "as the resolvers show, or none".to_owned(),
            Some(none) if none.is_empty() => "none".to_owned(),
            Some(prefixes) => list(prefixes),
        };
        self.line("NAT64", translators);
    }

    /// Writes the bounds in force, which may be lower than written where there are many groups.
    fn bounds(&mut self, limits: &Limits, groups: usize) {
        let one = limits.agent_new_connections;
        self.line("bounds", format!("{one} new connections a second for each agent"));
        self.line("", format!("{} requests a second for each agent", limits.agent_new_requests));
        self.line("", format!("{} DNS queries a second for each agent", limits.dns_rate));
        self.line("", format!("{} certificates a second for each agent", limits.agent_leaves));
        let whose = match groups {
            1 => "an agent has at most half of what its group has:".to_owned(),
            _ => format!(
                "{groups} groups have an equal part each, and an agent at most half of that:"
            ),
        };
        self.line("", whose);
        let group = Quota::of_group(limits, groups);
        let agent = group.of_agent(limits);
        for (what, all, group, agent) in [
            ("connections", limits.connections, group.connections, agent.connections),
            ("requests under way", limits.requests, group.requests, agent.requests),
            (
                "KiB of bodies each way",
                limits.buffers / KIB,
                group.bodies / KIB,
                agent.bodies / KIB,
            ),
            (
                "KiB of undecided beginnings",
                limits.peeks / KIB,
                group.peeks / KIB,
                agent.peeks / KIB,
            ),
        ] {
            self.line("", format!("{all} {what}, {group} a group, {agent} an agent"));
        }
    }

    fn vault(&mut self, vault: &VaultSettings) {
        let namespace = vault.namespace.as_ref().map(|name| format!(", namespace {name}"));
        let namespace = namespace.unwrap_or_default();
        self.line("secrets", format!("from Vault at {}{namespace}", vault.address));
        let login = match &vault.login {
            VaultLogin::AppRole { role_id, wrapped: false, .. } => format!("AppRole {role_id}"),
            VaultLogin::AppRole { role_id, .. } => {
                format!("AppRole {role_id}, with a SecretID that is unwrapped once")
            }
            VaultLogin::Cert { role, .. } => format!("TLS certificate, role {role}"),
            VaultLogin::Jwt { role, .. } => format!("signed token, role {role}"),
        };
        self.line("", format!("logs in by {login}; reads with a token of each group's own"));
        let (refresh, stale) = (duration(vault.refresh), duration(vault.max_stale));
        self.line("", format!("read again every {refresh}; kept for {stale} through an outage"));
    }

    fn issuing_cas(&mut self, settings: &Settings) {
        match settings.vault.as_ref().and_then(|vault| vault.pki.as_ref()) {
            Some(pki) => {
                let (mount, root) = (&pki.mount, pki.root_file.display());
                self.line("issuing CAs", format!("signed by Vault at {mount}/, below {root}"));
                let ttl = duration(pki.ttl);
                self.line("", format!("for {ttl} each, replaced before a third of it is left"));
            }
            None => {
                self.line("issuing CAs", format!("from the folder {}", settings.ca_dir.display()));
            }
        }
    }

    fn group(&mut self, group: &Group, policy: &Policy) {
        self.heading(format_args!("Group {}", group.name));
        let prefixes = list(&group.prefixes);
        self.line("agents", format!("on {} with addresses in {prefixes}", group.interface));
        if let Some(mtu) = group.mtu {
            self.line("mtu", format!("TCP is held to segments that fit packets of {mtu} bytes"));
        }
        if group.onboarding.is_some() {
            self.line(
                "onboarding",
                "the gateway's own address offers them the CA, over plain HTTP",
            );
        }
        if !group.clients.is_empty() {
            self.line("run", list(&group.clients));
        }
        if group.agents.is_empty() {
            self.line("", "on a shared segment every agent in this group is one tenant");
        } else {
            self.bound(group);
        }
        for api in &policy.apis {
            let bindings = api.bindings.iter().filter(|bound| bound.groups.contains(&group.name));
            let bindings: Vec<_> = bindings.collect();
            if api.serves(&group.name) {
                self.api(api, &bindings);
            }
        }
        let passes = policy.passes.iter().filter(|pass| pass.groups.contains(&group.name));
        passes.for_each(|pass| self.pass(pass, group, policy));
        let tcp = policy.tcp.iter().filter(|tcp| tcp.groups.contains(&group.name));
        tcp.for_each(|tcp| self.tcp(tcp));
        self.rule("Everything else is refused.");
    }

    fn bound(&mut self, group: &Group) {
        for agent in &group.agents {
            self.line("bound", format!("{} to {}", agent.mac, list(&agent.addresses)));
        }
        self.line("", "no other card and no other address is of this group, and no tagged frame");
        self.line("", "what one may do all may; that no agent takes another's MAC is the switch's");
    }

    fn api(&mut self, api: &Api, bindings: &[&Arc<Binding>]) {
        self.rule(format_args!("API {}: may call {}", api.name, urls(api)));
        for binding in bindings {
            self.binding(binding);
        }
        api.mints.iter().for_each(|mint| self.mint(mint));
        let foreign = |mint: &&Arc<Mint>| !api.mints.contains(mint);
        api.redeems.iter().filter(foreign).for_each(|mint| self.redeemed(mint));
        self.requests(&api.methods, &api.paths);
        self.aws(api);
        self.websocket(api.websocket);
        self.own_credentials(api);
        self.line(
            "without",
            match &api.anonymous {
                Anonymous::Always => {
                    "a placeholder, a request without any credential is forwarded as it is".into()
                }
                Anonymous::Never => "a placeholder, a request is refused".to_owned(),
                Anonymous::Listed(requests) => format!(
                    "a placeholder, a request is refused, except for {}, where it has no credential",
                    list(requests.iter().map(Exception))
                ),
            },
        );
        self.upstream(&api.upstream);
    }

    fn aws(&mut self, api: &Api) {
        let Some(scope) = &api.aws else { return };
        let (services, regions) = (list(&scope.services), list(&scope.regions));
        self.line("signed", format!("again for {services} in {regions}, and for nothing else"));
    }

    /// Writes where this API differs from [`Self::credentials`].
    fn own_credentials(&mut self, api: &Api) {
        let places = || api.places();
        let named = places().filter_map(|place| match place {
            Place::Header { name, .. } => Some(name.as_str()),
            _ => None,
        });
        let named: BTreeSet<_> = named.collect();
        let asked = places().filter_map(|place| match place {
            Place::Query { name } => Some(fold_query(name).into()),
            Place::Body(place) => Some(fold_query(&place.spot().query()).into()),
            _ => None,
        });
        let (mut cookies, mut bodies) = (BTreeSet::new(), BTreeSet::new());
        let (mut slots, mut prefixes) = (BTreeSet::new(), BTreeSet::new());
        for place in places() {
            match place {
                Place::Cookie { name } if api.response.cookies => cookies.insert(name.to_string()),
                Place::Body(place) => bodies.insert(place.to_string()),
                Place::Path(place) => slots.insert(place.to_string()),
                Place::Subprotocol(prefix) => prefixes.insert(prefix.to_string()),
                _ => continue,
            };
        }
        self.also("in the cookie", cookies);
        self.also("in the body as", bodies);
        self.also("for {} in a path like", slots);
        self.also("in a WebSocket's subprotocol behind", prefixes);
        let own = named.iter().filter(|name| !is_credential_header(name.as_bytes()));
        self.also("in", own.copied().collect());
        let queries: BTreeSet<Box<str>> =
            named.iter().flat_map(|name| queries_of(name)).chain(asked).collect();
        let own = queries.into_iter().filter(|name| !is_credential_query(name));
        self.also("in the query under", own.collect());
        for plain in &api.plain {
            self.line("plain", format!("is {plain}: what an agent puts there is passed on"));
        }
        if api.response.cookies {
            self.line("cookies", "are let through, both ways");
        }
    }

    fn also<T: Ord + Display>(&mut self, place: &str, names: BTreeSet<T>) {
        if !names.is_empty() {
            self.line("credential", format!("is also what stands {place} {}", list(names)));
        }
    }

    /// Writes which fields must hold a placeholder, at every API.
    fn credentials(&mut self) {
        self.heading("Credentials at every API");
        let names = CredentialNames::ALL;
        self.words("headers", "that end in", names.endings);
        self.words("", "or, of headers alone, in", names.header_endings);
        self.words("", "and", names.headers);
        self.words("but not", "", names.plain_headers);
        self.words("", "nor what has in its name", names.plain_parts);
        self.words("in a query", "what ends so, and in", names.query_endings);
        self.words("but not", "", names.plain_queries);
        self.words("", "nor what ends in", names.plain_query_endings);
        self.words("", "nor what has in its name", names.plain_parts);
        self.line("", "(case, and all but letters and digits, make no difference there)");
        self.line("cookies", "all, unless the API has keep_cookies");
    }

    /// Writes a list of words in lines of a readable length.
    fn words(&mut self, label: &str, before: &str, words: &[&str]) {
        let mut line = before.to_owned();
        let mut label = label;
        for (nth, word) in words.iter().enumerate() {
            let comma = if nth + 1 == words.len() { "" } else { "," };
            if line.len() + word.len() > WIDTH {
                self.line(label, std::mem::take(&mut line));
                label = "";
            }
            let space = if line.is_empty() { "" } else { " " };
            let _ = write!(line, "{space}{word}{comma}");
        }
        self.line(label, line);
    }

    fn binding(&mut self, binding: &Binding) {
        self.line("holds", &binding.placeholder);
        for (nth, place) in binding.places.iter().enumerate() {
            self.line(
                if nth == 0 { "as" } else { "or as" },
                PlaceText(place, &binding.placeholder),
            );
        }
        if let Some(shaped) = &binding.shaped {
            let shape = shaped.shape();
            self.line("or", format!("a text like {shape} for it (`cloakroom env --shape`)"));
        }
        self.line("becomes", SecretText(&binding.secret));
    }

    /// Writes what the answers hold, and which hosts accept the tickets.
    fn mint(&mut self, mint: &Mint) {
        self.line("mints", format!("{}, in its answers as {}", mint.name, list(&mint.answers)));
        self.redeemed(mint);
    }

    fn redeemed(&mut self, mint: &Mint) {
        let (name, hosts, life) = (&mint.name, list(&mint.hosts), duration(mint.life));
        self.line("tickets", format!("for {name} are good for {life} at {hosts}"));
        mint.places.iter().for_each(|place| self.line("as", PlaceText(place, &mint.label)));
    }

    fn pass(&mut self, pass: &Pass, group: &Group, policy: &Policy) {
        let (hosts, ports) = (list(&pass.hosts), list(&pass.ports));
        match &pass.carry {
            Carry::Splice { .. } => {
                self.rule(format_args!("Splice {}: may reach {hosts}", pass.name));
                self.line("on", format!("TCP port {ports}, byte for byte; nobody looks inside"));
            }
            Carry::Inspect { methods, paths, websocket, .. } => {
                self.rule(format_args!("Inspect {}: may call {hosts}", pass.name));
                self.line("on", format!("TCP port {ports}; TLS ends here, no secret is put in"));
                self.requests(methods, paths);
                self.websocket(*websocket);
            }
        }
        if let Some(client) = pass.client {
            self.line("of", format!("client {client:?} of the group, not of this file"));
        }
        for (host, api) in won_by_apis(pass, policy) {
            self.line("except", format!("{host}, which belongs to API {}", api.name));
        }
        for (hosts, inspect) in won_by_inspection(pass, group, policy) {
            let text = format!("{hosts}, which [[inspect]] {} looks into", inspect.name);
            self.line("except", text);
        }
        self.upstream(&pass.upstream);
    }

    fn tcp(&mut self, tcp: &Tcp) {
        let (hosts, ports) = (list(&tcp.hosts), list(&tcp.ports));
        self.rule(format_args!("TCP {}: may reach {hosts}", tcp.name));
        self.line("on", format!("TCP port {ports}, byte for byte; nobody looks inside"));
        self.line("at", "addresses that the gateway's DNS gave to the agent for these names, and");
        self.line("", "for no name beside them");
        self.upstream(&tcp.upstream);
    }

    fn requests(&mut self, methods: &[http::Method], paths: &[crate::policy::PathRule]) {
        self.line("methods", list(methods));
        self.line("paths", if paths.is_empty() { "all".into() } else { list(paths) });
    }

    fn websocket(&mut self, allowed: bool) {
        if allowed {
            self.line("WebSocket", "yes, over HTTP/1.1; a message is masked as a body is");
        }
    }

    fn upstream(&mut self, upstream: &Upstream) {
        if upstream.ca_pem.is_some() {
            self.line("trusts", "only the CAs of its upstream_ca file");
        }
        if !upstream.private_prefixes.is_empty() {
            let prefixes = list(&upstream.private_prefixes);
            self.line("also at", format!("addresses in {prefixes}"));
        }
    }

    fn warnings(&mut self, warnings: &[String]) {
        if warnings.is_empty() {
            return;
        }
        self.heading("Look twice");
        for warning in warnings {
            let _ = writeln!(self.0, "  ! {warning}");
        }
    }
}

/// A request that needs no credential, and the client that it was added for.
struct Exception<'a>(&'a AnonymousRequest);

impl Display for Exception<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(request) = self;
        match request.client() {
            Some(client) => write!(f, "{request} (of client {client:?})"),
            None => write!(f, "{request}"),
        }
    }
}

/// A place as it looks in a request.
struct PlaceText<'a>(&'a Place, &'a Placeholder);

impl Display for PlaceText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let placeholder = self.1;
        match self.0 {
            Place::Header { name, scheme } => write!(f, "{name}: {scheme}{placeholder}"),
            Place::Query { name } => write!(f, "{name}={placeholder} in the query"),
            Place::Path(place) => write!(f, "the {{}} of the path {place}"),
            Place::Cookie { name } => write!(f, "the cookie {name}={placeholder}"),
            Place::Body(place) => {
                write!(f, "the {} of the body of {} {}", place.spot(), place.method(), place.path())
            }
            Place::Subprotocol(prefix) => {
                write!(f, "{prefix}{placeholder} among a WebSocket's subprotocols")
            }
            Place::Aws => write!(f, "the access key of an AWS signature, {placeholder}"),
            Place::BasicUser { password } if password.is_empty() => {
                write!(f, "the user of Basic, with no password beside it")
            }
            Place::BasicUser { .. } => {
                write!(f, "the user of Basic, with its basic_password beside it or none")
            }
            Place::BasicPassword { user } if user.is_empty() => {
                write!(f, "the password of Basic, with no user beside it")
            }
            Place::BasicPassword { user } => {
                write!(f, "the password of Basic, with the user {user:?} beside it or none")
            }
        }
    }
}

/// The source of a value, in words.
struct SecretText<'a>(&'a SecretRef);

impl Display for SecretText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            SecretRef::Vault { location, pick } => vault_text(f, location, pick),
            SecretRef::File { name } => write!(f, "{name} in the file of secrets"),
        }
    }
}

fn vault_text(f: &mut fmt::Formatter<'_>, location: &VaultLocation, pick: &Pick) -> fmt::Result {
    match &*pick.0 {
        [PickPart::Field(field)] => write!(f, "the field {field} of ")?,
        _ => write!(f, "{pick}, with the fields of ")?,
    }
    match location {
        VaultLocation::Kv2 { mount, path, version } => {
            if let Some(version) = version {
                write!(f, "version {version} of ")?;
            }
            write!(f, "{path} in Vault's KV v2 engine {mount}")
        }
        VaultLocation::Read { path } => write!(f, "what Vault answers to a read of {path}"),
        VaultLocation::Write { path, .. } => write!(f, "what Vault issues on a write to {path}"),
    }
}

fn urls(api: &Api) -> String {
    let port = if api.port == 443 { String::new() } else { format!(":{}", api.port) };
    list(api.hosts.iter().map(|host| format!("https://{host}{port}")))
}

fn audit(settings: &Settings) -> String {
    match &settings.audit {
        AuditTarget::Stdout => "each connection and request on its standard output".into(),
        AuditTarget::File(file) => {
            format!("each connection and request in {}{}", file.path.display(), bounds(file))
        }
    }
}

fn bounds(file: &AuditFile) -> String {
    let size = |bytes: u64| match bytes.is_multiple_of(1 << 20) {
        true => format!("{}MiB", bytes >> 20),
        false => format!("{bytes} bytes"),
    };
    let rotated = file.rotate.map(|at| {
        let files = file.keep.saturating_add(1);
        format!(", in up to {files} files of {}", size(at))
    });
    let reserve = (file.reserve > 0).then(|| {
        format!("; closed to agents while its disk has less than {} left", size(file.reserve))
    });
    rotated.unwrap_or_default() + &reserve.unwrap_or_default()
}

/// Returns the names under a pass rule's patterns that belong to an API, because an exact name
/// wins.
fn won_by_apis<'p>(
    pass: &'p Pass,
    policy: &'p Policy,
) -> impl Iterator<Item = (&'p crate::policy::Host, &'p Api)> {
    let apis = policy.apis.iter().filter(|api| pass.ports.contains(&api.port));
    let hosts = apis.flat_map(|api| api.hosts.iter().map(move |host| (host, api.as_ref())));
    hosts.filter(|(host, _)| pass.hosts.iter().any(|pattern| pattern.matches(host)))
}

/// Returns the hosts of a splice rule that are inspected all the same, because an inspecting rule
/// wins, however wide its pattern is.
fn won_by_inspection<'p>(
    pass: &'p Pass,
    group: &'p Group,
    policy: &'p Policy,
) -> impl Iterator<Item = (&'p HostPattern, &'p Pass)> {
    let wins = |other: &&Arc<Pass>| {
        !other.carry.is_splice()
            && other.groups.contains(&group.name)
            && other.ports.iter().any(|port| pass.ports.contains(port))
    };
    let inspecting = policy.passes.iter().filter(|_| pass.carry.is_splice()).filter(wins);
    let pairs = inspecting.flat_map(move |other| {
        let theirs = move |own| other.hosts.iter().map(move |theirs| (own, theirs));
        pass.hosts.iter().flat_map(theirs).map(move |pair| (pair, other.as_ref()))
    });
    pairs.filter_map(|((own, theirs), other)| Some((narrower(own, theirs)?, other)))
}

/// Returns the names that two patterns have in common: those of the narrower one, or none.
fn narrower<'p>(one: &'p HostPattern, other: &'p HostPattern) -> Option<&'p HostPattern> {
    match (one, other) {
        _ if one == other => Some(one),
        (HostPattern::Any, _) => Some(other),
        (_, HostPattern::Any) => Some(one),
        (HostPattern::Exact(host), pattern) if pattern.matches(host) => Some(one),
        (pattern, HostPattern::Exact(host)) if pattern.matches(host) => Some(other),
        (HostPattern::Suffix(end), HostPattern::Suffix(_)) if other.matches(end) => Some(one),
        (HostPattern::Suffix(_), HostPattern::Suffix(end)) if one.matches(end) => Some(other),
        _ => None,
    }
}

fn services(settings: &Settings) -> Vec<&'static str> {
    let AgentServices { ping, ntp, dhcp } = settings.agent_services;
    let words = [(ping, "ping"), (ntp, "NTP"), (dhcp, "DHCP")];
    words.into_iter().filter(|(wanted, _)| *wanted).map(|(_, word)| word).collect()
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

const KIB: usize = 1_024;

/// Most bytes of a line of words.
const WIDTH: usize = 72;
