//! What a configuration means, in plain words: who may reach what, and how. It is made from the
//! checked policy alone, so it says what will be done and not what was written.

use std::fmt::{self, Display, Write};

use ipnet::IpNet;

use super::{
    AuditTarget, Config, Settings, VaultLogin, VaultSettings, rules::overlap, value::duration,
};
use crate::{
    policy::{
        Api, Binding, Carry, DialledRule, Group, HostPattern, Pass, Place, Policy, Scheme,
        SecretRef, Upstream,
    },
    secrets::SecretValue,
};

/// The whole configuration for a person to read: the gateway, each group with all it may do, and
/// what deserves a second look. Ends with a line end.
pub fn explain(config: &Config) -> String {
    let mut page = Page(String::new());
    page.gateway(config);
    config.policy.groups.iter().for_each(|group| page.group(group, &config.policy));
    page.warnings(&warnings(config));
    page.0
}

/// Text under construction. Writing to a string cannot fail.
struct Page(String);

impl Page {
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
        self.line("answers", "the agents' DNS, for the names that their rules list");
        self.line("records", audit(settings));
        if let Some(vault) = &settings.vault {
            self.vault(vault);
        }
        if let Some(file) = &settings.secret_file {
            self.line("secrets", format!("from the file {}", file.display()));
        }
        self.issuing_cas(settings);
        let (own, total) = (policy.limits.agent_connections, policy.limits.connections);
        self.line("bounds", format!("{own} connections for each agent, {total} in all"));
        self.line("", format!("{} DNS queries a second for each agent", policy.limits.dns_rate));
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
                self.line("", format!("for {ttl} each, made anew before a third of it is left"));
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
        self.line("", "on a shared segment every agent in this group is one tenant");
        for api in &policy.apis {
            let bindings = api.bindings.iter().filter(|bound| bound.groups.contains(&group.name));
            let bindings: Vec<_> = bindings.collect();
            if !bindings.is_empty() {
                self.api(api, &bindings);
            }
        }
        let passes = policy.passes.iter().filter(|pass| pass.groups.contains(&group.name));
        passes.for_each(|pass| self.pass(pass, policy));
        self.rule("Everything else is refused.");
    }

    fn api(&mut self, api: &Api, bindings: &[&std::sync::Arc<Binding>]) {
        self.rule(format_args!("API {}: may call {}", api.name, urls(api)));
        for binding in bindings {
            self.binding(binding);
        }
        self.requests(&api.methods, &api.paths);
        self.line(
            "without",
            if api.anonymous {
                "a placeholder, a request without any credential is forwarded as it is"
            } else {
                "a placeholder, a request is refused"
            },
        );
        self.upstream(&api.upstream);
    }

    fn binding(&mut self, binding: &Binding) {
        self.line("holds", &binding.placeholder);
        for (nth, place) in binding.places.iter().enumerate() {
            self.line(if nth == 0 { "as" } else { "or as" }, PlaceText(place, binding));
        }
        self.line("becomes", SecretText(&binding.secret));
    }

    fn pass(&mut self, pass: &Pass, policy: &Policy) {
        let (hosts, ports) = (list(&pass.hosts), list(&pass.ports));
        match &pass.carry {
            Carry::Splice => {
                self.rule(format_args!("Splice {}: may reach {hosts}", pass.name));
                self.line("on", format!("TCP port {ports}, byte for byte; nobody looks inside"));
            }
            Carry::Inspect { methods, paths } => {
                self.rule(format_args!("Inspect {}: may call {hosts}", pass.name));
                self.line("on", format!("TCP port {ports}; TLS ends here, no secret is put in"));
                self.requests(methods, paths);
            }
        }
        for (host, api) in won_by_apis(pass, policy) {
            self.line("except", format!("{host}, which belongs to API {}", api.name));
        }
        self.upstream(&pass.upstream);
    }

    fn requests(&mut self, methods: &[http::Method], paths: &[crate::policy::PathRule]) {
        let methods = if methods.is_empty() { "all but CONNECT".into() } else { list(methods) };
        self.line("methods", methods);
        self.line("paths", if paths.is_empty() { "all".into() } else { list(paths) });
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

/// A place as it looks in a request.
struct PlaceText<'a>(&'a Place, &'a Binding);

impl Display for PlaceText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let placeholder = &self.1.placeholder;
        match self.0 {
            Place::Header { name, scheme } => {
                let scheme = match scheme {
                    Scheme::Bearer => "Bearer ",
                    Scheme::Token => "token ",
                    Scheme::Raw => "",
                };
                write!(f, "{name}: {scheme}{placeholder}")
            }
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

/// Where a value is, in words.
struct SecretText<'a>(&'a SecretRef);

impl Display for SecretText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            SecretRef::VaultKv2 { mount, path, field } => {
                write!(f, "the field {field} of {path} in Vault's KV v2 engine {mount}")
            }
            SecretRef::File { name } => write!(f, "{name} in the file of secrets"),
        }
    }
}

