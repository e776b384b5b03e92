//! The possible shapes of one request and its answer.

use std::time::{Duration, Instant};

use http::Request;
use lab::{
    client::{agent, succeed},
    gateway::{OPENAI_SECRET, SECRETS},
    net::{AGENT, OPENAI},
    origin::pattern,
    sandboxed,
    wire::Wire,
};

use super::{INTERCEPTED, LARGE, SPLICED, Way, curl, world};
use crate::world::{TICKET, get_path};

#[test]
fn both_directions_of_one_exchange_flow_at_the_same_time() {
    sandboxed(|| {
        let world = world();
        let mut h2 = world.h2(OPENAI).expect("a connection");
        let echoed = h2.run(|requests| async move {
            let request = Request::post("https://api.openai.example/duplex")
                .header("authorization", "Bearer OPENAI_API_KEY");
            let request = request.body(()).expect("a request");
            let (answer, mut send) = requests.ready().await?.send_request(request, false)?;
            let mut answer = answer.await?.into_body();
            let mut echoed = Vec::new();
            for word in ["one", "two", "three"] {
                send.send_data(word.into(), false)?;
                let part = answer.data().await.transpose()?.unwrap_or_default();
                answer.flow_control().release_capacity(part.len())?;
                echoed.push(String::from_utf8_lossy(&part).into_owned());
            }
            send.send_data("".into(), true)?;
            while let Some(rest) = answer.data().await.transpose()? {
                assert!(rest.is_empty(), "{rest:?}");
            }
            Ok(echoed)
        });
        assert_eq!(echoed.expect("an answer"), ["one", "two", "three"]);

        let mut tls = world.h1(OPENAI).expect("a connection");
        let head = get_path("/duplex", &[TICKET, "Transfer-Encoding: chunked"]);
        tls.send(head.replacen("GET", "POST", 1)).expect("sent");
        let mut seen = String::new();
        for word in ["one", "two", "three"] {
            tls.send(format!("{:x}\r\n{word}\r\n", word.len())).expect("sent");
            while !seen.contains(word) {
                let part = tls.read_some(4096).expect("it comes before the next is sent");
                assert!(!part.is_empty(), "{seen}");
                seen += &String::from_utf8_lossy(&part);
            }
        }
    });
}

#[test]
fn many_streams_of_one_connection_run_at_once() {
    sandboxed(|| {
        let world = world();
        let begun = Instant::now();
        let arguments = ["--parallel", "--parallel-max", "50", "-o", "/dev/null"];
        curl(&world, INTERCEPTED[1], &arguments, "/slow?ms=700&n=[1-50]");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(10), "50 answers of 0.7 s took {took:?}");
        for request in world.origin.log().wait_requests(50) {
            assert_eq!(request.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
        }
        assert_eq!(world.origin.log().connections().len(), 1);
        world.gateway.audit.wait_for(|record| record.is("connection"));
        assert_eq!((world.connections().len(), world.requests().len()), (1, 50));
    });
}

#[test]
fn an_unread_stream_does_not_stop_the_others() {
    sandboxed(|| {
        let world = world();
        let mut h2 = world.h2(OPENAI).expect("a connection");
        let ask = |path: String| {
            let request = Request::get(format!("https://api.openai.example{path}"));
            request.header("authorization", "Bearer OPENAI_API_KEY").body(()).expect("a request")
        };
        let others = h2.run(|requests| async move {
            let large = ask(format!("/pattern?bytes={LARGE}"));
            let mut requests = requests.ready().await?;
            let (answer, _) = requests.send_request(large, true)?;
            let held = answer.await?;
            let mut others = 0;
            for _ in 0..20 {
                requests = requests.ready().await?;
                let small = ask("/pattern?bytes=30000".to_owned());
                let (answer, _) = requests.send_request(small, true)?;
                let mut body = answer.await?.into_body();
                while let Some(part) = body.data().await {
                    let part = part?;
                    others += part.len();
                    body.flow_control().release_capacity(part.len())?;
                }
            }
            drop(held);
            Ok(others)
        });
        assert_eq!(others.expect("the others are answered"), 20 * 30_000);
    });
}

#[test]
fn a_body_is_asked_for_before_it_is_sent() {
    sandboxed(|| {
        let (world, body) = (world(), pattern(2 << 20));
        let file = world.lab.write("upload", &body).display().to_string();
        let expect = ["-v", "-H", "Expect: 100-continue", "--expect100-timeout", "30", "-T", &file];
        for way in [INTERCEPTED[0], SPLICED[0]] {
            let begun = Instant::now();
            let mut curl = agent(&world.lab, AGENT, "curl");
            curl.args(["-sS", "--fail", way.version, "-H", TICKET]).args(expect);
            let output = curl.arg(way.url("/status/200")).output().expect("curl starts");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
            assert!(said.contains("< HTTP/1.1 100 Continue"), "{way:?}: {said}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{way:?}: it was not asked for");
        }
        for request in world.origin.log().wait_requests(2) {
            assert!(request.body == body);
        }
    });
}

#[test]
fn a_body_that_will_be_refused_is_not_asked_for() {
    sandboxed(|| {
        let world = world();
        world.assert_refused(
            "POST /v1/x HTTP/1.1\r\nHost: api.openai.example\r\nExpect: 100-continue\r\n\
             Authorization: Bearer not-a-placeholder\r\nContent-Length: 1000000\r\n\r\n",
            403,
            "foreign_credential",
        );
    });
}

