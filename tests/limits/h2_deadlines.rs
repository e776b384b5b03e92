//! HTTP/2 connections that are kept alive by frames that are no message, and heads that never end.

use std::{
    thread,
    time::{Duration, Instant},
};

use lab::{
    net::{AGENT, OPENAI},
    sandboxed,
};

use crate::attack::{
    Scene,
    raw_h2::{
        CONTINUATION, END_HEADERS, END_STREAM, HEADERS, Outcome, RawH2, block, fields, frame,
    },
};

const KEY: (&str, &str) = ("authorization", "Bearer OPENAI_API_KEY");
const PING: u8 = 6;

fn scene(limit: &'static str, time: &str) -> Scene {
    Scene::with(&lab::gateway::usual_config().limit(limit, time))
}

fn open(scene: &Scene) -> RawH2 {
    let hello = scene.hello2(OPENAI.name);
    RawH2::open(AGENT, OPENAI.port(443), &hello).expect("a connection")
}

/// Sends this again and again until the connection accepts no more of it; returns how long that
/// took.
fn until_cut(h2: &mut RawH2, every: Duration, bytes: &[u8]) -> Duration {
    let begun = Instant::now();
    while h2.send(bytes).is_ok() && begun.elapsed() < Duration::from_secs(60) {
        thread::sleep(every);
    }
    begun.elapsed()
}

#[test]
fn an_h2_head_that_trickles_is_cut_at_its_deadline() {
    sandboxed(|| {
        let scene = scene("head_time", "1s");
        let before = scene.before();
        let head = block(&fields("GET", OPENAI.name, "/v1/x", &[KEY]));
        let begin = frame(HEADERS, END_STREAM, 1, &head[..20]);
        let half = frame(CONTINUATION, 0, 1, &[0; 16_000]);
        for (what, begin, more) in [
            // So few that the library does not end them first.
            ("many frames", begin.clone(), frame(CONTINUATION, 0, 1, b"")),
            ("one frame", [&begin[..], &half[..9]].concat(), vec![0]),
            ("a frame of another kind", frame(PING, 0, 0, &[0; 8])[..12].to_vec(), Vec::new()),
        ] {
            let mut h2 = open(&scene);
            let me = h2.me;
            h2.send(begin).expect("sent");
            if more.is_empty() {
                assert_eq!(h2.outcome(1), Outcome::ConnectionEnded(Some(1)), "{what}");
            } else {
                let took = until_cut(&mut h2, Duration::from_millis(300), &more);
                assert!(took < Duration::from_secs(4), "{what}: {took:?}");
            }
            let connection = scene.recorded(what, me, &[Some("http_timeout")]);
            assert_eq!(connection["decision"], "intercept", "{what}: {connection}");
            assert_eq!(connection["reason"], "http_timeout", "{what}: {connection}");
            scene.nothing_arrived(what, before);
        }
        scene.ends_well();
    });
}

#[test]
fn pings_keep_no_connection_and_no_hanging_stream_alive() {
    sandboxed(|| {
        let scene = scene("idle_time", "10s");
        let ping = frame(PING, 0, 0, &[0; 8]);
        let head = block(&fields("GET", OPENAI.name, "/slow?ms=100000", &[KEY]));
        let (mut idle, mut hanging) = (open(&scene), open(&scene));
        hanging.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)).expect("sent");
        let begun = Instant::now();
        while idle.send(&ping).is_ok() && begun.elapsed() < Duration::from_secs(25) {
            hanging.send(&ping).expect("its stream is open");
            thread::sleep(Duration::from_millis(500));
        }
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(25), "no stream was open for {took:?}");
        // The stream has its answer by now, so the connection is idle.
        let answer = hanging.outcome(1);
        assert_eq!(answer.reason().as_deref(), Some("upstream_unreachable"), "{answer:?}");
        let took = until_cut(&mut hanging, Duration::from_millis(500), &ping);
        assert!(took < Duration::from_secs(25), "no stream was open for {took:?}");
        for (me, requests) in [(idle.me, 0), (hanging.me, 1)] {
            let (connection, _) = scene.records("idle", me, requests);
            assert_eq!(connection["end"], "idle", "{connection}");
        }
        let left = scene.gateway.sockets();
        assert!(!left.iter().any(|state| state.starts_with("FIN")), "{left:?}");
        scene.ends_well();
    });
}
