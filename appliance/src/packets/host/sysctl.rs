//! Kernel settings on which the rules depend.
//!
//! The image sets them at boot (`image/99-cloakroom.conf`). The daemon sets those that differ where
//! it may, and reads each one back; it refuses to start on a wrong one, and refuses new connections
//! where one becomes wrong later. Two kinds may stay as they are: the rates of ICMP answers, which
//! protect nothing, and, with a warning, the bound on packets that wait for a neighbour, which some
//! kernels do not show in a user's own network namespace.

use std::{fs, io, path::PathBuf};

use super::super::error::PacketsError;
use crate::policy::InterfaceName;

/// Sets and checks the settings, for the machine and for each agent interface.
///
/// # Errors
///
/// [`PacketsError::Sysctl`] names the first one that is wrong and could not be set.
pub fn check_sysctls(interfaces: &[&InterfaceName]) -> Result<(), PacketsError> {
    // Forwarding comes first, because the kernel resets redirects to their defaults when it
    // changes.
    for (name, wanted) in MACHINE {
        hold(name, wanted)?;
    }
    for interface in interfaces {
        for (name, wanted) in INTERFACE_4 {
            hold(&format!("net/ipv4/conf/{interface}/{name}"), wanted)?;
        }
        reverse_path(interface)?;
        unknown_neighbours("ipv4", interface)?;
        if has_ipv6(interface) {
            for (name, wanted) in INTERFACE_6 {
                hold(&format!("net/ipv6/conf/{interface}/{name}"), wanted)?;
            }
            for name in YOUNG_6 {
                hold_where_it_is(&format!("net/ipv6/conf/{interface}/{name}"), "0")?;
            }
            unknown_neighbours("ipv6", interface)?;
        }
    }
    for (name, wanted) in RATES {
        if let Err(error) = hold(name, wanted) {
            tracing::warn!("{error}: agents may wait for timeouts where a refusal would be faster");
        }
    }
    Ok(())
}

/// Fails on the first interface that does not exist.
pub(crate) fn check_interfaces(interfaces: &[&InterfaceName]) -> Result<(), PacketsError> {
    // /proc/sys/net shows the network namespace of the reader, /sys that of the process that
    // mounted it.
    let missing = interfaces.iter().find(|name| !file(&format!("net/ipv4/conf/{name}")).is_dir());
    missing.map_or(Ok(()), |name| Err(PacketsError::NoInterface((*name).clone())))
}

/// Checks reverse-path filtering. The kernel takes the larger of this and `all`, and 2, the loose
/// check, is larger than 1, the strict one. Loose is enough here: `fib saddr . iif` in our own
/// table is the strict check, for both families.
fn reverse_path(interface: &InterfaceName) -> Result<(), PacketsError> {
    let name = format!("net/ipv4/conf/{interface}/rp_filter");
    if read(&name)? == "2" { Ok(()) } else { hold(&name, "1") }
}

/// Bounds the packets that wait for a neighbour. Packets for an agent that does not reveal its card
/// wait in a socket that all agents share, so there must be few for each.
fn unknown_neighbours(family: &str, interface: &InterfaceName) -> Result<(), PacketsError> {
    let name = format!("net/{family}/neigh/{interface}/unres_qlen_bytes");
    // Older kernels (6.1) show it only in the machine's own namespaces; no gateway runs in a
    // user's.
    if file(&name).exists() {
        return hold(&name, UNKNOWN_NEIGHBOUR_BYTES);
    }
    tracing::warn!("{} cannot be held: one agent may keep DNS from others", dotted(&name));
    Ok(())
}

fn has_ipv6(interface: &InterfaceName) -> bool {
    file(&format!("net/ipv6/conf/{interface}")).is_dir()
}

/// Makes a setting have this value, or returns its value in the error.
fn hold(name: &str, wanted: &str) -> Result<(), PacketsError> {
    if name.starts_with("net/ipv6/") && !file("net/ipv6").exists() {
        // A kernel without IPv6 has nothing to protect.
        return Ok(());
    }
    let before = read(name)?;
    if before == wanted {
        return Ok(());
    }
    // The read that follows shows whether writing worked.
    let _ = fs::write(file(name), wanted);
    let found = read(name)?;
    if found == wanted {
        tracing::warn!("{} was {before}; set to {wanted}", dotted(name));
        return Ok(());
    }
    Err(PacketsError::Sysctl { name: dotted(name), wanted: wanted.to_owned(), found })
}

