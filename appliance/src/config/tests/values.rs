//! Single values: those that are accepted, those that are refused, and the messages.

use std::{path::Path, time::Duration};

use super::{GOOD, REFERENCE, accepts, changed, mistakes, no_files, parse_text, refuses};
use crate::{
    config::{AuditTarget, VaultLogin, explain, parse},
    policy::{Constraints, HostPattern, Site},
};

#[test]
fn vault_is_reached_safely() {
    let address = "\"https://vault.example:8200\"";
    refuses(address, "\"http://vault.example:8200\"", "http:", &["goes no further"]);
    refuses(address, "\"vault.example:8200\"", "vault.example", &["https://HOST:PORT"]);
    refuses(address, "\"http://127.0.0.1:8200\"", "http:", &["plain_http"]);
    let plain = "\"http://127.0.0.1:8200\"\nplain_http = true\n#";
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
fn the_ca_of_vault_is_looked_into_before_anything_starts() {
    let key = "ca_file = \"vault-ca.pem\"";
    refuses(key, "ca_file = \"other.pem\"", "ca_file", &["/etc/cloakroom/other.pem"]);
    let errors = parse(GOOD, None, "gateway.toml", &|_| Ok("no PEM".into())).unwrap_err();
    assert!(errors.to_string().contains("holds no certificate"), "{errors}");
    assert_eq!((errors.mistakes().len(), errors.mistakes()[0].line), (1, 5), "{errors}");
}

#[test]
fn a_value_is_read_twice_within_its_lifetime() {
    let ca = "ca_file = ";
    let times = |keys: &str| format!("{keys}\n{ca}");
    for good in [
        "refresh = \"1s\"\nmax_stale = \"2s\"",
        "refresh = \"150s\"",
        "max_stale = \"2m\"",
        "refresh = \"1h\"\nmax_stale = \"2h\"",
    ] {
        accepts(ca, &times(good));
    }
    for (bad, at, words) in [
        ("max_stale = \"0s\"", "max_stale", &["from 2s to 24h"][..]),
        ("max_stale = \"1999ms\"", "max_stale", &["from 2s"]),
        ("refresh = \"1h\"", "refresh", &["refresh = \"150s\" at most", "max_stale = \"2h\""]),
        ("max_stale = \"10s\"", "max_stale", &["refresh = \"5s\" at", "max_stale = \"2m\""]),
        ("refresh = \"6s\"\nmax_stale = \"11s\"", "refresh", &["refresh = \"5500ms\" at most"]),
    ] {
        refuses(ca, &times(bad), at, words);
    }
    // Where one of the two is wrong, the other is not compared with a default.
    refuses(ca, &times("refresh = \"0s\"\nmax_stale = \"5s\""), "refresh", &["from 1s"]);
}

#[test]
fn a_role_id_easily_guessed_deserves_a_second_look() {
    let login = |id: &str| explain(&accepts("\"gateway\"", &format!("\"{id}\"")));
    assert!(login("gateway").contains("! role_id gateway can be guessed"));
    assert!(!login("7b1c2f60-93d4-4e0a-b5c8-6a1f0e2d3c49").contains("can be guessed"));
}

#[test]
fn vault_signs_the_issuing_cas_or_a_folder_holds_them() {
    let pki = |keys: &str| format!("[vault.pki]\n{keys}\n[[group]]");
    let config = accepts("[[group]]", &pki("root_file = \"root.pem\""));
    let signed = config.settings.vault.clone().unwrap().pki.unwrap();
    assert_eq!((&*signed.mount, signed.ttl), ("pki", Duration::from_secs(30 * 24 * 3_600)));
    assert_eq!(signed.root_file, Path::new("/etc/cloakroom/root.pem"));
    assert!(!signed.accept_without_ip_exclusion);
    assert!(explain(&config).contains("signed by Vault at pki/"));
    let open = pki("root_file = \"root.pem\"\naccept_without_ip_exclusion = true");
    assert!(explain(&accepts("[[group]]", &open)).contains("! issuing CAs may be free"));
    assert!(accepts("[[group]]", "[[group]]").settings.vault.unwrap().pki.is_none());

    refuses("[[group]]", &pki(""), "[vault.pki]", &["lacks \"root_file\""]);
    for (line, why) in [
        ("mount = \"/pki\"", "without slashes"),
        ("ttl = \"9s\"", "from 10s to"),
        ("ttl = \"10500ms\"", "whole seconds"),
        ("accept_without_ip_exclusion = \"yes\"", "true or false"),
        ("key_file = \"x\"", "key_file"),
    ] {
        refuses("[[group]]", &pki(&format!("root_file = \"r.pem\"\n{line}")), line, &[why]);
    }
    // The plan for Vault is made before there is a root; an existing one is checked.
    let text = changed(&[("[[group]]", &pki("root_file = \"root.pem\""))]);
    let with = |pem: &'static str| {
        parse(&text, None, "gateway.toml", &move |path| match path.ends_with("root.pem") {
            true => Ok(pem.to_owned()),
            false => no_files(path),
        })
    };
    let errors = with("not PEM").unwrap_err();
    assert!(errors.to_string().contains("root_file: root.pem: holds no certificate"), "{errors}");

    let both = changed(&[
        ("[[group]]", &pki("root_file = \"root.pem\"")),
        ("resolvers =", "ca_dir = \"issuing\"\nresolvers ="),
    ]);
    let found = mistakes(&both);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].text.contains("remove one of the two"), "{found:?}");
}

