//! What is known about every wanted secret, and what an answer of its source changes. Pure: the
//! time is an argument.
//!
//! A value is usable until `max_stale` after it was last read. A source that says "none" takes
//! it away at once; a source that cannot answer leaves it until then. A value that is replaced,
//! taken away or too old stays known for a day, so that it is still masked in responses.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use super::{
    FetchError, SecretValue, Snapshot,
    snapshot::{Entry, Held, Retired, not_asked_yet},
};
use crate::{
    policy::{GroupName, SecretRef},
    reason::SecretCause,
};

/// What an answer changed, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing that an operator needs to hear of again.
    Same,
    /// The first value, or one after a failure.
    Arrived,
    /// A new value in place of another.
    Rotated,
    /// The first failure of its kind.
    Failed(FetchError),
}

/// The one writer of snapshots.
pub(super) struct Ledger {
    max_stale: Duration,
    generation: u64,
    entries: HashMap<Key, Arc<Entry>>,
}

/// Whose value, and which.
pub(super) type Key = (GroupName, SecretRef);

impl Ledger {
    pub(super) fn new(max_stale: Duration) -> Self {
        Self { max_stale, generation: 0, entries: HashMap::new() }
    }

    /// Takes `wanted` in place of what was wanted before.
    pub(super) fn want(&mut self, wanted: &[Key], now: Instant) {
        for key in wanted {
            let fresh = || Arc::new(Entry::new(not_asked_yet(&key.1)));
            entry_mut(self.entries.entry(key.clone()).or_insert_with(fresh)).wanted = true;
        }
        for (key, entry) in &mut self.entries {
            if entry.wanted && !wanted.contains(key) {
                let entry = entry_mut(entry);
                self.generation += u64::from(entry.held.is_some());
                *entry =
                    Entry { retired: entry.retire_held(now), ..Entry::new(not_asked_yet(&key.1)) };
            }
        }
        self.forget_old(now);
    }

    pub(super) fn wants(&self, key: &Key) -> bool {
        self.entries.get(key).is_some_and(|entry| entry.wanted)
    }

    /// Enters what a source answered. An answer for what is no longer wanted is dropped.
    pub(super) fn record(
        &mut self,
        key: &Key,
        answer: Result<Zeroizing<Vec<u8>>, FetchError>,
        now: Instant,
    ) -> Change {
        let good_until = now + self.max_stale;
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.wanted) else {
            return Change::Same;
        };
        let entry = entry_mut(entry);
        entry.asked = true;
        let (change, changed_values) = match answer.and_then(check) {
            Ok(value) => entry.take(value, good_until, now),
            Err(error) => entry.fail(error, now),
        };
        self.generation += u64::from(changed_values);
        self.forget_old(now);
        change
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let mut entries: HashMap<GroupName, HashMap<_, _>> = HashMap::new();
        for ((group, reference), entry) in &self.entries {
            let of_group = entries.entry(group.clone()).or_default();
            of_group.insert(reference.clone(), Arc::clone(entry));
        }
        Snapshot { generation: self.generation, entries }
    }

    fn forget_old(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            if entry.retired.iter().any(|retired| retired.until <= now) {
                entry_mut(entry).retired.retain(|retired| retired.until > now);
                self.generation += 1;
            }
        }
        self.entries.retain(|_, entry| entry.wanted || !entry.retired.is_empty());
    }
}

impl Entry {
    fn take(&mut self, value: SecretValue, good_until: Instant, now: Instant) -> (Change, bool) {
        let recovered = self.failure.take().is_some();
        if let Some(held) = self.held.as_mut().filter(|held| same(&held.value, &value)) {
            held.good_until = good_until;
            return (if recovered { Change::Arrived } else { Change::Same }, false);
        }
        let change = if self.held.is_some() { Change::Rotated } else { Change::Arrived };
        self.retired = self.retire_held(now);
        self.retired.retain(|retired| !same(&retired.value, &value));
        self.held = Some(Held { value: Arc::new(value), good_until });
        (change, true)
    }

    fn fail(&mut self, error: FetchError, now: Instant) -> (Change, bool) {
        let change = if self.failure == Some(error) { Change::Same } else { Change::Failed(error) };
        self.failure = Some(error);
        let dropped = self.held.is_some() && matches!(error, FetchError::Gone(..));
        if dropped {
            self.retired = self.retire_held(now);
        }
        // The set of known versions is the same, but a reader of `current` must see the change.
        (change, dropped)
    }

