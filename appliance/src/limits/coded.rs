//! How many compressed answers an agent may measure that hold a secret.
//!
//! Where an API compresses what an agent wrote and a secret together, how long the compressed
//! answer takes tells how much both agree (as BREACH and HEIST do). Masks do not help, and no rule
//! for what goes to the agent does: the time is the origin's and the network's. But it takes many
//! guesses, and each answer that can be measured so is one in which a secret is seen and masked. So
//! after the first of them the API is asked for plain answers to this group, until the policy is
//! put in force again; and so many at a time are asked for that what is under way by then tells
//! little.

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

/// Those of one API to one group.
#[derive(Debug)]
pub struct Coded {
    group: GroupName,
    api: RuleName,
    under_way: AtomicUsize,
    closed: AtomicBool,
}

/// The place of one compressed answer. Given back when dropped, unless nobody knows what the answer
/// held: whoever gives one up in the middle could have measured it.
#[derive(Debug)]
pub struct CodedPlace {
    coded: Arc<Coded>,
    unseen: bool,
}

impl CodedAnswers {
    /// Those of an API to a group.
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
    /// A place for one more, where there may be one.
    pub fn place(self: &Arc<Self>) -> Option<CodedPlace> {
        // Counted first, so that whatever happens it is given back.
        let before = self.under_way.fetch_add(1, Relaxed);
        let place = CodedPlace { coded: Arc::clone(self), unseen: false };
        (before < AT_ONCE && !self.closed.load(Relaxed)).then_some(place)
    }
}

impl CodedPlace {
    /// Whether a compressed answer may be on its way that was not seen to its end.
    pub fn unseen(&mut self, unseen: bool) {
        self.unseen = unseen;
    }

    /// A secret was seen in the answer: there are no more places.
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
