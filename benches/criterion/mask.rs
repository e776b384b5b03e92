//! Secrets in the body of an answer: 1 MiB in chunks of 16 KiB, as they come out of TLS.

use std::{hint::black_box, sync::Arc};

use bytes::{Bytes, BytesMut};
use cloakroom::{
    scrub::{MaskStream, Masks},
    secrets::SecretValue,
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use zeroize::Zeroizing;

fn mask(c: &mut Criterion) {
    let masks = Arc::new(Masks::new(&[value(SECRET)]));
    let many: Vec<_> = (0..16).map(|n| value(&format!("{SECRET}-{n:04}"))).collect();
    let many = Arc::new(Masks::new(&many));
    let bodies = [
        ("JSON without a hit", json(false), &masks),
        ("random bytes", random(), &masks),
        ("JSON with a hit in every 16 KiB", json(true), &masks),
        ("JSON without a hit, 16 secrets", json(false), &many),
    ];
    let mut group = c.benchmark_group("mask");
    group.throughput(Throughput::Bytes(MIB as u64));
    for (name, body, masks) in &bodies {
        assert_eq!(run(masks, chunks(body)) > 0, name.contains("with a hit"), "{name}");
        group.bench_function(*name, |bench| {
            // Chunks of their own, as from a socket, so that masking in place is possible.
            bench.iter_batched(|| chunks(body), |chunks| run(masks, chunks), BatchSize::LargeInput);
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

fn chunks(body: &[u8]) -> Vec<Bytes> {
    body.chunks(CHUNK).map(|chunk| BytesMut::from(chunk).freeze()).collect()
}

fn value(text: &str) -> SecretValue {
    SecretValue::load(Zeroizing::new(text.into()), 16).expect("a value")
}

fn json(with_hits: bool) -> Vec<u8> {
    let mut body = JSON.as_bytes().iter().copied().cycle().take(MIB).collect::<Vec<_>>();
    if with_hits {
        for chunk in body.chunks_mut(CHUNK) {
            chunk[CHUNK / 2..][..SECRET.len()].copy_from_slice(SECRET.as_bytes());
        }
    }
    body
}

fn random() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..MIB).map(|_| next()).collect()
}

criterion_group!(benches, mask);

const MIB: usize = 1 << 20;
const CHUNK: usize = 16 * 1024;
const SECRET: &str = "sk-bench-4f1c9e2b7a6d8035-e1b7";
const JSON: &str = r#"{"id":"chatcmpl-9","object":"chat.completion.chunk","created":1700000000,"choices":[{"index":0,"delta":{"content":" the sketch of a task"},"finish_reason":null}]}
"#;
