//! The cost of one DNS query, from its bytes to those of its answer, without the sockets.

use std::{
    hint::black_box,
    net::IpAddr,
    time::{Duration, Instant},
};

use cloakroom::{
    dial::Resolved,
    dns::{Asker, QueryVerdict, answer},
};
use criterion::{Criterion, criterion_group};

use crate::world::policy;

fn bench(c: &mut Criterion) {
    let policy = policy(1000);
    let asker = Asker { policy: &policy, group: &policy.groups[0], ipv6: true, datagram: true };
    let now = Instant::now();
    let addresses = [IpAddr::from([198, 51, 100, 10]), IpAddr::from([198, 51, 100, 11])];
    let found = Ok(Resolved { addresses: addresses.into(), until: now + Duration::from_secs(60) });
    for (what, name) in [("a listed name", "api.openai.example"), ("no name", "unlisted.example")] {
        let query = query(name);
        c.bench_function(&format!("dns/{what}"), |bench| {
            bench.iter(|| match answer(black_box(asker), black_box(&query)) {
                QueryVerdict::Resolve(question) => question.reply(&found, now, |_| true).bytes,
                QueryVerdict::Answered(reply) => reply.bytes,
                QueryVerdict::Silence => Vec::new(),
            });
        });
    }
}

/// Returns a query for an IPv4 address with EDNS, in the form that clients send.
fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0xbe, 0xef, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("a label"));
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    query
}

criterion_group!(benches, bench);
