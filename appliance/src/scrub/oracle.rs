//! Tests the scrubber against a slow and plain reading of its promises.
//!
//! The oracle decodes: at every place and for every form it undoes escapes byte by byte and
//! compares with a text made without any code of this module. A byte is masked if and only if an
//! occurrence covers it, in any chunks.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE},
};
use bytes::Bytes;
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::{MaskStream, Masks};
use crate::secrets::SecretValue;

pub(super) fn secret(text: &str) -> SecretValue {
    SecretValue::load(Zeroizing::new(text.as_bytes().to_vec()), 8)
        .unwrap_or_else(|why| panic!("{text}: {why}"))
}

pub(super) fn masks(secrets: &[&str]) -> Arc<Masks> {
    let values: Vec<_> = secrets.iter().map(|text| secret(text)).collect();
    Arc::new(Masks::new(&values))
}

/// Masks as on a processor without vector instructions.
fn portable(secrets: &[&str]) -> Arc<Masks> {
    let values: Vec<_> = secrets.iter().map(|text| secret(text)).collect();
    Arc::new(Masks::compiled(&values, None))
}

/// Masks that search for each secret separately.
fn apart(secrets: &[&str]) -> Arc<Masks> {
    let each: Vec<_> = secrets.iter().map(|secret| masks(&[secret])).collect();
    Arc::new(Masks::joined(each.iter().map(|masks| &**masks), []))
}

fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Returns the byte that each escape at the beginning of `text` stands for, `None` for nothing; its
/// length; and its family.
fn escapes(text: &[u8]) -> Vec<(Option<u8>, usize, char)> {
    let digits = |from: usize, to: usize, radix: u32| {
        let digits = std::str::from_utf8(text.get(from..to)?).ok()?;
        let good = digits.chars().all(|digit| digit.is_digit(radix));
        u8::try_from(u32::from_str_radix(digits, radix).ok().filter(|_| good)?).ok()
    };
    let mut found = vec![];
    let mut add = |byte: Option<u8>, length, family| {
        found.extend(byte.map(|byte| (Some(byte), length, family)));
    };
    let begins = |with: &str| text.starts_with(with.as_bytes());
    add(digits(1, 3, 16).filter(|_| begins("%")), 3, '%');
    add(digits(4, 6, 16).filter(|_| begins("\\u00")), 6, '\\');
    add(digits(2, 4, 16).filter(|_| begins("\\x")), 4, '\\');
    let short = text.get(1).copied().filter(|byte| b"\"\\/'".contains(byte));
    add(short.filter(|_| begins("\\")), 2, '\\');
    add(digits(1, 3, 16).filter(|_| begins("=")), 3, '=');
    for end in 3..text.len().min(10) {
        if begins("&#") && text[end] == b';' {
            add(digits(2, end, 10), end + 1, '&');
            add(digits(3, end, 16).filter(|_| text[2] == b'x'), end + 1, '&');
        }
    }
    for (name, byte) in
        [("&amp;", b'&'), ("&lt;", b'<'), ("&gt;", b'>'), ("&quot;", b'"'), ("&apos;", b'\'')]
    {
        add(Some(byte).filter(|_| begins(name)), name.len(), '&');
    }
    for nothing in ["=\n", "=\r\n"] {
        found.extend(begins(nothing).then_some((None, nothing.len(), '=')));
    }
    if text.starts_with(b"\0") && !text.starts_with(b"\0\0\0\0") {
        found.push((None, 1, '0'));
    }
    found
}

/// Whether a byte of a form may stand for another.
type Same = fn(u8, u8) -> bool;

/// Returns the ends of every occurrence of `want` that begins at `at`; `same` compares decoded
/// bytes.
fn ends(text: &[u8], at: usize, want: &[u8], same: Same) -> Vec<usize> {
    let mut ends = vec![at];
    for (number, &byte) in want.iter().enumerate() {
        let mut next = vec![];
        while let Some(end) = ends.pop() {
            let rest = &text[end..];
            let plain = rest.first().map(|&byte| (Some(byte), 1, 'r'));
            for (found, length, _) in plain.into_iter().chain(escapes(rest)) {
                match found {
                    Some(found) if same(byte, found) => next.push(end + length),
                    // An escape for nothing stands between two bytes, not before the first.
                    None if number > 0 => ends.push(end + length),
                    _ => (),
                }
            }
        }
        next.sort_unstable();
        next.dedup();
        ends = next;
    }
    ends
}

