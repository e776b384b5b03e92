//! The lab: a small internet that one test makes for itself and that vanishes with it.
//!
//! ```text
//!  agent   192.0.2.10   ── agents0 ┐                       ┌ 198.51.100.x origins
//!                                  ├ gateway ── wan0 ── internet
//!  agent2  192.0.2.140  ── agents1 ┘  203.0.113.2          ├ 203.0.113.53  DNS
//!                                                          └ 203.0.113.200 Vault
//! ```
//!
//! Every test runs in its own mount, network and process namespaces (see [`sandbox`]), so that
//! nothing it makes can outlive it. The gateway's kernel *does* forward, and the internet has
//! routes to the agents: without the gateway's packet rules an agent reaches every origin directly,
//! so a hole shows at the origin and is not hidden by a missing route.
//!
//! Assertions should check what an [`origin::Origin`] received and the audit record first, and only
//! then what the agent saw. All addresses and names are those reserved for documentation.

pub mod attack;
pub mod audit;
mod capture;
pub mod client;
pub mod datagrams;
pub mod dns;
pub mod gateway;
pub mod influx;
pub mod load;
pub mod net;
pub mod origin;
pub mod pki;
pub mod postgres;
pub mod sandbox;
pub mod slow;
pub mod ssh;
pub mod tools;
pub mod vault;
pub mod wait;
pub mod websocket;
pub mod wire;
pub mod world;

pub use net::Lab;
pub use sandbox::sandboxed;
pub use world::World;
