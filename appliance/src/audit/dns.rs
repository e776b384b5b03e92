//! Audit records of the agents' DNS: a record of each refused query, up to a rate for each
//! agent and each group, and every while a sum of all queries, so that what has no record is still
//! counted.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::{
    kind::RecordKind,
    record::capped,
    stamp::now,
    writer::{AuditEntry, RecordSlot},
};
use crate::{
    metrics::Metrics,
    policy::{GroupName, InterfaceName},
    reason::Reason,
};

/// A query that was refused.
#[derive(Debug)]
pub struct DnsRecord<'a> {
    /// Where it came in.
    pub interface: &'a InterfaceName,
    /// Whose it was.
    pub group: &'a GroupName,
    /// The address and port that it came from.
    pub agent: SocketAddr,
    /// The address that was asked, whoever's that is.
    pub server: IpAddr,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// The name, escaped as in a zone file. The agent chose it.
    pub name: Option<&'a str>,
    /// The record type.
    pub kind: Option<&'a str>,
    /// Why it was refused.
    pub reason: Reason,
}

/// What an agent's queries came to since the last time, ten seconds ago or more.
#[derive(Debug)]
pub struct DnsSummary<'a> {
    /// The agent's group.
    pub group: &'a GroupName,
    /// Its IPv4 address, or its IPv6 /64; `None` for all agents of the group that have no sum of
    /// their own.
    pub agent: Option<&'a str>,
    /// Queries that were answered.
    pub answered: u64,
    /// Queries that were refused.
    pub refused: u64,
    /// Queries that came too fast or were too many at once, and were dropped; and connections that
    /// were too many, and were closed.
    pub limited: u64,
    /// Answers and refusals that the kernel did not take, so that nobody got them.
    pub unsent: u64,
    /// `dns_rate` where some did.
    pub reason: Option<Reason>,
}

impl DnsRecord<'_> {
    /// Writes it.
    pub fn write(self, slot: RecordSlot) {
        slot.write(&RefusedLine {
            time: now(),
            record: RecordKind::Dns,
            interface: self.interface.as_str(),
            group: self.group.as_str(),
            agent: self.agent.to_string(),
            server: self.server.to_string(),
            transport: self.transport,
            name: self.name.map(|name| capped(name, MAX_NAME_BYTES)),
            kind: self.kind,
            decision: "refuse",
            reason: self.reason.as_str(),
        });
    }
}

impl DnsSummary<'_> {
    /// Writes it.
    pub fn write(self, slot: RecordSlot) {
        slot.write(&SummaryLine {
            time: now(),
            record: RecordKind::DnsSummary,
            group: self.group.as_str(),
            agent: self.agent,
            answered: self.answered,
            refused: self.refused,
            limited: self.limited,
            unsent: self.unsent,
            reason: self.reason.map(Reason::as_str),
        });
    }
}

#[derive(Serialize)]
struct RefusedLine<'a> {
    time: String,
    record: RecordKind,
    interface: &'a str,
    group: &'a str,
    agent: String,
    server: String,
    transport: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    decision: &'static str,
    reason: &'static str,
}

#[derive(Serialize)]
struct SummaryLine<'a> {
    time: String,
    record: RecordKind,
    group: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<&'a str>,
    answered: u64,
    refused: u64,
    limited: u64,
    unsent: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl AuditEntry for RefusedLine<'_> {
    /// The sum that follows counts it.
    fn count(&self, _: &Metrics) {}
}

impl AuditEntry for SummaryLine<'_> {
    fn count(&self, metrics: &Metrics) {
        let outcomes = [
            ("answered", self.answered),
            ("refused", self.refused),
            ("limited", self.limited),
            ("unsent", self.unsent),
        ];
        outcomes.into_iter().for_each(|(word, count)| metrics.queries(self.group, word, count));
    }
}

/// Bytes of a name; one of 255 octets takes more where it has to be escaped.
const MAX_NAME_BYTES: usize = 256;
