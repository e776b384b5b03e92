//! Sums of the packets that the kernel refused: one record for each agent, protocol, port and
//! reason in an interval.
//!
//! Every packet is in exactly one sum, so counts add up, but the table is bounded. When an agent
//! has filled its rows, its further packets are summed by reason alone; when a group has filled its
//! agents, the packets of its further agents are summed together. No agent takes another's row, and
//! no group another's agents. A source that is refused as spoofed, or that is in no group, belongs
//! to no agent and makes no row of its own. Where the audit takes no record, sums wait for the next
//! interval.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    kind::RecordKind,
    stamp::now,
    writer::{AuditEntry, Sink},
};
use crate::{
    identity::AgentKey,
    metrics::Metrics,
    packets::{Headers, RefusedPacket},
    policy::{GroupName, InterfaceName, Policy},
    reason::Reason,
};

/// Sums of refused packets since their last records.
#[derive(Debug)]
pub struct RefusedPackets {
    since: Instant,
    /// Whether IPv6 is captured. Where it is not, packets are refused before their sources are
    /// checked.
    ipv6: bool,
    interfaces: HashMap<Option<InterfaceName>, Interface>,
    unseen: HashMap<Unseen, u64>,
}

/// Why refused packets are known by number only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Unseen {
    /// There are more packets of this reason than the kernel reports in a second.
    TooMany(Reason),
    /// The kernel reported them faster than they were read.
    Lost,
}

#[derive(Debug, Default)]
struct Interface {
    groups: HashMap<GroupName, GroupSums>,
    /// Packets whose sources belong to no agent.
    anybody: Rows,
}

#[derive(Debug, Default)]
struct GroupSums {
    agents: HashMap<AgentKey, Rows>,
    /// Packets of agents beyond the bound.
    others: Rows,
}

type Rows = HashMap<Row, Sum>;

/// The properties that packets share if they are in one sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Row {
    reason: Reason,
    /// Protocol and port; `None` for packets that came after the rows were full.
    kind: Option<(u8, Option<u16>)>,
}

#[derive(Debug)]
struct Sum {
    count: u64,
    first: Option<Headers>,
}

impl RefusedPackets {
    /// Creates a table without sums.
    pub fn new(now: Instant, ipv6: bool) -> Self {
        Self { since: now, ipv6, interfaces: HashMap::new(), unseen: HashMap::new() }
    }

    /// Counts one packet. `policy` says which agent it came from.
    pub fn count(&mut self, packet: RefusedPacket, policy: &Policy) {
        let agent = self.agent(&packet, policy);
        let RefusedPacket { interface, reason, headers } = packet;
        let (rows, most) = self.interfaces.entry(interface).or_default().rows(agent);
        let mut row = Row { reason, kind: headers.map(|headers| (headers.protocol, headers.port)) };
        if rows.len() >= most && !rows.contains_key(&row) {
            row.kind = None;
        }
        rows.entry(row).or_insert(Sum { count: 0, first: headers }).count += 1;
    }

    /// Counts packets that the kernel reported but that were not read.
    pub fn lost(&mut self, count: u64) {
        self.add_unseen(Unseen::Lost, count);
    }

    /// Counts packets of one reason that the kernel did not report one by one.
    pub fn too_many(&mut self, reason: Reason, count: u64) {
        self.add_unseen(Unseen::TooMany(reason), count);
    }

    /// Writes a record of every sum and forgets the sum; keeps those that the audit does not take.
    pub fn write(&mut self, audit: &Sink, at: Instant) {
        let seconds = at.saturating_duration_since(self.since);
        let mut taken = true;
        self.interfaces.retain(|name, interface| {
            let done = interface.write(audit, seconds, name.as_ref());
            taken &= done;
            !done
        });
        taken &=
            drain(&mut self.unseen, audit, |why, count| UnseenLine::new(seconds, *why, *count));
        if taken {
            self.since = at;
        }
    }

