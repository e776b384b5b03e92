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
    /// The group's quarantine was lifted.
    Release,
}

/// The record of one act.
#[derive(Debug)]
pub struct ActRecord<'a> {
    /// The act.
    pub act: Act,
    /// The group that it is about.
    pub group: &'a GroupName,
    /// The user of this machine who did it, by number.
    pub uid: u32,
}

impl ActRecord<'_> {
    /// Writes the record.
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
    /// Not counted here: the gateway's health says whether a group is quarantined.
    fn count(&self, _: &Metrics) {}
}
