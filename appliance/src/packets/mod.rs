//! The way of an agent's packet to the proxy, and the end of every other packet of an agent.
//!
//! Promises, each enforced by the kernel and independent of whether the daemon is alive:
//!
//! - a TCP connection to a listed port ends in one of our listeners, or in a reset; never in a
//!   route to somewhere else;
//! - a packet whose source is not its interface's own is dropped without an answer;
//! - a DNS query, to whatever address, ends in our resolver's sockets, or in a refusal;
//! - apart from that, the gateway's own addresses are closed to agents;
//! - IPv6 gets the same rules as IPv4, or none of it passes.
//!
//! Errs towards silence: every doubt is an error at start, and the static guard table
//! (`nft/base.nft`), which this module requires and never touches, stays closed. The table is
//! planned once, in [`ruleset`]. The printed text and the messages to the kernel are two renderings
//! of that one plan, and the kernel is asked afterwards which rules it really holds.
//! `nft/README.md` explains the same rules in prose.

mod error;
mod host;
mod listeners;
mod nft;
mod ruleset;

#[cfg(test)]
mod kernel_tests;

pub use error::PacketsError;
pub use host::{check_sysctls, misfits};
pub use listeners::{
    DaemonState, DnsSockets, HeldName, InheritedListeners, Listener, ListenerClaim, claim,
};
pub use nft::{ForeignRules, Headers, Monitor, PacketLog, RefusedPacket, foreign_rules, unlogged};
pub use ruleset::{Capture, CaptureInterface, guard};

use self::{
    host::{bridge, is_there, misfit, route, sysctl},
    nft::{install, readback},
    ruleset::tables,
};
use crate::policy::InterfaceName;

/// Returns the daemon's tables in the syntax of nft, as [`apply`] installs them. They can be loaded
/// with `nft -f`, and checked with `nft -c -f`.
pub fn render(capture: &Capture) -> String {
    tables(capture, |_| true).iter().map(ruleset::text).collect()
}

/// Prepares the host: checks that the interfaces are there and that the guard table is loaded with
/// them, and sets sysctls and routes. Can be repeated.
///
/// # Errors
///
/// The first condition that is missing, with its remedy. Nothing is undone: each step leaves less
/// open than before.
/// itself leaves less open than before.
pub async fn prepare(capture: &Capture) -> Result<(), PacketsError> {
    check_marks(capture)?;
    misfit::require_ipv6(capture)?;
    let names: Vec<&InterfaceName> = capture.interfaces.iter().map(|each| &each.name).collect();
    sysctl::check_interfaces(&names)?;
    readback::require_guard(&names)?;
    check_sysctls(&names)?;
    bridge::assert_unfiltered(&names).await?;
    route::install(capture).await
}

/// Fails unless the guard table is whole and knows the interfaces of the capture.
///
/// # Errors
///
/// The missing condition, and its remedy.
pub fn require_guard(capture: &Capture) -> Result<(), PacketsError> {
    readback::require_guard(&capture.interface_names())
}

/// Checks, while the daemon runs, the conditions of the rules other than the guard: the kernel's
/// settings and the routes. A difference is corrected where that is allowed, and logged. An
/// interface that is gone is skipped, because nothing arrives on it.
///
/// # Errors
///
/// The first setting that is wrong and stays wrong.
pub async fn assert_settings(capture: &Capture) -> Result<(), PacketsError> {
    let mut names = capture.interface_names();
    names.retain(|name| is_there(name));
    check_sysctls(&names)?;
    bridge::assert_unfiltered(&names).await?;
    route::install(capture).await
}

/// Fails unless the kernel holds the daemon's tables as [`apply`] installs them.
///
/// # Errors
///
/// [`PacketsError::ReadBack`] tells where they differ.
pub fn verify(capture: &Capture) -> Result<(), PacketsError> {
    readback::verify(&tables(capture, is_there))
}

/// Installs or replaces the rules of the daemon's table in one transaction, then reads them back.
///
/// Base chains are created once and kept; packets meet either the old rules or the new ones. Start
/// and reload make the same call.
///
/// # Errors
///
/// [`PacketsError::Transaction`] where the kernel refuses; the old rules are then still in force.
/// [`PacketsError::ReadBack`] where the kernel holds other rules than those that were sent.
pub fn apply(capture: &Capture) -> Result<(), PacketsError> {
    let tables = tables(capture, is_there);
    install::send(&tables)?;
    readback::verify(&tables)
}

