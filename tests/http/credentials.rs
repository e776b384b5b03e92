//! A placeholder means something in one place of one host for one group, and a credential that is
//! no placeholder goes nowhere: the attacker's own key would be a way out.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{
    World,
    attack::{Ask, one_byte_off},
    gateway::{ANTHROPIC_SECRET, BEARER, GIT_SECRET, OPENAI_SECRET, SECRETS, usual_config},
    net::{AGENT, AGENT2, ANTHROPIC, GIT, OPENAI},
    sandboxed,
};

/// A key of the attacker's own, in a provider's form.
const OWN_KEY: &str = "sk-attacker-7d1f0c5b9a3e4826";

/// The fields that carry credentials whatever policy says.
const CREDENTIAL_FIELDS: [&str; 10] = [
    "Authorization",
    "X-Api-Key",
    "Api-Key",
    "X-Goog-Api-Key",
    "Private-Token",
    "X-Auth-Token",
    "X-Auth-Key",
    "X-Vault-Token",
    "X-Amz-Security-Token",
    "Ocp-Apim-Subscription-Key",
];

const FOREIGN: (u16, &str) = (403, "foreign_credential");
const DUPLICATE: (u16, &str) = (400, "duplicate_credential");
const WRONG_HOST: (u16, &str) = (403, "placeholder_wrong_host");
const WRONG_PLACE: (u16, &str) = (403, "placeholder_wrong_place");
const AMBIGUOUS: (u16, &str) = (400, "path_ambiguous");
const MALFORMED: (u16, &str) = (400, "credential_malformed");

#[test]
fn a_placeholder_at_another_host_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let there = Ask::to(ANTHROPIC).field("authorization", "Bearer OPENAI_API_KEY");
        world.refuses("wrong host", (AGENT, ANTHROPIC), &there, WRONG_HOST);
        let raw = Ask::to(ANTHROPIC).field("x-api-key", "OPENAI_API_KEY");
        world.refuses("wrong host, raw", (AGENT, ANTHROPIC), &raw, WRONG_HOST);
        let back = Ask::to(OPENAI).field("authorization", "Bearer ANTHROPIC_API_KEY");
        world.refuses("wrong host, back", (AGENT, OPENAI), &back, WRONG_HOST);
        let basic = format!("Basic {}", STANDARD.encode("agent:OPENAI_API_KEY"));
        let basic = Ask::to(GIT).field("authorization", basic);
        world.refuses("wrong host, in Basic", (AGENT, GIT), &basic, WRONG_HOST);
        world.ends_well();
    });
}

#[test]
fn a_placeholder_of_another_group_is_a_foreign_credential() {
    sandboxed(|| {
        let world = World::usual();
        let theirs = Ask::to(OPENAI).field("authorization", "Bearer OPS_OPENAI_KEY");
        world.refuses("theirs", (AGENT, OPENAI), &theirs, FOREIGN);
        let ours = Ask::to(OPENAI).good();
        world.refuses("ours, from the other group", (AGENT2, OPENAI), &ours, FOREIGN);
        world.ends_well();
    });
}

#[test]
fn a_placeholder_in_an_unlisted_credential_field_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for field in CREDENTIAL_FIELDS.iter().skip(1) {
            let ask = Ask::to(OPENAI).field(field, "OPENAI_API_KEY");
            world.refuses(field, (AGENT, OPENAI), &ask, WRONG_PLACE);
        }
        for value in ["OPENAI_API_KEY", "token OPENAI_API_KEY", "Digest OPENAI_API_KEY"] {
            let ask = Ask::to(OPENAI).field("authorization", value);
            world.refuses(value, (AGENT, OPENAI), &ask, WRONG_PLACE);
        }
        let basic = format!("Basic {}", STANDARD.encode("OPENAI_API_KEY:"));
        let ask = Ask::to(OPENAI).field("authorization", basic);
        world.refuses("in Basic", (AGENT, OPENAI), &ask, WRONG_PLACE);
        world.ends_well();
    });
}

