//! The addresses that the kernel takes for itself, and when the daemon knows them. The tests of the
//! same names next door start these.

use std::net::{IpAddr, UdpSocket};

use super::{address, only_in_a_namespace, sh};
use crate::dial::OffLimits;

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn an_address_is_own_from_first_to_last() {
    only_in_a_namespace();
    sh("ip link set lo up");
    let off_limits = OffLimits::default();
    for text in ["198.51.100.7", "2001:db8:7::7"] {
        let ours = || off_limits.is_own(address(text));
        assert!(!ours(), "{text}");
        for _ in 0..20 {
            sh(&format!("ip addr add {text} dev lo"));
            assert!(ours(), "{text}");
            sh(&format!("ip addr del {text} dev lo"));
            assert!(!ours(), "{text}");
        }
    }
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn what_can_be_bound_is_own() {
    only_in_a_namespace();
    let off_limits = OffLimits::default();
    sh("ip link set lo up; ip link add far0 type veth peer name far1
        ip link set far1 up; ip link set far0 up
        ip addr add 192.0.2.1/24 dev far0; ip addr add 192.0.2.9/24 dev far0
        ip addr add 203.0.113.1 peer 203.0.113.2 dev far0
        ip addr add 2001:db8:2::1/64 dev far0 nodad
        ip route add local 198.51.100.0/28 dev lo; ip route add 192.0.2.128/25 dev far0");
    let own = ["192.0.2.1", "192.0.2.9", "192.0.2.255", "203.0.113.1", "2001:db8:2::1"];
    for text in own.into_iter().chain(["198.51.100.14", "127.9.9.9", "255.255.255.255"]) {
        assert!(can_be_bound(address(text)) && off_limits.is_own(address(text)), "{text}");
    }
    for text in ["192.0.2.2", "192.0.2.130", "203.0.113.2", "198.51.100.16", "2001:db8:2::2"] {
        assert!(!can_be_bound(address(text)) && !off_limits.is_own(address(text)), "{text}");
    }
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn more_new_addresses_than_there_is_room_for_are_own() {
    only_in_a_namespace();
    sh("ip link set lo up");
    let off_limits = OffLimits::default();
    assert!(!off_limits.is_own(address("198.18.15.255")));
    sh("for a in $(seq 0 15); do for b in $(seq 0 255); do
            echo addr add 198.18.$a.$b/32 dev lo; done; done | ip -batch -");
    for text in ["198.18.0.0", "198.18.7.7", "198.18.15.255"] {
        assert!(off_limits.is_own(address(text)), "{text}");
    }
    assert!(!off_limits.is_own(address("198.18.16.0")));
}

/// The kernel's own word: nothing but a local address can be bound.
fn can_be_bound(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}
