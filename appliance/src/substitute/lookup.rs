//! The one search for placeholders and tickets.

use std::{ops::Deref, sync::Arc, time::Instant};

use super::{
    claim::{Claim, Owner},
    rules::{SubstitutionRules, is},
};
use crate::{
    policy::Host,
    tickets::{Ticket, Tickets, looks_like_ticket},
};

/// The rules of one request's API and the tickets of its group, against which its credentials are
/// checked.
#[derive(Clone, Copy)]
pub struct CredentialLookup<'a> {
    rules: &'a SubstitutionRules,
    tickets: Option<TicketsAt<'a>>,
}

/// The tickets that may be good for one request.
#[derive(Clone, Copy)]
pub struct TicketsAt<'a> {
    /// The tickets of all groups.
    pub all: &'a Tickets,
    /// The host that the request is for.
    pub host: &'a Host,
    /// The time of the check.
    pub now: Instant,
}

impl<'a> From<&'a SubstitutionRules> for CredentialLookup<'a> {
    /// Makes a lookup without tickets.
    fn from(rules: &'a SubstitutionRules) -> Self {
        Self { rules, tickets: None }
    }
}

impl<'a> CredentialLookup<'a> {
    /// Makes a lookup with tickets.
    pub fn new(rules: &'a SubstitutionRules, tickets: TicketsAt<'a>) -> Self {
        Self { rules, tickets: Some(tickets) }
    }
}

impl Deref for CredentialLookup<'_> {
    type Target = SubstitutionRules;

    fn deref(&self) -> &SubstitutionRules {
        self.rules
    }
}

impl CredentialLookup<'_> {
    /// Returns the claims of a text here. One text may be the placeholder of several bindings.
    pub(super) fn claims(&self, text: &[u8]) -> impl Iterator<Item = Claim> {
        let bound = self.own.iter().filter(move |binding| is(&binding.placeholder, text));
        let bound = bound.map(|binding| Claim::Bound(Arc::clone(binding)));
        bound.chain(self.ticket(text).and_then(|ticket| self.redeemed(ticket)))
    }

    /// Returns the owner of a text.
    pub(super) fn owner(&self, text: &[u8]) -> Owner {
        if let Some(claim) = self.claims(text).next() {
            return Owner::Here(claim.label().clone());
        }
        if let Some(placeholder) = self.elsewhere(text) {
            return Owner::Elsewhere(placeholder.clone());
        }
        match self.ticket(text) {
            Some(ticket) => Owner::Elsewhere(ticket.label.clone()),
            None if looks_like_ticket(text) && self.are_minted() => Owner::Ended,
            None => Owner::Foreign,
        }
    }

    /// Whether the decoded text of a credential is a placeholder or a ticket of this group, at this
    /// API or another.
    pub(super) fn is_known(&self, text: &[u8]) -> bool {
        matches!(self.owner(text), Owner::Here(_) | Owner::Elsewhere(_))
    }

    fn ticket(&self, text: &[u8]) -> Option<Arc<Ticket>> {
        let tickets = self.tickets?;
        tickets.all.find(self.group(), text, tickets.now)
    }

    /// Returns the claim of a ticket by its rule as it is now, where this host takes its credential
    /// back.
    fn redeemed(&self, ticket: Arc<Ticket>) -> Option<Claim> {
        let host = self.tickets?.host;
        let mut mints = self.redeems().iter();
        let mint = mints.find(|mint| mint.name == ticket.mint && mint.is_wanted_at(host))?;
        Some(Claim::Ticket(Arc::clone(mint), ticket))
    }
}