    /// Returns the agent that sent a packet, if its source was checked before the packet was
    /// refused.
    fn agent(&self, packet: &RefusedPacket, policy: &Policy) -> Option<AgentKey> {
        let source = packet.headers?.source;
        let checked = packet.reason != Reason::SpoofedSource && (self.ipv6 || source.is_ipv4());
        let interface = packet.interface.as_ref().filter(|_| checked)?;
        Some(AgentKey::of(policy.identify(interface, source)?, source))
    }

    fn add_unseen(&mut self, why: Unseen, count: u64) {
        if count > 0 {
            *self.unseen.entry(why).or_default() += count;
        }
    }
}

impl Interface {
    /// Returns the rows in which an agent's packets are counted, and the most rows there may be.
    fn rows(&mut self, agent: Option<AgentKey>) -> (&mut Rows, usize) {
        let Some(agent) = agent else { return (&mut self.anybody, MAX_ROWS_OF_MANY) };
        let group = self.groups.entry(agent.group().clone()).or_default();
        if group.agents.contains_key(&agent) || group.agents.len() < MAX_AGENTS {
            (group.agents.entry(agent).or_default(), MAX_ROWS)
        } else {
            (&mut group.others, MAX_ROWS_OF_MANY)
        }
    }

    /// Writes the rows and returns whether the audit took all of them.
    fn write(&mut self, audit: &Sink, seconds: Duration, name: Option<&InterfaceName>) -> bool {
        let nobody = Whose { seconds, name, group: None, agent: None };
        self.groups.retain(|group, of_group| {
            let group = Whose { group: Some(group), ..nobody };
            of_group.agents.retain(|agent, rows| {
                let agent = Whose { agent: Some(agent), ..group };
                !drain(rows, audit, |row, sum| agent.line(row, sum))
            });
            let others = drain(&mut of_group.others, audit, |row, sum| group.line(row, sum));
            !others || !of_group.agents.is_empty()
        });
        let anybody = drain(&mut self.anybody, audit, |row, sum| nobody.line(row, sum));
        anybody && self.groups.is_empty()
    }
}

/// Writes and removes entries for as long as the audit takes them; returns whether it took all.
fn drain<K, V, L: AuditEntry>(
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

/// The fields that the lines of one table of rows share.
#[derive(Clone, Copy)]
struct Whose<'a> {
    seconds: Duration,
    name: Option<&'a InterfaceName>,
    group: Option<&'a GroupName>,
    agent: Option<&'a AgentKey>,
}

impl Whose<'_> {
    fn line(&self, row: &Row, sum: &Sum) -> PacketsLine {
        // Where the agent is one address, that is the source.
        let source = sum.first.map(|headers| headers.source);
        let source = source.filter(|source| self.agent.map(AgentKey::prefix) != Some(*source));
        PacketsLine {
            time: now(),
            record: RecordKind::Packets,
            seconds: self.seconds.as_secs(),
            interface: self.name.map(ToString::to_string),
            group: self.group.map(ToString::to_string),
            agent: self.agent.map(AgentKey::text),
            decision: "refuse",
            reason: row.reason.as_str(),
            protocol: row.kind.map(|(protocol, _)| protocol_name(protocol)),
            port: row.kind.and_then(|(_, port)| port),
            count: sum.count,
            first_source: source.map(|source| source.to_string()),
            first_destination: sum.first.map(|headers| headers.destination.to_string()),
        }
    }
}

/// Returns the name of a protocol that operators know by name, or the number of any other.
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
    record: RecordKind,
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
    record: RecordKind,
    seconds: u64,
    decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    cause: &'static str,
    count: u64,
}

impl AuditEntry for PacketsLine {
    fn count(&self, metrics: &Metrics) {
        metrics.packets(self.group.as_deref().unwrap_or_default(), self.reason, self.count);
    }
}

impl AuditEntry for UnseenLine {
    fn count(&self, metrics: &Metrics) {
        metrics.packets("", self.reason.unwrap_or(self.cause), self.count);
    }
}

