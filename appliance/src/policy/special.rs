//! Addresses with a special purpose, each with its source: the IANA registries (RFC 6890 and its
//! updates), and the documents of clouds about services of their own.
//!
//! The packet rules refuse a destination among them before a connection exists; the dialler refuses
//! one to which a name resolves.
//!
//! The documentation prefixes 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24 and 2001:db8::/32 are
//! left out: nobody routes them, so refusing them protects nothing, and they stand for the public
//! internet in the lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A prefix that is not the public internet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Special {
    pub(crate) prefix: IpNet,
    /// The purpose, in a few words.
    pub(crate) purpose: &'static str,
    /// The source: an RFC, or a page of the cloud's own documentation.
    pub(crate) source: &'static str,
    pub(crate) kind: SpecialKind,
}

/// The kind of prefix that an operator must list to open a special one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpecialKind {
    /// Any prefix that holds the address opens it.
    Registered,
    /// A service of a cloud, such as one that hands out credentials. Only a prefix within its own
    /// opens it: a wider one was written for something else.
    Cloud,
}

/// Every special prefix.
#[rustfmt::skip] // a table, one row a line
pub(crate) const SPECIAL: &[Special] = &[
    registered(v4([0, 0, 0, 0], 8), "this network; connect() to it reaches loopback", "RFC 791"),
    registered(v4([10, 0, 0, 0], 8), "private", "RFC 1918"),
    registered(v4([100, 64, 0, 0], 10), "shared by carriers", "RFC 6598"),
    registered(v4([127, 0, 0, 0], 8), "loopback", "RFC 1122"),
    registered(v4([169, 254, 0, 0], 16), "link-local, and services of clouds", "RFC 3927"),
    registered(v4([172, 16, 0, 0], 12), "private", "RFC 1918"),
    registered(v4([192, 0, 0, 0], 24), "protocol assignments", "RFC 6890"),
    registered(v4([192, 88, 99, 0], 24), "6to4 relays", "RFC 7526"),
    registered(v4([192, 168, 0, 0], 16), "private", "RFC 1918"),
    registered(v4([198, 18, 0, 0], 15), "benchmarking", "RFC 2544"),
    registered(v4([224, 0, 0, 0], 4), "multicast", "RFC 5771"),
    registered(v4([240, 0, 0, 0], 4), "reserved, and limited broadcast", "RFC 1112, RFC 919"),

    registered(v6([0, 0, 0, 0, 0, 0], 96), "unspecified, loopback, IPv4-compatible", "RFC 4291"),
    registered(v6([0, 0, 0, 0, 0, 0xffff], 96), "IPv4-mapped", "RFC 4291"),
    registered(v6([0x64, 0xff9b, 0, 0, 0, 0], 96), "NAT64, well known", "RFC 6052"),
    registered(v6([0x64, 0xff9b, 1, 0, 0, 0], 48), "NAT64, local", "RFC 8215"),
    registered(v6([0x100, 0, 0, 0, 0, 0], 64), "discard", "RFC 6666"),
    registered(v6([0x100, 0, 0, 1, 0, 0], 64), "dummy", "RFC 9780"),
    registered(v6([0x2001, 0, 0, 0, 0, 0], 23), "protocol assignments, with Teredo, benchmarking, ORCHID", "RFC 2928"),
    registered(v6([0x2002, 0, 0, 0, 0, 0], 16), "6to4", "RFC 3056"),
    registered(v6([0x3fff, 0, 0, 0, 0, 0], 20), "documentation", "RFC 9637"),
    registered(v6([0x5f00, 0, 0, 0, 0, 0], 16), "segment identifiers", "RFC 9602"),
    registered(v6([0xfc00, 0, 0, 0, 0, 0], 7), "unique local", "RFC 4193"),
    registered(v6([0xfe80, 0, 0, 0, 0, 0], 10), "link-local", "RFC 4291"),
    registered(v6([0xfec0, 0, 0, 0, 0, 0], 10), "site-local, deprecated", "RFC 3879"),
    registered(v6([0xff00, 0, 0, 0, 0, 0], 8), "multicast", "RFC 4291"),

    cloud(v4([100, 100, 100, 200], 32), "metadata of Alibaba Cloud",
        "www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata"),
    cloud(v4([161, 26, 0, 0], 16), "services of IBM Cloud",
        "cloud.ibm.com/docs/vpc?topic=vpc-service-endpoints-for-vpc"),
    cloud(v4([166, 8, 0, 0], 14), "service endpoints of IBM Cloud",
        "cloud.ibm.com/docs/vpc?topic=vpc-service-endpoints-for-vpc"),
    cloud(v4([168, 63, 129, 16], 32), "the wire server of Azure",
        "learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16"),
    cloud(v4([169, 254, 0, 23], 32), "metadata of Tencent Cloud",
        "www.tencentcloud.com/document/product/213/4934"),
    cloud(v4([169, 254, 42, 42], 32), "metadata of Scaleway",
        "docs.cloud-init.io/en/latest/reference/datasources/scaleway.html"),
    cloud(v4([169, 254, 169, 254], 32), "metadata of AWS, Azure, DigitalOcean, Google, Hetzner, IBM, OpenStack, Oracle and more",
        "docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html and its like"),
    cloud(v4([169, 254, 170, 2], 32), "credentials of AWS ECS tasks",
        "docs.aws.amazon.com/AmazonECS/latest/developerguide/task-iam-roles.html"),
    cloud(v4([169, 254, 170, 23], 32), "credentials of AWS EKS pods",
        "docs.aws.amazon.com/eks/latest/userguide/pod-id-how-it-works.html"),
    cloud(v4([183, 60, 82, 98], 32), "a resolver inside of Tencent Cloud",
        "www.tencentcloud.com/document/product/213/5225"),
    cloud(v4([183, 60, 83, 19], 32), "a resolver inside of Tencent Cloud",
        "www.tencentcloud.com/document/product/213/5225"),
    cloud(v4([192, 0, 0, 192], 32), "metadata of Oracle Cloud Classic",
        "docs.oracle.com/en/cloud/iaas/compute-iaas-cloud/stcsg/retrieving-instance-metadata.html"),

    cloud(v6([0xfd00, 0xec2, 0, 0, 0, 0], 32), "metadata, DNS, time and credentials of AWS",
        "docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html"),
    cloud(one_v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42]), "metadata of Scaleway",
        "docs.cloud-init.io/en/latest/reference/datasources/scaleway.html"),
    cloud(one_v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]), "metadata of Oracle Cloud",
        "docs.oracle.com/en-us/iaas/Content/Compute/Tasks/gettingmetadata.htm"),
    cloud(one_v6([0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200]), "metadata of Alibaba Cloud",
        "www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata"),
    cloud(one_v6([0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1]), "metadata of Akamai (Linode)",
        "docs.cloud-init.io/en/latest/reference/datasources/akamai.html"),
    cloud(one_v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]), "metadata of Google Cloud",
        "cloud.google.com/compute/docs/metadata/querying-metadata"),
    cloud(one_v6([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe]), "metadata of OpenStack",
        "docs.openstack.org/nova/latest/user/metadata.html"),
];