    /// The retired versions with the held one among them; nothing is held any more.
    fn retire_held(&mut self, now: Instant) -> Vec<Retired> {
        let mut retired = std::mem::take(&mut self.retired);
        if let Some(held) = self.held.take() {
            retired.push(Retired { value: held.value, until: now + KNOWN_FOR });
        }
        let surplus = retired.len().saturating_sub(MAX_RETIRED);
        retired.drain(..surplus);
        retired
    }
}

fn entry_mut(entry: &mut Arc<Entry>) -> &mut Entry {
    Arc::make_mut(entry)
}

fn check(bytes: Zeroizing<Vec<u8>>) -> Result<SecretValue, FetchError> {
    // The floor here; what a binding demands beyond it is checked when the value is used.
    SecretValue::load(bytes, SecretValue::FLOOR_BYTES).map_err(|_| {
        let text = "the value is not 8 to 8192 bytes of 0x21 to 0x7e";
        FetchError::Gone(SecretCause::ValueInvalid, text)
    })
}

/// Both values are the gateway's own, so that the time this takes tells nobody anything.
fn same(one: &SecretValue, other: &SecretValue) -> bool {
    one.expose() == other.expose()
}

/// How long a version stays known for masking after its last use.
const KNOWN_FOR: Duration = Duration::from_secs(24 * 3600);

/// Most versions of one secret that stay known; the oldest go first. One a minute for a day.
const MAX_RETIRED: usize = 1_440;

#[cfg(test)]
mod tests {
    use super::{super::Health, *};

    const STALE: Duration = Duration::from_secs(300);
    const OUTAGE: FetchError = FetchError::Outage(SecretCause::VaultSealed, "sealed");
    const DENIED: FetchError = FetchError::Gone(SecretCause::VaultDenied, "denied");
    const ONE: &str = "sk-one-0123456789";
    const TWO: &str = "sk-two-0123456789";

    struct Scene {
        ledger: Ledger,
        key: Key,
        start: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let path = "openai".into();
            let reference =
                SecretRef::VaultKv2 { mount: "secret".into(), path, field: "key".into() };
            let (key, start) = ((GroupName("agents".into()), reference), Instant::now());
            let mut ledger = Ledger::new(STALE);
            ledger.want(std::slice::from_ref(&key), start);
            Self { ledger, key, start }
        }

        fn value(&mut self, at: u64, value: &str) -> Change {
            let bytes = Zeroizing::new(value.as_bytes().to_vec());
            self.ledger.record(&self.key, Ok(bytes), self.at(at))
        }

        fn error(&mut self, at: u64, error: FetchError) -> Change {
            self.ledger.record(&self.key, Err(error), self.at(at))
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn current(&self, at: u64) -> Result<String, SecretCause> {
            let (group, reference) = &self.key;
            let snapshot = self.ledger.snapshot();
            snapshot.current(group, reference, 16, self.at(at)).map(text)
        }

        fn known(&self) -> Vec<String> {
            let snapshot = self.ledger.snapshot();
            snapshot.known(&self.key.0, &self.key.1).cloned().map(text).collect()
        }

        fn generation(&self) -> u64 {
            self.ledger.snapshot().generation()
        }
    }

    fn text(value: Arc<SecretValue>) -> String {
        String::from_utf8(value.expose().to_vec()).unwrap()
    }

    #[test]
    fn an_outage_keeps_a_value_until_it_is_too_old() {
        let mut scene = Scene::new();
        assert_eq!(scene.current(0), Err(SecretCause::VaultUnreachable));
        assert_eq!(scene.error(0, OUTAGE), Change::Failed(OUTAGE));
        assert_eq!(scene.current(0), Err(SecretCause::VaultSealed));
        assert_eq!(scene.value(10, ONE), Change::Arrived);
        assert_eq!(scene.error(20, OUTAGE), Change::Failed(OUTAGE));
        assert_eq!(scene.error(30, OUTAGE), Change::Same);
        assert_eq!(scene.current(309).as_deref(), Ok(ONE));
        assert_eq!(scene.current(310), Err(SecretCause::LeaseEnded));
        assert_eq!(scene.known(), [ONE], "what has ended is still masked");
        assert_eq!(scene.value(400, ONE), Change::Arrived);
        assert_eq!(scene.current(699).as_deref(), Ok(ONE));
    }