impl UnseenLine {
    fn new(seconds: Duration, why: Unseen, count: u64) -> Self {
        let (reason, cause) = match why {
            Unseen::TooMany(reason) => (Some(reason.as_str()), "too_many"),
            Unseen::Lost => (None, "lost"),
        };
        Self {
            time: now(),
            record: RecordKind::PacketsUnseen,
            seconds: seconds.as_secs(),
            decision: "refuse",
            reason,
            cause,
            count,
        }
    }
}

/// Agents of one group that are told apart in one interval.
const MAX_AGENTS: usize = 64;
/// Protocols, ports and reasons of one agent that are told apart in one interval.
const MAX_ROWS: usize = 16;
/// The same for the further agents of a group together, and for the sources of an interface that
/// belong to no agent.
const MAX_ROWS_OF_MANY: usize = 64;

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Arc};

    use serde_json::Value;

    use super::*;
    use crate::{
        config::{AuditFile, AuditTarget},
        policy::{BoundAgent, Group, Limits, Mac, Rules, Site},
    };

    /// Three groups of one interface, the last of which binds an agent.
    fn policy() -> Policy {
        let group = |name: &str, prefixes: [&str; 2]| Group {
            name: GroupName(Arc::from(name)),
            interface: InterfaceName(Arc::from("agents0")),
            prefixes: prefixes.map(|prefix| prefix.parse().unwrap()).into(),
            vault_role: "cloakroom".into(),
            clients: Vec::new(),
            mtu: None,
            onboarding: None,
            agents: Vec::new(),
        };
        let mut bound = group("bound", ["198.18.0.0/24", "2001:db8:c::/64"]);
        let mac = Mac::parse("02:00:00:00:00:01").unwrap();
        let addresses = ["2001:db8:c::1", "2001:db8:c::2"].map(|text| text.parse().unwrap());
        bound.agents.push(BoundAgent { mac, addresses: addresses.into() });
        let red = group("red", ["192.0.2.0/24", "2001:db8:a::/48"]);
        let blue = group("blue", ["198.51.100.0/24", "2001:db8:b::/64"]);
        Policy {
            groups: [red, blue, bound].map(Arc::new).into(),
            apis: Rules::default(),
            passes: Rules::default(),
            tcp: Rules::default(),
            ports: Vec::new(),
            limits: Limits::default(),
            site: Site::default(),
        }
    }

    fn table() -> RefusedPackets {
        RefusedPackets::new(Instant::now(), true)
    }

    fn tcp(source: impl Into<IpAddr>) -> RefusedPacket {
        packet(source, Reason::PortDenied, 6, 22)
    }

    fn packet(source: impl Into<IpAddr>, reason: Reason, protocol: u8, port: u16) -> RefusedPacket {
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
        let (sink, writer) = Sink::open(&AuditTarget::File(AuditFile::at(path.clone()))).unwrap();
        table.write(&sink, Instant::now());
        assert!(table.interfaces.is_empty() && table.unseen.is_empty());
        drop(sink);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(writer.finish(Duration::from_secs(5)));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn like_packets_of_one_agent_share_a_record() {
        let mut table = table();
        for _ in 0..7 {
            table.count(packet([192, 0, 2, 10], Reason::ProtocolDenied, 17, 443), &policy());
        }
        table.count(packet([192, 0, 2, 10], Reason::PortDenied, 6, 22), &policy());
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
        let mut table = table();
        for agent in 0..=255 {
            for port in 0..200 {
                table.count(packet([192, 0, 2, agent], Reason::PortDenied, 6, port), &policy());
            }
        }
        let lines = written(table, "many");
        assert!(lines.len() <= MAX_AGENTS * (MAX_ROWS + 1) + MAX_ROWS_OF_MANY + 1);
        let sum: u64 = lines.iter().filter_map(|line| line["count"].as_u64()).sum();
        assert_eq!(sum, 256 * 200);
    }

    /// Sums the counts of the lines that `wanted` accepts.
    fn count(lines: &[Value], wanted: impl Fn(&&Value) -> bool) -> u64 {
        lines.iter().filter(wanted).filter_map(|line| line["count"].as_u64()).sum()
    }

    #[test]
    fn addresses_of_one_64_are_one_agents_record() {
        let mut table = table();
        for last in 1..=1_000u16 {
            table.count(tcp([0x2001, 0xdb8, 0xa, 0, 0, 0, 0, last]), &policy());
        }
        table.count(tcp([192, 0, 2, 10]), &policy());
        let lines = written(table, "prefix");
        assert_eq!(lines.len(), 2, "{lines:#?}");
        let one = lines.iter().find(|line| line["agent"] == "2001:db8:a::/64").unwrap();
        assert_eq!((&one["count"], &one["first_source"]), (&1_000.into(), &"2001:db8:a::1".into()));
        let other = lines.iter().find(|line| line["agent"] == "192.0.2.10").unwrap();
        assert_eq!((&other["count"], &other["first_source"]), (&1.into(), &Value::Null));
    }

    #[test]
    fn bound_addresses_of_one_64_are_apart() {
        let mut table = table();
        for last in [1, 2, 2] {
            table.count(tcp([0x2001, 0xdb8, 0xc, 0, 0, 0, 0, last]), &policy());
        }
        let lines = written(table, "bound");
        assert_eq!(count(&lines, |line| line["agent"] == "2001:db8:c::1"), 1);
        assert_eq!(count(&lines, |line| line["agent"] == "2001:db8:c::2"), 2);
    }

    #[test]
    fn one_groups_many_agents_leave_other_groups_their_records() {
        let mut table = table();
        for net in 0..1_000u16 {
            table.count(tcp([0x2001, 0xdb8, 0xa, net, 0, 0, 0, 1]), &policy());
        }
        for last in 0..=255 {
            table.count(tcp([203, 0, 113, last]), &policy());
        }
        for _ in 0..5 {
            table.count(tcp([198, 51, 100, 9]), &policy());
        }
        let lines = written(table, "groups");
        assert_eq!(count(&lines, |line| line["agent"] == "198.51.100.9"), 5);
        assert_eq!(count(&lines, |line| line["group"] == "red"), 1_000);
        let others = |line: &&Value| line["group"] == "red" && line["agent"].is_null();
        assert_eq!(count(&lines, others), 1_000 - MAX_AGENTS as u64);
        assert_eq!(count(&lines, |line| line["group"].is_null()), 256, "of no group");
    }

    #[test]
    fn where_ipv6_is_off_its_sources_are_nobodys() {
        let mut table = RefusedPackets::new(Instant::now(), false);
        for last in 1..=1_000u16 {
            table.count(tcp([0x2001, 0xdb8, 0xb, 0, 0, 0, 0, last]), &policy());
        }
        let lines = written(table, "off");
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert_eq!((&lines[0]["count"], &lines[0]["group"]), (&1_000.into(), &Value::Null));
    }

    #[test]
    fn spoofed_sources_make_no_rows_of_their_own() {
        let mut table = table();
        for last in 0..=255 {
            table.count(packet([10, 0, 0, last], Reason::SpoofedSource, 17, 9), &policy());
        }
        let lines = written(table, "spoofed");
        assert_eq!(lines.len(), 1);
        assert_eq!((&lines[0]["count"], &lines[0]["agent"]), (&256.into(), &Value::Null));
        assert_eq!(lines[0]["first_source"], "10.0.0.0");
    }

    #[test]
    fn what_was_not_seen_is_reported_by_number() {
        let mut table = table();
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
        let full = AuditTarget::File(AuditFile::at("/dev/null"));
        let (sink, _writer) = Sink::open(&full).unwrap();
        let mut slots = Vec::new();
        while let Ok(slot) = sink.reserve() {
            slots.push(slot);
        }
        let mut table = table();
        table.count(packet([192, 0, 2, 10], Reason::PortDenied, 6, 22), &policy());
        table.write(&sink, Instant::now());
        assert_eq!(table.interfaces.len(), 1);
        slots.clear();
        table.write(&sink, Instant::now());
        assert!(table.interfaces.is_empty());
    }
}