/// The services of clouds.
pub(crate) fn cloud_services() -> impl Iterator<Item = &'static Special> {
    SPECIAL.iter().filter(|special| special.kind == SpecialKind::Cloud)
}

/// Whether an address is not public unicast: it is in [`SPECIAL`], or it is IPv6 outside of the one
/// block that is assigned to public unicast (RFC 4291, section 2.4).
pub(crate) fn is_special(address: IpAddr) -> bool {
    let assigned = match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => v6.octets().first().is_some_and(|first| first >> 5 == 0b001),
    };
    !assigned || SPECIAL.iter().any(|special| special.prefix.contains(&address))
}

/// Whether one of the listed prefixes opens this special address.
pub(crate) fn is_opened(address: IpAddr, listed: &[IpNet]) -> bool {
    let service = cloud_services().find(|special| special.prefix.contains(&address));
    let meant = |prefix: &&IpNet| service.is_none_or(|service| service.prefix.contains(*prefix));
    listed.iter().filter(meant).any(|prefix| prefix.contains(&address))
}

/// Returns the parts of the prefixes that are in none of the others, in the order of both.
pub(crate) fn without(prefixes: &[IpNet], others: &[IpNet]) -> Vec<IpNet> {
    let mut left: Vec<IpNet> = prefixes.to_vec();
    for other in others {
        left = left.into_iter().flat_map(|prefix| difference(prefix, other)).collect();
    }
    left
}

