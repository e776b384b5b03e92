//! Audit records of acts of an operator that change what a group may do.

use serde::Serialize;

use super::{
    kind::RecordKind,
    stamp::now,
    writer::{AuditEntry, RecordSlot},
};
use crate::{metrics::Metrics, policy::GroupName};

/// An act of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A group was cut off.
    Quarantine,
    /// That was undone.
    Release,
}

/// The record of one act.
#[derive(Debug)]
pub struct ActRecord<'a> {
    /// What was done.
    pub act: Act,
    /// To whom.
    pub group: &'a GroupName,
    /// By which user of this machine.
    pub uid: u32,
}

impl ActRecord<'_> {
    /// Writes it.
    pub fn write(self, slot: RecordSlot) {
        let record = match self.act {
            Act::Quarantine => RecordKind::Quarantine,
            Act::Release => RecordKind::Release,
        };
        let (group, uid) = (self.group.as_str(), self.uid);
        slot.write(&ActLine { time: now(), record, group, uid });
    }
}

#[derive(Serialize)]
struct ActLine<'a> {
    time: String,
    record: RecordKind,
    group: &'a str,
    uid: u32,
}

impl AuditEntry for ActLine<'_> {
    /// Whether a group is quarantined is in the gateway's health.
    fn count(&self, _: &Metrics) {}
}
