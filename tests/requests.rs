//! Requests that must not be forwarded, each with its status and reason word. Every test also
//! looks at the origins, where nothing may arrive.

use http::Request;
use lab::{
    net::{AGENT, ANTHROPIC, ATTACKER, OPENAI, OTHER},
    sandboxed,
};

use crate::world::{TICKET, World, get, get_path};

/// A table of requests that all end the same way.
#[track_caller]
fn refused(status: u16, reason: &str, requests: &[String]) {
    let world = World::usual();
    for request in requests {
        world.assert_refused(request, status, reason);
    }
    assert_eq!(world.requests().len(), requests.len(), "one record for each request");
}

fn with_host(host: &str) -> String {
    format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\n{TICKET}\r\n\r\n")
}

#[test]
fn a_request_without_a_credential_is_refused() {
    sandboxed(|| refused(403, "placeholder_missing", &[get(&[])]));
}

#[test]
fn a_credential_that_is_no_placeholder_of_this_agent_is_refused() {
    sandboxed(|| {
        let values = [
            "sk-live-the-attackers-own-key-000000",
            "OPS_OPENAI_KEY",
            "openai_api_key",
            "aaOPENAI_API_KEY",
            "OPENAI_API_KEYbb",
            "OPENAI_API_KEYOPENAI_API_KEY",
            "OPENAI_API_KEY OPENAI_API_KEY",
            "OPENAI_API_KEY,OPENAI_API_KEY",
            "\"OPENAI_API_KEY\"",
            "OPENAI%5FAPI%5FKEY",
            "${OPENAI_API_KEY}",
        ];
        let of = |value: &&str| get(&[&format!("Authorization: Bearer {value}")]);
        refused(403, "foreign_credential", &values.iter().map(of).collect::<Vec<_>>());
    });
}

#[test]
fn the_answers_to_foreign_credentials_are_all_the_same() {
    sandboxed(|| {
        let world = World::usual();
        let text = |credential: &str| {
            let answer = world.ask(&get(&[&format!("Authorization: Bearer {credential}")]));
            let mut text: serde_json::Value = serde_json::from_str(&answer.text()).expect("JSON");
            // The flow's id is the only thing that may differ.
            text.as_object_mut().expect("an object").retain(|name, _| name != "flow");
            text
        };
        let unknown = text("sk-some-unknown-key");
        assert_eq!(unknown, text("OPS_OPENAI_KEY"), "another group's placeholder shows");
        assert_eq!(unknown, text("xOPENAI_API_KEY"));
        world.assert_nothing_forwarded();
    });
}

#[test]
fn a_placeholder_at_another_api_is_refused() {
    sandboxed(|| {
        refused(
            403,
            "placeholder_wrong_host",
            &[get(&["Authorization: Bearer ANTHROPIC_API_KEY"])],
        );
    });
}

#[test]
fn a_placeholder_in_an_unlisted_credential_field_is_refused() {
    sandboxed(|| {
        refused(
            403,
            "placeholder_wrong_place",
            &[
                get(&["X-Api-Key: OPENAI_API_KEY"]),
                get(&["Api-Key: OPENAI_API_KEY"]),
                get(&["Authorization: OPENAI_API_KEY"]),
                get(&["Authorization: Basic eDpPUEVOQUlfQVBJX0tFWQ=="]),
            ],
        );
    });
}

#[test]
fn a_foreign_key_beside_a_good_placeholder_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for fields in [
            [TICKET, "Authorization: Bearer mine-0123456789"],
            ["Authorization: Bearer mine-0123456789", TICKET],
            [TICKET, TICKET],
            [TICKET, "X-Api-Key: mine-0123456789"],
            [TICKET, "X-Goog-Api-Key: mine-0123456789"],
        ] {
            world.assert_refused(&get(&fields), 400, "duplicate_credential");
        }
    });
}

#[test]
fn proxy_authorization_never_leaves() {
    sandboxed(|| {
        let world = World::usual();
        world.ask(&get(&[TICKET, "Proxy-Authorization: Basic bWU6bWU="]));
        for request in world.origin.log().requests() {
            assert!(request.header("proxy-authorization").is_empty());
        }
    });
}

#[test]
fn a_connection_field_cannot_strip_the_credential_or_keep_hop_by_hop_fields() {
    sandboxed(|| {
        let world = World::usual();
        let request = get(&[TICKET, "Connection: authorization, x-odd", "X-Odd: 1"]);
        let answer = world.ask(&request);
        // Either refused, or forwarded with the key; never forwarded without it.
        for request in world.origin.log().requests() {
            assert_eq!(request.header("authorization").len(), 1, "{answer:?}");
        }
        world.assert_secrets_untold();
    });
}

