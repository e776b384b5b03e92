//! The cost of the certificate that an agent is shown: newly made, and from the cache.

use std::{fs, hint::black_box, time::SystemTime};

use cloakroom::{
    ca::{IssuingCa, Leaves, Root, TlsRule, issue},
    policy::{Constraints, Host, HostPattern},
};
use criterion::{BatchSize, Criterion, criterion_group};

use crate::world::policy;

fn leaf(c: &mut Criterion) {
    let scratch = std::env::temp_dir().join(format!("cloakroom-bench-{}", std::process::id()));
    fs::create_dir(&scratch).expect("a scratch folder");
    let now = SystemTime::now();
    let root = Root::init(&scratch.join("root"), "Bench", now).expect("a root");
    issue(&root, &scratch.join("ca"), &policy(1), now).expect("an issuing CA");
    let host = Host::parse("api.openai.example").expect("a host");
    let names = [HostPattern::Exact(host.clone())];
    let leaves = || {
        let rule = policy(1).apis[0].name.clone();
        let rule = TlsRule { rule, names: names.to_vec(), constraints: Constraints::Critical };
        Leaves::new(IssuingCa::load(&scratch.join("ca"), &rule, now).expect("the CA"))
    };
    c.bench_function("leaf/cold", |bench| {
        bench.iter_batched(
            leaves,
            |leaves| leaves.leaf(&host, now).map(drop),
            BatchSize::SmallInput,
        );
    });
    let warm = leaves();
    c.bench_function("leaf/cached", |bench| {
        bench.iter(|| warm.leaf(black_box(&host), now).map(drop));
    });
    fs::remove_dir_all(&scratch).expect("the scratch folder goes");
}

criterion_group!(benches, leaf);
