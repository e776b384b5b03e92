//! Audit records of the conditions that the packet rules need: the kernel's settings, the
//! guard, and the rules themselves.

use std::fmt::Display;

use serde::Serialize;

use super::{
    kind::RecordKind,
    stamp::now,
    writer::{AuditEntry, RecordSlot},
};
use crate::{metrics::Metrics, packets::PacketsError};

/// The result of a check of the host.
#[derive(Debug)]
pub enum HostCheckEvent<'a> {
    /// Something is missing that the daemon may not restore by itself: new connections are reset.
    Closed(&'a str),
    /// Everything is there again.
    Open,
    /// Another program changed the packet rules, and they were installed again.
    Repaired(&'a PacketsError),
}

/// Writes the record of a check, with the condition that was missing or changed as the cause.
pub fn host_check(slot: RecordSlot, host_check: &HostCheckEvent<'_>) {
    let (record, cause): (_, Option<&dyn Display>) = match host_check {
        HostCheckEvent::Closed(doubt) => (RecordKind::Close, Some(doubt)),
        HostCheckEvent::Open => (RecordKind::Open, None),
        HostCheckEvent::Repaired(error) => (RecordKind::Repair, Some(error)),
    };
    slot.write(&HostCheckLine { time: now(), record, cause: cause.map(ToString::to_string) });
}

#[derive(Serialize)]
struct HostCheckLine {
    time: String,
    record: RecordKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

impl AuditEntry for HostCheckLine {
    /// Not counted here: the gateway's health says whether it is closed.
    fn count(&self, _: &Metrics) {}
}
