//! Method and path rules hold for everything that an origin may understand, not only for one
//! parser's reading: a path with two readings is refused, and so is one that is not listed.

use lab::{
    World,
    attack::{Ask, local},
    net::{AGENT, ANTHROPIC, GIT, OPENAI},
    sandboxed,
};

const METHOD: (u16, &str) = (403, "method_denied");
const PATH: (u16, &str) = (403, "path_denied");
const AMBIGUOUS: (u16, &str) = (400, "path_ambiguous");
const MALFORMED: (u16, &str) = (400, "http_malformed");

#[test]
fn a_method_that_is_not_listed_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for method in [
            "DELETE", "PUT", "PATCH", "OPTIONS", "PROPFIND", "get", "Post", "GETX", "TRACE",
            "trace", "TRACK",
        ] {
            let ask = Ask::to(OPENAI).good().method(method);
            world.refuses(method, (AGENT, OPENAI), &ask, METHOD);
        }
        let head = Ask::to(OPENAI).good().method("HEAD");
        let mut tls = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name);
        let me = local(&tls);
        tls.send(head.h1().replace("Content-Length: 0\r\n", "Connection: close\r\n"))
            .expect("sent");
        let answer = String::from_utf8_lossy(&tls.read_to_end()).into_owned();
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        drop(tls);
        world.recorded("HEAD", me, &[Some("method_denied")]);
        world.origin.log().assert_no_request();
        world.ends_well();
    });
}

#[test]
fn methods_no_rule_lists_and_echoes_are_refused() {
    sandboxed(|| {
        let config = lab::gateway::usual_config().each_api(|it| it.without("methods"));
        let world = World::with(&config);
        for method in ["TRACE", "trace", "Trace", "TRACK", "track", "PROPFIND", "get", "QUERY"] {
            let ask = Ask::to(OPENAI).good().method(method);
            world.refuses(method, (AGENT, OPENAI), &ask, METHOD);
        }
        for name in ["X-HTTP-Method-Override", "X.HTTP.Method.Override", "x_method_override"] {
            let ask = Ask::to(OPENAI).good().field(name, "TRACE");
            world.refuses(name, (AGENT, OPENAI), &ask, METHOD);
        }
        let ask = Ask::to(OPENAI).good().method("DELETE");
        world.forwards("DELETE", (AGENT, OPENAI), &ask);
        world.ends_well();
    });
}

#[test]
fn nothing_in_a_request_replaces_its_method_or_its_path() {
    sandboxed(|| {
        let world = World::usual();
        for (name, value, expected) in [
            ("X-HTTP-Method-Override", "DELETE", METHOD),
            ("X.HTTP.Method.Override", "DELETE", METHOD),
            ("X-Http-Method", "delete", METHOD),
            ("X-Original-URL", "/admin", AMBIGUOUS),
            ("X-Original-URI", "/admin", AMBIGUOUS),
            ("X.Rewrite.Url", "/admin", AMBIGUOUS),
            ("X-Forwarded-Prefix", "/admin", AMBIGUOUS),
            ("X-WAWS-Unencoded-URL", "/admin", AMBIGUOUS),
            ("X_Replaced_Path", "/admin", AMBIGUOUS),
            ("SCRIPT_NAME", "/v1/x", AMBIGUOUS),
            ("Path-Info", "/admin", AMBIGUOUS),
            ("X-Traversal-Path", "/v1/x", AMBIGUOUS),
            ("X-URL-Override", "/admin", AMBIGUOUS),
            ("Destination", "https://api.openai.com/admin", AMBIGUOUS),
            ("x-ms-rename-source", "/admin", AMBIGUOUS),
            ("X-HTTP-Verb-Override", "delete", METHOD),
            ("X-Method", "TRACE", METHOD),
        ] {
            let ask = Ask::to(OPENAI).good().field(name, value);
            world.refuses(name, (AGENT, OPENAI), &ask, expected);
        }
        for query in [
            "_method=DELETE",
            "a=b;_method=DELETE",
            "%5Fmethod=delete",
            "_HttpMethod=PATCH",
            "method=delete",
            "m%65thod=put",
        ] {
            let ask = Ask::to(OPENAI).good().path(&format!("/v1/x?{query}"));
            world.refuses(query, (AGENT, OPENAI), &ask, METHOD);
        }
        let same = Ask::to(OPENAI).good().field("X-HTTP-Method-Override", "GET");
        world.forwards("an override to a listed method", (AGENT, OPENAI), &same);
        let call = Ask::to(OPENAI).good().path("/v1/x?method=photos.search");
        world.forwards("a method of a remote call", (AGENT, OPENAI), &call);
        world.ends_well();
    });
}

#[test]
fn an_encoded_slash_passes_where_both_readings_are_listed() {
    sandboxed(|| {
        let world = World::usual();
        for path in ["/v1/@scope%2fpkg", "/v1/projects/group%2Fproj/issues?a=%2F"] {
            let ask = Ask::to(OPENAI).good().path(path);
            for seen in world.forwards(path, (AGENT, OPENAI), &ask) {
                assert_eq!(seen.uri.path_and_query().map(|it| it.as_str()), Some(path));
            }
        }
        for path in ["/v1%2fadmin", "/status%2f200", "/v1/a%2f..%2fb", "/v1/%2fadmin"] {
            let ask = Ask::to(OPENAI).good().path(path);
            world.refuses(path, (AGENT, OPENAI), &ask, AMBIGUOUS);
        }
        let ask = Ask::to(OPENAI).good().path("/v2/a%2fb");
        world.refuses("neither reading", (AGENT, OPENAI), &ask, PATH);
        world.ends_well();
    });
}

