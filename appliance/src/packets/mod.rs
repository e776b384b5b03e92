//! How an agent's packet reaches the proxy, and how every other packet of an agent ends.
//!
//! Promises, each enforced by the kernel and independent of whether the daemon is alive:
//!
//! - a TCP connection to a listed port ends in one of our listeners, or in a reset; never in a
//!   route to somewhere else;
//! - a packet whose source is not its interface's own is dropped without an answer;
//! - a DNS query, to whatever address, ends in our resolver's sockets, or in a refusal;
//! - but for that, the gateway's own addresses are closed to agents;
//! - IPv6 gets the same rules as IPv4, or none of it passes.
//!
//! It errs towards silence: whatever is in doubt is an error at start, and the static guard table
//! (`nft/base.nft`), which this module requires and never touches, stays closed. The table is
//! planned once, in [`plan`]; what is printed and what is sent to the kernel are two renderings of
//! that one plan, and the kernel is asked afterwards what it really holds.
//! `nft/README.md` is the prose of the same rules.

mod bridge;
mod error;
mod guard;
mod holder;
mod ingress;
mod install;
mod kept;
mod listen;
mod log;
mod lower;
mod marks;
mod meters;
mod misfit;
mod monitor;
mod narrow;
mod netlink;
mod nflog;
mod onboarding;
mod plan;
mod prerouting;
mod raw_expr;
mod readback;
mod render;
mod route;
mod sysctl;

#[cfg(test)]
mod kernel_tests;

pub use error::PacketsError;
pub use guard::guard;
pub use kept::Kept;
pub use listen::{Claim, DnsSockets, Listener, claim};
pub use marks::{ForeignMark, foreign_marks};
pub use misfit::misfits;
pub use monitor::Monitor;
pub use nflog::{Headers, PacketLog, RefusedPacket};
pub use readback::untold;
pub use sysctl::check_sysctls;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::{
    config::{AgentServices, Settings},
    policy::{BoundAgent, InterfaceName, Policy},
};

/// The port of DNS, over UDP and TCP.
const DNS_PORT: u16 = 53;

/// Where the resolver's sockets are bound, at dummy addresses that no machine has (RFC 7600, section
/// 4.8; RFC 9780). Another resolver of this machine that is bound to addresses of its own is not in the
/// way then, and no packet gets there but by the rules.
const fn dns_at(ipv6: bool) -> IpAddr {
    if ipv6 {
        IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 53))
    } else {
        IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8))
    }
}

/// What is captured, from whom, and where it is delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// The interfaces agents sit behind, in the order of their names; no name twice.
    pub interfaces: Vec<CaptureInterface>,
    /// The TCP ports that reach the proxy; every other one is reset. Sorted.
    pub ports: Vec<u16>,
    /// Special prefixes, those of this site among them, which nobody may dial.
    pub special: Vec<IpNet>,
    /// The part of them that policy lists as homes of an upstream. An agent may dial it; what is
    /// connected to is decided by name in [`crate::dial`] all the same.
    pub homes: Vec<IpNet>,
    /// TCP port of the transparent listeners.
    pub proxy_port: u16,
    /// The mark that captured packets carry. Never 0.
    pub mark: u32,
    /// The routing table that the mark selects.
    pub route_table: u32,
    /// The NFLOG group that is told what was refused.
    pub nflog_group: u16,
    /// Whether IPv6 is captured; where false, every IPv6 packet of an agent is dropped.
    pub ipv6: bool,
    /// What the gateway's own address answers besides DNS.
    pub services: AgentServices,
    /// DNS queries a second of one agent, as policy bounds them.
    pub dns_rate: u32,
}

