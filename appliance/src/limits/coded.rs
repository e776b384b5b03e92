//! The bound on how many compressed answers that hold a secret an agent may measure.
//!
//! Where an API compresses an agent's text and a secret together, the time that the compressed
//! answer takes tells how much the two agree (as BREACH and HEIST do). Masks do not help, and no
//! rule for the bytes to the agent does, because the time comes from the origin and the network.
//! But it takes many guesses, and in each answer that can be measured so a secret is seen and
//! masked. So after the first of them the API is asked for plain answers to this group, until the
//! policy is put in force again; and the number of compressed answers under way is bounded, so that
//! those already on their way tell little.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use crate::{
    locks::lock,
    policy::{GroupName, RuleName},
};

/// The compressed answers of every API to every group.
#[derive(Debug, Default)]
pub struct CodedAnswers(Mutex<HashMap<(GroupName, RuleName), Arc<Coded>>>);

/// The compressed answers of one API to one group.
#[derive(Debug)]
pub struct Coded {
    group: GroupName,
    api: RuleName,
    under_way: AtomicUsize,
    closed: AtomicBool,
}

/// The slot of one compressed answer. Given back when dropped, unless the answer was not read to
/// its end: an agent that gives one up in the middle could have measured it.
#[derive(Debug)]
pub struct CodedPlace {
    coded: Arc<Coded>,
    unseen: bool,
}

impl CodedAnswers {
    /// Returns the compressed answers of an API to a group.
    pub fn of(&self, group: &GroupName, api: &RuleName) -> Arc<Coded> {
        let mut all = lock(&self.0);
        let coded = all.entry((group.clone(), api.clone())).or_insert_with(|| {
            let (group, api) = (group.clone(), api.clone());
            let (under_way, closed) = (AtomicUsize::new(0), AtomicBool::new(false));
            Arc::new(Coded { group, api, under_way, closed })
        });
        Arc::clone(coded)
    }
}

impl Coded {
    /// Returns a slot for one more, if there may be one.
    pub fn place(self: &Arc<Self>) -> Option<CodedPlace> {
        // Counted first, so that it is given back whatever happens.
        let before = self.under_way.fetch_add(1, Relaxed);
        let place = CodedPlace { coded: Arc::clone(self), unseen: false };
        (before < AT_ONCE && !self.closed.load(Relaxed)).then_some(place)
    }
}

impl CodedPlace {
    /// Notes whether a compressed answer may be on its way that was not read to its end.
    pub fn unseen(&mut self, unseen: bool) {
        self.unseen = unseen;
    }

    /// Ends the slots, because a secret was seen in the answer.
    pub fn close(&self) {
        let Coded { group, api, closed, .. } = &*self.coded;
        if !closed.swap(true, Relaxed) {
            tracing::warn!(
                %group,
                rule = %api,
                "a compressed answer held a secret, which was masked; plain answers alone are asked \
                 for until the next reload"
            );
        }
    }
}

impl Drop for CodedPlace {
    fn drop(&mut self) {
        if !self.unseen {
            self.coded.under_way.fetch_sub(1, Relaxed);
        }
    }
}

/// Compressed answers of an API to a group that may be under way. Each could tell of one guess.
const AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn coded() -> Arc<Coded> {
        let name = "research".parse::<String>().unwrap();
        let group = GroupName::parse(&name).unwrap();
        CodedAnswers::default().of(&group, &RuleName::parse("openai").unwrap())
    }

    #[test]
    fn compressed_answers_are_bounded_and_free_their_place() {
        let coded = coded();
        let mut places: Vec<_> = std::iter::from_fn(|| coded.place()).collect();
        assert_eq!(places.len(), AT_ONCE);
        places.pop();
        assert!(coded.place().is_some());
    }

    #[test]
    fn an_abandoned_answers_place_does_not_come_back() {
        let coded = coded();
        for _ in 0..AT_ONCE {
            coded.place().unwrap().unseen(true);
        }
        assert!(coded.place().is_none());
    }

    #[test]
    fn after_one_that_held_a_secret_there_is_no_place() {
        let coded = coded();
        coded.place().unwrap().close();
        assert!(coded.place().is_none());
        assert_eq!(coded.under_way.load(Relaxed), 0);
    }
}
