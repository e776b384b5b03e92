//! Pairs of secrets, and answers full of guesses at both, generated from a seed.

use std::time::Duration;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use lab::origin::{Script, Step};

/// Numbers that follow from a seed (SplitMix64).
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn of(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Returns a number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    fn letters(&mut self, alphabet: &[u8], count: usize) -> Vec<u8> {
        (0..count).map(|_| self.one_of(alphabet)).collect()
    }
}

/// Two secrets of one API with the same first bytes.
#[derive(Debug, Clone)]
pub(super) struct Pair(pub(super) [String; 2]);

impl Pair {
    pub(super) fn random(chance: &mut Chance) -> Self {
        let alphabet = chance.one_of(&ALPHABETS);
        let [long, short] = [0, 1].map(|_| SHORTEST + chance.below(LONGEST - SHORTEST));
        // Half of the pairs have one length, so that only their bytes differ.
        let lengths = [long, if chance.one_in(2) { long } else { short }];
        let least = lengths[0].min(lengths[1]);
        // If two secrets differ only in the last byte, the base64 of one may hold all known
        // characters of the other's.
        let most = least - 2;
        let agreed = chance.one_of(&[0, 1, 7, 8, 11, 12, 13, least / 2, most]).min(most);
        let one = chance.letters(alphabet, lengths[0]);
        let mut other = chance.letters(alphabet, lengths[1]);
        other[..agreed].copy_from_slice(&one[..agreed]);
        while other[agreed] == one[agreed] {
            other[agreed] = chance.one_of(alphabet);
        }
        Self([one, other].map(|bytes| String::from_utf8(bytes).expect("ASCII")))
    }

    /// Returns a part of one of the two, never all of it, in some spelling.
    fn guess(&self, chance: &mut Chance) -> Vec<u8> {
        let secret = chance.one_of(&self.0).into_bytes();
        let (length, whole) = (secret.len(), secret.len() - 1);
        let any = 1 + chance.below(whole);
        let end = chance.one_of(&[whole, whole, whole, 8, 11, 12, 13, any]);
        // Without just one byte, base64 may have all of its certain characters.
        let begin = if chance.one_in(6) { 2 + chance.below(length - 2) } else { 0 };
        let end = if begin > 0 { length } else { end.min(whole) };
        spelled(&secret[begin..end], chance)
    }
}

/// Spells the same bytes as some encoder does, or as several do, each for some of them.
fn spelled(bytes: &[u8], chance: &mut Chance) -> Vec<u8> {
    match chance.below(8) {
        0 | 1 => bytes.to_vec(),
        2 => {
            let offset = chance.below(3);
            let padded = [&b"ab"[..offset], bytes].concat();
            let engine = if chance.one_in(2) { STANDARD_NO_PAD } else { URL_SAFE_NO_PAD };
            engine.encode(padded).into_bytes()
        }
        3 => bytes.iter().flat_map(|byte| hexadecimal(*byte, chance)).collect(),
        4 => bytes.iter().flat_map(|byte| [*byte, 0]).collect(),
        5 => {
            let spelling = chance.below(SPELLINGS);
            bytes.iter().flat_map(|byte| escaped(*byte, spelling)).collect()
        }
        _ => {
            let mut mixed = Vec::new();
            for byte in bytes {
                let spelling = chance.below(SPELLINGS);
                mixed.extend(escaped(*byte, spelling));
            }
            mixed
        }
    }
}

/// Returns the same seed in each run, so that a test that passes passes again, unless another is
/// asked for.
pub(super) fn seed() -> u64 {
    let told = std::env::var("CLOAKROOM_SEED").ok().and_then(|seed| seed.parse().ok());
    told.unwrap_or(SEED)
}

const SEED: u64 = 20_261_130;

fn hexadecimal(byte: u8, chance: &mut Chance) -> Vec<u8> {
    let text = if chance.one_in(2) { format!("{byte:02x}") } else { format!("{byte:02X}") };
    text.into_bytes()
}

pub(super) fn escaped(byte: u8, spelling: usize) -> Vec<u8> {
    match spelling {
        0 => format!("%{byte:02X}"),
        1 => format!("%{byte:02x}"),
        2 => format!("\\u{byte:04x}"),
        3 => format!("\\x{byte:02X}"),
        4 => format!("&#{byte};"),
        5 => format!("&#x{byte:x};"),
        6 => format!("={byte:02X}"),
        _ => char::from(byte).to_string(),
    }
    .into_bytes()
}

/// Returns an answer with guesses at both secrets, whose pieces end at, in and behind guesses.
pub(super) fn script(pair: &Pair, chance: &mut Chance) -> Script {
    let kind = chance.one_of(&KINDS);
    let mut steps = match chance.below(3) {
        0 => sweep(pair, chance),
        _ => pieces(pair, kind, chance),
    };
    for _ in 0..LONG_PAUSES {
        let at = chance.below(steps.len());
        steps[at].pause = LONG_PAUSE;
    }
    let trailer = |chance: &mut Chance| {
        let name = pair.0[chance.below(2)].to_ascii_lowercase();
        let name: String =
            name.chars().filter(char::is_ascii_alphanumeric).take(SHORTEST - 1).collect();
        (format!("x-{name}"), printable(pair.guess(chance)))
    };
    let with_length = chance.one_in(4);
    let trailers = (0..if with_length { 0 } else { chance.below(4) }).map(|_| trailer(chance));
    let trailers = trailers.collect();
    let fields = vec![("x-guess".to_owned(), printable(pair.guess(chance)))];
    Script { status: None, kind, fields, with_length, steps, trailers }
}

