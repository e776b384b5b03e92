//! Properties of whole files. Each case changes one or more places of a file that is right.

use std::{io, path::Path, sync::OnceLock, time::Duration};

use http::{HeaderName, Method};
use proptest::prelude::*;

use super::*;
use crate::policy::{Place, Scheme};

mod rules;
mod tcp;
mod values;

/// Right as it stands; line 1 is `[gateway]`.
const GOOD: &str = r#"[gateway]
resolvers = ["192.0.2.53"]
[vault]
address = "https://vault.example:8200"
ca_file = "vault-ca.pem"
approle.role_id = "gateway"
approle.secret_id_file = "secret-id"
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

const REFERENCE: &str = include_str!("../../../../image/cloakroom.toml");

/// Reads files as if there were none except the CA of Vault.
fn no_files(path: &Path) -> io::Result<String> {
    if path.ends_with("vault-ca.pem") {
        return Ok(certificate());
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no {}", path.display())))
}

fn certificate() -> String {
    static MADE: OnceLock<String> = OnceLock::new();
    let make = || {
        let key = rcgen::KeyPair::generate().unwrap();
        rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()
    };
    MADE.get_or_init(make).clone()
}

fn parse_text(text: &str) -> Result<Config, Errors> {
    parse(text, Some(Path::new("/etc/cloakroom")), "gateway.toml", &no_files)
}

fn mistakes(text: &str) -> Vec<Mistake> {
    parse_text(text).map_or_else(|errors| errors.mistakes().to_vec(), |_| Vec::new())
}

/// Returns the good file with every `from` changed to its `to`.
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
    assert_eq!(settings.resolvers[0].to_string(), "192.0.2.53:53");
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
        [Place::Header {
            name: HeaderName::from_static("authorization"),
            scheme: Scheme::parse(&["bearer"]).unwrap()
        }]
    );
    assert_eq!(binding.secret.to_string(), "vault:kv/agents/openai#api_key");
    assert_eq!(binding.min_value_bytes, 16);
    assert_eq!(policy.passes[0].ports, [443]);
    assert_eq!(policy.passes[0].hosts[1].to_string(), "*.pythonhosted.org");
}

#[test]
fn the_reference_loads() {
    let config = parse_text(REFERENCE).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(config.settings.resolvers[1].to_string(), "[2001:db8::53]:53");
    assert_eq!(config.policy.groups.len(), 2);
    assert_eq!(config.policy.apis[0].methods, [Method::GET, Method::POST, Method::DELETE]);
    assert_eq!(
        config.policy.apis[3].bindings[0].places[0],
        Place::BasicPassword { user: "x-access-token".into() }
    );
}

#[test]
fn the_configurations_of_the_documents_load() {
    let readme = include_str!("../../../../README.md");
    let page = include_str!("../../../../docs/configuration.md");
    for (document, rules) in [(readme, (1, 1, 0)), (page, (2, 2, 1))] {
        let (_, rest) = document.split_once("```toml\n").expect("a configuration");
        let (block, _) = rest.split_once("```").expect("its end");
        let outdented = |line: &str| line.trim_start().to_owned() + "\n";
        let text: String = block.lines().map(outdented).collect();
        let config = parse_text(&text).unwrap_or_else(|errors| panic!("{errors}"));
        let policy = &config.policy;
        assert_eq!((policy.apis.len(), policy.passes.len(), policy.tcp.len()), rules);
        // Nothing in it deserves a warning, except the id that nobody may copy.
        let text = explain(&config);
        let mut warnings = text.lines().filter(|line| line.starts_with("  ! "));
        assert!(warnings.all(|line| line.contains("role_id 00000000-")), "{text}");
    }
}

#[test]
fn what_differs_in_two_settings_is_named_by_its_key() {
    let settings = |from: &str, to: &str| accepts(from, to).settings;
    let good = parse_text(GOOD).unwrap().settings;
    assert_eq!(good.differences(&good), Vec::<&str>::new());
    let other = settings("[gateway]\n", "[gateway]\nworkers = 3\nmark = 7\n");
    assert_eq!(good.differences(&other), ["mark", "workers"]);
    let other = settings("ca_file = ", "namespace = \"x\"\nca_file = ");
    assert_eq!(good.differences(&other), ["[vault]"]);
}

#[test]
fn the_reference_shows_the_true_defaults() {
    // A folder of issuing CAs is for configurations without [vault.pki].
    let no_default = [
        "#namespace",
        "#peers",
        "#plain_http",
        "#any_host",
        "#mtu",
        "#onboarding",
        "#upstream_ca",
        "#resolver_ca",
        "#basic_password",
        "#key_file",
        "#ca_dir",
        "#nat64_prefixes",
        "#aws",
        "#metrics",
        "#provider",
        "#shape",
    ];
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
        // Found at the start of a line, because comments name tables too.
        let (own, with) = (format!("\n{header}"), format!("\n{header}\nqqqqqqqqqqqq = 1"));
        let text = REFERENCE.replacen(&own, &with, 1);
        let found = mistakes(&text);
        let (_, keys) = found[0].text.split_once("it takes ").expect("no key is near");
        for key in keys.split(", ").filter(|key| !TABLES.contains(key)) {
            let stands =
                |line: &str| line.trim_start_matches('#').starts_with(&format!("{key} = "));
            assert!(REFERENCE.lines().any(stands), "{key} of {header}");
            asked += 1;
        }
    }
    assert!(asked > 50, "{asked}");
}

