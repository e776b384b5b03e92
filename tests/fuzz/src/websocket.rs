//! WebSocket frames: the gateway passes what a reader by the letter of RFC 6455 reads, up to the
//! first frame that is out of order, however the bytes are cut; and no secret in an upstream's
//! message comes out, nor does any size depend on one.

use std::{
    sync::{Arc, LazyLock},
    time::Instant,
};

use cloakroom::{
    intercept::websocket::{FrameFault, FrameSender, MAX_MESSAGE, WHOLE_FRAME, WebSocketLane},
    scrub::Masks,
};

use crate::{input::Input, scrub::masks};

/// Takes the sender, the size of pieces, and the stream: as it is, or built of frames that hold
/// much of two secrets.
pub(crate) fn any_frames(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (from_agent, built, most) = (input.flag(), input.flag(), input.up_to(256));
    let stream = if built { build(&mut input, from_agent) } else { input.rest().to_vec() };
    let expected = Expected::of(&stream, from_agent);
    let masks: &[&Arc<Masks>] = if from_agent { &[&NEITHER] } else { &[&NEITHER, &BOTH, &ONE] };
    let mut steps = vec![];
    for masks in masks {
        for size in [1, most, stream.len().max(1)] {
            let passed = Passed::of(&stream, from_agent, masks, size);
            check(&expected, &passed, Arc::ptr_eq(masks, &BOTH));
            steps.push((size, passed.steps));
        }
    }
    for (size, first) in &steps {
        let same = steps.iter().filter(|(other, _)| other == size);
        same.for_each(|(_, other)| assert_eq!(first, other, "the sizes tell of a secret"));
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    last: bool,
    opcode: u8,
    payload: Vec<u8>,
}

/// The result of an independent reader of a stream.
struct Expected {
    frames: Vec<Frame>,
    fault: Option<FrameFault>,
}

impl Expected {
    fn of(stream: &[u8], from_agent: bool) -> Self {
        let (mut frames, mut rest, mut open, mut control) = (vec![], stream, None, 0);
        let fault = loop {
            let Some((header, length, key)) = header(rest) else { break None };
            let (first, second) = (rest[0], rest[1]);
            let (last, opcode) = (first & 0x80 != 0, first & 0xf);
            let shortest = match second & 0x7f {
                126 => length >= 126,
                127 => (65_536..1 << 63).contains(&length),
                _ => true,
            };
            let order = match opcode {
                0 => open.is_some(),
                1 | 2 => open.is_none(),
                8..=10 => last && length <= 125,
                _ => false,
            };
            if first & 0x70 != 0 || (second & 0x80 != 0) != from_agent || !shortest || !order {
                break Some(FrameFault::Malformed);
            }
            if opcode >= 8 {
                control += 1;
                if control > AT_ONCE {
                    break Some(FrameFault::TooMany);
                }
            } else {
                let bytes = open.unwrap_or(0) + length;
                if bytes > MAX_MESSAGE {
                    break Some(FrameFault::TooLarge);
                }
                open = Some(bytes);
            }
            let Some(payload) = rest.get(header..header + length as usize) else { break None };
            rest = &rest[header + length as usize..];
            let payload: Vec<u8> =
                payload.iter().enumerate().map(|(nth, byte)| byte ^ key[nth % 4]).collect();
            if opcode == 8 && !is_close(&payload) {
                break Some(FrameFault::Malformed);
            }
            if opcode < 8 && last {
                open = None;
            }
            frames.push(Frame { last, opcode, payload });
            if opcode == 8 {
                break None;
            }
        };
        Self { frames, fault }
    }
}

/// Returns the bytes of a header, the length of its payload, and its key.
fn header(bytes: &[u8]) -> Option<(usize, u64, [u8; 4])> {
    let second = *bytes.get(1)?;
    let (length, mut at) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        short => (u64::from(short), 2),
    };
    let mut key = [0; 4];
    if second & 0x80 != 0 {
        key = bytes.get(at..at + 4)?.try_into().ok()?;
        at += 4;
    }
    Some((at, length, key))
}

