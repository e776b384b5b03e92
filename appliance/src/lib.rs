//! Cloakroom: an AI agent carries a claim ticket; the coat stays behind the counter.
//!
//! The modules stand in the order in which a connection meets them. `policy`, `decide`,
//! `substitute`, `scrub` and the parsers of `peek` do no I/O and ask for no clock.
//!
//! ```text
//! accept → identify → peek → decide ┬→ splice      opaque, byte for byte
//!                                   ├→ tcp         the same, by the address that DNS told the agent
//!                                   ├→ intercept   TLS ends here; placeholders become secrets
//!                                   ├→ inspect     TLS ends here; authority, method, path checked
//!                                   └→ refuse      RST, TLS alert or HTTP answer, with a reason
//! ```

pub mod harden;
pub mod health;
pub mod metrics;
pub mod phase;
pub mod quarantine;
pub mod reason;

pub mod config;
pub mod policy;

pub mod accept;
pub mod packets;
pub mod peek;

pub mod decide;
pub mod dial;
pub mod dns;
pub mod rulebook;

pub mod intercept;
pub mod splice;

pub mod refuse;
pub mod scrub;
pub mod substitute;

pub mod ca;
pub mod plan;
pub mod secrets;
pub mod tls;

pub mod audit;
pub mod control;
pub mod daemon;

pub mod cli;

mod seldom;
mod straight;

#[cfg(test)]
mod documented;
