//! The audit: exactly one record for each connection and each intercepted request, after one record
//! of the start.
//!
//! A slot in the writer's queue is reserved before anything is done, and a record that is dropped
//! writes itself, so no path escapes the audit, not even a panic. Where no slot is free, nothing is
//! done: the gateway would rather refuse than act unseen. Fields that an agent fills are capped in
//! bytes and escaped by JSON. Refused packets, and connections beyond an agent's rate, which are
//! refused unread, are summed up: one record for each agent and interval.

mod act;
mod connections;
mod dns;
mod host_check;
mod kind;
mod line;
mod output;
mod packets;
mod record;
mod stamp;
mod start;
mod trouble;
mod writer;

pub use act::{Act, ActRecord};
pub use connections::over_rate;
pub use dns::{DnsRecord, DnsSummary};
pub use host_check::{HostCheckEvent, host_check};
pub use kind::RecordKind;
pub use line::{AnsweredField, AuditLine};
pub use output::files;
pub use packets::RefusedPackets;
pub use record::{Record, RequestRecord, Traffic, is_cut};
pub use stamp::time_of;
pub use trouble::Trouble;
pub use writer::{RecordSlot, Sink, Unavailable, Writer, make_folder};