/// Sets a setting that not every kernel has; a kernel without it lacks the feature, too.
pub(crate) fn hold_where_it_is(name: &str, wanted: &str) -> Result<(), PacketsError> {
    if file(name).exists() { hold(name, wanted) } else { Ok(()) }
}

fn read(name: &str) -> Result<String, PacketsError> {
    let text = fs::read_to_string(file(name));
    text.map(|text| text.trim().to_owned())
        .map_err(|source: io::Error| PacketsError::SysctlUnreadable { name: dotted(name), source })
}

fn file(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}

/// Formats a name as sysctl(8) does: a dot inside an interface's name becomes a slash.
fn dotted(name: &str) -> String {
    let swap = |letter| match letter {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    name.chars().map(swap).collect()
}

/// Settings for the machine, because the kernel joins `all` with the interface's own by "or", or
/// because the setting has no interface.
const MACHINE: &[(&str, &str)] = &[
    // This machine carries bytes; it never routes packets.
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv6/conf/all/forwarding", "0"),
    // If this or the interface's own is above 0, an interface gives up its address to any host that
    // claims it.
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/all/route_localnet", "0"),
    // With it, the check of the way back would follow our mark, and take every source for local.
    ("net/ipv4/conf/all/src_valid_mark", "0"),
    // We answer ARP and solicitations for ourselves only.
    ("net/ipv4/conf/all/proxy_arp", "0"),
    ("net/ipv4/conf/all/proxy_arp_pvlan", "0"),
    ("net/ipv6/conf/all/proxy_ndp", "0"),
    // Either would send our answers to a marked packet back to ourselves.
    ("net/ipv4/tcp_fwmark_accept", "0"),
    ("net/ipv4/fwmark_reflect", "0"),
    ("net/ipv6/fwmark_reflect", "0"),
];

/// Settings for each agent interface, IPv4.
const INTERFACE_4: &[(&str, &str)] = &[
    ("forwarding", "0"),
    ("accept_redirects", "0"),
    ("send_redirects", "0"),
    ("accept_source_route", "0"),
    ("route_localnet", "0"),
    ("src_valid_mark", "0"),
    ("proxy_arp", "0"),
    ("proxy_arp_pvlan", "0"),
    // Answer for addresses of this interface only, and use no other as source of a request.
    ("arp_ignore", "1"),
    ("arp_announce", "2"),
];

/// Settings for each agent interface, IPv6.
const INTERFACE_6: &[(&str, &str)] = &[
    // A host that answers the probe for the gateway's own address would take IPv6 from the
    // interface.
    ("accept_dad", "0"),
    ("accept_ra", "0"),
    ("accept_redirects", "0"),
    // -1 refuses even routing header type 2 (kernel, ip-sysctl.rst).
    ("accept_source_route", "-1"),
    // A fragmented advertisement (RFC 6980) does not have its target in the fragment that the table
    // of frames reads.
    ("suppress_frag_ndisc", "1"),
    ("proxy_ndp", "0"),
];

/// The same, from Linux 6.17 on: this one forwards packets of the interface whatever the machine's
/// switch says.
const YOUNG_6: &[&str] = &["force_forwarding"];

/// Refusals are not rate-limited, everything else is as before. In IPv4 each type has a bit: source
/// quench (4), time exceeded (11) and parameter problem (12). In IPv6 the types are listed: 0 and 3
/// to 127, which are all errors except destination unreachable (1) and packet too big (2).
const RATES: &[(&str, &str)] =
    &[("net/ipv4/icmp_ratemask", "6160"), ("net/ipv6/icmp/ratemask", "0,3-127")];

/// Bytes as the kernel counts them: five short answers, or one long one.
const UNKNOWN_NEIGHBOUR_BYTES: &str = "4096";

/// Returns whether the machine has the interface.
pub(crate) fn is_there(name: &InterfaceName) -> bool {
    check_interfaces(&[name]).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_the_kernel_lacks_is_not_held() {
        assert!(hold("net/ipv4/conf/lo/no_such_setting", "0").is_err());
        let ipv6 = file("net/ipv6").exists();
        assert_eq!(hold("net/ipv6/conf/lo/no_such_setting", "0").is_err(), ipv6);
        assert!(hold_where_it_is("net/ipv6/conf/lo/no_such_setting", "0").is_ok());
    }

    #[test]
    fn a_vlan_interface_is_written_as_sysctl_writes_it() {
        assert_eq!(dotted("net/ipv4/conf/eth0.10/rp_filter"), "net.ipv4.conf.eth0/10.rp_filter");
    }
}