#[test]
fn an_authority_that_is_not_the_name_in_the_hello_is_refused() {
    sandboxed(|| {
        let hosts = [
            OTHER.name,
            ATTACKER.name,
            ANTHROPIC.name,
            "api.openai.example:8443",
            "api.openai.example:80",
            "198.51.100.10",
            "xapi.openai.example",
            "api.openai.example.attacker.example",
        ];
        refused(421, "host_mismatch", &hosts.map(with_host));
    });
}

#[test]
fn the_same_name_in_another_spelling_is_the_same_host() {
    sandboxed(|| {
        let world = World::usual();
        for host in ["API.OpenAI.Example", "api.openai.example:443"] {
            assert_eq!(world.ask(&with_host(host)).status, 200, "{host}");
        }
    });
}

#[test]
fn a_malformed_or_ambiguous_head_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let host = format!("Host: {}", OPENAI.name);
        let heads = [
            format!("GET /v1/models HTTP/1.1\r\n{TICKET}\r\n\r\n"),
            format!("GET /v1/models HTTP/1.1\r\n{host}\r\n{host}\r\n{TICKET}\r\n\r\n"),
            format!("GET /v1/models HTTP/1.1\r\n{host}, other.example\r\n{TICKET}\r\n\r\n"),
            format!("GET /v1/models HTTP/1.1\n{host}\n{TICKET}\n\n"),
            format!("GET /v1/models HTTP/1.0\r\n{TICKET}\r\n\r\n"),
            format!(
                "POST /v1/x HTTP/1.1\r\n{host}\r\n{TICKET}\r\nContent-Length: 4\r\n\
                Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            format!(
                "POST /v1/x HTTP/1.1\r\n{host}\r\n{TICKET}\r\nContent-Length: 4\r\n\
                Content-Length: 5\r\n\r\nbodyx"
            ),
            format!(
                "POST /v1/x HTTP/1.1\r\n{host}\r\n{TICKET}\r\n\
                Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
            ),
            format!("GET /v1/models HTTP/1.1\r\n{host}\r\n{TICKET}\r\nX : y\r\n\r\n"),
        ];
        for head in heads {
            let mut tls = world.h1(OPENAI).expect("a connection");
            tls.send(&head).expect("sent");
            let answer = String::from_utf8_lossy(&tls.read_to_end()).into_owned();
            let refused = answer.is_empty()
                || answer.starts_with("HTTP/1.1 4")
                || answer.starts_with("HTTP/1.0 4");
            assert!(refused, "{head:?} was answered with {answer}");
        }
        world.assert_nothing_forwarded();
    });
}

#[test]
fn absolute_form_with_another_authority_is_refused() {
    sandboxed(|| {
        let host = OPENAI.name;
        let line =
            |target: &str| format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{TICKET}\r\n\r\n");
        let targets =
            ["https://attacker.example/v1/models", "https://api.openai.example:8443/v1/x"];
        refused(421, "host_mismatch", &targets.map(line));
    });
}

#[test]
fn an_inner_connect_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for target in ["api.openai.example:443", "attacker.example:443"] {
            let request =
                format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{TICKET}\r\n\r\n");
            let answer = world.ask(&request);
            assert!(answer.status.is_client_error(), "{answer:?}");
        }
        world.assert_nothing_forwarded();
    });
}

#[test]
fn an_upgrade_that_is_not_carried_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for upgrade in ["h2c", "TLS/1.0", "foo"] {
            let request = get(&[
                TICKET,
                &format!("Upgrade: {upgrade}"),
                "Connection: Upgrade, HTTP2-Settings",
                "HTTP2-Settings: AAMAAABkAAQAAP__",
            ]);
            world.assert_refused(&request, 403, "upgrade_denied");
        }
    });
}

#[test]
fn a_method_or_path_that_is_not_listed_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let delete = get(&[TICKET]).replace("GET ", "DELETE ");
        world.assert_refused(&delete, 403, "method_denied");
        world.assert_refused(&get_path("/v2/models", &[TICKET]), 403, "path_denied");
        world.assert_refused(&get_path("/v1", &[TICKET]), 403, "path_denied");
        world.assert_refused(&get_path("/V1/models", &[TICKET]), 403, "path_denied");
    });
}

#[test]
fn a_path_that_reads_in_two_ways_is_refused() {
    sandboxed(|| {
        let paths = [
            "/v1/../admin",
            "/v1/./models",
            "/v1/%2e%2e/admin",
            "/v1/%2E%2E%2fadmin",
            "/v1%2fmodels",
            "/v1//models",
            "/v1/..;/admin",
            "/v1/\\..\\admin",
            "/v1/%5c..%5cadmin",
        ];
        let world = World::usual();
        for path in paths {
            let answer = world.ask(&get_path(path, &[TICKET]));
            assert!(answer.status.is_client_error(), "{path}: {answer:?}");
        }
        world.assert_nothing_forwarded();
    });
}

