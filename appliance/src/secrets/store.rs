//! The task that keeps values fresh.
//!
//! Every wanted secret is asked for at the start and again each `refresh`, by one question at a
//! time. A source that cannot answer is asked again after one second, then ever more slowly, up
//! to half a minute; the first answer wakes everything that waits for the same source. Requests
//! never reach the source: they read the last [`Snapshot`].

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use super::{
    FetchError, SecretSource, Snapshot,
    ledger::{Change, Key, Ledger},
};
use crate::policy::{GroupName, SecretRef};

/// The values of all wanted secrets, kept fresh by [`run`](Self::run).
pub struct SecretStore {
    source: Arc<dyn SecretSource>,
    refresh: Duration,
    state: Mutex<State>,
    published: ArcSwap<Snapshot>,
    /// Ticks with each snapshot.
    ticks: watch::Sender<()>,
    /// Rings when what is wanted changes.
    rewanted: Notify,
}

struct State {
    ledger: Ledger,
    plan: HashMap<Key, Plan>,
}

/// When a secret is asked for next.
struct Plan {
    due: Instant,
    outages: u32,
    asking: bool,
}

type Answer = (Key, Result<Zeroizing<Vec<u8>>, FetchError>);

impl SecretStore {
    /// A store without any value yet; nothing is asked before [`run`](Self::run).
    ///
    /// `refresh` is how often values are read, at least each second and twice in `max_stale`, or
    /// a value would end between two good reads.
    pub fn new(
        source: Arc<dyn SecretSource>,
        wanted: &[(GroupName, SecretRef)],
        refresh: Duration,
        max_stale: Duration,
    ) -> Arc<Self> {
        let max_stale = max_stale.clamp(2 * MIN_REFRESH, MAX_STALE);
        let store = Self {
            source,
            refresh: refresh.clamp(MIN_REFRESH, max_stale / 2),
            state: Mutex::new(State { ledger: Ledger::new(max_stale), plan: HashMap::new() }),
            published: ArcSwap::default(),
            ticks: watch::Sender::default(),
            rewanted: Notify::new(),
        };
        store.set_wanted(wanted);
        Arc::new(store)
    }

