//! Placeholders in a request become secrets: in its head, and in the body where a binding names a
//! place there.
//!
//! [`SubstitutionRules`] say what one group's placeholders mean at one API; [`examine()`] checks a
//! head, and [`examine_whole()`] a head with its body, against them without changing it;
//! [`Substitution::apply`] writes the values. A value can only reach a request through a
//! [`Substitution`], and one is only made of a request in which every credential is, byte for byte,
//! a placeholder in a place that its binding lists, each in a field or under a name of its own.
//! Everything else is a denial: a credential that is unknown, altered or embedded is refused, never
//! forwarded, alone or beside a good one. Text that is no credential by its name is not examined.

mod answer;
mod apply;
mod aws;
mod basic;
mod body;
mod claim;
mod cookies;
mod denial;
mod examine;
mod json;
mod locate;
mod lookup;
mod rules;
mod signing;
mod splice;
mod subprotocol;
mod target;

pub use answer::{MintedAnswer, find_minted};
pub use apply::Substitution;
pub use denial::Denial;
pub use examine::{examine, examine_whole};
pub use lookup::{CredentialLookup, TicketsAt};
pub use rules::{Scope, SubstitutionRules, trailers_carry_credential};
pub use signing::Signing;

#[cfg(test)]
mod bodies;
#[cfg(test)]
mod offers;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod redeemed;
#[cfg(test)]
mod signatures;
#[cfg(test)]
mod targets;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