/// Returns the characters of base64 that stay the same whatever surrounds the secret.
fn core(secret: &str, offset: usize) -> Vec<u8> {
    let [low, high] = [0x00u8, 0xff].map(|fill| {
        STANDARD_NO_PAD.encode([&vec![fill; offset], secret.as_bytes(), &[fill; 3]].concat())
    });
    let same: Vec<bool> = low.bytes().zip(high.bytes()).map(|(a, b)| a == b).collect();
    let begin = same.iter().position(|same| *same).unwrap();
    let end = same.iter().rposition(|same| *same).unwrap() + 1;
    low.as_bytes()[begin..end].to_vec()
}

fn base64_same(want: u8, found: u8) -> bool {
    want == found || matches!((want, found), (b'+', b'-') | (b'/', b'_'))
}

pub(super) fn oracle(secrets: &[&str], text: &[u8]) -> Vec<u8> {
    let exact: Same = |a, b| a == b;
    let mut masked = text.to_vec();
    for secret in secrets {
        let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        let mut forms: Vec<(Vec<u8>, Same)> = vec![
            (secret.as_bytes().to_vec(), exact),
            (hex.into_bytes(), |a, b| a == b.to_ascii_lowercase()),
        ];
        forms.extend((0..3).map(|offset| (core(secret, offset), base64_same as _)));
        for at in 0..text.len() {
            for (want, same) in &forms {
                if let Some(&end) = ends(text, at, want, *same).last() {
                    let covered = masked[at..end].iter_mut().filter(|byte| **byte != 0);
                    covered.for_each(|byte| *byte = b'*');
                }
            }
        }
    }
    masked
}

fn in_chunks(masks: &Arc<Masks>, text: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut stream = MaskStream::new(masks.clone(), false);
    let mut out = vec![];
    let mut begin = 0;
    for &end in cuts.iter().chain([&text.len()]) {
        out.extend(stream.push(Bytes::copy_from_slice(&text[begin..end])));
        assert!(end - out.len() <= masks.reach(), "more is kept back than a form has bytes");
        begin = end;
    }
    out.extend(stream.finish());
    out
}

fn assert_same(found: &[u8], expected: &[u8]) {
    let (found, expected) = (String::from_utf8_lossy(found), String::from_utf8_lossy(expected));
    assert_eq!(found, expected);
}

fn percent(text: &str, keep: impl Fn(u8) -> bool, upper: bool) -> String {
    let escape = |byte: u8| match (keep(byte), upper) {
        (true, _) => char::from(byte).to_string(),
        (false, true) => format!("%{byte:02X}"),
        (false, false) => format!("%{byte:02x}"),
    };
    text.bytes().map(escape).collect()
}

/// Returns a secret as others would write it, made by their rules.
fn written(secret: &str) -> Vec<String> {
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let component = |byte: u8| unreserved(byte) || b"!*'()".contains(&byte);
    let json = serde_json::to_string(secret).unwrap();
    let each = |write: fn(u8) -> String| secret.bytes().map(write).collect::<String>();
    let wide = |before: &str, after: &str| {
        secret.chars().map(|byte| format!("{before}{byte}{after}")).collect::<String>()
    };
    let mut forms = vec![
        secret.to_owned(),
        percent(secret, unreserved, true),
        percent(secret, unreserved, false),
        percent(secret, component, true),
        // Java's and .NET's encoders escape what RFC 3986 calls unreserved.
        percent(secret, |byte| unreserved(byte) && byte != b'~', true),
        percent(secret, |_| false, true),
        percent(secret, |_| false, false),
        json[1..json.len() - 1].to_owned(),
        json[1..json.len() - 1].replace('/', "\\/"),
        secret
            .replace('\\', "\\\\")
            .replace('<', "\\u003c")
            .replace('>', "\\u003E")
            .replace('&', "\\u0026")
            .replace('"', "\\u0022"),
        each(|byte| format!("\\u{byte:04x}")),
        each(|byte| format!("\\u{byte:04X}")),
        each(|byte| format!("\\x{byte:02X}")),
        each(|byte| format!("&#{byte};")),
        each(|byte| format!("&#x{byte:x};")),
        each(|byte| format!("={byte:02X}")),
        secret
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&quot;")
            .replace('\'', "&#39;"),
        secret.replace('=', "=3D").replace('6', "6=\r\n"),
        wide("", "\0"),
        wide("\0", ""),
        wide("\0\0\0", ""),
        hex.to_uppercase(),
        hex,
    ];
    forms.extend((0..3).flat_map(|offset| {
        let padded = ["abc".get(..offset).unwrap(), secret, "tail"].concat();
        let inner = |text: String| text[offset + 1..text.len() - 8].to_owned();
        let standard = inner(STANDARD.encode(&padded));
        [standard.clone(), standard.replace('/', "\\/"), inner(URL_SAFE.encode(&padded))]
    }));
    forms
}

