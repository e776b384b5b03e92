//! Signatures of AWS that an agent makes by hand, good and bad ones, over both versions of HTTP.

use lab::{
    net::{AGENT, OPENAI},
    sandboxed,
};

use super::{
    ID, KEY, SECRET, TOKEN, amazon, asked, assert_signed, date, day, earlier, field_for, key_of,
    only, secrets, signed,
};
use crate::attack::Scene;

/// Returns an API at a host that speaks both versions of HTTP and echoes.
fn scene() -> Scene {
    let amazon = amazon(&[OPENAI.name], &["s3", "dynamodb"])
        .with(key_of("research", KEY, "file:aws"))
        .with(key_of("operations", "OPS_AWS_KEY_ID", "file:aws"));
    let policy = only(amazon).secrets("file", "{dir}/aws.secrets");
    Scene::with_files(&policy, &[("aws.secrets", &secrets())])
}

fn link_for(key: &str, scope: &str) -> String {
    let (scope, signature) = (scope.replace('/', "%2F"), "00".repeat(32));
    let (day, date) = (day(), earlier());
    format!(
        "/coats/a?x-id=GetObject&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={key}%2F{day}%2F\
         {scope}%2Faws4_request&X-Amz-Date={date}&X-Amz-Expires=604800&X-Amz-SignedHeaders=host&\
         X-Amz-Signature={signature}"
    )
}