/// Returns the prefix less another: nothing, itself, or the halves that the other is not in.
fn difference(prefix: IpNet, other: &IpNet) -> Vec<IpNet> {
    let (mut rest, mut left) = (prefix, Vec::new());
    while rest.contains(other) && rest != *other {
        let Ok(mut halves) = rest.subnets(rest.prefix_len() + 1) else { break };
        let (Some(low), Some(high)) = (halves.next(), halves.next()) else { break };
        let (inside, outside) = if low.contains(other) { (low, high) } else { (high, low) };
        left.push(outside);
        rest = inside;
    }
    if !other.contains(&rest) {
        left.push(rest);
    }
    left
}

/// IPv4 sources that no host has, or that have no meaning beyond a link.
pub(crate) const MARTIAN_4: &[IpNet] = &[
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
];

/// IPv6 sources that no host has, or that have no meaning beyond a link.
pub(crate) const MARTIAN_6: &[IpNet] = &[
    v6([0, 0, 0, 0, 0, 0], 96),
    v6([0, 0, 0, 0, 0, 0xffff], 96),
    v6([0xfe80, 0, 0, 0, 0, 0], 10),
    v6([0xfec0, 0, 0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0, 0, 0], 8),
];

/// IPv4 sources of hosts that have no real address yet: none, and one that they gave themselves
/// (RFC 3927).
pub(crate) const LINK_4: &[IpNet] = &[v4([0, 0, 0, 0], 32), v4([169, 254, 0, 0], 16)];

/// IPv6 sources of neighbour discovery before and beside a real address (RFC 4861, section 4.3).
pub(crate) const LINK_6: &[IpNet] = &[v6([0, 0, 0, 0, 0, 0], 128), v6([0xfe80, 0, 0, 0, 0, 0], 10)];

/// IPv4 destinations that are many hosts, on any network (RFC 1112, RFC 919).
pub(crate) const MANY_4: &[IpNet] = &[v4([224, 0, 0, 0], 4), v4([255, 255, 255, 255], 32)];

/// IPv6 destinations that are many hosts (RFC 4291, section 2.7).
pub(crate) const MANY_6: &[IpNet] = &[v6([0xff00, 0, 0, 0, 0, 0], 8)];

const fn registered(prefix: IpNet, purpose: &'static str, source: &'static str) -> Special {
    Special { prefix, purpose, source, kind: SpecialKind::Registered }
}

const fn cloud(prefix: IpNet, purpose: &'static str, source: &'static str) -> Special {
    Special { prefix, purpose, source, kind: SpecialKind::Cloud }
}

const fn v4(octets: [u8; 4], length: u8) -> IpNet {
    let [a, b, c, d] = octets;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(leading: [u16; 6], length: u8) -> IpNet {
    let [a, b, c, d, e, f] = leading;
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, 0, 0), length))
}