#[test]
fn the_gateway_has_exactly_one_login() {
    let approle = "approle.role_id = \"gateway\"\napprole.secret_id_file = \"secret-id\"\n";
    let words = ["[vault.approle]", "[vault.cert]", "[vault.jwt]"];
    refuses(approle, "", "[vault]", &words);
    refuses(approle, "aprole.role_id = \"gateway\"\n", "aprole", &["approle"]);
    let cert = "cert = { role = \"a\", certificate_file = \"c\", key_file = \"k\" }\n";
    let jwt = "jwt = { mount = \"kubernetes\", role = \"a\", token_file = \"t\" }\n";
    for login in [cert, jwt] {
        refuses(approle, &format!("{approle}{login}"), "[vault]", &["one identity"]);
    }
    let login = |text: &str| accepts(approle, text).settings.vault.unwrap().login;
    let file = |name: &str| Path::new("/etc/cloakroom").join(name);
    let (certificate_file, key_file, token_file) = (file("c"), file("k"), file("t"));
    let (mount, role) = ("cert".into(), "a".into());
    assert_eq!(login(cert), VaultLogin::Cert { mount, role, certificate_file, key_file });
    let (mount, role) = ("kubernetes".into(), "a".into());
    assert_eq!(login(jwt), VaultLogin::Jwt { mount, role, token_file });
    refuses("role_id", "mount = \"a/../b\"\napprole.role_id", "mount", &["slashes"]);
}

#[test]
fn a_group_may_be_behind_a_narrower_hop() {
    let mtu = |text: &str| accepts("interface = ", text).policy.groups[0].mtu;
    assert_eq!(mtu("interface = "), None);
    assert_eq!(mtu("mtu = 1300\ninterface = "), Some(1300));
    for bad in ["1279", "9001", "\"1300\""] {
        refuses(
            "interface = ",
            &format!("mtu = {bad}\ninterface = "),
            "mtu",
            &["from 1280 to 9000"],
        );
    }
}

#[test]
fn a_group_has_a_token_role_of_its_own() {
    let role = |text: &str| accepts("interface = ", text).policy.groups[0].vault_role.to_string();
    assert_eq!(role("interface = "), "cloakroom-research");
    assert_eq!(role("vault_role = \"team-a\"\ninterface = "), "team-a");
    for bad in ["", "a/b", "..", "a b", "a?b", "+"] {
        let text = format!("vault_role = \"{bad}\"\ninterface = ");
        refuses("interface = ", &text, "vault_role", &["one segment"]);
    }
}

