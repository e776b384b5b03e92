//! The leaves that agents are shown: one for each host, shared by all threads.
//!
//! A connection is shorter than its leaf's life, and a leaf's life is shorter than the process's,
//! so every use looks at the clock. Minting takes some tens of microseconds and is done outside of
//! any lock: two threads may both mint, and one of the two leaves is kept.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

use rustls::sign::CertifiedKey;

use super::{
    CaError,
    issuing::{IssuingCa, Leaf},
    unix_seconds,
};
use crate::{
    locks::lock,
    policy::{Host, HostPattern},
};

/// The leaves of one rule: at most 512, of which the oldest make room.
pub struct Leaves {
    ca: IssuingCa,
    hasher: RandomState,
    shards: [Mutex<HashMap<Host, Leaf>>; SHARDS],
}

impl Leaves {
    /// Creates an empty set of leaves.
    pub fn new(ca: IssuingCa) -> Self {
        Self { ca, hasher: RandomState::new(), shards: std::array::from_fn(|_| Mutex::default()) }
    }

    /// Returns the names that a leaf can be had for.
    pub fn names(&self) -> &[HostPattern] {
        self.ca.names()
    }

    /// Returns when the issuing CA began.
    pub fn begins(&self) -> SystemTime {
        self.ca.begins()
    }

    /// Returns when the issuing CA ends, and with it the last leaf.
    pub fn ends(&self) -> SystemTime {
        self.ca.ends()
    }

    /// See [`IssuingCa::overdue_from`].
    pub fn overdue_from(&self) -> SystemTime {
        self.ca.overdue_from()
    }

    /// Returns the chain (leaf and issuing CA) and the key to show to an agent that asks for
    /// `host`. The leaf is valid for at most 24 hours in all, and at least a quarter of its life is
    /// left.
    ///
    /// # Errors
    ///
    /// `host` is none of the names, or the issuing CA has ended.
    pub fn leaf(&self, host: &Host, now: SystemTime) -> Result<Arc<CertifiedKey>, CaError> {
        if let Some(key) = self.cached(host, now) {
            return Ok(key);
        }
        let leaf = self.ca.mint(host, unix_seconds(now)?)?;
        let key = Arc::clone(&leaf.key);
        self.keep(host, leaf);
        Ok(key)
    }

    /// Returns the same if it has been made already.
    pub fn cached(&self, host: &Host, now: SystemTime) -> Option<Arc<CertifiedKey>> {
        let now = unix_seconds(now).ok()?;
        let shard = self.shard(host)?;
        let leaf = shard.get(host)?;
        // A leaf that was made before the clock was set back begins in the future.
        let fresh = leaf.not_before <= now && now < leaf.renew_at;
        fresh.then(|| Arc::clone(&leaf.key))
    }

    fn keep(&self, host: &Host, leaf: Leaf) {
        let Some(mut shard) = self.shard(host) else { return };
        if shard.len() >= SHARD_LEAVES && !shard.contains_key(host) {
            let oldest = shard.iter().min_by_key(|(_, leaf)| leaf.renew_at);
            if let Some(oldest) = oldest.map(|(host, _)| host.clone()) {
                shard.remove(&oldest);
            }
        }
        shard.insert(host.clone(), leaf);
    }

    fn shard(&self, host: &Host) -> Option<MutexGuard<'_, HashMap<Host, Leaf>>> {
        let index = self.hasher.hash_one(host) % SHARDS as u64;
        let shard = self.shards.get(usize::try_from(index).ok()?)?;
        Some(lock(shard))
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves").field("ca", &self.ca).finish_non_exhaustive()
    }
}

