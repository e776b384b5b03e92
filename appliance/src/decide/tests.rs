//! Properties of the decision, against one policy.

use std::net::SocketAddr;

use policy_builder::{Config, api, binding, group, inspect, splice, tcp};

use super::*;
use crate::{
    config,
    identity::{AgentAddr, Dialled, FlowId},
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
