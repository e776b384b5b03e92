//! Properties of whole files. Each case changes a file that is right in one or more places.

use std::{io, path::Path, time::Duration};

use http::{HeaderName, Method};
use proptest::prelude::*;

use super::*;
use crate::policy::{HostPattern, Place, Scheme};

/// Right as it stands; line 1 is `[gateway]`.
const GOOD: &str = r#"[gateway]
resolvers = ["192.0.2.53"]
[vault]
address = "https://vault.example:8200"
ca_file = "vault-ca.pem"
role_id = "gateway"
secret_id_file = "secret-id"
[[group]]
name = "research"
interface = "agents0"
prefixes = ["192.0.2.0/28", "2001:db8:1::/64"]
[[api]]
name = "openai"
hosts = ["api.openai.com"]
paths = ["/v1/*"]
[[api.binding]]
groups = ["research"]
placeholder = "OPENAI_API_KEY"
places = ["header authorization bearer"]
secret = "vault:kv/agents/openai#api_key"
[[splice]]
name = "pypi"
groups = ["research"]
hosts = ["pypi.org", "*.pythonhosted.org"]
"#;

const REFERENCE: &str = include_str!("../../../image/cloakroom.toml");

fn no_files(path: &Path) -> io::Result<String> {
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no {}", path.display())))
}

fn parse_text(text: &str) -> Result<Config, Errors> {
    parse(text, Some(Path::new("/etc/cloakroom")), "gateway.toml", &no_files)
}

fn mistakes(text: &str) -> Vec<Mistake> {
    parse_text(text).map_or_else(|errors| errors.mistakes().to_vec(), |_| Vec::new())
}

/// The good file with every `from` changed to its `to`.
fn changed(changes: &[(&str, &str)]) -> String {
    changes.iter().fold(GOOD.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from:?} is in the file");
        text.replacen(from, to, 1)
    })
}

/// Asserts that the good file with one change has exactly one mistake, whose line has `at` in it,
/// and whose text has every one of `words`.
fn refuses(from: &str, to: &str, at: &str, words: &[&str]) {
    let text = changed(&[(from, to)]);
    let found = mistakes(&text);
    assert_eq!(found.len(), 1, "{to}\n{found:#?}");
    let line = text.lines().nth(found[0].line - 1).unwrap();
    assert!(line.contains(at), "{line:?} has {at:?}; {found:?}");
    for word in words {
        assert!(found[0].text.contains(word), "{found:?} has {word:?}");
    }
}

fn accepts(from: &str, to: &str) -> Config {
    parse_text(&changed(&[(from, to)])).unwrap_or_else(|errors| panic!("{to}\n{errors}"))
}

#[test]
fn the_good_file_means_what_it_says() {
    let Config { settings, policy } = parse_text(GOOD).unwrap();
    let vault = settings.vault.unwrap();
    assert_eq!(settings.resolvers, ["192.0.2.53:53".parse().unwrap()]);
    assert_eq!(vault.ca_file.unwrap(), Path::new("/etc/cloakroom/vault-ca.pem"));
    assert_eq!(
        (vault.refresh, vault.max_stale),
        (Duration::from_secs(60), Duration::from_secs(300))
    );
    assert_eq!(policy.ports, [80, 443]);
    assert_eq!(policy.limits, Limits::default());
    let binding = &policy.apis[0].bindings[0];
    assert_eq!(binding.placeholder.as_str(), "OPENAI_API_KEY");
    assert_eq!(
        binding.places,
        [Place::Header { name: HeaderName::from_static("authorization"), scheme: Scheme::Bearer }]
    );
    assert_eq!(binding.secret.to_string(), "vault:kv/agents/openai#api_key");
    assert_eq!(binding.min_value_bytes, 16);
    assert_eq!(policy.passes[0].ports, [443]);
    assert_eq!(policy.passes[0].hosts[1].to_string(), "*.pythonhosted.org");
}

#[test]
fn the_reference_loads() {
    let config = parse_text(REFERENCE).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.policy.groups.len(), 2);
    assert_eq!(config.policy.apis[0].methods, [Method::GET, Method::POST, Method::DELETE]);
    assert_eq!(
        config.policy.apis[1].bindings[0].places[0],
        Place::BasicPassword { user: "x-access-token".into() }
    );
}

