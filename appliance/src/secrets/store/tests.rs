//! The store's task against a source that can be down, slow or silent.

use super::super::{
    fit::GroupSecret,
    lanes::REQUESTS_AT_ONCE,
    source::Fetched,
    timing::{back_off, jittered},
};
use super::*;
use crate::{
    policy::{Location, Pick, PickPart, VaultLocation},
    reason::SecretCause,
};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use zeroize::Zeroizing;

const LONG: Duration = Duration::from_secs(60);
const DOWN: FetchError = FetchError::Outage(SecretCause::VaultUnreachable, "down");

/// A source that can be down or slow, and that counts.
#[derive(Default)]
struct Scripted {
    down: AtomicBool,
    vault_hangs: AtomicBool,
    asked: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    closed: AtomicBool,
    at_one_time: AtomicBool,
}

impl SecretSource for Scripted {
    fn fetch<'a>(
        &'a self,
        group: &'a GroupName,
        location: &'a Location,
        picks: &'a [Pick],
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, SeqCst);
            let at_once = self.at_once.fetch_add(1, SeqCst) + 1;
            self.most_at_once.fetch_max(at_once, SeqCst);
            let vault = matches!(location, Location::Vault(_));
            if vault && self.vault_hangs.load(SeqCst) {
                std::future::pending::<()>().await;
            }
            if !self.at_one_time.load(SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.at_once.fetch_sub(1, SeqCst);
            if self.down.load(SeqCst) {
                return Err(DOWN);
            }
            let value = |pick| {
                Ok(Zeroizing::new(format!("value-of-{group}-{location}-{pick}").into_bytes())
                    .into())
            };
            let values = picks.iter().map(value).collect();
            Ok(Fetched { values, lease: None, changes_in: None, narrowing: Arc::default() })
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.closed.store(true, SeqCst);
        Box::pin(std::future::ready(()))
    }
}

fn in_file(name: &str) -> GroupSecret {
    (GroupName("agents".into()), SecretRef::File { name: name.into() })
}

fn in_vault(path: &str) -> GroupSecret {
    let location = VaultLocation::Kv2 { mount: "kv".into(), path: path.into(), version: None };
    let pick = Pick([PickPart::Field("key".into())].into());
    (GroupName("agents".into()), SecretRef::Vault { location, pick })
}

fn started(source: &Arc<Scripted>, wanted: &[GroupSecret]) -> Arc<SecretStore> {
    let store =
        SecretStore::new(Arc::clone(source) as Arc<dyn SecretSource>, wanted, LONG, 5 * LONG);
    tokio::spawn(Arc::clone(&store).run(std::future::pending()));
    store
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn available(store: &SecretStore) -> usize {
    store.snapshot().health(Instant::now()).available
}

async fn until(what: impl Fn() -> bool) {
    let deadline = soon();
    while !what() {
        assert!(Instant::now() < deadline, "too late");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn each_demanded_secret_is_read_once_and_few_together() {
    let source = Arc::new(Scripted::default());
    let wanted: Vec<GroupSecret> = (0..50).map(|number| in_vault(&number.to_string())).collect();
    let store = started(&source, &wanted);
    store.first_round(soon()).await;
    assert_eq!(available(&store), 50);
    assert_eq!(source.asked.load(SeqCst), 50);
    assert!(source.most_at_once.load(SeqCst) <= REQUESTS_AT_ONCE);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(source.asked.load(SeqCst), 50, "nothing is asked again before refresh");
}

#[tokio::test]
async fn answers_that_come_together_are_published_together() {
    let source = Arc::new(Scripted::default());
    source.at_one_time.store(true, SeqCst);
    let store = Arc::clone(&source) as Arc<dyn SecretSource>;
    let wanted: Vec<GroupSecret> = (0..8).map(|number| in_vault(&number.to_string())).collect();
    let store = SecretStore::new(store, &wanted, LONG, 5 * LONG);
    let mut ticks = store.ticks.subscribe();
    tokio::spawn(Arc::clone(&store).run(std::future::pending()));
    ticks.changed().await.unwrap();
    assert_eq!(available(&store), 8, "all eight with the first snapshot");
}

#[tokio::test]
async fn a_source_down_at_the_start_is_found_within_seconds() {
    let source = Arc::new(Scripted::default());
    source.down.store(true, SeqCst);
    let wanted: Vec<GroupSecret> = (0..10).map(|number| in_vault(&number.to_string())).collect();
    let store = started(&source, &wanted);
    store.first_round(soon()).await;
    let health = store.snapshot().health(Instant::now());
    assert_eq!((health.available, health.missing.len()), (0, 10));
    source.down.store(false, SeqCst);
    until(|| available(&store) == 10).await;
}

#[tokio::test]
async fn a_hanging_vault_holds_up_neither_file_nor_start() {
    let source = Arc::new(Scripted::default());
    source.vault_hangs.store(true, SeqCst);
    let mut wanted: Vec<GroupSecret> =
        (0..20).map(|number| in_vault(&number.to_string())).collect();
    wanted.push(in_file("openai"));
    let store = started(&source, &wanted);
    until(|| available(&store) == 1).await;
    store.first_round(Instant::now() + Duration::from_millis(50)).await;
    assert_eq!(source.at_once.load(SeqCst), REQUESTS_AT_ONCE, "no question is doubled");
}

#[tokio::test]
async fn a_new_policys_secrets_are_read_at_once() {
    let source = Arc::new(Scripted::default());
    let [old, new] = ["old", "new"].map(in_file);
    let store = started(&source, std::slice::from_ref(&old));
    store.first_round(soon()).await;
    let before = store.snapshot();
    store.set_wanted(std::slice::from_ref(&new));
    until(|| available(&store) == 1).await;
    let now = Instant::now();
    let current = |snapshot: &SecretSnapshot, key: &GroupSecret| {
        snapshot.current(&key.0, &key.1, 8, now).is_ok()
    };
    assert!(current(&store.snapshot(), &new) && !current(&store.snapshot(), &old));
    assert!(current(&before, &old), "a request keeps the snapshot it began with");
}

#[tokio::test]
async fn a_value_aged_by_suspension_is_read_again_unused() {
    let source = Arc::new(Scripted::default());
    let store = started(&source, &[in_vault("a")]);
    store.first_round(soon()).await;
    store.notice_sleep(suspended() + LONG);
    assert_eq!(available(&store), 1, "it is not too old");
    source.down.store(true, SeqCst);
    store.notice_sleep(suspended() + 6 * LONG);
    assert_eq!(available(&store), 0);
    source.down.store(false, SeqCst);
    until(|| available(&store) == 1).await;
}

#[tokio::test]
async fn shutdown_ends_the_task_and_closes_the_source() {
    let source = Arc::new(Scripted::default());
    source.vault_hangs.store(true, SeqCst);
    let dyn_source = Arc::clone(&source) as Arc<dyn SecretSource>;
    let store = SecretStore::new(dyn_source, &[in_vault("a")], LONG, LONG);
    store.run(tokio::time::sleep(Duration::from_millis(20))).await;
    assert!(source.closed.load(SeqCst));
}

#[test]
fn retries_slow_down_from_one_second_to_thirty() {
    let seconds: Vec<u64> = (1..8).map(|outages| back_off(outages).as_secs()).collect();
    assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
    for _ in 0..1_000 {
        let time = jittered(LONG);
        assert!(time <= LONG && time >= LONG.mul_f64(0.8));
    }
}
