//! Why a request head is not forwarded.

use super::claim::Owner;
use crate::{policy::Placeholder, reason::Reason};

/// Why a head is not forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The reason word.
    pub reason: Reason,
    /// The placeholder that the request carried, where it is one of this group's.
    pub placeholder: Option<Placeholder>,
    /// Where the credential stands that is not good, as in `header x-api-key` or `query key`.
    pub credential: Option<String>,
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self { reason, placeholder: None, credential: None }
    }
}

/// The denial for texts that are not where they belong: the most useful word that is true.
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
