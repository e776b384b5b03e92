//! The reasons why there is no plan.

use std::sync::Arc;

use super::names::GATEWAY;
use crate::{ca::CaError, policy::GroupName};

/// The reason why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The configuration has no `[vault]`.
    #[error("the configuration has no [vault]")]
    NoVault,
    /// No address to bind tokens to.
    #[error("no address to bind tokens to: name the gateway's with --from ADDRESS or PREFIX")]
    Unbound,
    /// Vault, HCL or a shell would give a text more meanings than it has.
    #[error(
        "{what} `{text}`: a Vault policy would read it as more than this one text; use another \
         without patterns, quotes and control characters"
    )]
    Pattern {
        /// The kind of text.
        what: &'static str,
        /// The text, printable.
        text: String,
    },
    /// The name of a token role is that of another owner's policy.
    #[error("group `{0}`: a policy named `{1}` is not its own; set another vault_role")]
    Reserved(GroupName, Arc<str>),
    /// Two groups have one token role, whose tokens would read the secrets of both.
    #[error(
        "groups `{0}` and `{1}` read different secrets with one token role `{2}`, which would give \
         each those of both; set another vault_role for one of them"
    )]
    SharedRole(GroupName, GroupName, Arc<str>),
    /// There is no policy of that name in the plan.
    #[error(
        "the plan has no policy `{}`; its names are `{}` and each vault_role",
        .0.escape_default(),
        GATEWAY
    )]
    NoPolicy(String),
    /// The id of the AppRole is not random.
    #[error(
        "role_id `{}` can be guessed, and whoever knows it can try SecretIDs: write a random one, \
         as `uuidgen` or `openssl rand -hex 16` prints it; the plan gives it to the role",
        .0.escape_default()
    )]
    Guessable(Arc<str>),
    /// A rule whose names cannot be put into a name constraint.
    #[error("{0}")]
    Ca(CaError),
}
