//! Which addresses are not the public internet, in whatever form they are written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::policy::special;

/// Whether an address is anything but public unicast: it is in [`special`], or it is IPv6 outside
/// of the one block that is assigned to public unicast (RFC 4291, section 2.4). Forms that carry
/// an IPv4 address are judged by it.
pub fn is_special_purpose(address: IpAddr) -> bool {
    match unwrapped(address) {
        IpAddr::V4(v4) => special::SPECIAL_4.iter().any(|prefix| prefix.contains(&v4)),
        IpAddr::V6(v6) => {
            special::SPECIAL_6.iter().any(|prefix| prefix.contains(&v6))
                || v6.octets().first().is_none_or(|first| first >> 5 != 0b001)
        }
    }
}

/// The IPv4 address inside a mapped, compatible, NAT64, 6to4 or Teredo address; any other as it is.
pub fn unwrapped(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    embedded_v4(v6).map_or(address, IpAddr::V4)
}

/// Whether the address is one of this machine's own, by asking the kernel: only a local address
/// can be bound. Errs to yes.
pub fn is_own(address: IpAddr) -> bool {
    if address.is_loopback() || address.is_unspecified() {
        return true;
    }
    match UdpSocket::bind(SocketAddr::new(address, 0)) {
        Ok(_) => true,
        // EADDRNOTAVAIL is the kernel's word for "not mine"; EAFNOSUPPORT means that there is no
        // such family here, so nothing in it can be mine.
        Err(error) => {
            !matches!(error.raw_os_error(), Some(code) if code == NOT_AVAILABLE || code == NO_FAMILY)
        }
    }
}

const NOT_AVAILABLE: i32 = rustix::io::Errno::ADDRNOTAVAIL.raw_os_error();
const NO_FAMILY: i32 = rustix::io::Errno::AFNOSUPPORT.raw_os_error();

fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    match [a, b, c, d, e, f] {
        // IPv4-mapped (RFC 4291, section 2.5.5.2), IPv4-translated (RFC 2765) and the well-known
        // NAT64 prefix (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff] | [0, 0, 0, 0, 0xffff, 0] | [0x64, 0xff9b, 0, 0, 0, 0] => {
            Some(from_halves(g, h))
        }
        // IPv4-compatible (RFC 4291, section 2.5.5.1); :: and ::1 are addresses of their own.
        [0, 0, 0, 0, 0, 0] if g != 0 || h > 1 => Some(from_halves(g, h)),
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => Some(from_halves(high, low)),
        // Teredo: the client's address, inverted (RFC 4380, section 4).
        [0x2001, 0, ..] => Some(from_halves(!g, !h)),
        _ => None,
    }
}

fn from_halves(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special(text: &str) -> bool {
        is_special_purpose(text.parse().unwrap())
    }

    #[test]
    fn public_addresses_are_public() {
        for text in [
            "8.8.8.8",
            "1.1.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "198.51.100.9",
            "203.0.113.9",
            "192.0.2.9",
            "2606:4700::1111",
            "2001:db8::1",
            "2001:4860::8888",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
        ] {
            assert!(!special(text), "{text}");
        }
    }

    #[test]
    fn no_special_purpose_address_passes_in_any_form() {
        for v4 in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.1",
            "192.0.0.1",
            "192.168.1.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.19.255.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            assert!(special(v4), "{v4}");
            let v4: Ipv4Addr = v4.parse().unwrap();
            let [a, b] = [(u32::from(v4) >> 16) as u16, u32::from(v4) as u16];
            for wrapped in [
                format!("::ffff:{v4}"),
                format!("::ffff:0:{v4}"),
                format!("64:ff9b::{v4}"),
                format!("2002:{a:x}:{b:x}::1"),
                format!("2001:0:808:808::{:x}:{:x}", !a, !b),
            ] {
                assert!(special(&wrapped), "{wrapped}");
            }
        }
    }

    #[test]
    fn no_special_purpose_ipv6_address_passes() {
        for text in [
            "::",
            "::1",
            "::2",
            "::127.0.0.1",
            "64:ff9b:1::1",
            "100::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
            "3fff:1::1",
            "5f00::1",
        ] {
            assert!(special(text), "{text}");
        }
    }

    #[test]
    fn an_own_address_is_known() {
        assert!(is_own("127.0.0.1".parse().unwrap()));
        assert!(is_own("127.3.2.1".parse().unwrap()));
        assert!(is_own("0.0.0.0".parse().unwrap()));
        assert!(!is_own("203.0.113.99".parse().unwrap()));
    }
}