#[test]
fn the_attackers_key_is_refused_in_every_credential_field() {
    sandboxed(|| {
        let world = World::usual();
        for field in CREDENTIAL_FIELDS {
            let ask = Ask::to(OPENAI).field(field, OWN_KEY);
            world.refuses(field, (AGENT, OPENAI), &ask, FOREIGN);
        }
        let ask = Ask::to(OPENAI).field("authorization", format!("Bearer {OWN_KEY}"));
        world.refuses("as Bearer", (AGENT, OPENAI), &ask, FOREIGN);
        let ask = Ask::to(GIT).field("authorization", format!("Bearer {OWN_KEY}"));
        world.refuses("where no credential is needed", (AGENT, GIT), &ask, FOREIGN);
        assert!(!world.origin.log().holds(OWN_KEY));
        world.ends_well();
    });
}

#[test]
fn the_answers_to_foreign_credentials_are_one_text() {
    sandboxed(|| {
        let world = World::usual();
        let answers: Vec<_> = [OWN_KEY, "OPS_OPENAI_KEY", "openai_api_key", "xOPENAI_API_KEYx"]
            .into_iter()
            .map(|token| {
                let ask = Ask::to(OPENAI).field("authorization", format!("Bearer {token}"));
                let answer = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name).ask(ask.h1());
                let answer = answer.expect("an answer").text();
                // The flow's id is the only difference.
                answer.split("\"flow\"").next().unwrap_or_default().to_owned()
            })
            .collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
        world.ends_well();
    });
}

#[test]
fn a_second_credential_beside_a_good_placeholder_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for field in CREDENTIAL_FIELDS {
            for value in [OWN_KEY, "OPENAI_API_KEY", ""] {
                let beside = Ask::to(OPENAI).good().field(field, value);
                world.refuses(
                    &format!("{field}: {value} after"),
                    (AGENT, OPENAI),
                    &beside,
                    DUPLICATE,
                );
            }
            let before = Ask::to(OPENAI).field(field, OWN_KEY).good();
            world.refuses(&format!("{field} before"), (AGENT, OPENAI), &before, DUPLICATE);
        }
        world.ends_well();
    });
}

#[test]
fn a_second_credential_under_a_folded_name_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let names = [
            "X_Api_Key",
            "x-api_key",
            "X_AUTH_TOKEN",
            "api_key",
            "X.Api.Key",
            "X~Api|Key",
            "Private+Token",
        ];
        for name in names {
            let beside = Ask::to(OPENAI).good().field(name, OWN_KEY);
            world.refuses(name, (AGENT, OPENAI), &beside, DUPLICATE);
            let alone = Ask::to(OPENAI).field(name, OWN_KEY);
            world.refuses(&format!("{name} alone"), (AGENT, OPENAI), &alone, FOREIGN);
        }
        world.ends_well();
    });
}

#[test]
fn the_attackers_key_rides_in_no_credential_like_field() {
    sandboxed(|| {
        let world = World::usual();
        for name in [
            "Job-Token",
            "Deploy-Token",
            "Apikey",
            "X-Access-Token",
            "X-Shopify-Access-Token",
            "DD-API-KEY",
            "xi-api-key",
            "X-Goog-IAM-Authorization-Token",
            "X-JFrog-Art-Api",
            "X-Consul-Token",
            "X-ApiKeys",
            "X-Ops-Authorization-1",
            "Cf-Access-Jwt-Assertion",
            "X-NITRO-PASS",
            "X-OVH-Consumer",
            "X_Hasura_Admin_Secret",
            "X-Anything-Password",
            "X-Anything-Credential",
            "X-Anything-Signature",
            "Cookie",
        ] {
            let beside = Ask::to(OPENAI).good().field(name, OWN_KEY);
            world.refuses(name, (AGENT, OPENAI), &beside, DUPLICATE);
            let alone = Ask::to(GIT).field(name, OWN_KEY);
            world.refuses(&format!("{name} alone"), (AGENT, GIT), &alone, FOREIGN);
        }
        assert!(!world.origin.log().holds(OWN_KEY));
        world.ends_well();
    });
}

