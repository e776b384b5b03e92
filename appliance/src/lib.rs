//! Cloakroom: an AI agent carries a claim ticket; the coat stays behind the counter.
//!
//! The modules stand in an order, and `tests/floor_plan.rs` keeps it: a module uses only modules
//! that stand below it. `policy`, `decide`, `substitute`, `scrub` and the parsers of `peek` do no
//! I/O and read no clock.
//!
//! ```text
//! accept → identify → peek → decide ┬→ splice      opaque, byte for byte
//!                                   ├→ tcp         the same, by the address that DNS told the agent
//!                                   ├→ intercept   TLS ends here; placeholders become secrets
//!                                   ├→ inspect     TLS ends here; authority, method, path checked
//!        └→ onboarding: the gateway's own address tells what to trust, where policy says so
//!                                   └→ refuse      RST, TLS alert or HTTP answer, with a reason
//! ```

pub mod cli;
pub mod daemon;

pub mod explain;

pub mod dns;
pub mod intercept;
pub mod splice;

pub mod policy_snapshot;

pub mod onboarding;

pub mod vault;

pub mod audit;
pub mod packets;

pub mod refuse;

pub mod dial;

pub mod decide;

pub mod peek;

pub mod accept;
pub mod limits;

pub mod identity;

pub mod scrub;
pub mod substitute;

pub mod tickets;

pub mod ca;
pub mod secrets;

pub mod config;

pub mod catalogue;

pub mod control;
pub mod quarantine;
pub mod tls;

pub mod policy;

pub mod harden;
pub mod health;
pub mod metrics;
pub mod phase;
pub mod reason;

pub mod net;

mod locks;
mod seldom;

#[cfg(test)]
mod documented;
