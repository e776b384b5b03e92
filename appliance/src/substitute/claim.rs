//! The claim of a text in a request: a placeholder is good by its binding, a ticket by the mint
//! that it came from.

use std::{fmt, sync::Arc};

use crate::{
    policy::{Binding, Mint, Place, Placeholder},
    tickets::Ticket,
};

/// A claim of a text that was found.
#[derive(Clone)]
pub(super) enum Claim {
    /// A placeholder of this binding.
    Bound(Arc<Binding>),
    /// A ticket, and the rule that lists its places.
    Ticket(Arc<Mint>, Arc<Ticket>),
}

/// The owner of a text, as far as this group may know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// A placeholder, or a ticket, of this group at this API.
    Here(Placeholder),
    /// A placeholder or ticket of this group at other APIs, or other hosts, only.
    Elsewhere(Placeholder),
    /// A text that looks like a ticket and is no good one: it has ended, it belongs to another
    /// gateway or another group, or somebody invented it.
    Ended,
    /// No text that this group holds; another group's placeholder is no exception.
    Foreign,
}

impl Claim {
    /// Returns the places where the text may stand.
    pub(super) fn places(&self) -> &[Place] {
        match self {
            Self::Bound(binding) => &binding.places,
            Self::Ticket(mint, _) => &mint.places,
        }
    }

    /// Returns the audit's name for it.
    pub(super) fn label(&self) -> &Placeholder {
        match self {
            Self::Bound(binding) => &binding.placeholder,
            Self::Ticket(_, ticket) => &ticket.label,
        }
    }

    /// Returns the text that stands as the other half of Basic, where the ticket knows it.
    pub(super) fn beside(&self) -> Option<&Arc<str>> {
        match self {
            Self::Bound(_) => None,
            Self::Ticket(_, ticket) => ticket.beside.as_ref(),
        }
    }

    /// Whether both claims have the same value.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bound(one), Self::Bound(other)) => Arc::ptr_eq(one, other),
            (Self::Ticket(_, one), Self::Ticket(_, other)) => Arc::ptr_eq(&one.value, &other.value),
            _ => false,
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.label().fmt(f)
    }
}
