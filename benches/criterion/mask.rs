//! The cost of masking secrets in the body of an answer, in chunks of 16 KiB, as they come out of
//! TLS: by the number of secrets, whatever the bytes; the throughput, plain and compressed; and
//! that the time does not tell how much of a secret is guessed.

use std::{fmt::Write as _, hint::black_box, io::Write as _, sync::Arc};

use bytes::{Bytes, BytesMut};
use cloakroom::{
    scrub::{Coding, Decoder, DecoderProgress, MaskStream, Masks},
    secrets::SecretValue,
};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group};
use flate2::{Compression, write::GzEncoder};
use zeroize::Zeroizing;

fn cost(c: &mut Criterion) {
    let bodies = [
        ("JSON", repeated(JSON)),
        ("JSON full of escapes", repeated(ESCAPED)),
        ("random bytes", random()),
        // The bytes begin behind the letters of which the secrets are made, because those would be
        // guesses.
        ("base64", letters(2 * MIB).split_off(MIB)),
        ("what all secrets begin with", repeated(PREFIX)),
    ];
    let mut group = c.benchmark_group("mask");
    group.throughput(Throughput::Bytes(MIB as u64));
    for (name, body) in &bodies {
        for count in [1, 64, 1000] {
            let masks = Arc::new(Masks::new(&secrets(count)));
            group.bench_function(BenchmarkId::new(*name, count), |bench| {
                bench.iter_batched(|| chunks(body), |it| run(&masks, it), BatchSize::LargeInput);
            });
        }
    }
    group.finish();
}

/// Measures how much text passes in a second, as the origin sent it and compressed.
fn throughput(c: &mut Criterion) {
    let text = events();
    let packed = gzip(&text);
    let mut group = c.benchmark_group("scrubber");
    group.throughput(Throughput::Bytes(text.len() as u64));
    for count in [1, 16, 256] {
        let masks = Arc::new(Masks::new(&secrets(count)));
        group.bench_function(BenchmarkId::new("plain", count), |bench| {
            bench.iter_batched(|| chunks(&text), |it| run(&masks, it), BatchSize::LargeInput);
        });
        group.bench_function(BenchmarkId::new("gzip", count), |bench| {
            bench.iter_batched(|| chunks(&packed), |it| unpack(&masks, it), BatchSize::LargeInput);
        });
    }
    group.finish();
}

/// Measures the same 16 MiB of guesses, for secrets of which they hold so many bytes at each place.
fn guessed(c: &mut Criterion) {
    let secret = format!("{PREFIX}{}", letters_text(40));
    let mut group = c.benchmark_group("mask 16 MiB of guesses, bytes that are right");
    group.throughput(Throughput::Bytes(16 * MIB as u64));
    group.sample_size(20);
    let body: Vec<u8> = secret.bytes().cycle().take(16 * MIB).collect();
    for right in [0, 6, 11] {
        // The search looks for the last bytes. The others are wrong, but of the same kind: a form
        // of many signs has more spellings than one of letters.
        let (other, kept) = secret.split_at(secret.len() - right);
        let other: String = other.bytes().map(another).collect();
        let secret = [value(&format!("{other}{kept}"))];
        // Compiled for each run: which windows pass the filter by chance depends on the key.
        let setup = || (Arc::new(Masks::new(&secret)), chunks(&body));
        group.bench_function(BenchmarkId::from_parameter(right), |bench| {
            bench.iter_batched(setup, |(masks, it)| run(&masks, it), BatchSize::LargeInput);
        });
    }
    group.finish();
}

fn run(masks: &Arc<Masks>, chunks: Vec<Bytes>) -> u64 {
    let mut stream = MaskStream::new(Arc::clone(masks), false);
    for chunk in chunks {
        black_box(stream.push(chunk));
    }
    black_box(stream.finish());
    stream.masked()
}

fn unpack(masks: &Arc<Masks>, chunks: Vec<Bytes>) -> u64 {
    let mut decoder = Decoder::new(Coding::Gzip);
    let mut stream = MaskStream::new(Arc::clone(masks), false);
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.advance().expect("whole") {
                DecoderProgress::Piece(text) => drop(black_box(stream.push(text))),
                DecoderProgress::Busy => (),
                DecoderProgress::Hungry => break,
            }
        }
    }
    black_box(stream.push(decoder.finish().expect("whole")));
    black_box(stream.finish());
    stream.masked()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).expect("memory");
    encoder.finish().expect("memory")
}

/// Returns separate chunks, as from a socket, so that masking in place is possible.
fn chunks(body: &[u8]) -> Vec<Bytes> {
    body.chunks(CHUNK).map(|chunk| BytesMut::from(chunk).freeze()).collect()
}

fn secrets(count: usize) -> Vec<SecretValue> {
    let text = letters_text(40 * count);
    (0..count).map(|n| value(&format!("{PREFIX}{}", &text[40 * n..40 * (n + 1)]))).collect()
}

fn value(text: &str) -> SecretValue {
    SecretValue::load(Zeroizing::new(text.into()), 16).expect("a value")
}

/// Returns some other byte, a letter for a letter.
fn another(byte: u8) -> char {
    let place = LETTERS.iter().position(|&letter| letter == byte);
    place.map_or('_', |place| char::from(LETTERS[(place + 7) % LETTERS.len()]))
}

fn repeated(text: &str) -> Vec<u8> {
    text.bytes().cycle().take(MIB).collect()
}

/// Returns events of an API, each with words and a number of its own.
fn events() -> Vec<u8> {
    let words: Vec<_> = WORDS.split(' ').collect();
    let mut numbers = numbers();
    let mut next = || numbers.next().unwrap_or_default();
    let mut text = String::new();
    while text.len() < MIB {
        let (id, created) = (next(), 1_700_000_000 + next() % 10_000_000);
        let _ = write!(text, r#"{{"id":"evt_{id:08x}","created":{created},"text":""#);
        for _ in 0..next() % 24 {
            text.push_str(words[next() as usize % words.len()]);
            text.push(' ');
        }
        text.push_str("\"}\n");
    }
    text.into_bytes()
}

fn random() -> Vec<u8> {
    numbers().map(|number| number as u8).take(MIB).collect()
}

fn letters(count: usize) -> Vec<u8> {
    numbers().map(|number| LETTERS[number as usize % LETTERS.len()]).take(count).collect()
}

fn letters_text(count: usize) -> String {
    letters(count).into_iter().map(char::from).collect()
}

/// Returns the same numbers in each run.
fn numbers() -> impl Iterator<Item = u32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    })
}

criterion_group!(benches, cost, throughput, guessed);

const MIB: usize = 1 << 20;
const CHUNK: usize = 16 * 1024;
const PREFIX: &str = "sk-proj-";
const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const WORDS: &str = "the of and to in is it you that he was for on are with as his they be at one have \
                     this from or had by hot word but what some we can out other were all there when";
const JSON: &str = r#"{"id":"chatcmpl-9","object":"chat.completion.chunk","created":1700000000,"choices":[{"index":0,"delta":{"content":" the sketch of a task"},"finish_reason":null}]}
"#;
const ESCAPED: &str = r#"{"text":"She said: \"hello\" and\nwent on to \"the\" shop \/ and so on & more = less"}
"#;
