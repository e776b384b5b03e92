//! Audit records of connections and requests that came faster than their agent may open
//! and make them: a sum for each agent and interval, so that refusing them costs next to nothing
//! and every one is counted.

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

/// Writes the record of what one agent had over its rate in this time.
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
