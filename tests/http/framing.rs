//! The end of a message is unambiguous. A request that two parsers could read as two different ones
//! reaches nobody: an origin that reads another end would take the rest for a request with the
//! secret in it.

use lab::{
    World,
    attack::{Ask, local},
    gateway::{OPENAI_SECRET, usual_config},
    net::{AGENT, OPENAI},
    sandboxed,
};

const MALFORMED: (u16, &str) = (400, "http_malformed");
const LIMIT: (u16, &str) = (431, "header_limit");
const TRAILER: (u16, &str) = (400, "trailer_denied");

/// Returns a head with these fields besides a good credential.
fn head(fields: &str) -> String {
    format!(
        "POST /v1/attack HTTP/1.1\r\nHost: api.openai.example\r\n\
         Authorization: Bearer OPENAI_API_KEY\r\n{fields}\r\n"
    )
}

#[test]
fn a_message_with_two_lengths_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for (fields, body) in [
            ("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\nX"),
            ("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n", "0\r\n\r\nX"),
            ("Transfer-Encoding: identity\r\nContent-Length: 1\r\n", "X"),
            ("Content-Length: 1\r\nContent-Length: 2\r\n", "XY"),
            ("Content-Length: 1\r\nContent-Length: 1\r\n", "X"),
            ("Content-Length: 1, 1\r\n", "X"),
            ("Content-Length: +1\r\n", "X"),
            ("Content-Length: -1\r\n", "X"),
            ("Content-Length: 0x1\r\n", "X"),
            ("Content-Length: 1 1\r\n", "X"),
            ("Content-Length: 1;\r\n", "X"),
            ("Content-Length: \"1\"\r\n", "X"),
            ("Content-Length:\r\n", ""),
            ("Content-Length: 18446744073709551617\r\n", "X"),
        ] {
            world.refuses_bytes(fields, (AGENT, OPENAI), head(fields) + body, MALFORMED);
        }
        world.ends_well();
    });
}

#[test]
fn a_transfer_coding_that_is_not_plainly_chunked_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for coding in [
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: chunkedx\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, gzip\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "Transfer-Encoding: \"chunked\"\r\n",
            "Transfer-Encoding: chunked;q=1\r\n",
            "Transfer-Encoding: ,chunked\r\n",
            "Transfer-Encoding:\x0bchunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            " Transfer-Encoding: chunked\r\n",
            "X: y\r\n Transfer-Encoding: chunked\r\n",
            "Transfer-Encoding:\r\n chunked\r\n",
            "Transfer-Encoding\r\n: chunked\r\n",
            "Transfer-Encoding: chunked\rX: y\r\n",
            "Transfer\x00-Encoding: chunked\r\n",
            "Transfer-Encoding:\r\n",
        ] {
            let bytes = head(coding) + "0\r\n\r\n";
            world.refuses_bytes(
                &coding.escape_debug().to_string(),
                (AGENT, OPENAI),
                bytes,
                MALFORMED,
            );
        }
        let old =
            head("Transfer-Encoding: chunked\r\n").replace("HTTP/1.1", "HTTP/1.0") + "0\r\n\r\n";
        world.refuses_bytes("chunked in HTTP/1.0", (AGENT, OPENAI), old, MALFORMED);
        world.ends_well();
    });
}

#[test]
fn a_field_resembling_a_length_does_not_pass_as_one() {
    sandboxed(|| {
        let world = World::usual();
        // An origin that folds `_` would see a second length, which must not differ from ours.
        let ask = Ask::to(OPENAI)
            .good()
            .field("content_length", "0")
            .field("transfer_encoding", "chunked")
            .body("0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n");
        world.refuses("underscores", (AGENT, OPENAI), &ask, MALFORMED);
        for name in
            ["Content.Length", "Transfer.Encoding", "Content~Length", "Accept_Charset", "A.IM"]
        {
            let ask = Ask::to(OPENAI).good().field(name, "0");
            world.refuses(name, (AGENT, OPENAI), &ask, MALFORMED);
        }
        world.ends_well();
    });
}