#[test]
fn the_attackers_key_rides_along_in_no_query() {
    sandboxed(|| {
        let world = World::usual();
        for name in [
            "key",
            "KEY",
            "api_key",
            "apiKey",
            "apikey",
            "access_token",
            "token",
            "auth",
            "sig",
            "signature",
            "X-Amz-Signature",
            "private_token",
            "job_token",
            "k%65y",
            "a=b;key",
            "api-key[]",
            "user_key",
            "license_key",
            "X-Plex-Token",
            "feed_token",
            "id_token",
            "admin_secret",
            "alf_ticket",
            "client_assertion",
            "pass",
            "session_token",
        ] {
            let path = format!("/v1/attack?a=b&{name}={OWN_KEY}");
            let beside = Ask::to(OPENAI).good().path(&path);
            world.refuses(name, (AGENT, OPENAI), &beside, DUPLICATE);
            let alone = Ask::to(GIT).path(&path);
            world.refuses(&format!("{name} alone"), (AGENT, GIT), &alone, FOREIGN);
        }
        assert!(!world.origin.log().holds(OWN_KEY));
        for (name, expected) in [("OPENAI_API_KEY", WRONG_PLACE), ("GIT_TOKEN", WRONG_HOST)] {
            let ask = Ask::to(OPENAI).path(&format!("/v1/attack?key={name}"));
            world.refuses(name, (AGENT, OPENAI), &ask, expected);
        }
        world.ends_well();
    });
}

