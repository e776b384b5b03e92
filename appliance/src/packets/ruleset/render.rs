//! The planned table in the syntax of nft, for people and for `nft -c -f`.
//!
//! Pure. What it prints, loaded with `nft -f`, lists exactly as what `install` sends; a test holds
//! the two together.

use std::{fmt::Write, net::SocketAddr};

use super::language::{
    Base, Chain, Element, Family, Hook, Key, METER_MILLISECONDS, METER_SIZE, Rate, Rule, SNAPLEN,
    Set, SetKey, Statement, Table, TableFamily, Value,
};

/// A whole table. Its name is [`super::language::TABLE`].
pub(crate) fn text(table: &Table) -> String {
    let mut text = format!("table {} {} {{\n", family(table.family), super::language::TABLE);
    let counters = table.counters.iter().map(|name| format!("\tcounter {name} {{\n\t}}\n"));
    let sets = counters.chain(table.sets.iter().map(set));
    let blocks: Vec<String> = sets.chain(table.chains.iter().map(chain)).collect();
    text.push_str(&blocks.join("\n"));
    text.push_str("}\n");
    text
}

/// One rule, without its line's indent and end.
pub(crate) fn rule(rule: &Rule) -> String {
    let mut words: Vec<String> = rule.statements.iter().map(statement).collect();
    if let Some(reason) = rule.reason {
        words.push(format!("comment \"{}\"", reason.word()));
    }
    words.join(" ")
}

/// A family's name.
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
            format!("log prefix \"{}\" group {group} snaplen {SNAPLEN}", reason.word())
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

fn key(key: Key) -> &'static str {
    match key {
        Key::Interface => "iifname",
        Key::OutInterface => "oifname",
        Key::Family => "meta nfproto",
        Key::L4 => "meta l4proto",
        Key::Mark => "meta mark",
        Key::Source(Family::V4) => "ip saddr",
        Key::Source(Family::V6) => "ip6 saddr",
        Key::Destination(Family::V4) => "ip daddr",
        Key::Destination(Family::V6) => "ip6 daddr",
        Key::InterfaceAndSource(Family::V4) => "iifname . ip saddr",
        Key::InterfaceAndSource(Family::V6) => "iifname . ip6 saddr",
        Key::InterfaceAndDestination(Family::V4) => "oifname . ip daddr",
        Key::InterfaceAndDestination(Family::V6) => "oifname . ip6 daddr",
        Key::OpeningFlags => "tcp flags & (syn | rst) ==",
        Key::HopLimit => "ip6 hoplimit",
        Key::Icmp6Type => "icmpv6 type",
        Key::DestinationPort => "th dport",
        Key::WayBack => "fib saddr . iif oif",
        Key::SourceType => "fib saddr type",
        Key::DestinationType => "fib daddr type",
        Key::SocketTransparent => "socket transparent",
        Key::SocketWildcard => "socket wildcard",
        Key::Icmp4Type => "icmp type",
        Key::Icmp4Code => "icmp code",
        Key::Icmp6Code => "icmpv6 code",
        Key::SourcePort => "th sport",
        Key::WayBackInterface => "fib saddr oifname",
        Key::DhcpClient => "@th,160,32",
        Key::DhcpRelay => "@th,256,32",
        Key::DestinationTypeHere => "fib daddr . iif type",
        Key::InterfaceAndAgent(Family::V4) => "iifname . ip saddr",
        Key::InterfaceAndAgent(Family::V6) => "iifname . ip6 saddr & ffff:ffff:ffff:ffff::",
        Key::Priority => "meta priority",
        Key::InterfaceType => "meta iiftype",
        Key::EtherType => "ether type",
        Key::Protocol => "meta protocol",
        Key::Mac => "ether saddr",
        Key::ArpSource => "arp saddr ip",
        Key::InterfaceAndMac => "iifname . ether saddr",
        Key::InterfaceAndArpMac => "iifname . arp saddr ether",
        Key::InterfaceAndArpSource => "iifname . arp saddr ip",
        Key::InterfaceMacAndSource(Family::V4) => "iifname . ether saddr . ip saddr",
        Key::InterfaceMacAndSource(Family::V6) => "iifname . ether saddr . ip6 saddr",
        Key::InterfaceMacAndArpSource => "iifname . ether saddr . arp saddr ip",
        Key::InterfaceArpMacAndArpSource => "iifname . arp saddr ether . arp saddr ip",
        Key::NeighbourTarget => "@th,64,128",
    }
}