fn is_close(payload: &[u8]) -> bool {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else { return payload.is_empty() };
    let code = u16::from_be_bytes(*code);
    let registered = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    registered && std::str::from_utf8(reason).is_ok()
}

/// The result of the gateway's lane.
struct Passed {
    frames: Vec<Frame>,
    steps: Vec<usize>,
    fault: Option<FrameFault>,
    messages: usize,
    bytes: usize,
}

impl Passed {
    fn of(stream: &[u8], from_agent: bool, masks: &Arc<Masks>, size: usize) -> Self {
        let now = Instant::now();
        let from = match from_agent {
            true => FrameSender::Agent(|| Some(KEY)),
            false => FrameSender::Upstream(Arc::clone(masks)),
        };
        let mut lane = WebSocketLane::new(from, now);
        let (mut out, mut steps, mut fault) = (vec![], vec![], None);
        let (mut messages, mut bytes) = (0, 0);
        'stream: for piece in stream.chunks(size) {
            lane.room().extend_from_slice(piece);
            loop {
                match lane.next(now) {
                    Ok(Some(passed)) => {
                        out.extend(passed.frames);
                        messages += usize::from(passed.message);
                        bytes += passed.bytes;
                    }
                    Ok(None) => break,
                    Err(found) => {
                        fault = Some(found);
                        break 'stream;
                    }
                }
            }
            steps.push(out.len());
        }
        let mut frames = vec![];
        let mut rest = &out[..];
        while !rest.is_empty() {
            let (header, length, key) = header(rest).expect("whole frames");
            assert_eq!(rest[1] & 0x80 != 0, from_agent, "masked as its receiver demands");
            assert!(!from_agent || key == KEY, "the agent's own key goes on");
            let payload = &rest[header..header + length as usize];
            let payload = payload.iter().enumerate().map(|(nth, byte)| byte ^ key[nth % 4]);
            let (last, opcode) = (rest[0] & 0x80 != 0, rest[0] & 0x7f);
            frames.push(Frame { last, opcode, payload: payload.collect() });
            rest = &rest[header + length as usize..];
        }
        Self { frames, steps, fault, messages, bytes }
    }
}

/// Messages, with one that has no end yet, and control frames.
type Told = (Vec<(u8, bool, Vec<u8>)>, Vec<Frame>);

fn told(frames: &[Frame]) -> Told {
    let (mut messages, mut control): Told = (vec![], vec![]);
    for frame in frames {
        if frame.opcode >= 8 {
            control.push(frame.clone());
            continue;
        }
        match messages.last_mut().filter(|_| frame.opcode == 0) {
            Some((_, ended, text)) => {
                assert!(!*ended, "a rest of nothing");
                text.extend(&frame.payload);
                *ended = frame.last;
            }
            None => messages.push((frame.opcode, frame.last, frame.payload.clone())),
        }
    }
    (messages, control)
}

fn check(expected: &Expected, passed: &Passed, masked: bool) {
    assert_eq!(passed.fault, expected.fault, "one reader refuses what the other takes");
    let ((messages, control), (sent, controls)) = (told(&passed.frames), told(&expected.frames));
    assert_eq!(control.len(), controls.len(), "each ping passes once");
    for (frame, sent) in control.iter().zip(&controls) {
        assert_eq!((frame.last, frame.opcode), (sent.last, sent.opcode));
        let code = if frame.opcode == 8 { sent.payload.len().min(2) } else { 0 };
        assert_eq!(frame.payload[..code], sent.payload[..code], "the code of a close frame");
        same_but_for_stars(&frame.payload[code..], &sent.payload[code..], masked);
    }
    for (nth, (opcode, ended, text)) in sent.iter().enumerate() {
        let got = messages.get(nth);
        let (got_opcode, got_ended, got) = match (got, ended) {
            (Some(got), _) => got,
            // A part of a message without its end was held back.
            (None, false) => continue,
            (None, true) => panic!("a message is lost"),
        };
        assert_eq!((got_opcode, got_ended), (opcode, ended));
        if *ended {
            same_but_for_stars(got, text, masked);
        } else {
            same_but_for_stars(got, &text[..got.len()], false);
        }
    }
    // A frame that is longer than the buffer leaves before it is whole.
    let more = messages.len() - sent.len().min(messages.len());
    assert!(more <= 1 && (more == 0 || messages.iter().all(|it| it.2.len() <= WHOLE_FRAME * 4)));
    assert_eq!(passed.messages, messages.iter().filter(|it| it.1).count());
    assert_eq!(passed.bytes, messages.iter().map(|it| it.2.len()).sum::<usize>());
}

