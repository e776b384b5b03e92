//! Addresses that have a meaning at this site alone.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

use super::{nat64, special};

/// The operator's statements about the site's own addresses. No rule opens any of these.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Site {
    /// Prefixes that no agent is told and that are never dialled for one.
    pub never_dial: Vec<IpNet>,
    /// The gateway's own addresses as seen from the internet, where the kernel does not know them.
    pub public_addresses: Vec<IpAddr>,
    /// The prefixes of the site's translators (NAT64). `None`: the resolvers are asked.
    pub nat64_prefixes: Option<Vec<Ipv6Net>>,
}

impl Site {
    /// Whether this address is closed to all agents.
    pub(crate) fn closes(&self, address: IpAddr) -> bool {
        self.public_addresses.contains(&address)
            || self.never_dial.iter().any(|prefix| prefix.contains(&address))
    }

    /// The prefixes below which an address stands for an IPv4 address, and for nothing else.
    pub(crate) fn translators(&self) -> impl Iterator<Item = &Ipv6Net> {
        let stated = self.nat64_prefixes.iter().flatten();
        stated.filter(|prefix| **prefix != nat64::WELL_KNOWN).chain([&nat64::WELL_KNOWN])
    }

    /// Whether the operator lists a translator's prefix that holds this address.
    pub(crate) fn translates(&self, address: Ipv6Addr) -> bool {
        self.nat64_prefixes.iter().flatten().any(|prefix| prefix.contains(&address))
    }

    /// Returns the destinations that no rule opens.
    pub(crate) fn closed(&self) -> Vec<IpNet> {
        let own = self.public_addresses.iter().copied().map(IpNet::from);
        self.never_dial.iter().copied().chain(own).collect()
    }

    /// Returns the destinations that nobody may dial unless a rule opens them:
    /// [`special::SPECIAL`], the same as translators write them, and those that are closed here.
    pub(crate) fn special(&self) -> Vec<IpNet> {
        let translators: Vec<IpNet> = self.translators().copied().map(IpNet::V6).collect();
        let rows: Vec<IpNet> = special::SPECIAL.iter().map(|row| row.prefix).collect();
        let closed = self.closed();
        let inner = rows.iter().chain(&closed).filter_map(|prefix| match prefix {
            IpNet::V4(prefix) => Some(*prefix),
            IpNet::V6(_) => None,
        });
        let translated = inner.flat_map(|inner| {
            self.translators().filter_map(move |outer| nat64::translated(outer, &inner))
        });
        let translated: Vec<IpNet> = translated.map(IpNet::V6).collect();
        [special::without(&rows, &translators), translated, closed].concat()
    }

    /// Returns the parts of the listed prefixes that the packet rules open: without destinations
    /// that are closed here, and without services of clouds that a prefix holds but does not mean.
    pub(crate) fn homes(&self, listed: &[IpNet]) -> Vec<IpNet> {
        let services: Vec<IpNet> = special::cloud_services().map(|row| row.prefix).collect();
        let opened = listed.iter().flat_map(|prefix| {
            let meant = services.iter().any(|service| service.contains(prefix));
            if meant { vec![*prefix] } else { special::without(&[*prefix], &services) }
        });
        special::without(&opened.collect::<Vec<_>>(), &self.closed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn site() -> Site {
        Site {
            never_dial: nets(&["198.51.100.64/26", "2001:db8:ff::/48"]),
            public_addresses: nets(&["203.0.113.9"]),
            nat64_prefixes: Some(nets(&["64:ff9b:1::/48", "2001:db8:64::/96"])),
        }
    }

    fn at_the_door(site: &Site, listed: &[&str], address: &str) -> bool {
        let address: IpAddr = address.parse().unwrap();
        let holds = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        !holds(&site.special()) || holds(&site.homes(&nets(listed)))
    }

    #[test]
    fn the_door_judges_a_translated_address_by_its_ipv4_address() {
        for open in [
            "64:ff9b::8.8.8.8",
            "64:ff9b:1:808:8:800::",
            "2001:db8:64::8.8.8.8",
            "2001:db8:65::10.0.0.1",
            "198.51.100.63",
        ] {
            assert!(at_the_door(&site(), &[], open), "{open}");
        }
        for closed in [
            "64:ff9b::10.0.0.1",
            "64:ff9b::168.63.129.16",
            "64:ff9b:1:a00:0:100::",
            "2001:db8:64::169.254.169.254",
            "2001:db8:64::198.51.100.65",
            "2001:db8:64::203.0.113.9",
            "198.51.100.65",
            "2001:db8:ff::1",
            "203.0.113.9",
        ] {
            assert!(!at_the_door(&site(), &[], closed), "{closed}");
        }
        // Without a translator, the address has the meaning of the registry.
        assert!(!at_the_door(&Site::default(), &[], "64:ff9b:1:808:8:800::"));
    }

    #[test]
    fn a_listed_prefix_opens_no_cloud_service_that_it_holds() {
        let site = Site { never_dial: nets(&["10.1.7.0/24"]), ..Site::default() };
        let listed = ["10.1.0.0/16", "169.254.0.0/16", "fc00::/7", "100.100.100.200/32"];
        for open in ["10.1.6.255", "10.1.8.0", "169.254.1.1", "fd00:ec1::1", "100.100.100.200"] {
            assert!(at_the_door(&site, &listed, open), "{open}");
        }
        for closed in ["10.1.7.1", "10.2.0.1", "169.254.169.254", "fd00:ec2::254", "fd20:ce::254"] {
            assert!(!at_the_door(&site, &listed, closed), "{closed}");
        }
        let all = site.homes(&nets(&["10.1.7.0/25"]));
        assert!(all.is_empty(), "{all:?}");
    }
}