/// The number of texts of [`written`] that hold the whole secret.
const WHOLE: usize = 23;

const SECRETS: [&str; 4] = [
    "sk-proj-0123456789abcdefgh",
    "p\"w\\d/<&>+~61=!*'()Zk9x",
    "??>>~~??>>~~??>>",
    "aaaaaaaaaaaaaaaa",
];

/// A secret of which half reads as escapes.
const ODD: &str = "%25%25\\\\\\\\//\"\"\\u005c";

static ALL: LazyLock<[Arc<Masks>; 3]> =
    LazyLock::new(|| [masks(&SECRETS), portable(&SECRETS), apart(&SECRETS)]);

#[test]
fn every_form_is_masked_whole() {
    for secret in SECRETS {
        for form in written(secret).iter().take(WHOLE) {
            // A NUL of UTF-16 before or behind the secret belongs to the text around it.
            let text = format!("<{form}>");
            let plain = form.trim_matches('\0');
            let stars = plain.replace(|byte| byte != '\0', "*");
            for masks in [masks(&[secret]), portable(&[secret])] {
                let masked = in_chunks(&masks, text.as_bytes(), &[]);
                assert_same(&masked, text.replace(plain, &stars).as_bytes());
            }
        }
    }
}

#[test]
fn a_value_that_reads_as_escapes_is_masked_as_encoded() {
    let masks = masks(&[ODD]);
    for form in written(ODD).iter().take(WHOLE).filter(|form| !form.contains('\n')) {
        let masked = in_chunks(&masks, form.as_bytes(), &[]);
        let known = masked.iter().filter(|byte| !b"*\0".contains(byte)).count();
        assert_eq!(known, 0, "{form:?}: {}", String::from_utf8_lossy(&masked));
    }
}

/// Beginnings of an escape before a value whose first bytes are the escape's last.
const BEGUN: [&str; 12] =
    ["", "%", "%4", "\\", "\\u004", "\\u", "\\x4", "&#6", "&#x0", "=", "=4", "\\\\"];

#[test]
fn an_escaped_short_value_is_masked_whatever_stands_before() {
    for secret in ["41abcdef", "5;bcdefgh", "0041-abcde", "\"xyzabcdefg", "41;abcdefgh"] {
        let masks = masks(&[secret]);
        for (escaped, byte) in secret.bytes().enumerate() {
            for escape in [format!("%{byte:02X}"), format!("\\u{byte:04x}"), format!("&#{byte};")] {
                let form = [&secret[..escaped], &escape, &secret[escaped + 1..]].concat();
                for before in BEGUN {
                    let text = format!("<{before}{form}>");
                    let expected = oracle(&[secret], text.as_bytes());
                    assert!(expected.ends_with(b"**>"));
                    assert_same(&in_chunks(&masks, text.as_bytes(), &[]), &expected);
                }
            }
        }
    }
}

/// Ends of an escape that a value's last bytes begin.
const ENDED: [&str; 9] = ["", "1", "41", "5;", "t;", "u0041", "\"", "\n", "x41"];

