//! Properties of the decision, against one policy.

use std::net::SocketAddr;

use policy_builder::{Config, api, binding, group, inspect, splice, tcp};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{select, subsequence},
};

use super::*;
use crate::{
    config,
    identity::{AgentAddr, Dialled, FlowId},
    policy::{Binding, GroupName, HostPattern},
};

fn policy() -> Policy {
    let key = binding("red", "OPENAI_API_KEY", &["header authorization bearer"], "file:openai");
    let pypi = ["pypi.example", "*.cdn.example", "*.openai.example"];
    let forge = tcp("internal-git", &["red"], &["forge.example"], &[22]);
    let file = Config::of_rules()
        .gateway("ports", [22, 80, 443, 5432, 8443])
        .with(group("red", "a0", &["192.0.2.0/25"]))
        .with(group("blue", "b0", &["192.0.2.128/25"]))
        .with(api("openai", &["api.openai.example"]).with(key))
        .with(splice("pypi", &["red"], &pypi).set("ports", [443, 80]))
        .with(inspect("docs", &["red"], &["docs.cdn.example"]))
        .with(splice("browsed", &["red"], &["browsed.example"]).set("ech", "allow"))
        .with(splice("everything-openai", &["blue"], &["*.openai.example"]))
        .with(tcp("git", &["red"], &["git.example", "api.openai.example"], &[22]))
        .with(forge.set("private_prefixes", ["10.1.0.0/16"]))
        .with(tcp("database", &["blue"], &["db.example"], &[5432]));
    config::testing::policy(&file)
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
        reached: Arc::default(),
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
    Ok(format!("{} {} {}", permit.route.as_str(), permit.route.rule(), permit.host))
}

fn tls(group: &str, sni: &str) -> Result<String, Reason> {
    outcome(group, "198.51.100.7:443", &hello(Some(sni), &["h2"], false))
}