    /// The values as they are now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.load_full()
    }

    /// Takes the secrets of a new policy: values of the old one that it does not name are
    /// dropped, and what is new is asked for at once.
    pub fn set_wanted(&self, wanted: &[(GroupName, SecretRef)]) {
        let now = Instant::now();
        self.change(|state| {
            state.ledger.want(wanted, now);
            state.plan.retain(|key, plan| plan.asking || wanted.contains(key));
            for key in wanted {
                state.plan.entry(key.clone()).or_insert(Plan {
                    due: now,
                    outages: 0,
                    asking: false,
                });
            }
        });
        self.rewanted.notify_one();
    }

    /// Asks for every wanted secret again at once; what is held stays until the answer is there.
    pub fn ask_again(&self) {
        let now = Instant::now();
        for plan in self.lock().plan.values_mut() {
            plan.due = now;
        }
        self.rewanted.notify_one();
    }

    /// Waits until every wanted secret was asked for once, whatever the answer, or until
    /// `deadline`. [`run`](Self::run) must be running.
    pub async fn first_round(&self, deadline: Instant) {
        let mut ticks = self.ticks.subscribe();
        let all_asked =
            async { while !self.snapshot().all_asked() && ticks.changed().await.is_ok() {} };
        // Too late is no error here: what has not arrived is answered 503 until it does.
        let _ = tokio::time::timeout_at(deadline.into(), all_asked).await;
    }

    /// Keeps the values fresh until `shutdown`, then gives back what the source holds.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()> + Send) {
        let ended = tokio::select! {
            () = shutdown => true,
            () = self.refresh_all() => false,
            () = self.source.tend() => false,
        };
        debug_assert!(ended, "neither the refresh nor the source's upkeep returns");
        self.source.close().await;
    }

    async fn refresh_all(&self) {
        let mut asked: FuturesUnordered<BoxFuture<'_, Answer>> = FuturesUnordered::new();
        loop {
            let (due, next) = self.take_due();
            for key in due {
                asked.push(Box::pin(self.ask(key)));
            }
            tokio::select! {
                Some((key, answer)) = asked.next() => self.enter(&key, answer),
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.rewanted.notified() => {}
            }
        }
    }

    async fn ask(&self, key: Key) -> Answer {
        let answer = self.source.fetch(&key.0, &key.1).await;
        (key, answer)
    }

    /// What is due now, as far as the bound on questions at once allows, and when the next is.
    ///
    /// What is due and has to wait for its turn is woken by an answer, and not by the clock.
    fn take_due(&self) -> (Vec<Key>, Instant) {
        let now = Instant::now();
        let mut state = self.lock();
        let mut asking: HashMap<Lane, usize> = HashMap::new();
        for (key, _) in state.plan.iter().filter(|(_, plan)| plan.asking) {
            *asking.entry(lane(key)).or_default() += 1;
        }
        let mut due: Vec<(&Key, &mut Plan)> =
            state.plan.iter_mut().filter(|(_, plan)| !plan.asking && plan.due <= now).collect();
        due.sort_by_key(|(_, plan)| plan.due);
        due.retain_mut(|(key, plan)| {
            let asking = asking.entry(lane(key)).or_default();
            plan.asking = *asking < QUESTIONS_AT_ONCE;
            *asking += usize::from(plan.asking);
            plan.asking
        });
        let due = due.into_iter().map(|(key, _)| key.clone()).collect();
        let later = state.plan.values().map(|plan| plan.due).filter(|due| *due > now);
        (due, later.min().unwrap_or(now + IDLE))
    }

    fn enter(&self, key: &Key, answer: Result<Zeroizing<Vec<u8>>, FetchError>) {
        let now = Instant::now();
        let outage = matches!(answer, Err(FetchError::Outage(..)));
        let change = self.change(|state| {
            let recovered = state.replan(key, outage, self.refresh, now);
            if recovered {
                state.wake_lane(lane(key), now);
            }
            state.ledger.record(key, answer, now)
        });
        log(key, change);
    }

    fn change<T>(&self, edit: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = edit(&mut state);
        // Published under the lock, or an older snapshot could overtake a newer one.
        self.published.store(Arc::new(state.ledger.snapshot()));
        drop(state);
        self.ticks.send_replace(());
        result
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Plans the next question, and says whether this answer ended an outage.
    fn replan(&mut self, key: &Key, outage: bool, refresh: Duration, now: Instant) -> bool {
        if !self.ledger.wants(key) {
            self.plan.remove(key);
        }
        let Some(plan) = self.plan.get_mut(key) else { return false };
        let recovered = !outage && plan.outages > 0;
        plan.asking = false;
        plan.outages = if outage { plan.outages.saturating_add(1) } else { 0 };
        plan.due =
            now + jittered(if outage { back_off(plan.outages).min(refresh) } else { refresh });
        recovered
    }

    fn wake_lane(&mut self, of: Lane, now: Instant) {
        for (_, plan) in self.plan.iter_mut().filter(|(key, _)| lane(key) == of) {
            if plan.outages > 0 {
                plan.due = now;
            }
        }
    }
}

fn log(key: &Key, change: Change) {
    let (group, secret) = (key.0.as_str(), &key.1);
    match change {
        Change::Same => {}
        Change::Arrived => tracing::info!(group, %secret, "a secret is available"),
        Change::Rotated => tracing::info!(group, %secret, "a secret has a new value"),
        Change::Failed(error) => {
            let (cause, text) = (error.cause().word(), error.text());
            tracing::warn!(group, %secret, cause, text, "a secret could not be read");
        }
    }
}

/// A kind of source, with a bound of its own: a slow Vault must not hold up the file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Lane {
    Vault,
    File,
}

const fn lane(key: &Key) -> Lane {
    match key.1 {
        SecretRef::VaultKv2 { .. } => Lane::Vault,
        SecretRef::File { .. } => Lane::File,
    }
}

fn back_off(outages: u32) -> Duration {
    let doublings = outages.saturating_sub(1).min(5);
    (FIRST_RETRY * 2_u32.pow(doublings)).min(LAST_RETRY)
}

/// Between 80 % and all of `time`, so that gateways do not ask in step. Spreads load, and is not
/// fit for anything that must be hard to guess.
fn jittered(time: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1_000;
    time.mul_f64(0.8 + 0.2 * (random as f64 / 1_000.0))
}

const MIN_REFRESH: Duration = Duration::from_secs(1);