#[test]
fn the_reference_shows_the_true_defaults() {
    let no_default = ["#namespace", "#any_host", "#upstream_ca", "#basic_password"];
    let lines = REFERENCE.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if no_default.iter().any(|key| line.starts_with(key)) => format!("# {rest}"),
        Some(rest) if rest.starts_with(|first: char| first.is_ascii_lowercase()) => rest.into(),
        _ => line.into(),
    });
    let written: String = lines.map(|line| line + "\n").collect();
    assert!(written.contains("\nproxy_port = 15001"), "comments were taken off");
    let written = parse_text(&written).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(written, parse_text(REFERENCE).unwrap());
}

#[test]
fn the_reference_has_every_key() {
    let mut asked = 0;
    for header in REFERENCE.lines().filter(|line| line.starts_with('[')) {
        let text = REFERENCE.replacen(header, &format!("{header}\nqqqqqqqqqqqq = 1"), 1);
        let found = mistakes(&text);
        let (_, keys) = found[0].text.split_once("it takes ").expect("no key is near");
        for key in keys.split(", ").filter(|key| *key != "binding") {
            let stands =
                |line: &str| line.trim_start_matches('#').starts_with(&format!("{key} = "));
            assert!(REFERENCE.lines().any(stands), "{key} of {header}");
            asked += 1;
        }
    }
    assert!(asked > 50, "{asked}");
}

#[test]
fn five_mistakes_are_five_errors_in_the_order_of_their_lines() {
    let text = changed(&[
        ("interface = \"agents0\"", "interface = 7"),
        ("hosts = [\"api.openai.com\"]", "hosts = [\"*.openai.com\"]"),
        ("placeholder =", "placeholdr ="),
        ("secret = \"vault:", "secret = \"file:openai\" #"),
        ("name = \"pypi\"\ngroups = [\"research\"]", "name = \"pypi\"\ngroups = [\"reserch\"]"),
    ]);
    let errors = parse_text(&text).unwrap_err();
    assert_eq!(
        errors.to_string(),
        r#"gateway.toml:10:13: interface: 7 is not a text; write it in quotes
gateway.toml:14:10: hosts: "*.openai.com" is a pattern; an API takes exact host names
gateway.toml:18:1: unknown key "placeholdr" in [[api.binding]]; did you mean "placeholder"?
gateway.toml:20:10: secret: "file:openai" needs [secrets], which is not there
gateway.toml:23:11: groups: no group is named "reserch"; did you mean "research"?
gateway.toml: 5 errors"#
    );
}

#[test]
fn a_missing_key_is_reported_at_its_table_with_an_example() {
    let at_group = ["[[group]]", "lacks", "write"];
    refuses("interface = \"agents0\"\n", "", "[[group]]", &at_group);
    refuses("name = \"research\"\n", "", "[[group]]", &at_group);
    refuses(
        "placeholder = \"OPENAI_API_KEY\"\n",
        "",
        "[[api.binding]]",
        &["lacks \"placeholder\""],
    );
    refuses("places = [\"header authorization bearer\"]\n", "", "[[api.binding]]", &["\"places\""]);
    refuses("ca_file = \"vault-ca.pem\"\n", "", "[vault]", &["lacks \"ca_file\""]);
    refuses("[gateway]\nresolvers = [\"192.0.2.53\"]\n", "", "[vault]", &["lacks \"gateway\""]);
    let api_only = changed(&[(GOOD.split_once("[[api.binding]]").unwrap().1, "")]);
    let no_binding = api_only.replace("[[api.binding]]", "");
    assert!(mistakes(&no_binding)[0].text.contains("[[api.binding]] below it"));
}

#[test]
fn one_slip_is_one_error() {
    for (from, to, at) in [
        ("[vault]", "[vualt]", "[vualt]"),
        ("[[group]]", "[[gruop]]", "[[gruop]]"),
        ("name = \"research\"", "nmae = \"research\"", "nmae"),
        ("name = \"research\"", "name = \"Research\"", "Research"),
        ("ca_file", "ca-file", "ca-file"),
        ("[[splice]]", "[splice]", "[splice]"),
        ("[vault]", "[[vault]]", "[[vault]]"),
        ("[[api.binding]]", "[api.binding]", "[api.binding]"),
        ("[[api.binding]]", "[[api.bindings]]", "bindings"),
        ("hosts = [\"api.openai.com\"]", "hosts = \"api.openai.com\"", "api.openai.com"),
        ("address = \"https", "address = 3 #", "address"),
        ("prefixes = [", "prefixes = \"192.0.2.0/28\" # [", "prefixes"),
    ] {
        let text = changed(&[(from, to)]);
        let found = mistakes(&text);
        assert_eq!(found.len(), 1, "{to}: {found:#?}");
        assert!(text.lines().nth(found[0].line - 1).unwrap().contains(at), "{to}: {found:?}");
    }
}

