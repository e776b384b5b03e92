//! The task that keeps values fresh.
//!
//! It executes the plans of the [`RefreshScheduler`]: every location is read at the start and again
//! each `refresh`, and leases are renewed, replaced and given back. A source that cannot answer is
//! asked again after one second, then ever more slowly, up to half a minute; the first answer wakes
//! everything that waits for the same source, spread over two seconds. Requests never reach the
//! source: they read the last [`SecretSnapshot`].

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{Mutex as Turns, Notify, mpsc, watch};

use super::{
    FetchError, SecretSnapshot, SecretSource, Uses,
    fit::GroupSecret,
    ledger::LedgerChange,
    revocation::Revocation,
    scheduler::{Changes, LaneTask, RefreshScheduler, SourceReply, SourceRequest},
    sleep::{Slept, suspended},
};
use crate::{
    locks::lock,
    policy::{GroupName, SecretRef},
};

/// The values of all demanded secrets, kept fresh by [`run`](Self::run).
pub struct SecretStore {
    source: Arc<dyn SecretSource>,
    scheduler: Mutex<RefreshScheduler>,
    slept: Mutex<Slept>,
    published: ArcSwap<SecretSnapshot>,
    /// Ticks with each snapshot.
    ticks: watch::Sender<()>,
    /// Notified when the demand changes.
    rewanted: Notify,
    /// Secrets whose values an API refused.
    rejected: mpsc::Sender<GroupSecret>,
    rejections: Turns<mpsc::Receiver<GroupSecret>>,
}

enum Event {
    Answered(SourceRequest, SourceReply),
    Returned(Revocation, Result<(), FetchError>),
}

impl SecretStore {
    /// Creates a store without any value; nothing is asked before [`run`](Self::run).
    ///
    /// `refresh` is the interval at which values are read: at least a second, and at most half of
    /// `max_stale`, because otherwise a value would end between two good reads. The configuration
    /// allows nothing else.
    pub fn new(
        source: Arc<dyn SecretSource>,
        wanted: &[(GroupName, SecretRef)],
        refresh: Duration,
        max_stale: Duration,
    ) -> Arc<Self> {
        let max_stale = max_stale.clamp(2 * MIN_REFRESH, MAX_STALE);
        let refresh = refresh.clamp(MIN_REFRESH, max_stale / 2);
        let (rejected, rejections) = mpsc::channel(MAX_REJECTIONS);
        let store = Self {
            source,
            scheduler: Mutex::new(RefreshScheduler::new(refresh, max_stale)),
            slept: Mutex::new(Slept::new(suspended())),
            published: ArcSwap::default(),
            ticks: watch::Sender::default(),
            rewanted: Notify::new(),
            rejected,
            rejections: Turns::new(rejections),
        };
        store.set_wanted(wanted);
        Arc::new(store)
    }

    /// Returns the present values.
    pub fn snapshot(&self) -> Arc<SecretSnapshot> {
        self.published.load_full()
    }

    /// Returns the generation of the present values, [`SecretSnapshot::generation`], at the cost of
    /// a load.
    pub fn generation(&self) -> u64 {
        self.published.load().generation()
    }

    /// Takes the secrets of a new policy. Values of the old policy that it does not name are
    /// dropped and their leases given back, and new secrets are asked for at once.
    pub fn set_wanted(&self, wanted: &[(GroupName, SecretRef)]) {
        self.change(|scheduler| scheduler.want(wanted, Instant::now()));
        self.rewanted.notify_one();
    }

    /// Takes the places where the policy wants values, to report values that could never stand
    /// there.
    pub fn set_uses(&self, uses: Uses) {
        for ((group, secret), change) in self.change(|scheduler| scheduler.take_uses(uses)) {
            log(&group, vec![(secret, change)]);
        }
    }

    /// Asks for every demanded secret again at once; a held value stays until the answer is there.
    /// Leased values are left alone. A read that a source refused may be tried again.
    pub fn ask_again(&self) {
        self.source.try_again();
        self.lock().ask_again(Instant::now());
        self.rewanted.notify_one();
    }

    /// Notes that an API refused the value of a secret. It may have been replaced, so it is read
    /// again, at once the first time. Neither waits nor tells the caller anything.
    pub fn reject(&self, group: &GroupName, secret: &SecretRef) {
        // A message that finds no room is repeated by the next request.
        let _ = self.rejected.try_send((group.clone(), secret.clone()));
    }

    /// Waits until every wanted secret was asked for, once or after [`ask_again`](Self::ask_again),
    /// whatever the answer, or until `deadline`. [`run`](Self::run) must be running.
    pub async fn first_round(&self, deadline: Instant) {
        let mut ticks = self.ticks.subscribe();
        let all_asked =
            async { while !self.snapshot().all_asked() && ticks.changed().await.is_ok() {} };
        // A timeout is no error here: a missing value is answered 503 until it arrives.
        let _ = tokio::time::timeout_at(deadline.into(), all_asked).await;
    }

