//! The ledger: the state of every demanded secret, and the effect of its source's answers. Pure:
//! the time is an argument.
//!
//! A value is usable until `max_stale` after its source last gave it, and a leased one until its
//! lease ends. A source that says "none" takes the value away at once; a source that cannot answer
//! leaves it until then. A value that is replaced, taken away or too old stays known for a day, so
//! that it is still masked in responses.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use super::{
    AwsKeys, FetchError, PickedValue, SecretSnapshot, SecretValue, Uses,
    fit::GroupSecret,
    sleep::moved_back,
    snapshot::{HeldValue, RetiredValue, SecretEntry, not_asked_yet},
};
use crate::{
    policy::{GroupName, Narrowing},
    reason::SecretCause,
};

/// The change that an answer made, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LedgerChange {
    /// Nothing that an operator needs to hear again.
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
    entries: HashMap<GroupSecret, Arc<SecretEntry>>,
    uses: Uses,
}

/// A value as it was read just now, before any check.
pub(super) struct Fresh {
    pub(super) picked: PickedValue,
    /// The time at which the source was asked. It may have looked at any time from then on.
    pub(super) asked: Instant,
    /// The end of the lease; `None` for a value without one.
    pub(super) lease_ends: Option<Instant>,
    pub(super) narrowing: Arc<Narrowing>,
}

impl Ledger {
    pub(super) fn new(max_stale: Duration) -> Self {
        Self { max_stale, generation: 0, entries: HashMap::new(), uses: Uses::default() }
    }

    /// Takes `wanted` as the secrets that are demanded now.
    pub(super) fn want(&mut self, wanted: &[GroupSecret], now: Instant) {
        let wanted: HashSet<&GroupSecret> = wanted.iter().collect();
        for &key in &wanted {
            let fresh = || Arc::new(SecretEntry::new(not_asked_yet(&key.1)));
            entry_mut(self.entries.entry(key.clone()).or_insert_with(fresh)).wanted = true;
        }
        for (key, entry) in &mut self.entries {
            if entry.wanted && !wanted.contains(key) {
                let entry = entry_mut(entry);
                self.generation += u64::from(entry.held.is_some());
                *entry = SecretEntry {
                    retired: entry.retire_held(now),
                    ..SecretEntry::new(not_asked_yet(&key.1))
                };
            }
        }
        self.forget_old(now);
    }

    /// Notes that a source is about to be asked for this secret again.
    pub(super) fn await_answer(&mut self, key: &GroupSecret) {
        if let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.asked) {
            entry_mut(entry).asked = false;
        }
    }

    /// Takes the places where values are wanted. Returns the held values that could not be used
    /// there.
    pub(super) fn take_uses(&mut self, uses: Uses) -> Vec<(GroupSecret, LedgerChange)> {
        self.uses = uses;
        let mut changes = Vec::new();
        for (key, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.held.is_some()) {
            if self.uses.are_aws_keys(key) {
                self.generation += u64::from(entry_mut(entry).part());
            }
            changes.push((key.clone(), entry_mut(entry).fit(key, &self.uses, LedgerChange::Same)));
        }
        changes
    }

    /// Notes a source's answer. An answer about a secret that is no longer demanded is dropped.
    pub(super) fn record(
        &mut self,
        key: &GroupSecret,
        answer: Result<Fresh, FetchError>,
        now: Instant,
    ) -> LedgerChange {
        let max_stale = self.max_stale;
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.wanted) else {
            return LedgerChange::Same;
        };
        let entry = entry_mut(entry);
        entry.asked = true;
        let in_parts = self.uses.are_aws_keys(key);
        let held = answer.and_then(|fresh| {
            let good_until = fresh.lease_ends.unwrap_or(fresh.asked + max_stale);
            let value = Arc::new(check(fresh.picked.whole)?);
            let mut parts = fresh.picked.parts.into_iter().filter_map(maskable).collect();
            if in_parts {
                add_keys(&mut parts, &value);
            }
            Ok(HeldValue { value, parts, good_until, narrowing: fresh.narrowing })
        });
        let (change, changed_values) = match held {
            Ok(held) => {
                let (change, changed_values) = entry.take(held, now);
                (entry.fit(key, &self.uses, change), changed_values)
            }
            Err(error) => entry.fail(error, now),
        };
        self.generation += u64::from(changed_values);
        change
    }

    /// Extends the life of a held value with its lease, which was renewed.
    pub(super) fn prolong(&mut self, key: &GroupSecret, lease_ends: Instant) -> LedgerChange {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.held.is_some()) else {
            return LedgerChange::Same;
        };
        let entry = entry_mut(entry);
        entry.held.iter_mut().for_each(|held| held.good_until = lease_ends);
        if entry.failure.take().is_some() { LedgerChange::Arrived } else { LedgerChange::Same }
    }

    /// Makes held values older by `slept`, for which the machine was suspended. The time for which
    /// a version stays known is not as exact.
    pub(super) fn slept(&mut self, slept: Duration, now: Instant) {
        for entry in self.entries.values_mut().filter(|entry| entry.held.is_some()) {
            let held = entry_mut(entry).held.iter_mut();
            held.for_each(|held| held.good_until = moved_back(held.good_until, slept, now));
        }
    }

    pub(super) fn snapshot(&self) -> SecretSnapshot {
        let mut entries: HashMap<GroupName, HashMap<_, _>> = HashMap::new();
        for ((group, reference), entry) in &self.entries {
            let of_group = entries.entry(group.clone()).or_default();
            of_group.insert(reference.clone(), Arc::clone(entry));
        }
        SecretSnapshot { generation: self.generation, entries }
    }

    /// Forgets the versions whose time to be masked has passed.
    pub(super) fn forget_old(&mut self, now: Instant) {
        for entry in self.entries.values_mut() {
            if entry.retired.iter().any(|retired| retired.until <= now) {
                entry_mut(entry).retired.retain(|retired| retired.until > now);
                self.generation += 1;
            }
        }
        self.entries.retain(|_, entry| entry.wanted || !entry.retired.is_empty());
    }
}

