//! The reason why a request head is not forwarded, with its details.

use super::claim::Owner;
use crate::{policy::Placeholder, reason::Reason};

/// The reason why a head is not forwarded, with its details.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The reason word.
    pub reason: Reason,
    /// The placeholder that the request carried, where it is one of this group's.
    pub placeholder: Option<Placeholder>,
    /// The place of the credential that was refused, as in `header x-api-key` or `query key`.
    pub credential: Option<String>,
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self { reason, placeholder: None, credential: None }
    }
}

/// Returns the denial for texts that are not where they belong: the most useful reason that is
/// true.
pub(super) fn astray(owners: impl Iterator<Item = Owner>) -> Denial {
    let mut denial = Denial::from(Reason::ForeignCredential);
    for owner in owners {
        let (reason, placeholder) = match owner {
            Owner::Here(placeholder) => (Reason::PlaceholderWrongPlace, placeholder),
            Owner::Elsewhere(_) if denial.placeholder.is_some() => continue,
            Owner::Elsewhere(placeholder) => (Reason::PlaceholderWrongHost, placeholder),
            Owner::Ended if denial.placeholder.is_none() => {
                denial.reason = Reason::TicketEnded;
                continue;
            }
            Owner::Ended | Owner::Foreign => continue,
        };
        denial = Denial { placeholder: Some(placeholder), ..reason.into() };
        if denial.reason == Reason::PlaceholderWrongPlace {
            break;
        }
    }
    denial
}
