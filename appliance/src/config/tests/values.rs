//! Single values: what is taken, what is refused, and what is said about it.

use std::{path::Path, time::Duration};

use super::{accepts, changed, mistakes, refuses};
use crate::{
    config::{explain, parse},
    policy::HostPattern,
};

#[test]
fn vault_is_reached_safely() {
    let address = "\"https://vault.example:8200\"";
    refuses(address, "\"http://vault.example:8200\"", "http:", &["goes no further"]);
    refuses(address, "\"vault.example:8200\"", "vault.example", &["https://HOST:PORT"]);
    let plain = "\"http://127.0.0.1:8200\"\n#";
    assert!(
        accepts("\"https://vault.example:8200\"\nca_file", plain)
            .settings
            .vault
            .unwrap()
            .ca_file
            .is_none()
    );
}

#[test]
fn a_port_is_captured_or_it_is_an_error() {
    let resolvers = "resolvers = [\"192.0.2.53\"]";
    let gateway = |line: &str| format!("{resolvers}\n{line}");
    refuses(resolvers, &gateway("ports = [443, 0]"), "ports", &["0 is not a whole number"]);
    refuses(resolvers, &gateway("ports = [443, 53]"), "ports", &["DNS"]);
    refuses(resolvers, &gateway("ports = [443, 15001]"), "ports", &["proxy_port"]);
    refuses(resolvers, &gateway("ports = [443, 70000]"), "ports", &["70000"]);
    refuses(resolvers, &gateway("proxy_port = 443"), "[[", &["proxy_port"]);
    refuses(resolvers, &gateway("ports = [80]"), "[[", &["port 443 is not in"]);
    refuses("paths = ", "port = 53\npaths = ", "53", &["DNS"]);
    refuses(resolvers, &gateway("route_table = 254"), "254", &["kernel"]);
    refuses(resolvers, &gateway("nflog_group = 65536"), "65536", &["65535"]);
    refuses(resolvers, &gateway("assert_every = \"2m\""), "2m", &["from 1s to 1m"]);
    assert_eq!(accepts("paths = ", "port = 8443\npaths = ").policy.ports, [80, 443, 8443]);
    assert_eq!(accepts(resolvers, &gateway("ports = [8443, 443]")).policy.ports, [443, 8443]);
}

#[test]
fn a_limit_has_a_unit_and_a_sane_range() {
    let limits = |line: &str| format!("[limits]\n{line}\n[vault]");
    for (line, why) in [
        ("peek_time = \"0s\"", "from 1s to 1m"),
        ("peek_time = 10", "write \"10s\""),
        ("peek_time = \"10\"", "write \"10s\""),
        ("idle_time = \"25h\"", "from 10s to 24h"),
        ("idle_time = \"99999999999999999999h\"", "is not a time"),
        ("head_bytes = \"64KB\"", "\"64KiB\""),
        ("head_bytes = 1", "is not a size"),
        ("agent_new_connections = 0", "from 1 to 1000000"),
        ("agent_requests = 16385", "from 1 to 16384"),
        ("agent_buffers = \"1023KiB\"", "is not a size"),
        ("agent_peeks = \"4GiB\"", "is not a size"),
        ("agent_leaves = 10001", "from 1 to 10000"),
        ("h2_streams = 0", "from 1 to 1000"),
        ("h2_streams = -1", "-1"),
        ("h2_streams = 1.5", "1.5"),
    ] {
        refuses("[vault]", &limits(line), line, &[why]);
    }
    refuses("[vault]", &limits("connections = 100\nagent_connections = 101"), "101", &["100"]);
    let set = accepts(
        "[vault]",
        &limits("peek_time = \"2s\"\npeek_bytes = \"16KiB\"\ndrain_time = \"0s\""),
    );
    assert_eq!(set.policy.limits.peek_time, Duration::from_secs(2));
    assert_eq!(set.policy.limits.peek_bytes, 16_384);
    assert_eq!(set.policy.limits.drain_time, Duration::ZERO);
}

#[test]
fn every_host_there_is_needs_a_word() {
    let hosts = "hosts = [\"pypi.org\", \"*.pythonhosted.org\"]";
    refuses(hosts, "hosts = [\"*\"]", "\"*\"", &["every host there is", "any_host = "]);
    refuses(hosts, "hosts = [\"*\"]\nany_host = \"yes\"", "any_host", &["the word is"]);
    refuses(hosts, "hosts = [\"*\"]\nany_hosts = \"yes\"", "any_hosts", &["did you mean"]);
    let word = "any_host = \"i-know-that-agents-can-send-anything-anywhere\"";
    refuses(hosts, &format!("{hosts}\n{word}"), "any_host", &["only where"]);
    let any = accepts(hosts, &format!("hosts = [\"*\"]\n{word}"));
    assert_eq!(any.policy.passes[0].hosts, [HostPattern::Any]);
    assert!(explain(&any).contains("anything anywhere"));
}

#[test]
fn a_host_is_a_name_and_nothing_more() {
    let host = "\"api.openai.com\"";
    for (text, why) in [
        ("https://api.openai.com", "write the host name alone"),
        ("api.openai.com:443", "the port has its own key"),
        ("192.0.2.9", "an IP address"),
        ("*.openai.com", "an API takes exact host names"),
    ] {
        refuses(host, &format!("\"{text}\""), text, &[why]);
    }
    for text in ["*pypi.org", "a.*.org", "**.org", "*.", "*.*"] {
        refuses("\"pypi.org\"", &format!("\"{text}\""), text, &[text]);
    }
    for (text, why) in
        [("get", "\\\"GET\\\""), ("CONNECT", "tunnel"), ("TRACE", "never"), ("G T", "not a method")]
    {
        refuses(
            "paths = ",
            &format!("methods = [\"{text}\"]\npaths = "),
            text,
            &[&why.replace('\\', "")],
        );
    }
    refuses("\"/v1/*\"", "\"/v1/../x\"", "/v1/../x", &["dot segments"]);
}

#[test]
fn an_upstream_ca_holds_certificates() {
    let text = changed(&[("paths = ", "upstream_ca = \"internal.pem\"\npaths = ")]);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["ca.example".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap().pem();
    let with = |pem: String| {
        parse(&text, None, "gateway.toml", &move |path| {
            assert_eq!(path, Path::new("internal.pem"));
            Ok(pem.clone())
        })
    };
    let config = with(certificate.clone()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.policy.apis[0].upstream.ca_pem.as_deref(), Some(certificate.as_str()));
    for (pem, why) in [
        (String::new(), "no certificate"),
        ("not PEM".into(), "no certificate"),
        (format!("{certificate}{}", key.serialize_pem()), "private key"),
        (certificate.replace("MI", "AA"), "cannot be read"),
    ] {
        let errors = with(pem).unwrap_err();
        assert_eq!((errors.mistakes().len(), errors.mistakes()[0].line), (1, 15), "{errors}");
        assert!(errors.to_string().contains(why), "{errors}");
    }
    let unreadable = mistakes(&text);
    assert!(unreadable[0].text.contains("no /etc/cloakroom/internal.pem"), "{unreadable:?}");
}
