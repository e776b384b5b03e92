//! What the kernel refused, summed up: one record for each agent, protocol, port and reason in an
//! interval.
//!
//! Every packet is in exactly one sum, so counts add up, but the table is bounded: when an agent
//! has filled its rows, what else it sends is summed by reason alone; when an interface has
//! filled its agents, so are the further ones. A source that is refused as spoofed is nobody's,
//! so it makes no row of its own. Where the audit takes no record, sums wait for the next interval.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{kind::Kind, record::now, writer::Sink};
use crate::{
    packets::{Headers, RefusedPacket},
    policy::{InterfaceName, Policy},
    reason::Reason,
};

/// Sums of refused packets since the last records of them.
#[derive(Debug)]
pub struct RefusedPackets {
    since: Instant,
    interfaces: HashMap<Option<InterfaceName>, Interface>,
    unseen: HashMap<Unseen, u64>,
}

/// Why refused packets are known by number only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Unseen {
    /// More of this reason than the kernel tells in a second.
    TooMany(Reason),
    /// The kernel told them faster than they were read.
    Lost,
}

#[derive(Debug, Default)]
struct Interface {
    agents: HashMap<IpAddr, HashMap<Row, Sum>>,
    /// Of spoofed sources, and of agents beyond the bound.
    anybody: HashMap<Row, Sum>,
}

/// What packets have to share to be summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Row {
    reason: Reason,
    /// Protocol and port; `None` for what came after the rows were full.
    kind: Option<(u8, Option<u16>)>,
}

#[derive(Debug)]
struct Sum {
    count: u64,
    first: Option<Headers>,
}

impl RefusedPackets {
    /// Nothing yet.
    pub fn new(now: Instant) -> Self {
        Self { since: now, interfaces: HashMap::new(), unseen: HashMap::new() }
    }

    /// Counts one packet.
    pub fn count(&mut self, packet: RefusedPacket) {
        let RefusedPacket { interface, reason, headers } = packet;
        let interface = self.interfaces.entry(interface).or_default();
        let known = |source: &IpAddr| interface.agents.contains_key(source);
        let agent = headers
            .map(|headers| headers.source)
            .filter(|_| reason != Reason::SpoofedSource)
            .filter(|source| known(source) || interface.agents.len() < MAX_AGENTS);
        let (rows, most) = match agent {
            Some(agent) => (interface.agents.entry(agent).or_default(), MAX_ROWS),
            None => (&mut interface.anybody, MAX_ROWS_OF_ANYBODY),
        };
        let mut row = Row { reason, kind: headers.map(|headers| (headers.protocol, headers.port)) };
        if rows.len() >= most && !rows.contains_key(&row) {
            row.kind = None;
        }
        rows.entry(row).or_insert(Sum { count: 0, first: headers }).count += 1;
    }

    /// Counts packets that the kernel told but that did not arrive.
    pub fn lost(&mut self, count: u64) {
        self.add_unseen(Unseen::Lost, count);
    }

    /// Counts packets of one reason that were too many to be told.
    pub fn too_many(&mut self, reason: Reason, count: u64) {
        self.add_unseen(Unseen::TooMany(reason), count);
    }

    /// Writes a record of every sum and forgets it; keeps what the audit does not take.
    pub fn write(&mut self, audit: &Sink, policy: &Policy, at: Instant) {
        let seconds = at.saturating_duration_since(self.since);
        let mut taken = true;
        for (name, interface) in &mut self.interfaces {
            let place = Place { seconds, name: name.as_ref(), policy };
            for (agent, rows) in &mut interface.agents {
                taken &= drain(rows, audit, |row, sum| place.line(Some(*agent), row, sum));
            }
            interface.agents.retain(|_, rows| !rows.is_empty());
            taken &= drain(&mut interface.anybody, audit, |row, sum| place.line(None, row, sum));
        }
        self.interfaces
            .retain(|_, interface| !interface.agents.is_empty() || !interface.anybody.is_empty());
        taken &=
            drain(&mut self.unseen, audit, |why, count| UnseenLine::new(seconds, *why, *count));
        if taken {
            self.since = at;
        }
    }

