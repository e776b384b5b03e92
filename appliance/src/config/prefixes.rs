//! The prefixes seen so far, and which of them a new one overlaps. The cost does not grow with
//! their number.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

/// Prefixes, numbered in the order in which they came.
#[derive(Default)]
pub(super) struct SeenPrefixes {
    /// The first prefix of each network and length.
    first: BTreeMap<(IpAddr, u8), usize>,
    /// The lengths that occur, of each family.
    lengths: BTreeSet<(bool, u8)>,
    count: usize,
}

impl SeenPrefixes {
    /// Returns the number of the first prefix that has an address in common with this one, and adds
    /// this one.
    pub(super) fn see(&mut self, prefix: &IpNet) -> Option<usize> {
        let first = self.around(prefix).chain(self.within(prefix)).min();
        self.first.entry((prefix.network(), prefix.prefix_len())).or_insert(self.count);
        self.lengths.insert((prefix.addr().is_ipv6(), prefix.prefix_len()));
        self.count += 1;
        first
    }

    /// Returns the prefixes that contain all of it.
    fn around(&self, prefix: &IpNet) -> impl Iterator<Item = usize> {
        let (address, v6) = (prefix.addr(), prefix.addr().is_ipv6());
        let lengths = self.lengths.range((v6, 0)..=(v6, prefix.prefix_len()));
        lengths.filter_map(move |(_, length)| {
            let around = IpNet::new(address, *length).ok()?;
            self.first.get(&(around.network(), *length)).copied()
        })
    }

    /// Returns the prefixes that it contains.
    fn within(&self, prefix: &IpNet) -> impl Iterator<Item = usize> {
        let networks = (prefix.network(), prefix.prefix_len())..=(prefix.broadcast(), u8::MAX);
        self.first.range(networks).map(|(_, number)| *number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Returns a prefix out of so few addresses that prefixes often meet.
    fn prefix() -> impl Strategy<Value = IpNet> {
        let v4 = (0_u8..8, 0_u8..3, 0_u8..=32).prop_map(|(second, last, length)| {
            IpNet::new(IpAddr::from([10, second << 5, 0, last]), length).expect("a length")
        });
        let v6 = (0_u16..8, 0_u16..3, 0_u8..=128).prop_map(|(second, last, length)| {
            let address = [0x2001, second << 13, 0, 0, 0, 0, 0, last];
            IpNet::new(IpAddr::from(address), length).expect("a length")
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn the_first_overlap_is_that_of_a_linear_scan(all in vec(prefix(), 0..24)) {
            let mut seen = SeenPrefixes::default();
            for (number, prefix) in all.iter().enumerate() {
                let overlaps = |other: &IpNet| other.contains(prefix) || prefix.contains(other);
                let meant = all[..number].iter().position(overlaps);
                prop_assert_eq!(seen.see(prefix), meant);
            }
        }
    }
}
