//! The captured traffic, its senders and its listeners: the input of the rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::{
    config::{AgentServices, Settings},
    policy::{BoundAgent, InterfaceName, Policy},
};

/// The port of DNS, over UDP and TCP.
pub(crate) const DNS_PORT: u16 = 53;

/// Returns the address to which the resolver's sockets are bound, a dummy address that no machine
/// has (RFC 7600, section 4.8; RFC 9780). So a resolver of this machine that is bound to addresses
/// of its own is not in the way, and packets get there only by the rules.
pub(crate) const fn dns_at(ipv6: bool) -> IpAddr {
    if ipv6 {
        IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 1, 0, 0, 0, 53))
    } else {
        IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8))
    }
}

/// The captured traffic, its senders and its listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// The interfaces of agents, in the order of their names; no name twice.
    pub interfaces: Vec<CaptureInterface>,
    /// The TCP ports that reach the proxy; every other one is reset. Sorted.
    pub ports: Vec<u16>,
    /// Special prefixes, including those of this site, which nobody may dial.
    pub special: Vec<IpNet>,
    /// The special prefixes that policy lists for an upstream. An agent may dial them;
    /// [`crate::dial`] still decides by name which address is connected to.
    pub homes: Vec<IpNet>,
    /// TCP port of the transparent listeners.
    pub proxy_port: u16,
    /// The mark that captured packets carry. Never 0.
    pub mark: u32,
    /// The routing table that the mark selects.
    pub route_table: u32,
    /// The NFLOG group to which refused packets are reported.
    pub nflog_group: u16,
    /// Whether IPv6 is captured; where false, every IPv6 packet of an agent is dropped.
    pub ipv6: bool,
    /// The services that the gateway's own address answers besides DNS.
    pub services: AgentServices,
    /// DNS queries a second of one agent, bounded by policy.
    pub dns_rate: u32,
}

/// One interface of agents, with the sources of all groups on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureInterface {
    /// Its name.
    pub name: InterfaceName,
    /// The source prefixes that may arrive on it, aggregated and sorted.
    pub prefixes: Vec<IpNet>,
    /// The agents that are bound to their network cards. If there is one, only frames from these
    /// agents and from `free` arrive, untagged.
    pub bound: Vec<BoundAgent>,
    /// The source prefixes of the groups on it that bind no agent.
    pub free: Vec<IpNet>,
    /// The source prefixes of each group on it, aggregated and sorted. No two overlap.
    pub groups: Vec<Vec<IpNet>>,
    /// The source prefixes of agents behind a narrower hop, with the largest packet that it
    /// carries.
    pub narrow: Vec<(u16, Vec<IpNet>)>,
    /// The source prefixes of the groups that fetch their CA at the gateway's own address.
    pub onboarding: Vec<IpNet>,
}

impl Capture {
    /// Gathers everything that the kernel has to know from policy and settings.
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
    /// Returns the same agents without a port that reaches the proxy: every new connection is
    /// reset, and accepted ones go on.
    #[must_use]
    pub fn closed(&self) -> Self {
        let mut closed = Self { ports: Vec::new(), ..self.clone() };
        closed.interfaces.iter_mut().for_each(|each| each.onboarding.clear());
        closed
    }

    /// Returns the interfaces, which cannot change while the daemon listens on them.
    pub fn interface_names(&self) -> Vec<&InterfaceName> {
        self.interfaces.iter().map(|interface| &interface.name).collect()
    }

    /// Returns every prefix that agents may send from.
    pub fn agents(&self) -> Vec<IpNet> {
        self.interfaces.iter().flat_map(|each| each.prefixes.iter().copied()).collect()
    }

    /// Returns how many listeners each worker has: one for each interface and family.
    pub fn listeners(&self) -> usize {
        self.interfaces.len() * if self.ipv6 { 2 } else { 1 }
    }
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

/// Returns the same addresses in the fewest prefixes: the kernel refuses intervals that overlap.
pub(crate) fn aggregate(prefixes: &[IpNet]) -> Vec<IpNet> {
    let mut fewest = IpNet::aggregate(&prefixes.to_vec());
    fewest.sort();
    fewest
}
