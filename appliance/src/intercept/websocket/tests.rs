//! Properties of both directions at every cut, against a reader that shares no code with the codec.

use std::{sync::Arc, time::Instant};

use http::{HeaderMap, HeaderName, Method, Request, Version, request};
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::{
    FrameFault, FrameSender, MAX_FRAGMENTS, MAX_MESSAGE, Passed, WHOLE_FRAME, WebSocketLane, asked,
    lane::{CONTROL_AT_ONCE, close_frame},
};
use crate::{reason::Reason, scrub::Masks, secrets::SecretValue};

const SECRET: &str = "sk-Proj-0123456789abcdefgh";
/// A secret of the same length and with the same first half.
const OTHER: &str = "sk-Proj-01234ZYXWVUTSRQPON";

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    last: bool,
    opcode: u8,
    masked: bool,
    payload: Vec<u8>,
}

/// Whole frames, read by the letter of RFC 6455, section 5.2.
fn read(mut bytes: &[u8]) -> Vec<Seen> {
    let mut seen = vec![];
    while !bytes.is_empty() {
        let (first, second) = (bytes[0], bytes[1]);
        assert_eq!(first & 0x70, 0, "a reserved bit");
        let (length, at) = match second & 0x7f {
            126 => (usize::from(u16::from_be_bytes([bytes[2], bytes[3]])), 4),
            127 => (u64::from_be_bytes(bytes[2..10].try_into().unwrap()) as usize, 10),
            short => (usize::from(short), 2),
        };
        let masked = second & 0x80 != 0;
        let key: [u8; 4] = if masked { bytes[at..at + 4].try_into().unwrap() } else { [0; 4] };
        let at = if masked { at + 4 } else { at };
        let payload = &bytes[at..at + length];
        let payload = payload.iter().enumerate().map(|(nth, byte)| byte ^ key[nth % 4]).collect();
        seen.push(Seen { last: first & 0x80 != 0, opcode: first & 0xf, masked, payload });
        bytes = &bytes[at + length..];
    }
    seen
}