    fn add_unseen(&mut self, why: Unseen, count: u64) {
        if count > 0 {
            *self.unseen.entry(why).or_default() += count;
        }
    }
}

/// Writes and removes entries for as long as the audit takes them; says whether it took them all.
fn drain<K, V, L: Serialize>(
    sums: &mut HashMap<K, V>,
    audit: &Sink,
    line: impl Fn(&K, &V) -> L,
) -> bool {
    sums.retain(|key, sum| match audit.reserve() {
        Ok(slot) => {
            slot.write(&line(key, sum));
            false
        }
        Err(_) => true,
    });
    sums.is_empty()
}

/// What all lines of one interface share.
struct Place<'a> {
    seconds: Duration,
    name: Option<&'a InterfaceName>,
    policy: &'a Policy,
}

impl Place<'_> {
    fn line(&self, agent: Option<IpAddr>, row: &Row, sum: &Sum) -> PacketsLine {
        let group =
            agent.zip(self.name).and_then(|(agent, name)| self.policy.identify(name, agent));
        let spoofed = sum.first.filter(|_| agent.is_none());
        PacketsLine {
            time: now(),
            record: Kind::Packets,
            seconds: self.seconds.as_secs(),
            interface: self.name.map(ToString::to_string),
            group: group.map(|group| group.name.to_string()),
            agent: agent.map(|agent| agent.to_string()),
            decision: "refuse",
            reason: row.reason.word(),
            protocol: row.kind.map(|(protocol, _)| protocol_name(protocol)),
            port: row.kind.and_then(|(_, port)| port),
            count: sum.count,
            first_source: spoofed.map(|headers| headers.source.to_string()),
            first_destination: sum.first.map(|headers| headers.destination.to_string()),
        }
    }
}

/// The protocols that an operator knows by name; any other by its number.
fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".into(),
        2 => "igmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        33 => "dccp".into(),
        41 => "ipv6".into(),
        47 => "gre".into(),
        50 => "esp".into(),
        51 => "ah".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        136 => "udplite".into(),
        other => other.to_string(),
    }
}

#[derive(Debug, Serialize)]
struct PacketsLine {
    time: String,
    record: Kind,
    seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    decision: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_destination: Option<String>,
}

#[derive(Debug, Serialize)]
struct UnseenLine {
    time: String,
    record: Kind,
    seconds: u64,
    decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    cause: &'static str,
    count: u64,
}

impl UnseenLine {
    fn new(seconds: Duration, why: Unseen, count: u64) -> Self {
        let (reason, cause) = match why {
            Unseen::TooMany(reason) => (Some(reason.word()), "too_many"),
            Unseen::Lost => (None, "lost"),
        };
        Self {
            time: now(),
            record: Kind::PacketsUnseen,
            seconds: seconds.as_secs(),
            decision: "refuse",
            reason,
            cause,
            count,
        }
    }
}

