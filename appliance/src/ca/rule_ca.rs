//! The issuing CA of one rule as it is now, with its leaves.
//!
//! It is swapped whole: a handshake keeps the leaf it took, and the leaves of a CA that was
//! replaced go with it. Where there is no CA there is no leaf, and the rule's hosts are closed.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use rustls::sign::CertifiedKey;

use super::{CaError, IssuingCa, Leaves, TlsRule, issue::rules_that_end_tls};
use crate::{
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

/// Why there is no leaf to show.
#[derive(Debug)]
pub enum NoLeaf {
    /// There is no issuing CA, or it has ended, because of this.
    NoCa(SecretCause),
    /// There is one, and no leaf could be made.
    Ca(CaError),
}

impl RuleCa {
    /// Without a CA so far.
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

    /// Loads the CAs that `cloakroom ca issue` made for `policy` in `dir`.
    ///
    /// # Errors
    ///
    /// As [`IssuingCa::load`], for the first that is not right.
    pub fn load_all(
        dir: &std::path::Path,
        policy: &Policy,
        now: SystemTime,
    ) -> Result<RuleCas, CaError> {
        let load = |rule: TlsRule| {
            let ca = IssuingCa::load(dir, &rule, now)?;
            Ok((rule.rule, Arc::new(Self::fixed(ca))))
        };
        rules_that_end_tls(policy)?.into_iter().map(load).collect()
    }

    /// The rule.
    pub fn rule(&self) -> &RuleName {
        &self.rule
    }

    /// The names that it is for.
    pub fn names(&self) -> &[HostPattern] {
        &self.names
    }

    /// When the CA ends; `None` where there is none.
    pub fn ends(&self) -> Option<SystemTime> {
        self.leaves.load().as_ref().map(|leaves| leaves.ends())
    }

    /// When the CA began and when it ends; `None` where there is none.
    pub fn life(&self) -> Option<(SystemTime, SystemTime)> {
        self.leaves.load().as_ref().map(|leaves| (leaves.begins(), leaves.ends()))
    }

    /// How long the CA has left, where that is less than a third of its life: another one should have
    /// come before.
    pub fn nears_its_end(&self, now: SystemTime) -> Option<Duration> {
        let (begins, ends) = self.life()?;
        let left = ends.duration_since(now).unwrap_or_default();
        let life = ends.duration_since(begins).unwrap_or_default();
        (left < life / 3).then_some(left)
    }

    /// The chain and the key to show to an agent that asks for `host`, where they have been made
    /// already.
    pub fn kept(&self, host: &Host, now: SystemTime) -> Option<Arc<CertifiedKey>> {
        let leaves = self.leaves.load();
        leaves.as_ref().filter(|leaves| now < leaves.ends())?.kept(host, now)
    }

    /// The same, made where there are none.
    ///
    /// # Errors
    ///
    /// There is no CA, it has ended, or it is not for `host`.
    pub fn leaf(&self, host: &Host, now: SystemTime) -> Result<Arc<CertifiedKey>, NoLeaf> {
        let leaves = self.leaves.load();
        let leaves = self.usable(leaves.as_deref(), now).map_err(NoLeaf::NoCa)?;
        leaves.leaf(host, now).map_err(NoLeaf::Ca)
    }

    /// Why the rule's hosts are closed; `None` where there is a CA.
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
            None => Err(*self.missing.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// From now on this CA, and no leaf of the one before.
    pub(super) fn put(&self, ca: IssuingCa) {
        self.leaves.store(Some(Arc::new(Leaves::new(ca))));
    }

    /// Why there is none yet. One that is there stays until it ends.
    pub(super) fn is_missing(&self, cause: SecretCause) {
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = cause;
    }
}

impl fmt::Debug for RuleCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleCa").field("rule", &self.rule).finish_non_exhaustive()
    }
}

impl fmt::Display for NoLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCa(cause) => write!(f, "no issuing CA: {cause}"),
            Self::Ca(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for NoLeaf {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::testing::{Installation, later, now};

    #[test]
    fn a_ca_counts_down_in_the_last_third_of_its_life_and_then_is_missing() {
        let (_installation, ca) = Installation::with("openai", &["api.openai.example"]);
        let (begins, ends) = (ca.begins(), ca.ends());
        let ca = RuleCa::fixed(ca);
        assert_eq!(ca.life(), Some((begins, ends)));
        assert_eq!((ca.nears_its_end(now()), ca.missing(now())), (None, None));
        let hours = ends.duration_since(begins).unwrap().as_secs() / 3_600;
        let late = later(hours * 3 / 4);
        let left = ca.nears_its_end(late).expect("it counts down");
        assert_eq!(late + left, ends);
        assert_eq!(ca.missing(late), None, "and is good until then");
        assert_eq!(ca.missing(ends), Some(SecretCause::LeaseEnded));
    }
}