    #[test]
    fn a_refusal_drops_a_value_at_once_but_not_its_mask() {
        let mut scene = Scene::new();
        scene.value(0, ONE);
        assert_eq!(scene.error(1, DENIED), Change::Failed(DENIED));
        assert_eq!(scene.current(1), Err(SecretCause::VaultDenied));
        assert_eq!(scene.known(), [ONE]);
        scene.error(2, OUTAGE);
        assert_eq!(
            scene.current(2),
            Err(SecretCause::VaultSealed),
            "an outage brings nothing back"
        );
    }

    #[test]
    fn an_unusable_value_replaces_a_good_one_by_nothing() {
        for bad in ["short", "sk-0123\r\nX-Evil: 1", ""] {
            let mut scene = Scene::new();
            scene.value(0, ONE);
            scene.value(1, bad);
            assert_eq!(scene.current(1), Err(SecretCause::ValueInvalid), "{bad:?}");
        }
    }

    #[test]
    fn a_value_shorter_than_its_binding_demands_is_not_used() {
        let mut scene = Scene::new();
        scene.value(0, "12345678");
        assert_eq!(scene.current(0), Err(SecretCause::ValueInvalid));
        let (group, reference) = &scene.key;
        assert!(scene.ledger.snapshot().current(group, reference, 8, scene.at(0)).is_ok());
    }

    #[test]
    fn every_version_of_the_last_day_is_known_and_no_older_one() {
        let mut scene = Scene::new();
        scene.value(0, ONE);
        assert_eq!(scene.value(60, TWO), Change::Rotated);
        assert_eq!(scene.current(60).as_deref(), Ok(TWO));
        assert_eq!(scene.known(), [TWO, ONE]);
        scene.value(120, ONE);
        assert_eq!(scene.known(), [ONE, TWO], "a version that comes back is known once");
        scene.value(120 + 86_399, ONE);
        assert_eq!(scene.known(), [ONE, TWO]);
        scene.value(120 + 86_400, ONE);
        assert_eq!(scene.known(), [ONE]);
    }

    #[test]
    fn the_generation_changes_with_values_and_only_with_them() {
        let mut scene = Scene::new();
        let mut last = scene.generation();
        let mut moved = |scene: &Scene| std::mem::replace(&mut last, scene.generation()) != last;
        scene.error(0, OUTAGE);
        assert!(!moved(&scene));
        scene.value(1, ONE);
        assert!(moved(&scene));
        scene.value(2, ONE);
        scene.error(3, OUTAGE);
        assert!(!moved(&scene));
        scene.value(4, TWO);
        assert!(moved(&scene));
        scene.error(5, DENIED);
        assert!(moved(&scene));
    }

    #[test]
    fn what_policy_no_longer_names_is_dropped_and_still_masked_for_a_day() {
        let mut scene = Scene::new();
        scene.value(0, ONE);
        scene.ledger.want(&[], scene.at(1));
        assert_eq!(scene.current(1), Err(SecretCause::VaultUnreachable));
        assert_eq!(scene.known(), [ONE]);
        assert_eq!(scene.value(2, TWO), Change::Same, "a late answer is dropped");
        assert_eq!(scene.known(), [ONE]);
        scene.ledger.want(&[], scene.at(1 + 86_400));
        assert!(scene.known().is_empty() && scene.ledger.entries.is_empty());
    }

    #[test]
    fn one_groups_value_is_not_anothers() {
        let mut scene = Scene::new();
        scene.value(0, ONE);
        let other = GroupName("others".into());
        let snapshot = scene.ledger.snapshot();
        let asked = snapshot.current(&other, &scene.key.1, 16, scene.at(0));
        assert_eq!(asked.err(), Some(SecretCause::VaultUnreachable));
        assert_eq!(snapshot.known(&other, &scene.key.1).count(), 0);
    }

    #[test]
    fn health_counts_what_is_wanted() {
        let mut scene = Scene::new();
        assert!(!scene.ledger.snapshot().all_asked());
        scene.error(0, DENIED);
        let health = scene.ledger.snapshot().health(scene.at(0));
        assert_eq!(health.available, 0);
        let (group, reference) = scene.key.clone();
        assert_eq!(health.missing, [(group, reference, SecretCause::VaultDenied)]);
        scene.value(1, ONE);
        let snapshot = scene.ledger.snapshot();
        assert!(snapshot.all_asked());
        assert_eq!(snapshot.health(scene.at(1)), Health { available: 1, missing: vec![] });
        assert_eq!(snapshot.health(scene.at(301)).available, 0);
    }
}