#[test]
fn a_syntax_error_has_its_line() {
    refuses("resolvers = [", "resolvers = ", "resolvers", &[]);
    refuses("name = \"openai\"", "name = \"openai\nhosts2 = 1", "openai", &[]);
    let found =
        mistakes(&changed(&[("role_id = \"gateway\"", "role_id = \"a\"\nrole_id = \"b\"")]));
    assert_eq!((found.len(), found[0].line), (1, 7), "{found:?}");
}

#[test]
fn a_secret_is_never_in_the_file_and_never_repeated() {
    let leak = "sk-live-0123456789abcdef";
    for (from, to) in [
        ("secret = \"vault:kv/agents/openai#api_key\"", format!("secret = \"{leak}\"")),
        ("secret = \"vault:kv/agents/openai#api_key\"", format!("value = \"{leak}\"")),
        ("secret = \"vault:kv/agents/openai#api_key\"", format!("api_key = \"{leak}\"")),
        ("placeholder = \"OPENAI_API_KEY\"", format!("placeholder = \"{leak} \"")),
        ("secret_id_file = \"secret-id\"", format!("secret_id = \"{leak}\"")),
        ("role_id = \"gateway\"", format!("role_id = \"{leak} \"")),
        ("role_id = \"gateway\"", format!("role_id = \"gateway\"\ntoken = \"{leak}\"")),
    ] {
        let errors = parse_text(&changed(&[(from, &to)])).unwrap_err();
        assert_eq!(errors.mistakes().len(), 1, "{errors}");
        assert!(!errors.to_string().contains("sk-live"), "{errors}");
    }
    refuses(
        "secret_id_file = \"secret-id\"",
        "secret_id = \"x\"",
        "secret_id",
        &["looks like a secret", "secret_id_file"],
    );
    refuses("secret = \"vault", "token = \"vault", "token", &["looks like a secret", "\"secret\""]);
}

#[test]
fn a_name_is_given_once() {
    let group = "[[group]]\nname = \"research\"\ninterface = \"agents1\"\nprefixes = [\"192.0.2.0/28\"]\n[[api]]";
    refuses("[[api]]", group, "research", &["already in line 9"]);
    refuses("name = \"pypi\"", "name = \"openai\"", "openai", &["already in line 13"]);
}

#[test]
fn an_agent_belongs_to_one_group() {
    let other = |interface: &str, prefix: &str| {
        format!(
            "[[group]]\nname = \"other\"\ninterface = \"{interface}\"\nprefixes = [\"{prefix}\"]\n[[api]]"
        )
    };
    refuses("[[api]]", &other("agents0", "192.0.2.8/29"), "192.0.2.8/29", &["overlaps", "line 11"]);
    refuses("[[api]]", &other("agents0", "2001:db8::/32"), "2001:db8::/32", &["overlaps"]);
    accepts("[[api]]", &other("agents1", "192.0.2.8/29"));
    accepts("[[api]]", &other("agents0", "192.0.2.16/28"));
    let nested = "prefixes = [\"192.0.2.0/28\", \"192.0.2.1/32\"]\n#";
    refuses("prefixes = ", nested, "192.0.2.1/32", &["overlaps"]);
}