#[test]
fn a_line_that_does_not_end_in_crlf_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let good = head("Content-Length: 0\r\n");
        for (what, bytes) in [
            ("bare LF everywhere", good.replace("\r\n", "\n")),
            ("bare LF after the request line", good.replacen("\r\n", "\n", 1)),
            ("bare LF at the end", good.replace("\r\n\r\n", "\r\n\n")),
            ("bare LF in a value", head("X: y\nAuthorization: Bearer sk-attacker\r\n")),
            ("bare CR in a value", head("X: y\rAuthorization: Bearer sk-attacker\r\n")),
            ("CR CR LF", good.replacen("\r\n", "\r\r\n", 1)),
            ("an empty line first", format!("\r\n{good}")),
            ("a space first", format!(" {good}")),
            ("folded", head("X: y\r\n Authorization: Bearer sk-attacker\r\n")),
            ("folded by a tab", head("X: y\r\n\tz\r\n")),
            ("NUL in a value", head("X: y\0z\r\n")),
            ("no colon", head("X\r\n")),
            ("no name", head(": y\r\n")),
            ("a space in a name", head("X Y: z\r\n")),
            ("a tab before the colon", head("X\t: z\r\n")),
            ("brackets in a name", head("X[]: z\r\n")),
            ("two spaces", good.replacen(" HTTP/1.1", "  HTTP/1.1", 1)),
            ("a tab in the request line", good.replacen(" HTTP/1.1", "\tHTTP/1.1", 1)),
            ("no version", good.replacen(" HTTP/1.1", "", 1)),
            ("a version beyond", good.replacen("HTTP/1.1", "HTTP/1.2", 1)),
            ("HTTP/2.0 in text", good.replacen("HTTP/1.1", "HTTP/2.0", 1)),
            ("HTTP/01.1", good.replacen("HTTP/1.1", "HTTP/01.1", 1)),
            ("lower-case version", good.replacen("HTTP/1.1", "http/1.1", 1)),
            ("not HTTP", "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned()),
        ] {
            world.refuses_bytes(what, (AGENT, OPENAI), bytes, MALFORMED);
        }
        world.ends_well();
    });
}

#[test]
fn an_ambiguous_chunked_body_never_completes_at_the_origin() {
    sandboxed(|| {
        let world = World::usual();
        for chunks in [
            "5 \r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5;a\nb\r\nhello\r\n0\r\n\r\n",
            "5;a\x01\r\nhello\r\n0\r\n\r\n",
            "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            "-1\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            "5\r\nhello\r\n0\r\nX: y\nAuthorization: z\r\n\r\n",
            "5\r\nhello\r\n0\r\n X: y\r\n\r\n",
        ] {
            let what = chunks.escape_debug().to_string();
            let before = world.before();
            let mut tls = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name);
            let me = local(&tls);
            let smuggled = "GET /v1/smuggled HTTP/1.1\r\nHost: api.openai.example\r\n\
                Authorization: Bearer OPENAI_API_KEY\r\n\r\n";
            tls.send(head("Transfer-Encoding: chunked\r\n") + chunks + smuggled).expect("sent");
            let answer = String::from_utf8_lossy(&tls.read_to_end()).into_owned();
            assert!(!answer.starts_with("HTTP/1.1 2"), "{what}: {answer}");
            drop(tls);
            world.recorded(&what, me, &[Some("http_malformed")]);
            for connection in world.connections_since(before) {
                assert!(connection.requests.is_empty(), "{what}: {connection:#?}");
                assert_eq!(connection.count("/v1/smuggled"), 0, "{what}");
                assert!(connection.count(OPENAI_SECRET) <= 1, "{what}");
            }
        }
        world.ends_well();
    });
}

#[test]
fn a_credential_in_the_trailers_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for trailer in [
            "Authorization: Bearer OPENAI_API_KEY",
            "X-Api-Key: sk-attacker",
            "x_api_key: z",
            "Proxy-Authorization: z",
        ] {
            let before = world.before();
            let mut tls = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name);
            let me = local(&tls);
            let body = format!("5\r\nhello\r\n0\r\n{trailer}\r\n\r\n");
            let fields =
                "Transfer-Encoding: chunked\r\nTrailer: Authorization, X-Api-Key, x_api_key\r\n";
            tls.send(head(fields) + &body).expect("sent");
            let answer = String::from_utf8_lossy(&tls.read_to_end()).into_owned();
            assert!(!answer.starts_with("HTTP/1.1 2"), "{trailer}: {answer}");
            drop(tls);
            world.recorded(trailer, me, &[Some(TRAILER.1)]);
            for connection in world.connections_since(before) {
                assert!(connection.requests.is_empty(), "{trailer}: {connection:#?}");
                assert_eq!(connection.count("sk-attacker"), 0);
            }
        }
        world.ends_well();
    });
}

