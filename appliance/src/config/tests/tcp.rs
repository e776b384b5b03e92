//! `[[tcp]]` by itself and beside the other rules.

use super::{GOOD, accepts, changed, mistakes, refuses};
use crate::config::explain;

/// Returns the good file with this `[[tcp]]` at its end, as a change to it.
fn with(rule: &str) -> String {
    format!("[\"pypi.org\", \"*.pythonhosted.org\"]\n[[tcp]]\n{rule}")
}

const HOSTS: &str = "[\"pypi.org\", \"*.pythonhosted.org\"]";
const GIT: &str = "name = \"git\"\ngroups = [\"research\"]\nhosts = [\"github.com\"]\nports = [22]";

#[test]
fn a_tcp_rule_means_its_words_and_captures_its_ports() {
    let config = accepts(HOSTS, &with(&format!("{GIT}\nprivate_prefixes = [\"10.1.0.0/16\"]")));
    let tcp = &config.policy.tcp[0];
    assert_eq!((tcp.name.as_str(), tcp.ports.as_slice()), ("git", [22].as_slice()));
    assert_eq!(tcp.hosts[0].as_str(), "github.com");
    assert_eq!(tcp.upstream.private_prefixes, ["10.1.0.0/16".parse().unwrap()]);
    assert_eq!(config.policy.ports, [22, 80, 443]);
    assert!(config.policy.names_no_host(22) && !config.policy.names_no_host(443));
    let text = explain(&config);
    for line in [
        "captures    TCP ports 22, 80, 443",
        "TCP git: may reach github.com",
        "TCP port 22, byte for byte; nobody looks inside",
        "addresses in 10.1.0.0/16",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_tcp_rule_lists_exact_hosts_and_its_ports() {
    let hosts = |hosts: &str| with(&GIT.replace("\"github.com\"", hosts));
    for pattern in ["*.github.com", "*"] {
        let words = ["is a pattern; [[tcp]] takes exact host names"];
        refuses(HOSTS, &hosts(&format!("\"{pattern}\"")), "hosts", &words);
    }
    refuses(HOSTS, &hosts("\"192.0.2.9\""), "192.0.2.9", &["an IP address is not a host name"]);
    let without_ports = with(&GIT.replace("ports = [22]", ""));
    refuses(HOSTS, &without_ports, "[[tcp]]", &["lacks \"ports\"", "ports = [22]"]);
    refuses(HOSTS, &with(&GIT.replace("22", "53")), "53", &["port of DNS"]);
    refuses(HOSTS, &with(&GIT.replace("[22]", "[]")), "ports", &["empty"]);
    refuses(HOSTS, &with(&GIT.replace("research", "reserch")), "reserch", &["did you mean"]);
    refuses(HOSTS, &with(&GIT.replace("\"git\"", "\"pypi\"")), "pypi", &["already in line 22"]);
    for key in ["dialled = \"any\"", "any_host = \"x\"", "upstream_ca = \"x\""] {
        let found = mistakes(&changed(&[(HOSTS, &with(&format!("{GIT}\n{key}")))]));
        assert!(found.len() == 1 && found[0].text.contains("unknown key"), "{key}: {found:?}");
    }
}

#[test]
fn a_port_without_names_is_no_port_with_names() {
    // The lines of the API's table and of the pass's in the good file.
    for (ports, line) in [("[22, 443]", "line 12"), ("[443]", "line 12")] {
        refuses(HOSTS, &with(&GIT.replace("[22]", ports)), ports, &["443", line, "one of the two"]);
    }
    let on_2222 = format!("{HOSTS}\nports = [2222]\n[[tcp]]\n{}", GIT.replace("22", "2222"));
    refuses(HOSTS, &on_2222, "ports = [2222]", &["2222", "line 25"]);
    let inspect = "[[inspect]]\nname = \"i\"\ngroups = [\"research\"]\nhosts = [\"a.example\"]";
    let inspected = format!("{}\n{inspect}\nports = [22]", with(GIT));
    refuses(HOSTS, &inspected, "ports = [22]", &["22 is also the port", "line 34"]);
}

#[test]
fn a_tcp_port_is_captured_or_an_error() {
    let listed = GOOD.replace("[vault]", "ports = [80, 443]\n[vault]");
    let text = listed.replacen(HOSTS, &with(GIT), 1);
    let found = mistakes(&text);
    assert!(found.len() == 1 && found[0].text.contains("port 22 is not in the ports"), "{found:?}");
    let own = with(&GIT.replace("22", "15001"));
    refuses(HOSTS, &own, "15001", &["proxy_port"]);
}

#[test]
fn two_tcp_rules_share_no_host_group_and_port() {
    let second = |hosts: &str, port: u16| {
        let rule = GIT.replace("\"git\"", "\"more\"").replace("22", &port.to_string());
        format!("{}\n[[tcp]]\n{}", with(GIT), rule.replace("\"github.com\"", hosts))
    };
    refuses(HOSTS, &second("\"github.com\"", 22), "github.com", &["already in line 28"]);
    accepts(HOSTS, &second("\"github.com\"", 5432));
    accepts(HOSTS, &second("\"gitlab.com\"", 22));
    let twice = with(&GIT.replace("\"github.com\"", "\"github.com\", \"GitHub.com\""));
    refuses(HOSTS, &twice, "GitHub.com", &["already in line 28"]);
}

#[test]
fn an_apis_host_may_have_tcp_on_another_port() {
    accepts(HOSTS, &with(&GIT.replace("github.com", "api.openai.com")));
}