const fn one_v6(segments: [u16; 8]) -> IpNet {
    let [a, b, c, d, e, f, g, h] = segments;
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), 128))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn each_row_has_a_clean_prefix_meaning_and_source() {
        for net in [MARTIAN_4, MARTIAN_6, LINK_4, LINK_6, MANY_4, MANY_6].concat() {
            assert_eq!(net, net.trunc());
        }
        for (at, row) in SPECIAL.iter().enumerate() {
            assert_eq!(row.prefix, row.prefix.trunc());
            let rfc = row.source.starts_with("RFC ");
            assert!(
                !row.purpose.is_empty() && rfc == (row.kind == SpecialKind::Registered),
                "{row:?}"
            );
            assert!(rfc || row.source.contains('/'), "a page: {row:?}");
            assert!(SPECIAL[at + 1..].iter().all(|other| other.prefix != row.prefix), "{row:?}");
        }
    }

    #[test]
    fn known_traps_are_special_and_the_lab_is_not() {
        for trap in [
            "169.254.169.254",
            "0.0.0.0",
            "127.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "161.26.0.10",
            "166.8.0.1",
            "166.11.255.255",
            "100.100.100.200",
            "169.254.0.23",
            "183.60.83.19",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:0:53aa::1",
            "fd00::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "4000::1",
        ] {
            assert!(is_special(address(trap)), "{trap}");
        }
        for public in [
            "192.0.2.1",
            "198.51.100.1",
            "203.0.113.1",
            "2001:db8::1",
            "1.1.1.1",
            "168.63.129.15",
            "168.63.129.17",
            "161.25.255.255",
            "166.12.0.0",
            "166.7.255.255",
        ] {
            assert!(!is_special(address(public)), "{public}");
        }
    }

    #[test]
    fn a_wide_prefix_opens_all_but_the_services_of_clouds() {
        for (listed, opened, closed) in [
            ("10.0.0.0/8", "10.1.2.3", "11.0.0.1"),
            ("100.64.0.0/10", "100.100.100.201", "100.100.100.200"),
            ("169.254.0.0/16", "169.254.169.253", "169.254.169.254"),
            ("fc00::/7", "fd00:ec1::254", "fd00:ec2::254"),
            ("fd00::/8", "fd20:ce::253", "fd20:ce::254"),
            ("168.0.0.0/8", "168.1.2.3", "168.63.129.16"),
            ("160.0.0.0/5", "160.1.2.3", "161.26.0.10"),
        ] {
            let listed = nets(&[listed]);
            assert!(is_opened(address(opened), &listed), "{listed:?} {opened}");
            assert!(!is_opened(address(closed), &listed), "{listed:?} {closed}");
        }
        for meant in ["100.100.100.200/32", "169.254.169.254/32", "166.9.0.0/16", "fd00:ec2::/32"] {
            let meant: IpNet = meant.parse().unwrap();
            assert!(is_opened(meant.addr(), &[meant]), "{meant}");
        }
    }

    fn any_net() -> impl Strategy<Value = IpNet> {
        // Few bits are random, so that prefixes meet.
        (any::<u8>(), 0..=8_u8, any::<bool>()).prop_map(|(bits, length, v6)| {
            let net = if v6 {
                IpNet::new(Ipv6Addr::from(u128::from(bits) << 120).into(), length)
            } else {
                IpNet::new(Ipv4Addr::from(u32::from(bits) << 24).into(), length)
            };
            net.unwrap().trunc()
        })
    }

    proptest! {
        #[test]
        fn a_difference_of_prefixes_loses_and_adds_nothing(
            prefixes in prop::collection::vec(any_net(), 0..4),
            others in prop::collection::vec(any_net(), 0..4),
        ) {
            let left = without(&prefixes, &others);
            for bits in 0..=255_u8 {
                for address in [
                    IpAddr::V4(Ipv4Addr::from(u32::from(bits) << 24)),
                    IpAddr::V6(Ipv6Addr::from(u128::from(bits) << 120)),
                ] {
                    let holds = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
                    prop_assert_eq!(holds(&left), holds(&prefixes) && !holds(&others));
                }
            }
        }
    }
}
