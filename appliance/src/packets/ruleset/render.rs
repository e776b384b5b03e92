//! The planned table in the syntax of nft, for people and for `nft -c -f`.
//!
//! Pure. Loaded with `nft -f`, the text lists exactly as the rules that `install` sends; a test
//! keeps the two equal.

use std::{fmt::Write, net::SocketAddr};

use super::language::{
    Base, Chain, Element, Family, Hook, METER_MILLISECONDS, METER_SIZE, MatchKey, NftRule,
    NftTable, Rate, SNAPLEN, Set, SetKey, Statement, TableFamily, Value,
};

/// Returns a whole table. Its name is [`super::language::TABLE`].
pub(crate) fn text(table: &NftTable) -> String {
    let mut text = format!("table {} {} {{\n", family(table.family), super::language::TABLE);
    let counters = table.counters.iter().map(|name| format!("\tcounter {name} {{\n\t}}\n"));
    let sets = counters.chain(table.sets.iter().map(set));
    let blocks: Vec<String> = sets.chain(table.chains.iter().map(chain)).collect();
    text.push_str(&blocks.join("\n"));
    text.push_str("}\n");
    text
}

/// Returns one rule, without its line's indent and end.
pub(crate) fn rule(rule: &NftRule) -> String {
    let mut words: Vec<String> = rule.statements.iter().map(statement).collect();
    if let Some(reason) = rule.reason {
        words.push(format!("comment \"{}\"", reason.as_str()));
    }
    words.join(" ")
}

/// Returns a family's name.
pub(crate) fn family(family: TableFamily) -> &'static str {
    match family {
        TableFamily::Inet => "inet",
        TableFamily::Netdev => "netdev",
        TableFamily::Ip => "ip",
        TableFamily::Ip6 => "ip6",
    }
}

