//! The cost of replacing a placeholder in a request head by the value.

use std::{hint::black_box, sync::Arc};

use cloakroom::{
    secrets::SecretValue,
    substitute::{SubstitutionRules, examine},
};
use criterion::{BatchSize, Criterion, criterion_group};
use http::request::Parts;
use zeroize::Zeroizing;

use crate::world::policy;

fn substitute(c: &mut Criterion) {
    let policy = policy(10);
    let group = policy.groups[0].name.clone();
    let rules = SubstitutionRules::new(&policy, &group, &policy.apis[0]);
    let value = Zeroizing::new(b"sk-bench-0123456789abcdef0123456789".to_vec());
    let value = Arc::new(SecretValue::load(value, 16).expect("a value"));
    c.bench_function("substitute/examine", |bench| {
        let head = head();
        bench.iter(|| examine(black_box(&rules), black_box(&head)).map(drop));
    });
    c.bench_function("substitute/examine and apply", |bench| {
        bench.iter_batched_ref(
            head,
            |head| {
                let substitution = examine(&rules, head).expect("a good request");
                substitution.apply(head, |_| Ok(Arc::clone(&value))).expect("a value");
            },
            BatchSize::SmallInput,
        );
    });
}

fn head() -> Parts {
    let fields = [
        ("host", "api.openai.example"),
        ("user-agent", "OpenAI/Python 1.99.0"),
        ("accept", "application/json"),
        ("accept-encoding", "gzip, deflate"),
        ("authorization", "Bearer OPENAI_API_KEY"),
        ("content-type", "application/json"),
        ("content-length", "1024"),
        ("x-stainless-lang", "python"),
        ("x-stainless-os", "Linux"),
        ("x-stainless-arch", "x64"),
        ("x-stainless-runtime", "CPython"),
        ("x-stainless-async", "false"),
    ];
    let request = http::Request::builder().method("POST").uri("/v1/chat/completions");
    let request = fields.into_iter().fold(request, |it, (name, value)| it.header(name, value));
    request.body(()).expect("a request").into_parts().0
}

criterion_group!(benches, substitute);
