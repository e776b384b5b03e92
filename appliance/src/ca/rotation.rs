//! Keeps every rule's issuing CA good. A CA is made when its rule appears and replaced when a
//! little over half of its life is over, long before only a third is left; where Vault does not
//! help, the request is repeated with back-off. A rule without a CA stays closed; a CA serves until
//! it ends and not longer.
//!
//! There is one task for each rule. It ends when the rule goes or the rotation is dropped. At most
//! four tasks ask at once, so that a start with many rules is no burst.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::{BoxFuture, join_all};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
};

use super::{
    CaError, RuleCa, RuleCas, SignIntermediate, Signed, Terms, TlsRule, random_bytes,
    tls_rule::rules_that_end_tls, vault::SigningRequest,
};
use crate::{
    config::PkiSettings, locks::lock, policy::Policy, reason::SecretCause, secrets::FetchError,
};

/// The signer of issuing CAs: Vault's PKI engine.
pub trait Signer: Send + Sync + 'static {
    /// Has the engine at `mount` sign. Ends within a time that the signer bounds.
    fn sign<'a>(
        &'a self,
        mount: &'a str,
        request: &'a SignIntermediate,
    ) -> BoxFuture<'a, Result<Signed, FetchError>>;
}

/// The issuing CAs of a gateway whose Vault signs them.
pub struct Rotation {
    services: Arc<RenewalServices>,
    tended: Mutex<Vec<Tended>>,
}

struct RenewalServices {
    signer: Arc<dyn Signer>,
    terms: Terms,
    at_once: Semaphore,
}

/// A rule's CA, and the task that keeps it good.
struct Tended {
    ca: Arc<RuleCa>,
    /// Whether Vault has answered, with a certificate or an error.
    tried: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

/// The reasons why there is no new CA.
enum RenewalError {
    Vault(FetchError),
    Ca(CaError),
}

impl Rotation {
    /// Reads the root. Sends no request yet.
    ///
    /// # Errors
    ///
    /// The file of the root cannot be used.
    pub fn new(signer: Arc<dyn Signer>, settings: &PkiSettings) -> Result<Self, CaError> {
        let terms = Terms::read(settings)?;
        let services = RenewalServices { signer, terms, at_once: Semaphore::new(AT_ONCE) };
        Ok(Self { services: Arc::new(services), tended: Mutex::default() })
    }

    /// Returns the CAs of a policy: the existing one for each rule with the same names as before,
    /// and an empty one for every other, until [`Rotation::tend`] has it made.
    ///
    /// # Errors
    ///
    /// A rule's names cannot be put into a name constraint.
    ///
    /// A rule whose names cannot be put into a name constraint.
    pub fn cas(&self, policy: &Policy) -> Result<RuleCas, CaError> {
        let tended = lock(&self.tended);
        let mut cas = RuleCas::new();
        for TlsRule { rule, names, .. } in rules_that_end_tls(policy)? {
            let same = |ca: &RuleCa| *ca.rule() == rule && ca.names() == names;
            let kept = tended.iter().find(|tended| same(&tended.ca));
            let ca = match kept {
                Some(tended) => Arc::clone(&tended.ca),
                None => {
                    // This makes sure that the later request to Vault can be expressed.
                    SigningRequest::new(&rule, &names, &self.services.terms)?;
                    Arc::new(RuleCa::empty(rule.clone(), names))
                }
            };
            cas.insert(rule, ca);
        }
        Ok(cas)
    }

    /// Keeps exactly these CAs good from now on. Needs a runtime.
    pub fn tend(&self, cas: &RuleCas) {
        let mut tended = lock(&self.tended);
        let is_in = |ca: &Arc<RuleCa>| cas.values().any(|other| Arc::ptr_eq(ca, other));
        tended.retain(|tended| is_in(&tended.ca));
        for ca in cas.values() {
            if !tended.iter().any(|tended| Arc::ptr_eq(&tended.ca, ca)) {
                tended.push(Tended::start(Arc::clone(ca), Arc::clone(&self.services)));
            }
        }
    }

