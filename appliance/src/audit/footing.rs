//! What the audit says about the ground that the packet rules lean on: the kernel's settings, the
//! guard, and the rules themselves.

use std::fmt::Display;

use serde::Serialize;

use super::{
    kind::Kind,
    stamp::now,
    writer::{Entry, Slot},
};
use crate::{metrics::Metrics, packets::PacketsError};

/// What became of the ground.
#[derive(Debug)]
pub enum Footing<'a> {
    /// Something is missing that the daemon may not set right: new connections are reset.
    Closed(&'a str),
    /// All is there again.
    Open,
    /// Somebody else changed the packet rules, and they are installed again.
    Repaired(&'a PacketsError),
}

/// Writes its record, with what was missing or changed as the cause.
pub fn footing(slot: Slot, footing: &Footing<'_>) {
    let (record, cause): (_, Option<&dyn Display>) = match footing {
        Footing::Closed(doubt) => (Kind::Close, Some(doubt)),
        Footing::Open => (Kind::Open, None),
        Footing::Repaired(error) => (Kind::Repair, Some(error)),
    };
    slot.write(&Line { time: now(), record, cause: cause.map(ToString::to_string) });
}

#[derive(Serialize)]
struct Line {
    time: String,
    record: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

impl Entry for Line {
    /// Whether the gateway is closed is in its health.
    fn count(&self, _: &Metrics) {}
}
