//! Numbers about the gateway's work, in the words of the audit: for each group and rule, never for
//! a path, an agent or a name, so that no agent decides how many series there are.
//!
//! Every record counts itself where it is written, so that the two cannot disagree. Text is made by
//! `prometheus-client`, the client library of the Prometheus project: escaping and the format of
//! histograms are not ours to get wrong.

use std::{fmt, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, prometheus_text},
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// Counters of one daemon.
pub struct Metrics {
    registry: Registry,
    connections: Family<Decided, Counter>,
    requests: Family<Decided, Counter>,
    bytes: Family<CarriedLabels, Counter>,
    masked: Family<GroupRuleLabels, Counter>,
    queries: Family<QueryLabels, Counter>,
    packets: Family<DropLabels, Counter>,
    stages: [Histogram; Stage::ALL.len()],
}

/// A connection or a request, by what was decided. A text that does not apply is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Decided {
    /// The group of its agent.
    pub group: String,
    /// The rule that it was decided by.
    pub rule: String,
    /// `intercept`, `inspect`, `splice`, `tcp`, `refuse` or `none`.
    pub decision: String,
    /// The reason's word.
    pub reason: String,
}

/// Bytes of connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CarriedLabels {
    /// The group of its agent.
    pub group: String,
    /// The rule that let them pass.
    pub rule: String,
    /// `from_agent` or `to_agent`.
    pub direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupRuleLabels {
    group: String,
    rule: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    group: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    group: String,
    reason: &'static str,
}

/// A stage of a connection or of a request, for which time is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Until its first bytes say what a connection is.
    Peek,
    /// From there until its upstream is connected.
    Dial,
    /// From a request's head until that of its response.
    Answer,
    /// A request from its head to its end.
    Request,
}

impl Stage {
    /// Every stage, in the order in which they come.
    pub const ALL: [Self; 4] = [Self::Peek, Self::Dial, Self::Answer, Self::Request];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Peek => "peek",
            Self::Dial => "dial",
            Self::Answer => "answer",
            Self::Request => "request",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let stages: Family<[(&'static str, &'static str); 1], Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 2.0, 17)));
        let of = |stage: Stage| stages.get_or_create_owned(&[("stage", stage.as_str())]);
        let mut this = Self {
            registry: Registry::with_prefix("cloakroom"),
            connections: Family::default(),
            requests: Family::default(),
            bytes: Family::default(),
            masked: Family::default(),
            queries: Family::default(),
            packets: Family::default(),
            stages: Stage::ALL.map(of),
        };
        let Self { registry, connections, requests, bytes, masked, queries, packets, .. } =
            &mut this;
        registry.register(
            "connections",
            "Connections that have ended, and refused ones",
            connections.clone(),
        );
        registry.register(
            "requests",
            "Requests that have ended, and refused ones",
            requests.clone(),
        );
        registry.register("bytes", "Bytes of connections that have ended", bytes.clone());
        registry.register("masked_bytes", "Bytes of responses that were a secret", masked.clone());
        registry.register("dns_queries", "DNS queries of agents", queries.clone());
        registry.register("packets_refused", "Packets that the kernel refused", packets.clone());
        registry.register("stage_seconds", "Time that connections and requests spend", stages);
        this
    }
}

impl Metrics {
    /// Counts connections.
    pub fn connections(&self, decided: &Decided, count: u64) {
        self.connections.get_or_create(decided).inc_by(count);
    }

    /// Counts the bytes of a connection.
    pub fn bytes(&self, carried: &CarriedLabels, count: u64) {
        self.bytes.get_or_create(carried).inc_by(count);
    }

    /// Counts requests.
    pub fn requests(&self, decided: &Decided, count: u64) {
        self.requests.get_or_create(decided).inc_by(count);
    }

