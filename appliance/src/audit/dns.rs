//! Audit records of the agents' DNS: one for each refused query, up to a rate for each agent and
//! each group, and at intervals a sum of all queries, so that a query without a record is still
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
    /// The interface that it came in on.
    pub interface: &'a InterfaceName,
    /// The group of the agent that sent it.
    pub group: &'a GroupName,
    /// The address and port that it came from.
    pub agent: SocketAddr,
    /// The address that was asked, which need not be the gateway's.
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

/// The number of an agent's queries since the last sum, ten seconds ago or more.
#[derive(Debug)]
pub struct DnsSummary<'a> {
    /// The agent's group.
    pub group: &'a GroupName,
    /// The agent's IPv4 address, or its IPv6 /64; `None` for the agents of the group that have no
    /// sum of their own.
    pub agent: Option<&'a str>,
    /// Queries that were answered.
    pub answered: u64,
    /// Queries that were refused.
    pub refused: u64,
    /// Queries that were dropped, because they came too fast or too many were under way, and
    /// connections that were closed because there were too many.
    pub limited: u64,
    /// Answers and refusals that the kernel did not take, so that nobody got them.
    pub unsent: u64,
    /// `dns_rate` if `limited` is not zero.
    pub reason: Option<Reason>,
}

impl DnsRecord<'_> {
    /// Writes the record.
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
    /// Writes the sum.
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
    /// Not counted here: the sum that follows counts the query.
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

/// Most bytes of a name in a record. A name of 255 octets takes more where it has to be escaped,
/// and is cut.
const MAX_NAME_BYTES: usize = 256;