fn urls(api: &Api) -> String {
    let port = if api.port == 443 { String::new() } else { format!(":{}", api.port) };
    list(api.hosts.iter().map(|host| format!("https://{host}{port}")))
}

fn audit(settings: &Settings) -> String {
    match &settings.audit {
        AuditTarget::Stdout => "each connection and request on its standard output".into(),
        AuditTarget::File(path) => format!("each connection and request in {}", path.display()),
    }
}

/// The names under a pass rule's patterns that an API takes, because an exact name wins.
fn won_by_apis<'p>(
    pass: &'p Pass,
    policy: &'p Policy,
) -> impl Iterator<Item = (&'p crate::policy::Host, &'p Api)> {
    let apis = policy.apis.iter().filter(|api| pass.ports.contains(&api.port));
    let hosts = apis.flat_map(|api| api.hosts.iter().map(move |host| (host, api.as_ref())));
    hosts.filter(|(host, _)| pass.hosts.iter().any(|pattern| pattern.matches(host)))
}

fn warnings(config: &Config) -> Vec<String> {
    let Config { settings, policy } = config;
    let groups = policy.groups.iter().flat_map(|group| group_warnings(group, settings, policy));
    let apis = policy.apis.iter().flat_map(|api| api_warnings(api));
    let passes = policy.passes.iter().flat_map(|pass| pass_warnings(pass));
    groups.chain(apis).chain(passes).chain(pki_warnings(settings)).collect()
}

fn group_warnings(group: &Group, settings: &Settings, policy: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    let name = &group.name;
    if !settings.ipv6 && group.prefixes.iter().any(|prefix| matches!(prefix, IpNet::V6(_))) {
        found.push(format!("group {name} has IPv6 prefixes, and the gateway drops all IPv6"));
    }
    let in_apis = policy.apis.iter().flat_map(|api| &api.bindings).map(|bound| &bound.groups);
    let mut uses = in_apis.chain(policy.passes.iter().map(|pass| &pass.groups));
    if !uses.any(|groups| groups.contains(name)) {
        found.push(format!("group {name} is in no rule: its agents reach nothing"));
    }
    found
}

fn pki_warnings(settings: &Settings) -> Option<String> {
    let pki = settings.vault.as_ref()?.pki.as_ref()?;
    pki.accept_without_ip_exclusion.then(|| {
        "issuing CAs may be free to sign for IP addresses (accept_without_ip_exclusion)".into()
    })
}

fn api_warnings(api: &Api) -> Vec<String> {
    let mut found = Vec::new();
    let mut add = |text: &str| found.push(format!("API {} {text}", api.name));
    if api.anonymous {
        add("forwards requests without any credential (anonymous)");
    }
    if api.response.cookies {
        add("lets Set-Cookie through: a session cookie works without the secret (keep_cookies)");
    }
    if api.response.ranges {
        add("lets ranges through: a secret cut in two is not masked (keep_ranges)");
    }
    for binding in api.bindings.iter().filter(|one| one.min_value_bytes < SecretValue::MIN_BYTES) {
        let (least, placeholder) = (binding.min_value_bytes, &binding.placeholder);
        add(&format!("takes values of {least} bytes for {placeholder}: masking gets weaker"));
    }
    for binding in &api.bindings {
        if let SecretRef::VaultKv2 { path, .. } = &binding.secret
            && path.starts_with("data/")
        {
            add(&format!("reads {}: \"data/\" belongs to no path in KV v2", binding.secret));
        }
    }
    for prefix in sensitive(&api.upstream) {
        add(&format!("may be at {prefix}: this machine's own or link-local services"));
    }
    found
}

fn pass_warnings(pass: &Pass) -> Vec<String> {
    let mut found = Vec::new();
    let mut add = |text: &str| found.push(format!("rule {} {text}", pass.name));
    for host in &pass.hosts {
        match host {
            HostPattern::Any => {
                add("reaches every host: agents can send anything anywhere (any_host)")
            }
            HostPattern::Suffix(suffix) if !suffix.as_str().contains('.') => {
                add(&format!("reaches every name under {suffix}, whoever owns it"));
            }
            _ => {}
        }
    }
    if pass.dialled == DialledRule::Any {
        add("takes its hosts at any address that an agent dials (dialled)");
    }
    for prefix in sensitive(&pass.upstream) {
        add(&format!("may be at {prefix}: this machine's own or link-local services"));
    }
    found
}

/// Listed prefixes that touch loopback or link-local, where metadata services are.
fn sensitive(upstream: &Upstream) -> impl Iterator<Item = &IpNet> {
    upstream.private_prefixes.iter().filter(|prefix| {
        let local = ["127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10"];
        local.iter().filter_map(|text| text.parse().ok()).any(|local| overlap(&local, prefix))
    })
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