#[test]
fn each_group_gets_what_its_rules_say_and_nothing_else() {
    assert_eq!(tls("red", "api.openai.example").unwrap(), "intercept openai api.openai.example");
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
fn a_hello_with_a_missing_or_hidden_name_is_refused() {
    let to = "198.51.100.7:443";
    assert_eq!(outcome("red", to, &hello(None, &[], false)), Err(Reason::SniMissing));
    assert_eq!(outcome("red", to, &hello(Some("pypi.example"), &[], true)), Err(Reason::EchDenied));
    assert!(outcome("red", to, &hello(Some("api.openai.example"), &[], true)).is_ok());
    assert!(outcome("red", to, &hello(Some("browsed.example"), &[], true)).is_ok(), "it says so");
}

#[test]
fn protocols_we_cannot_carry_are_refused_where_tls_ends() {
    let to = "198.51.100.7:443";
    let offer = |alpn: &[&str]| outcome("red", to, &hello(Some("api.openai.example"), alpn, false));
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
fn a_nameless_connection_needs_its_groups_rule_for_its_port() {
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
    let permit =
        |dialled, peeked: &Peeked| decide(&policy, &flow(&policy, "red", dialled), peeked).unwrap();
    let names = Peeked::Unread(vec![Host::parse("git.example").unwrap()]);
    let given = permit("198.51.100.7:22", &names).given();
    assert_eq!(given, Some(IpAddr::from([198, 51, 100, 7])));
    for name in ["pypi.example", "api.openai.example", "docs.cdn.example"] {
        let peeked = hello(Some(name), &[], false);
        assert_eq!(permit("198.51.100.7:443", &peeked).given(), None, "{name}");
    }
}

#[test]
fn an_address_is_private_unless_every_names_rule_lists_it() {
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

/// The same decisions, made by reading the rules one after the other.
mod by_scan {
    use super::*;

    pub(super) fn route_of(
        policy: &Policy,
        group: &Group,
        host: &Host,
        port: u16,
    ) -> Option<Route> {
        let homes: Vec<_> = policy.apis.iter().filter(|api| api.hosts.contains(host)).collect();
        if let Some(api) = homes.iter().find(|api| api.port == port) {
            return api.serves(&group.name).then(|| Route::Intercept(Arc::clone(api)));
        }
        let covers = |pattern: &HostPattern| match pattern {
            HostPattern::Exact(_) => pattern.matches(host),
            _ => homes.is_empty() && pattern.matches(host),
        };
        let listed = |pass: &&Arc<Pass>| {
            pass.ports.contains(&port)
                && pass.groups.contains(&group.name)
                && pass.hosts.iter().any(covers)
        };
        let listed: Vec<_> = policy.passes.iter().filter(listed).collect();
        let (first, others) = listed.split_first()?;
        let inspecting = others.iter().chain([first]).find(|pass| !pass.carry.is_splice());
        let pass = Arc::clone(inspecting.unwrap_or(first));
        Some(match pass.carry {
            Carry::Splice { .. } => Route::Splice(pass),
            Carry::Inspect { .. } => Route::Inspect(pass),
        })
    }

    pub(super) fn upstreams<'p>(
        policy: &'p Policy,
        group: &GroupName,
        host: &Host,
    ) -> Vec<&'p Upstream> {
        let apis = policy.apis.iter();
        let apis = apis.filter(|api| api.serves(group) && api.hosts.contains(host));
        let passes = policy.passes.iter().filter(|pass| {
            pass.groups.contains(group) && pass.hosts.iter().any(|it| it.matches(host))
        });
        let passes = passes.map(|pass| &pass.upstream);
        apis.map(|api| &api.upstream).chain(passes).collect()
    }
}

const PORTS: [u16; 2] = [443, 80];

/// Returns one of so few names that rules often meet.
fn some_host() -> impl Strategy<Value = Host> {
    vec(select(vec!["a", "b", "ab"]), 1..4)
        .prop_map(|labels| Host::parse(&labels.join(".")).unwrap())
}

fn some_groups() -> impl Strategy<Value = Vec<GroupName>> {
    subsequence(policy().groups, 1..=2)
        .prop_map(|groups| groups.iter().map(|group| group.name.clone()).collect())
}

fn some_api() -> impl Strategy<Value = Api> {
    (some_groups(), vec(some_host(), 1..3), select(&PORTS[..])).prop_map(|(groups, hosts, port)| {
        let api = Api::clone(&policy().apis[0]);
        let binding = Binding { groups, ..Binding::clone(&api.bindings[0]) };
        Api { hosts, port, bindings: vec![Arc::new(binding)], ..api }
    })
}

fn some_pass() -> impl Strategy<Value = Pass> {
    let pattern = prop_oneof![
        4 => some_host().prop_map(HostPattern::Exact),
        4 => some_host().prop_map(HostPattern::Suffix),
        1 => Just(HostPattern::Any),
    ];
    let passes: Vec<Pass> = policy().passes.iter().map(|pass| Pass::clone(pass)).collect();
    let ports = subsequence(PORTS.to_vec(), 1..=2);
    (select(passes), some_groups(), vec(pattern, 1..4), ports)
        .prop_map(|(pass, groups, hosts, ports)| Pass { groups, hosts, ports, ..pass })
}

/// Returns a policy whose rules may contradict each other, which the configuration refuses.
fn some_policy() -> impl Strategy<Value = Policy> {
    (vec(some_api(), 0..4), vec(some_pass(), 0..12)).prop_map(|(apis, passes)| Policy {
        apis: apis.into_iter().map(Arc::new).collect(),
        passes: passes.into_iter().map(Arc::new).collect(),
        ..policy()
    })
}

/// Returns the identity of the rule, and not only its content.
fn place_of(route: &Route) -> *const () {
    match route {
        Route::Splice(pass) | Route::Inspect(pass) => Arc::as_ptr(pass).cast(),
        Route::Intercept(api) => Arc::as_ptr(api).cast(),
        Route::Tcp(tcp) => Arc::as_ptr(tcp).cast(),
    }
}

proptest! {
    #[test]
    fn a_decision_is_what_a_linear_scan_would_decide(
        policy in some_policy(),
        host in some_host(),
        port in select(&PORTS[..]),
    ) {
        for group in &policy.groups {
            let found = route_of(&policy, group, &host, port);
            let meant = by_scan::route_of(&policy, group, &host, port);
            prop_assert_eq!(found.as_ref().map(place_of), meant.as_ref().map(place_of));
            prop_assert_eq!(found, meant);
            let found: Vec<_> = policy.upstreams(group, &host).map(std::ptr::from_ref).collect();
            let meant = by_scan::upstreams(&policy, &group.name, &host);
            let meant: Vec<_> = meant.into_iter().map(std::ptr::from_ref).collect();
            prop_assert_eq!(found, meant);
        }
    }
}
