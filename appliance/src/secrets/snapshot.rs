//! The secrets as requests see them: all of them at one moment, and never anything that waits.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{FetchError, SecretValue};
use crate::{
    policy::{GroupName, Narrowing, SecretRef},
    reason::SecretCause,
};

/// All values at one moment. Immutable: a request keeps the snapshot that it began with.
#[derive(Default)]
pub struct SecretSnapshot {
    pub(super) generation: u64,
    pub(super) entries: HashMap<GroupName, HashMap<SecretRef, Arc<SecretEntry>>>,
}

/// The number of demanded secrets that can be used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecretsHealth {
    /// Secrets with a usable value.
    pub available: usize,
    /// The other secrets, each with the cause; sorted.
    pub missing: Vec<(GroupName, SecretRef, SecretCause)>,
}

impl SecretSnapshot {
    /// Returns a number that grows whenever any value or known version changes, and only then.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the value to put on the wire at `now`, if it has at least `min_bytes`.
    ///
    /// Never waits, and takes no lock.
    pub fn current(
        &self,
        group: &GroupName,
        reference: &SecretRef,
        min_bytes: usize,
        now: Instant,
    ) -> Result<Arc<SecretValue>, SecretCause> {
        let entry = self.entry(group, reference).ok_or(not_asked_yet(reference))?;
        let value = entry.usable(now)?;
        if value.expose().len() < min_bytes {
            return Err(SecretCause::ValueInvalid);
        }
        Ok(Arc::clone(value))
    }

    /// Returns why its source gave no value when it was last asked.
    pub fn failure(&self, group: &GroupName, reference: &SecretRef) -> Option<FetchError> {
        self.entry(group, reference)?.failure
    }

    /// Returns how long the held value can still be used, if its source does not answer any more.
    pub fn good_for(
        &self,
        group: &GroupName,
        reference: &SecretRef,
        now: Instant,
    ) -> Option<Duration> {
        self.entry(group, reference)?.left(now)
    }

    /// Returns the owner restrictions of a secret; `None` where no value is held.
    pub fn narrowing(&self, group: &GroupName, reference: &SecretRef) -> Option<&Arc<Narrowing>> {
        self.entry(group, reference)?.held.as_ref().map(|held| &held.narrowing)
    }

    /// Returns every version that responses must be masked for: the held one, and those of the last
    /// day. Fields of a template are included if they have at least `min_bytes`.
    pub fn known(
        &self,
        group: &GroupName,
        reference: &SecretRef,
        min_bytes: usize,
    ) -> impl Iterator<Item = &Arc<SecretValue>> {
        self.entry(group, reference).into_iter().flat_map(move |entry| {
            let held = entry.held.iter();
            let held = held.flat_map(move |held| {
                let parts = held.parts.iter().filter(move |part| is_long(part, min_bytes));
                [&held.value].into_iter().chain(parts)
            });
            held.chain(entry.retired.iter().filter_map(move |it| it.masked(min_bytes)))
        })
    }

    /// Returns the versions of the last day of the group's secrets that left the policy. No binding
    /// tells any more where they were used, so they are masked at all of the group's upstreams.
    pub fn left(&self, group: &GroupName) -> impl Iterator<Item = &Arc<SecretValue>> {
        let entries = self.entries.get(group).into_iter().flat_map(HashMap::values);
        entries
            .filter(|entry| !entry.wanted)
            .flat_map(|entry| entry.retired.iter())
            .filter_map(|retired| retired.masked(SecretValue::MIN_BYTES))
    }

    /// Returns how many secrets can be used at `now`, for readiness.
    ///
    /// A value that could never be used in some place where it is wanted does not count.
    pub fn health(&self, now: Instant) -> SecretsHealth {
        let mut health = SecretsHealth::default();
        for (group, of_group) in &self.entries {
            for (reference, entry) in of_group.iter().filter(|(_, entry)| entry.wanted) {
                match entry.useless(now) {
                    None => health.available += 1,
                    Some(cause) => health.missing.push((group.clone(), reference.clone(), cause)),
                }
            }
        }
        health.missing.sort_by(|one, other| (&one.0, &one.1).cmp(&(&other.0, &other.1)));
        health
    }

