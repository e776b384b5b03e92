//! What a text in a request is good for: a placeholder by its binding, a ticket by the rule that it
//! was given by.

use std::{fmt, sync::Arc};

use crate::{
    policy::{Binding, Mint, Place, Placeholder},
    tickets::Ticket,
};

/// What a text that was found is good for.
#[derive(Clone)]
pub(super) enum Claim {
    /// A placeholder of this binding.
    Bound(Arc<Binding>),
    /// A ticket, and the rule that says where it may stand.
    Ticket(Arc<Mint>, Arc<Ticket>),
}

/// Whose a text is, as far as this group may know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// A placeholder, or a ticket, of this group at this API.
    Here(Placeholder),
    /// One of this group at other APIs, or other hosts, only.
    Elsewhere(Placeholder),
    /// What looks like a ticket, and is none that is good: it has ended, it is of another gateway
    /// or another group, or somebody made it up.
    Ended,
    /// Nothing that this group holds; another group's placeholder is no exception.
    Foreign,
}

impl Claim {
    /// Where the text may stand.
    pub(super) fn places(&self) -> &[Place] {
        match self {
            Self::Bound(binding) => &binding.places,
            Self::Ticket(mint, _) => &mint.places,
        }
    }

    /// How the audit names it.
    pub(super) fn label(&self) -> &Placeholder {
        match self {
            Self::Bound(binding) => &binding.placeholder,
            Self::Ticket(_, ticket) => &ticket.label,
        }
    }

    /// The text that stands as the other half of Basic, where the ticket knows it.
    pub(super) fn beside(&self) -> Option<&Arc<str>> {
        match self {
            Self::Bound(_) => None,
            Self::Ticket(_, ticket) => ticket.beside.as_ref(),
        }
    }

    /// Whether both have the same value.
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