impl SecretEntry {
    fn take(&mut self, fresh: HeldValue, now: Instant) -> (LedgerChange, bool) {
        let recovered = self.failure.take().is_some();
        if let Some(held) = self.held.as_mut().filter(|held| held.is_made_like(&fresh)) {
            // The value itself stays: masks are already made for it.
            held.good_until = fresh.good_until;
            held.narrowing = fresh.narrowing;
            return (if recovered { LedgerChange::Arrived } else { LedgerChange::Same }, false);
        }
        let change =
            if self.held.is_some() { LedgerChange::Rotated } else { LedgerChange::Arrived };
        self.retired = self.retire_held(now);
        self.retired.retain(|retired| !same(&retired.value, &fresh.value));
        self.held = Some(fresh);
        (change, true)
    }

    /// Makes the parts of a held pair of AWS keys known. Returns whether they are new.
    fn part(&mut self) -> bool {
        self.held.as_mut().is_some_and(|held| add_keys(&mut held.parts, &held.value))
    }

    /// Returns the change if the held value can be used, and otherwise its fault if that is news.
    fn fit(&mut self, key: &GroupSecret, uses: &Uses, change: LedgerChange) -> LedgerChange {
        let held = self.held.as_ref();
        let unfit = held.and_then(|held| uses.unfit(key, &held.value, &held.narrowing));
        let known = std::mem::replace(&mut self.unfit, unfit);
        match unfit {
            Some(text) if known != unfit || change != LedgerChange::Same => {
                LedgerChange::Failed(FetchError::Gone(SecretCause::ValueInvalid, text))
            }
            None if known.is_some() && change == LedgerChange::Same => LedgerChange::Arrived,
            _ => change,
        }
    }

    fn fail(&mut self, error: FetchError, now: Instant) -> (LedgerChange, bool) {
        let known = self.failure.is_some_and(|failure| failure.is_like(error));
        let change = if known { LedgerChange::Same } else { LedgerChange::Failed(error) };
        self.failure = Some(error);
        if error.is_gone() {
            self.unfit = None;
        }
        let dropped = self.held.is_some() && error.is_gone();
        if dropped {
            self.retired = self.retire_held(now);
        }
        // The set of known versions is the same, but a reader of `current` must see the change.
        (change, dropped)
    }

    /// Returns the retired versions and the held one, which is held no more.
    fn retire_held(&mut self, now: Instant) -> Vec<RetiredValue> {
        let mut retired = std::mem::take(&mut self.retired);
        if let Some(held) = self.held.take() {
            let until = now + KNOWN_FOR;
            let parts = held.parts.into_iter().map(|value| (value, true));
            let values = [(held.value, false)].into_iter().chain(parts);
            retired.extend(values.map(|(value, is_part)| RetiredValue { value, is_part, until }));
        }
        let surplus = retired.len().saturating_sub(MAX_RETIRED);
        if retired.drain(..surplus).any(|retired| retired.until > now) {
            tracing::warn!(
                bound = MAX_RETIRED,
                "a secret has so many versions that the oldest of the last day is no longer masked"
            );
        }
        retired
    }
}

impl HeldValue {
    /// Returns whether the value, and every field from which it was made, are the other's.
    fn is_made_like(&self, other: &Self) -> bool {
        let mut parts = self.parts.iter().zip(&other.parts);
        self.parts.len() == other.parts.len()
            && same(&self.value, &other.value)
            && parts.all(|(one, other)| same(one, other))
    }
}

fn entry_mut(entry: &mut Arc<SecretEntry>) -> &mut SecretEntry {
    Arc::make_mut(entry)
}

fn check(bytes: Zeroizing<Vec<u8>>) -> Result<SecretValue, FetchError> {
    // Only the least length of any value is checked here; a binding's own is checked when the value
    // is used.
    SecretValue::load(bytes, SecretValue::FLOOR_BYTES)
        .map_err(|error| FetchError::Gone(SecretCause::ValueInvalid, error.text()))
}

/// Returns a field of a template, if it is as long as the least that a binding may ask for.
fn maskable(bytes: Zeroizing<Vec<u8>>) -> Option<Arc<SecretValue>> {
    SecretValue::load(bytes, SecretValue::FLOOR_BYTES).ok().map(Arc::new)
}

/// Adds the parts of a pair of AWS keys, which may stand elsewhere alone, to the fields from which
/// the value was made. Returns whether any is new.
fn add_keys(parts: &mut Vec<Arc<SecretValue>>, value: &SecretValue) -> bool {
    let before = parts.len();
    for key in AwsKeys::parts(value) {
        if !parts.iter().any(|part| same(part, &key)) {
            parts.push(key);
        }
    }
    parts.len() > before
}

/// Compares two values. Both are the gateway's own, so the time that this takes tells nobody
/// anything.
fn same(one: &SecretValue, other: &SecretValue) -> bool {
    one.expose() == other.expose()
}

/// Time for which a version stays known for masking after its last use.
const KNOWN_FOR: Duration = Duration::from_secs(24 * 3600);

/// Most versions of one secret that stay known; the oldest go first. One a minute for a day.
const MAX_RETIRED: usize = 1_440;

#[cfg(test)]
mod tests;