#[test]
fn every_node_of_the_cluster_is_reached_as_the_first() {
    let ca = "ca_file = ";
    let peers = |peers: &str| format!("peers = [{peers}]\nca_file = ");
    let vault = accepts(ca, &peers("\"https://vault-2.example:8200\"")).settings.vault.unwrap();
    assert_eq!(*vault.peers[0], *"https://vault-2.example:8200");
    refuses(ca, &peers("\"http://192.0.2.9:8200\""), "peers", &["goes no further"]);
    let plain = peers("\"http://127.0.0.1:8200\"");
    refuses(ca, &format!("plain_http = true\n{plain}"), "plain_http", &["the address is https"]);
    refuses(ca, "plain_http = true\nca_file = ", "plain_http", &["leave the key out"]);
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
fn what_is_special_to_a_site_is_read_and_explained() {
    let resolvers = "resolvers = [\"192.0.2.53\"]";
    let gateway = |line: &str| format!("{resolvers}\n{line}");
    let config = accepts(resolvers, resolvers);
    assert_eq!(config.policy.site, Site::default());
    assert!(explain(&config).contains("as the resolvers show"));
    let all = "never_dial = [\"198.51.100.64/26\", \"::ffff:192.0.2.250\"]\n\
               public_addresses = [\"203.0.113.7\"]\nnat64_prefixes = [\"2001:db8:64::/96\"]";
    let config = accepts(resolvers, &gateway(all));
    let site = &config.policy.site;
    let prefixes: Vec<_> = site.never_dial.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["198.51.100.64/26", "192.0.2.250/32"]);
    assert!(site.closes("203.0.113.7".parse().unwrap()));
    for said in ["198.51.100.64/26, 192.0.2.250/32", "203.0.113.7", "2001:db8:64::/96"] {
        assert!(explain(&config).contains(said), "{said}");
    }
    let none = accepts(resolvers, &gateway("nat64_prefixes = []")).policy.site.nat64_prefixes;
    assert_eq!(none, Some(Vec::new()), "there is none, which is not the same as nothing said");
    for (line, why) in [
        ("never_dial = [\"0.0.0.0/0\"]", "every address there is"),
        ("never_dial = [\"198.51.100.65/26\"]", "198.51.100.64/26"),
        ("never_dial = [\"example.com\"]", "not a prefix"),
        ("public_addresses = [\"203.0.113.0/24\"]", "not the address of a machine"),
        ("public_addresses = [\"0.0.0.0\"]", "not the address of a machine"),
        ("nat64_prefixes = [\"192.0.2.0/24\"]", "is IPv4"),
        ("nat64_prefixes = [\"2001:db8:64::/80\"]", "32, 40, 48, 56, 64 or 96"),
        ("nat64_prefixes = [\"2001:db8:0:0:100::/96\"]", "bits 64 to 71"),
    ] {
        let (key, _) = line.split_once(' ').unwrap();
        refuses(resolvers, &gateway(line), key, &[why]);
    }
}

#[test]
fn a_private_prefix_that_holds_cloud_services_is_warned_about() {
    let said = |prefix: &str| {
        explain(&accepts("paths = ", &format!("private_prefixes = [\"{prefix}\"]\npaths = ")))
    };
    let wide = said("169.254.0.0/16");
    let words = ["link-local services", "and not at", "169.254.169.254/32 (metadata of AWS"];
    assert!(words.iter().all(|word| wide.contains(word)), "{wide}");
    let own = said("168.63.129.16/32");
    assert!(own.contains("may be at 168.63.129.16/32: the wire server of Azure"), "{own}");
    assert!(!said("10.1.0.0/16").contains("! API openai"));
}

#[test]
fn resolvers_are_asked_over_tls_or_in_clear_never_both() {
    let list = "resolvers = [\"192.0.2.53\"]";
    let with = |text: &str| format!("resolvers = [{text}]");
    for (text, services) in [
        ("tls://dns.example@192.0.2.53", "tls://dns.example@192.0.2.53:853"),
        ("tls://DNS.example.@192.0.2.53:8853", "tls://dns.example@192.0.2.53:8853"),
        ("tls://dns.example@2001:db8::53", "tls://dns.example@[2001:db8::53]:853"),
        ("tls://dns.example@[2001:db8::53]", "tls://dns.example@[2001:db8::53]:853"),
        ("tls://dns.example@[2001:db8::53]:8853", "tls://dns.example@[2001:db8::53]:8853"),
        ("[2001:db8::53]", "[2001:db8::53]:53"),
    ] {
        let config = accepts(list, &with(&format!("\"{text}\"")));
        assert_eq!(config.settings.resolvers[0].to_string(), services, "{text}");
        assert!(explain(&config).contains(services), "{text}");
    }
    for (text, why) in [
        ("tls://192.0.2.53", "lacks a name or an address"),
        ("tls://dns.example", "lacks a name or an address"),
        ("tls://192.0.2.53@192.0.2.53", "IP address"),
        ("tls://@192.0.2.53", "empty"),
        ("tls://dns.example@", "not the address of a resolver"),
        ("tls://dns.example@0.0.0.0", "not the address of a resolver"),
        ("tls://dns.example@192.0.2.53:0", "not the address of a resolver"),
        ("tls://dns.example@[192.0.2.53]", "not the address of a resolver"),
        ("tls://a@dns.example@192.0.2.53", "not the address of a resolver"),
        ("https://dns.example@192.0.2.53", "not the address of a resolver"),
    ] {
        refuses(list, &with(&format!("\"{text}\"")), text, &[why]);
    }
    let mixed = with("\"tls://dns.example@192.0.2.53\", \"192.0.2.54\"");
    refuses(list, &mixed, "192.0.2.54", &["clear text", "or none"]);
}