/// One interface that agents sit behind, with the sources of all groups on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureInterface {
    /// Its name.
    pub name: InterfaceName,
    /// The source prefixes that may arrive on it, aggregated and sorted.
    pub prefixes: Vec<IpNet>,
    /// The agents that are bound to their network cards. Where there is one, nothing arrives but
    /// from them and from `free`, untagged.
    pub bound: Vec<BoundAgent>,
    /// The source prefixes of the groups on it that bind nobody.
    pub free: Vec<IpNet>,
    /// The source prefixes of each group on it, aggregated and sorted. No two overlap.
    pub groups: Vec<Vec<IpNet>>,
    /// The source prefixes of those behind a narrower hop, with the largest packet that it carries.
    pub narrow: Vec<(u16, Vec<IpNet>)>,
    /// The source prefixes of the groups that fetch their CA at the gateway's own address.
    pub onboarding: Vec<IpNet>,
}

impl Capture {
    /// Gathers from policy and settings what the kernel has to know.
    pub fn new(policy: &Policy, settings: &Settings) -> Self {
        let upstreams = policy.apis.iter().map(|api| &api.upstream);
        let upstreams = upstreams.chain(policy.passes.iter().map(|pass| &pass.upstream));
        let upstreams = upstreams.chain(policy.tcp.iter().map(|tcp| &tcp.upstream));
        let homes: Vec<IpNet> =
            upstreams.flat_map(|upstream| upstream.private_prefixes.iter().copied()).collect();
        let mut ports = policy.ports.clone();
        ports.sort_unstable();
        ports.dedup();
        Self {
            interfaces: interfaces(policy),
            ports,
            special: aggregate(&policy.site.special()),
            homes: aggregate(&policy.site.homes(&homes)),
            proxy_port: settings.proxy_port,
            mark: settings.mark,
            route_table: settings.route_table,
            nflog_group: settings.nflog_group,
            ipv6: settings.ipv6,
            services: settings.agent_services,
            dns_rate: policy.limits.dns_rate,
        }
    }
}

impl Capture {
    /// The same agents, with no port that reaches the proxy: every new connection is reset, and
    /// those that were accepted go on.
    #[must_use]
    pub fn closed(&self) -> Self {
        let mut closed = Self { ports: Vec::new(), ..self.clone() };
        closed.interfaces.iter_mut().for_each(|each| each.onboarding.clear());
        closed
    }

    /// The interfaces, which cannot change while the daemon listens on them.
    pub fn interface_names(&self) -> Vec<&InterfaceName> {
        self.interfaces.iter().map(|interface| &interface.name).collect()
    }

    /// Every prefix that agents may send from.
    pub fn agents(&self) -> Vec<IpNet> {
        self.interfaces.iter().flat_map(|each| each.prefixes.iter().copied()).collect()
    }

    /// How many listeners each worker has: one for each interface and family.
    pub fn listeners(&self) -> usize {
        self.interfaces.len() * if self.ipv6 { 2 } else { 1 }
    }
}

/// The daemon's tables in the syntax of nft, as [`apply`] installs them. They can be loaded with
/// `nft -f`, and checked with `nft -c -f`.
pub fn render(capture: &Capture) -> String {
    tables(capture, |_| true).iter().map(render::text).collect()
}

/// Makes the ground ready: interfaces there, guard table loaded and told of them, sysctls set,
/// routes in place. Can be repeated.
///
/// # Errors
///
/// The first thing that is missing, with what to do about it. Nothing is undone: every step by
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
/// What is missing, and what to do about it.
pub fn require_guard(capture: &Capture) -> Result<(), PacketsError> {
    readback::require_guard(&capture.interface_names())
}

/// Asserts, while the daemon runs, what the rules lean on beside the guard: the kernel's settings and
/// the routes. What differs is set right where it may be, and said. An interface that is gone is
/// passed over: nothing arrives on it.
///
/// # Errors
///
/// The first thing that is wrong and stays wrong.
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
/// [`PacketsError::ReadBack`] says where they differ.
pub fn verify(capture: &Capture) -> Result<(), PacketsError> {
    readback::verify(&tables(capture, is_there))
}