#[test]
fn a_body_of_unknown_length_arrives_whole() {
    sandboxed(|| {
        let (world, body) = (world(), pattern(3_000_017));
        let file = world.lab.write("upload", &body).display().to_string();
        let data = format!("@{file}");
        let arguments = ["-H", "Transfer-Encoding: chunked", "-X", "POST", "--data-binary", &data];
        for way in [INTERCEPTED[0], SPLICED[0]] {
            curl(&world, way, &arguments, "/status/200");
        }
        // HTTP/2 has no such field: a body from a pipe has no length.
        for way in [INTERCEPTED[1], SPLICED[1]] {
            let mut shell = agent(&world.lab, AGENT, "sh");
            let url = way.url("/status/200");
            let line = format!("cat {file} | curl -sS --fail --http2 -H '{TICKET}' -T - {url}");
            succeed(shell.args(["-c", &line]));
        }
        for request in world.origin.log().wait_requests(4) {
            assert!(request.header("content-length").is_empty(), "{:?}", request.headers);
            assert!(request.body == body, "{} bytes arrived", request.body.len());
        }
    });
}

#[test]
fn answers_without_a_body_leave_the_connection_in_order() {
    sandboxed(|| {
        let world = world();
        for way in Way::all() {
            let common = ["-sS", way.version, "-H", TICKET, "-o", "/dev/null", "-w", SUMMARY];
            let asks: [(&[&str], &str); 5] = [
                (&["--head"], "/pattern?bytes=1000"),
                (&[], "/status/204"),
                (&[], "/status/304"),
                (&["--head"], "/status/404"),
                (&[], "/pattern?bytes=1000"),
            ];
            let mut curl = agent(&world.lab, AGENT, "curl");
            for (more, path) in asks {
                curl.args(common).args(more).arg(way.url(path)).arg("--next");
            }
            let seen = succeed(curl.args(common).arg(way.url("/status/200")));
            let expected = "200 0 1\n204 0 0\n304 0 0\n404 0 0\n200 1000 0\n200 12 0\n";
            assert_eq!(seen, expected, "{way:?}: status, bytes, new connections");
        }
        let heads = curl(&world, INTERCEPTED[0], &["--head"], "/pattern?bytes=1000");
        assert!(heads.to_lowercase().contains("content-length: 1000"), "{heads}");
    });
}

#[test]
fn trailers_of_an_answer_arrive() {
    sandboxed(|| {
        let world = world();
        let mut h2 = world.h2(OPENAI).expect("a connection");
        let request = Request::get("https://api.openai.example/trailers")
            .header("authorization", "Bearer OPENAI_API_KEY")
            .header("te", "trailers");
        let answer = h2.ask(request.body(()).expect("a request"), "").expect("an answer");
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "body"));
        assert_eq!(
            answer.trailers.get("x-checksum").map(|value| value.as_bytes()),
            Some(&b"abc"[..])
        );
    });
}

#[test]
fn a_key_the_api_repeats_is_masked_at_its_length() {
    sandboxed(|| {
        let world = world();
        let wire = Wire::tap(&world.lab, AGENT);
        for way in INTERCEPTED {
            let ask = |path: &str| {
                let mut curl = agent(&world.lab, AGENT, "curl");
                curl.env("SSLKEYLOGFILE", wire.keys());
                curl.args(["-sS", "--fail", "-i", way.version, "-H", TICKET]).arg(way.url(path));
                succeed(&mut curl)
            };
            for (path, told) in [
                (
                    "/reflect",
                    format!("you sent Bearer {OPENAI_SECRET}, twice: Bearer {OPENAI_SECRET}"),
                ),
                ("/reflect-split", format!("you sent Bearer {OPENAI_SECRET}.")),
            ] {
                let seen = ask(path);
                let (head, body) = seen.split_once("\r\n\r\n").expect("a head");
                assert_eq!(body.len(), told.len(), "{way:?}: {body}");
                // This also holds where frames of one byte hide it from a search on the wire.
                assert!(!seen.contains(OPENAI_SECRET), "{way:?}: {seen}");
                assert!(body.starts_with("you sent Bearer "), "{way:?}: {body}");
                assert_eq!(
                    head.to_lowercase().contains("x-reflected: bearer "),
                    path == "/reflect"
                );
            }
        }
        assert!(world.origin.log().holds(OPENAI_SECRET), "the API did have it");
        let sessions = wire.sessions();
        assert!(sessions.iter().any(|it| it.receives("you sent Bearer ")), "the search is broken");
        wire.assert_never(&SECRETS);
        for record in world.requests() {
            let copies = if record["path"] == "/reflect" { 3 } else { 1 };
            let masked = copies * OPENAI_SECRET.len();
            assert_eq!(
                (&record["masked"], &record["reason"]),
                (&masked.into(), &"response_masked".into())
            );
        }
        world.assert_secrets_untold();
    });
}

#[test]
fn the_mere_beginning_of_a_key_is_eventually_passed() {
    sandboxed(|| {
        let world = world();
        // The API echoes the body, which ends with all of the key except its last byte.
        let body = &OPENAI_SECRET[..OPENAI_SECRET.len() - 1];
        let head = get_path("/v1/echo", &[TICKET, &format!("Content-Length: {}", body.len())]);
        let answer = world.ask(&(head.replacen("GET", "POST", 1) + body));
        assert!(answer.text().contains(&format!("\"{body}\"")), "{}", answer.text());
    });
}

/// The format for curl's `--write-out`.
const SUMMARY: &str = "%{http_code} %{size_download} %{num_connects}\n";