/// Values whose last bytes begin an escape, and the escape's first byte. An encoder of that family
/// writes none of them unchanged; if one did so with a value below twelve bytes, the value would
/// not be found.
const OPEN: [(&str, &str); 11] = [
    ("abcdefg%4", "%"),
    ("abcdefgh%", "%"),
    ("abcdefg=4", "="),
    ("abcdefgh=", "="),
    ("abcde\\u004", "\\"),
    ("abcdefgh\\", "\\"),
    ("abcdefg\\x4", "\\"),
    ("abcdefg&#6", "&"),
    ("abcdefgh&l", "&"),
    ("abcdefghi%4", "%"),
    ("abcdefghijkl%4", ""),
];

#[test]
fn an_escaped_short_value_is_masked_whatever_stands_behind() {
    for (secret, family) in OPEN {
        let masks = masks(&[secret]);
        for (escaped, byte) in secret.bytes().enumerate() {
            let escapes = [
                format!("%{byte:02X}"),
                format!("\\u{byte:04x}"),
                format!("&#{byte};"),
                format!("={byte:02X}"),
            ];
            let others = |escape: &&String| family.is_empty() || !escape.starts_with(family);
            for escape in escapes.iter().filter(others) {
                let form = [&secret[..escaped], escape, &secret[escaped + 1..]].concat();
                for behind in ENDED {
                    let text = format!("<{form}{behind}>");
                    let expected = oracle(&[secret], text.as_bytes());
                    assert!(expected.starts_with(b"<**"), "{text}");
                    assert_same(&in_chunks(&masks, text.as_bytes(), &[]), &expected);
                }
            }
        }
    }
}

#[test]
fn a_value_with_backslashes_is_masked_with_escapes_behind_them() {
    let secret = r"AbCd\EfGh\iJkLmNoPqRsT\kVwXyZ12345678";
    let masks = masks(&[secret]);
    for (escaped, byte) in secret.bytes().enumerate() {
        for escape in [format!("\\u{byte:04x}"), format!("\\x{byte:02x}"), format!("%{byte:02x}")] {
            let text = [&secret[..escaped], &escape, &secret[escaped + 1..]].concat();
            let expected = oracle(&[secret], text.as_bytes());
            assert_same(&in_chunks(&masks, text.as_bytes(), &[]), &expected);
        }
    }
}

/// The form stands at every place of a block, and beside bytes that end its run or do not.
#[test]
fn a_form_is_found_among_spaces_and_other_escapes() {
    let secret = "sk-proj-0123456789abcdefgh";
    let masks = masks(&[secret]);
    let besides = [("", ""), ("%20", "\\\""), (" ", " "), ("\0\0\0\0", "=\n"), ("&", "\u{e9}")];
    for form in [percent(secret, |byte| byte != b'5', true), percent(secret, |_| false, true)] {
        for (before, after) in besides {
            for place in 0..140 {
                let text = format!("{}{before}{form}{after}", &"a ".repeat(place)[..place]);
                for text in [text.clone(), text + &"b".repeat(200)] {
                    let expected = text.replace(&form, &"*".repeat(form.len()));
                    let masked = in_chunks(&masks, text.as_bytes(), &[]);
                    assert_same(&masked, expected.as_bytes());
                }
            }
        }
    }
}

#[test]
fn a_form_is_found_however_far_behind_an_escape() {
    let longest = "k7Qp2mZr9xVb4TnW8sLd";
    for (secret, gap) in [11, 20]
        .into_iter()
        .flat_map(|end| (20..150).step_by(3).map(move |gap| (&longest[..end], gap)))
    {
        for masks in [masks(&[secret]), portable(&[secret])] {
            for escaped in 0..secret.len() {
                let (before, rest) = secret.split_at(escaped);
                let (byte, after) = (rest.as_bytes()[0], &rest[1..]);
                let before = format!("%41{}{before}", "y".repeat(gap));
                let text = format!("{before}%{byte:02X}{after} and so on");
                let expected = oracle(&[secret], text.as_bytes());
                assert_same(&in_chunks(&masks, text.as_bytes(), &[]), &expected);
            }
        }
    }
}

