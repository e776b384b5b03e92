//! The answers of resolvers about names, for as long as it holds.
//!
//! A name counts for the group that last had it asked for. In a full table a new name takes the
//! place of one of the group that has the most, the one that would be forgotten first: whatever a
//! group asks for, another keeps its names while they are no more than an equal part. It errs
//! towards asking again.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use super::found::LookupOutcome;
use crate::policy::{GroupName, Host};

/// Answers by name, up to a bound.
#[derive(Debug)]
pub(super) struct Answers {
    names: HashMap<Host, CachedAnswer>,
    /// The names of each group that has some, in the order in which they are forgotten.
    groups: HashMap<GroupName, BTreeSet<(Instant, Host)>>,
    most: usize,
}

#[derive(Debug)]
struct CachedAnswer {
    outcome: LookupOutcome,
    until: Instant,
    group: GroupName,
}

impl Answers {
    /// Room for so many names.
    pub(super) fn new(most: usize) -> Self {
        Self { names: HashMap::new(), groups: HashMap::new(), most }
    }

    /// What holds for the name now.
    pub(super) fn get(&self, host: &Host, now: Instant) -> Option<LookupOutcome> {
        let answer = self.names.get(host).filter(|answer| answer.until > now)?;
        Some(answer.outcome.clone())
    }

    /// Keeps what was said when the group had the name asked for, in place of what was said before.
    pub(super) fn put(
        &mut self,
        (host, group): (&Host, &GroupName),
        (outcome, until): (LookupOutcome, Instant),
        now: Instant,
    ) {
        self.remove(host);
        if until <= now {
            return;
        }
        if self.names.len() >= self.most {
            self.make_room(group, now);
        }
        self.groups.entry(group.clone()).or_default().insert((until, host.clone()));
        self.names.insert(host.clone(), CachedAnswer { outcome, until, group: group.clone() });
    }

    fn remove(&mut self, host: &Host) {
        let Some(CachedAnswer { until, group, .. }) = self.names.remove(host) else { return };
        if let Some(names) = self.groups.get_mut(&group) {
            names.remove(&(until, host.clone()));
            if names.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    fn make_room(&mut self, of: &GroupName, now: Instant) {
        for names in self.groups.values_mut() {
            while names.first().is_some_and(|(until, _)| *until <= now)
                && let Some((_, host)) = names.pop_first()
            {
                self.names.remove(&host);
            }
        }
        self.groups.retain(|_, names| !names.is_empty());
        // The one that is to come counts already.
        let size =
            |(group, names): &(&GroupName, &BTreeSet<_>)| names.len() + usize::from(*group == of);
        let largest = self.groups.iter().max_by_key(size);
        let first = largest.and_then(|(_, names)| names.first());
        if self.names.len() >= self.most
            && let Some((_, host)) = first.cloned()
        {
            self.remove(&host);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::dial::Unresolved;

    const MOST: usize = 12;

    fn host(group: u8, name: u16) -> Host {
        Host::parse(&format!("n{name}.g{group}.example")).unwrap()
    }

    fn group(number: u8) -> GroupName {
        GroupName(number.to_string().into())
    }

    fn put(answers: &mut Answers, (of, name): (u8, u16), seconds: u64, now: Instant) {
        let until = now + Duration::from_secs(seconds);
        answers.put((&host(of, name), &group(of)), (Err(Unresolved::NoName), until), now);
    }

    #[test]
    fn one_groups_countless_names_leave_another_its_own() {
        let (mut answers, now) = (Answers::new(MOST), Instant::now());
        put(&mut answers, (1, 0), 1, now);
        for name in 0..1_000 {
            put(&mut answers, (2, name), 300, now);
        }
        assert!(answers.get(&host(1, 0), now).is_some());
        for name in 0..6 {
            put(&mut answers, (1, name), 1, now);
            put(&mut answers, (2, 2_000 + name), 300, now);
        }
        assert!((0..6).all(|name| answers.get(&host(1, name), now).is_some()));
        assert_eq!(answers.names.len(), MOST);
        assert!(answers.get(&host(1, 0), now + Duration::from_secs(1)).is_none());
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
        assert!((1..MOST as u16).all(|name| answers.get(&host(2, name), later).is_some()));
        put(&mut answers, (2, 500), 0, later);
        assert!(answers.get(&host(2, 500), later).is_none(), "what may not be kept is not");
    }

    proptest! {
        /// The table keeps its bound and its books, the newest name is always in it, and no group
        /// loses a name that holds while it has no more than an equal part.
        #[test]
        fn every_group_has_its_part(
            steps in prop::collection::vec((0..4_u8, 0..20_u16, 0..9_u64, 0..2_u64), 0..100),
        ) {
            let (mut answers, mut now) = (Answers::new(MOST), Instant::now());
            for (of, name, holds, passed) in steps {
                now += Duration::from_secs(passed);
                let held = |answers: &Answers, of| {
                    let names = (0..20).filter(|&name| answers.get(&host(of, name), now).is_some());
                    names.collect::<Vec<_>>()
                };
                let before: Vec<_> = (0..4).map(|of| held(&answers, of)).collect();
                put(&mut answers, (of, name), holds, now);
                prop_assert!(answers.names.len() <= MOST);
                prop_assert_eq!(answers.get(&host(of, name), now).is_some(), holds > 0);
                let books = answers.groups.values().map(BTreeSet::len);
                prop_assert_eq!(books.sum::<usize>(), answers.names.len());
                for (other, before) in (0..4).zip(before).filter(|(other, _)| *other != of) {
                    if before.len() <= MOST / 4 {
                        prop_assert_eq!(held(&answers, other), before);
                    }
                }
            }
        }
    }
}