#[test]
fn a_placeholder_in_the_query_is_swapped_there_alone() {
    sandboxed(|| {
        let config =
            usual_config().binding("OPENAI_API_KEY", |it| it.set("places", ["query key", BEARER]));
        let world = World::with(&config);
        let asked = |query: &str| Ask::to(OPENAI).path(&format!("/v1/attack?{query}"));
        let good = asked("a=b%20c&key=OPENAI_API_KEY&d=e;f");
        for received in world.forwards("the query", (AGENT, OPENAI), &good) {
            let expected = format!("a=b%20c&key={OPENAI_SECRET}&d=e;f");
            assert_eq!(received.uri.query(), Some(&*expected));
        }
        for received in world.forwards("both", (AGENT, OPENAI), &asked("key=OPENAI_API_KEY").good())
        {
            assert_eq!(received.uri.query(), Some(&*format!("key={OPENAI_SECRET}")));
            assert_eq!(received.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
        }
        for (query, expected) in [
            (format!("key={OWN_KEY}"), FOREIGN),
            (format!("key=OPENAI_API_KEY&key={OWN_KEY}"), DUPLICATE),
            ("key=OPENAI_API_KEY&k%65y=OPENAI_API_KEY".into(), DUPLICATE),
            ("key=OPENAI_API_KEY;a=b".into(), WRONG_PLACE),
            ("a=b;key=OPENAI_API_KEY".into(), WRONG_PLACE),
            ("KEY=OPENAI_API_KEY".into(), WRONG_PLACE),
            ("token=OPENAI_API_KEY".into(), WRONG_PLACE),
            ("key=GIT_TOKEN".into(), WRONG_HOST),
            ("key=OPS_OPENAI_KEY".into(), FOREIGN),
        ] {
            world.refuses(&query, (AGENT, OPENAI), &asked(&query), expected);
        }
        // Text whose name does not mark it as a credential is not examined.
        for received in world.forwards("text", (AGENT, OPENAI), &asked("q=OPENAI_API_KEY").good()) {
            assert_eq!(received.uri.query(), Some("q=OPENAI_API_KEY"));
        }
        world.ends_well();
    });
}

#[test]
fn a_placeholder_in_the_path_is_swapped_there_alone() {
    sandboxed(|| {
        let config = usual_config()
            .binding("OPENAI_API_KEY", |it| it.set("places", ["path /v1/bot{}/", BEARER]));
        let world = World::with(&config);
        let asked = |path: &str| Ask::to(OPENAI).path(path);
        let good = asked("/v1/botOPENAI_API_KEY/send?a=b");
        for received in world.forwards("the path", (AGENT, OPENAI), &good) {
            let target = received.uri.path_and_query().expect("a target").as_str();
            assert_eq!(target, format!("/v1/bot{OPENAI_SECRET}/send?a=b"));
        }
        for (path, expected) in [
            (format!("/v1/bot{OWN_KEY}/send"), FOREIGN),
            (format!("/v1/BOT{OWN_KEY}/send"), FOREIGN),
            (format!("/v1/bot{OWN_KEY}/send?key=OPENAI_API_KEY"), DUPLICATE),
            ("/v1/botOPENAI_API_KEY".into(), WRONG_PLACE),
            ("/v1/BotOPENAI_API_KEY/send".into(), WRONG_PLACE),
            ("/v1/botGIT_TOKEN/send".into(), WRONG_HOST),
            (format!("/v1//bot{OWN_KEY}/send"), AMBIGUOUS),
            (format!("/v1/x/../bot{OWN_KEY}/send"), AMBIGUOUS),
            (format!("/v1/%62ot{OWN_KEY}/send"), AMBIGUOUS),
        ] {
            world.refuses(&path, (AGENT, OPENAI), &asked(&path), expected);
        }
        let beside = asked(&format!("/v1/bot{OWN_KEY}/send")).good();
        world.refuses("beside a good one", (AGENT, OPENAI), &beside, DUPLICATE);
        let written = world.gateway.audit.text();
        assert!(!written.contains(OWN_KEY) && written.contains("/v1/bot{}/send"), "{written}");
        world.ends_well();
    });
}

#[test]
fn what_honest_clients_send_beside_their_credential_passes() {
    sandboxed(|| {
        let config = usual_config().api("openai", |it| {
            it.set("plain", ["header x-sort-key", "query key"]).set("keep_cookies", true)
        });
        let world = World::with(&config);
        let mut ask = Ask::to(OPENAI)
            .good()
            .path("/v1/attack?key=name&page_token=a&continuation-token=c&$skiptoken=d&projectKey=e&code=f");
        for name in [
            "Idempotency-Key",
            "X-CSRF-Token",
            "X-Atlassian-Token",
            "X-Amz-Content-Sha256",
            "X-Amz-Server-Side-Encryption-Customer-Key",
            "X-Goog-Encryption-Key",
            "X-Amz-Client-Token",
            "X-Sort-Key",
            "Cookie",
        ] {
            ask = ask.field(name, "a=value");
        }
        for seen in world.forwards("what honest clients send", (AGENT, OPENAI), &ask) {
            assert_eq!(seen.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
            assert_eq!(seen.uri.path_and_query().map(|it| it.as_str()), Some(ask.path.as_str()));
            for (name, value) in ask.fields.iter().skip(1) {
                assert_eq!(seen.header(name), [value.as_str()], "{name}");
            }
        }
        let other = ask.path("/v1/attack?token=x");
        world.refuses("what is not listed", (AGENT, OPENAI), &other, DUPLICATE);
        world.ends_well();
    });
}

#[test]
fn placeholders_in_two_listed_places_are_both_swapped() {
    sandboxed(|| {
        let world = World::usual();
        let two = Ask::to(ANTHROPIC)
            .field("x-api-key", "ANTHROPIC_API_KEY")
            .field("authorization", "Bearer ANTHROPIC_API_KEY");
        for seen in world.forwards("both", (AGENT, ANTHROPIC), &two) {
            assert_eq!(seen.header("x-api-key"), [ANTHROPIC_SECRET]);
            assert_eq!(seen.header("authorization"), [format!("Bearer {ANTHROPIC_SECRET}")]);
        }
        for other in [OWN_KEY, "OPENAI_API_KEY", "Bearer ANTHROPIC_API_KEY"] {
            let ask = Ask::to(ANTHROPIC)
                .field("x-api-key", other)
                .field("authorization", "Bearer ANTHROPIC_API_KEY");
            world.refuses(other, (AGENT, ANTHROPIC), &ask, DUPLICATE);
        }
        world.ends_well();
    });
}

#[test]
fn a_scheme_that_a_binding_lists_is_the_only_one() {
    sandboxed(|| {
        let config = usual_config()
            .binding("OPENAI_API_KEY", |it| it.set("places", ["header authorization scheme Bot"]));
        let world = World::with(&config);
        for value in ["Bot OPENAI_API_KEY", "bot OPENAI_API_KEY"] {
            let ask = Ask::to(OPENAI).field("authorization", value);
            for seen in world.forwards(value, (AGENT, OPENAI), &ask) {
                assert_eq!(seen.header("authorization"), [format!("Bot {OPENAI_SECRET}")]);
            }
        }
        for (value, expected) in [
            ("Bearer OPENAI_API_KEY", WRONG_PLACE),
            ("OPENAI_API_KEY", WRONG_PLACE),
            ("Bot  OPENAI_API_KEY", FOREIGN),
            ("Bots OPENAI_API_KEY.", FOREIGN),
        ] {
            let ask = Ask::to(OPENAI).field("authorization", value);
            world.refuses(value, (AGENT, OPENAI), &ask, expected);
        }
        world.ends_well();
    });
}

#[test]
fn only_listed_requests_go_without_a_credential() {
    sandboxed(|| {
        let config = usual_config().api("openai", |it| it.set("anonymous", ["GET /api/hello"]));
        let world = World::with(&config);
        let hello = Ask::to(OPENAI).method("GET").path("/api/hello");
        for seen in world.forwards("hello", (AGENT, OPENAI), &hello) {
            assert_eq!(seen.header("authorization"), [""; 0]);
        }
        let missing = (403, "placeholder_missing");
        for (method, path) in [
            ("POST", "/api/hello"),
            ("GET", "/api/hello/"),
            ("GET", "/v1/models"),
            ("GET", "/api/hello/../../v1/models"),
            ("GET", "/api/x/..%2fhello"),
        ] {
            let ask = Ask::to(OPENAI).method(method).path(path);
            world.refuses(&format!("{method} {path}"), (AGENT, OPENAI), &ask, missing);
        }
        let post = hello.clone().field("x-http-method-override", "POST");
        world.refuses("overridden", (AGENT, OPENAI), &post, (403, "method_denied"));
        let other = hello.clone().field("x-original-url", "/v1/models");
        world.refuses("another path", (AGENT, OPENAI), &other, (400, "path_ambiguous"));
        let own = hello.clone().field("apikey", OWN_KEY);
        world.refuses("an own key", (AGENT, OPENAI), &own, FOREIGN);
        world.refuses("a good one", (AGENT, OPENAI), &hello.good(), (403, "path_denied"));
        world.ends_well();
    });
}

#[test]
fn two_credentials_in_one_field_are_refused() {
    sandboxed(|| {
        let world = World::usual();
        for value in [
            format!("Bearer OPENAI_API_KEY, Bearer {OWN_KEY}"),
            format!("Bearer {OWN_KEY}, Bearer OPENAI_API_KEY"),
            format!("Bearer OPENAI_API_KEY,{OWN_KEY}"),
            format!("Bearer OPENAI_API_KEY {OWN_KEY}"),
            "Bearer OPENAI_API_KEY, Bearer OPENAI_API_KEY".to_owned(),
        ] {
            let ask = Ask::to(OPENAI).field("authorization", value.clone());
            world.refuses(&value, (AGENT, OPENAI), &ask, FOREIGN);
        }
        world.ends_well();
    });
}

#[test]
fn an_altered_placeholder_is_a_foreign_credential() {
    sandboxed(|| {
        let world = World::usual();
        for token in [
            "openai_api_key",
            "Openai_Api_Key",
            "aaOPENAI_API_KEYbb",
            "OPENAI_API_KEYOPENAI_API_KEY",
            "OPENAI_API_KE",
            "PENAI_API_KEY",
            "OPENAI_API_KEY.",
            "\"OPENAI_API_KEY\"",
            "${OPENAI_API_KEY}",
            "%4FPENAI_API_KEY",
            "OPENAI%5FAPI%5FKEY",
            "OPENAI\\u005fAPI_KEY",
            "T1BFTkFJX0FQSV9LRVk=",
            " OPENAI_API_KEY",
            "OPENAI_API_KEY ; a=b",
            "",
        ] {
            let ask = Ask::to(OPENAI).field("authorization", format!("Bearer {token}"));
            world.refuses(token, (AGENT, OPENAI), &ask, FOREIGN);
        }
        for value in ["BearerOPENAI_API_KEY", "Bearer: OPENAI_API_KEY", "Bearer=OPENAI_API_KEY"] {
            let ask = Ask::to(OPENAI).field("authorization", value);
            world.refuses_bytes(
                value,
                (AGENT, OPENAI),
                ask.h1(),
                match value {
                    // The word before the first space names no scheme, yet the text after it is
                    // ours.
                    "Bearer: OPENAI_API_KEY" => WRONG_PLACE,
                    _ => FOREIGN,
                },
            );
        }
        world.ends_well();
    });
}

#[test]
fn a_placeholder_changed_by_one_byte_is_foreign() {
    sandboxed(|| {
        let world = World::usual();
        // One connection for all: each request is answered, and none is forwarded.
        let before = world.before();
        let mut tls = world.must_h1(AGENT, OPENAI.port6(443), OPENAI.name);
        let me = lab::attack::local(&tls);
        let altered = one_byte_off("OPENAI_API_KEY");
        for token in &altered {
            let ask = Ask::to(OPENAI).field("authorization", format!("Bearer {token}"));
            let answer = tls.ask(ask.h1()).unwrap_or_else(|error| world.fail(token, error));
            world.is_refusal(token, &answer, FOREIGN);
        }
        drop(tls);
        world.recorded("one byte off", me, &vec![Some("foreign_credential"); altered.len()]);
        world.nothing_arrived("one byte off", before);
        world.ends_well();
    });
}

#[test]
fn a_credential_with_bytes_that_readers_see_differently_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for value in [
            &b"Bearer\tOPENAI_API_KEY"[..],
            b"Bearer OPENAI_API_KEY\t;x",
            b"Bearer OPENAI_API_KEY\xff",
            b"Bearer OPENAI_\xc2\xa0API_KEY",
        ] {
            let what = value.escape_ascii().to_string();
            let head = b"GET /v1/attack HTTP/1.1\r\nHost: api.openai.example\r\nAuthorization: ";
            let bytes = [&head[..], value, b"\r\n\r\n"].concat();
            world.refuses_bytes(&what, (AGENT, OPENAI), bytes, MALFORMED);
        }
        world.ends_well();
    });
}