#[test]
fn base64_is_masked_at_every_offset_except_its_ends() {
    for secret in SECRETS {
        let masks = masks(&[secret]);
        for before in ["", "a", "ab", "user:", "{\"key\":\"", "\u{e9}"] {
            for after in ["", "z", "zz", "\"}"] {
                for encoded in [
                    STANDARD.encode(format!("{before}{secret}{after}")),
                    URL_SAFE.encode(format!("{before}{secret}{after}")),
                ] {
                    let masked = in_chunks(&masks, encoded.as_bytes(), &[]);
                    let stars = masked.iter().filter(|byte| **byte == b'*').count();
                    assert!(stars * 6 + 12 > secret.len() * 8, "{before}{secret}{after}");
                }
            }
        }
    }
}

#[test]
fn every_single_split_gives_the_same() {
    for secret in SECRETS {
        let masks = masks(&[secret]);
        // Many writers leave one secret or another unchanged.
        for form in BTreeSet::from_iter(written(secret)) {
            let text = format!("x{}{form}{form}%7", &form[..form.len() / 2]);
            let expected = oracle(&[secret], text.as_bytes());
            for cut in 0..=text.len() {
                assert_same(&in_chunks(&masks, text.as_bytes(), &[cut]), &expected);
            }
            let all: Vec<_> = (0..text.len()).collect();
            assert_same(&in_chunks(&masks, text.as_bytes(), &all), &expected);
        }
    }
}

#[test]
fn secrets_inside_and_across_each_other_are_all_masked() {
    let secrets = ["abcdefgh", "abcdefghijkl", "efghijklmnop", "cdefghij-cdefghij"];
    let masks = masks(&secrets);
    for text in
        ["abcdefghijklmnop", "abcdefgh", "abcdefghijk", "abcdefghij-cdefghijklmnop", "ababcdefgh"]
    {
        let expected = oracle(&secrets, text.as_bytes());
        assert!(expected.contains(&b'*'));
        for first in 0..=text.len() {
            for second in first..=text.len() {
                assert_same(&in_chunks(&masks, text.as_bytes(), &[first, second]), &expected);
            }
        }
    }
}

#[test]
fn a_chunk_that_ends_a_line_is_not_delayed() {
    let masks = masks(&["sk-proj-0123456789abcdefgh"]);
    let mut stream = MaskStream::new(masks, false);
    for event in
        ["data: {\"delta\":\"sk-\"}\n\n", "data: sk-proj-0123\n\n", "\n", "data: [DONE]\n\n"]
    {
        let chunk = Bytes::from_static(event.as_bytes());
        let out = stream.push(chunk.clone());
        assert_eq!(out, chunk);
        assert_eq!(out.as_ptr(), chunk.as_ptr(), "it was copied");
    }
    assert_eq!(stream.push(Bytes::from_static(b"data: sk-pro")), "data: ");
    assert_eq!(stream.push(Bytes::from_static(b"se\n\n")), "sk-prose\n\n");
    assert_eq!((stream.finish().len(), stream.masked()), (0, 0));
}

#[test]
fn a_message_that_stands_behind_its_length_is_not_delayed() {
    let masks = masks(&["sk-proj-0123456789abcdefgh"]);
    let mut stream = MaskStream::new(masks, true);
    for text in ["sk-proj", "-0123456789abcde", "!", ""] {
        let message = [&[0, 0, 0, 0, text.len() as u8], text.as_bytes()].concat();
        assert_eq!(stream.push(message.clone().into()), message);
    }
    let two = b"\0\0\0\0\x03abc\0\0\0\0\x09ab";
    assert_eq!(stream.push(Bytes::from_static(two)), &two[..13], "the second is not whole");
    assert_eq!(stream.push(Bytes::from_static(b"cdefghi")), "abcdefghi");
}

#[test]
fn without_secrets_nothing_is_touched() {
    let masks = masks(&[]);
    assert!(masks.is_empty());
    let mut stream = MaskStream::new(masks, false);
    let chunk = Bytes::from_static(b"anything %41 \\u0041");
    assert_eq!(stream.push(chunk.clone()).as_ptr(), chunk.as_ptr());
    assert!(stream.finish().is_empty());
}

