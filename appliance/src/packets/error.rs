//! The faults that keep packets from being captured, each in one line with its place and remedy.

use std::{fmt, io};

use nftnl::nftnl_sys::libc;

use super::ruleset::capture::DNS_PORT;
use crate::policy::InterfaceName;

/// The reasons why packets cannot be captured. Each is fatal at start.
#[derive(Debug, thiserror::Error)]
pub enum PacketsError {
    /// The process may not change the network.
    #[error("not permitted to {doing}: run as root or give the daemon CAP_NET_ADMIN")]
    NoNetAdmin {
        /// The step that was tried.
        doing: &'static str,
    },
    /// The process may not listen on the port of DNS.
    #[error("cannot listen on port 53 for the agents' DNS: the daemon needs CAP_NET_BIND_SERVICE")]
    NoBindService,
    /// An interface of an agent group does not exist.
    #[error(
        "interface {0} of an agent group does not exist: create it first, or correct `interface` in \
         the group"
    )]
    NoInterface(InterfaceName),
    /// The static guard table is not loaded, or the table of that name is not the guard.
    #[error(
        "the guard table inet cloakroom_base is not loaded: run `cloakroom guard --load`, and have \
         it run at boot (cloakroom-guard.service)"
    )]
    NoBaseTable,
    /// The guard does not close this machine's services: its input chain is missing, not hooked to
    /// input, or empty.
    #[error(
        "the guard table inet cloakroom_base is not whole: its chain {0} is missing, not hooked to \
         {0} or empty; run `cloakroom guard --load`, after `nft delete table inet cloakroom_base` \
         where nft says that the chain exists"
    )]
    NoBaseChain(&'static str),
    /// Interfaces of agent groups that the guard does not know.
    #[error(
        "the guard table inet cloakroom_base does not close this machine's services to {}: run \
         `cloakroom guard --load`, and have it run at boot (cloakroom-guard.service)",
        quoted(.0)
    )]
    Unguarded(Vec<InterfaceName>),
    /// The mark or the routing table already has another meaning.
    #[error(
        "mark {mark:#x} with routing table {table} cannot be used: the mark must not be 0, the \
         table not 0 or 253 to 255"
    )]
    Marks {
        /// The mark in the settings.
        mark: u32,
        /// The routing table in the settings.
        table: u32,
    },
    /// Another daemon holds this network namespace.
    #[error("another cloakroom holds proxy port {port} in this network namespace: stop it first")]
    AlreadyRunning {
        /// The proxy port that both want.
        port: u16,
    },
    /// Another program listens on the proxy port, or on that of DNS.
    #[error(fmt = port_in_use)]
    PortInUse {
        /// The port.
        port: u16,
        /// The interface on which it was tried.
        interface: InterfaceName,
        /// The programs that hold it, as far as they can be seen.
        holders: Vec<String>,
    },
    /// A listener could not be created.
    #[error("cannot {doing} for the listener on {interface}: {source}")]
    Listen {
        /// The interface it was for.
        interface: InterfaceName,
        /// The step that failed.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A listener is not transparent: connections would not reach the proxy.
    #[error(
        "the listener on {0} is not transparent, so it would receive nothing: the kernel lacks \
         IP_TRANSPARENT or took it back"
    )]
    NotTransparent(InterfaceName),
    /// A kernel setting on which the rules depend has another value.
    #[error(
        "{name} is {found} and has to be {wanted}, and cannot be set from here: run \
         `sysctl -w {name}={wanted}`"
    )]
    Sysctl {
        /// Its name, with dots.
        name: String,
        /// The value that it has to have.
        wanted: String,
        /// The value that it has.
        found: String,
    },
    /// A bridge below an agents' interface passes packets through the hooks of IP.
    #[error(
        "bridge {bridge} takes agents' packets through the hooks of IP, where those that are \
         captured get lost, and that cannot be turned off from here ({source}): run \
         `ip link set {bridge} type bridge nf_call_iptables 0 nf_call_ip6tables 0`"
    )]
    Filtered {
        /// The bridge.
        bridge: String,
        /// The kernel's answer to the attempt to turn that off.
        source: io::Error,
    },
    /// A kernel setting cannot be read.
    #[error("cannot read {name}: {source}; is /proc/sys mounted?")]
    SysctlUnreadable {
        /// Its name, with dots.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A rule or route of policy routing was refused.
    #[error(
        "cannot {doing}: {source}; the kernel needs policy routing (CONFIG_IP_MULTIPLE_TABLES, \
         CONFIG_IPV6_MULTIPLE_TABLES)"
    )]
    Route {
        /// The rule or route to be added.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// `lo` is down, and with it every local delivery of captured packets.
    #[error(
        "interface lo is down, and captured packets are delivered through it: run \
         `ip link set lo up`"
    )]
    LoopbackDown,
    /// IPv6 is to be captured, but the kernel has none.
    #[error(
        "IPv6 is off in this kernel (ipv6.disable=1, or built without): boot it with IPv6, or write \
         `ipv6 = false` in [gateway]"
    )]
    NoIpv6,
    /// IPv6 is to be captured, but is off where captured packets are delivered.
    #[error(
        "IPv6 is off on lo, and captured packets are delivered through it: run \
         `sysctl -w net.ipv6.conf.lo.disable_ipv6=0`, or write `ipv6 = false` in [gateway]"
    )]
    Ipv6OffAtLoopback,
    /// The kernel's reports of refused packets cannot be subscribed to.
    #[error(
        "cannot be told what is refused through NFLOG group {group}: {source}; another program may \
         have the group (choose another nflog_group), the daemon may lack CAP_NET_ADMIN, or the \
         kernel nfnetlink_log"
    )]
    PacketLog {
        /// The NFLOG group.
        group: u16,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Netlink messages to nf_tables failed.
    #[error("cannot {doing}: {source}; the kernel needs nf_tables (CONFIG_NF_TABLES_INET)")]
    Netlink {
        /// The step that was tried.
        doing: &'static str,
        /// The fault.
        source: io::Error,
    },
    /// nf_tables refused one message, and with it the whole transaction.
    #[error(
        "nf_tables refused {object}: {source}; if the kernel lacks one of its expressions, load \
         nft_tproxy, nft_socket, nft_fib_inet, nft_reject_inet, nft_log, nft_limit and \
         nfnetlink_log"
    )]
    Transaction {
        /// The object it refused.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel holds other rules than those that were sent.
    #[error(
        "nf_tables does not hold what was sent: {place}; something else edits table inet cloakroom"
    )]
    ReadBack {
        /// The place where they differ.
        place: String,
    },
}

fn quoted(names: &[InterfaceName]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    names.join(", ")
}

fn port_in_use(
    port: &u16,
    interface: &InterfaceName,
    holders: &[String],
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    match *port {
        DNS_PORT => write!(
            f,
            "port 53 is in use on {interface} by {}, at every address of this machine: have it \
             listen at addresses of its own (dnsmasq: bind-interfaces and listen-address; \
             unbound: interface), or stop it; the gateway answers the agents' DNS itself",
            who(holders, "another resolver")
        ),
        port => write!(
            f,
            "proxy port {port} is in use on {interface} by {}: stop it, or choose another \
             proxy_port",
            who(holders, "another program")
        ),
    }
}

fn who(holders: &[String], otherwise: &str) -> String {
    if holders.is_empty() { otherwise.to_owned() } else { holders.join(" and ") }
}

/// Returns an error that names the missing capability, if that is the cause.
pub(super) fn netlink_error(doing: &'static str, source: io::Error) -> PacketsError {
    if source.raw_os_error() == Some(libc::EPERM) {
        return PacketsError::NoNetAdmin { doing };
    }
    PacketsError::Netlink { doing, source }
}