#[test]
fn a_field_cannot_be_named_away_by_connection() {
    sandboxed(|| {
        let world = World::usual();
        for named in [
            "authorization",
            "Authorization, close",
            "close, x-api-key",
            "AUTHORIZATION",
            "x_api_key",
            "content-length",
            "host",
            "x-anything",
            "\"authorization\"",
        ] {
            let ask = Ask::to(OPENAI).good().field("Connection", named);
            world.refuses_bytes(named, (AGENT, OPENAI), ask.h1(), (400, "http_malformed"));
        }
        let two = Ask::to(OPENAI)
            .good()
            .field("Connection", "close")
            .field("Connection", "authorization");
        world.refuses_bytes("on a second line", (AGENT, OPENAI), two.h1(), (400, "http_malformed"));
        world.ends_well();
    });
}

#[test]
fn a_request_without_a_credential_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let expected = (403, "placeholder_missing");
        world.refuses("none", (AGENT, OPENAI), &Ask::to(OPENAI), expected);
        let elsewhere = Ask::to(OPENAI)
            .path("/v1/attack?q=OPENAI_API_KEY")
            .field("x-note", "OPENAI_API_KEY")
            .body("OPENAI_API_KEY");
        world.refuses("as text only", (AGENT, OPENAI), &elsewhere, expected);
        let proxy = Ask::to(OPENAI).field("proxy-authorization", "Bearer OPENAI_API_KEY");
        world.refuses("to a proxy only", (AGENT, OPENAI), &proxy, expected);
        world.ends_well();
    });
}