/// Agents of one interface that are told apart in one interval.
const MAX_AGENTS: usize = 64;
/// Protocols, ports and reasons of one agent that are told apart in one interval.
const MAX_ROWS: usize = 16;
/// The same for all those of an interface that are nobody, or too many.
const MAX_ROWS_OF_ANYBODY: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::Value;

    use super::*;
    use crate::{config::AuditTarget, policy::Limits};

    fn packet(source: [u8; 4], reason: Reason, protocol: u8, port: u16) -> RefusedPacket {
        let headers = Headers {
            source: source.into(),
            destination: [198, 51, 100, 10].into(),
            protocol,
            port: Some(port),
        };
        let interface = Some(InterfaceName(Arc::from("agents0")));
        RefusedPacket { interface, reason, headers: Some(headers) }
    }

    fn written(mut table: RefusedPackets, name: &str) -> Vec<Value> {
        let file = format!("cloakroom-refused-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(file);
        let (sink, writer) = Sink::open(&AuditTarget::File(path.clone())).unwrap();
        let policy = Policy {
            groups: Vec::new(),
            apis: Vec::new(),
            passes: Vec::new(),
            tcp: Vec::new(),
            ports: Vec::new(),
            limits: Limits::default(),
        };
        table.write(&sink, &policy, Instant::now());
        assert!(table.interfaces.is_empty() && table.unseen.is_empty());
        drop(sink);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(writer.finish(Duration::from_secs(5)));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn packets_of_one_agent_protocol_port_and_reason_are_one_record() {
        let mut table = RefusedPackets::new(Instant::now());
        for _ in 0..7 {
            table.count(packet([192, 0, 2, 10], Reason::ProtocolDenied, 17, 443));
        }
        table.count(packet([192, 0, 2, 10], Reason::PortDenied, 6, 22));
        let lines = written(table, "one");
        assert_eq!(lines.len(), 2);
        let quic = lines.iter().find(|line| line["protocol"] == "udp").unwrap();
        assert_eq!((&quic["count"], &quic["port"]), (&7.into(), &443.into()));
        assert_eq!(
            (quic["agent"].as_str(), quic["reason"].as_str()),
            (Some("192.0.2.10"), Some("protocol_denied"))
        );
        assert_eq!(quic["first_destination"], "198.51.100.10");
    }

    #[test]
    fn counts_add_up_however_many_ports_and_agents_there_are() {
        let mut table = RefusedPackets::new(Instant::now());
        for agent in 0..=255 {
            for port in 0..200 {
                table.count(packet([192, 0, 2, agent], Reason::PortDenied, 6, port));
            }
        }
        let lines = written(table, "many");
        assert!(lines.len() <= MAX_AGENTS * (MAX_ROWS + 1) + MAX_ROWS_OF_ANYBODY + 1);
        let sum: u64 = lines.iter().filter_map(|line| line["count"].as_u64()).sum();
        assert_eq!(sum, 256 * 200);
    }

    #[test]
    fn spoofed_sources_make_no_rows_of_their_own() {
        let mut table = RefusedPackets::new(Instant::now());
        for last in 0..=255 {
            table.count(packet([10, 0, 0, last], Reason::SpoofedSource, 17, 9));
        }
        let lines = written(table, "spoofed");
        assert_eq!(lines.len(), 1);
        assert_eq!((&lines[0]["count"], &lines[0]["agent"]), (&256.into(), &Value::Null));
        assert_eq!(lines[0]["first_source"], "10.0.0.0");
    }

    #[test]
    fn what_was_not_seen_is_reported_by_number() {
        let mut table = RefusedPackets::new(Instant::now());
        table.lost(0);
        table.lost(3);
        table.too_many(Reason::PortDenied, 40);
        let lines = written(table, "unseen");
        assert_eq!(lines.len(), 2);
        for line in lines {
            assert_eq!(line["record"], "packets_unseen");
            let expected = if line["cause"] == "lost" { 3 } else { 40 };
            assert_eq!(line["count"], expected);
        }
    }

    #[test]
    fn sums_wait_for_an_audit_that_takes_them() {
        let full = AuditTarget::File("/dev/null".into());
        let (sink, _writer) = Sink::open(&full).unwrap();
        let mut slots = Vec::new();
        while let Ok(slot) = sink.reserve() {
            slots.push(slot);
        }
        let mut table = RefusedPackets::new(Instant::now());
        table.count(packet([192, 0, 2, 10], Reason::PortDenied, 6, 22));
        let policy = Policy {
            groups: Vec::new(),
            apis: Vec::new(),
            passes: Vec::new(),
            tcp: Vec::new(),
            ports: Vec::new(),
            limits: Limits::default(),
        };
        table.write(&sink, &policy, Instant::now());
        assert_eq!(table.interfaces.len(), 1);
        slots.clear();
        table.write(&sink, &policy, Instant::now());
        assert!(table.interfaces.is_empty());
    }
}