const SHARDS: usize = 16;
const SHARD_LEAVES: usize = 32;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        ca::testing::{Installation, api, host, later, now, policy, verify},
        policy::{Carry, Constraints, DialledRule, Pass, RuleName, Upstream},
    };

    fn leaves(hosts: &[&str]) -> (Installation, Leaves) {
        let (made, ca) = Installation::with("api", hosts);
        (made, Leaves::new(ca))
    }

    /// Returns the leaves of a rule under which agents choose the names.
    fn suffix_leaves() -> (Installation, Leaves) {
        let made = Installation::new();
        let hosts = vec![HostPattern::Suffix(host("a.test"))];
        let mut policy = policy(vec![]);
        let pass = Pass {
            name: RuleName("api".into()),
            client: None,
            carry: Carry::Inspect {
                methods: Vec::new(),
                paths: Vec::new(),
                websocket: false,
                constraints: Constraints::Critical,
            },
            groups: Vec::new(),
            hosts: hosts.clone(),
            ports: vec![443],
            upstream: Upstream::default(),
            dialled: DialledRule::Answered,
        };
        policy.passes = vec![Arc::new(pass)].into();
        made.issue(&policy, now());
        let ca = made.load("api", &hosts, now()).unwrap();
        (made, Leaves::new(ca))
    }

    #[test]
    fn a_leaf_is_kept_until_its_last_quarter() {
        let (made, leaves) = leaves(&["a.test", "b.test"]);
        let first = leaves.leaf(&host("a.test"), now()).unwrap();
        assert!(Arc::ptr_eq(&first, &leaves.leaf(&host("a.test"), later(17)).unwrap()));
        let second = leaves.leaf(&host("a.test"), later(18)).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &leaves.leaf(&host("a.test"), later(18)).unwrap()));
        let root = made.root.certificate().der();
        assert_eq!(verify(root, &second.cert, "a.test", later(40)), Ok(()));
        assert!(!Arc::ptr_eq(&second, &leaves.leaf(&host("b.test"), later(18)).unwrap()));
    }

    #[test]
    fn a_clock_set_back_shows_no_leaf_of_the_future() {
        let (_made, leaves) = leaves(&["a.test"]);
        let first = leaves.leaf(&host("a.test"), later(48)).unwrap();
        assert!(!Arc::ptr_eq(&first, &leaves.leaf(&host("a.test"), now()).unwrap()));
    }

    #[test]
    fn a_host_outside_the_names_gets_no_leaf() {
        let (_made, leaves) = leaves(&["a.test"]);
        for name in ["b.test", "x.a.test", "test"] {
            let refused = leaves.leaf(&host(name), now());
            assert!(matches!(refused, Err(CaError::OutsideNames { .. })), "{name}");
        }
        assert_eq!(api("api", &["a.test"]).hosts.len(), leaves.names().len());
    }

    #[test]
    fn agents_cannot_make_the_cache_grow_without_bound() {
        let (_made, leaves) = suffix_leaves();
        for number in 0..SHARDS * SHARD_LEAVES + 200 {
            leaves.leaf(&host(&format!("n{number}.a.test")), now()).unwrap();
        }
        let kept = leaves.shards.iter().map(|shard| shard.lock().unwrap().len());
        assert!(kept.clone().all(|count| count <= SHARD_LEAVES));
        assert!(kept.sum::<usize>() > SHARDS * SHARD_LEAVES / 2);
    }

    #[test]
    fn threads_share_what_one_has_minted() {
        let (made, leaves) = leaves(&["a.test"]);
        let (leaves, time) = (Arc::new(leaves), now());
        let threads = [(); 4].map(|()| {
            let leaves = Arc::clone(&leaves);
            thread::spawn(move || leaves.leaf(&host("a.test"), time).unwrap())
        });
        for leaf in threads.map(|thread| thread.join().unwrap()) {
            assert_eq!(verify(made.root.certificate().der(), &leaf.cert, "a.test", time), Ok(()));
        }
        let kept = leaves.leaf(&host("a.test"), time).unwrap();
        assert!(Arc::ptr_eq(&kept, &leaves.leaf(&host("a.test"), time).unwrap()));
    }
}