    /// Returns the secrets that are demanded and cannot be used at `now`, but could be in the
    /// snapshot `before`; sorted.
    pub fn lost_since(&self, before: &Self, now: Instant) -> Vec<(GroupName, SecretRef)> {
        let health = self.health(now);
        let had = |(group, reference, _): &(GroupName, SecretRef, SecretCause)| {
            let entry = before.entry(group, reference).filter(|entry| entry.wanted);
            entry.is_some_and(|entry| entry.useless(now).is_none())
        };
        let lost = health.missing.into_iter().filter(had);
        lost.map(|(group, reference, _)| (group, reference)).collect()
    }

    /// Returns whether every demanded secret was asked for since that was due.
    pub(super) fn all_asked(&self) -> bool {
        let mut entries = self.entries.values().flat_map(HashMap::values);
        entries.all(|entry| entry.asked || !entry.wanted)
    }

    fn entry(&self, group: &GroupName, reference: &SecretRef) -> Option<&SecretEntry> {
        self.entries.get(group)?.get(reference).map(Arc::as_ref)
    }
}

/// One secret of one group.
#[derive(Clone)]
pub(super) struct SecretEntry {
    pub(super) wanted: bool,
    pub(super) asked: bool,
    pub(super) held: Option<HeldValue>,
    /// The reason why nothing is held, or why the last request failed.
    pub(super) failure: Option<FetchError>,
    /// The reason why the held value cannot be used in some place where it is wanted.
    pub(super) unfit: Option<&'static str>,
    pub(super) before: SecretCause,
    pub(super) retired: Vec<RetiredValue>,
}

#[derive(Clone)]
pub(super) struct HeldValue {
    pub(super) value: Arc<SecretValue>,
    /// The fields from which the value was made, if a binding may have them masked by themselves.
    pub(super) parts: Vec<Arc<SecretValue>>,
    pub(super) good_until: Instant,
    pub(super) narrowing: Arc<Narrowing>,
}

#[derive(Clone)]
pub(super) struct RetiredValue {
    pub(super) value: Arc<SecretValue>,
    /// Whether this is a field of a template, and not the whole of it.
    pub(super) is_part: bool,
    pub(super) until: Instant,
}

impl RetiredValue {
    fn masked(&self, min_bytes: usize) -> Option<&Arc<SecretValue>> {
        (!self.is_part || is_long(&self.value, min_bytes)).then_some(&self.value)
    }
}

/// Returns whether a field is so long, by its binding's bound, that a similar text is no
/// coincidence.
fn is_long(part: &SecretValue, min_bytes: usize) -> bool {
    part.expose().len() >= min_bytes
}

impl SecretEntry {
    pub(super) fn new(before: SecretCause) -> Self {
        Self {
            wanted: false,
            asked: false,
            held: None,
            failure: None,
            unfit: None,
            before,
            retired: vec![],
        }
    }

    fn left(&self, now: Instant) -> Option<Duration> {
        let left = self.held.as_ref()?.good_until.checked_duration_since(now)?;
        Some(left).filter(|left| !left.is_zero())
    }

    /// Returns why the value cannot be used at all, or not in some place where it is wanted.
    fn useless(&self, now: Instant) -> Option<SecretCause> {
        let fit = self.unfit.map_or(Ok(()), |_| Err(SecretCause::ValueInvalid));
        self.usable(now).and(fit).err()
    }

    fn usable(&self, now: Instant) -> Result<&Arc<SecretValue>, SecretCause> {
        match (&self.held, self.failure) {
            (Some(held), _) if now < held.good_until => Ok(&held.value),
            // An operator can act on the reason why no newer value came.
            (_, Some(failure)) => Err(failure.cause()),
            (Some(_), None) => Err(SecretCause::LeaseEnded),
            (None, None) => Err(self.before),
        }
    }
}

pub(super) const fn not_asked_yet(reference: &SecretRef) -> SecretCause {
    match reference {
        SecretRef::Vault { .. } => SecretCause::VaultUnreachable,
        SecretRef::File { .. } => SecretCause::NotInFile,
    }
}
