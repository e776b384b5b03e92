//! Why there is no plan.

use std::{error, fmt, sync::Arc};

use super::names::GATEWAY;
use crate::{ca::CaError, policy::GroupName};

/// Why there is no plan.
#[derive(Debug)]
pub enum PlanError {
    /// The configuration has no `[vault]`.
    NoVault,
    /// No address to bind tokens to.
    Unbound,
    /// Vault, HCL or a shell would read more in a text than it says.
    Pattern {
        /// What the text is.
        what: &'static str,
        /// The text, printable.
        text: String,
    },
    /// The name of a token role is that of a policy which is somebody else's.
    Reserved(GroupName, Arc<str>),
    /// Two groups have one token role, whose tokens would read the secrets of both.
    SharedRole(GroupName, GroupName, Arc<str>),
    /// There is no policy of that name in the plan.
    NoPolicy(String),
    /// The id of the AppRole is not random.
    Guessable(Arc<str>),
    /// A rule whose names cannot be put into a name constraint.
    Ca(CaError),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVault => {
                f.write_str("the configuration has no [vault]: there is nothing to plan")
            }
            Self::Unbound => f.write_str(
                "no address to bind tokens to: name the gateway's with --from ADDRESS or PREFIX",
            ),
            Self::Pattern { what, text } => write!(
                f,
                "{what} `{text}`: a Vault policy would read it as more than this one text; use \
                 another without patterns, quotes and control characters"
            ),
            Self::Reserved(group, role) => write!(
                f,
                "group `{group}`: a policy named `{role}` is not its own; set another vault_role"
            ),
            Self::SharedRole(one, other, role) => write!(
                f,
                "groups `{one}` and `{other}` read different secrets with one token role `{role}`, \
                 which would give each those of both; set another vault_role for one of them"
            ),
            Self::NoPolicy(name) => write!(
                f,
                "the plan has no policy `{}`; its names are `{GATEWAY}` and each vault_role",
                name.escape_default()
            ),
            Self::Guessable(role_id) => write!(
                f,
                "role_id `{}` can be guessed, and whoever knows it can try SecretIDs: write a random \
                 one, as `uuidgen` or `openssl rand -hex 16` prints it; the plan gives it to the role",
                role_id.escape_default()
            ),
            Self::Ca(error) => error.fmt(f),
        }
    }
}

impl error::Error for PlanError {}