#[test]
fn a_path_that_is_not_listed_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for path in [
            "/",
            "/v1",
            "/V1/models",
            "/v2/models",
            "/v1models",
            "/admin",
            "/reflect/",
            "/reflectx",
            "/?/v1/x",
        ] {
            let ask = Ask::to(OPENAI).good().path(path);
            world.refuses(path, (AGENT, OPENAI), &ask, PATH);
        }
        world.ends_well();
    });
}

#[test]
fn a_path_with_two_readings_is_refused_by_rules() {
    sandboxed(|| {
        let world = World::usual();
        for path in [
            "/v1/../admin",
            "/v1/..",
            "/v1/.",
            "/v1/./../admin",
            "/v1/%2e%2e/admin",
            "/v1/%2E%2e/admin",
            "/v1/.%2e/admin",
            "/v1/..%2fadmin",
            "/v1/..%2Fadmin",
            "/v1/%2e%2e%2fadmin",
            "/v1/..%20/admin",
            "/v1/.%20./admin",
            "/v1/..%ef%bc%8fadmin",
            "/v1/%252e%252e/admin",
            "/v1/%25252e%25252e/admin",
            "/v1/..%252fadmin",
            "/v1/..%5cadmin",
            "/v1/..%255cadmin",
            "/v1/..;/admin",
            "/v1/..;a=b/admin",
            "/v1/.;/..;/admin",
            "/v1/..%3b/admin",
            "/v1//admin",
            "//v1/models",
            "/v1/x//../../admin",
            "/v1/%00",
            "/v1/x%0d%0aX:%20y",
            "/v1/%0a/admin",
            "/v1/%",
            "/v1/%2",
            "/v1/%zz",
            "/v1/%u002e%u002e/admin",
            "/v1/%c0%ae%c0%ae/admin",
            "/v1/%c0%af/admin",
            "/v1/%e0%80%af/admin",
        ] {
            let ask = Ask::to(OPENAI).good().path(path);
            world.refuses(path, (AGENT, OPENAI), &ask, AMBIGUOUS);
        }
        world.ends_well();
    });
}

#[test]
fn a_target_with_bytes_that_no_path_has_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for path in [
            &b"/v1/..\\admin"[..],
            b"/v1/x\\..\\..\\admin",
            b"/v1/\xc0\xae\xc0\xae/admin",
            b"/v1/\xff",
            "/v1/\u{2025}/admin".as_bytes(),
            b"/v1/<x>",
            b"/v1/x y",
            b"/v1/x\ty",
            b"/v1/\x00",
            b"/v1/\x7f",
            b"/v1/x`y",
        ] {
            let what = path.escape_ascii().to_string();
            let tail = b" HTTP/1.1\r\nHost: api.openai.example\r\nAuthorization: Bearer OPENAI_API_KEY\r\n\r\n";
            let bytes = [b"GET ", path, tail].concat();
            let before = world.before();
            let mut tls = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name);
            let me = local(&tls);
            let answer = tls.ask(bytes).unwrap_or_else(|error| world.fail(&what, error));
            let reason = answer.reason().unwrap_or_else(|| panic!("{what}: {}", answer.status));
            assert!([MALFORMED.1, AMBIGUOUS.1].contains(&&*reason), "{what}: {reason}");
            drop(tls);
            world.recorded(&what, me, &[Some(&reason)]);
            world.nothing_arrived(&what, before);
        }
        world.ends_well();
    });
}

#[test]
fn a_path_rule_does_not_look_at_the_query() {
    sandboxed(|| {
        let world = World::usual();
        for path in ["/v1/x?next=/../admin", "/v1/x?a=%2e%2e%2f&b=%", "/v1/a%20b:c;d=e"] {
            let ask = Ask::to(OPENAI).good().path(path);
            for seen in world.forwards(path, (AGENT, OPENAI), &ask) {
                assert_eq!(
                    seen.uri.path_and_query().map(|it| it.as_str()),
                    Some(path),
                    "byte for byte"
                );
            }
        }
        world.ends_well();
    });
}

#[test]
fn only_a_good_placeholder_shows_which_paths_are_listed() {
    sandboxed(|| {
        let world = World::usual();
        for path in ["/v1/x", "/admin", "/v1/../admin"] {
            let none = Ask::to(OPENAI).path(path).method("DELETE");
            world.refuses(path, (AGENT, OPENAI), &none, (403, "placeholder_missing"));
            let foreign = none.field("authorization", "Bearer sk-attacker-7d1f0c5b9a3e4826");
            world.refuses(path, (AGENT, OPENAI), &foreign, (403, "foreign_credential"));
        }
        // Where no credential is needed, the rules hold all the same.
        let anonymous = Ask::to(GIT).method("DELETE");
        world.refuses("anonymous", (AGENT, GIT), &anonymous, METHOD);
        let anonymous = Ask::to(GIT).path("/a/../b");
        world.refuses("anonymous", (AGENT, GIT), &anonymous, AMBIGUOUS);
        let reflect = Ask::to(ANTHROPIC).path("/reflect").field("x-api-key", "ANTHROPIC_API_KEY");
        world.refuses("a path of another API", (AGENT, ANTHROPIC), &reflect, PATH);
        world.ends_well();
    });
}