#[test]
fn an_ordinary_trailer_arrives() {
    sandboxed(|| {
        let world = World::usual();
        let mut tls = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name);
        let fields = "Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n";
        let answer = tls.ask(head(fields) + "5\r\nhello\r\n0\r\nX-Sum: OPENAI_API_KEY\r\n\r\n");
        assert_eq!(answer.expect("an answer").status, 200);
        let seen = &world.origin.log().wait_requests(1)[0];
        assert_eq!(seen.body, "hello");
        assert!(!world.origin.log().connections()[0].requests[0].headers.contains_key("x-sum"));
        drop(tls);
        world.ends_well();
    });
}

#[test]
fn pipelined_requests_are_judged_and_answered_one_by_one() {
    sandboxed(|| {
        let world = World::usual();
        let good = |path: &str| Ask::to(OPENAI).good().path(path).h1();
        let none = Ask::to(OPENAI).path("/v1/second").h1();
        let broken = good("/v1/second").replacen("\r\nHost", "\nHost", 1);
        for (what, first, second, status, reason) in [
            ("no credential", good("/status/200"), none.clone(), "403", "placeholder_missing"),
            ("malformed", good("/status/200"), broken.clone(), "400", "http_malformed"),
            (
                "malformed behind a slow answer",
                good("/slow?ms=300"),
                broken.clone(),
                "400",
                "http_malformed",
            ),
            (
                "no credential behind a slow answer",
                good("/slow?ms=300"),
                none,
                "403",
                "placeholder_missing",
            ),
        ] {
            let before = world.before();
            let mut tls = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name);
            let me = local(&tls);
            tls.send(first + &second).expect("sent");
            let mut answers = Vec::new();
            let mut text = String::new();
            while !text.contains("\"flow\"") {
                let some = tls.read_some(4096).unwrap_or_default();
                if some.is_empty() {
                    break;
                }
                answers.extend(some);
                text = String::from_utf8_lossy(&answers).into_owned();
            }
            assert!(text.starts_with("HTTP/1.1 200"), "{what}: the first answer is lost: {text:?}");
            assert_eq!(text.matches("HTTP/1.1 ").count(), 2, "{what}: {text}");
            assert!(
                text.contains(&format!("HTTP/1.1 {status}")) && text.contains(reason),
                "{what}: {text}"
            );
            drop(tls);
            world.recorded(what, me, &[None, Some(reason)]);
            let new = world.connections_since(before);
            assert_eq!(new.iter().map(|it| it.requests.len()).sum::<usize>(), 1, "{what}");
            assert_eq!(new.iter().map(|it| it.count("/v1/second")).sum::<usize>(), 0, "{what}");
        }
        world.ends_well();
    });
}

#[test]
fn a_body_is_never_read_as_a_request() {
    sandboxed(|| {
        let world = World::usual();
        let inner = Ask::to(OPENAI).good().path("/v1/inner").h1();
        let fields = format!("Content-Length: {}\r\n", inner.len());
        let mut tls = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name);
        assert_eq!(tls.ask(head(&fields) + &inner).expect("an answer").status, 200);
        let none = head(&fields).replace("Authorization: Bearer OPENAI_API_KEY\r\n", "");
        let answer = tls.ask(none + &inner).expect("an answer");
        world.is_refusal("body of a refused request", &answer, (403, "placeholder_missing"));
        let rest = String::from_utf8_lossy(&tls.read_to_end()).into_owned();
        assert!(!rest.contains("HTTP/1.1 200"), "the refused body was served: {rest}");
        drop(tls);
        let seen = &world.origin.log().wait_requests(1)[0];
        assert_eq!(seen.body, inner.as_bytes());
        world.ends_well();
    });
}