#[test]
fn a_group_has_only_addresses_that_agents_can_have() {
    for (prefix, why) in [
        ("0.0.0.0/0", "every address"),
        ("::/0", "every address"),
        ("0.0.0.0/1", "too wide"),
        ("192.0.2.5/28", "write \\\"192.0.2.0/28\\\""),
        ("127.0.0.0/8", "no agent can be"),
        ("169.254.7.0/24", "no agent can be"),
        ("fe00::/8", "no agent can be"),
        ("ff02::/16", "no agent can be"),
        ("::ffff:192.0.2.0/124", "no agent can be"),
        ("224.0.0.0/8", "no agent can be"),
        ("192.0.2.1", "is not a prefix"),
        ("192.0.2.0/33", "is not a prefix"),
    ] {
        let why = why.replace("\\\"", "\"");
        refuses("\"192.0.2.0/28\"", &format!("\"{prefix}\""), prefix, &[&why]);
    }
    refuses("\"agents0\"", "\"all\"", "all", &["not interfaces"]);
}

#[test]
fn a_host_and_port_belong_to_one_api() {
    let second = |host: &str, port: u16| {
        format!(
            "[[api]]\nname = \"two\"\nhosts = [\"{host}\"]\nport = {port}\n[[api.binding]]\n\
             groups = [\"research\"]\nplaceholder = \"ANOTHER_KEY\"\nplaces = [\"basic user\"]\n\
             secret = \"vault:kv/two#key\"\n[[splice]]"
        )
    };
    refuses(
        "[[splice]]",
        &second("API.openai.com.", 443),
        "API.openai.com.",
        &["already in line 14"],
    );
    accepts("[[splice]]", &second("api.openai.com", 8443));
    refuses(
        "[\"api.openai.com\"]",
        "[\"api.openai.com\", \"api.openai.com\"]",
        "api.openai.com",
        &["already"],
    );
}

#[test]
fn a_pass_that_lists_the_name_of_an_api_is_refused() {
    refuses(
        "[\"pypi.org\", ",
        "[\"api.openai.com\", ",
        "*.pythonhosted.org",
        &["belongs to the API in line 14"],
    );
    accepts("[\"pypi.org\", \"*.pythonhosted.org\"]", "[\"api.openai.com\"]\nports = [8443]");
    let wide = accepts("[\"pypi.org\", ", "[\"*.openai.com\", ");
    assert!(explain(&wide).contains("api.openai.com, which belongs to API openai"));
}

#[test]
fn two_passes_do_not_carry_one_host_for_one_group() {
    let inspect = |hosts: &str| {
        format!(
            "{hosts}]\n[[inspect]]\nname = \"i\"\ngroups = [\"research\"]\nhosts = [\"*.pythonhosted.org\"]\n"
        )
    };
    refuses(
        "\"*.pythonhosted.org\"]",
        &inspect("\"*.pythonhosted.org\""),
        "[\"*.pythonhosted.org\"]",
        &["already in line 24"],
    );
    refuses("\"*.pythonhosted.org\"]", "\"pypi.org\"]", "pypi.org", &["already in line 24"]);
}

#[test]
fn a_placeholder_means_one_secret_in_one_place() {
    let second = |placeholder: &str, place: &str| {
        format!(
            "[[api.binding]]\ngroups = [\"research\"]\nplaceholder = \"{placeholder}\"\n\
             places = [\"{place}\"]\nsecret = \"vault:kv/two#key\"\n[[splice]]"
        )
    };
    let place = "header Authorization bearer";
    refuses(
        "[[splice]]",
        &second("OPENAI_API_KEY", place),
        "places",
        &["already bound", "line 19"],
    );
    accepts("[[splice]]", &second("OPENAI_API_KEY", "header x-api-key raw"));
    accepts("[[splice]]", &second("ANOTHER_KEY", place));
    refuses(
        "[\"header authorization bearer\"]",
        "[\"basic user\", \"basic user\"]",
        "basic",
        &["list it once"],
    );
}

#[test]
fn a_binding_says_where_its_placeholder_stands() {
    let places = "places = [\"header authorization bearer\"]";
    refuses(places, "places = []", "places", &["empty"]);
    refuses(places, "places = [\"header host raw\"]", "host", &["no credential stands there"]);
    refuses(places, "places = [\"header authorization\"]", "places", &["bearer, token or raw"]);
    refuses(
        places,
        "places = [\"basic user\"]\nbasic_user = \"x\"",
        "basic_user",
        &["basic password"],
    );
    refuses(places, "places = [\"basic password\"]\nbasic_user = \"a:b\"", "basic_user", &["a:b"]);
    refuses("\"OPENAI_API_KEY\"", "\"SHORT\"", "SHORT", &["at least 8 bytes"]);
    refuses("\"OPENAI_API_KEY\"", "\"user:password\"", "user", &["no ':'"]);
    for (bytes, right) in [(7, false), (8, true), (8_192, true), (8_193, false)] {
        let text = changed(&[(places, &format!("{places}\nmin_value_bytes = {bytes}"))]);
        assert_eq!(parse_text(&text).is_ok(), right, "{bytes}");
    }
}