fn frame(last: bool, opcode: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![opcode | if last { 0x80 } else { 0 }];
    let mark = if masked { 0x80 } else { 0 };
    match payload.len() {
        short @ 0..126 => frame.push(mark | short as u8),
        middle @ 126..65_536 => {
            frame.push(mark | 126);
            frame.extend((middle as u16).to_be_bytes());
        }
        long => {
            frame.push(mark | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    let key = if masked { [7, 99, 0, 201] } else { [0; 4] };
    frame.extend(key.iter().take(if masked { 4 } else { 0 }));
    frame.extend(payload.iter().enumerate().map(|(nth, byte)| byte ^ key[nth % 4]));
    frame
}

fn masks(secrets: &[&str]) -> Arc<Masks> {
    let load = |text: &&str| SecretValue::load(Zeroizing::new(text.as_bytes().to_vec()), 8);
    let values: Vec<_> = secrets.iter().map(|text| load(text).ok().unwrap()).collect();
    Arc::new(Masks::new(&values))
}

fn agent() -> FrameSender {
    FrameSender::Agent(|| Some([1, 2, 3, 4]))
}

fn upstream() -> FrameSender {
    FrameSender::Upstream(masks(&[SECRET]))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Out {
    frames: Vec<u8>,
    /// The bytes that were sent on after each piece.
    steps: Vec<usize>,
    messages: u64,
    bytes: usize,
    masked: u64,
    closed: bool,
}

/// Passes `stream` in pieces of these sizes, which repeat.
fn pass(from: FrameSender, stream: &[u8], sizes: &[usize]) -> (Out, Result<(), FrameFault>) {
    let now = Instant::now();
    let (mut lane, mut out) = (WebSocketLane::new(from, now), Out::default());
    let (mut rest, mut sizes) = (stream, sizes.iter().cycle());
    while !rest.is_empty() {
        let (piece, later) = rest.split_at((*sizes.next().unwrap()).clamp(1, rest.len()));
        rest = later;
        lane.room().extend_from_slice(piece);
        loop {
            match lane.next(now) {
                Ok(Some(Passed { frames, message, bytes, masked, close, .. })) => {
                    out.frames.extend(frames);
                    out.messages += u64::from(message);
                    out.bytes += bytes;
                    out.masked += masked;
                    out.closed |= close.is_some();
                }
                Ok(None) => break,
                Err(fault) => return (out, Err(fault)),
            }
        }
        out.steps.push(out.frames.len());
    }
    (out, Ok(()))
}

/// An opcode and a payload.
type Whole = (u8, Vec<u8>);

/// Returns the messages put together, and the control frames, each in order.
fn messages(frames: &[Seen]) -> (Vec<Whole>, Vec<Whole>) {
    let (mut messages, mut control) = (vec![], vec![]);
    let mut open: Option<Whole> = None;
    for Seen { last, opcode, payload, .. } in frames {
        if *opcode >= 8 {
            assert!(*last);
            control.push((*opcode, payload.clone()));
            continue;
        }
        let (_, text) = match open.as_mut() {
            Some(open) => {
                assert_eq!(*opcode, 0, "a message inside of another");
                open
            }
            None => open.insert((*opcode, vec![])),
        };
        text.extend(payload);
        if *last {
            messages.extend(open.take());
        }
    }
    (messages, control)
}

/// A message in fragments, with pings between them.
fn fragments(masked: bool, opcode: u8, text: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
    cuts.sort_unstable();
    let ends = cuts.iter().copied().chain([text.len()]);
    let mut stream = vec![];
    let mut begin = 0;
    let last = cuts.len();
    for (nth, end) in ends.enumerate() {
        let opcode = if nth == 0 { opcode } else { 0 };
        stream.extend(frame(nth == last, opcode, masked, &text[begin..end]));
        if nth != last {
            stream.extend(frame(true, 9, masked, &[nth as u8]));
        }
        begin = end;
    }
    stream
}

fn stars(text: &str) -> String {
    text.replace(SECRET, &"*".repeat(SECRET.len()))
}

#[test]
fn a_single_frame_message_stays_single_and_is_not_held() {
    for text in ["", "no space at the end", "a b c", "é…😀"] {
        let stream = frame(true, 1, false, text.as_bytes());
        let (out, end) = pass(upstream(), &stream, &[stream.len()]);
        assert_eq!((end, out.messages, out.bytes), (Ok(()), 1, text.len()));
        assert_eq!(out.frames, stream, "{text}");
    }
    let whole = vec![b'x'; WHOLE_FRAME];
    let stream = frame(true, 2, false, &whole);
    assert_eq!(pass(upstream(), &stream, &[1000]).0.frames, stream);
}

#[test]
fn a_secret_is_masked_at_every_fragment_and_every_piece() {
    let text = format!("{{\"echo\":\"{SECRET}\"}}");
    let expected = vec![(1, stars(&text).into_bytes())];
    for cut in 0..=text.len() {
        for size in [1, 3, 1000] {
            let stream = fragments(false, 1, text.as_bytes(), &[cut]);
            let (out, end) = pass(upstream(), &stream, &[size]);
            assert_eq!(end, Ok(()));
            let (messages, control) = messages(&read(&out.frames));
            assert_eq!(messages, expected, "cut at {cut}, pieces of {size}");
            assert_eq!(control, [(9, vec![0])]);
            assert_eq!(out.masked, SECRET.len() as u64);
        }
    }
}

#[test]
fn a_secret_is_masked_in_every_control_frame() {
    let close = [&1008u16.to_be_bytes()[..], SECRET.as_bytes()].concat();
    let mask = "*".repeat(SECRET.len());
    let masked_close = [&1008u16.to_be_bytes()[..], mask.as_bytes()].concat();
    for (opcode, payload, expected) in [
        (9, SECRET.as_bytes(), mask.as_bytes()),
        (10, SECRET.as_bytes(), mask.as_bytes()),
        (8, &close, &masked_close),
    ] {
        let (out, end) = pass(upstream(), &frame(true, opcode, false, payload), &[5]);
        assert_eq!(end, Ok(()));
        assert_eq!(out.frames, frame(true, opcode, false, expected));
        assert_eq!(out.closed, opcode == 8);
    }
}

#[test]
fn a_key_that_an_agent_sends_in_frames_stays_unchanged() {
    let stream = fragments(true, 1, SECRET.as_bytes(), &[7]);
    let (out, _) = pass(agent(), &stream, &[2]);
    assert_eq!(messages(&read(&out.frames)).0, [(1, SECRET.as_bytes().to_vec())]);
    assert_eq!(out.masked, 0);
}

#[test]
fn nothing_passes_behind_a_close_frame() {
    let close = frame(true, 8, false, &1000u16.to_be_bytes());
    let stream = [close.clone(), frame(true, 1, false, b"more"), vec![0xff; 20]].concat();
    let (out, end) = pass(upstream(), &stream, &[4]);
    assert_eq!((out.frames, end), (close, Ok(())));
}

#[test]
fn what_the_protocol_forbids_ends_the_connection() {
    let text = |masked| frame(true, 1, masked, b"x");
    for (what, stream) in [
        ("unmasked from an agent", text(false)),
        ("RSV1", {
            let mut it = text(true);
            it[0] |= 0x40;
            it
        }),
        ("RSV2", {
            let mut it = text(true);
            it[0] |= 0x20;
            it
        }),
        ("RSV3", {
            let mut it = text(true);
            it[0] |= 0x10;
            it
        }),
        ("opcode 3", frame(true, 3, true, b"x")),
        ("opcode 11", frame(true, 11, true, b"x")),
        ("a rest of nothing", frame(true, 0, true, b"x")),
        ("a message inside of another", [frame(false, 1, true, b"x"), text(true)].concat()),
        ("a ping in parts", frame(false, 9, true, b"x")),
        ("a ping of 126 bytes", frame(true, 9, true, &[0; 126])),
        ("a length that is not the shortest", vec![0x81, 0xfe, 0, 5, 0, 0, 0, 0, 1, 2, 3, 4, 5]),
        ("a negative length", [&[0x82, 0xff], &[0xff; 8][..], &[0; 4]].concat()),
        ("half a code", frame(true, 8, true, &[3])),
        ("no such code", frame(true, 8, true, &1005u16.to_be_bytes())),
        ("a code below 1000", frame(true, 8, true, &999u16.to_be_bytes())),
        ("a reason that is no text", frame(true, 8, true, &[0x03, 0xe8, 0xff])),
        ("HTTP", b"GET /v1/inner HTTP/1.1\r\nHost: api.example\r\n\r\n".to_vec()),
    ] {
        for size in [1, 1000] {
            let (out, end) = pass(agent(), &stream, &[size]);
            assert_eq!(end, Err(FrameFault::Malformed), "{what}");
            assert!(out.frames.len() <= frame(false, 1, true, b"x").len(), "{what}");
        }
    }
    assert_eq!(pass(upstream(), &text(true), &[9]).1, Err(FrameFault::Malformed));
}

#[test]
fn an_oversized_message_ends_the_connection_before_it_is_read() {
    let huge = [&[0x82, 0x7f][..], &(MAX_MESSAGE + 1).to_be_bytes()].concat();
    assert_eq!(pass(upstream(), &huge, &[99]), (Out::default(), Err(FrameFault::TooLarge)));
    let rest = [&[0x80, 0x7f][..], &MAX_MESSAGE.to_be_bytes()].concat();
    let parts = [frame(false, 2, false, b"x"), rest].concat();
    assert_eq!(pass(upstream(), &parts, &[99]).1, Err(FrameFault::TooLarge));
    let mut empty = frame(false, 2, false, b"");
    empty.extend(frame(false, 0, false, b"").repeat(MAX_FRAGMENTS as usize));
    let (out, end) = pass(upstream(), &empty, &[4096]);
    assert_eq!((out.frames.len(), end), (0, Err(FrameFault::TooLarge)));
}

#[test]
fn a_flood_of_control_frames_ends_the_connection() {
    let ping = frame(true, 9, true, b"");
    let most = ping.repeat(CONTROL_AT_ONCE as usize);
    assert_eq!(pass(agent(), &most, &[512]).1, Ok(()));
    assert_eq!(pass(agent(), &[most, ping].concat(), &[512]).1, Err(FrameFault::TooMany));
}

#[test]
fn newer_masks_count_for_the_rest_of_a_message() {
    let now = Instant::now();
    let mut lane = WebSocketLane::new(FrameSender::Upstream(masks(&[OTHER])), now);
    let (one, two) = SECRET.split_at(9);
    lane.room().extend_from_slice(&frame(false, 1, false, one.as_bytes()));
    assert_eq!(lane.next(now), Ok(None));
    lane.renew(masks(&[SECRET]));
    lane.room().extend_from_slice(&frame(true, 0, false, two.as_bytes()));
    let passed = lane.next(now).unwrap().unwrap();
    assert_eq!(read(&passed.frames)[0].payload, "*".repeat(SECRET.len()).into_bytes());
}

#[test]
fn the_gateways_own_frame_is_one_that_its_reader_takes() {
    let seen = &read(&close_frame(1002, "websocket_malformed", Some([9, 8, 7, 6])))[0];
    let text = [&1002u16.to_be_bytes()[..], b"websocket_malformed"].concat();
    assert_eq!((seen.opcode, seen.masked, &seen.payload), (8, true, &text));
}

proptest! {
    /// Wherever the stream is cut, the same messages come in the same order, every frame has the
    /// form that its receiver demands, and there are no more and no fewer pings.
    #[test]
    fn messages_and_pings_arrive_as_they_were_sent(
        texts in prop::collection::vec(("[a-z ]{0,200}", any::<bool>(), prop::collection::vec(0usize..200, 0..4)), 1..5),
        sizes in prop::collection::vec(1usize..90, 1..5),
        from_agent in any::<bool>(),
    ) {
        let mut stream = vec![];
        let mut expected = vec![];
        for (text, binary, cuts) in &texts {
            let opcode = if *binary { 2 } else { 1 };
            stream.extend(fragments(from_agent, opcode, text.as_bytes(), cuts));
            expected.push((opcode, text.clone().into_bytes()));
        }
        let from = if from_agent { agent() } else { upstream() };
        let (out, end) = pass(from, &stream, &sizes);
        prop_assert_eq!(end, Ok(()));
        let seen = read(&out.frames);
        prop_assert!(seen.iter().all(|frame| frame.masked == from_agent));
        let (sent, pings) = messages(&read(&stream));
        prop_assert_eq!(&sent, &expected);
        prop_assert_eq!(messages(&seen), (sent, pings));
        prop_assert_eq!(out.messages, texts.len() as u64);
        prop_assert_eq!(out.bytes, texts.iter().map(|it| it.0.len()).sum::<usize>());
    }

    /// The sizes and times of all that an agent receives are the same for each secret: one that the
    /// message holds all of, half of, or nothing of.
    #[test]
    fn frame_sizes_tell_nothing_of_a_secret_in_them(
        before in "[a-z é]{0,40}",
        shown in 0usize..=26,
        after in "[a-z \n]{0,40}",
        cuts in prop::collection::vec(0usize..120, 0..4),
        size in 1usize..60,
    ) {
        let text = format!("{before}{}{after}", &SECRET[..shown]);
        let stream = fragments(false, 1, text.as_bytes(), &cuts);
        let [one, two] = [SECRET, OTHER].map(|secret| {
            pass(FrameSender::Upstream(masks(&[secret])), &stream, &[size]).0
        });
        prop_assert_eq!(one.steps, two.steps);
        let sizes = |out: &[u8]| read(out).iter().map(|it| (it.last, it.opcode, it.payload.len())).collect::<Vec<_>>();
        prop_assert_eq!(sizes(&one.frames), sizes(&two.frames));
    }

    /// A text message stays valid UTF-8 when parts of it are masked.
    #[test]
    fn a_text_that_is_masked_is_still_utf_8(
        parts in prop::collection::vec(prop_oneof![Just(SECRET.to_owned()), "\\PC{0,12}"], 1..6),
        cuts in prop::collection::vec(0usize..200, 0..4),
    ) {
        let text = parts.concat();
        let stream = fragments(false, 1, text.as_bytes(), &cuts);
        let (out, _) = pass(upstream(), &stream, &[7]);
        let (messages, _) = messages(&read(&out.frames));
        prop_assert_eq!(String::from_utf8(messages[0].1.clone()).unwrap(), stars(&text));
    }

    /// A part of a stream is no fault, and gives no more than the whole.
    #[test]
    fn a_prefix_gives_a_prefix(text in "[a-z ]{0,300}", cut in 0usize..400, from_agent in any::<bool>()) {
        let sender = || if from_agent { agent() } else { upstream() };
        let stream = fragments(from_agent, 1, text.as_bytes(), &[3, 100]);
        let (whole, _) = pass(sender(), &stream, &[1]);
        let (part, end) = pass(sender(), &stream[..cut.min(stream.len())], &[1]);
        prop_assert_eq!(end, Ok(()));
        prop_assert!(whole.frames.starts_with(&part.frames));
    }

    #[test]
    fn no_bytes_make_it_panic(stream in prop::collection::vec(any::<u8>(), 0..600), size in 1usize..40) {
        for from in [agent(), upstream()] {
            let _ = pass(from, &stream, &[size]);
        }
    }
}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn head(change: impl FnOnce(&mut request::Parts)) -> request::Parts {
    let request = Request::builder()
        .uri("/v1/realtime")
        .header("connection", "keep-alive, Upgrade")
        .header("upgrade", "WebSocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", KEY)
        .header("sec-websocket-extensions", "permessage-deflate")
        .header("sec-websocket-protocol", "realtime, openai-insecure-api-key.OPENAI_API_KEY");
    let mut head = request.body(()).unwrap().into_parts().0;
    change(&mut head);
    head
}

fn set(name: &'static str, values: &[&str]) -> request::Parts {
    head(|head| {
        head.headers.remove(name);
        for value in values {
            head.headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
    })
}

#[test]
fn a_request_is_a_handshake_refused_or_an_ordinary_one() {
    assert!(matches!(asked(&head(|_| ()), true), Ok(Some(_))));
    assert_eq!(asked(&head(|_| ()), false).err(), Some(Reason::UpgradeDenied));
    let plain = head(|head| head.headers = HeaderMap::new());
    assert!(matches!(asked(&plain, false), Ok(None)));
    for (what, head, reason) in [
        ("another protocol", set("upgrade", &["h2c"]), Reason::UpgradeDenied),
        ("two protocols", set("upgrade", &["websocket", "h2c"]), Reason::UpgradeDenied),
        ("a list of them", set("upgrade", &["websocket, h2c"]), Reason::UpgradeDenied),
        ("none", set("upgrade", &[]), Reason::UpgradeDenied),
        ("another version", set("sec-websocket-version", &["8"]), Reason::UpgradeDenied),
        ("two versions", set("sec-websocket-version", &["13", "8"]), Reason::UpgradeDenied),
        ("not asked of this hop", set("connection", &["close"]), Reason::HttpMalformed),
        ("no key", set("sec-websocket-key", &[]), Reason::HttpMalformed),
        ("two keys", set("sec-websocket-key", &[KEY, KEY]), Reason::HttpMalformed),
        ("a short key", set("sec-websocket-key", &["YQ=="]), Reason::HttpMalformed),
        (
            "a key with bits too many",
            set("sec-websocket-key", &["dGhlIHNhbXBsZSBub25jZR=="]),
            Reason::HttpMalformed,
        ),
        ("a body", set("content-length", &["5"]), Reason::HttpMalformed),
        ("a body in chunks", set("transfer-encoding", &["chunked"]), Reason::HttpMalformed),
        ("POST", head(|head| head.method = Method::POST), Reason::HttpMalformed),
        ("HTTP/1.0", head(|head| head.version = Version::HTTP_10), Reason::HttpMalformed),
        ("an offer twice", set("sec-websocket-protocol", &["a, a"]), Reason::HttpMalformed),
        ("two fields of offers", set("sec-websocket-protocol", &["a", "b"]), Reason::HttpMalformed),
        ("an empty offer", set("sec-websocket-protocol", &["a,,b"]), Reason::HttpMalformed),
        (
            "an offer that is no token",
            set("sec-websocket-protocol", &["a b"]),
            Reason::HttpMalformed,
        ),
    ] {
        assert_eq!(asked(&head, true).err(), Some(reason), "{what}");
    }
}

/// The fields of a 101, with one changed.
fn answer(change: Option<(&'static str, &[&str])>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-accept", ACCEPT),
        ("sec-websocket-protocol", "realtime"),
        ("content-length", "0"),
        ("x-request-id", "7"),
    ] {
        headers.insert(name, value.parse().unwrap());
    }
    if let Some((name, values)) = change {
        headers.remove(name);
        for value in values {
            headers.append(name, value.parse().unwrap());
        }
    }
    headers
}

#[test]
fn only_the_answer_to_this_handshake_is_one() {
    let mut head = head(|_| ());
    let mut asked = asked(&head, true).ok().flatten().unwrap();
    let sent = format!("realtime, openai-insecure-api-key.{SECRET}");
    head.headers.insert("sec-websocket-protocol", sent.parse().unwrap());
    asked.write(&mut head.headers);
    assert!(!head.headers.contains_key("sec-websocket-extensions"));
    let said = |change: Option<(&'static str, &[&str])>| {
        let mut headers = answer(change);
        asked.answered(&headers).map(|answered| {
            answered.write(&mut headers);
            let text = |name: &str| headers.get(name).map(|it| it.to_str().unwrap().to_owned());
            (text("sec-websocket-accept"), text("sec-websocket-protocol"), text("content-length"))
        })
    };
    let good =
        |protocol: Option<&str>| Ok((Some(ACCEPT.into()), protocol.map(str::to_owned), None));
    assert_eq!(said(None), good(Some("realtime")));
    assert_eq!(said(Some(("sec-websocket-protocol", &[]))), good(None));
    // The agent hears its own words.
    let secret = format!("openai-insecure-api-key.{SECRET}");
    let placeholder = "openai-insecure-api-key.OPENAI_API_KEY";
    assert_eq!(said(Some(("sec-websocket-protocol", &[&secret]))), good(Some(placeholder)));
    let refused: [(&str, &[&str]); 9] = [
        ("sec-websocket-accept", &[]),
        ("sec-websocket-accept", &["AAAAAAAAAAAAAAAAAAAAAAAAAAA="]),
        ("sec-websocket-accept", &[ACCEPT, ACCEPT]),
        ("upgrade", &[]),
        ("upgrade", &["h2c"]),
        ("connection", &["close"]),
        ("sec-websocket-protocol", &["other"]),
        ("sec-websocket-protocol", &[placeholder]),
        ("transfer-encoding", &["chunked"]),
    ];
    for change in refused {
        assert_eq!(said(Some(change)), Err(Reason::UpstreamUnreachable), "{change:?}");
    }
    let extension: (_, &[&str]) = ("sec-websocket-extensions", &["permessage-deflate"]);
    assert_eq!(said(Some(extension)), Err(Reason::ResponseUnscannable));
}
