//! Rules of the file beside one another: names, groups, hosts and placeholders.

use std::sync::Arc;

use super::{GOOD, accepts, changed, mistakes, parse_text, refuses};
use crate::{
    catalogue,
    config::{SecretFile, explain},
    policy::{Anonymous, AnonymousRequest, Host, Pass},
};

#[test]
fn a_name_is_given_once() {
    let group = "[[group]]\nname = \"research\"\ninterface = \"agents1\"\nprefixes = [\"192.0.2.32/28\"]\n[[api]]";
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
    let words = &["overlaps", "line 11", "agents0", "the way back"];
    refuses("[[api]]", &other("agents1", "192.0.2.8/29"), "192.0.2.8/29", words);
    refuses("[[api]]", &other("agents1", "192.0.2.0/27"), "192.0.2.0/27", words);
    accepts("[[api]]", &other("agents1", "192.0.2.16/28"));
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
fn a_pass_rule_that_lists_an_apis_name_is_refused() {
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
fn an_inspected_spliced_name_is_explained_as_an_exception() {
    let both = |spliced: &str, inspected: &str, more: &str| {
        let rule = format!(
            "hosts = [\"{spliced}\"]\n[[inspect]]\nname = \"docs\"\ngroups = [\"research\"]\n\
             hosts = [\"{inspected}\"]\n{more}"
        );
        explain(&accepts("hosts = [\"pypi.org\", \"*.pythonhosted.org\"]\n", &rule))
    };
    for (spliced, inspected, common) in [
        ("a.example.com", "*.example.com", "a.example.com"),
        ("*.example.com", "a.example.com", "a.example.com"),
        ("*.example.com", "*.a.example.com", "*.a.example.com"),
        ("*.a.example.com", "*.example.com", "*.a.example.com"),
    ] {
        let except = format!("except      {common}, which [[inspect]] docs looks into");
        let text = both(spliced, inspected, "");
        assert_eq!(text.matches("[[inspect]] docs").count(), 1, "{text}");
        assert!(text.contains(&except), "{text}");
        let elsewhere = both(spliced, inspected, "ports = [8443]\n");
        assert!(!elsewhere.contains("[[inspect]] docs"), "{elsewhere}");
    }
    for (spliced, inspected) in
        [("example.com", "*.example.com"), ("*.example.com", "example.com"), ("a.net", "b.net")]
    {
        let text = both(spliced, inspected, "");
        assert!(!text.contains("[[inspect]] docs"), "{text}");
    }
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
    let words = "places = [\"header authorization scheme Basic\"]";
    refuses(places, words, "places", &["basic password"]);
    let words = "places = [\"header authorization scheme a:b\"]";
    refuses(places, words, "places", &["a word of"]);
    refuses(places, "places = [\"header host raw\"]", "host", &["no credential stands there"]);
    refuses(
        places,
        "places = [\"header authorization\"]",
        "places",
        &["scheme WORD or raw, in small letters"],
    );
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
fn places_that_refuse_each_other_are_a_mistake() {
    let usual = "[\"header authorization bearer\"]";
    for (places, why) in [
        ("[\"path /a{}\", \"path /a{}/\"]", "in the same paths"),
        ("[\"path /v1/{}/\", \"path /{}/\"]", "in the same paths"),
        ("[\"path /bot{}/\", \"path /Bot{}/x\"]", "in the same paths"),
        ("[\"json /a in POST /v1/a\", \"json /a/b in POST /v1/a\"]", "one is in the other"),
    ] {
        let text = changed(&[(usual, places), ("paths = [\"/v1/*\"]\n", "\n")]);
        let found = mistakes(&text);
        assert_eq!(found.len(), 1, "{places}: {found:?}");
        assert!(found[0].text.contains(why) && found[0].text.contains("line 19"), "{found:?}");
    }
    for places in [
        "[\"path /bot{}/\", \"path /file/bot{}/\"]",
        "[\"json /a in POST /v1/a\", \"json /b in POST /v1/a\", \"form a in POST /v1/a\"]",
        "[\"json /a in POST /v1/a\", \"json /a/b in POST /v1/b\"]",
        "[\"cookie session\", \"query key\", \"header authorization bearer\"]",
    ] {
        let found = mistakes(&changed(&[(usual, places), ("paths = [\"/v1/*\"]\n", "\n")]));
        assert!(found.is_empty(), "{places}: {found:?}");
    }
}

#[test]
fn a_body_place_is_of_a_request_the_api_allows() {
    let usual = "[\"header authorization bearer\"]";
    refuses(usual, "[\"json /a in POST /login\"]", "places", &["does not allow", "/login"]);
    refuses(usual, "[\"form a in PATCH /v1/*\"]", "places", &["one path"]);
    refuses(usual, "[\"form a in GET /v1/a\"]", "places", &["POST, PUT or PATCH"]);
    refuses(usual, "[\"form a\"]", "places", &["of one request"]);
    let get = "paths = [\"/v1/*\"]\nmethods = [\"GET\"]";
    let text = changed(&[("paths = [\"/v1/*\"]", get), (usual, "[\"form a in POST /v1/a\"]")]);
    assert!(mistakes(&text)[0].text.contains("add POST"), "{:?}", mistakes(&text));
    let page = explain(&accepts(usual, "[\"form client_id in POST /v1/token\", \"cookie sid\"]"));
    for words in [
        "form client_id of the body of POST /v1/token",
        "the cookie sid=OPENAI_API_KEY",
        "stands in the body as form client_id in POST /v1/token\n",
        "stands in the query under clientid\n",
    ] {
        assert!(page.contains(words), "{words}\n{page}");
    }
}

#[test]
fn what_counts_as_a_credential_is_explained() {
    let page = explain(&accepts("", ""));
    for word in ["that end in token, key, secret", "x-jfrog-art-api", "pagetoken", "keep_cookies"] {
        assert!(page.contains(word), "{word}\n{page}");
    }
    let places = "places = [\"header authorization bearer\"]";
    let own = "places = [\"header x-place raw\", \"header x-api-key raw\"]";
    let page = explain(&accepts(places, own));
    assert!(page.contains("is also what stands in x-place\n"), "{page}");
    assert!(page.contains("is also what stands in the query under xplace\n"), "{page}");
    let own = "places = [\"header x-functions-key raw\"]";
    let page = explain(&accepts(places, own));
    assert!(page.contains("is also what stands in the query under code\n"), "{page}");
    let plain = "plain = [\"query code\"]\n[[api.binding]]";
    let with_plain = changed(&[("[[api.binding]]", plain), (places, own)]);
    assert!(parse_text(&with_plain).is_ok());
    refuses("[[api.binding]]", plain, "query", &["no credential anyway"]);
    let plain =
        "plain = [\"header X-Sort-Key\", \"query key\"]\nkeep_cookies = true\n[[api.binding]]";
    let page = explain(&accepts("[[api.binding]]", plain));
    for word in ["is header x-sort-key", "is query key", "both ways", "passes query key on"] {
        assert!(page.contains(word), "{word}\n{page}");
    }
    for (plain, at, why) in [
        ("header authorization", "header", "always a credential"),
        ("header x-note", "header", "no credential anyway"),
        ("query page_token", "query", "no credential anyway"),
        ("query ", "query", "no credential anyway"),
        ("header cookie", "header", "keep_cookies"),
        ("x-sort-key", "x-sort-key", "write \"header NAME\""),
    ] {
        let plain = format!("plain = [\"{plain}\"]\n[[api.binding]]");
        refuses("[[api.binding]]", &plain, at, &[why]);
    }
    let both = "plain = [\"header x_api.key\"]\n[[api.binding]]";
    let text =
        changed(&[("[[api.binding]]", both), (places, "places = [\"header x-api-key raw\"]")]);
    assert!(
        mistakes(&text)[0].text.contains("a placeholder stands there"),
        "{:?}",
        mistakes(&text)
    );
}

#[test]
fn requests_without_a_credential_are_all_none_or_listed() {
    let with = |value: &str| format!("anonymous = {value}\n[[api.binding]]");
    let page = explain(&accepts("[[api.binding]]", &with("[\"GET /api/hello\", \"HEAD /p/*\"]")));
    assert!(page.contains("except for GET /api/hello, HEAD /p/*"), "{page}");
    assert!(!page.contains("(anonymous)"), "{page}");
    let page = explain(&accepts("[[api.binding]]", &with("true")));
    assert!(page.contains("(anonymous)"), "{page}");
    for (value, why) in [
        ("[]", "such as"),
        ("\"GET /api/hello\"", "such as"),
        ("[\"/api/hello\"]", "a method and a path"),
        ("[\"TRACE /\"]", "a method that may be used"),
        ("[\"GET /a/../b\"]", "no dot segments"),
        ("[1]", "not a text"),
    ] {
        refuses("[[api.binding]]", &with(value), "anonymous", &[why]);
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
    let plain = SecretFile { path: "/etc/cloakroom/secrets".into(), key: None };
    assert_eq!(file.settings.secret_file, Some(plain));
    let file = accepts("[vault]", "[secrets]\nfile = \"secrets\"\nkey_file = \"/k\"\n[vault]");
    assert_eq!(file.settings.secret_file.unwrap().key, Some("/k".into()));
    let both = "[secrets]\nfile = \"secrets\"\nkey_file = \"./secrets\"\n[vault]";
    refuses("[vault]", both, "key_file", &["a file of its own"]);
}

#[test]
fn a_path_with_the_apis_data_segment_is_warned_about() {
    let config = accepts("vault:kv/agents", "vault:kv/data/agents");
    assert!(explain(&config).contains("write \"vault:kv/agents/openai#api_key\""));
}

#[test]
fn an_unusual_method_deserves_a_second_look() {
    let paths = "paths = [\"/v1/*\"]";
    let with = |methods: &str| format!("{paths}\nmethods = [{methods}]");
    refuses(paths, &with("\"*\""), "methods", &["\"*\" is no method", "leave methods out"]);
    let config = accepts(paths, &with("\"GET\", \"GETT\", \"PROPFIND\""));
    let text = explain(&config);
    for method in ["GETT", "PROPFIND"] {
        assert!(text.contains(&format!("! API openai allows {method}, which is none")), "{text}");
    }
    assert!(!text.contains("allows GET,"), "{text}");
    let hosts = "hosts = [\"pypi.org\", \"*.pythonhosted.org\"]\n";
    let inspect = changed(&[
        ("[[splice]]", "[[inspect]]"),
        (hosts, &format!("{hosts}methods = [\"GETT\"]\nconstraints = \"noted\"\n")),
    ]);
    let text = explain(&parse_text(&inspect).unwrap());
    assert!(text.contains("! rule pypi allows GETT") && text.contains("(constraints)"), "{text}");
}

#[test]
fn a_path_that_no_request_has_is_a_mistake() {
    for path in ["/v1/x?y=1", "/v1/x#a", "/v1/a b", "/v1/\u{e9}"] {
        refuses("\"/v1/*\"", &format!("\"{path}\""), "paths", &["no query, fragment or space"]);
    }
}

#[test]
fn a_place_in_the_path_needs_an_allowed_path() {
    let usual = "[\"header authorization bearer\"]";
    let with = |place: &str, paths: &str| {
        changed(&[
            (usual, &format!("[\"path {place}\"]")),
            ("paths = [\"/v1/*\"]\n", &format!("{paths}\n")),
        ])
    };
    for (place, paths, meant) in [
        ("/bot{}/", "paths = [\"/v1/*\"]", "\"/botOPENAI_API_KEY/*\""),
        ("/a/{}", "paths = [\"/a/b/*\", \"/a/openai\"]", "\"/a/OPENAI_API_KEY\""),
        ("/a/{}", "paths = [\"/a/OPENAI_API_KEY/x\"]", "\"/a/OPENAI_API_KEY\""),
        ("/bot{}/", "paths = [\"//bot/*\"]", "\"/botOPENAI_API_KEY/*\""),
    ] {
        let found = mistakes(&with(place, paths));
        let text = format!("is of a request that the API does not allow; add {meant} to its paths");
        assert!(found.len() == 1 && found[0].text.contains(&text), "{found:?}");
    }
    for (place, paths) in [
        ("/bot{}/", ""),
        ("/bot{}/", "paths = [\"/*\"]"),
        ("/bot{}/", "paths = [\"/v1/*\", \"/botOPENAI_API_KEY/getMe\"]"),
        ("/bot{}/", "paths = [\"/botOPENAI_API_KEY/files/*\"]"),
        ("/a/{}", "paths = [\"/a/OPENAI_API_KEY\"]"),
        ("/a/{}", "paths = [\"/a/*\"]"),
        ("/a/{}/b", "paths = [\"/a/OPENAI_API_KEY/b\"]"),
    ] {
        let found = mistakes(&with(place, paths));
        assert!(found.is_empty(), "{place} {paths}: {found:?}");
    }
}

#[test]
fn a_resolver_is_none_of_the_agents() {
    refuses(
        "resolvers = [\"192.0.2.53\"]",
        "resolvers = [\"192.0.2.53\", \"192.0.2.1\"]",
        "resolvers",
        &["192.0.2.1 is an agents' address, in \"192.0.2.0/28\""],
    );
    let over_tls = "resolvers = [\"tls://dns.example@[2001:db8:1::53]\"]";
    refuses("resolvers = [\"192.0.2.53\"]", over_tls, "resolvers", &["2001:db8:1::/64"]);
}

#[test]
fn a_basic_password_without_user_deserves_a_second_look() {
    let usual = "places = [\"header authorization bearer\"]";
    let alone = explain(&accepts(usual, "places = [\"basic password\"]"));
    assert!(alone.contains("OPENAI_API_KEY as a password of Basic with no user"), "{alone}");
    let beside = "places = [\"basic password\"]\nbasic_user = \"x-access-token\"";
    for fine in [beside, "places = [\"basic user\"]", usual] {
        let text = explain(&accepts(usual, fine));
        assert!(!text.contains("with no user beside it, and"), "{text}");
    }
}

#[test]
fn a_card_and_an_address_are_one_agents() {
    let agents = |agents: &str| format!("{agents}\n[[api]]");
    let agent = |mac: &str, address: &str| {
        format!("[[group.agent]]\nmac = \"{mac}\"\naddresses = [\"{address}\"]\n")
    };
    let one = agent("02:00:00:00:00:01", "192.0.2.5");
    accepts("[[api]]", &agents(&(one.clone() + &agent("02:00:00:00:00:02", "192.0.2.6"))));
    let twice = one.clone() + &agent("02:00:00:00:00:01", "192.0.2.6");
    refuses("[[api]]", &agents(&twice), "02:00:00:00:00:01", &["mac:", "already in line"]);
    let same = one + &agent("02:00:00:00:00:02", "192.0.2.5");
    refuses("[[api]]", &agents(&same), "192.0.2.5", &["already in line"]);
    let many: Vec<String> = (0..513).map(|n| format!("\"2001:db8:2::{n:x}\"")).collect();
    let many = format!(
        "prefixes = [\"2001:db8:2::/64\"]\n[[group.agent]]\nmac = \"02:00:00:00:00:01\"\n\
         addresses = [{}]\n[[group]]\nname = \"more\"\ninterface = \"agents1\"\nprefixes = ",
        many.join(", ")
    );
    refuses("prefixes = ", &many, "2001:db8:2::200", &["more than 512"]);
    for (mac, address, at, why) in [
        ("02:00:00:00:00:01", "192.0.2.99", "192.0.2.99", "none of the group's prefixes"),
        ("02:00:00:00:00:01", "192.0.2.0/28", "addresses", "without a length"),
        ("01:00:00:00:00:01", "192.0.2.5", "01:00:00", "one Ethernet card"),
    ] {
        refuses("[[api]]", &agents(&agent(mac, address)), at, &[why]);
    }
}

#[test]
fn bound_agents_are_explained() {
    let bound =
        "[[group.agent]]\nmac = \"02:00:00:00:00:01\"\naddresses = [\"192.0.2.5\"]\n[[api]]";
    let config = accepts("[[api]]", bound);
    let page = explain(&config);
    assert!(page.contains("02:00:00:00:00:01 to 192.0.2.5"), "{page}");
    assert!(!page.contains("is one tenant"), "{page}");
    let group = &config.policy.groups[0];
    assert!(
        group.holds("192.0.2.5".parse().unwrap()) && !group.holds("192.0.2.6".parse().unwrap())
    );
}

#[test]
fn the_gateways_services_are_named_or_off() {
    accepts("[gateway]", "[gateway]\nagent_services = []");
    let config = accepts("[gateway]", "[gateway]\nagent_services = [\"ping\"]");
    let services = config.settings.agent_services;
    assert!(services.ping && !services.ntp && !services.dhcp);
    let wrong = "[gateway]\nagent_services = [\"ssh\"]";
    refuses("[gateway]", wrong, "\"ssh\"", &["is none of"]);
}

#[test]
fn a_place_in_a_handshake_needs_one_that_is_allowed() {
    let place = "websocket subprotocol openai-insecure-api-key.";
    let places = format!("places = [\"{place}\"]");
    let old = "places = [\"header authorization bearer\"]";
    refuses(old, &places, place, &["handshake of a WebSocket", "websocket = true"]);
    let allowed = |more: &str| {
        changed(&[(old, &places), ("[[api.binding]]", &format!("{more}\n[[api.binding]]"))])
    };
    let config = parse_text(&allowed("websocket = true")).expect("it loads");
    assert!(config.policy.apis[0].websocket);
    let said = explain(&config);
    for text in ["WebSocket", "among a WebSocket's subprotocols", "openai-insecure-api-key."] {
        assert!(said.contains(text), "{said}");
    }
    assert_eq!(mistakes(&allowed("websocket = false")).len(), 1);
}

#[test]
fn a_handshake_is_a_get() {
    let post = "websocket = true\nmethods = [\"POST\"]\n[[api.binding]]";
    let get = "websocket = true\nmethods = [\"GET\"]\n[[api.binding]]";
    refuses("[[api.binding]]", post, "websocket = true", &["GET", "methods"]);
    accepts("[[api.binding]]", get);
}

/// Returns the good file with this instead of its API.
fn with_api(api: &str) -> String {
    let (before, rest) = GOOD.split_once("[[api]]").unwrap();
    let (_, after) = rest.split_once("[[splice]]").unwrap();
    format!("{before}{api}\n[[splice]]{after}")
}

const BY_NAME: &str = "[[api]]\nprovider = \"github-git\"\n[[api.binding]]\ngroups = [\"research\"]\n\
    secret = \"vault:kv/git#token\"\n";

#[test]
fn a_provider_stands_for_the_lines_printed_for_it() {
    for provider in catalogue::providers() {
        let hosts = r#"hosts = ["api.example.com"]"#;
        let written = provider.as_toml().replace(r#"hosts = ["..."]"#, hosts);
        let written = written.replace(r#"groups = ["..."]"#, r#"groups = ["research"]"#);
        let written = written.replace("vault:MOUNT/PATH#FIELD", "vault:kv/git#token");
        let mut by_name = BY_NAME.replace("github-git", provider.name);
        if written.contains(hosts) {
            by_name = by_name.replace("[[api.binding]]", &format!("{hosts}\n[[api.binding]]"));
        }
        let written = parse_text(&with_api(&written)).map_err(|errors| errors.to_string());
        let by_name = parse_text(&with_api(&by_name)).map_err(|errors| errors.to_string());
        assert_eq!(by_name, written, "{}", provider.name);
        assert!(by_name.is_ok(), "{by_name:?}");
    }
}

#[test]
fn what_stands_beside_a_provider_counts_instead_of_its_own() {
    let narrowed = BY_NAME.replace(
        "[[api.binding]]",
        "name = \"mine\"\npaths = [\"/lab/*\"]\n[[api.binding]]\nplaces = [\"header x-key raw\"]",
    );
    let config = parse_text(&with_api(&narrowed)).unwrap();
    let [api] = &*config.policy.apis else { panic!("{:?}", config.policy.apis) };
    assert_eq!(api.name.as_str(), "mine");
    assert_eq!(api.paths.len(), 1);
    assert_eq!(api.hosts, [Host::parse("github.com").unwrap()]);
    assert_eq!(api.bindings[0].placeholder.as_str(), "GITHUB_TOKEN");
    assert_eq!(api.bindings[0].places.len(), 1);
}

#[test]
fn a_shape_stands_only_where_its_texts_can() {
    let telegram = BY_NAME.replace("github-git", "telegram");
    let with = |lines: &str| with_api(&telegram.replace("groups =", &format!("{lines}\ngroups =")));
    let shape = |text: &str| {
        let api = &parse_text(text).unwrap_or_else(|errors| panic!("{errors}")).policy.apis[0];
        api.bindings[0].shaped.as_ref().map(|it| it.shape().to_string())
    };
    assert_eq!(shape(&with("")).unwrap(), "[1-9][0-9]{9}:AA[A-Za-z0-9_-]{33}");
    assert_eq!(shape(&with("shape = \"bot[a-z]{20}\"")).unwrap(), "bot[a-z]{20}");
    // The provider's own is left out, and one that stands in the file is a mistake.
    for lines in ["places = [\"basic password\"]", "placeholder = \"TELEGRAM/TOKEN\""] {
        assert_eq!(shape(&with(lines)), None, "{lines}");
    }
    for (lines, words) in [
        ("places = [\"basic user\"]\nshape = \"a:[a-z]{20}\"", "split a Basic credential"),
        ("placeholder = \"TELEGRAM/TOKEN\"\nshape = \"[a-z]{20}\"", "in a path"),
        ("shape = \"[a-z]{10}\"", "too few"),
        ("shape = \"sk-(a|b){20}\"", "as in ghp_"),
    ] {
        let found = mistakes(&with(lines));
        assert!(found.len() == 1 && found[0].text.contains(words), "{lines}: {found:?}");
        assert!(!found[0].text.contains("sk-"), "it may be a key: {found:?}");
    }
}

#[test]
fn a_placeholder_that_another_is_shaped_like_is_refused() {
    use crate::policy::{GroupName, KeyShape, Placeholder};
    let (group, own) = (GroupName::parse("research"), Placeholder::parse("GITHUB_TOKEN"));
    let shape = KeyShape::parse("ghp_[A-Za-z0-9]{36}").unwrap();
    let taken = shape.made_up(&group.unwrap(), &own.unwrap());
    let second = |placeholder: &str| {
        let both = BY_NAME.replace("groups =", &format!("shape = \"{shape}\"\ngroups ="));
        let binding = format!(
            "[[api.binding]]\nplaceholder = \"{placeholder}\"\ngroups = [\"research\"]\n\
             secret = \"vault:kv/git#other\"\nplaces = [\"basic password\"]\n"
        );
        mistakes(&with_api(&(both + &binding)))
    };
    let found = second(&taken);
    assert!(found.len() == 1 && found[0].text.contains("already bound"), "{found:?}");
    assert!(second("ghp_of_another_placeholder").is_empty());
}

#[test]
fn a_providers_mistakes_are_reported_where_its_name_stands() {
    for (from, to, at, words) in [
        ("github-git", "github-gti", 13, "did you mean \"github-git\""),
        ("github-git", "jira", 12, "lacks \"hosts\""),
        ("github-git", "github-git\"\nnmae = \"x", 14, "did you mean \"name\""),
    ] {
        let found = mistakes(&with_api(&BY_NAME.replace(from, to)));
        let said = found.iter().any(|it| it.line == at && it.text.contains(words));
        assert!(said && found.len() == 1, "{words}: {found:?}");
    }
    let twice = format!("{BY_NAME}{BY_NAME}");
    let found = mistakes(&with_api(&twice));
    assert!(found.iter().any(|it| it.line == 18 && it.text.contains("github.com")), "{found:?}");
}

/// Returns the good file with clients for its group, and with these tables instead of its rules.
fn with_clients(clients: &str, rules: &str) -> String {
    let clients = format!("interface = \"agents0\"\nclient = [{clients}]\n");
    let (before, _) = GOOD.split_once("[[api]]").unwrap();
    before.replacen("interface = \"agents0\"\n", &clients, 1) + rules
}

#[test]
fn a_client_stands_for_the_lines_printed_of_it() {
    for client in catalogue::clients() {
        let rules = client.as_toml().replace(r#"groups = ["..."]"#, r#"groups = ["research"]"#);
        let written = parse_text(&with_clients("", &rules)).map_err(|errors| errors.to_string());
        let named = with_clients(&format!("{:?}", client.name), "");
        let named = parse_text(&named).map_err(|errors| errors.to_string());
        let (named, written) = (named.unwrap().policy, written.unwrap().policy);
        let of_it = |pass: &Arc<Pass>| Pass { client: Some(client.name), ..Pass::clone(pass) };
        let of_it: Vec<_> = written.passes.iter().map(of_it).collect();
        assert_eq!(named.passes.iter().map(|it| Pass::clone(it)).collect::<Vec<_>>(), of_it);
        assert_eq!(named.ports, written.ports, "{}", client.name);
        assert_eq!(named.groups[0].clients, [client.name]);
    }
}

#[test]
fn what_a_client_adds_is_said_to_be_its() {
    let api = "[[api]]\nname = \"anthropic\"\nhosts = [\"api.anthropic.com\"]\n[[api.binding]]\n\
        groups = [\"research\"]\nplaceholder = \"ANTHROPIC_API_KEY\"\n\
        places = [\"header x-api-key raw\"]\nsecret = \"vault:kv/a#key\"\n";
    let config = parse_text(&with_clients("\"claude-code\", \"pip\"", api)).unwrap();
    let page = explain(&config);
    for line in [
        "of          client \"claude-code\" of the group",
        "of          client \"pip\" of the group",
        "except for GET /api/hello (of client \"claude-code\")",
    ] {
        assert!(page.contains(line), "{line}: {page}");
    }
    let own = api.replace("[[api.binding]]", "anonymous = [\"GET /api/hello\"]\n[[api.binding]]");
    let page = explain(&parse_text(&with_clients("\"claude-code\"", &own)).unwrap());
    assert!(page.contains("except for GET /api/hello, where"), "{page}");
}

#[test]
fn a_clash_with_a_clients_port_names_the_client() {
    let tcp = "[[tcp]]\nname = \"web\"\ngroups = [\"research\"]\nhosts = [\"a.example\"]\nports = [443]\n";
    let found = mistakes(&with_clients("\"pip\"", tcp));
    assert!(found.len() == 1, "{found:?}");
    assert!(found[0].text.contains("a rule that the client \"pip\" in line"), "{found:?}");
    let captured = with_clients("\"pip\"", "").replacen("[gateway]", "[gateway]\nports = [80]", 1);
    let found = mistakes(&captured);
    assert!(found[0].text.contains("of a rule that the client \"pip\" adds"), "{found:?}");
}

#[test]
fn a_host_with_a_rule_is_left_to_it() {
    let own = "[[splice]]\nname = \"pypi\"\ngroups = [\"research\"]\nhosts = [\"pypi.org\"]\n";
    let policy = parse_text(&with_clients("\"uv\", \"pip\", \"npm\"", own)).unwrap().policy;
    let told = |pass: &Arc<Pass>| {
        let hosts: Vec<String> = pass.hosts.iter().map(ToString::to_string).collect();
        format!("{} {}", pass.name, hosts.join(" "))
    };
    let passes: Vec<String> = policy.passes.iter().map(told).collect();
    let wanted = ["pypi pypi.org", "npm registry.npmjs.org", "pypi-2 files.pythonhosted.org"];
    assert_eq!(passes, wanted);

    let by_provider = BY_NAME.replace("github-git", "npm");
    let policy = parse_text(&with_clients("\"npm\"", &by_provider)).unwrap().policy;
    assert!(policy.passes.is_empty(), "{:?}", policy.passes);
}

#[test]
fn a_rule_on_one_port_leaves_the_client_the_others() {
    let own = "[[splice]]\nname = \"deb\"\ngroups = [\"research\"]\nhosts = [\"deb.debian.org\"]\n\
        ports = [80]\n";
    let policy = parse_text(&with_clients("\"apt-debian\"", own)).unwrap().policy;
    let debian = |pass: &&Arc<Pass>| pass.hosts.iter().any(|it| it.to_string() == "deb.debian.org");
    let ports: Vec<_> = policy.passes.iter().filter(debian).flat_map(|it| &it.ports).collect();
    assert_eq!(ports, [&80, &443]);
}

#[test]
fn a_client_of_another_group_opens_nothing_for_this_one() {
    let other = "[[group]]\nname = \"other\"\ninterface = \"agents1\"\n\
        prefixes = [\"192.0.2.16/28\"]\nclient = [\"pip\"]\n";
    let policy = parse_text(&with_clients("\"uv\", \"git\"", other)).unwrap().policy;
    let both = |pass: &&Arc<Pass>| pass.groups.len() == 2;
    assert_eq!(policy.passes.iter().filter(both).count(), 0);
    let of = |name: &str| {
        let own = policy.passes.iter().filter(|it| it.groups[0].as_str() == name);
        own.flat_map(|it| &it.hosts).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(of("other"), ["pypi.org", "files.pythonhosted.org"]);
    assert_eq!(of("research"), ["github.com", "pypi.org", "files.pythonhosted.org"]);
}

#[test]
fn an_api_takes_what_its_groups_client_asks_without_credential() {
    let api = BY_NAME.replace("github-git", "anthropic");
    let asked = |clients: &str, api: &str| {
        let policy = parse_text(&with_clients(clients, api)).unwrap().policy;
        policy.apis[0].anonymous.clone()
    };
    let own = api.replace("\"anthropic\"\n", "\"anthropic\"\nanonymous = false\n");
    assert_eq!(asked("", &own), Anonymous::Never);
    let listed = Anonymous::Listed(vec![AnonymousRequest::parse("GET /api/hello").unwrap()]);
    assert_eq!(asked("\"claude-code\"", &own), Anonymous::Never, "the file says so");
    assert_eq!(asked("\"claude-code\"", &api), listed);
    let other = "[[group]]\nname = \"other\"\ninterface = \"agents1\"\n\
        prefixes = [\"192.0.2.16/28\"]\n";
    let written = "[[api]]\nname = \"claude\"\nhosts = [\"api.anthropic.com\"]\n[[api.binding]]\n\
        groups = [\"research\"]\nplaceholder = \"CLAUDE_API_KEY\"\nplaces = [\"header x-api-key raw\"]\n\
        secret = \"vault:kv/git#token\"\n";
    let request = AnonymousRequest::parse("GET /api/hello").unwrap();
    let added = Anonymous::Listed(vec![request.of_client("claude-code")]);
    assert_eq!(asked("\"claude-code\"", written), added);
    let shared = written.replace("[\"research\"]", "[\"research\", \"other\"]") + other;
    assert_eq!(asked("\"claude-code\"", &shared), Anonymous::Never, "another group's, too");
}

#[test]
fn a_wrong_client_is_reported_where_its_name_stands() {
    let found = mistakes(&with_clients("\"pip\", \"claude-cod\"", ""));
    let [mistake] = &found[..] else { panic!("{found:?}") };
    assert!(mistake.text.contains("did you mean \"claude-code\""), "{mistake:?}");
    assert_eq!(mistake.line, 11);
}

const MINT: &str = r#"
[[api.mint]]
name = "session"
answers = ["json /token in /v1/login", "header x-session bearer in /v1/*/login"]
hosts = ["storage.openai.com"]
places = ["header authorization bearer"]
life = "1h"

[[api]]
name = "storage"
hosts = ["storage.openai.com"]

[[splice]]"#;

#[test]
fn a_mint_is_for_its_apis_groups_and_hosts() {
    let config = parse_text(&changed(&[("[[splice]]", MINT)])).unwrap_or_else(|it| panic!("{it}"));
    let [openai, storage] = &*config.policy.apis else { panic!("two APIs") };
    assert!(openai.redeems.is_empty() && storage.mints.is_empty());
    assert_eq!(openai.mints, storage.redeems);
    assert!(openai.mints[0].groups.iter().any(|group| storage.serves(group)));
    assert_eq!(openai.mints[0].label.as_str(), "ticket:session");
    let text = explain(&config);
    let answers = "session, in its answers as json /token in /v1/login, header x-session bearer in";
    for words in [answers, "ticket:session", "1h"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn short_values_are_warned_of() {
    let places = "places = [\"header authorization bearer\"]";
    let told = |from: &str, text: &str, name: &str| {
        let explained = explain(&parse_text(&changed(&[(from, text)])).unwrap());
        explained.contains(&format!("takes values of 12 bytes for {name}: masking gets weaker"))
    };
    for (bytes, warned) in [(12, true), (16, false)] {
        let binding = format!("{places}\nmin_value_bytes = {bytes}");
        assert_eq!(told(places, &binding, "OPENAI_API_KEY"), warned, "{bytes}");
        let mint = MINT.replace("life =", &format!("min_value_bytes = {bytes}\nlife ="));
        assert_eq!(told("[[splice]]", &mint, "ticket:session"), warned, "{bytes}");
    }
}

#[test]
fn a_mint_that_could_not_work_is_refused() {
    let with = |from: &str, to: &str| MINT.replacen(from, to, 1);
    for (from, to, at, words) in [
        (
            "[\"storage.openai.com\"]\nplaces",
            "[\"storage.openai.com\", \"x.openai.com\"]\nplaces",
            "x.openai",
            "no [[api]]",
        ),
        ("life = \"1h\"", "life = \"25h\"", "25h", "24h"),
        ("life = \"1h\"", "", "[[api.mint]]", "lacks \"life\""),
        ("json /token in /v1/login", "json token in /v1/login", "json token", "pointer"),
        ("json /token in /v1/login", "json /token", "json /token", "json POINTER in PATH"),
        ("header x-session bearer", "header content-length bearer", "content-length", "frames"),
        ("header authorization bearer", "header authorization", "places", "in small letters"),
        (
            "\"header authorization bearer\"]",
            "\"form a in POST /x\"]\nticket = \"long\"",
            "ticket",
            "opaque",
        ),
        ("[\"header authorization bearer\"]\nlife", "[\"aws\"]\nlife", "places", "no pair of keys"),
    ] {
        refuses("[[splice]]", &with(from, to), at, &[words]);
    }
    let narrow = with("name = \"storage\"\n", "name = \"storage\"\npaths = [\"/a\"]\n");
    let body = narrow.replacen("header authorization bearer", "form a in POST /x", 1);
    refuses("[[splice]]", &body, "form a", &["no API of these hosts allows"]);
    let twice = MINT.replacen(
        "[[api]]",
        &format!("{}\n[[api]]", MINT.split("\n[[api]]").next().unwrap()),
        1,
    );
    refuses("[[splice]]", &twice, "session", &["already in line"]);
}

#[test]
fn what_is_signed_for_stands_beside_the_keys_that_sign() {
    let old = "places = [\"header authorization bearer\"]";
    let scope = "aws = { services = [\"s3\"], regions = [\"eu-west-1\"] }";
    let signed = |scope: &str, places: &str| {
        let own = format!("{scope}\n[[api.binding]]");
        changed(&[("[[api.binding]]", &own), (old, &format!("places = [{places}]"))])
    };
    let config = parse_text(&signed(scope, "\"aws\"")).expect("it loads");
    let aws = config.policy.apis[0].aws.as_ref().expect("it is there");
    let variables = config.policy.apis[0].bindings[0].variables.iter();
    assert!(variables.map(|it| &**it).eq(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]));
    let names = [&aws.services[..], &aws.regions].concat();
    assert!(names.iter().map(|it| it.as_str()).eq(["s3", "eu-west-1"]));
    let text = explain(&config);
    for line in ["access key of an AWS signature, OPENAI_API_KEY", "again for s3 in eu-west-1"] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(!text.contains("hold credentials that agents get"), "{text}");
    let sts = parse_text(&signed(&scope.replace("s3", "sts"), "\"aws\"")).expect("it loads");
    assert!(explain(&sts).contains("signs for sts, whose answers hold credentials"));
    let control = signed(scope, "\"aws\"").replace("api.openai.com", "1.s3-control.example");
    let control = parse_text(&control).expect("it loads");
    assert!(explain(&control).contains("signs for 1.s3-control.example, whose answers may hold"));

    refuses(old, "places = [\"aws\"]", "places = ", &["needs what requests may be signed for"]);
    refuses("[[api.binding]]", &format!("{scope}\n[[api.binding]]"), "aws = ", &["no binding"]);
    for (scope, places, words) in [
        (scope, "\"aws\", \"query key\"", "a pair of keys and stands in no other place"),
        (&*scope.replace("\"s3\"", "\"S3\""), "\"aws\"", "of a-z, 0-9 and '-'"),
        (&scope.replace("\"s3\"", ""), "\"aws\"", "the list is empty"),
        ("aws = { services = [\"s3\"] }", "\"aws\"", "regions"),
        (&scope.replace("services", "service"), "\"aws\"", "services"),
        ("aws = true", "\"aws\"", "[api.aws]"),
    ] {
        let found = mistakes(&signed(scope, places));
        assert!(found.iter().any(|it| it.text.contains(words)), "{scope} {places}: {found:?}");
    }
    let odd = signed(scope, "\"aws\"").replace("OPENAI_API_KEY", "OPENAI/API/KEY");
    let found = mistakes(&odd);
    assert!(found[0].text.contains("the id of an access key"), "{found:?}");
    let body = "[[api.binding]]\ngroups = [\"research\"]\nplaceholder = \"BODY_KEY\"\nplaces = [\"json /a in \
                POST /v1/a\"]\nsecret = \"vault:kv/a#b\"\n[[splice]]";
    let found = mistakes(&signed(scope, "\"aws\"").replace("[[splice]]", body));
    assert!(found[0].text.contains("what stands in a body is signed"), "{found:?}");
}
