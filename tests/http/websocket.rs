//! WebSockets: the key stands in the handshake and nowhere else, no form of it comes back, and only
//! bytes of frames in order pass.

mod api;
mod clients;
mod peer;

use std::{
    thread,
    time::{Duration, Instant},
};

use lab::{
    World,
    attack::local,
    audit::Record,
    client::Tls,
    gateway::{self, OPENAI_SECRET, PUBLIC_CA, SECRETS, usual_config},
    net::AGENT,
    sandboxed, wait,
    websocket::{BINARY, CLOSE, Frame, PING, PONG, TEXT, code, frame},
};
use policy_builder::{Config, api, binding, inspect};
use serde_json::Value;

use self::{
    api::{ADDRESS, Api, Received, field, in_every_form, in_frames},
    peer::Agent,
};
use crate::lifecycle::control::tell;

const NAME: &str = "live.example";
const CLOSED: &str = "closed.example";
const SEEN: &str = "seen.example";

/// Returns the usual policy, and hosts whose handshakes are allowed, refused, and inspected.
fn config() -> Config {
    let places = [gateway::BEARER, "query key", SUBPROTOCOL];
    let key = |places: &[&str]| binding("research", "LIVE_API_KEY", places, "file:openai");
    let live = api("live", &[NAME]).set("paths", ["/v1/*"]).set("websocket", true);
    let seen = inspect("seen", &["research"], &[SEEN]).set("paths", ["/v1/*"]);
    usual_config()
        .with(live.set("upstream_ca", PUBLIC_CA).with(key(&places)))
        .with(api("closed", &[CLOSED]).set("upstream_ca", PUBLIC_CA).with(key(&places[..1])))
        .with(seen.set("websocket", true).set("upstream_ca", PUBLIC_CA))
}

const SUBPROTOCOL: &str = "websocket subprotocol openai-insecure-api-key.";
const BEARER: &str = "Authorization: Bearer LIVE_API_KEY\r\n";
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

struct Live {
    world: World,
    api: Api,
}

impl Live {
    fn start() -> Self {
        Self::saying(vec![])
    }

    /// Starts one whose API sends these bytes at `/v1/say/N`.
    fn saying(said: Vec<Vec<u8>>) -> Self {
        Self::with(&config(), said)
    }

    /// Starts one with another configuration.
    fn with(config: &Config, said: Vec<Vec<u8>>) -> Self {
        let mut api = None;
        let world = World::prepared(config, |lab, dns| {
            let address = || vec![ADDRESS.parse().expect("an address")];
            [NAME, CLOSED, SEEN].iter().for_each(|name| dns.set(name, &address()));
            lab.names(&[(NAME, address())]);
            api = Some(Api::start(lab, &[NAME, CLOSED, SEEN], said));
        });
        Self { world, api: api.expect("it was started") }
    }

    #[track_caller]
    fn open(&self, name: &str) -> Tls {
        let to = format!("{ADDRESS}:443").parse().expect("an address");
        self.world.h1_from(AGENT, to, name).expect("a connection")
    }

    /// Opens a WebSocket to this target, to which the API has agreed.
    #[track_caller]
    fn connect(&self, target: &str, fields: &str) -> (Agent, String) {
        let (agent, head) = Agent::shake(self.open(NAME), handshake(NAME, target, fields));
        assert!(
            head.starts_with("HTTP/1.1 101 "),
            "{target}: {head}\n{}",
            self.world.gateway.stderr()
        );
        (agent, head)
    }

    /// Requires this answer, an audit record with the same reason, and that nothing arrives.
    #[track_caller]
    fn refuses(&self, name: &str, handshake: &str, status: u16, reason: &str) {
        let before = self.api.received().len();
        let answer = self.open(name).ask(handshake).expect("an answer");
        let got = (answer.status.as_u16(), answer.reason());
        assert_eq!(got, (status, Some(reason.to_owned())), "{handshake}: {}", answer.text());
        let heard = |one: &Received| !matches!(one, Received::End);
        let new = self.api.received().split_off(before);
        assert!(!new.iter().any(heard), "{handshake}: arrived: {new:?}");
    }

