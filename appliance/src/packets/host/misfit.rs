//! Settings of this machine that do not fit the configuration, and would keep agents out silently.
//!
//! None of them opens anything: packets that do not fit are dropped. So each is a warning, and the
//! daemon starts. The exception is IPv6 that is to be carried but is off where captured packets are
//! delivered.

use std::{fs, net::IpAddr};

use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;

use super::{
    super::{
        error::PacketsError,
        ruleset::capture::{Capture, CaptureInterface},
    },
    sysctl::is_there,
};
use crate::policy::InterfaceName;

/// Returns each misfit in one line: the fault, its place and its remedy. Where this machine has no
/// interface of the agents, only that is returned, because it may not be the gateway.
pub fn misfits(capture: &Capture) -> Vec<String> {
    let names = capture.interface_names();
    let missing = missing(&names, is_there);
    if missing.len() == names.len() {
        return missing;
    }
    let kernel = require_ipv6(capture).err().map(|error| error.to_string());
    let networks = networks();
    let each = capture.interfaces.iter();
    let each = each.flat_map(|each| {
        ipv6_off(each, capture.ipv6).into_iter().chain(elsewhere(each, &networks))
    });
    missing.into_iter().chain(kernel).chain(each).collect()
}

/// Reports missing interfaces. A misspelt name looks like an interface that is not there yet.
fn missing(names: &[&InterfaceName], is_there: impl Fn(&InterfaceName) -> bool) -> Vec<String> {
    let text = |name: &&InterfaceName| {
        format!(
            "there is no interface {name} here: correct \"interface\", or make it before the daemon \
             starts; the guard protects interfaces by this name"
        )
    };
    names.iter().filter(|name| !is_there(name)).map(text).collect()
}

/// Fails if IPv6 is to be captured and the kernel has none, or has none where captured packets are
/// delivered.
pub(crate) fn require_ipv6(capture: &Capture) -> Result<(), PacketsError> {
    if !capture.ipv6 {
        return Ok(());
    }
    if !fs::exists("/proc/sys/net/ipv6").unwrap_or(true) {
        return Err(PacketsError::NoIpv6);
    }
    if is_off("lo") { Err(PacketsError::Ipv6OffAtLoopback) } else { Ok(()) }
}

fn ipv6_off(each: &CaptureInterface, ipv6: bool) -> Option<String> {
    let (name, wanted) = (&each.name, each.prefixes.iter().any(|it| matches!(it, IpNet::V6(_))));
    (ipv6 && wanted && is_off(name.as_str())).then(|| {
        format!(
            "IPv6 is off on {name}, where agents have IPv6 prefixes, and no IPv6 packet of theirs gets \
             in: run `sysctl -w net.ipv6.conf.{name}.disable_ipv6=0`"
        )
    })
}

fn is_off(interface: &str) -> bool {
    let switch = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"));
    switch.is_ok_and(|value| value.trim() == "1")
}

/// Returns the agents' prefixes that lie in the network of another interface. The way back to them
/// leads there, so the rules drop packets from them as spoofed.
fn elsewhere(each: &CaptureInterface, networks: &[(String, IpNet)]) -> Vec<String> {
    let own = |prefix: &IpNet, other: &IpNet| {
        let closer = |net: &IpNet| overlap(net, prefix) && net.prefix_len() >= other.prefix_len();
        networks.iter().any(|(name, net)| *name == each.name.as_str() && closer(net))
    };
    let others = networks.iter().filter(|(name, _)| *name != each.name.as_str() && name != "lo");
    let lost = others.flat_map(|(name, net)| {
        let lost = each.prefixes.iter().filter(|prefix| overlap(prefix, net) && !own(prefix, net));
        lost.map(move |prefix| (name, net, prefix))
    });
    let text = |(name, net, prefix): (&String, &IpNet, &IpNet)| {
        format!(
            "agents on {} have addresses in {prefix}, and {net} is the network of {name}: the way back \
             to them leads there, and what they send is dropped as spoofed_source; correct the \
             prefixes of the group, or the address of {name}",
            each.name
        )
    };
    lost.map(text).collect()
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// Returns the networks that this machine's interfaces are in; none where the kernel does not tell.
fn networks() -> Vec<(String, IpNet)> {
    let Ok(addresses) = getifaddrs() else { return Vec::new() };
    let network = |each: nix::ifaddrs::InterfaceAddress| {
        let (address, mask) = (ip(each.address.as_ref()?)?, ip(each.netmask.as_ref()?)?);
        let net = IpNet::with_netmask(address, mask).ok()?.trunc();
        // Every interface has link-local networks.
        let link_local = matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
        (!link_local).then_some((each.interface_name, net))
    };
    addresses.filter_map(network).collect()
}

fn ip(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_missing_interface_is_said_to_be_missing() {
        let names = ["agents0", "agnts1"].map(|name| InterfaceName(name.into()));
        let names: Vec<_> = names.iter().collect();
        let said = missing(&names, |name| name.as_str() == "agents0");
        assert!(said.len() == 1 && said[0].contains("no interface agnts1 here"), "{said:?}");
        assert!(missing(&names, |_| true).is_empty());
        assert_eq!(missing(&names, |_| false).len(), 2);
    }

    #[test]
    fn a_prefix_with_a_closer_network_elsewhere_is_reported() {
        let said = |prefix: &str, networks: &[(&str, &str)]| {
            let interface = CaptureInterface {
                name: InterfaceName("agents0".into()),
                prefixes: nets(&[prefix]),
                bound: Vec::new(),
                free: Vec::new(),
                groups: Vec::new(),
                narrow: Vec::new(),
                onboarding: Vec::new(),
            };
            let networks: Vec<_> = networks
                .iter()
                .map(|(name, net)| ((*name).to_owned(), net.parse().unwrap()))
                .collect();
            elsewhere(&interface, &networks)
        };
        let wan = ("wan0", "203.0.113.0/24");
        for lost in ["203.0.113.0/24", "203.0.113.128/25", "203.0.112.0/20"] {
            let said = said(lost, &[wan, ("agents0", "192.0.2.0/24")]);
            assert!(
                said.len() == 1 && said[0].contains("wan0") && said[0].contains(lost),
                "{said:?}"
            );
        }
        assert!(said("192.0.2.0/25", &[wan, ("agents0", "192.0.2.0/25")]).is_empty());
        // The agents' interface has a network that is as specific as the other's, or more so.
        assert!(said("203.0.113.128/25", &[wan, ("agents0", "203.0.113.128/25")]).is_empty());
        assert!(said("127.0.0.0/8", &[("lo", "127.0.0.0/8")]).is_empty());
    }
}
