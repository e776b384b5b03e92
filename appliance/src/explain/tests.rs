use std::path::Path;

use http::HeaderName;
use serde_json::{Value, json};

use super::{mend::ChangedConfig, *};
use crate::{
    audit::AuditLine,
    config::{self, Edit},
    policy::{GroupName, KeyShape, Placeholder},
    reason::Reason,
};

const CONFIG: &str = r#"[gateway]
resolvers = ["192.0.2.53"]

[secrets]
file = "secrets"

[[group]]
name = "research"
interface = "agents0"
prefixes = ["192.0.2.0/28"]

[[group]]
name = "others"
interface = "agents1"
prefixes = ["198.51.100.0/28"]

[[api]]
name = "one"
hosts = ["api.one.example"]
methods = ["GET"]
paths = ["/v1/*"]

[[api.binding]]
groups = ["research"]
placeholder = "ONE_API_KEY"
places = ["header authorization bearer"]
secret = "file:one"

[[api]]
name = "two"
hosts = ["api.two.example"]

[[api.binding]]
groups = ["research"]
placeholder = "TWO_API_KEY"
places = ["header authorization bearer"]
secret = "file:two"

[[api]]
name = "theirs"
hosts = ["api.theirs.example"]

[[api.binding]]
groups = ["others"]
placeholder = "THEIR_API_KEY"
places = ["header x-api-key raw"]
secret = "file:theirs"

[[splice]]
name = "pypi"
groups = ["research"]
hosts = ["pypi.example"]

[[inspect]]
name = "read-only"
groups = ["research"]
hosts = ["docs.example"]
methods = ["GET"]
paths = ["/open/*"]

[[tcp]]
name = "ssh"
groups = ["others"]
hosts = ["git.example"]
ports = [22]
"#;

fn source<'a>(text: &'a str) -> Source<'a> {
    Source { path: Path::new("test"), text, read: &|_| Ok(String::new()) }
}

