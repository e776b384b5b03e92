//! The certificates that agents see on intercepted hosts: root, issuing CAs, leaves.
//!
//! Agents trust the root. Its key is opened by the short-lived `cloakroom ca` and never by the
//! daemon. The root signs one *issuing CA* for each rule that ends TLS, critically constrained to
//! that rule's names and to no IP address, so that a stolen issuing key is good for nothing else.
//! An issuing CA signs leaves of one name that live for a day.
//!
//! With `[vault.pki]` the root is in Vault instead, or above Vault's CA: the daemon makes each
//! issuing CA's key in memory, has Vault sign it, and replaces it long before it ends.
//!
//! Errs towards refusal: an issuing CA that says anything else than policy says is not used, and a
//! doubtful one is replaced by `cloakroom ca issue`, never patched.

mod check;
mod error;
mod folder;
mod issue;
mod issuing;
mod key;
mod leaf;
mod name_constraints;
mod parts;
mod root;
mod rotation;
mod rule_ca;
#[cfg(test)]
pub(crate) mod testing;
mod tls_rule;
mod vault;

pub use error::{CaError, Fault, FileFault};
pub use issue::{IssueOutcome, Issued, issue};
pub use issuing::IssuingCa;
pub use leaf::Leaves;
pub use root::{Root, RootCertificate};
pub use rotation::{Rotation, Signer};
pub use rule_ca::{LeafError, RuleCa, RuleCas};
pub use tls_rule::TlsRule;
#[cfg(test)]
pub(crate) use vault::tests::{Engine, EngineChange};
pub(crate) use vault::{Probes, probes};
pub use vault::{SAID, SignIntermediate, Signed, Terms, policy_hcl, signing_path};

use self::{
    parts::{
        BACKDATE, DAY, HOUR, constraint_names, date, one_certificate, random_bytes, random_serial,
        unix_seconds,
    },
    tls_rule::rules_that_end_tls,
};
