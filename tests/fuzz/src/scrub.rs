//! Masking: no form of a secret in a body comes out, whatever the chunks, and the sizes and times
//! of the output do not depend on the secret.

use std::{
    ops::Range,
    sync::{Arc, LazyLock},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use cloakroom::{
    policy::ResponseRules,
    scrub::{MaskStream, Masks, mask_trailers},
    secrets::SecretValue,
};
use http::{HeaderMap, HeaderValue};
use zeroize::Zeroizing;

use crate::input::Input;

/// Takes two secrets that begin alike, and a body with both, and with guesses, in any form.
pub(crate) fn any_body(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let in_envelopes = input.flag();
    let pair = &PAIRS[input.below(MOST_PAIRS)];
    let masks = input.pick(&[&pair.both, &pair.masks_of_one, &pair.masks_of_other]);
    let mut body = Body::default();
    while !input.is_empty() && body.bytes.len() < MOST_BYTES {
        body.add(&mut input, [&pair.one, &pair.other]);
    }
    check_masked(&pair.both, &body);
    check_sizes(&body, in_envelopes, masks);
}

/// Two secrets, and their masks. Compiling masks takes longer than using them on a short body.
struct Pair {
    one: Vec<u8>,
    other: Vec<u8>,
    masks_of_one: Arc<Masks>,
    masks_of_other: Arc<Masks>,
    both: Arc<Masks>,
}

impl Pair {
    /// Creates a pair; lengths differ with `number`, and the second secret begins with so many
    /// bytes of the first.
    fn new(number: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ number as u64;
        let mut letter = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            LETTERS[(state >> 32) as usize % LETTERS.len()]
        };
        let mut secret = |length: usize| (0..length).map(|_| letter()).collect::<Vec<u8>>();
        let (one, rest) = (secret(16 + 2 * number), secret(48 - 2 * number));
        let other = [&one[..number], &rest].concat();
        let (masks_of_one, masks_of_other) = (masks(&[&one]), masks(&[&other]));
        let both = masks(&[&one, &other]);
        Self { one, other, masks_of_one, masks_of_other, both }
    }
}

static PAIRS: LazyLock<Vec<Pair>> = LazyLock::new(|| (0..MOST_PAIRS).map(Pair::new).collect());
static MASKS_OF_NEITHER: LazyLock<Arc<Masks>> = LazyLock::new(|| masks(&[UNRELATED]));

/// Checks that every whole occurrence is covered, that only asterisks are put in, and that chunks
/// change nothing.
fn check_masked(masks: &Arc<Masks>, body: &Body) {
    let mut stream = MaskStream::new(Arc::clone(masks), false);
    let mut whole = stream.push(Bytes::copy_from_slice(&body.bytes)).to_vec();
    whole.extend(stream.finish());
    assert_eq!(whole.len(), body.bytes.len());
    let changed: Vec<_> = whole.iter().zip(&body.bytes).filter(|(now, then)| now != then).collect();
    assert!(changed.iter().all(|(now, then)| **now == b'*' && **then != 0), "a byte is changed");
    assert!(stream.masked() >= changed.len() as u64, "what is masked is not counted");
    for range in &body.secrets {
        let covered = whole[range.clone()].iter().all(|byte| b"*\0".contains(byte));
        let (was, is) = (&body.bytes[range.clone()], &whole[range.clone()]);
        assert!(covered, "{} comes out as {}", was.escape_ascii(), is.escape_ascii());
    }
    let mut stream = MaskStream::new(Arc::clone(masks), false);
    let mut cut: Vec<u8> = body.chunks().flat_map(|(chunk, _)| stream.push(chunk)).collect();
    cut.extend(stream.finish());
    assert!(cut == whole, "chunks change what is masked");
    check_field(masks, &body.bytes, &whole);
}

/// Checks that the value of a field is masked as a body is.
fn check_field(masks: &Masks, bytes: &[u8], masked: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let mut fields = HeaderMap::from_iter([(http::HeaderName::from_static("x-note"), value)]);
    mask_trailers(masks, &ResponseRules::default(), &mut fields);
    assert_eq!(fields["x-note"].as_bytes(), masked, "a field is masked otherwise");
}

/// Checks everything that an agent can see: the sizes chunk by chunk, pause by pause and at the
/// end, also where newer masks come in between.
fn check_sizes(body: &Body, in_envelopes: bool, masks: &Arc<Masks>) {
    let sizes = |first: &Arc<Masks>, newer: &Arc<Masks>| {
        let mut stream = MaskStream::new(Arc::clone(first), in_envelopes);
        let mut sizes = Vec::new();
        for (chunk, stop) in body.chunks() {
            sizes.push(stream.push(chunk).len());
            match stop {
                Stop::Chunk => {}
                Stop::Pause => sizes.push(stream.release().len()),
                Stop::Renewal => stream.renew(Arc::clone(newer)),
            }
        }
        sizes.push(stream.finish().len());
        assert_eq!(sizes.iter().sum::<usize>(), body.bytes.len(), "bytes are lost");
        sizes
    };
    let unrelated = &MASKS_OF_NEITHER;
    let expected = sizes(unrelated, unrelated);
    let mut stream = MaskStream::new(Arc::clone(unrelated), in_envelopes);
    let given = [stream.push(Bytes::copy_from_slice(&body.bytes)), stream.finish()].concat();
    assert!(given == body.bytes, "what is no secret is masked");
    assert_eq!(sizes(masks, masks), expected, "the sizes tell of a secret");
    assert_eq!(sizes(unrelated, masks), expected, "the sizes tell of a newer secret");
}

/// The bytes that are pushed, the places of whole secrets in them, and the ends of chunks.
#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
    secrets: Vec<Range<usize>>,
    stops: Vec<(usize, Stop)>,
}