#[test]
fn masked_bytes_are_counted_once() {
    let masks = masks(&["0123456789abcdef"]);
    let mut stream = MaskStream::new(masks, false);
    let text = b"0123456789abcdef0123456789abcdef";
    text.chunks(5).for_each(|chunk| drop(stream.push(Bytes::copy_from_slice(chunk))));
    stream.finish();
    assert_eq!(stream.masked(), 32);
}

#[test]
fn a_waiting_receiver_gets_all_but_the_rest_of_secrets() {
    let masks = masks(&["sk-proj-0123456789abcdefgh"]);
    let mut stream = MaskStream::new(masks, false);
    assert_eq!(stream.push(Bytes::from_static(b"two messages")), "two ");
    assert_eq!(stream.release(), "messages");
    assert!(!stream.can_release());
    assert_eq!(stream.push(Bytes::from_static(b"next")), "");
    assert_eq!(stream.release(), "next");
    assert_eq!(stream.push(Bytes::from_static(b" sk-proj-0123")), " ");
    assert_eq!(stream.release(), "sk-proj-0123");
    assert_eq!(stream.push(Bytes::from_static(b"456789abcdefgh.")), "");
    assert_eq!(stream.finish(), "**************.");
}

#[test]
fn a_secret_at_the_end_is_masked_for_waiting_receivers() {
    let masks = masks(&["sk-proj-0123456789abcdefgh"]);
    let mut stream = MaskStream::new(masks, false);
    assert_eq!(stream.push(Bytes::from_static(b"k=sk-proj-0123456789abcdefgh")), "");
    assert_eq!(stream.release(), "k=**************************");
    assert_eq!((stream.finish().len(), stream.masked()), (0, 26));
}

#[test]
fn most_of_a_secret_is_a_near_miss() {
    let secret = "sk-proj-0123456789abcdefgh";
    let masks = masks(&[secret]);
    let near = |text: &str| {
        let mut stream = MaskStream::new(masks.clone(), false);
        text.as_bytes().chunks(7).for_each(|it| drop(stream.push(Bytes::copy_from_slice(it))));
        stream.finish();
        stream.near_misses()
    };
    assert_eq!(
        near(&format!("{secret} {} sk-proj-01234 abc", percent(secret, |_| false, true))),
        0
    );
    assert!(near(&secret.replace("sk", "Sk").repeat(20)) > 10);
    // A part of another secret that stands there is no guess, however the secrets are searched for.
    let other = secret.replace("sk-proj", "sk-team");
    let text = format!("{secret} {other} ").repeat(20);
    for masks in [super::oracle::masks(&[secret, &other]), apart(&[secret, &other])] {
        let mut stream = MaskStream::new(masks, false);
        stream.push(Bytes::from(text.clone()));
        stream.finish();
        assert_eq!(stream.near_misses(), 0);
    }
    assert!(near(&percent(&secret[8..], |byte| byte != b'9', true).repeat(20)) > 10);
}

proptest! {
    /// An agent that guesses a beginning, an end or a middle learns nothing below twelve bytes, in
    /// any form: of a key of digits six bytes would be a million guesses.
    #[test]
    fn fewer_than_twelve_bytes_are_no_near_miss(
        secret in "[0-9a-f]{24,64}",
        begin in 0usize..64,
        pad in 0usize..3,
        room in 0usize..50,
    ) {
        let guess = &secret.as_bytes()[begin % (secret.len() - 11)..][..11];
        let mut padded = vec![0; pad];
        padded.extend(guess);
        // The characters that unknown neighbours share are left out.
        let base64 = STANDARD_NO_PAD.encode(&padded);
        let base64 = &base64[(pad * 8).div_ceil(6)..padded.len() * 8 / 6];
        let hex: String = guess.iter().map(|byte| format!("{byte:02x}")).collect();
        let raw = String::from_utf8_lossy(guess).into_owned();
        let mut stream = MaskStream::new(masks(&[&secret]), false);
        let gap = " ".repeat(room + 1);
        for text in [raw.clone(), hex.to_uppercase(), hex, base64.to_owned(), percent(&raw, |_| true, true)] {
            stream.push(Bytes::from(format!("{gap}{text}").repeat(40)));
        }
        stream.finish();
        prop_assert_eq!((stream.near_misses(), stream.masked()), (0, 0));
    }
}

