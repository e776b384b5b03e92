//! IPv4 addresses inside of IPv6 addresses, as translators write them (RFC 6052), and how a host
//! learns which prefix its network's translator has (RFC 7050).

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// The lengths that the prefix of a translator may have (RFC 6052, section 2.2).
pub(crate) const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];

/// The prefix that every translator may use (RFC 6052, section 2.1).
pub(crate) const WELL_KNOWN: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96);

/// The name whose AAAA records only a translator's resolver has (RFC 7050, section 3). With its
/// final dot.
pub(crate) const ASKED_FOR: &str = "ipv4only.arpa.";

/// The A records of that name (RFC 7050, section 8.2).
const KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// Returns the IPv4 address that a translator with this prefix takes the address for. The byte that
/// has to be zero (bits 64 to 71) is ignored, because not every translator checks it.
///
/// `None` where the address is not below the prefix, or where no prefix has this length.
pub(crate) fn embedded(prefix: &Ipv6Net, address: Ipv6Addr) -> Option<Ipv4Addr> {
    let at = places(prefix.prefix_len()).filter(|_| prefix.contains(&address))?;
    let octets = address.octets();
    let [a, b, c, d] = at.map(|at| octets.get(at).copied().unwrap_or_default());
    Some(Ipv4Addr::new(a, b, c, d))
}

/// Returns the IPv6 prefix whose addresses a translator takes for those of the IPv4 prefix. `None`
/// where no translator's prefix has this length.
pub(crate) fn translated(prefix: &Ipv6Net, inner: &Ipv4Net) -> Option<Ipv6Net> {
    let places = places(prefix.prefix_len())?;
    let mut octets = prefix.network().octets();
    for (at, octet) in places.into_iter().zip(inner.network().octets()) {
        *octets.get_mut(at)? = octet;
    }
    let (whole, bits) = (usize::from(inner.prefix_len() / 8), inner.prefix_len() % 8);
    let length = match places.get(whole) {
        _ if inner.prefix_len() == 0 => prefix.prefix_len(),
        // A prefix ends with an octet or inside of one; before the next octet may lie the zero
        // byte.
        _ if bits == 0 => (places.get(whole - 1)? * 8 + 8) as u8,
        Some(at) => (at * 8) as u8 + bits,
        None => return None,
    };
    Ipv6Net::new(Ipv6Addr::from(octets), length).ok().map(|net| net.trunc())
}

/// Returns every prefix with which a translator could have made these AAAA records of
/// [`ASKED_FOR`]. A record that can be read in two ways gives both prefixes.
pub(crate) fn prefixes(records: impl IntoIterator<Item = Ipv6Addr>) -> Vec<Ipv6Net> {
    let each = records.into_iter().flat_map(|record| {
        LENGTHS.into_iter().filter_map(move |length| {
            let prefix = Ipv6Net::new(record, length).ok()?.trunc();
            KNOWN.contains(&embedded(&prefix, record)?).then_some(prefix)
        })
    });
    let mut prefixes: Vec<Ipv6Net> = each.collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}

/// Returns the octets that hold the IPv4 address, below a prefix of this length (RFC 6052, section
/// 2.2).
fn places(length: u8) -> Option<[usize; 4]> {
    Some(match length {
        32 => [4, 5, 6, 7],
        40 => [5, 6, 7, 9],
        48 => [6, 7, 9, 10],
        56 => [7, 9, 10, 11],
        64 => [9, 10, 11, 12],
        96 => [12, 13, 14, 15],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The examples of RFC 6052, section 2.4.
    const EXAMPLES: [(&str, &str); 7] = [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
        ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
    ];

    #[test]
    fn the_standards_examples_are_read_and_written_alike() {
        for (prefix, address) in EXAMPLES {
            let (prefix, address) = (prefix.parse().unwrap(), address.parse().unwrap());
            let inner = Ipv4Addr::new(192, 0, 2, 33);
            assert_eq!(embedded(&prefix, address), Some(inner), "{prefix}");
            let whole = translated(&prefix, &inner.into()).unwrap();
            assert!(whole.contains(&address), "{whole} {address}");
        }
        let none: Ipv6Net = "2001:db8::/33".parse().unwrap();
        assert_eq!(embedded(&none, "2001:db8::1".parse().unwrap()), None);
        assert_eq!(embedded(&WELL_KNOWN, "64:ff9b:1::1".parse().unwrap()), None);
    }

    #[test]
    fn a_prefix_is_found_in_what_its_resolver_makes_up() {
        let found = |texts: &[&str]| {
            let found = prefixes(texts.iter().map(|text| text.parse().unwrap()));
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        for length in LENGTHS {
            let prefix = Ipv6Net::new("2001:db8:122:344::".parse().unwrap(), length).unwrap();
            let record = translated(&prefix.trunc(), &KNOWN[0].into()).unwrap().network();
            assert_eq!(prefixes([record]), [prefix.trunc()]);
        }
        let two = ["64:ff9b::192.0.0.170", "64:ff9b::192.0.0.171"];
        assert_eq!(found(&two), ["64:ff9b::/96"]);
        assert!(found(&["2001:db8::1", "2001:db8::192.0.0.172"]).is_empty());
        // The address stands at two places, and either could be meant.
        assert_eq!(
            found(&["2001:db8:c000:aa::c000:aa"]),
            ["2001:db8::/32", "2001:db8:c000:aa::/96"]
        );
    }

    proptest! {
        #[test]
        fn translated_prefixes_hold_exactly_the_addresses_of_their_inner_prefix(
            length in prop::sample::select(&LENGTHS[..]),
            outer in any::<u128>(),
            inner in any::<u32>(),
            bits in 0..=32_u8,
            other in any::<u32>(),
            near in any::<bool>(),
        ) {
            // Bits 64 to 71 are zero below and in the prefix.
            let zero = !(0xff_u128 << 56);
            let outer = Ipv6Net::new(Ipv6Addr::from(outer & zero), length).unwrap().trunc();
            let inner = Ipv4Net::new(inner.into(), bits).unwrap().trunc();
            let other = if near { u32::from(inner.network()) ^ (other & 3) } else { other };
            let other = Ipv4Addr::from(other);
            let address = translated(&outer, &other.into()).unwrap().network();
            prop_assert_eq!(embedded(&outer, address), Some(other));
            let whole = translated(&outer, &inner).unwrap();
            prop_assert_eq!(whole.contains(&address), inner.contains(&other));
        }
    }
}