    /// Counts bytes that were masked in a response.
    pub fn masked(&self, group: &str, rule: &str, count: u64) {
        let ruled = GroupRuleLabels { group: group.to_owned(), rule: rule.to_owned() };
        self.masked.get_or_create(&ruled).inc_by(count);
    }

    /// Counts DNS queries with one outcome.
    pub fn queries(&self, group: &str, outcome: &'static str, count: u64) {
        let asked = QueryLabels { group: group.to_owned(), outcome };
        self.queries.get_or_create(&asked).inc_by(count);
    }

    /// Counts packets that the kernel refused for one reason.
    pub fn packets(&self, group: &str, reason: &'static str, count: u64) {
        let dropped = DropLabels { group: group.to_owned(), reason };
        self.packets.get_or_create(&dropped).inc_by(count);
    }

    /// Notes how long a stage took.
    pub fn took(&self, stage: Stage, time: Duration) {
        let at = Stage::ALL.iter().position(|other| *other == stage);
        if let Some(histogram) = at.and_then(|at| self.stages.get(at)) {
            histogram.observe(time.as_secs_f64());
        }
    }

    /// Returns these counters in the Prometheus text format, version 0.0.4, and those of `now`
    /// after them.
    ///
    /// # Errors
    ///
    /// Those of the library; writing to memory does not fail.
    pub fn text(&self, now: &Registry) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)?;
        prometheus_text::encode(&mut text, now)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        health::{HealthCause, HealthState},
        reason::{Reason, SecretCause},
    };

    #[test]
    fn the_words_that_dashboard_and_alerts_ask_for_exist() {
        let files = [
            include_str!("../../docs/monitoring/alerts.yml"),
            include_str!("../../docs/monitoring/dashboard.json"),
        ];
        let known = |label: &str, word: &str| match label {
            "cause" => HealthCause::ALL.iter().any(|cause| cause.as_str() == word),
            "reason" => Reason::ALL.iter().any(|reason| reason.as_str() == word),
            "why" => SecretCause::ALL.iter().any(|cause| cause.as_str() == word),
            "state" => HealthState::ALL.iter().any(|state| state.as_str() == word),
            "stage" => Stage::ALL.iter().any(|stage| stage.as_str() == word),
            "decision" => word == "refuse",
            // The values of other labels are variables of the dashboard.
            _ => word.starts_with('$'),
        };
        let mut asked = 0;
        for file in files {
            let file = file.replace("\\\"", "\"");
            for selector in file.split("cloakroom_").filter_map(|it| it.split_once('{')) {
                let plain = |c: char| c.is_ascii_lowercase() || c == '_';
                if !selector.0.chars().all(plain) {
                    continue;
                }
                let labels = selector.1.split_once('}').map_or("", |(labels, _)| labels);
                for (label, word) in labels.split(',').filter_map(|it| it.split_once('=')) {
                    let word = word.trim_matches(['~', '"']);
                    assert!(known(label, word), "{label}={word}");
                    asked += 1;
                }
            }
        }
        assert!(asked > 20, "{asked}");
    }

    #[test]
    fn counts_are_in_the_text_by_group_rule_and_reason() {
        let metrics = Metrics::default();
        let decided = Decided {
            group: "research".into(),
            rule: "openai".into(),
            decision: "refuse".into(),
            reason: "path_denied".into(),
        };
        metrics.requests(&decided, 2);
        metrics.requests(&decided, 1);
        metrics.took(Stage::Dial, Duration::from_millis(3));
        metrics.queries("research", "answered", 7);
        let text = metrics.text(&Registry::default()).unwrap();
        for line in [
            "cloakroom_requests_total{group=\"research\",rule=\"openai\",decision=\"refuse\",\
             reason=\"path_denied\"} 3",
            "cloakroom_stage_seconds_count{stage=\"dial\"} 1",
            "cloakroom_stage_seconds_bucket{stage=\"dial\",le=\"0.004\"} 1",
            "cloakroom_dns_queries_total{group=\"research\",outcome=\"answered\"} 7",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }
}