#[test]
fn basic_is_decoded_once_and_each_half_is_judged_whole() {
    sandboxed(|| {
        let world = World::usual();
        for (pair, expected) in [
            (format!("agent:{OWN_KEY}"), FOREIGN),
            ("agent:xGIT_TOKEN".to_owned(), FOREIGN),
            ("agent:GIT_TOKEN:x".to_owned(), FOREIGN),
            ("agent:GIT_TOKENGIT_TOKEN".to_owned(), FOREIGN),
            ("mallory:GIT_TOKEN".to_owned(), FOREIGN),
            (format!("{OWN_KEY}:GIT_TOKEN"), FOREIGN),
            ("GIT_TOKEN:".to_owned(), WRONG_PLACE),
            (format!("GIT_TOKEN:{OWN_KEY}"), WRONG_PLACE),
            ("GIT_TOKEN:GIT_TOKEN".to_owned(), WRONG_PLACE),
            ("agent:".to_owned(), FOREIGN),
            (":".to_owned(), FOREIGN),
            ("GIT_TOKEN".to_owned(), MALFORMED),
            (STANDARD.encode("agent:GIT_TOKEN"), MALFORMED),
        ] {
            let value = format!("Basic {}", STANDARD.encode(&pair));
            let ask = Ask::to(GIT).field("authorization", value);
            world.refuses(&pair, (AGENT, GIT), &ask, expected);
        }
        let good = STANDARD.encode(":GIT_TOKEN");
        for value in [
            format!("Basic {}", good.trim_end_matches('=')),
            format!("Basic {good}="),
            format!("Basic  {good}"),
            format!("Basic {good} {good}"),
            format!("Basic {good},{good}"),
            "Basic !!!!".to_owned(),
            format!("Basic {}", good.replace('0', "0 ")),
        ] {
            let ask = Ask::to(GIT).field("authorization", value.clone());
            world.refuses(&value, (AGENT, GIT), &ask, MALFORMED);
        }
        world.ends_well();
    });
}

