//! Audit records of connections and requests that came faster than their agent may open or make
//! them. They are sums for each agent and interval, so that a refusal costs next to nothing and
//! each one is counted.

use std::time::Duration;

use serde::Serialize;

use super::{
    kind::RecordKind,
    stamp::now,
    writer::{AuditEntry, RecordSlot},
};
use crate::{
    identity::AgentKey,
    limits::{OverRate, Rated},
    metrics::{Decided, Metrics},
    reason::Reason,
};

/// Writes the record of the connections and requests of one agent that were over its rate in the
/// time `within`.
pub fn over_rate(slot: RecordSlot, over_rate: &OverRate, within: Duration) {
    slot.write(&OverRateLine {
        time: now(),
        record: match over_rate.rated {
            Rated::Connections => RecordKind::Connections,
            Rated::Requests => RecordKind::Requests,
        },
        seconds: within.as_secs(),
        group: over_rate.group.as_str(),
        agent: over_rate.agent.as_ref().map(AgentKey::text),
        decision: "refuse",
        reason: Reason::RateLimit.as_str(),
        count: over_rate.count,
    });
}

#[derive(Serialize)]
struct OverRateLine<'a> {
    time: String,
    record: RecordKind,
    seconds: u64,
    group: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    decision: &'static str,
    reason: &'static str,
    count: u64,
}

impl AuditEntry for OverRateLine<'_> {
    fn count(&self, metrics: &Metrics) {
        let decided = Decided {
            group: self.group.to_owned(),
            decision: self.decision.to_owned(),
            reason: self.reason.to_owned(),
            ..Decided::default()
        };
        match self.record {
            RecordKind::Connections => metrics.connections(&decided, self.count),
            _ => metrics.requests(&decided, self.count),
        }
    }
}
