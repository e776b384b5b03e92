//! The agents' resolver: every DNS query of an agent, to whatever address, is answered here.
//!
//! A name that a rule of the agent's group lists is resolved through the gateway's own
//! [`crate::dial::Resolver`]. Every other name does not exist, and nobody is asked about it.
//! Letters that an agent chose leave in a query only in the place of the star of a `*.` rule, and
//! get no further than the listed zone's own servers. Only A and AAAA are told, and never an
//! address that the gateway would not dial itself. Errs towards no answer: a packet that is no
//! query, or comes too fast, is dropped; an odd query is refused.
//!
//! [`message`] is the pure part. The rest has one thread of its own, so that a flood of queries
//! takes no time from the flows.

mod agents;
mod message;
mod query_handler;
mod server;
mod tcp;
mod udp;

pub use message::{Asker, DnsQuestion, DnsReply, QueryVerdict, RefusedQuery, answer};
pub use query_handler::QueryHandler;
pub use server::DnsServer;