#[test]
fn a_reference_needs_its_source() {
    let vault = GOOD.split_once("[vault]").unwrap().1.split_once("[[group]]").unwrap().0;
    let without = changed(&[("[vault]", ""), (vault, "")]);
    let found = mistakes(&without);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].text.contains("needs [vault]"), "{found:?}");
    refuses("\"vault:kv/agents/openai#api_key\"", "\"file:openai\"", "file:", &["needs [secrets]"]);
    let file = accepts("[vault]", "[secrets]\nfile = \"secrets\"\n[vault]");
    assert_eq!(file.settings.secret_file.unwrap(), Path::new("/etc/cloakroom/secrets"));
}

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

#[test]
fn a_file_that_cannot_be_read_is_one_error() {
    let errors = load(Path::new("/nonexistent/gateway.toml")).unwrap_err();
    assert!(errors.to_string().starts_with("/nonexistent/gateway.toml: "), "{errors}");
    assert_eq!(errors.mistakes().len(), 1);
    assert!(load(Path::new("/dev/zero")).is_err(), "a read has a bound");
}

/// `cargo test show_what_an_operator_sees -- --nocapture` prints both pages.
#[test]
fn show_what_an_operator_sees() {
    println!("{}", explain(&parse_text(REFERENCE).unwrap()));
}

#[test]
fn the_explanation_says_who_may_do_what() {
    let text = explain(&parse_text(REFERENCE).unwrap());
    for line in [
        "Group research",
        "on agents0 with addresses in 192.0.2.0/28, 2001:db8:1::/64",
        "every agent in this group is one tenant",
        "API openai: may call https://api.openai.com",
        "authorization: Bearer OPENAI_API_KEY",
        "the field api_key of agents/openai in Vault's KV v2 engine kv",
        "GET, POST, DELETE",
        "/v1/*",
        "Splice pypi: may reach pypi.org, *.pythonhosted.org",
        "Inspect docs: may call docs.example.com",
        "Everything else is refused.",
        "API github forwards requests without any credential",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let research = text.split("Group ci").next().unwrap();
    assert!(!research.contains("GITHUB_TOKEN"), "a group is told only of its own\n{text}");
}

#[test]
fn every_prefix_of_a_file_is_right_or_has_errors_within_it() {
    for end in (0..GOOD.len()).filter(|end| GOOD.is_char_boundary(*end)) {
        let lines = GOOD[..end].lines().count().max(1) + 1;
        for mistake in mistakes(&GOOD[..end]) {
            assert!((1..=lines).contains(&mistake.line), "{end}: {mistake:?}");
        }
    }
}

proptest! {
    #[test]
    fn no_text_breaks_the_reader(line in 0..24_usize, text in "[ -~]{0,40}|\\PC{0,20}") {
        let mut lines: Vec<&str> = GOOD.lines().collect();
        lines[line] = &text;
        let _ = mistakes(&lines.join("\n"));
    }

    #[test]
    fn a_random_value_never_breaks_a_reader(
        nth in 0..18_usize,
        value in "\"[ -~&&[^\"\\\\]]{0,30}\"|-?[0-9]{1,25}|true|\\[\\]|\\[1\\]|\\[\"[a-z*./]{0,9}\"\\]|\\{\\}",
    ) {
        let keys: Vec<usize> = GOOD.lines().enumerate()
            .filter(|(_, line)| line.contains(" = ")).map(|(at, _)| at).collect();
        let at = keys[nth % keys.len()];
        let lines = GOOD.lines().enumerate().map(|(n, line)| match line.split_once(" = ") {
            Some((key, _)) if n == at => format!("{key} = {value}\n"),
            _ => format!("{line}\n"),
        });
        if let Err(errors) = parse_text(&lines.collect::<String>()) {
            prop_assert!(errors.mistakes().iter().all(|mistake| mistake.line > 0));
        }
    }
}
