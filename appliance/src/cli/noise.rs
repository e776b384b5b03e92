//! Refusals that say nothing new: of names that the programs of a group ask for and do without.
//! They are counted, so that what matters is not lost among them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use crate::{
    audit::{AuditLine, RecordKind},
    explain::does_without,
    policy::{GroupName, Host, Policy},
    reason::Reason,
};

/// How many there were since that was last said.
#[derive(Default)]
pub(super) struct Noise {
    /// By group and program.
    counts: BTreeMap<(GroupName, &'static str), u64>,
    told: Option<Instant>,
}

impl Noise {
    /// Counts a record that is one of them. Any other stays to be shown.
    pub(super) fn takes(&mut self, record: &AuditLine, policy: &Policy) -> bool {
        let of = of(record, policy);
        let taken = of.is_some();
        if let Some(of) = of {
            *self.counts.entry(of).or_default() += 1;
        }
        taken
    }

    /// A line for each program, where there is something to say: at once for the first time, and
    /// then once in a while.
    pub(super) fn due(&mut self, now: Instant) -> Option<String> {
        let is_late = |told: Instant| now.saturating_duration_since(told) >= PAUSE;
        if self.counts.is_empty() || !self.told.is_none_or(is_late) {
            return None;
        }
        self.told = Some(now);
        let mut lines = String::new();
        for ((group, client), count) in std::mem::take(&mut self.counts) {
            let _ = writeln!(
                lines,
                "# {count} more in {group}: names that {client} asks for and does without (--noise \
                 shows them)"
            );
        }
        Some(lines)
    }
}

/// Returns the group and the program that a refused query is of: no rule of the group lists the
/// name, and a program of the group is known to ask for it. Nothing else is counted: the gateway
/// gave no address for the name, so whoever connects under it has the address from elsewhere.
fn of(record: &AuditLine, policy: &Policy) -> Option<(GroupName, &'static str)> {
    let is_query = record.kind() == Some(RecordKind::Dns) && record.is_refusal();
    let is_unlisted = record.known_reason() == Some(Reason::DnsDenied);
    let query_type = record.query_type.as_deref();
    let is_usual = query_type.is_some_and(|it| BEFORE_A_CONNECTION.contains(&it));
    let name = record.name.as_deref().filter(|_| is_query && is_unlisted && is_usual);
    let host = Host::parse(name?).ok()?;
    let group = record.group.as_deref();
    let group = policy.groups.iter().find(|own| Some(own.name.as_str()) == group)?;
    Some((group.name.clone(), does_without(policy, group, &host)?))
}

/// The types of the queries that go before a connection.
const BEFORE_A_CONNECTION: [&str; 4] = ["A", "AAAA", "HTTPS", "SRV"];

/// How long nothing more is said.
const PAUSE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use policy_builder::{Config, group, splice};
    use serde_json::{Value, json};

    use super::*;
    use crate::config::testing;

    fn policy(rule: Option<&str>) -> Policy {
        let runs =
            group("research", "agents0", &["192.0.2.0/28"]).set("client", ["codex", "apt-debian"]);
        let file =
            Config::of_rules().with(runs).with(group("others", "agents1", &["198.51.100.0/28"]));
        testing::policy(&match rule {
            Some(host) => file.with(splice("own", &["research"], &[host])),
            None => file,
        })
    }

    fn query(group: &str, name: &str) -> Value {
        json!({ "record": "dns", "group": group, "name": name, "type": "AAAA",
            "decision": "refuse", "reason": "dns_denied" })
    }

    fn connection(name: &str, reason: &str) -> Value {
        json!({ "record": "connection", "group": "research", "sni": name, "decision": "refuse",
            "reason": reason })
    }

    #[test]
    fn only_names_the_groups_program_does_without_are_counted() {
        let policy_of_none = policy(None);
        let line = |record: &Value| AuditLine::of(record.clone()).unwrap();
        let takes = |record: &Value| Noise::default().takes(&line(record), &policy_of_none);
        assert!(takes(&query("research", "chatgpt.com")));
        for shown in [
            query("others", "chatgpt.com"),
            query("nobody", "chatgpt.com"),
            query("research", "evil.example"),
            query("research", "x.chatgpt.com"),
            connection("chatgpt.com", "sni_denied"),
            connection("chatgpt.com", "ech_denied"),
            json!({ "record": "dns", "group": "research", "name": "chatgpt.com", "type": "TXT",
                "decision": "refuse", "reason": "dns_denied" }),
            json!({ "record": "dns_summary", "group": "research", "refused": 9 }),
            json!({ "record": "request", "group": "research", "host": "chatgpt.com",
                "decision": "refuse", "reason": "path_denied" }),
        ] {
            assert!(!takes(&shown), "{shown}");
        }
        let mut service = query("research", "_http._tcp.deb.debian.org.");
        service["type"] = json!("SRV");
        assert!(takes(&service));
        let named = policy(Some("chatgpt.com"));
        assert!(!Noise::default().takes(&line(&query("research", "chatgpt.com")), &named));
    }

    #[test]
    fn counts_are_said_at_once_and_then_once_a_minute() {
        let (policy, begin) = (policy(None), Instant::now());
        let line = |name: &str| AuditLine::of(query("research", name)).unwrap();
        let mut noise = Noise::default();
        assert_eq!(noise.due(begin), None);
        for _ in 0..3 {
            noise.takes(&line("chatgpt.com"), &policy);
        }
        let said = noise.due(begin).unwrap();
        assert!(said.starts_with("# 3 more in research: names that codex asks for"), "{said}");
        noise.takes(&line("github.com"), &policy);
        assert_eq!(noise.due(begin + PAUSE / 2), None);
        assert!(noise.due(begin + PAUSE).unwrap().starts_with("# 1 more"));
        assert_eq!(noise.due(begin + PAUSE * 3), None, "nothing new");
    }
}