fn set(set: &Set) -> String {
    let (kind, interval) = match set.key {
        SetKey::Interface => ("ifname", false),
        SetKey::Port => ("inet_service", false),
        SetKey::Address(Family::V4) => ("ipv4_addr", true),
        SetKey::Address(Family::V6) => ("ipv6_addr", true),
        SetKey::InterfaceAndAddress(Family::V4) => ("ifname . ipv4_addr", true),
        SetKey::InterfaceAndAddress(Family::V6) => ("ifname . ipv6_addr", true),
        SetKey::Mark => ("mark", false),
        SetKey::MarkOfInterfaceAndAddress(Family::V4) => ("ifname . ipv4_addr : mark", true),
        SetKey::MarkOfInterfaceAndAddress(Family::V6) => ("ifname . ipv6_addr : mark", true),
        SetKey::InterfaceAndMac => ("ifname . ether_addr", false),
        SetKey::InterfaceMacAndAddress(Family::V4) => ("ifname . ether_addr . ipv4_addr", false),
        SetKey::InterfaceMacAndAddress(Family::V6) => ("ifname . ether_addr . ipv6_addr", false),
    };
    let what = if matches!(set.key, SetKey::MarkOfInterfaceAndAddress(_)) { "map" } else { "set" };
    let mut text = format!("\t{what} {} {{\n\t\ttype {kind}\n", set.name);
    if set.meter {
        let _ = writeln!(text, "\t\tsize {METER_SIZE}\n\t\tflags dynamic,timeout");
    } else if interval {
        text.push_str("\t\tflags interval\n");
    }
    if !set.elements.is_empty() {
        let elements: Vec<String> = set.elements.iter().map(element).collect();
        let _ = writeln!(text, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t     "));
    }
    text.push_str("\t}\n");
    text
}

fn element(element: &Element) -> String {
    match element {
        Element::Interface(name) => format!("\"{name}\""),
        Element::Port(port) => port.to_string(),
        Element::Prefix(net) => net.to_string(),
        Element::InterfaceAndPrefix(name, net) => format!("\"{name}\" . {net}"),
        Element::InterfaceAndMac(name, mac) => format!("\"{name}\" . {mac}"),
        Element::InterfaceMacAndAddress(name, mac, address) => {
            format!("\"{name}\" . {mac} . {address}")
        }
        Element::MarkOfInterfaceAndPrefix(name, net, mark) => {
            format!("\"{name}\" . {net} : {mark:#010x}")
        }
    }
}

fn chain(chain: &Chain) -> String {
    let mut text = format!("\tchain {} {{\n", chain.name);
    if let Some(Base { hook, priority, drop }) = &chain.base {
        let hook = match hook {
            Hook::Ingress(device) => format!("ingress device \"{device}\""),
            Hook::Prerouting => "prerouting".to_owned(),
            Hook::Input => "input".to_owned(),
            Hook::Forward => "forward".to_owned(),
            Hook::Output => "output".to_owned(),
        };
        let policy = if *drop { "drop" } else { "accept" };
        let _ = writeln!(text, "\t\ttype filter hook {hook} priority {priority}; policy {policy};");
    }
    for each in &chain.rules {
        let _ = writeln!(text, "\t\t{}", rule(each));
    }
    text.push_str("\t}\n");
    text
}

fn statement(statement: &Statement) -> String {
    match statement {
        Statement::Is(each, value) => format!("{} {}", key(*each), value.text),
        Statement::IsNot(each, value) => format!("{} != {}", key(*each), value.text),
        Statement::AnyOf(each, values) => format!("{} {{ {} }}", key(*each), list(values)),
        Statement::NotOneOf(each, values) => format!("{} != {{ {} }}", key(*each), list(values)),
        Statement::In(each, set) => format!("{} @{set}", key(*each)),
        Statement::NotIn(each, set) => format!("{} != @{set}", key(*each)),
        Statement::Count => "counter".to_owned(),
        Statement::CountAs(name) => format!("counter name \"{name}\""),
        Statement::Over(each, set, Rate { a_second, at_once }) => format!(
            "update @{set} {{ {} timeout {}s limit rate over {a_second}/second burst {at_once} \
             packets }}",
            key(*each),
            METER_MILLISECONDS / 1_000
        ),
        Statement::Above(rate) => {
            format!("limit rate over {rate}/second burst {rate} packets")
        }
        Statement::Tell(reason, group) => {
            format!("log prefix \"{}\" group {group} snaplen {SNAPLEN}", reason.as_str())
        }
        Statement::SetMark(mark) => format!("meta mark set {mark:#010x}"),
        Statement::SetMarkOf(each, map) => format!("meta mark set {} map @{map}", key(*each)),
        Statement::SetPriority(value) => format!("meta priority set {}", value.text),
        Statement::MaxSegment(bytes) => format!("tcp option maxseg size set {bytes}"),
        Statement::Tproxy(family, to, port) => {
            let name = if *family == Family::V4 { "ip" } else { "ip6" };
            let to = to.map_or(format!(":{port}"), |to| SocketAddr::new(to, *port).to_string());
            format!("tproxy {name} to {to}")
        }
        Statement::RejectReset => "reject with tcp reset".to_owned(),
        Statement::RejectProhibited => "reject with icmpx admin-prohibited".to_owned(),
        Statement::Accept => "accept".to_owned(),
        Statement::Drop => "drop".to_owned(),
        Statement::Goto(chain) => format!("goto {chain}"),
    }
}

fn list(values: &[Value]) -> String {
    let values: Vec<&str> = values.iter().map(|value| value.text.as_ref()).collect();
    values.join(", ")
}

fn key(key: MatchKey) -> &'static str {
    match key {
        MatchKey::Interface => "iifname",
        MatchKey::OutInterface => "oifname",
        MatchKey::Family => "meta nfproto",
        MatchKey::L4 => "meta l4proto",
        MatchKey::Mark => "meta mark",
        MatchKey::Source(Family::V4) => "ip saddr",
        MatchKey::Source(Family::V6) => "ip6 saddr",
        MatchKey::Destination(Family::V4) => "ip daddr",
        MatchKey::Destination(Family::V6) => "ip6 daddr",
        MatchKey::InterfaceAndSource(Family::V4) => "iifname . ip saddr",
        MatchKey::InterfaceAndSource(Family::V6) => "iifname . ip6 saddr",
        MatchKey::InterfaceAndDestination(Family::V4) => "oifname . ip daddr",
        MatchKey::InterfaceAndDestination(Family::V6) => "oifname . ip6 daddr",
        MatchKey::OpeningFlags => "tcp flags & (syn | rst) ==",
        MatchKey::HopLimit => "ip6 hoplimit",
        MatchKey::Icmp6Type => "icmpv6 type",
        MatchKey::DestinationPort => "th dport",
        MatchKey::WayBack => "fib saddr . iif oif",
        MatchKey::SourceType => "fib saddr type",
        MatchKey::DestinationType => "fib daddr type",
        MatchKey::SocketTransparent => "socket transparent",
        MatchKey::SocketWildcard => "socket wildcard",
        MatchKey::Icmp4Type => "icmp type",
        MatchKey::Icmp4Code => "icmp code",
        MatchKey::Icmp6Code => "icmpv6 code",
        MatchKey::SourcePort => "th sport",
        MatchKey::WayBackInterface => "fib saddr oifname",
        MatchKey::DhcpClient => "@th,160,32",
        MatchKey::DhcpRelay => "@th,256,32",
        MatchKey::DestinationTypeHere => "fib daddr . iif type",
        MatchKey::InterfaceAndAgent(Family::V4) => "iifname . ip saddr",
        MatchKey::InterfaceAndAgent(Family::V6) => "iifname . ip6 saddr & ffff:ffff:ffff:ffff::",
        MatchKey::Priority => "meta priority",
        MatchKey::InterfaceType => "meta iiftype",
        MatchKey::EtherType => "ether type",
        MatchKey::Protocol => "meta protocol",
        MatchKey::Mac => "ether saddr",
        MatchKey::ArpSource => "arp saddr ip",
        MatchKey::InterfaceAndMac => "iifname . ether saddr",
        MatchKey::InterfaceAndArpMac => "iifname . arp saddr ether",
        MatchKey::InterfaceAndArpSource => "iifname . arp saddr ip",
        MatchKey::InterfaceMacAndSource(Family::V4) => "iifname . ether saddr . ip saddr",
        MatchKey::InterfaceMacAndSource(Family::V6) => "iifname . ether saddr . ip6 saddr",
        MatchKey::InterfaceMacAndArpSource => "iifname . ether saddr . arp saddr ip",
        MatchKey::InterfaceArpMacAndArpSource => "iifname . arp saddr ether . arp saddr ip",
        MatchKey::NeighbourTarget => "@th,64,128",
    }
}