/// A year. Keeps sums of instants in range.
const MAX_STALE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Questions to one kind of source at once.
const QUESTIONS_AT_ONCE: usize = 8;

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Sleep of a store that has nothing to ask; any change wakes it sooner.
const IDLE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::SecretCause;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

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
    }

    impl SecretSource for Scripted {
        fn fetch<'a>(
            &'a self,
            group: &'a GroupName,
            reference: &'a SecretRef,
        ) -> BoxFuture<'a, Result<Zeroizing<Vec<u8>>, FetchError>> {
            Box::pin(async move {
                self.asked.fetch_add(1, SeqCst);
                let at_once = self.at_once.fetch_add(1, SeqCst) + 1;
                self.most_at_once.fetch_max(at_once, SeqCst);
                let vault = matches!(reference, SecretRef::VaultKv2 { .. });
                if vault && self.vault_hangs.load(SeqCst) {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
                self.at_once.fetch_sub(1, SeqCst);
                let value = format!("value-of-{group}-{reference}");
                if self.down.load(SeqCst) { Err(DOWN) } else { Ok(value.into_bytes().into()) }
            })
        }

        fn close(&self) -> BoxFuture<'_, ()> {
            self.closed.store(true, SeqCst);
            Box::pin(std::future::ready(()))
        }
    }

    fn in_file(name: &str) -> Key {
        (GroupName("agents".into()), SecretRef::File { name: name.into() })
    }

    fn in_vault(path: &str) -> Key {
        let (mount, path) = ("kv".into(), path.into());
        (GroupName("agents".into()), SecretRef::VaultKv2 { mount, path, field: "key".into() })
    }

    fn started(source: &Arc<Scripted>, wanted: &[Key]) -> Arc<SecretStore> {
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
    async fn every_wanted_secret_is_asked_once_and_few_at_a_time() {
        let source = Arc::new(Scripted::default());
        let wanted: Vec<Key> = (0..50).map(|number| in_vault(&number.to_string())).collect();
        let store = started(&source, &wanted);
        store.first_round(soon()).await;
        assert_eq!(available(&store), 50);
        assert_eq!(source.asked.load(SeqCst), 50);
        assert!(source.most_at_once.load(SeqCst) <= QUESTIONS_AT_ONCE);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(source.asked.load(SeqCst), 50, "nothing is asked again before refresh");
    }

    #[tokio::test]
    async fn a_source_down_at_the_start_is_seen_again_within_seconds() {
        let source = Arc::new(Scripted::default());
        source.down.store(true, SeqCst);
        let wanted: Vec<Key> = (0..10).map(|number| in_vault(&number.to_string())).collect();
        let store = started(&source, &wanted);
        store.first_round(soon()).await;
        let health = store.snapshot().health(Instant::now());
        assert_eq!((health.available, health.missing.len()), (0, 10));
        source.down.store(false, SeqCst);
        until(|| available(&store) == 10).await;
    }

    #[tokio::test]
    async fn a_vault_that_hangs_holds_up_neither_the_file_nor_the_start() {
        let source = Arc::new(Scripted::default());
        source.vault_hangs.store(true, SeqCst);
        let mut wanted: Vec<Key> = (0..20).map(|number| in_vault(&number.to_string())).collect();
        wanted.push(in_file("openai"));
        let store = started(&source, &wanted);
        until(|| available(&store) == 1).await;
        store.first_round(Instant::now() + Duration::from_millis(50)).await;
        assert_eq!(source.at_once.load(SeqCst), QUESTIONS_AT_ONCE, "no question is doubled");
    }

    #[tokio::test]
    async fn a_new_policy_is_asked_for_at_once_and_the_old_value_goes() {
        let source = Arc::new(Scripted::default());
        let [old, new] = ["old", "new"].map(in_file);
        let store = started(&source, std::slice::from_ref(&old));
        store.first_round(soon()).await;
        let before = store.snapshot();
        store.set_wanted(std::slice::from_ref(&new));
        until(|| available(&store) == 1).await;
        let now = Instant::now();
        let current =
            |snapshot: &Snapshot, key: &Key| snapshot.current(&key.0, &key.1, 8, now).is_ok();
        assert!(current(&store.snapshot(), &new) && !current(&store.snapshot(), &old));
        assert!(current(&before, &old), "a request keeps the snapshot it began with");
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
    fn retries_begin_at_one_second_and_slow_down_to_half_a_minute() {
        let seconds: Vec<u64> = (1..8).map(|outages| back_off(outages).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        for _ in 0..1_000 {
            let time = jittered(LONG);
            assert!(time <= LONG && time >= LONG.mul_f64(0.8));
        }
    }
}