#[test]
fn a_resolver_ca_holds_certificates_and_has_a_resolver() {
    let list = "resolvers = [\"192.0.2.53\"]";
    let with = |servers: &str, pem: String| {
        let lines = format!("resolvers = [\"{servers}\"]\nresolver_ca = \"dns.pem\"");
        parse(&changed(&[(list, &lines)]), None, "gateway.toml", &move |path| match path
            == Path::new("dns.pem")
        {
            true => Ok(pem.clone()),
            false => no_files(path),
        })
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["ca.example".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    let server = "tls://dns.example@192.0.2.53";
    let config = with(server, pem.clone()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.settings.resolver_ca.as_deref(), Some(pem.as_str()));
    let says = |servers, pem| with(servers, pem).unwrap_err().to_string();
    assert!(says(server, String::new()).contains("no certificate"));
    assert!(says("192.0.2.53", pem).contains("no resolver is asked over TLS"));
}

#[test]
fn a_limit_has_a_unit_and_a_sane_range() {
    let limits = |line: &str| format!("[limits]\n{line}\n[vault]");
    for (line, why) in [
        ("peek_time = \"0s\"", "from 1s to 1m"),
        ("peek_time = 10", "ms, s, m or h, as in \"1m\""),
        ("peek_time = \"10\"", "write a whole number and ms, s, m or h"),
        ("idle_time = \"15min\"", "ms, s, m or h, as in \"24h\""),
        ("idle_time = \"25h\"", "from 10s to 24h"),
        ("idle_time = \"99999999999999999999h\"", "is not a time"),
        ("head_bytes = \"64KB\"", "from 4KiB to 1MiB; write \"1MiB\" (KiB or MiB, no other unit)"),
        ("buffers = 7", "from 1MiB to 16384MiB"),
        ("head_bytes = 1", "is not a size"),
        ("agent_new_connections = 0", "from 1 to 1000000"),
        ("connections = 40961", "from 1 to 40960"),
        ("agent_connections = 20481", "from 1 to 20480"),
        ("agent_new_requests = 1000001", "from 1 to 1000000"),
        ("agent_requests = 8193", "from 1 to 8192"),
        ("requests = 16385", "from 1 to 16384"),
        ("agent_buffers = \"1023KiB\"", "is not a size"),
        ("agent_peeks = \"4GiB\"", "is not a size"),
        ("agent_leaves = 10001", "from 1 to 10000"),
        ("h2_streams = 0", "from 1 to 1000"),
        ("h2_streams = -1", "-1"),
        ("h2_streams = 1.5", "1.5"),
    ] {
        refuses("[vault]", &limits(line), line, &[why]);
    }
    let both = "buffers = \"2MiB\"\nagent_buffers = \"3MiB\"";
    refuses("[vault]", &limits(both), "\"2MiB\"", &["fewer than agent_buffers"]);
    refuses(
        "[vault]",
        &limits("requests = 9\nagent_requests = 10"),
        "9",
        &["fewer than agent_requests"],
    );
    let own = accepts("[vault]", &limits("agent_requests = 5000"));
    assert_eq!((own.policy.limits.requests, own.policy.limits.agent_requests), (10_000, 5_000));
    let own = accepts("[vault]", &limits("agent_buffers = \"256MiB\"\npeeks = \"1MiB\""));
    let mib = 1024 * 1024;
    assert_eq!((own.policy.limits.buffers, own.policy.limits.agent_peeks), (512 * mib, mib));
    let both = "connections = 100\nagent_connections = 101";
    refuses("[vault]", &limits(both), "100", &["fewer than agent_connections", "101"]);
    let set = accepts(
        "[vault]",
        &limits("peek_time = \"2s\"\npeek_bytes = \"16KiB\"\ndrain_time = \"0s\""),
    );
    assert_eq!(set.policy.limits.peek_time, Duration::from_secs(2));
    assert_eq!(set.policy.limits.peek_bytes, 16_384);
    assert_eq!(set.policy.limits.drain_time, Duration::ZERO);
}

#[test]
fn effective_limits_are_explained_and_written_ones_are_reached() {
    let limits = |line: &str| format!("[limits]\n{line}\n[vault]");
    let one = explain(&accepts("[vault]", &limits("agent_connections = 20000\nrequests = 100")));
    let two = explain(&parse_text(REFERENCE).unwrap());
    for (text, part) in [
        (&one, "an agent has at most half of what its group has:"),
        (&one, "40000 connections, 40000 a group, 20000 an agent"),
        (&one, "100 requests under way, 100 a group, 50 an agent"),
        (&two, "2 groups have an equal part each, and an agent at most half of that:"),
        (&two, "4096 requests under way, 2048 a group, 1024 an agent"),
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
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
fn each_concession_to_clients_is_a_word_with_a_warning() {
    let (port, hosts) = ("paths = [\"/v1/*\"]", "hosts = [\"pypi.org\", \"*.pythonhosted.org\"]");
    let noted = format!("{port}\nconstraints = \"noted\"");
    let config = accepts(port, &noted);
    assert_eq!(config.policy.apis[0].constraints, Constraints::Noted);
    assert!(explain(&config).contains("every name (constraints)"));
    refuses(port, &format!("{port}\nconstraints = \"x\""), "\"x\"", &["\"critical\" or \"noted\""]);
    let pki = "[vault.pki]\nroot_file = \"root.pem\"\n[[api]]\nconstraints = \"noted\"";
    refuses("[[api]]", pki, "\"noted\"", &["[vault.pki]", "\"critical\" alone"]);

    let allowed = accepts(hosts, &format!("{hosts}\nech = \"allow\""));
    assert!(allowed.policy.passes[0].carry.allows_ech());
    assert!(explain(&allowed).contains("nobody sees (ech)"));
    assert!(!accepts(hosts, hosts).policy.passes[0].carry.allows_ech());
    refuses(hosts, &format!("{hosts}\nech = \"yes\""), "\"yes\"", &["\"refuse\" or \"allow\""]);
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
        parse(&text, None, "gateway.toml", &move |path| match path == Path::new("internal.pem") {
            true => Ok(pem.clone()),
            false => no_files(path),
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

#[test]
fn keys_of_the_audits_file_need_a_file() {
    let with = |keys: &str| format!("[gateway]\n{keys}\n");
    refuses("[gateway]\n", &with("audit_rotate = 100"), "audit_rotate", &["write 65536 or more"]);
    refuses("[gateway]\n", &with("audit_keep = 0"), "audit_keep", &["from 1 to 10000"]);
    let stdout = with("audit = \"stdout\"\naudit_keep = 3");
    refuses("[gateway]\n", &stdout, "audit_keep", &["standard output"]);
    let settings = accepts("[gateway]\n", &with("audit_rotate = 0\naudit_reserve = 0")).settings;
    let AuditTarget::File(file) = settings.audit else { panic!("a file is the default") };
    assert_eq!((file.rotate, file.reserve, file.keep), (None, 0, 32));
}

#[test]
fn metrics_are_at_one_address_that_is_no_agents() {
    for wrong in ["0.0.0.0:9464", "[::]:9464", "192.0.2.200", "224.0.0.1:9464", "127.0.0.1:0"] {
        let key = format!("[gateway]\nmetrics = \"{wrong}\"\n");
        refuses("[gateway]\n", &key, "metrics", &["not one address of this machine and a port"]);
    }
    let group = accepts("[gateway]\n", "[gateway]\n").policy.groups[0].prefixes[0].addr();
    let key = format!("[gateway]\nmetrics = \"{}\"\n", std::net::SocketAddr::new(group, 9464));
    refuses("[gateway]\n", &key, "metrics", &["is an agents' address"]);
}