    /// Returns the records of the agent's connection and its one request, once that has ended.
    #[track_caller]
    fn record(&self, agent: &Tls) -> (Record, Record) {
        let me = local(agent).to_string();
        let of = |kind: &str| {
            let audit = &self.world.gateway.audit;
            let me = me.clone();
            let record = audit.wait_for(|it| it.is(kind) && it["agent"] == me.as_str());
            let all = audit.records().into_iter();
            let same = all.filter(|it| it.is(kind) && it["agent"] == me.as_str()).count();
            assert_eq!(same, 1, "one {kind} has one record");
            record
        };
        (of("connection"), of("request"))
    }

    /// Checks that the key is nowhere except at the API.
    #[track_caller]
    fn ends_well(mut self) {
        self.world.assert_secrets_untold();
        let log = self.world.gateway.stderr();
        assert!(self.world.gateway.is_alive() && !log.contains("panicked"), "{log}");
    }
}

fn handshake(name: &str, target: &str, fields: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {name}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n{fields}\r\n"
    )
}

#[test]
fn messages_go_both_ways_and_have_one_record() {
    sandboxed(|| {
        let live = Live::start();
        let (mut agent, head) = live.connect("/v1/echo", BEARER);
        assert_eq!(field(&head, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(field(&head, "x-request-id"), Some("7"));
        for gone in ["set-cookie", "sec-websocket-extensions", "sec-websocket-protocol"] {
            assert_eq!(field(&head, gone), None, "{head}");
        }
        agent.say(TEXT, "Hello, é".as_bytes());
        assert_eq!(agent.hear(), Frame { last: true, opcode: TEXT, payload: "Hello, é".into() });
        agent.say(PING, b"are you there");
        assert_eq!(
            agent.hear(),
            Frame { last: true, opcode: PONG, payload: b"are you there".into() }
        );
        let large: Vec<u8> = (0..300_000u32).map(|nth| (nth % 251) as u8).collect();
        agent.say(BINARY, &large);
        assert!(agent.message() == (BINARY, large), "a large message arrives as it was sent");
        agent.say(CLOSE, &code(1000, "done"));
        assert_eq!(agent.hear(), Frame { last: true, opcode: CLOSE, payload: code(1000, "done") });
        agent.rest();
        let (connection, request) = live.record(agent.tls());
        assert_eq!(connection["end"], "closed", "{connection}");
        for (field, value) in [
            ("decision", Value::from("intercept")),
            ("upstream_status", 101.into()),
            ("complete", true.into()),
            ("messages_from_agent", 2.into()),
            ("messages_to_agent", 2.into()),
            ("request_bytes", 300_009.into()),
            ("response_bytes", 300_009.into()),
            ("close_code", 1000.into()),
            ("reason", Value::Null),
        ] {
            assert_eq!(request[field], value, "{field}: {request}");
        }
        let heads = live.api.heads();
        assert_eq!(heads.len(), 1);
        assert_eq!(heads[0].matches(OPENAI_SECRET).count(), 1, "{}", heads[0]);
        assert_eq!(field(&heads[0], "sec-websocket-extensions"), None);
        live.ends_well();
    });
}

#[test]
fn the_key_is_once_in_the_handshakes_listed_place() {
    sandboxed(|| {
        let live = Live::start();
        let offers = "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.LIVE_API_KEY, \
                      openai-beta.realtime-v1\r\n";
        let swapped =
            format!("realtime, openai-insecure-api-key.{OPENAI_SECRET}, openai-beta.realtime-v1");
        for (target, fields, chosen) in [
            ("/v1/echo", BEARER, None),
            ("/v1/echo?a=1&key=LIVE_API_KEY", "", None),
            ("/v1/echo", offers, Some("realtime")),
            // The offer with the key in it: the agent gets its own text back.
            ("/v1/second-offer", offers, Some("openai-insecure-api-key.LIVE_API_KEY")),
        ] {
            let (mut agent, head) = live.connect(target, fields);
            assert_eq!(field(&head, "sec-websocket-protocol"), chosen, "{head}");
            let seen = live.api.heads().pop().expect("a head");
            assert_eq!(seen.matches(OPENAI_SECRET).count(), 1, "{seen}");
            assert!(!seen.contains("LIVE_API_KEY"), "{seen}");
            if fields == offers {
                assert_eq!(field(&seen, "sec-websocket-protocol"), Some(&*swapped));
            }
            // In a message it is plain text.
            agent.say(TEXT, b"LIVE_API_KEY");
            assert_eq!(agent.message(), (TEXT, b"LIVE_API_KEY".to_vec()));
            agent.say(CLOSE, b"");
            agent.rest();
            let text = String::from_utf8_lossy(&agent.received).into_owned();
            assert!(!text.contains(OPENAI_SECRET), "{text}");
        }
        let words = live.api.frames().into_iter().filter(|it| it.payload == b"LIVE_API_KEY");
        assert_eq!(words.count(), 4);
        live.ends_well();
    });
}

#[test]
fn a_handshake_that_is_not_allowed_reaches_nobody() {
    sandboxed(|| {
        let live = Live::start();
        let offer = |offer: &str| format!("Sec-WebSocket-Protocol: realtime, {offer}\r\n");
        live.refuses(CLOSED, &handshake(CLOSED, "/v1/echo", BEARER), 426, "upgrade_denied");
        for (target, fields, status, reason) in [
            ("/v1/echo", String::new(), 403, "placeholder_missing"),
            (
                "/v1/echo",
                "Authorization: Bearer ANTHROPIC_API_KEY\r\n".into(),
                403,
                "placeholder_wrong_host",
            ),
            ("/v1/echo", "X-Api-Key: LIVE_API_KEY\r\n".into(), 403, "placeholder_wrong_place"),
            ("/v1/echo", "Authorization: Bearer sk-mine\r\n".into(), 403, "foreign_credential"),
            ("/v1/echo?key=sk-mine", String::new(), 403, "foreign_credential"),
            ("/v1/echo?key=sk-mine", BEARER.into(), 400, "duplicate_credential"),
            ("/v1/echo", offer("openai-insecure-api-key.sk-mine"), 403, "foreign_credential"),
            ("/v1/echo", offer("openai-insecure-api-key.LIVE_API_KEYx"), 403, "foreign_credential"),
            (
                "/v1/echo",
                offer("openai-insecure-api-key.OPS_OPENAI_KEY"),
                403,
                "foreign_credential",
            ),
            (
                "/v1/echo",
                offer("openai-insecure-api-key.ANTHROPIC_API_KEY"),
                403,
                "placeholder_wrong_host",
            ),
            ("/v1/echo", offer("LIVE_API_KEY"), 403, "placeholder_wrong_place"),
            (
                "/v1/echo",
                format!("{BEARER}{}", offer("base64url.bearer.authorization.k8s.io.bWluZQ")),
                400,
                "duplicate_credential",
            ),
            ("/v2/echo", BEARER.into(), 403, "path_denied"),
        ] {
            live.refuses(NAME, &handshake(NAME, target, &fields), status, reason);
        }
        let good = handshake(NAME, "/v1/echo", BEARER);
        for (from, to, status, reason) in [
            ("Upgrade: websocket", "Upgrade: h2c", 426, "upgrade_denied"),
            ("Upgrade: websocket", "Upgrade: websocket, h2c", 426, "upgrade_denied"),
            ("Version: 13", "Version: 8", 426, "upgrade_denied"),
            ("Connection: Upgrade", "Connection: close", 400, "http_malformed"),
            (KEY, "short", 400, "http_malformed"),
            ("GET ", "POST ", 400, "http_malformed"),
            (
                "Sec-WebSocket-Version",
                "Content-Length: 5\r\nSec-WebSocket-Version",
                400,
                "http_malformed",
            ),
            ("Host: live.example", "Host: closed.example", 421, "host_mismatch"),
        ] {
            let handshake = good.replacen(from, to, 1);
            assert_ne!(handshake, good);
            live.refuses(NAME, &handshake, status, reason);
        }
        live.ends_well();
    });
}

#[test]
fn no_form_of_the_key_comes_back_in_frames() {
    sandboxed(|| {
        let live = Live::saying(vec![in_every_form(OPENAI_SECRET)]);
        let (mut agent, _) = live.connect("/v1/say/0", BEARER);
        let mut messages = 0;
        let close = loop {
            let frame = agent.hear();
            match frame.opcode {
                CLOSE => break frame.payload,
                PING if frame.payload == b"between" => {}
                PING | PONG => assert_eq!(frame.payload, vec![b'*'; OPENAI_SECRET.len()]),
                _ => messages += usize::from(frame.last),
            }
        };
        assert_eq!(messages, 16);
        let stars = "*".repeat(OPENAI_SECRET.len());
        assert_eq!(close, code(1008, &format!("bad key {stars}")));
        agent.rest();
        let text = String::from_utf8_lossy(&agent.received).to_lowercase();
        let half = OPENAI_SECRET[OPENAI_SECRET.len() / 2..].to_lowercase();
        let hex: String = half.bytes().map(|byte| format!("{byte:02x}")).collect();
        for part in [&half, &hex] {
            assert!(!text.contains(part), "{part} reached the agent");
        }
        let (_, request) = live.record(agent.tls());
        assert_eq!(request["reason"], "response_masked", "{request}");
        assert_eq!(request["close_code"], 1008);
        live.ends_well();
    });
}

#[test]
fn an_agent_that_guesses_in_messages_is_cut() {
    sandboxed(|| {
        let guess = format!("{} ", &OPENAI_SECRET[..OPENAI_SECRET.len() - 1]);
        let said = |times| frame(false, true, TEXT, guess.repeat(times).as_bytes());
        let live = Live::saying(vec![said(1), said(4000)]);
        let (mut agent, _) = live.connect("/v1/say/0", BEARER);
        assert_eq!(agent.message(), (TEXT, guess.clone().into_bytes()), "one is nothing");
        let (mut agent, _) = live.connect("/v1/say/1", BEARER);
        agent.rest();
        assert!(agent.received.len() < 4000 * guess.len(), "all of it arrived");
        let (_, request) = live.record(agent.tls());
        assert_eq!(request["reason"], "secret_probed", "{request}");
        live.ends_well();
    });
}

#[test]
fn a_message_is_handed_on_before_the_next_one() {
    sandboxed(|| {
        let text = "no space and no line end";
        let whole = frame(false, true, TEXT, text.as_bytes());
        let parts = in_frames(TEXT, format!("in parts: {text}").as_bytes(), 9);
        let live = Live::saying(vec![whole, parts]);
        for (target, expected) in
            [("/v1/say/0", text.to_owned()), ("/v1/say/1", format!("in parts: {text}"))]
        {
            let (mut agent, _) = live.connect(target, BEARER);
            assert_eq!(agent.message(), (TEXT, expected.into_bytes()));
        }
        live.ends_well();
    });
}

#[test]
fn an_inspected_host_has_websockets_and_no_secret() {
    sandboxed(|| {
        let live = Live::start();
        let (mut agent, head) = Agent::shake(live.open(SEEN), handshake(SEEN, "/v1/echo", ""));
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        agent.say(TEXT, b"hello");
        assert_eq!(agent.message(), (TEXT, b"hello".to_vec()));
        agent.say(CLOSE, b"");
        agent.rest();
        let (_, request) = live.record(agent.tls());
        assert_eq!(request["decision"], "inspect");
        live.refuses(SEEN, &handshake(SEEN, "/v2/echo", ""), 403, "path_denied");
        for secret in SECRETS {
            assert!(!live.api.heads().concat().contains(secret));
        }
        live.ends_well();
    });
}

#[test]
fn nothing_is_smuggled_behind_a_handshake() {
    sandboxed(|| {
        let live = Live::start();
        let inner = format!(
            "GET /v1/inner HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: Bearer LIVE_API_KEY\r\n\r\n"
        );
        // If the API agrees, these bytes are no frame. If it refuses, nobody answers them.
        for (target, status) in
            [("/v1/echo", "101"), ("/v1/refused", "403"), ("/v1/plain-200", "200")]
        {
            let before = live.api.heads().len();
            let (mut agent, head) =
                Agent::shake(live.open(NAME), handshake(NAME, target, BEARER) + &inner);
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            if status == "101" {
                let frame = agent.hear();
                assert_eq!(
                    (frame.opcode, &frame.payload[..2]),
                    (CLOSE, &1002u16.to_be_bytes()[..])
                );
            }
            agent.rest();
            let text = String::from_utf8_lossy(&agent.received).into_owned();
            assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{target}: {text}");
            assert!(!text.contains(OPENAI_SECRET), "{target}: {text}");
            thread::sleep(wait::QUIET);
            assert_eq!(live.api.heads().len(), before + 1, "{target}: {:?}", live.api.heads());
        }
        assert!(!live.api.heads().concat().contains("/v1/inner"));
        // A frame that comes early is still a frame.
        let early =
            [handshake(NAME, "/v1/echo", BEARER).into_bytes(), frame(true, true, TEXT, b"early")];
        let early = early.concat();
        let (mut agent, head) = Agent::shake(live.open(NAME), early);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(agent.message(), (TEXT, b"early".to_vec()));
        live.ends_well();
    });
}

#[test]
fn an_answer_to_another_handshake_is_none() {
    sandboxed(|| {
        let live = Live::start();
        for (target, reason) in [
            ("/v1/wrong-accept", "upstream_unreachable"),
            ("/v1/plain-101", "upstream_unreachable"),
            ("/v1/other-protocol", "upstream_unreachable"),
            ("/v1/extension", "response_unscannable"),
        ] {
            let mut tls = live.open(NAME);
            let answer = tls.ask(handshake(NAME, target, BEARER)).expect("an answer");
            assert_eq!(
                (answer.status.as_u16(), answer.reason().as_deref()),
                (502, Some(reason)),
                "{target}"
            );
            assert_eq!(answer.headers["connection"], "close", "{target}");
            assert!(tls.read_to_end().is_empty(), "{target}");
            let (_, request) = live.record(&tls);
            assert_eq!(request["reason"], reason, "{target}: {request}");
        }
        // An ordinary answer is masked as any other.
        let mut tls = live.open(NAME);
        let answer = tls.ask(handshake(NAME, "/v1/plain-200", BEARER)).expect("an answer");
        let stars = "*".repeat(OPENAI_SECRET.len());
        assert_eq!((answer.status.as_u16(), answer.text()), (200, format!("Bearer {stars}")));
        live.ends_well();
    });
}

#[test]
fn frames_out_of_order_end_the_connection_with_a_word() {
    sandboxed(|| {
        let too_large = [&[0x82, 0x7f][..], &(64 * 1024 * 1024 + 1u64).to_be_bytes()].concat();
        let live = Live::saying(vec![
            frame(true, true, TEXT, b"masked by a server"),
            too_large.clone(),
            frame(false, false, PING, b"in parts"),
        ]);
        let mut masked_too_large = too_large;
        masked_too_large[1] |= 0x80;
        masked_too_large.extend([0; 4]);
        let pings = frame(true, true, PING, b"").repeat(400);
        let (malformed, limit) = ("websocket_malformed", "websocket_limit");
        for (target, sent, close, reason) in [
            ("/v1/echo", frame(false, true, TEXT, b"unmasked"), 1002, malformed),
            ("/v1/echo", frame(true, true, 3, b"unknown"), 1002, malformed),
            ("/v1/echo", masked_too_large, 1009, limit),
            ("/v1/echo", pings, 1008, limit),
            ("/v1/say/0", vec![], 1002, malformed),
            ("/v1/say/1", vec![], 1009, limit),
            ("/v1/say/2", vec![], 1002, malformed),
        ] {
            let (mut agent, _) = live.connect(target, BEARER);
            agent.send(&sent);
            let frame = loop {
                let frame = agent.hear();
                if frame.opcode != PONG {
                    break frame;
                }
            };
            assert_eq!((frame.opcode, frame.payload), (CLOSE, code(close, reason)), "{target}");
            agent.rest();
            let (connection, request) = live.record(agent.tls());
            assert_eq!(request["reason"], reason, "{target}: {request}");
            assert_eq!(connection["reason"], reason, "{target}: {connection}");
            wait::expect("the API hears of the end", || {
                live.api.received().last() == Some(&Received::End)
            });
        }
        let text: Vec<_> = live.api.frames().into_iter().filter(|it| it.opcode == TEXT).collect();
        assert_eq!(text, [], "no frame that is out of order arrives");
        live.ends_well();
    });
}

#[test]
fn an_end_without_close_frame_is_heard_across() {
    sandboxed(|| {
        let live = Live::start();
        let (mut agent, _) = live.connect("/v1/echo", BEARER);
        let begun = Instant::now();
        agent.say(TEXT, b"leave");
        agent.rest();
        assert!(begun.elapsed() < Duration::from_secs(8), "the agent hears of it in time");
        let (_, request) = live.record(agent.tls());
        assert_eq!(request["complete"], false, "{request}");
        let (agent, _) = live.connect("/v1/echo", BEARER);
        let ends = || live.api.received().iter().filter(|it| **it == Received::End).count();
        let before = ends();
        drop(agent);
        wait::expect("the API hears of it", || ends() > before);
        live.ends_well();
    });
}

/// Time within which a connection that may not go on has to end, on a busy machine.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_websocket_is_cut_where_other_flows_are() {
    sandboxed(|| {
        let live = Live::start();
        let cut = |agent: &mut Agent, reason: &str| {
            let begun = Instant::now();
            agent.rest();
            assert!(begun.elapsed() < SOON, "{reason}: after {:?}", begun.elapsed());
            let (connection, _) = live.record(agent.tls());
            assert_eq!(connection["reason"], reason, "{connection}");
        };
        let (mut agent, _) = live.connect("/v1/echo", BEARER);
        agent.say(TEXT, b"before");
        assert_eq!(agent.message().1, b"before");
        tell(&live.world, &["quarantine", "research"], 0);
        cut(&mut agent, "quarantined");
        tell(&live.world, &["release", "research"], 0);

        let (mut agent, _) = live.connect("/v1/echo", BEARER);
        let places = [gateway::BEARER, "query key"];
        let closed = config().api("live", |it| {
            it.without("websocket").binding("LIVE_API_KEY", |it| it.set("places", places))
        });
        gateway::install(&live.world.lab, &closed);
        tell(&live.world, &["reload"], 0);
        cut(&mut agent, "policy_revoked");
        live.refuses(NAME, &handshake(NAME, "/v1/echo", BEARER), 426, "upgrade_denied");
        live.ends_well();
    });
}

#[test]
fn a_websocket_goes_on_through_a_drain_until_its_end() {
    sandboxed(|| {
        let mut live = Live::with(&config().limit("drain_time", "4s"), vec![]);
        let (mut agent, _) = live.connect("/v1/echo", BEARER);
        let pid = live.world.gateway.pid().to_string();
        let told = std::process::Command::new("kill").args(["-TERM", &pid]).status();
        assert!(told.is_ok_and(|status| status.success()));
        thread::sleep(wait::QUIET);
        agent.say(TEXT, b"still here");
        assert_eq!(agent.message().1, b"still here");
        agent.rest();
        let (connection, _) = live.record(agent.tls());
        assert_eq!(connection["reason"], "shutting_down", "{connection}");
        wait::expect("it ends", || !live.world.gateway.is_alive());
    });
}
