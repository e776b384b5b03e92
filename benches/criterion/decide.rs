//! The cost of one decision, against a short and a long list of hosts.

use std::hint::black_box;

use cloakroom::{
    decide::decide,
    peek::{Hello, Peeked},
    policy::Host,
};
use criterion::{Criterion, criterion_group};

use crate::world::{flow, policy};

fn bench(c: &mut Criterion) {
    for hosts in [10, 1000] {
        let policy = policy(hosts);
        let flow = flow(&policy);
        let last = format!("a.host{}.example", hosts - 1);
        let names = [
            ("the API", "api.openai.example"),
            ("the last host", last.as_str()),
            ("no host", "unlisted.example"),
        ];
        for (what, name) in names {
            let peeked = hello(name);
            c.bench_function(&format!("decide/{hosts} hosts, {what}"), |bench| {
                bench.iter(|| decide(black_box(&policy), &flow, black_box(&peeked)));
            });
        }
    }
}

fn hello(name: &str) -> Peeked {
    Peeked::Tls(Hello {
        sni: Some(Host::parse(name).expect("a host name")),
        alpn: vec![(*b"h2").into(), (*b"http/1.1").into()],
        ech: false,
    })
}

criterion_group!(benches, bench);
