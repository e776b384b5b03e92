//! Warnings: settings that are allowed and still deserve a second look.

use http::Method;
use ipnet::IpNet;

use crate::{
    config::{Config, Settings, VaultLogin, rules::overlap, vault::is_guessable},
    policy::{
        Anonymous, Api, Carry, Constraints, DialledRule, Ech, Group, HostPattern, MIN_VALUE_BYTES,
        Pass, Place, Policy, RuleName, SecretRef, USUAL_METHODS, Upstream, VaultLocation,
        is_s3_control, special,
    },
};

/// Returns the settings that deserve a second look, each in one line.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let Config { settings, policy } = config;
    let groups = policy.groups.iter().flat_map(|group| group_warnings(group, settings, policy));
    let apis = policy.apis.iter().flat_map(|api| api_warnings(api));
    let passes = policy.passes.iter().flat_map(|pass| pass_warnings(pass));
    let tcp = policy.tcp.iter().flat_map(|tcp| private_warnings("rule", &tcp.name, &tcp.upstream));
    let (pki, login) = (pki_warnings(settings), login_warnings(settings));
    groups.chain(apis).chain(passes).chain(tcp).chain(pki).chain(login).collect()
}

fn group_warnings(group: &Group, settings: &Settings, policy: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    let name = &group.name;
    if !settings.ipv6 && group.prefixes.iter().any(|prefix| matches!(prefix, IpNet::V6(_))) {
        found.push(format!("group {name} has IPv6 prefixes, and the gateway drops all IPv6"));
    }
    let in_apis = policy.apis.iter().flat_map(|api| &api.bindings).map(|bound| &bound.groups);
    let in_mints = policy.apis.iter().flat_map(|api| &api.mints).map(|mint| &mint.groups);
    let in_passes = policy.passes.iter().map(|pass| &pass.groups);
    let in_tcp = policy.tcp.iter().map(|tcp| &tcp.groups);
    let mut uses = in_apis.chain(in_mints).chain(in_passes).chain(in_tcp);
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

fn login_warnings(settings: &Settings) -> Option<String> {
    match &settings.vault.as_ref()?.login {
        VaultLogin::AppRole { role_id, .. } if is_guessable(role_id) => Some(format!(
            "role_id {role_id} can be guessed, and `cloakroom vault plan` refuses it: write what \
             `uuidgen` prints"
        )),
        _ => None,
    }
}

fn api_warnings(api: &Api) -> Vec<String> {
    let mut found = Vec::new();
    let mut add = |text: &str| found.push(format!("API {} {text}", api.name));
    if api.anonymous == Anonymous::Always {
        add("forwards requests without any credential (anonymous)");
    }
    if api.response.cookies {
        add("lets cookies through: a session cookie works without the secret (keep_cookies)");
    }
    for plain in &api.plain {
        add(&format!("passes {plain} on, whatever an agent puts there (plain)"));
    }
    unusual(&api.methods).for_each(|text| add(&text));
    if api.response.ranges {
        add("lets ranges through: a secret cut in two is not masked (keep_ranges)");
    }
    if api.constraints == Constraints::Noted {
        add(NOTED);
    }
    let services = api.aws.iter().flat_map(|scope| &scope.services);
    for service in services.filter(|service| service.hands_out_credentials()) {
        add(&format!(
            "signs for {service}, whose answers hold credentials that agents get as they are (aws)"
        ));
    }
    for host in api.hosts.iter().filter(|host| api.aws.is_some() && is_s3_control(host)) {
        add(&format!("signs for {host}, whose answers may hold credentials of sessions (aws)"));
    }
    let bound = api.bindings.iter().map(|it| (it.min_value_bytes, &it.placeholder));
    let minted = api.mints.iter().map(|it| (it.min_value_bytes, &it.label));
    for (least, value) in bound.chain(minted).filter(|(least, _)| *least < MIN_VALUE_BYTES) {
        add(&format!(
            "takes values of {least} bytes for {value}: masking gets weaker, and who guesses all of one \
             sees it masked (min_value_bytes)"
        ));
    }
    for binding in &api.bindings {
        if let SecretRef::Vault { location: VaultLocation::Kv2 { path, .. }, .. } = &binding.secret
            && path.starts_with("data/")
        {
            let meant = binding.secret.to_string().replacen("/data/", "/", 1);
            add(&format!(
                "reads {}: unless the engine has a folder \"data\", leave \"data/\" out and write \
                 \"{meant}\"",
                binding.secret
            ));
        }
        // All places of a binding share the halves.
        let lone =
            |place: &Place| matches!(place, Place::BasicPassword { user } if user.is_empty());
        if binding.places.iter().any(lone) {
            add(&format!(
                "takes {} as a password of Basic with no user beside it, and most clients send one \
                 (basic_user)",
                binding.placeholder
            ));
        }
    }
    found.extend(private_warnings("API", &api.name, &api.upstream));
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
    match &pass.carry {
        Carry::Splice { ech: Ech::Allow } => add("may be used for names that nobody sees (ech)"),
        Carry::Splice { .. } => {}
        Carry::Inspect { constraints, methods, .. } => {
            if *constraints == Constraints::Noted {
                add(NOTED);
            }
            unusual(methods).for_each(|text| add(&text));
        }
    }
    found.extend(private_warnings("rule", &pass.name, &pass.upstream));
    found
}

/// Returns methods that are unusual, because a misspelt method is one of them.
fn unusual(methods: &[Method]) -> impl Iterator<Item = String> {
    let others = methods.iter().filter(|method| !USUAL_METHODS.contains(method));
    others.map(|method| format!("allows {method}, which is none of the usual methods (methods)"))
}

const NOTED: &str =
    "has a CA that clients which know no constraints take for every name (constraints)";

fn private_warnings(what: &str, name: &RuleName, upstream: &Upstream) -> Vec<String> {
    let each = upstream.private_prefixes.iter().flat_map(|prefix| {
        let text = move |said: String| format!("{what} {name} may be at {prefix}{said}");
        [local(prefix), service(prefix), services_in(prefix)].into_iter().flatten().map(text)
    });
    each.collect()
}

/// Returns the warning for a listed prefix that touches loopback or link-local.
fn local(prefix: &IpNet) -> Option<String> {
    let local = ["127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10"];
    let mut local = local.iter().filter_map(|text| text.parse().ok());
    let touches = local.any(|local| overlap(&local, prefix));
    touches.then(|| ": this machine's own or link-local services".into())
}

/// Returns the warning for a listed prefix that means a service of a cloud.
fn service(prefix: &IpNet) -> Option<String> {
    let service = special::cloud_services().find(|service| service.prefix.contains(prefix));
    service.map(|service| format!(": {}", service.purpose))
}

/// Returns the warning for a listed prefix that holds services of clouds but does not open them.
fn services_in(prefix: &IpNet) -> Option<String> {
    let inside = special::cloud_services()
        .filter(|service| prefix.contains(&service.prefix) && *prefix != service.prefix);
    let inside: Vec<_> =
        inside.map(|service| format!("{} ({})", service.prefix, service.purpose)).collect();
    (!inside.is_empty())
        .then(|| format!(", and not at {} there, unless it is listed", inside.join(", ")))
}