/// A body that takes newer masks at some place.
struct Renewal<'a> {
    old: &'a [&'a str],
    new: &'a [&'a str],
    before: Arc<Masks>,
    after: Arc<Masks>,
}

impl<'a> Renewal<'a> {
    /// Begins with masks of `old`, and goes on with those of `old` and `new`.
    fn new(old: &'a [&'a str], new: &'a [&'a str]) -> Self {
        Self { old, new, before: masks(old), after: masks(&[old, new].concat()) }
    }

    fn masked(&self, text: &[u8], cut: usize) -> Vec<u8> {
        let mut stream = MaskStream::new(self.before.clone(), false);
        let mut out = stream.push(Bytes::copy_from_slice(&text[..cut])).to_vec();
        stream.renew(self.after.clone());
        out.extend(stream.push(Bytes::copy_from_slice(&text[cut..])));
        out.extend(stream.finish());
        out
    }

    /// Asserts that at each of `cuts` nothing is missed: all of `old`, and of `new` the occurrences
    /// that begin there or after; and that no other byte is changed.
    fn assert_at(&self, text: &[u8], cuts: impl IntoIterator<Item = usize>) {
        let old = oracle(self.old, text);
        let both = oracle(&[self.old, self.new].concat(), text);
        for cut in cuts {
            let found = self.masked(text, cut);
            let new = [&text[..cut], &oracle(self.new, &text[cut..])].concat();
            assert_eq!(found.len(), text.len());
            for at in 0..text.len() {
                let must = old[at] != text[at] || new[at] != text[at];
                assert!(!must || found[at] == b'*', "byte {at} is not masked, cut at {cut}");
                assert!(found[at] == text[at] || found[at] == both[at], "byte {at} is changed");
            }
        }
    }
}