/// Installs or replaces the rules of the daemon's table in one transaction, then reads them back.
///
/// Base chains are made once and kept; packets meet either the old rules or the new ones.
/// The same call serves start and reload.
///
/// # Errors
///
/// [`PacketsError::Transaction`] where the kernel refuses; the old rules are then still in force.
/// [`PacketsError::ReadBack`] where the kernel holds something else than was sent.
pub fn apply(capture: &Capture) -> Result<(), PacketsError> {
    let tables = tables(capture, is_there);
    install::send(&tables)?;
    readback::verify(&tables)
}

/// The tables for a capture; a device that is not there has no chain.
fn tables(capture: &Capture, is_there: impl Fn(&InterfaceName) -> bool) -> Vec<plan::Table> {
    [plan::table(capture)].into_iter().chain(ingress::table(capture, is_there)).collect()
}

fn is_there(name: &InterfaceName) -> bool {
    sysctl::check_interfaces(&[name]).is_ok()
}

fn check_marks(capture: &Capture) -> Result<(), PacketsError> {
    // Mark 0 is every unmarked packet, and tables 253 to 255 are the kernel's own.
    if capture.mark == 0 || matches!(capture.route_table, 0 | 253..=255) {
        return Err(PacketsError::Marks { mark: capture.mark, table: capture.route_table });
    }
    Ok(())
}

fn interfaces(policy: &Policy) -> Vec<CaptureInterface> {
    let mut names: Vec<&InterfaceName> =
        policy.groups.iter().map(|group| &group.interface).collect();
    names.sort();
    names.dedup();
    names.into_iter().map(|name| interface(policy, name)).collect()
}

fn interface(policy: &Policy, name: &InterfaceName) -> CaptureInterface {
    let groups = || policy.groups.iter().filter(|group| group.interface == *name);
    let prefixes: Vec<IpNet> = groups().flat_map(|group| group.prefixes.iter().copied()).collect();
    let free = groups().filter(|group| group.agents.is_empty());
    let free: Vec<IpNet> = free.flat_map(|group| group.prefixes.iter().copied()).collect();
    let onboarding = groups().filter(|group| group.onboarding.is_some());
    let onboarding: Vec<IpNet> =
        onboarding.flat_map(|group| group.prefixes.iter().copied()).collect();
    CaptureInterface {
        name: name.clone(),
        prefixes: aggregate(&prefixes),
        bound: groups().flat_map(|group| group.agents.iter().cloned()).collect(),
        free: aggregate(&free),
        groups: groups().map(|group| aggregate(&group.prefixes)).collect(),
        narrow: groups()
            .filter_map(|group| Some((group.mtu?, aggregate(&group.prefixes))))
            .collect(),
        onboarding: aggregate(&onboarding),
    }
}

/// The same addresses in the fewest prefixes: the kernel refuses intervals that overlap.
fn aggregate(prefixes: &[IpNet]) -> Vec<IpNet> {
    let mut fewest = IpNet::aggregate(&prefixes.to_vec());
    fewest.sort();
    fewest
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        config::AuditTarget,
        policy::{
            Carry, DialledRule, Ech, Group, GroupName, Limits, Pass, RuleName, Site, Tcp, Upstream,
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
            apis: Vec::new(),
            passes: vec![Arc::new(Pass {
                name: RuleName(Arc::from("inside")),
                carry: Carry::Splice { ech: Ech::Refuse },
                groups: Vec::new(),
                hosts: Vec::new(),
                ports: vec![443],
                upstream: Upstream { ca_pem: None, private_prefixes: nets(&["10.9.0.0/24"]) },
                dialled: DialledRule::Answered,
            })],
            tcp: vec![Arc::new(Tcp {
                name: RuleName(Arc::from("git")),
                groups: Vec::new(),
                hosts: Vec::new(),
                ports: vec![22],
                upstream: Upstream { ca_pem: None, private_prefixes: nets(&["10.9.1.0/24"]) },
            })],
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