fn check_marks(capture: &Capture) -> Result<(), PacketsError> {
    // Every unmarked packet has mark 0, and tables 253 to 255 are the kernel's own.
    if capture.mark == 0 || matches!(capture.route_table, 0 | 253..=255) {
        return Err(PacketsError::Marks { mark: capture.mark, table: capture.route_table });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ipnet::IpNet;

    use super::{ruleset::capture::aggregate, *};
    use crate::{
        config::{AgentServices, AuditTarget, Settings},
        policy::{
            BoundAgent, Carry, DialledRule, Ech, Group, GroupName, Limits, Mac, Pass, Policy,
            RuleName, Rules, Site, Tcp, Upstream,
        },
    };

    #[test]
    fn overlapping_groups_become_disjoint_prefixes() {
        let fewest =
            aggregate(&nets(&["10.1.0.0/16", "10.1.2.0/24", "2001:db8::/64", "10.0.0.0/16"]));
        assert_eq!(fewest, nets(&["10.0.0.0/15", "2001:db8::/64"]));
    }

    #[test]
    fn groups_of_one_interface_are_captured_together() {
        let policy = Policy {
            groups: vec![
                group("b", "eth2", &["10.2.0.0/24"]),
                group("a", "eth1", &["10.1.0.0/24", "2001:db8:1::/64"]),
                group("c", "eth1", &["10.3.0.0/24"]),
            ],
            apis: Rules::default(),
            passes: vec![Arc::new(Pass {
                name: RuleName(Arc::from("inside")),
                client: None,
                carry: Carry::Splice { ech: Ech::Refuse },
                groups: Vec::new(),
                hosts: Vec::new(),
                ports: vec![443],
                upstream: Upstream { ca_pem: None, private_prefixes: nets(&["10.9.0.0/24"]) },
                dialled: DialledRule::Answered,
            })]
            .into(),
            tcp: vec![Arc::new(Tcp {
                name: RuleName(Arc::from("git")),
                groups: Vec::new(),
                hosts: Vec::new(),
                ports: vec![22],
                upstream: Upstream { ca_pem: None, private_prefixes: nets(&["10.9.1.0/24"]) },
            })]
            .into(),
            ports: vec![443, 80, 443],
            limits: Limits::default(),
            site: Site::default(),
        };
        let capture = Capture::new(&policy, &settings());
        let seen: Vec<_> =
            capture.interfaces.iter().map(|each| (each.name.as_str(), &each.prefixes)).collect();
        let first = nets(&["10.1.0.0/24", "10.3.0.0/24", "2001:db8:1::/64"]);
        assert_eq!(seen, [("eth1", &first), ("eth2", &nets(&["10.2.0.0/24"]))]);
        assert_eq!((capture.ports, capture.homes), (vec![80, 443], nets(&["10.9.0.0/23"])));
    }

    #[test]
    fn a_groups_dns_rate_grows_with_its_bound_cards() {
        let of_cards = |name, third, cards: u16| {
            let mut of_cards = group(name, "eth1", &[&format!("10.{third}.0.0/16")]);
            let bound = (1..=cards).map(|number| {
                let [high, low] = number.to_be_bytes();
                BoundAgent {
                    mac: Mac::parse(&format!("02:00:00:{third:02x}:{high:02x}:{low:02x}")).unwrap(),
                    // One card is one host, however many addresses it has.
                    addresses: vec![
                        [10, third, high, low].into(),
                        [10, third, high + 9, low].into(),
                    ],
                }
            });
            Arc::get_mut(&mut of_cards).unwrap().agents = bound.collect();
            of_cards
        };
        let none = group("none", "eth1", &["10.9.0.0/16"]);
        let groups = vec![of_cards("a", 1, 8), of_cards("b", 2, 64), of_cards("c", 3, 1_000), none];
        let policy = Policy {
            groups,
            apis: Rules::default(),
            passes: Rules::default(),
            tcp: Rules::default(),
            ports: vec![443],
            limits: Limits { dns_rate: 600, ..Limits::default() },
            site: Site::default(),
        };
        let rules = render(&Capture::new(&policy, &settings()));
        let rules: Vec<_> = rules.lines().filter(|line| line.contains("@dns_groups")).collect();
        let expected = [
            ("mark 0x00000002 update", "over 38400/second"),
            ("mark 0x00000003 update", "over 47000/second"),
            ("mark != 0x00000002 meta mark != 0x00000003 update", "over 4800/second"),
        ];
        assert_eq!(rules.len(), expected.len(), "{rules:#?}");
        for (rule, (who, rate)) in rules.iter().zip(expected) {
            assert!(rule.contains(who) && rule.contains(rate), "{rule}");
        }
    }

    #[test]
    fn a_mark_or_table_of_the_kernels_own_is_refused() {
        let capture = |mark, route_table| Capture {
            interfaces: Vec::new(),
            ports: Vec::new(),
            special: Vec::new(),
            homes: Vec::new(),
            proxy_port: 8443,
            mark,
            route_table,
            nflog_group: 1,
            ipv6: true,
            services: AgentServices::default(),
            dns_rate: 200,
        };
        assert!(check_marks(&capture(1, 100)).is_ok());
        for (mark, table) in [(0, 100), (1, 0), (1, 253), (1, 254), (1, 255)] {
            assert!(check_marks(&capture(mark, table)).is_err(), "{mark} {table}");
        }
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn group(name: &str, interface: &str, prefixes: &[&str]) -> Arc<Group> {
        Arc::new(Group {
            name: GroupName(Arc::from(name)),
            interface: InterfaceName(Arc::from(interface)),
            prefixes: nets(prefixes),
            vault_role: "cloakroom".into(),
            clients: Vec::new(),
            mtu: None,
            onboarding: None,
            agents: Vec::new(),
        })
    }

    fn settings() -> Settings {
        Settings {
            audit: AuditTarget::Stdout,
            ca_dir: "/nowhere".into(),
            state_dir: "/nowhere".into(),
            control: "/nowhere".into(),
            metrics: None,
            proxy_port: 8443,
            mark: 1,
            route_table: 100,
            nflog_group: 1,
            assert_every: std::time::Duration::from_secs(60),
            ipv6: true,
            agent_services: AgentServices::default(),
            resolvers: Vec::new(),
            resolver_ca: None,
            workers: 1,
            vault: None,
            secret_file: None,
        }
    }
}