const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn a_request_is_signed_again_in_http_1_and_2() {
    sandboxed(|| {
        let scene = scene();
        let s3 = |path: &str| signed(path, "eu-central-1/s3").field("x-amz-content-sha256", EMPTY);
        let hash = "0b8e9e995a8fb4ed2ac3fb9ab3ab4f7a3bb0fbb43d1c43a8c8c5b5b0b1a2c0ff";
        let table = signed("/", "eu-central-1/dynamodb")
            .field("content-type", "application/x-amz-json-1.0");
        for (what, ask) in [
            ("S3", s3("/coats/a").method("GET")),
            (
                "a path and a query",
                s3("/coats/a%20b%2Bc/../d//e?list-type=2&prefix=a%2Fb&uploads").method("GET"),
            ),
            ("a session of the agent's", s3("/coats/a").field("x-amz-security-token", KEY)),
            (
                "fields",
                s3("/a")
                    .field("x-amz-meta-a", "1  2 ")
                    .field("x-amz-meta-b", "3")
                    .field("range", "bytes=0-1"),
            ),
            (
                "hop by hop",
                s3("/a")
                    .field("te", "trailers")
                    .field("accept-encoding", "br")
                    .field("user-agent", "me"),
            ),
            (
                "unsigned",
                signed("/a", "eu-central-1/s3")
                    .field("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
                    .body("x"),
            ),
            ("no hash", signed("/a", "eu-central-1/s3").body("body")),
            (
                "a table",
                table.clone().field("x-amz-target", "DynamoDB_20120810.GetItem").body("{\"a\":1}"),
            ),
            (
                "a path that is encoded twice",
                signed("/model/a%3A0/x%2Fy", "eu-central-1/dynamodb").body("{}"),
            ),
            ("a link", asked(&link_for(KEY, "eu-central-1/s3")).method("GET")),
            (
                "a link with a session",
                asked(&(link_for(KEY, "eu-central-1/s3") + "&X-Amz-Security-Token=" + KEY))
                    .method("GET"),
            ),
            (
                "a link to another service",
                asked(&link_for(KEY, "eu-central-1/dynamodb")).body("{}"),
            ),
        ] {
            for received in scene.forwards(what, (AGENT, OPENAI), &ask) {
                assert_signed(what, &received, (ID, SECRET, Some(TOKEN)));
                let all = format!("{received:?}");
                assert!(!all.contains(KEY) && !all.contains(SECRET), "{all}");
            }
        }
        // The hash that the request states is signed; the server must check that it is true.
        let claimed =
            signed("/a", "eu-central-1/s3").field("x-amz-content-sha256", hash).body("other");
        for received in scene.forwards("a hash", (AGENT, OPENAI), &claimed) {
            assert_eq!(received.header("x-amz-content-sha256"), [hash]);
            assert_eq!(received.body, "other");
        }
        scene.ends_well();
    });
}

#[test]
fn no_key_of_the_agents_own_signs_or_rides_along() {
    sandboxed(|| {
        let scene = scene();
        let scope = "eu-central-1/s3";
        let own = "AKIAMYOWNMYOWNMYOWN1";
        let good = || signed("/coats/a", scope).field("x-amz-content-sha256", EMPTY);
        let dated = || asked("/a").field("x-amz-date", earlier());
        let foreign = |key: &str| dated().field("authorization", field_for(key, scope));
        let duplicate = (400, "duplicate_credential");
        let malformed = (400, "credential_malformed");
        let no = (403, "foreign_credential");
        for (what, ask, expected) in [
            ("a key of one's own", foreign(own), no),
            ("another group's", foreign("OPS_AWS_KEY_ID"), no),
            ("part of it", foreign(&KEY[1..]), no),
            ("embedded", foreign(&format!("x{KEY}")), no),
            ("a link with a key of one's own", asked(&link_for(own, scope)), no),
            (
                "the second version",
                asked("/a").field("authorization", format!("AWS {KEY}:c2lnbmVk")),
                no,
            ),
            ("a bearer", asked("/a").field("authorization", "Bearer mine"), no),
            (
                "a session of one's own",
                good().field("x-amz-security-token", "mine-mine-mine"),
                duplicate,
            ),
            ("a session of S3 Express", good().field("x-amz-s3session-token", "mine"), duplicate),
            ("a key beside it", good().field("x-api-key", "mine"), duplicate),
            (
                "two signatures",
                asked(&link_for(KEY, scope)).field("authorization", field_for(KEY, scope)),
                duplicate,
            ),
            ("a link's part", good().path("/a?X-Amz-Signature=00"), duplicate),
            (
                "a link with a session of one's own",
                asked(&(link_for(KEY, scope) + "&X-Amz-Security-Token=mine")),
                duplicate,
            ),
            (
                "a link with a session in a field",
                asked(&link_for(KEY, scope)).field("x-amz-security-token", "mine"),
                duplicate,
            ),
            (
                "the old link beside it",
                good().path("/a?AWSAccessKeyId=mine&Signature=x"),
                duplicate,
            ),
            ("twice in a link", asked(&(link_for(KEY, scope) + "&X-Amz-Signature=00")), malformed),
            (
                "parted otherwise",
                asked(&link_for(KEY, scope).replace("&X-Amz-Sig", ";X-Amz-Sig")),
                malformed,
            ),
            (
                "spelt otherwise",
                asked(&link_for(KEY, scope).replace("X-Amz-Signature", "x-amz-signature")),
                malformed,
            ),
            (
                "half a signature",
                dated().field(
                    "authorization",
                    field_for(KEY, scope).split(", Sig").next().unwrap_or_default(),
                ),
                malformed,
            ),
            ("none", asked("/a"), (403, "placeholder_missing")),
        ] {
            scene.refuses(what, (AGENT, OPENAI), &ask, expected);
        }
        let trailer = "Transfer-Encoding: chunked\r\nTrailer: x-amz-security-token\r\n\r\n0\r\nx-amz-security-token: mine\r\n\r\n";
        let bytes = good().h1().replace("Content-Length: 0\r\n\r\n", trailer);
        scene.refuses_bytes("in trailers", (AGENT, OPENAI), bytes, (400, "trailer_denied"));
        scene.ends_well();
    });
}

#[test]
fn nothing_is_signed_for_another_service_region_or_host() {
    sandboxed(|| {
        let scene = scene();
        let denied = (403, "scope_denied");
        for scope in
            ["eu-central-1/sts", "eu-central-1/iam", "us-east-1/s3", "eu-central-1/S3", "/s3"]
        {
            scene.refuses(scope, (AGENT, OPENAI), &signed("/a", scope), denied);
            scene.refuses(scope, (AGENT, OPENAI), &asked(&link_for(KEY, scope)), denied);
        }
        let other = signed("/a", "eu-central-1/s3").authority("s3.eu-central-1.amazonaws.com");
        scene.refuses("another host", (AGENT, OPENAI), &other, (421, "host_mismatch"));
        scene.ends_well();
    });
}

/// A signature that the gateway makes would be good whenever the agent's was made.
#[test]
fn a_signature_or_link_of_another_time_is_refused() {
    sandboxed(|| {
        let scene = scene();
        let expired = (403, "signature_expired");
        let scope = "eu-central-1/s3";
        for (what, from_now) in [
            ("too long ago", -time::Duration::minutes(16)),
            ("yesterday", -time::Duration::DAY),
            ("in the future", time::Duration::minutes(16)),
        ] {
            let (own, at) = (date(from_now), day());
            let of_day = |text: String| text.replace(&at, &own[..8]);
            let ask = asked("/a")
                .field("authorization", of_day(field_for(KEY, scope)))
                .field("x-amz-date", own.as_str());
            scene.refuses(what, (AGENT, OPENAI), &ask, expired);
        }
        let ended = link_for(KEY, scope).replace("Expires=604800", "Expires=60");
        scene.refuses("an old link", (AGENT, OPENAI), &asked(&ended), expired);
        let undated = asked("/a").field("authorization", field_for(KEY, scope));
        let malformed = (400, "credential_malformed");
        scene.refuses("no date", (AGENT, OPENAI), &undated, malformed);
        let other = undated.field("x-amz-date", date(time::Duration::DAY));
        scene.refuses("the date of another day", (AGENT, OPENAI), &other, malformed);
        scene.ends_well();
    });
}

#[test]
fn other_signatures_and_large_bodies_are_refused() {
    sandboxed(|| {
        let scene = scene();
        let denied = (403, "signature_denied");
        for payload in [
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
            "x",
        ] {
            let ask = signed("/a", "eu-central-1/s3").field("x-amz-content-sha256", payload);
            scene.refuses(payload, (AGENT, OPENAI), &ask, denied);
        }
        let ecdsa = field_for(KEY, "s3").replace("HMAC-SHA256", "ECDSA-P256-SHA256");
        scene.refuses(
            "for several regions",
            (AGENT, OPENAI),
            &asked("/a").field("authorization", ecdsa).field("x-amz-date", earlier()),
            denied,
        );
        let large = signed("/a", "eu-central-1/dynamodb").h1();
        let large = large.replace("Content-Length: 0", "Content-Length: 25000001");
        scene.refuses_bytes("a large body", (AGENT, OPENAI), large, (413, "body_limit"));
        scene.ends_well();
    });
}

/// The origin answers with the whole request. AWS does so with much of a request whose signature is
/// wrong.
#[test]
fn nothing_comes_back_of_the_keys_that_signed_a_request() {
    sandboxed(|| {
        let scene = scene();
        for ask in [
            signed("/echo", "eu-central-1/s3").field("x-amz-content-sha256", EMPTY),
            asked(&link_for(KEY, "eu-central-1/s3")).method("GET"),
        ] {
            let mut tls = scene.h1(AGENT, OPENAI.port(443), OPENAI.name);
            let answer = tls.ask(ask.h1()).expect("an answer").text();
            drop(tls);
            assert!(answer.contains("****"), "{answer}");
            for part in [
                ID,
                SECRET,
                TOKEN,
                &TOKEN.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D"),
            ] {
                assert!(!answer.contains(part), "{part} in {answer}");
            }
        }
        scene.ends_well();
    });
}