    /// Keeps the values fresh until `shutdown`, then gives back the leases and the source's tokens.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()> + Send) {
        let ended = tokio::select! {
            () = shutdown => true,
            () = self.refresh_all() => false,
            () = self.source.tend() => false,
        };
        debug_assert!(ended, "neither the refresh nor the source's upkeep returns");
        // A lease that is not given back in time ends with its token.
        let _ = tokio::time::timeout(GIVE_BACK_TIME, self.give_all_back()).await;
        self.source.close().await;
    }

    async fn refresh_all(&self) {
        let mut asked: FuturesUnordered<BoxFuture<'_, Event>> = FuturesUnordered::new();
        loop {
            self.notice_sleep(suspended());
            let (requests, revocations, next) = self.take_due();
            asked.extend(requests.into_iter().map(|one| self.ask(one)));
            asked.extend(revocations.into_iter().map(|one| self.give_back(one)));
            // The timer sleeps with the machine.
            let wake = next.min(Instant::now() + LOOK_FOR_SLEEP);
            tokio::select! {
                Some(event) = asked.next() => {
                    // All events that have arrived by now, so that one snapshot serves for all of
                    // them.
                    let mut events = vec![event];
                    while let Some(Some(event)) = asked.next().now_or_never() {
                        events.push(event);
                    }
                    self.enter(events);
                }
                () = tokio::time::sleep_until(wake.into()) => {}
                () = self.rewanted.notified() => {}
                () = self.rejection() => {}
            }
        }
    }

    /// Waits until an API refuses a value, if that makes a read due.
    async fn rejection(&self) {
        let mut rejections = self.rejections.lock().await;
        while let Some(key) = rejections.recv().await {
            if self.lock().reject(&key, Instant::now()) {
                return;
            }
        }
        std::future::pending().await
    }

    /// Takes into account that the machine was `suspended` for this time in all, if that is news.
    fn notice_sleep(&self, suspended: Duration) {
        let mut known = lock(&self.slept);
        if let Some(slept) = known.since(suspended) {
            tracing::info!(seconds = slept.as_secs(), "the machine was suspended");
            self.change(|scheduler| scheduler.slept(slept, Instant::now()));
        }
    }

    fn take_due(&self) -> (Vec<SourceRequest>, Vec<Revocation>, Instant) {
        let now = Instant::now();
        let mut scheduler = self.lock();
        let (requests, next) = scheduler.take_due(now, |group| self.source.generation(group));
        let (revocations, next_return) = scheduler.revocations.take_due(now);
        (requests, revocations, next_return.map_or(next, |other| next.min(other)))
    }

    fn ask(&self, request: SourceRequest) -> BoxFuture<'_, Event> {
        Box::pin(async move {
            let (group, location) = &request.target;
            let outcome = match &request.about {
                LaneTask::Read => {
                    let picks: Vec<_> = request.references.iter().map(SecretRef::pick).collect();
                    SourceReply::Read(self.source.fetch(group, location, &picks).await)
                }
                LaneTask::Renew(lease) => {
                    SourceReply::Renewed(self.source.renew(group, lease).await)
                }
                LaneTask::Check(lease) => {
                    SourceReply::Checked(self.source.check(group, location, lease).await)
                }
            };
            Event::Answered(request, outcome)
        })
    }

    fn give_back(&self, returned: Revocation) -> BoxFuture<'_, Event> {
        Box::pin(async move {
            let answer = self.source.revoke(&returned.group, &returned.lease).await;
            Event::Returned(returned, answer)
        })
    }

    async fn give_all_back(&self) {
        let leases = self.lock().take_leases();
        let revoked: Vec<BoxFuture<'_, _>> =
            leases.iter().map(|(group, lease)| self.source.revoke(group, lease)).collect();
        let mut revoked = futures_util::stream::iter(revoked).buffer_unordered(RETURNS_AT_ONCE);
        while revoked.next().await.is_some() {}
    }

    fn enter(&self, events: Vec<Event>) {
        let now = Instant::now();
        let (mut answers, mut revocations) = (vec![], vec![]);
        for event in events {
            match event {
                Event::Answered(request, outcome) => answers.push((request, outcome)),
                Event::Returned(returned, answer) => revocations.push((returned, answer)),
            }
        }
        if !answers.is_empty() {
            let changes = self.change(|scheduler| {
                let answers = answers.into_iter().map(|(request, outcome)| {
                    let changes = scheduler.enter(&request, outcome, now);
                    (request.target.0, changes)
                });
                answers.collect::<Vec<_>>()
            });
            for (group, changes) in changes {
                log(&group, changes);
            }
        }
        for (returned, answer) in revocations {
            if self.lock().revocations.enter(&returned, answer, now) {
                let group = returned.group.as_str();
                let text = answer.err().map(FetchError::text);
                tracing::warn!(group, text, "a lease is left to end by itself");
            }
        }
    }

    fn change<T>(&self, edit: impl FnOnce(&mut RefreshScheduler) -> T) -> T {
        let mut scheduler = self.lock();
        let result = edit(&mut scheduler);
        scheduler.forget_old(Instant::now());
        // Published under the lock, because otherwise an older snapshot could overtake a newer one.
        self.published.store(Arc::new(scheduler.snapshot()));
        drop(scheduler);
        self.ticks.send_replace(());
        result
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, RefreshScheduler> {
        lock(&self.scheduler)
    }
}

fn log(group: &GroupName, changes: Changes) {
    let group = group.as_str();
    for (secret, change) in changes {
        match change {
            LedgerChange::Same => {}
            LedgerChange::Arrived => tracing::info!(group, %secret, "a secret is available"),
            LedgerChange::Rotated => tracing::info!(group, %secret, "a secret has a new value"),
            LedgerChange::Failed(error) => {
                let (cause, text) = (error.cause().as_str(), error.text());
                tracing::warn!(group, %secret, cause, text, "a secret cannot be used");
            }
        }
    }
}

const MIN_REFRESH: Duration = Duration::from_secs(1);

/// Longest time, a year. Keeps sums of instants in range.
const MAX_STALE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Refusals of APIs that wait to be processed.
const MAX_REJECTIONS: usize = 256;

/// Interval at which a suspension of the machine, in which instants stand still, is noticed.
const LOOK_FOR_SLEEP: Duration = Duration::from_secs(2);

/// Time for all leases to be given back at shutdown.
const GIVE_BACK_TIME: Duration = Duration::from_secs(2);

/// Leases that are given back at once at shutdown.
const RETURNS_AT_ONCE: usize = 16;

#[cfg(test)]
mod tests;