#[test]
fn newer_masks_at_any_split_lose_no_byte_or_mask() {
    let (old, new) = ("k-01234567", "k-zyxwvut/");
    let (olds, news) = (&[old][..], &[new][..]);
    let renewal = Renewal::new(olds, news);
    for form in written(old).iter().chain(&written(new)) {
        for text in [format!("{form} {new} k-"), format!("x{}{form}%7", &form[..form.len() / 2])] {
            renewal.assert_at(text.as_bytes(), 0..=text.len());
        }
    }
    // Two more cases: no secret was known before, and none is known any more.
    let text = format!("k-{new} k-");
    Renewal::new(&[], news).assert_at(text.as_bytes(), 0..=text.len());
    let forgotten = Renewal { before: masks(news), after: masks(&[]), old: &[], new: &[] };
    for cut in 0..=text.len() {
        let found = forgotten.masked(text.as_bytes(), cut);
        assert_eq!(found.len(), text.len(), "what was held back is not lost");
    }
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let forms: Vec<String> = SECRETS.iter().flat_map(|secret| written(secret)).collect();
    let part =
        (prop::sample::select(forms), any::<prop::sample::Index>(), any::<prop::sample::Index>())
            .prop_map(|(form, from, to)| {
                let from = from.index(form.len());
                form.as_bytes()[from..from + to.index(form.len() - from) + 1].to_vec()
            });
    let whole =
        prop::sample::select(SECRETS.iter().flat_map(|secret| written(secret)).collect::<Vec<_>>());
    prop_oneof![
        3 => part,
        3 => whole.prop_map(String::into_bytes),
        1 => "[%\\\\ua0-9\"/+-]{0,6}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(piece(), 0..5).prop_map(|pieces| pieces.concat())
}

/// Secrets and bodies of so few letters that everything overlaps.
fn dense() -> impl Strategy<Value = (Vec<String>, Vec<u8>)> {
    (
        prop::collection::vec("[ab2]{16,18}", 1..4),
        "[ab%\\\\2=&#;x61cu0]{0,60}".prop_map(String::into_bytes),
    )
        .prop_flat_map(|(secrets, noise)| {
            let parts = prop::collection::vec(prop::sample::select(secrets.clone()), 0..4);
            (Just(secrets), parts, Just(noise))
        })
        .prop_map(|(secrets, parts, mut noise)| {
            let middle = noise.split_off(noise.len() / 2);
            (secrets, [noise, parts.concat().into_bytes(), middle].concat())
        })
}

fn cuts(text: &[u8], indices: &[prop::sample::Index]) -> Vec<usize> {
    let mut cuts: Vec<_> = indices.iter().map(|index| index.index(text.len() + 1)).collect();
    cuts.sort_unstable();
    cuts
}

proptest! {
    #[test]
    fn chunks_of_any_body_are_masked_as_the_whole(
        body in body(),
        indices in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let expected = oracle(&SECRETS, &body);
        for masks in ALL.iter() {
            assert_same(&in_chunks(masks, &body, &cuts(&body, &indices)), &expected);
        }
    }

    #[test]
    fn dense_secrets_in_chunks_are_masked_as_the_whole(
        (secrets, body) in dense(),
        indices in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let secrets: Vec<_> = secrets.iter().map(String::as_str).collect();
        let expected = oracle(&secrets, &body);
        for masks in [masks(&secrets), portable(&secrets)] {
            assert_same(&in_chunks(&masks, &body, &cuts(&body, &indices)), &expected);
        }
    }

    #[test]
    fn newer_masks_miss_nothing_that_begins_after_them(
        (secrets, body) in dense(),
        known in 0_usize..4,
        at in any::<prop::sample::Index>(),
    ) {
        let secrets: Vec<_> = secrets.iter().map(String::as_str).collect();
        let (old, new) = secrets.split_at(known.min(secrets.len()));
        Renewal::new(old, new).assert_at(&body, [at.index(body.len() + 1)]);
    }

    /// An agent can see the sizes of a stream's output, chunk by chunk, pause by pause and at the
    /// end, and the numbers that it could count.
    #[test]
    fn output_sizes_tell_nothing_of_the_secret(
        (one, other, body, in_envelopes) in guesses(),
        indices in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        pauses in prop::collection::vec(any::<bool>(), 13),
    ) {
        let cuts = cuts(&body, &indices);
        let sizes = |secrets: &[&str]| {
            let mut stream = MaskStream::new(masks(secrets), in_envelopes);
            let mut sizes = vec![];
            let mut begin = 0;
            for (&end, &pause) in cuts.iter().chain([&body.len()]).zip(&pauses) {
                sizes.push(stream.push(Bytes::copy_from_slice(&body[begin..end])).len());
                if pause {
                    sizes.push(stream.release().len());
                }
                begin = end;
            }
            sizes.push(stream.finish().len());
            sizes
        };
        let expected = sizes(&["0123456789abcdef"]);
        prop_assert_eq!(&sizes(&[&one]), &expected);
        prop_assert_eq!(&sizes(&[&other]), &expected);
        prop_assert_eq!(&sizes(&[&one, &other]), &expected);
    }
}

/// A secret, another with the same beginning, and a body that is full of guesses at both, in every
/// form.
fn guesses() -> impl Strategy<Value = (String, String, Vec<u8>, bool)> {
    ("[a-zA-Z0-9_-]{16,40}", "[a-zA-Z0-9_-]{16,40}", any::<prop::sample::Index>())
        .prop_map(|(one, other, at)| {
            let at = at.index(one.len().min(other.len()));
            let other = [&one[..at], &other[at..]].concat();
            (one, other)
        })
        .prop_flat_map(|(one, other)| {
            let forms: Vec<String> =
                [&one, &other].into_iter().flat_map(|it| written(it)).collect();
            let guess = (prop::sample::select(forms), any::<prop::sample::Index>()).prop_map(
                |(form, length)| {
                    let length = length.index(form.len() + 1);
                    form.into_bytes()[..length].to_vec()
                },
            );
            let noise = "[ \n=a-z\"{}]{0,5}".prop_map(String::into_bytes);
            let message = Just(vec![0, 0, 0, 0, 3]);
            let piece = prop_oneof![6 => guess, 2 => noise, 1 => message];
            let body = prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
            (Just(one), Just(other), body, any::<bool>())
        })
}