/// Returns pieces that each end one byte further into a secret than the one before.
fn sweep(pair: &Pair, chance: &mut Chance) -> Vec<Step> {
    let secret = chance.one_of(&pair.0).into_bytes();
    let spelling = chance.below(SPELLINGS);
    let stride = 1 + secret.len() / MOST_STEPS;
    let from = chance.below(stride);
    let ends = (from..secret.len()).step_by(stride);
    let piece = |end: usize| {
        let guess = secret[..end].iter().flat_map(|byte| escaped(*byte, spelling)).collect();
        [b"another piece ".to_vec(), guess].concat()
    };
    // Each guess is followed by a break, or by bytes that continue it in a wrong way.
    let goes_on = chance.one_in(2);
    let next = if goes_on { &[NO_LETTER][..] } else { b" " };
    let pieces = ends.map(|end| step([next, &piece(end)].concat()));
    pieces.collect()
}

/// Returns a body of this type of content, cut at random places: mostly at guesses.
fn pieces(pair: &Pair, kind: &str, chance: &mut Chance) -> Vec<Step> {
    let (mut body, mut cuts) = (Vec::new(), Vec::new());
    for _ in 0..MOST_STEPS {
        let guess = pair.guess(chance);
        let begin = body.len();
        match kind {
            "text/event-stream" => {
                body.extend(b"data: {\"delta\":\"");
                body.extend(&guess);
                body.extend(b"\"}\n\n");
            }
            "application/grpc" => {
                let length = u32::try_from(guess.len()).expect("a short guess");
                body.extend([&[0], &length.to_be_bytes()[..], &guess].concat());
            }
            _ => {
                body.extend(noise(begin, chance));
                body.extend(&guess);
            }
        }
        cuts.push(match chance.below(4) {
            0 => begin + chance.below(body.len() - begin + 1),
            1 => body.len() - chance.below(guess.len() + 1).min(body.len() - begin),
            _ => body.len(),
        });
    }
    cuts.push(body.len());
    let mut begin = 0;
    let steps = cuts.into_iter().map(|end| {
        let piece = body[begin..end.max(begin)].to_vec();
        begin = end.max(begin);
        step(piece)
    });
    steps.filter(|step| !step.bytes.is_empty()).collect()
}

/// Returns bytes between two guesses: few, more than are ever held back without a byte that no
/// secret holds, or as many as a TLS record and a frame hold. They complete no guess by chance.
fn noise(begin: usize, chance: &mut Chance) -> Vec<u8> {
    let letters = b"abcdefghijklmnopqrstuvwxyz0123456789=+/-";
    let more = match chance.below(12) {
        0 => {
            let count = 1 + chance.below(3_000);
            chance.letters(letters, count)
        }
        // The guess lies across the end of a record.
        1 => vec![b'x'; (RECORD - begin % RECORD).saturating_sub(chance.below(12))],
        2 => {
            let count = 1 + chance.below(12);
            chance.letters(letters, count)
        }
        3 => b"\xc3\xa9".to_vec(),
        4 => Vec::new(),
        _ => b" some words ".to_vec(),
    };
    [vec![NO_LETTER], more].concat()
}

/// Makes bytes printable, as a field needs.
fn printable(bytes: Vec<u8>) -> Vec<u8> {
    bytes.into_iter().filter(u8::is_ascii_graphic).collect()
}

fn step(bytes: Vec<u8>) -> Step {
    Step { bytes: bytes.into(), pause: PAUSE }
}

const KINDS: [&str; 5] = [
    "text/event-stream",
    "application/json",
    "application/grpc",
    "application/octet-stream",
    "text/plain",
];
const ALPHABETS: [&[u8]; 4] = [
    b"0123456789abcdef",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    b"aZ0-_.~!$%&'()*+,;=:@/?\\<>^`{}[]",
];
/// A byte that no secret has, and one that a secret might have.
const NO_LETTER: u8 = b'|';
/// Bytes of a secret; the longest that share one bound on held-back bytes.
const SHORTEST: usize = 16;
const LONGEST: usize = 200;
pub(super) const SPELLINGS: usize = 8;
/// Bytes of a full TLS record and HTTP/2 frame.
const RECORD: usize = 16_384;
const MOST_STEPS: usize = 24;
/// So long that the gateway has processed a piece when the next one comes.
const PAUSE: Duration = Duration::from_millis(30);
/// So long that the gateway releases held-back bytes.
const LONG_PAUSE: Duration = Duration::from_millis(400);
const LONG_PAUSES: usize = 3;