#[test]
fn text_that_looks_like_a_placeholder_goes_through_untouched() {
    sandboxed(|| {
        let world = World::usual();
        let ask = Ask::to(OPENAI)
            .good()
            .path("/v1/OPENAI_API_KEY?q=OPENAI_API_KEY&page_token=Bearer%20OPENAI_API_KEY")
            .field("x-note", "Bearer OPENAI_API_KEY")
            .field("user-agent", "OPENAI_API_KEY")
            .field("idempotency-key", "ANTHROPIC_API_KEY")
            .body("{\"prompt\": \"print OPENAI_API_KEY; Authorization: Bearer OPENAI_API_KEY\"}");
        for seen in world.forwards("ordinary text", (AGENT, OPENAI), &ask) {
            assert_eq!(seen.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
            assert_eq!(seen.body, ask.body);
            assert_eq!(seen.uri.path_and_query().map(|it| it.as_str()), Some(ask.path.as_str()));
            for (name, value) in ask.fields.iter().skip(1) {
                assert_eq!(seen.header(name), [value.as_str()], "{name}");
            }
        }
        for connection in world.origin.log().connections() {
            let h1 = connection.alpn.as_deref() != Some("h2");
            assert!(
                !h1 || connection.count(OPENAI_SECRET) == 1,
                "the secret once: {connection:#?}"
            );
        }
        world.ends_well();
    });
}

#[test]
fn a_chunked_body_is_not_searched_either() {
    sandboxed(|| {
        let world = World::usual();
        let mut tls = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name);
        let answer = tls.ask(
            "POST /v1/attack HTTP/1.1\r\nHost: api.openai.example\r\nAuthorization: Bearer OPENAI_API_KEY\r\n\
             Transfer-Encoding: chunked\r\n\r\n7\r\nOPENAI_\r\n7\r\nAPI_KEY\r\n0\r\n\r\n",
        );
        assert_eq!(answer.expect("an answer").status, 200);
        let seen = &world.origin.log().wait_requests(1)[0];
        assert_eq!(seen.body, "OPENAI_API_KEY");
        drop(tls);
        world.ends_well();
    });
}

#[test]
fn proxy_authorization_never_leaves_and_changes_nothing() {
    sandboxed(|| {
        let world = World::usual();
        for value in ["Bearer OPENAI_API_KEY", "Basic YTpi", OWN_KEY] {
            let ask = Ask::to(OPENAI).good().field("proxy-authorization", value);
            for seen in world.forwards(value, (AGENT, OPENAI), &ask) {
                assert_eq!(seen.header("proxy-authorization"), [""; 0]);
                assert_eq!(seen.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
            }
        }
        assert!(!world.origin.log().holds(OWN_KEY));
        world.ends_well();
    });
}

#[test]
fn each_listed_place_gets_its_own_secret_alone() {
    sandboxed(|| {
        let world = World::usual();
        let raw = Ask::to(ANTHROPIC).field("x-api-key", "ANTHROPIC_API_KEY");
        for seen in world.forwards("raw", (AGENT, ANTHROPIC), &raw) {
            assert_eq!(seen.header("x-api-key"), [ANTHROPIC_SECRET]);
        }
        let bearer = Ask::to(ANTHROPIC).field("authorization", "bearer ANTHROPIC_API_KEY");
        for seen in world.forwards("bearer", (AGENT, ANTHROPIC), &bearer) {
            assert_eq!(seen.header("authorization"), [format!("Bearer {ANTHROPIC_SECRET}")]);
        }
        for user in ["agent", ""] {
            let basic = format!("bAsIc {}", STANDARD.encode(format!("{user}:GIT_TOKEN")));
            let ask = Ask::to(GIT).field("authorization", basic);
            let expected = format!("Basic {}", STANDARD.encode(format!("{user}:{GIT_SECRET}")));
            for seen in world.forwards("basic", (AGENT, GIT), &ask) {
                assert_eq!(seen.header("authorization"), [expected.as_str()]);
            }
        }
        for secret in [SECRETS[0], SECRETS[3]] {
            assert!(!world.origin.log().holds(secret));
        }
        world.ends_well();
    });
}