#[test]
fn five_mistakes_are_five_errors_in_line_order() {
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
fn a_missing_key_is_reported_at_its_table_with_example() {
    let at_group = ["[[group]]", "lacks", "write"];
    refuses("interface = \"agents0\"\n", "", "[[group]]", &at_group);
    refuses("name = \"research\"\n", "", "[[group]]", &at_group);
    let api = "name = \"openai\"\n";
    refuses(api, "", "[[api]]", &["lacks \"name\"; write name = \"openai\""]);
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
    let head = "[[api]]\nname = \"openai\"\nhosts = [\"api.openai.com\"]\npaths = [\"/v1/*\"]\n";
    refuses(head, "", "[[api.binding]]", &["[[api.binding]] stands below no [[api]]"]);
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
    let found = mistakes(&changed(&[("interface = ", "interface = \"a\"\ninterface = ")]));
    assert_eq!((found.len(), found[0].line), (1, 11), "{found:?}");
    assert!(found[0].text.contains("\"interface\" is already in line 10"), "{found:?}");
    // Keys that a list without its end swallows are not reported a second time.
    let found = mistakes(&changed(&[("\"2001:db8:1::/64\"]", "\"2001:db8:1::/64\"")]));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].text.contains("the list that begins in line 11"), "{found:?}");
    let twice =
        [("interface = ", "interface = \"a\"\ninterface = "), ("[vault]", "[gateway]\n[vault]")];
    let found = mistakes(&changed(&twice));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].text.contains("\"gateway\" is already in line 1"), "{found:?}");
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
        ("https://vault.example:8200", format!("https://user:{leak}@vault.example:8200")),
        ("\"api.openai.com\"", format!("\"https://user:{leak}@api.openai.com\"")),
        ("role_id = \"gateway\"", format!("role_id = \"gateway\"\napprole.token = \"{leak}\"")),
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
fn a_file_that_cannot_be_read_is_one_error() {
    let errors = load(Path::new("/nonexistent/gateway.toml")).unwrap_err();
    assert!(errors.to_string().starts_with("/nonexistent/gateway.toml: "), "{errors}");
    assert_eq!(errors.mistakes().len(), 1);
    assert!(load(Path::new("/dev/zero")).is_err(), "a read has a bound");
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
        "TCP git-ssh: may reach github.com",
        "Everything else is refused.",
        "API github forwards requests without any credential",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let research = text.split("Group ci").next().unwrap();
    assert!(!research.contains("GITHUB_TOKEN"), "a group is told only of its own\n{text}");
}

#[test]
fn every_prefix_of_a_file_errs_within_itself() {
    for end in (0..GOOD.len()).filter(|end| GOOD.is_char_boundary(*end)) {
        let lines = GOOD[..end].lines().count().max(1) + 1;
        for mistake in mistakes(&GOOD[..end]) {
            assert!((1..=lines).contains(&mistake.line), "{end}: {mistake:?}");
        }
    }
}

/// Keys that are tables of their own.
const TABLES: [&str; 7] = ["binding", "mint", "agent", "approle", "cert", "jwt", "pki"];

/// Slips that have nothing to do with one another, each one mistake in the good file.
const SLIPS: [(&str, &str); 16] = [
    ("resolvers = [\"192.0.2.53\"]", "resolvers = [\"dns.example\"]"),
    ("address = \"https:", "address = \"ftp:"),
    ("ca_file = \"vault-ca.pem\"", "ca_file = true"),
    ("role_id = \"gateway\"", "roleid = \"gateway\""),
    ("secret_id_file = ", "secret_id = "),
    ("name = \"research\"", "name = \"Research\""),
    ("interface = \"agents0\"", ""),
    ("\"2001:db8:1::/64\"", "\"2001:db8:1::1/64\""),
    ("name = \"openai\"", "nam = \"openai\""),
    ("\"api.openai.com\"", "\"*.openai.com\""),
    ("paths = [\"/v1/*\"]", "paths = [\"v1/*\"]"),
    ("placeholder = \"OPENAI_API_KEY\"", "placeholder = 7"),
    ("header authorization bearer", "header authorization bearrer"),
    ("#api_key\"", "\""),
    ("name = \"pypi\"\ngroups = [\"research\"]", "name = \"pypi\"\ngroups = [\"elsewhere\"]"),
    ("\"*.pythonhosted.org\"", "\"pypi.org\""),
];

proptest! {
    #[test]
    fn no_mistake_hides_or_adds_another(
        slips in proptest::sample::subsequence(SLIPS.to_vec(), 1..=SLIPS.len()),
    ) {
        let text = changed(&slips);
        let found = mistakes(&text);
        prop_assert_eq!(found.len(), slips.len(), "{}\n{:#?}", text, found);
        prop_assert!(found.is_sorted_by_key(|mistake| mistake.line));
    }

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