/// The reason why a chunk ends.
#[derive(Clone, Copy)]
enum Stop {
    Chunk,
    /// The agent gets all bytes that can be given out.
    Pause,
    /// Values were read again.
    Renewal,
}

impl Body {
    fn add(&mut self, input: &mut Input<'_>, secrets: [&Vec<u8>; 2]) {
        match input.below(10) {
            0 | 1 => {
                let count = input.up_to(16);
                self.bytes.extend_from_slice(input.take(count));
            }
            2 => self.bytes.push(input.pick(b" \n\r=\t\0%\\")),
            3 | 4 => {
                let secret = input.pick(&secrets);
                let (before, written, after) = written(secret, input);
                self.bytes.extend(before);
                let begin = self.bytes.len();
                self.bytes.extend(written);
                self.secrets.push(begin..self.bytes.len());
                self.bytes.extend(after);
            }
            5 => {
                let secret = input.pick(&secrets);
                let (_, written, _) = written(secret, input);
                let (from, to) = (input.below(256), input.below(256));
                self.bytes.extend(written.iter().take(to).skip(from));
            }
            6 => self.bytes.extend([0, 0, 0, 0, input.byte()]),
            7 => self.stops.push((self.bytes.len(), Stop::Chunk)),
            8 => self.stops.push((self.bytes.len(), Stop::Pause)),
            _ => self.stops.push((self.bytes.len(), Stop::Renewal)),
        }
    }

    fn chunks(&self) -> impl Iterator<Item = (Bytes, Stop)> {
        let last = (self.bytes.len(), Stop::Chunk);
        let begins = [0].into_iter().chain(self.stops.iter().map(|(end, _)| *end));
        let ends = self.stops.iter().copied().chain([last]);
        begins
            .zip(ends)
            .map(|(begin, (end, stop))| (Bytes::copy_from_slice(&self.bytes[begin..end]), stop))
    }
}

pub(crate) fn masks(secrets: &[&[u8]]) -> Arc<Masks> {
    let load = |secret: &&[u8]| SecretValue::load(Zeroizing::new(secret.to_vec()), 8);
    let values = secrets.iter().map(load).collect::<Result<Vec<_>, _>>().expect("values");
    Arc::new(Masks::new(&values))
}

/// Returns a secret as other programs write it, with the bytes before and behind it that do not
/// depend on it alone.
fn written(secret: &[u8], input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let none = Vec::new;
    let text = match input.below(6) {
        0 => secret.to_vec(),
        1 => {
            let upper = input.flag();
            let digits =
                |byte: &u8| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") };
            secret.iter().map(digits).collect::<String>().into_bytes()
        }
        2 => return base64(secret, input),
        3 => {
            let write = input.pick(&WRITERS);
            secret.iter().flat_map(|byte| write(*byte)).collect()
        }
        4 => return wide(secret, input),
        // Each byte is raw or escaped by itself, and line ends of quoted-printable may stand
        // between two.
        _ => {
            let mut text = none();
            for (at, byte) in secret.iter().enumerate() {
                match input.below(16) {
                    0 if at > 0 => text.extend(b"=\r\n"),
                    1 if at > 0 => text.extend(b"=\n"),
                    _ => {}
                }
                text.extend(input.pick(&WRITERS)(*byte));
            }
            text
        }
    };
    (none(), text, none())
}

/// Encodes the secret in base64 among other bytes: the middle depends on it alone, the two ends do
/// not.
fn base64(secret: &[u8], input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (before, after) = (input.below(3), input.below(3));
    let (before, after) = (input.take(before), input.take(after));
    let whole = [before, secret, after].concat();
    let before = before.len();
    let engine = if input.flag() { URL_SAFE_NO_PAD } else { STANDARD_NO_PAD };
    let text = engine.encode(&whole).into_bytes();
    let (begin, end) = ((before * 8).div_ceil(6), (before + secret.len()) * 8 / 6);
    (text[..begin].to_vec(), text[begin..end].to_vec(), text[end..].to_vec())
}

/// Encodes the secret in UTF-16 or UTF-32. The zeros at either end may belong to a neighbour.
fn wide(secret: &[u8], input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let zeros = vec![0; if input.flag() { 1 } else { 3 }];
    let between = |byte: &u8| [&zeros[..], &[*byte]].concat();
    let text = secret.iter().flat_map(between).skip(zeros.len()).collect();
    if input.flag() { (zeros, text, Vec::new()) } else { (Vec::new(), text, zeros) }
}

/// The ways in which programs write one byte.
const WRITERS: [fn(u8) -> Vec<u8>; 10] = [
    |byte| vec![byte],
    |byte| vec![byte],
    |byte| format!("%{byte:02X}").into_bytes(),
    |byte| format!("%{byte:02x}").into_bytes(),
    |byte| format!("\\u{byte:04x}").into_bytes(),
    |byte| format!("\\u{byte:04X}").into_bytes(),
    |byte| format!("\\x{byte:02x}").into_bytes(),
    |byte| format!("&#{byte};").into_bytes(),
    |byte| format!("&#x{byte:X};").into_bytes(),
    |byte| format!("={byte:02X}").into_bytes(),
];

/// The letters of values. None of them begins an escape: a value that itself reads as escapes is
/// found in the form of one encoder, and no more is promised.
const LETTERS: &[u8; 64] = b"ABCDEFabcdef0123456789ghijklmnopqrstuvwxyzGHIJKLMNOPQ-_.~+/!:#;x";
const UNRELATED: &[u8] = b"never-in-a-body-0123456789";
const MOST_BYTES: usize = 4 * 1024;
const MOST_PAIRS: usize = 16;