/// Checks that neither secret stands in the output where both are `masked`.
fn same_but_for_stars(got: &[u8], sent: &[u8], masked: bool) {
    assert_eq!(got.len(), sent.len(), "a length has changed");
    assert!(got.iter().zip(sent).all(|(got, sent)| got == sent || *got == b'*'), "other bytes");
    for secret in SECRETS.iter().filter(|_| masked) {
        let stars = vec![b'*'; secret.len()];
        let whole = sent.windows(secret.len()).enumerate().filter(|(_, at)| at == secret);
        for (at, _) in whole {
            assert_eq!(got[at..at + secret.len()], stars, "a secret passes");
        }
    }
}

/// Builds frames that are mostly in order, with secrets and pieces of them.
fn build(input: &mut Input<'_>, from_agent: bool) -> Vec<u8> {
    let (mut stream, mut open) = (vec![], false);
    while !input.is_empty() && stream.len() < MOST_BYTES {
        let secret = input.pick(&SECRETS);
        let payload = match input.below(5) {
            0 => secret.to_vec(),
            1 => {
                let (from, to) = (input.below(32), input.below(32));
                secret.iter().take(to).skip(from).copied().collect()
            }
            2 => input.pick(&[b" ", b"\n", b"\"", b"="]).to_vec(),
            3 => [&1000u16.to_be_bytes()[..], secret].concat(),
            _ => {
                let count = input.up_to(16);
                input.take(count).to_vec()
            }
        };
        let last = input.flag();
        let (opcode, last) = match input.below(8) {
            0 => (9, true),
            1 => (10, true),
            2 => (8, true),
            3 => (input.byte() & 0xf, last),
            _ if open => (0, last),
            kind => (1 + (kind & 1) as u8, last),
        };
        if opcode < 8 {
            open = !last;
        }
        stream.push(opcode | if last { 0x80 } else { 0 });
        // No payload is longer than 125 bytes.
        stream.push(payload.len() as u8 | if from_agent { 0x80 } else { 0 });
        let key = if from_agent { [3, 1, 4, 1] } else { [0; 4] };
        stream.extend(key.iter().take(if from_agent { 4 } else { 0 }));
        stream.extend(payload.iter().enumerate().map(|(nth, byte)| byte ^ key[nth % 4]));
    }
    stream
}

/// Two secrets of one length and with the same beginning.
const SECRETS: [&[u8]; 2] = [b"sk-frames-0123456789abcdefgh", b"sk-frames-0123zyxwvutsrqponm"];
const KEY: [u8; 4] = [0x5a, 0, 0xff, 7];
/// Most control frames that come together.
const AT_ONCE: usize = 200;
const MOST_BYTES: usize = 4 * 1024;

static BOTH: LazyLock<Arc<Masks>> = LazyLock::new(|| masks(&SECRETS));
static ONE: LazyLock<Arc<Masks>> = LazyLock::new(|| masks(&SECRETS[..1]));
/// Masks of a secret as long as those, so that as many bytes are held back.
static NEITHER: LazyLock<Arc<Masks>> = LazyLock::new(|| masks(&[b"never-in-a-frame-01234567890"]));