fn ask(text: &str, method: &str, url: &str, fields: &[(&'static str, &str)]) -> Question {
    let config = ChangedConfig::read(source(text)).unwrap().config;
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
        .collect();
    let asked = super::asked(method, url, &fields).unwrap();
    request(&config.policy, GroupName::parse("research").unwrap(), asked)
}

const ONE: (&str, &str) = ("authorization", "Bearer ONE_API_KEY");
const TWO: (&str, &str) = ("authorization", "Bearer TWO_API_KEY");

/// Returns requests that policy could allow, each with its first reason.
fn refused() -> Vec<(Reason, Question)> {
    use Reason as R;
    let ask =
        |method: &str, url: &str, fields: &[(&'static str, &str)]| ask(CONFIG, method, url, fields);
    let basic = ("authorization", "Basic dXNlcjpPTkVfQVBJX0tFWQ=="); // user:ONE_API_KEY
    let hidden = |mut question: Question| {
        if let Some(crate::peek::Peeked::Tls(hello)) = &mut question.opening {
            hello.ech = true;
        }
        question
    };
    let later = |question: Question, address: &str, reason| Question {
        to: format!("{address}:443").parse().unwrap(),
        later: Some(reason),
        ..question
    };
    vec![
        (R::DnsDenied, ask("GET", "https://new.example/", &[])),
        (R::DnsDenied, ask("GET", "https://new.example:8443/", &[])),
        (R::DnsDenied, ask("GET", "http://new.example/", &[])),
        (R::DnsDenied, ask("CONNECT", "tcp://git.example:22", &[])),
        (R::DnsDenied, ask("CONNECT", "tcp://db.example:5432", &[])),
        (R::DnsDenied, ask("POST", "https://api.openai.com/v1/responses", &[])),
        (
            R::DnsDenied,
            ask("GET", "https://api.theirs.example/", &[("x-api-key", "THEIR_API_KEY")]),
        ),
        (R::PortDenied, ask("GET", "https://pypi.example:8443/", &[])),
        (R::SniDenied, ask("GET", "https://pypi.example:80/", &[])),
        (R::NotTls, ask("GET", "http://pypi.example/", &[])),
        (R::EchDenied, hidden(ask("GET", "https://pypi.example/", &[]))),
        (
            R::DialledElsewhere,
            later(ask("GET", "https://pypi.example/", &[]), "203.0.113.7", R::DialledElsewhere),
        ),
        (R::MethodDenied, ask("DELETE", "https://api.one.example/v1/a", &[ONE])),
        (R::PathDenied, ask("GET", "https://api.one.example/v2/a?b=c", &[ONE])),
        (R::MethodDenied, ask("POST", "https://api.one.example/v2/a", &[ONE])),
        (R::MethodDenied, ask("POST", "https://docs.example/open/a", &[])),
        (R::PathDenied, ask("GET", "https://docs.example/closed", &[])),
        (R::PlaceholderMissing, ask("GET", "https://api.one.example/v1/a", &[])),
        (R::PlaceholderMissing, ask("DELETE", "https://api.one.example/free", &[])),
        (
            R::PlaceholderWrongPlace,
            ask("GET", "https://api.one.example/v1/a", &[("x-api-key", "ONE_API_KEY")]),
        ),
        (
            R::PlaceholderWrongPlace,
            ask("GET", "https://api.one.example/v1/a", &[("authorization", "Key ONE_API_KEY")]),
        ),
        (R::PlaceholderWrongPlace, ask("GET", "https://api.one.example/v1/a", &[basic])),
        (
            R::PlaceholderWrongPlace,
            ask("GET", "https://api.one.example/v1/a?api_key=ONE_API_KEY", &[]),
        ),
        (
            R::PlaceholderWrongPlace,
            ask("GET", "https://api.one.example/v1/a", &[("cookie", "session=ONE_API_KEY")]),
        ),
        (R::PlaceholderWrongHost, ask("GET", "https://api.two.example/v1/a", &[ONE])),
        (
            R::PlaceholderWrongHost,
            ask("DELETE", "https://api.one.example/v2", &[("x-key", "TWO_API_KEY")]),
        ),
        (R::PlaceholderMissing, ask("GET", "https://api.two.example/", &[])),
        (R::UpgradeDenied, ask("GET", "wss://api.two.example/", &[TWO])),
    ]
}

/// Returns the text with all changes in it.
fn applied(text: &str, explanation: &Explanation) -> String {
    let edits = explanation.remedies.iter().flat_map(|remedy| &remedy.edits);
    edits.fold(text.to_owned(), |text, edit| config::edited(&text, edit).expect("it is there"))
}

#[test]
fn what_explain_prints_lets_the_same_request_pass() {
    for (reason, question) in refused() {
        let explanation = explain(source(CONFIG), &question).unwrap();
        let refused = explanation.verdict.refused.as_ref().expect("it is refused");
        assert_eq!(refused.reason, reason, "{question:?}");
        assert_eq!(explanation.ending, Ending::Passes, "{:?}\n{question:?}", explanation.remedies);
        let text = applied(CONFIG, &explanation);
        let policy = ChangedConfig::read(source(&text)).unwrap().config.policy;
        assert_eq!(judge(&policy, &question).refused, None, "{text}");
    }
}

#[test]
fn no_remedy_opens_more_than_one_host_method_or_path() {
    for (_, question) in refused() {
        for remedy in explain(source(CONFIG), &question).unwrap().remedies {
            for edit in remedy.edits {
                let text = edit.to_string();
                // The rules that were there stay.
                let text = text.replace("/v1/*", "").replace("/open/*", "");
                assert!(!text.contains('*'), "{text}");
            }
        }
    }
}

#[test]
fn what_policy_cannot_allow_has_a_sentence_and_no_change() {
    for question in [
        ask(CONFIG, "GET", "https://api.one.example/v1/a", &[("authorization", "Bearer sk-own")]),
        ask(CONFIG, "TRACE", "https://api.one.example/v1/a", &[ONE]),
        ask(CONFIG, "GET", "https://api.one.example/v1/..%2fa", &[ONE]),
        ask(CONFIG, "GET", "https://api.one.example/v1/a", &[ONE, ("x-api-key", "sk-own")]),
        ask(CONFIG, "GET", "https://api.one.example/v1/a", &[ONE, ("host", "evil.example")]),
        ask(CONFIG, "GET", "https://api.one.example/v1/a?_method=DELETE", &[ONE]),
        // An agent's own credential, without a placeholder beside it.
        ask(CONFIG, "GET", "https://api.two.example/", &[("x-sort-key", "name")]),
        ask(CONFIG, "GET", "https://api.two.example/", &[TWO, ("x-sort-key", "name")]),
        ask(CONFIG, "GET", "https://api.two.example/", &[("cookie", "a=b")]),
        // A host of an API over plain HTTP, and on a port that is not the API's.
        ask(CONFIG, "GET", "http://api.one.example/", &[]),
        ask(CONFIG, "GET", "https://api.one.example:8443/", &[]),
        // The name does not resolve to the dialled address.
        Question {
            to: "169.254.169.254:443".parse().unwrap(),
            later: Some(Reason::PrivateAddress),
            ..ask(CONFIG, "GET", "https://pypi.example/", &[])
        },
        Question {
            who: Who::Group(GroupName::parse("gone").unwrap()),
            ..ask(CONFIG, "GET", "https://pypi.example/", &[])
        },
    ] {
        let explanation = explain(source(CONFIG), &question).unwrap();
        assert!(explanation.verdict.refused.is_some(), "{question:?}");
        assert!(matches!(explanation.ending, Ending::Refused(text) if !text.is_empty()));
        assert_eq!(explanation.remedies, [], "{question:?}");
    }
}

fn filled(method: &str, url: &str) -> Question {
    Question { fills: true, ..ask(CONFIG, method, url, &[]) }
}

#[test]
fn a_request_is_judged_wherever_it_goes() {
    let refused = |url: &str| {
        let question = filled("POST", url);
        judge(&ChangedConfig::read(source(CONFIG)).unwrap().config.policy, &question).refused
    };
    assert_eq!(refused("https://docs.example/open/a").unwrap().reason, Reason::MethodDenied);
    assert_eq!(refused("https://api.one.example/v1/a").unwrap().reason, Reason::MethodDenied);
    assert_eq!(refused("https://api.two.example/v1/a"), None);
}

/// Returns the text that agents of the group hold for a placeholder, in the shape of its keys.
fn shaped(placeholder: &str) -> (String, String) {
    let shape = "sk-[a-z0-9]{32}";
    let own = format!("placeholder = \"{placeholder}\"\n");
    let text = CONFIG.replace(&own, &format!("{own}shape = \"{shape}\"\n"));
    let placeholder = Placeholder::parse(placeholder).unwrap();
    let group = GroupName::parse("research").unwrap();
    (text, KeyShape::parse(shape).unwrap().made_up(&group, &placeholder).to_string())
}

#[test]
fn a_shaped_placeholder_gone_astray_gets_the_same_remedies() {
    let (config, key) = shaped("TWO_API_KEY");
    for (reason, host, field, value) in [
        (Reason::PlaceholderWrongPlace, "two", "x-api-key", key.clone()),
        (Reason::PlaceholderWrongPlace, "two", "authorization", format!("token {key}")),
        (Reason::PlaceholderWrongHost, "one", "authorization", format!("Bearer {key}")),
    ] {
        let url = format!("https://api.{host}.example/v1/a");
        let question = ask(&config, "GET", &url, &[(field, &value)]);
        let explanation = explain(source(&config), &question).unwrap();
        assert_eq!(explanation.verdict.refused.as_ref().unwrap().reason, reason);
        assert_eq!(explanation.ending, Ending::Passes, "{field}: {:?}", explanation.remedies);
        let text = applied(&config, &explanation);
        assert!(!text.contains(&key), "{text}");
        let policy = ChangedConfig::read(source(&text)).unwrap().config.policy;
        assert_eq!(judge(&policy, &question).refused, None, "{text}");
    }
}

#[test]
fn a_path_remedy_names_the_placeholder_whichever_text_it_had() {
    let (config, key) = shaped("ONE_API_KEY");
    let places = "places = [\"header authorization bearer\"]\nsecret = \"file:one\"";
    let in_path = places.replace("header authorization bearer", "path /bot{}/");
    let paths = "paths = [\"/v1/*\", \"/botONE_API_KEY/send\"]";
    let config = config.replace(places, &in_path).replace("paths = [\"/v1/*\"]", paths);
    for sent in [key.as_str(), "ONE_API_KEY"] {
        let url = format!("https://api.one.example/bot{sent}/read");
        let question = ask(&config, "GET", &url, &[]);
        let explanation = explain(source(&config), &question).unwrap();
        assert_eq!(explanation.verdict.refused.as_ref().unwrap().reason, Reason::PathDenied);
        assert_eq!(explanation.ending, Ending::Passes, "{sent}: {:?}", explanation.remedies);
        let shown = format!("{:?}", explanation.remedies);
        assert!(!shown.contains(&key), "{shown}");
        let text = applied(&config, &explanation);
        assert!(text.contains("\"/botONE_API_KEY/read\""), "{text}");
        let policy = ChangedConfig::read(source(&text)).unwrap().config.policy;
        assert_eq!(judge(&policy, &question).refused, None, "{text}");
    }
}

#[test]
fn a_placeholder_in_the_clear_is_refused_here_too() {
    let text = CONFIG.to_owned()
        + "\n[[splice]]\nname = \"clear\"\ngroups = [\"research\"]\nhosts = [\"clear.example\"]\n\
           ports = [80]\n";
    let policy = ChangedConfig::read(source(&text)).unwrap().config.policy;
    let reason = |fields: &[_]| {
        let refused = judge(&policy, &ask(&text, "GET", "http://clear.example/", fields)).refused;
        refused.map(|refused| refused.reason)
    };
    assert_eq!(reason(&[]), None);
    assert_eq!(reason(&[ONE]), Some(Reason::PlaintextPlaceholder));
    let (shaped, key) = shaped("ONE_API_KEY");
    let text = shaped + &text[CONFIG.len()..];
    let policy = ChangedConfig::read(source(&text)).unwrap().config.policy;
    let fields = [("authorization", &*format!("Bearer {key}"))];
    let refused = judge(&policy, &ask(&text, "GET", "http://clear.example/", &fields)).refused;
    assert_eq!(refused.unwrap().reason, Reason::PlaintextPlaceholder);
}

#[test]
fn a_change_names_every_group_it_is_for() {
    let text = CONFIG.replace("groups = [\"research\"]", "groups = [\"research\", \"others\"]");
    let question = ask(&text, "POST", "https://docs.example/open/a", &[]);
    let explanation = explain(source(&text), &question).unwrap();
    assert!(explanation.remedies[0].opens.ends_with(", for others, research"));
}

#[test]
fn a_group_gets_no_placeholder_it_did_not_ask_for() {
    let more = "places = [\"header x-api-key raw\"]\nsecret = \"file:theirs\"\n\n\
        [[api.binding]]\ngroups = [\"others\"]\nplaceholder = \"ADMIN_API_KEY\"\n\
        places = [\"header x-admin-key raw\"]\nsecret = \"file:admin\"\n";
    let first = "places = [\"header x-api-key raw\"]\nsecret = \"file:theirs\"\n";
    let text = CONFIG.replacen(first, more, 1);
    let asked = |fields: &[_]| {
        let question = ask(&text, "GET", "https://api.theirs.example/", fields);
        explain(source(&text), &question).unwrap().remedies
    };
    assert_eq!(asked(&[]), []);
    assert!(asked(&[("x-admin-key", "ADMIN_API_KEY")])[0].opens.contains("file:admin"));
}

/// Only the draft has the API and its placeholder.
#[test]
fn a_new_provider_is_asked_with_its_placeholder() {
    let question = filled("POST", "https://api.openai.com/v1/responses");
    let explanation = explain(source(CONFIG), &question).unwrap();
    assert_eq!((explanation.ending, explanation.remedies.len()), (Ending::Passes, 1));
}

/// Where the configuration lists the captured ports, a new port is added to them.
#[test]
fn a_new_port_is_added_to_those_that_are_captured() {
    let text = CONFIG.replacen("[gateway]", "[gateway]\nports = [22, 80, 443]", 1);
    let question = ask(&text, "GET", "https://pypi.example:8443/", &[]);
    let explanation = explain(source(&text), &question).unwrap();
    assert_eq!(explanation.ending, Ending::Passes);
    let policy = ChangedConfig::read(source(&applied(&text, &explanation))).unwrap().config.policy;
    assert_eq!(policy.ports, [22, 80, 443, 8443]);
}

fn records(lines: &[Value]) -> Vec<Refusals> {
    let policy = ChangedConfig::read(source(CONFIG)).unwrap().config.policy;
    let lines = lines.iter().filter_map(|line| AuditLine::of(line.clone()));
    let recorded = lines.filter_map(|line| recorded(&line, &policy));
    recorded.map(|recorded| Refusals { recorded, count: 1 }).collect()
}

fn connection(name: &str, reason: &str) -> Value {
    json!({
        "record": "connection", "flow": "a1", "interface": "agents0", "group": "research",
        "agent": "192.0.2.10:4711", "dialled": "203.0.113.7:443", "sni": name,
        "alpn": ["h2", "http/1.1"], "decision": "refuse", "reason": reason
    })
}

fn asked(rule: &str, host: &str, path: &str, reason: &str, more: Value) -> Value {
    let mut record = json!({
        "record": "request", "flow": "a1", "group": "research", "agent": "192.0.2.10:4711",
        "decision": "refuse", "rule": rule, "method": "GET", "host": host, "path": path,
        "reason": reason
    });
    record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    record
}

/// Each refusal that policy may allow, in the audit's form.
#[test]
fn what_the_audit_holds_is_enough_to_find_the_remedy() {
    let none = json!({});
    let at = |place: &str, placeholder: &str| json!({"credential": place, "placeholders": [placeholder]});
    for line in [
        connection("new.example", "sni_denied"),
        connection("pypi.example", "dialled_elsewhere"),
        json!({
            "record": "connection", "interface": "agents0", "agent": "192.0.2.99:4711",
            "dialled": "203.0.113.7:443", "sni": "pypi.example", "decision": "refuse",
            "reason": "no_group"
        }),
        json!({
            "record": "connection", "interface": "agents0", "group": "research",
            "agent": "192.0.2.10:4711", "dialled": "203.0.113.7:22", "answered": ["git.example"],
            "decision": "refuse", "reason": "port_denied"
        }),
        json!({
            "record": "dns", "interface": "agents0", "group": "research",
            "agent": "192.0.2.10:4711", "name": "new.example.", "type": "A",
            "decision": "refuse", "reason": "dns_denied"
        }),
        asked("one", "api.one.example", "/v2", "path_denied", none.clone()),
        asked("one", "api.one.example", "/v1/a", "placeholder_missing", none.clone()),
        asked(
            "one",
            "api.one.example",
            "/v1/a",
            "placeholder_wrong_place",
            at("header x-api-key", "ONE_API_KEY"),
        ),
        asked(
            "one",
            "api.one.example",
            "/v1/a",
            "placeholder_wrong_place",
            at("query key", "ONE_API_KEY"),
        ),
        asked(
            "one",
            "api.one.example",
            "/v1/a",
            "placeholder_wrong_host",
            at("header authorization", "TWO_API_KEY"),
        ),
        asked("two", "api.two.example", "/", "upgrade_denied", none.clone()),
        asked("read-only", "docs.example", "/closed", "path_denied", none),
    ] {
        let found = records(std::slice::from_ref(&line));
        let [Refusals { recorded, .. }] = found.as_slice() else { panic!("{line}") };
        let explanation = explain(source(CONFIG), &recorded.question).unwrap();
        let refused = explanation.verdict.refused.as_ref().unwrap_or_else(|| panic!("{line}"));
        assert_eq!(refused.reason, recorded.reason, "{line}");
        assert_eq!(explanation.ending, Ending::Passes, "{line}\n{:?}", explanation.remedies);
    }
}

#[test]
fn a_refusal_of_an_older_policy_passes_by_this_one() {
    let found = records(&[connection("pypi.example", "sni_denied")]);
    let explanation = explain(source(CONFIG), &found[0].recorded.question).unwrap();
    assert_eq!(explanation.verdict.refused, None);
    assert_eq!(explanation.ending, Ending::Passes);
}

#[test]
fn suggestions_are_one_part_for_each_host_the_least_first() {
    let lines = [
        connection("b.example", "sni_denied"),
        connection("a.example", "sni_denied"),
        asked("one", "api.one.example", "/v2", "path_denied", json!({})),
        asked("one", "api.one.example", "/v3", "path_denied", json!({})),
        asked("one", "api.one.example", "/v3", "trailer_denied", json!({})),
        connection("a.example", "sni_denied"),
    ];
    let suggestions = suggest(source(CONFIG), &records(&lines)).unwrap();
    let hosts: Vec<_> = suggestions.iter().map(|it| (it.host.as_str(), it.count)).collect();
    assert_eq!(hosts, [("api.one.example", 2), ("a.example", 2), ("b.example", 1)]);
    let edits = suggestions.iter().flat_map(|it| &it.remedies).flat_map(|it| &it.edits);
    let text =
        edits.clone().fold(CONFIG.to_owned(), |text, edit| config::edited(&text, edit).unwrap());
    let policy = ChangedConfig::read(source(&text)).unwrap().config.policy;
    let passes = records(&lines)
        .iter()
        .filter(|it| judge(&policy, &it.recorded.question).refused.is_none())
        .count();
    assert_eq!(passes, 5, "all but the one that policy does not decide");
    let paths: Vec<_> = edits.filter(|edit| matches!(edit, Edit::Set { .. })).collect();
    assert_eq!(paths.len(), 1, "{paths:?}");
    assert!(paths[0].to_string().ends_with("paths = [\"/v1/*\", \"/v2\", \"/v3\"]\n"));
    assert_eq!(suggestions[0].others.len(), 1);
}

fn looked_up(name: &str, kind: &str) -> Value {
    json!({
        "record": "dns", "interface": "agents0", "group": "research", "agent": "192.0.2.10:4711",
        "name": name, "type": kind, "decision": "refuse", "reason": "dns_denied"
    })
}

/// Returns the rules that are suggested, and whether the first of them is a guess.
fn suggested(text: &str, lines: &[Value]) -> (Vec<String>, Option<bool>) {
    let suggestions = suggest(source(text), &records(lines)).unwrap();
    assert!(suggestions.iter().all(|it| it.others.is_empty()));
    let edits = suggestions.iter().flat_map(|it| &it.remedies).flat_map(|it| &it.edits);
    let guessed = suggestions.first().map(|it| it.guessed);
    (edits.map(ToString::to_string).collect(), guessed)
}

#[test]
fn a_service_that_was_looked_up_decides_the_port() {
    let address = [looked_up("new.example.", "A"), looked_up("new.example.", "AAAA")];
    let (rules, guessed) = suggested(CONFIG, &address);
    assert!(rules.len() == 1 && !rules[0].contains("ports"), "{rules:?}");
    assert_eq!(guessed, Some(true));
    for (service, port) in [("_http._tcp", "ports = [80]\n"), ("_HTTPS._tcp", "hosts")] {
        let service = [looked_up(&format!("{service}.new.example."), "SRV")];
        for lines in [[&address[..], &service].concat(), [&service[..], &address[..]].concat()] {
            let (rules, guessed) = suggested(CONFIG, &lines);
            assert!(rules.len() == 1 && rules[0].contains(port), "{rules:?}");
            assert_eq!(guessed, Some(false));
            let suggestions = suggest(source(CONFIG), &records(&lines)).unwrap();
            assert_eq!(suggestions[0].count, 3);
        }
    }
    for kind in ["_ldap._tcp.new.example.", "_http._udp.new.example.", "_http.new.example."] {
        assert_eq!(suggested(CONFIG, &[looked_up(kind, "SRV")]), (vec![], None), "{kind}");
    }
}

#[test]
fn an_agents_own_name_gets_no_rule() {
    let suggestions = suggest(source(CONFIG), &records(&[looked_up("vm.", "A")])).unwrap();
    let [own] = &suggestions[..] else { panic!("one host") };
    assert_eq!((own.remedies.len(), own.others.len()), (0, 1));
}

#[test]
fn a_connection_leaves_nothing_to_guess_about_its_name() {
    let plain = json!({
        "record": "connection", "group": "research", "agent": "192.0.2.10:4711",
        "dialled": "203.0.113.7:80", "host": "new.example", "decision": "refuse",
        "reason": "destination_denied"
    });
    let (rules, guessed) = suggested(CONFIG, &[looked_up("new.example.", "A"), plain]);
    assert!(rules.len() == 1 && rules[0].contains("ports = [80]\n"), "{rules:?}");
    assert_eq!(guessed, Some(false));
}

#[test]
fn a_look_up_that_a_rule_answers_is_over() {
    let text = CONFIG.to_owned()
        + "\n[[splice]]\nname = \"clear\"\ngroups = [\"research\"]\nhosts = [\"new.example\"]\n\
           ports = [80]\n";
    let lines = ["A", "AAAA"].map(|kind| looked_up("new.example.", kind));
    let service = looked_up("_https._tcp.new.example.", "SRV");
    assert_eq!(suggested(&text, &[&lines[..], &[service]].concat()), (vec![], None));
}

#[test]
fn a_path_the_audit_cut_gets_no_rule() {
    let path = format!("/{}\u{2026}", "a".repeat(500));
    let found = records(&[asked("one", "api.one.example", &path, "path_denied", json!({}))]);
    let explanation = explain(source(CONFIG), &found[0].recorded.question).unwrap();
    assert_eq!(explanation.remedies, []);
    assert!(matches!(explanation.ending, Ending::Refused(text) if text.contains("beginning")));
}

#[test]
fn a_rule_is_suggested_no_flood_of_paths() {
    let lines: Vec<Value> = (0..60)
        .map(|it| asked("one", "api.one.example", &format!("/p{it}"), "path_denied", json!({})))
        .collect();
    let suggestions = suggest(source(CONFIG), &records(&lines)).unwrap();
    assert_eq!((suggestions[0].count, suggestions[0].more), (50, 10));
}

#[test]
fn a_rule_is_suggested_no_flood_of_methods() {
    let methods: Vec<Value> = (0..60)
        .map(|it| {
            let method = json!({ "method": format!("M{it}") });
            asked("one", "api.one.example", "/v1/a", "method_denied", method)
        })
        .collect();
    let suggestions = suggest(source(CONFIG), &records(&methods)).unwrap();
    assert_eq!((suggestions[0].count, suggestions[0].more), (50, 10));
}

#[test]
fn what_the_audit_cut_is_told_and_gets_no_rule() {
    let cut = |key: &str, text: &str| json!({ key: format!("{text}\u{2026}") });
    for (reason, more) in [
        ("method_denied", cut("method", "MMMM")),
        ("placeholder_wrong_place", cut("credential", "header x-long-key")),
        ("foreign_credential", cut("credential", "query token")),
    ] {
        let found = records(&[asked("one", "api.one.example", "/v1/a", reason, more)]);
        let recorded = &found[0].recorded;
        let explanation = explain(source(CONFIG), &recorded.question).unwrap();
        assert_eq!(explanation.remedies, [], "{reason}");
        assert_eq!(recorded.asked.starts_with("MMMM\u{2026}"), reason == "method_denied");
    }
}

#[test]
fn a_value_that_two_hosts_ask_for_says_so() {
    let second = "hosts = [\"api.one.example\", \"b.one.example\"]";
    let text = CONFIG.replacen("hosts = [\"api.one.example\"]", second, 1);
    let lines = [
        asked("one", "api.one.example", "/v2", "path_denied", json!({})),
        asked("one", "b.one.example", "/v3", "path_denied", json!({})),
    ];
    let suggestions = suggest(source(&text), &records(&lines)).unwrap();
    let shared: Vec<_> = suggestions.iter().map(|it| it.shared.len()).collect();
    assert_eq!(shared.iter().sum::<usize>(), 1, "in the part where the value stands");
}

#[test]
fn a_name_the_groups_client_does_without_gets_no_rule() {
    let text = CONFIG.replacen("[[group]]\n", "[[group]]\nclient = [\"aider\"]\n", 1);
    let lines = [connection("pypi.org", "sni_denied")];
    let suggested = |text| suggest(source(text), &records(&lines)).unwrap();
    assert_eq!(suggested(CONFIG)[0].remedies.len(), 1, "it is asked for by who knows what");
    let [of_aider] = &suggested(&text)[..] else { panic!("one host") };
    assert_eq!((of_aider.remedies.len(), of_aider.others.len()), (0, 1));
}
