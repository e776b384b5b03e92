//! The present issuing CA of one rule, with its leaves.
//!
//! The CA is replaced as a whole: a handshake keeps the leaf that it took, and the leaves of the
//! old CA go with it. Where there is no CA there is no leaf, and the rule's hosts are closed.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use rustls::sign::CertifiedKey;

use super::{CaError, Fault, IssuingCa, Leaves, TlsRule, tls_rule::rules_that_end_tls};
use crate::{
    locks::lock,
    policy::{Host, HostPattern, Policy, RuleName},
    reason::SecretCause,
};

/// The issuing CAs of a policy: one for each rule that ends TLS.
pub type RuleCas = HashMap<RuleName, Arc<RuleCa>>;

/// The issuing CA of one rule, if there is one now.
pub struct RuleCa {
    rule: RuleName,
    names: Vec<HostPattern>,
    leaves: ArcSwapOption<Leaves>,
    missing: Mutex<SecretCause>,
}

/// The reasons why there is no leaf to show.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// There is no issuing CA, or it has ended, for this cause.
    #[error("no issuing CA: {0}")]
    NoCa(SecretCause),
    /// There is a CA, but no leaf could be made.
    #[error("{0}")]
    Ca(CaError),
}

impl RuleCa {
    /// Creates the entry of a rule that has no CA yet.
    pub(super) fn empty(rule: RuleName, names: Vec<HostPattern>) -> Self {
        let missing = Mutex::new(SecretCause::VaultUnreachable);
        Self { rule, names, leaves: ArcSwapOption::empty(), missing }
    }

    fn fixed(ca: IssuingCa) -> Self {
        let names = ca.names().to_vec();
        let this = Self::empty(ca.rule().clone(), names);
        this.put(ca);
        this
    }

    /// Loads the CAs that `cloakroom ca issue` made for `policy` in `dir`. A CA that has ended
    /// counts as missing: its rule is closed, and no other.
    ///
    /// # Errors
    ///
    /// As [`IssuingCa::load`], for the first CA that is not right.
    pub fn load_all(
        dir: &std::path::Path,
        policy: &Policy,
        now: SystemTime,
    ) -> Result<RuleCas, CaError> {
        let load = |rule: TlsRule| {
            let ca = match IssuingCa::load(dir, &rule, now) {
                Ok(ca) => Self::fixed(ca),
                Err(CaError::Issuing { fault: Fault::EndsSoon(_), .. }) => {
                    let ended = Self::empty(rule.rule.clone(), rule.names);
                    ended.is_missing(SecretCause::LeaseEnded);
                    ended
                }
                Err(error) => return Err(error),
            };
            Ok((rule.rule, Arc::new(ca)))
        };
        rules_that_end_tls(policy)?.into_iter().map(load).collect()
    }

    /// Returns the rule.
    pub fn rule(&self) -> &RuleName {
        &self.rule
    }

    /// Returns the names that it is for.
    pub fn names(&self) -> &[HostPattern] {
        &self.names
    }

    /// Returns when the CA ends; `None` where there is none.
    pub fn ends(&self) -> Option<SystemTime> {
        self.leaves.load().as_ref().map(|leaves| leaves.ends())
    }

    /// Returns when the CA began and when it ends; `None` where there is none.
    pub fn life(&self) -> Option<(SystemTime, SystemTime)> {
        self.leaves.load().as_ref().map(|leaves| (leaves.begins(), leaves.ends()))
    }

    /// Returns the life that is left of a CA whose replacement is long overdue.
    pub fn overdue(&self, now: SystemTime) -> Option<Duration> {
        let leaves = self.leaves.load();
        let leaves = leaves.as_ref().filter(|leaves| now >= leaves.overdue_from())?;
        leaves.ends().duration_since(now).ok()
    }

