//! Prefixes with a special purpose, from the IANA registries (RFC 6890 and its updates).
//!
//! The packet rules refuse a destination in one of them at the door, before a connection exists;
//! the dialler refuses what a name resolves to.
//!
//! The documentation prefixes 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24 and 2001:db8::/32 are
//! left out: nobody routes them, so refusing them protects nothing, and they stand for the public
//! internet in the lab.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// IPv4 destinations that are refused.
pub(crate) const SPECIAL_4: &[Ipv4Net] = &[
    v4([0, 0, 0, 0], 8),  // this network (RFC 791); connect() to it reaches loopback
    v4([10, 0, 0, 0], 8), // private (RFC 1918)
    v4([100, 64, 0, 0], 10), // shared by carriers (RFC 6598)
    v4([127, 0, 0, 0], 8), // loopback (RFC 1122)
    v4([169, 254, 0, 0], 16), // link-local, and the metadata services of clouds (RFC 3927)
    v4([172, 16, 0, 0], 12), // private (RFC 1918)
    v4([192, 0, 0, 0], 24), // protocol assignments (RFC 6890)
    v4([192, 88, 99, 0], 24), // 6to4 relays (RFC 7526)
    v4([192, 168, 0, 0], 16), // private (RFC 1918)
    v4([198, 18, 0, 0], 15), // benchmarking (RFC 2544)
    v4([224, 0, 0, 0], 4), // multicast (RFC 5771)
    v4([240, 0, 0, 0], 4), // reserved, and limited broadcast (RFC 1112, RFC 919)
];

/// IPv6 destinations that are refused.
pub(crate) const SPECIAL_6: &[Ipv6Net] = &[
    v6([0, 0, 0, 0, 0, 0], 96), // unspecified, loopback, IPv4-compatible (RFC 4291)
    v6([0, 0, 0, 0, 0, 0xffff], 96), // IPv4-mapped (RFC 4291)
    v6([0x64, 0xff9b, 0, 0, 0, 0], 96), // NAT64, well known (RFC 6052)
    v6([0x64, 0xff9b, 1, 0, 0, 0], 48), // NAT64, local (RFC 8215)
    v6([0x100, 0, 0, 0, 0, 0], 64), // discard (RFC 6666)
    v6([0x100, 0, 0, 1, 0, 0], 64), // dummy (RFC 9780)
    v6([0x2001, 0, 0, 0, 0, 0], 23), // protocol assignments, with Teredo, benchmarking, ORCHID (RFC 2928)
    v6([0x2002, 0, 0, 0, 0, 0], 16), // 6to4 (RFC 3056)
    v6([0x3fff, 0, 0, 0, 0, 0], 20), // documentation (RFC 9637)
    v6([0x5f00, 0, 0, 0, 0, 0], 16), // segment identifiers (RFC 9602)
    v6([0xfc00, 0, 0, 0, 0, 0], 7),  // unique local (RFC 4193)
    v6([0xfe80, 0, 0, 0, 0, 0], 10), // link-local (RFC 4291)
    v6([0xfec0, 0, 0, 0, 0, 0], 10), // site-local, deprecated (RFC 3879)
    v6([0xff00, 0, 0, 0, 0, 0], 8),  // multicast (RFC 4291)
];

/// IPv4 sources that no host has, or that have no meaning beyond a link.
pub(crate) const MARTIAN_4: &[Ipv4Net] = &[
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
];

/// IPv6 sources that no host has, or that have no meaning beyond a link.
pub(crate) const MARTIAN_6: &[Ipv6Net] = &[
    v6([0, 0, 0, 0, 0, 0], 96),
    v6([0, 0, 0, 0, 0, 0xffff], 96),
    v6([0xfe80, 0, 0, 0, 0, 0], 10),
    v6([0xfec0, 0, 0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0, 0, 0], 8),
];

/// IPv6 sources of neighbour discovery before and beside a real address (RFC 4861, section 4.3).
pub(crate) const LINK_6: &[Ipv6Net] =
    &[v6([0, 0, 0, 0, 0, 0], 128), v6([0xfe80, 0, 0, 0, 0, 0], 10)];

const fn v4(octets: [u8; 4], length: u8) -> Ipv4Net {
    let [a, b, c, d] = octets;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(leading: [u16; 6], length: u8) -> Ipv6Net {
    let [a, b, c, d, e, f] = leading;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, 0, 0), length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnet::IpNet;

    #[test]
    fn no_prefix_has_host_bits() {
        for net in [SPECIAL_4, MARTIAN_4].concat() {
            assert_eq!(net, net.trunc());
        }
        for net in [SPECIAL_6, MARTIAN_6, LINK_6].concat() {
            assert_eq!(net, net.trunc());
        }
    }

    #[test]
    fn known_traps_are_refused_and_the_lab_is_not() {
        let special: Vec<IpNet> = (SPECIAL_4.iter().map(|net| IpNet::V4(*net)))
            .chain(SPECIAL_6.iter().map(|net| IpNet::V6(*net)))
            .collect();
        let refused = |address: &str| {
            let address: std::net::IpAddr = address.parse().unwrap();
            special.iter().any(|net| net.contains(&address))
        };
        for trap in [
            "169.254.169.254",
            "0.0.0.0",
            "127.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:0:53aa::1",
            "fd00::1",
        ] {
            assert!(refused(trap), "{trap}");
        }
        for public in ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "1.1.1.1"] {
            assert!(!refused(public), "{public}");
        }
    }
}
