//! The cache of the resolvers' answers about names.
//!
//! Each group has answers of its own, because the remaining time of an answer, and how soon it
//! comes, would tell one group what another asks for. In a full table a new name replaces the name
//! that would be forgotten first, in the group that has most names: whatever one group asks for,
//! another keeps its names while they are no more than an equal part. Errs towards asking again.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use super::found::LookupOutcome;
use crate::policy::{GroupName, Host};

/// A name, and the group that wants it resolved.
pub(super) type LookupKey = (Host, GroupName);

/// Answers by group and name, up to a bound.
#[derive(Debug)]
pub(super) struct Answers {
    groups: HashMap<GroupName, CachedGroup>,
    /// The number of names of all groups together.
    names: usize,
    most: usize,
}

/// The answers that one group was given.
#[derive(Debug, Default)]
struct CachedGroup {
    names: HashMap<Host, CachedAnswer>,
    /// The names in the order in which they are forgotten.
    order: BTreeSet<(Instant, Host)>,
}

#[derive(Debug)]
struct CachedAnswer {
    outcome: LookupOutcome,
    until: Instant,
}

impl Answers {
    /// Creates a table with room for so many names.
    pub(super) fn new(most: usize) -> Self {
        Self { groups: HashMap::new(), names: 0, most }
    }

    /// Returns the group's answer about the name, if it is still valid.
    pub(super) fn get(
        &self,
        host: &Host,
        group: &GroupName,
        now: Instant,
    ) -> Option<LookupOutcome> {
        let answer = self.groups.get(group)?.names.get(host)?;
        (answer.until > now).then(|| answer.outcome.clone())
    }

    /// Keeps the answer to the group's query about the name, in place of an earlier one.
    pub(super) fn put(
        &mut self,
        (host, group): &LookupKey,
        outcome: LookupOutcome,
        until: Instant,
        now: Instant,
    ) {
        self.remove(host, group);
        if until <= now {
            return;
        }
        if self.names >= self.most {
            self.make_room(group, now);
        }
        let answers = self.groups.entry(group.clone()).or_default();
        answers.order.insert((until, host.clone()));
        answers.names.insert(host.clone(), CachedAnswer { outcome, until });
        self.names += 1;
    }

    fn remove(&mut self, host: &Host, group: &GroupName) {
        let Some(answers) = self.groups.get_mut(group) else { return };
        let Some(CachedAnswer { until, .. }) = answers.names.remove(host) else { return };
        answers.order.remove(&(until, host.clone()));
        self.names -= 1;
        if answers.names.is_empty() {
            self.groups.remove(group);
        }
    }

    fn make_room(&mut self, of: &GroupName, now: Instant) {
        for answers in self.groups.values_mut() {
            self.names -= answers.forget(now);
        }
        self.groups.retain(|_, answers| !answers.names.is_empty());
        // The new name counts already.
        let size = |(group, answers): &(&GroupName, &CachedGroup)| {
            answers.names.len() + usize::from(*group == of)
        };
        let largest = self.groups.iter().max_by_key(size);
        let first = largest.and_then(|(group, answers)| {
            answers.order.first().map(|(_, host)| (host.clone(), group.clone()))
        });
        if self.names >= self.most
            && let Some((host, group)) = first
        {
            self.remove(&host, &group);
        }
    }
}

impl CachedGroup {
    /// Forgets the answers that are no longer valid, and returns how many those were.
    fn forget(&mut self, now: Instant) -> usize {
        let before = self.names.len();
        while self.order.first().is_some_and(|(until, _)| *until <= now)
            && let Some((_, host)) = self.order.pop_first()
        {
            self.names.remove(&host);
        }
        before - self.names.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::dial::Unresolved;

    const MOST: usize = 12;

    fn host(name: u16) -> Host {
        Host::parse(&format!("n{name}.example")).unwrap()
    }

    fn group(number: u8) -> GroupName {
        GroupName(number.to_string().into())
    }

    fn holds(answers: &Answers, (of, name): (u8, u16), now: Instant) -> bool {
        answers.get(&host(name), &group(of), now).is_some()
    }

    fn put(answers: &mut Answers, (of, name): (u8, u16), seconds: u64, now: Instant) {
        let until = now + Duration::from_secs(seconds);
        answers.put(&(host(name), group(of)), Err(Unresolved::NoName), until, now);
    }

    #[test]
    fn one_groups_countless_names_leave_another_its_own() {
        let (mut answers, now) = (Answers::new(MOST), Instant::now());
        put(&mut answers, (1, 0), 1, now);
        for name in 0..1_000 {
            put(&mut answers, (2, name), 300, now);
        }
        assert!(holds(&answers, (1, 0), now));
        for name in 0..6 {
            put(&mut answers, (1, name), 1, now);
            put(&mut answers, (2, 2_000 + name), 300, now);
        }
        assert!((0..6).all(|name| holds(&answers, (1, name), now)));
        assert_eq!(answers.names, MOST);
        assert!(!holds(&answers, (1, 0), now + Duration::from_secs(1)));
    }

    #[test]
    fn what_one_group_asked_for_tells_another_nothing() {
        let (mut answers, now) = (Answers::new(MOST), Instant::now());
        put(&mut answers, (1, 0), 300, now);
        assert!(holds(&answers, (1, 0), now) && !holds(&answers, (2, 0), now));
        put(&mut answers, (2, 0), 1, now);
        let later = now + Duration::from_secs(2);
        assert!(holds(&answers, (1, 0), later) && !holds(&answers, (2, 0), later));
    }

    #[test]
    fn what_holds_no_longer_goes_first_whoever_has_it() {
        let (mut answers, now) = (Answers::new(MOST), Instant::now());
        put(&mut answers, (1, 0), 1, now);
        for name in 1..MOST as u16 {
            put(&mut answers, (2, name), 300, now);
        }
        let later = now + Duration::from_secs(2);
        put(&mut answers, (2, 500), 300, later);
        assert!((1..MOST as u16).all(|name| holds(&answers, (2, name), later)));
        put(&mut answers, (2, 500), 0, later);
        assert!(!holds(&answers, (2, 500), later), "what may not be kept is not");
    }

    proptest! {
        /// The table keeps its bound and its counts, the newest name is always in it, and no group
        /// loses a valid name while it has no more than an equal part.
        #[test]
        fn every_group_has_its_part(
            steps in prop::collection::vec((0..4_u8, 0..20_u16, 0..9_u64, 0..2_u64), 0..100),
        ) {
            let (mut answers, mut now) = (Answers::new(MOST), Instant::now());
            for (of, name, seconds, passed) in steps {
                now += Duration::from_secs(passed);
                let held = |answers: &Answers, of| {
                    let names = (0..20).filter(|&name| holds(answers, (of, name), now));
                    names.collect::<Vec<_>>()
                };
                let before: Vec<_> = (0..4).map(|of| held(&answers, of)).collect();
                put(&mut answers, (of, name), seconds, now);
                prop_assert!(answers.names <= MOST);
                prop_assert_eq!(holds(&answers, (of, name), now), seconds > 0);
                let books = |size: fn(&CachedGroup) -> usize| answers.groups.values().map(size).sum::<usize>();
                prop_assert_eq!(books(|group| group.names.len()), answers.names);
                prop_assert_eq!(books(|group| group.order.len()), answers.names);
                for (other, before) in (0..4).zip(before).filter(|(other, _)| *other != of) {
                    if before.len() <= MOST / 4 {
                        prop_assert_eq!(held(&answers, other), before);
                    }
                }
            }
        }
    }
}