#[test]
fn a_credential_in_the_trailers_never_arrives() {
    sandboxed(|| {
        let world = World::usual();
        let request = format!(
            "POST /v1/x HTTP/1.1\r\nHost: {}\r\n{TICKET}\r\nTransfer-Encoding: chunked\r\n\
             Trailer: authorization\r\n\r\n4\r\nbody\r\n0\r\n\
             Authorization: Bearer mine-0123456789\r\n\r\n",
            OPENAI.name
        );
        let mut tls = world.h1(OPENAI).expect("a connection");
        tls.send(request).expect("sent");
        let _ = tls.response();
        drop(tls);
        std::thread::sleep(lab::wait::QUIET);
        assert!(!world.origin.log().holds("mine-0123456789"));
    });
}

#[test]
fn a_second_authority_on_one_http_2_connection_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let mut h2 = world.h2(OPENAI).expect("a connection");
        let request = |authority: &str| {
            Request::get(format!("https://{authority}/v1/models"))
                .header("authorization", "Bearer OPENAI_API_KEY")
                .body(())
                .expect("a request")
        };
        assert_eq!(h2.ask(request(OPENAI.name), "").expect("an answer").status, 200);
        for authority in ["attacker.example", "api.anthropic.example", "api.openai.example:8443"] {
            let answer = h2.ask(request(authority), "").expect("an answer");
            assert_eq!(answer.status, 421, "{authority}");
            assert_eq!(answer.reason().as_deref(), Some("host_mismatch"), "{authority}");
        }
        let again = h2.ask(request(OPENAI.name), "").expect("the connection still works");
        assert_eq!(again.status, 200);
        let requests = world.origin.log().wait_requests(2);
        assert!(requests.iter().all(|request| request.authority() == OPENAI.name));
    });
}

#[test]
fn over_http_2_a_host_field_that_differs_from_the_authority_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let mut h2 = world.h2(OPENAI).expect("a connection");
        let request = Request::get("https://api.openai.example/v1/models")
            .header("host", "attacker.example")
            .header("authorization", "Bearer OPENAI_API_KEY")
            .body(())
            .expect("a request");
        let answer = h2.ask(request, "").expect("an answer");
        assert_eq!(
            (answer.status.as_u16(), answer.reason().as_deref()),
            (421, Some("host_mismatch"))
        );
        world.assert_nothing_forwarded();
    });
}

#[test]
fn over_http_2_foreign_and_double_credentials_are_refused() {
    sandboxed(|| {
        let world = World::usual();
        let mut h2 = world.h2(OPENAI).expect("a connection");
        let request = |values: &[(&str, &str)]| {
            let mut builder = Request::get("https://api.openai.example/v1/models");
            for (name, value) in values {
                builder = builder.header(*name, *value);
            }
            builder.body(()).expect("a request")
        };
        let good = ("authorization", "Bearer OPENAI_API_KEY");
        let foreign = ("authorization", "Bearer mine-0123456789");
        for (fields, status, reason) in [
            (vec![], 403, "placeholder_missing"),
            (vec![foreign], 403, "foreign_credential"),
            (vec![good, foreign], 400, "duplicate_credential"),
            (vec![good, ("x-api-key", "mine-0123456789")], 400, "duplicate_credential"),
        ] {
            let answer = h2.ask(request(&fields), "").expect("an answer");
            let seen = (answer.status.as_u16(), answer.reason());
            assert_eq!(seen, (status, Some(reason.to_owned())), "{fields:?}");
        }
        world.assert_nothing_forwarded();
    });
}

#[test]
fn a_placeholder_in_clear_text_is_refused_and_goes_nowhere() {
    sandboxed(|| {
        let world = World::usual();
        for host in [OPENAI, OTHER] {
            let mut stream = AGENT.connect(host.port(80)).expect("the gateway accepts");
            let request =
                format!("GET /v1/models HTTP/1.1\r\nHost: {}\r\n{TICKET}\r\n\r\n", host.name);
            std::io::Write::write_all(&mut stream, request.as_bytes()).expect("sent");
            let answer = lab::client::read_response(&mut stream).expect("an answer");
            assert_eq!(answer.status, 403);
            assert_eq!(answer.reason().as_deref(), Some("plaintext_placeholder"), "{}", host.name);
        }
        world.gateway.audit.wait_reason("plaintext_placeholder");
        world.origin.log().assert_untouched();
    });
}

#[test]
fn a_refused_upload_gets_its_answer_and_not_a_reset() {
    sandboxed(|| {
        let world = World::usual();
        let body = vec![b'x'; 8 << 20];
        let head = format!(
            "POST /v1/files HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer sk-of-my-own-0000\r\n\
             Content-Length: {}\r\n\r\n",
            OPENAI.name,
            body.len()
        );
        let mut tls = world.h1(OPENAI).expect("a connection");
        tls.send([head.as_bytes(), &body].concat()).expect("all of it is taken");
        let answer = tls.response().expect("an answer");
        assert_eq!(answer.reason().as_deref(), Some("foreign_credential"));
        world.assert_nothing_forwarded();
    });
}
