//! The costs that grow with the size of an installation: one decision against the hosts and the
//! rules of a policy, a check of the configuration against groups, names and rules, and the first
//! read of a file of secrets against its lines. A curve whose cost more than doubles when its
//! length doubles is a cliff.

use std::{
    fmt::Write as _,
    hint::black_box,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use cloakroom::{
    decide::decide,
    peek::{Hello, Peeked},
    policy::{GroupName, Host, SecretRef},
    secrets::{FileSource, SecretStore},
};
use criterion::{BenchmarkId, Criterion, criterion_group};
use policy_builder::{Config, splice};

use crate::world;

const SIZES: [usize; 5] = [1, 10, 100, 1_000, 10_000];

/// Measures one decision, for the last name of a list, and for one that is not listed.
fn decisions(c: &mut Criterion) {
    let mut group = c.benchmark_group("scaling");
    for size in SIZES {
        let policies = [("hosts", one_rule(size)), ("rules", many_rules(size))];
        for (what, text) in policies {
            let policy = world::parsed(&text);
            let flow = world::flow(&policy);
            let last = format!("a.host{}.example", size - 1);
            for (which, name) in [("the last", last.as_str()), ("none", "unlisted.example")] {
                let peeked = hello(name);
                let id = BenchmarkId::new(format!("decision, {what}, {which}"), size);
                group.bench_function(id, |bench| {
                    bench.iter(|| decide(black_box(&policy), &flow, black_box(&peeked)));
                });
            }
        }
    }
    group.finish();
}

/// Measures all of a configuration: reading, checking, making a policy.
fn checks(c: &mut Criterion) {
    let mut group = c.benchmark_group("scaling");
    group.sample_size(10);
    for size in SIZES {
        let texts = [
            ("names", one_rule(size)),
            ("rules", many_rules(size)),
            ("groups", many_groups(size.min(1_000))),
        ];
        for (what, text) in texts {
            if what == "groups" && size > 1_000 {
                continue;
            }
            group.bench_function(BenchmarkId::new(format!("check, {what}"), size), |bench| {
                bench.iter(|| world::parsed(black_box(&text)));
            });
        }
    }
    group.finish();
}

/// Measures the time from the start until every secret of the file was asked for.
fn secrets(c: &mut Criterion) {
    let folder = std::env::temp_dir().join(format!("cloakroom-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut group = c.benchmark_group("scaling");
    group.sample_size(10);
    for size in SIZES {
        let path = file_of_secrets(&folder, size);
        group.bench_function(BenchmarkId::new("secrets of a file", size), |bench| {
            bench.iter(|| runtime.block_on(first_round(&path, size)));
        });
    }
    group.finish();
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
}

async fn first_round(path: &Path, size: usize) {
    let agents = GroupName::parse("research").expect("a name");
    let wanted: Vec<_> = (0..size)
        .map(|number| (agents.clone(), SecretRef::File { name: format!("key{number}").into() }))
        .collect();
    let source = Arc::new(FileSource::new(path.to_owned(), None));
    let minute = Duration::from_secs(60);
    let store = SecretStore::new(source, &wanted, minute, 10 * minute);
    let running = tokio::spawn(Arc::clone(&store).run(std::future::pending()));
    store.first_round(Instant::now() + minute).await;
    assert_eq!(store.snapshot().health(Instant::now()).available, size, "secrets are there");
    running.abort();
}

fn file_of_secrets(folder: &Path, size: usize) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.join(size.to_string());
    let mut text = String::new();
    for number in 0..size {
        writeln!(text, "key{number} = sk-proj-{number:032}").expect("a string grows");
    }
    std::fs::write(&path, text).expect("a file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    path
}

fn one_rule(hosts: usize) -> String {
    let names = (0..hosts).map(|number| format!("{}host{number}.example", wild(number, hosts)));
    let rule = splice("many", &["research"], &[]).set("hosts", names.collect::<Vec<_>>());
    world::one_api().with(rule).to_string()
}

fn many_rules(rules: usize) -> String {
    let rule = |number| {
        let host = format!("{}host{number}.example", wild(number, rules));
        splice(&format!("r{number}"), &["research"], &[&host])
    };
    (0..rules).map(rule).fold(world::one_api(), Config::with).to_string()
}

/// Returns a configuration of groups, each with a prefix and a rule of its own.
fn many_groups(groups: usize) -> String {
    let of_group = |config: Config, number| {
        let (name, host) = (format!("g{number}"), format!("host{number}.example"));
        let prefix = format!("10.{}.{}.0/24", number / 256, number % 256);
        config.with(policy_builder::group(&name, "agents1", &[&prefix])).with(splice(
            &format!("r{number}"),
            &[&name],
            &[&host],
        ))
    };
    (0..groups).fold(world::one_api(), of_group).to_string()
}

/// Makes every other name, and the last, a suffix.
fn wild(number: usize, of: usize) -> &'static str {
    if (of - number) % 2 == 1 { "*." } else { "" }
}

fn hello(name: &str) -> Peeked {
    Peeked::Tls(Hello {
        sni: Some(Host::parse(name).expect("a host name")),
        alpn: vec![(*b"h2").into(), (*b"http/1.1").into()],
        ech: false,
    })
}

criterion_group!(benches, decisions, checks, secrets);