    /// Returns the chain and the key to show to an agent that asks for `host`, if they have been
    /// made already.
    pub fn cached(&self, host: &Host, now: SystemTime) -> Option<Arc<CertifiedKey>> {
        let leaves = self.leaves.load();
        leaves.as_ref().filter(|leaves| now < leaves.ends())?.cached(host, now)
    }

    /// Returns the same, and makes them where they are missing.
    ///
    /// # Errors
    ///
    /// There is no CA, it has ended, or it is not for `host`.
    pub fn leaf(&self, host: &Host, now: SystemTime) -> Result<Arc<CertifiedKey>, LeafError> {
        let leaves = self.leaves.load();
        let leaves = self.usable(leaves.as_deref(), now).map_err(LeafError::NoCa)?;
        leaves.leaf(host, now).map_err(LeafError::Ca)
    }

    /// Returns why the rule's hosts are closed; `None` where there is a CA.
    pub fn missing(&self, now: SystemTime) -> Option<SecretCause> {
        self.usable(self.leaves.load().as_deref(), now).err()
    }

    fn usable<'a>(
        &self,
        leaves: Option<&'a Leaves>,
        now: SystemTime,
    ) -> Result<&'a Leaves, SecretCause> {
        match leaves {
            Some(leaves) if now < leaves.ends() => Ok(leaves),
            Some(_) => Err(SecretCause::LeaseEnded),
            None => Err(*lock(&self.missing)),
        }
    }

    /// Puts this CA, without any leaf of the one before, in force.
    pub(super) fn put(&self, ca: IssuingCa) {
        self.leaves.store(Some(Arc::new(Leaves::new(ca))));
    }

    /// Notes why there is no CA yet. A CA that is there stays until it ends.
    pub(super) fn is_missing(&self, cause: SecretCause) {
        *lock(&self.missing) = cause;
    }
}

impl fmt::Debug for RuleCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleCa").field("rule", &self.rule).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::testing::{Installation, api, host, later, now, policy};

    const DAYS: u64 = 24;

    #[test]
    fn an_ended_ca_closes_its_own_rule_alone() {
        let made = Installation::new();
        let both = |at| {
            let both = policy(vec![api("old", &["a.test"]), api("new", &["b.test"])]);
            RuleCa::load_all(&made.dir(), &both, at).unwrap()
        };
        made.issue(&policy(vec![api("old", &["a.test"])]), now());
        made.issue(&policy(vec![api("new", &["b.test"])]), later(50 * DAYS));
        let at = later(91 * DAYS);
        let cas = both(at);
        let leaf = |rule: &str, name: &str| cas[&RuleName(rule.into())].leaf(&host(name), at);
        let refused = leaf("old", "a.test").unwrap_err();
        assert!(matches!(refused, LeafError::NoCa(SecretCause::LeaseEnded)), "{refused}");
        assert!(leaf("new", "b.test").is_ok());
        std::fs::remove_file(made.dir().join("old.pem")).unwrap();
        let missing = policy(vec![api("old", &["a.test"])]);
        assert!(RuleCa::load_all(&made.dir(), &missing, at).is_err(), "none is a mistake");
    }

    #[test]
    fn a_ca_that_is_not_made_anew_counts_down() {
        let made = Installation::new();
        let one = policy(vec![api("api", &["a.test"])]);
        made.issue(&one, now());
        let cas = RuleCa::load_all(&made.dir(), &one, now()).unwrap();
        let life = cas[&RuleName("api".into())].life().expect("a CA");
        assert_eq!(life.1.duration_since(life.0).unwrap().as_secs() / 86_400, 90);
        let overdue = |days: u64| {
            let left = cas[&RuleName("api".into())].overdue(later(days * DAYS));
            left.map(|left| left.as_secs() / 86_400)
        };
        assert_eq!([overdue(0), overdue(62)], [None, None], "`ca issue` has had two days");
        assert_eq!([overdue(69), overdue(88)], [Some(20), Some(1)]);
        assert_eq!(overdue(91), None, "it has ended, which is another matter");
    }
}
