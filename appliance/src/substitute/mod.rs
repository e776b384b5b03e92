//! Placeholders in a request head become secrets.
//!
//! [`Rules`] are what one group's placeholders mean at one API; [`examine()`] reads a head against
//! them without changing it; [`Plan::apply`] writes the values. A value can only reach a head
//! through a plan, and a plan is only made of a head in which every credential is, byte for byte,
//! a placeholder in a place that its binding lists, each in a field or under a name of its own. Everything else is a
//! denial: a credential that is unknown, altered or embedded is refused, never forwarded, alone or
//! beside a good one. Text that is no credential by its name is not looked at.

mod apply;
mod basic;
mod denial;
mod examine;
mod locate;
mod rules;
mod subprotocol;
mod target;

pub use apply::Plan;
pub use denial::Denial;
pub use examine::examine;
pub use rules::{Rules, Scope, trailers_carry_credential};

#[cfg(test)]
mod offers;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod table;
#[cfg(test)]
mod targets;
#[cfg(test)]
mod world;
