//! From a refusal to what the agent sees on the wire: one total map.

use crate::reason::Reason;

/// A denial. It is a value, not an error: nothing broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The reason word.
    pub reason: Reason,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason }
    }
}