#[test]
fn a_head_beyond_the_bounds_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let long = head(&format!("X: {}\r\n", "a".repeat(70_000)));
        world.refuses_bytes("a long value", (AGENT, OPENAI), long, LIMIT);
        let long = Ask::to(OPENAI).good().path(&format!("/v1/{}", "a".repeat(70_000)));
        world.refuses_bytes("a long target", (AGENT, OPENAI), long.h1(), LIMIT);
        let many = head(&"X: y\r\n".repeat(101));
        world.refuses_bytes("many fields", (AGENT, OPENAI), many, LIMIT);
        let many =
            (0..101).fold(Ask::to(OPENAI).good(), |ask, at| ask.field(&format!("x-{at}"), "y"));
        world.refuses("many fields", (AGENT, OPENAI), &many, LIMIT);
        world.ends_well();
    });
}

#[test]
fn heads_within_raised_bounds_are_refused_in_our_words() {
    sandboxed(|| {
        // The bounds are as wide as they can be, and the number of fields is beyond the usual one.
        let raised = usual_config().limit("head_bytes", "128KiB").limit("head_fields", 300);
        let world = World::with(&raised);
        for length in ["18446744073709551615", "18446744073709551614", "9223372036854775808"] {
            let bytes = head(&format!("Content-Length: {length}\r\n"));
            world.refuses_bytes(length, (AGENT, OPENAI), bytes, MALFORMED);
        }
        let name = head(&format!("{}: y\r\n", "x".repeat(65_536)));
        world.refuses_bytes("a long name", (AGENT, OPENAI), name, LIMIT);
        let target = Ask::to(OPENAI).good().path(&format!("/{}", "a".repeat(65_534))).h1();
        world.refuses_bytes("a long target", (AGENT, OPENAI), target, LIMIT);
        let fields = |count: usize| {
            (0..count).fold(Ask::to(OPENAI).good(), |ask, at| ask.field(&format!("x-{at}"), "y"))
        };
        // Host, the credential and the length count as fields too.
        world.forwards("many fields", (AGENT, OPENAI), &fields(297));
        world.refuses("more fields", (AGENT, OPENAI), &fields(301), LIMIT);
        let long = Ask::to(OPENAI).good().field("x-long", "a".repeat(140_000));
        world.refuses("more bytes", (AGENT, OPENAI), &long, LIMIT);
        world.ends_well();
    });
}

#[test]
fn a_head_that_trickles_is_refused_at_its_deadline() {
    sandboxed(|| {
        let config = usual_config().limit("head_time", "1s");
        let world = World::with(&config);
        let before = world.before();
        let mut tls = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name);
        let me = local(&tls);
        let begun = std::time::Instant::now();
        for byte in head("").bytes().take(60) {
            if tls.send([byte]).is_err() || begun.elapsed().as_millis() > 600 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
        let answer = tls.response().expect("an answer");
        world.is_refusal("slow", &answer, (408, "http_timeout"));
        drop(tls);
        world.recorded("slow", me, &[Some("http_timeout")]);
        world.nothing_arrived("slow", before);
        world.ends_well();
    });
}

#[test]
fn a_head_that_ends_early_reaches_nobody() {
    sandboxed(|| {
        let world = World::usual();
        let whole = head("Content-Length: 0\r\n");
        let before = world.before();
        for end in [1, whole.len() / 2, whole.len() - 3, whole.len() - 1] {
            let mut tls = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name);
            let me = local(&tls);
            tls.send(&whole.as_bytes()[..end]).expect("sent");
            drop(tls);
            world.recorded("cut", me, &[]);
        }
        world.nothing_arrived("cut", before);
        world.ends_well();
    });
}

#[test]
fn an_old_request_goes_out_as_http_1_1() {
    sandboxed(|| {
        let world = World::usual();
        let old =
            head("Content-Length: 5\r\nConnection: close\r\n").replace("HTTP/1.1", "HTTP/1.0");
        let mut tls = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name);
        tls.send(old + "hello" + &head("")).expect("sent");
        let answer = String::from_utf8_lossy(&tls.read_to_end()).into_owned();
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{answer}");
        let seen = &world.origin.log().wait_requests(1)[0];
        assert_eq!((seen.version, &seen.body[..]), (http::Version::HTTP_11, &b"hello"[..]));
        world.ends_well();
    });
}