    /// Waits until Vault has answered once for each CA, or until `deadline`.
    pub async fn first_round(&self, deadline: Instant) {
        let tried: Vec<_> = {
            let tended = lock(&self.tended);
            tended.iter().map(|tended| tended.tried.clone()).collect()
        };
        let all = join_all(tried.into_iter().map(|mut tried| async move {
            // An error means that the task has gone.
            let _ = tried.wait_for(|tried| *tried).await;
        }));
        // The hosts of a CA that is late stay closed until it is there.
        let _ = tokio::time::timeout_at(deadline.into(), all).await;
    }
}

impl Tended {
    fn start(ca: Arc<RuleCa>, services: Arc<RenewalServices>) -> Self {
        let (told, tried) = watch::channel(false);
        let task = tokio::spawn(keep_good(Arc::clone(&ca), services, told));
        Self { ca, tried, task }
    }
}

impl Drop for Tended {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps one CA good. Never ends by itself.
async fn keep_good(ca: Arc<RuleCa>, services: Arc<RenewalServices>, told: watch::Sender<bool>) {
    let mut failures = 0;
    loop {
        let asked = SystemTime::now();
        let renewed = services.renew(&ca, asked).await;
        told.send_replace(true);
        match renewed {
            Ok(ends) => {
                failures = 0;
                let life = ends.duration_since(asked).unwrap_or_default();
                wait_until(asked + share(life, RENEW_FROM, RENEW_UNTIL)).await;
            }
            Err(failure) => {
                failures += 1;
                ca.is_missing(failure.cause());
                report(&ca, &failure);
                tokio::time::sleep(back_off(failures)).await;
            }
        }
    }
}

impl RenewalServices {
    /// Replaces the CA by a new one and returns when that ends.
    async fn renew(&self, ca: &RuleCa, now: SystemTime) -> Result<SystemTime, RenewalError> {
        // The semaphore is never closed.
        let _turn = self.at_once.acquire().await;
        let ask =
            SigningRequest::new(ca.rule(), ca.names(), &self.terms).map_err(RenewalError::Ca)?;
        let signed = self.signer.sign(self.terms.mount(), &ask.request).await;
        let made = ask.take(&signed.map_err(RenewalError::Vault)?, &self.terms, SystemTime::now());
        let made = made.map_err(RenewalError::Ca)?;
        let (rule, ends) = (ca.rule(), made.ends());
        let seconds = ends.duration_since(now).unwrap_or_default().as_secs();
        ca.put(made);
        tracing::info!(%rule, seconds, "Vault signed a new issuing CA");
        Ok(ends)
    }
}

fn report(ca: &RuleCa, failure: &RenewalError) {
    let (rule, cause) = (ca.rule(), failure.cause());
    let left = ca.ends().and_then(|ends| ends.duration_since(SystemTime::now()).ok());
    let text = match failure {
        RenewalError::Vault(error) => error.text().to_owned(),
        RenewalError::Ca(error) => error.to_string(),
    };
    match left {
        Some(left) => {
            let seconds = left.as_secs();
            tracing::warn!(%rule, %cause, seconds, "no new issuing CA, the old one still lives: {text}");
        }
        None => tracing::error!(%rule, %cause, "no issuing CA, its hosts are closed: {text}"),
    }
}

impl RenewalError {
    const fn cause(&self) -> SecretCause {
        match self {
            Self::Vault(error) => error.cause(),
            // Vault returned a certificate that is not fit for use.
            Self::Ca(_) => SecretCause::ValueInvalid,
        }
    }
}

/// Waits by the wall clock, which decides when a certificate ends. A clock that was set forward, or
/// a machine that slept, is noticed within a minute.
async fn wait_until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        if left.is_zero() {
            break;
        }
        tokio::time::sleep(left.min(LOOK_EVERY)).await;
    }
}

/// Returns the pause after so many failures: it doubles from a second to a minute, less up to a
/// half.
fn back_off(failures: u32) -> Duration {
    let full = RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(6)).min(RETRY_MOST);
    share(full, 50, 100)
}

/// Returns a random part of `time`, between `least` and `most` hundredths, so that gateways that
/// started together do not stay together.
fn share(time: Duration, least: u32, most: u32) -> Duration {
    // Without randomness there is no jitter, and no key either.
    let random = random_bytes::<2>().map_or(0, u16::from_be_bytes);
    let hundredths = least + u32::from(random) % (most - least + 1);
    time.saturating_mul(hundredths) / 100
}

/// Requests to Vault at the same time.
const AT_ONCE: usize = 4;
/// Hundredths of a CA's life after which it is replaced. The time until only a third is left is for
/// further attempts.
const RENEW_FROM: u32 = 50;
const RENEW_UNTIL: u32 = 60;
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_is_renewed_before_its_last_third() {
        let life = Duration::from_secs(9_000);
        for _ in 0..1_000 {
            let due = share(life, RENEW_FROM, RENEW_UNTIL);
            assert!(due >= life / 2 && due < life * 2 / 3, "{due:?}");
        }
    }

    #[test]
    fn failures_are_retried_within_a_minute_and_ever_less_often() {
        for failures in 1..100 {
            let wait = back_off(failures);
            let full = Duration::from_secs(1 << (failures - 1).min(6)).min(RETRY_MOST);
            assert!(wait >= full / 2 && wait <= full, "{failures}: {wait:?}");
        }
    }
}
