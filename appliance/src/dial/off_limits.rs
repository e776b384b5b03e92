//! The addresses to which no name may lead an agent. Only this module decides whether an address
//! may be dialled, or told.
//!
//! Every reading of an address is judged, even a reading that only this site's translators (NAT64)
//! have. Errs towards no: an address with two readings has to pass in both.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::{IpNet, Ipv6Net};
use tokio::sync::watch;

use super::{address::unwrapped, control_plane::ControlPlane, own_addresses::OwnAddresses};
use crate::policy::{Site, Upstream, nat64, special};

/// The addresses that are refused. Cheap to clone; all clones decide the same.
#[derive(Debug, Clone, Default)]
pub struct OffLimits(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    control_plane: ControlPlane,
    own: OwnAddresses,
    known: watch::Sender<Arc<KnownAddresses>>,
}

/// The known properties of the site.
#[derive(Debug, Clone, Default)]
pub(super) struct KnownAddresses {
    site: Site,
    /// The prefixes of translators that the resolvers' answers have shown, and when each was last
    /// shown. `None` until a resolver has answered.
    discovered: Option<HashMap<Ipv6Net, Instant>>,
}

impl OffLimits {
    /// Creates one from the control plane and the site. Nothing is discovered yet.
    pub fn new(control_plane: ControlPlane, site: Site) -> Self {
        let known = watch::Sender::new(Arc::new(KnownAddresses { site, discovered: None }));
        Self(Arc::new(Inner { control_plane, own: OwnAddresses::default(), known }))
    }

    /// Returns the machines that the gateway depends on, and the agents.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.0.control_plane
    }

    /// Takes the site's properties in a new policy.
    pub fn take_site(&self, site: Site) {
        self.learn(|known| known.site = site);
    }

    /// Adds the prefixes of translators that a resolver's answer shows to those that answers have
    /// shown within a day: of two resolvers one may know of a translator and the other not. A
    /// discovered prefix refuses more and opens nothing, because an attacker who forges an answer
    /// could name it.
    pub(super) fn discover(&self, prefixes: &[Ipv6Net], now: Instant) {
        self.learn(|known| {
            let discovered = known.discovered.get_or_insert_default();
            discovered.retain(|_, seen| now.saturating_duration_since(*seen) < DISCOVERED);
            discovered.extend(prefixes.iter().map(|prefix| (*prefix, now)));
        });
    }

    /// Returns the present knowledge, and reports its changes.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<KnownAddresses>> {
        self.0.known.subscribe()
    }

    /// Returns whether an address may be dialled for an agent, or given to one, as one of this
    /// upstream's.
    ///
    /// The gateway's own addresses and those of the machines that it depends on are refused
    /// whatever policy lists: they would be a loop, or a way to the control plane. So are the
    /// site's addresses that are never dialled. A special address is refused unless policy lists it
    /// for the upstream.
    pub(crate) fn allows(&self, address: IpAddr, upstream: &Upstream) -> bool {
        let (known, address) = (self.known(), address.to_canonical());
        let barred = |each: &IpAddr| {
            known.site.closes(*each) || self.control_plane().holds(*each) || self.is_own(*each)
        };
        known.is_home(address, &upstream.private_prefixes)
            && !barred(&address)
            && !known.inner(address).iter().any(barred)
    }

    /// Whether the address is one of this machine's own. Errs to yes.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.0.own.holds(address)
    }

    fn known(&self) -> Arc<KnownAddresses> {
        Arc::clone(&self.0.known.borrow())
    }

    fn learn(&self, change: impl FnOnce(&mut KnownAddresses)) {
        self.0.known.send_modify(|known| change(Arc::make_mut(known)));
    }
}

impl KnownAddresses {
    /// Returns whether the operator states which translators there are, so that no resolver has to
    /// be asked.
    pub(super) fn is_stated(&self) -> bool {
        self.site.nat64_prefixes.is_some()
    }

    /// Returns whether it is known which IPv6 addresses stand for IPv4 addresses.
    pub(super) fn knows_translators(&self) -> bool {
        self.is_stated() || self.discovered.is_some()
    }

    /// Returns whether an answer of the resolvers has shown this prefix.
    pub(super) fn is_discovered(&self, prefix: &Ipv6Net) -> bool {
        self.discovered.as_ref().is_some_and(|known| known.contains_key(prefix))
    }

    /// Returns whether an upstream may have this address: it is public in every reading, or listed.
    /// An address below the prefix of a translator is judged by the address inside it. While it is
    /// not known which translators there are, no IPv6 address is public.
    fn is_home(&self, address: IpAddr, listed: &[IpNet]) -> bool {
        let open = |it| !special::is_special(it) || special::is_opened(it, listed);
        let IpAddr::V6(v6) = address else { return open(address) };
        let stated = self.site.translates(v6);
        let public = self.knows_translators() && open(address);
        let outer = stated
            || nat64::WELL_KNOWN.contains(&v6)
            || public
            || special::is_opened(address, listed);
        let inner =
            |inner: &IpAddr| if stated { open(*inner) } else { !special::is_special(*inner) };
        outer && self.inner(address).iter().all(inner)
    }

    /// Returns the IPv4 addresses for which the address may stand.
    fn inner(&self, address: IpAddr) -> Vec<IpAddr> {
        let IpAddr::V6(v6) = address else { return Vec::new() };
        let unwrapped = Some(unwrapped(address)).filter(|inner| *inner != address);
        self.translated(v6).chain(unwrapped).collect()
    }

    fn translated(&self, address: Ipv6Addr) -> impl Iterator<Item = IpAddr> {
        let discovered = self.discovered.iter().flat_map(HashMap::keys);
        let discovered = discovered.filter(|_| !self.is_stated());
        let prefixes = self.site.translators().chain(discovered);
        prefixes.filter_map(move |prefix| nat64::embedded(prefix, address)).map(IpAddr::V4)
    }
}

/// Time for which a prefix counts after an answer has last shown it.
const DISCOVERED: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn upstream(prefixes: &[&str]) -> Upstream {
        let private_prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        Upstream { ca_pem: None, private_prefixes }
    }

    fn off_limits(site: Site) -> OffLimits {
        OffLimits::new(ControlPlane::new([address("198.51.100.53")]), site)
    }

    /// Asks about one address of an upstream for which these prefixes are listed, with no site and
    /// no translator.
    fn allows(text: &str, prefixes: &[&str]) -> bool {
        off_limits(nat64(&[])).allows(address(text), &upstream(prefixes))
    }

    fn nat64(prefixes: &[&str]) -> Site {
        let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        Site { nat64_prefixes: Some(prefixes), ..Site::default() }
    }

    const EVERYTHING: [&str; 4] = ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"];

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
            assert!(allows(text, &[]), "{text}");
        }
    }

    #[test]
    fn no_special_address_passes_in_any_form() {
        for v4 in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.254",
            "161.26.0.10",
            "166.9.1.1",
            "168.63.129.16",
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
            assert!(!allows(v4, &[]), "{v4}");
            let v4: Ipv4Addr = v4.parse().unwrap();
            let [a, b] = [(u32::from(v4) >> 16) as u16, u32::from(v4) as u16];
            for wrapped in [
                format!("::ffff:{v4}"),
                format!("::ffff:0:{v4}"),
                format!("64:ff9b::{v4}"),
                format!("2002:{a:x}:{b:x}::1"),
                format!("2001:0:808:808::{:x}:{:x}", !a, !b),
            ] {
                assert!(!allows(&wrapped, &[]), "{wrapped}");
            }
        }
    }

    #[test]
    fn no_special_ipv6_address_passes() {
        for text in [
            "::",
            "::1",
            "::2",
            "::127.0.0.1",
            "64:ff9b:1::1",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2002:808:808::1",
            "fc00::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
            "3fff:1::1",
            "5f00::1",
        ] {
            assert!(!allows(text, &[]), "{text}");
        }
    }

    #[test]
    fn what_policy_lists_may_be_dialled_and_nothing_beside_it() {
        let listed = ["10.1.0.0/16", "fd00:1::/32", "169.254.0.0/16"];
        assert!(allows("10.1.2.3", &listed));
        assert!(allows("fd00:1::5", &listed));
        assert!(!allows("10.2.0.1", &listed));
        assert!(
            !allows("64:ff9b::10.1.2.3", &listed),
            "whoever translates it has his own 10.1.2.3"
        );
        assert!(allows("169.254.1.1", &listed) && !allows("169.254.169.254", &listed));
        assert!(allows("169.254.169.254", &["169.254.169.254/32"]), "listed by itself");
        assert!(!allows("10.1.2.3", &[]));
    }

    #[test]
    fn the_gateway_is_never_dialled_whatever_policy_lists() {
        assert!(allows("198.51.100.54", &EVERYTHING));
        for own in ["198.51.100.53", "::ffff:198.51.100.53", "64:ff9b::198.51.100.53"] {
            assert!(!allows(own, &EVERYTHING), "what it depends on: {own}");
        }
        for own in ["127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"] {
            assert!(!allows(own, &EVERYTHING), "{own}");
        }
    }

    #[test]
    fn what_the_site_closes_is_closed_whatever_policy_lists() {
        let site = Site {
            never_dial: vec![
                "198.51.100.64/26".parse().unwrap(),
                "2001:db8:ff::/48".parse().unwrap(),
            ],
            public_addresses: vec![address("203.0.113.9"), address("2001:db8:9::9")],
            nat64_prefixes: Some(vec!["2001:db8:64::/96".parse().unwrap()]),
        };
        let off_limits = off_limits(site);
        for closed in [
            "198.51.100.64",
            "198.51.100.127",
            "2001:db8:ff::1",
            "203.0.113.9",
            "2001:db8:9::9",
            "::ffff:203.0.113.9",
            "64:ff9b::203.0.113.9",
            "2001:db8:64::198.51.100.65",
            "2001:db8:64::198.51.100.53",
            "2001:db8:64::127.0.0.1",
        ] {
            let closed = address(closed);
            assert!(!off_limits.allows(closed, &upstream(&EVERYTHING)), "{closed}");
        }
        for open in ["198.51.100.63", "198.51.100.128", "203.0.113.8", "2001:db8:64::203.0.113.8"] {
            assert!(off_limits.allows(address(open), &upstream(&[])), "{open}");
        }
        off_limits.take_site(nat64(&[]));
        assert!(
            off_limits.allows(address("198.51.100.64"), &upstream(&[])),
            "a reload takes it back"
        );
    }

    #[test]
    fn below_a_stated_translator_the_ipv4_address_decides() {
        let (public, inside) = (Ipv4Addr::new(198, 51, 100, 9), Ipv4Addr::new(10, 1, 2, 3));
        // The first is in the public space, the others are where no other reading would pass.
        for base in ["2001:db8:64:6464::", "64:ff9b:1::", "fd64:6464:6464:6464::"] {
            for length in nat64::LENGTHS {
                let prefix = Ipv6Net::new(base.parse().unwrap(), length).unwrap().trunc();
                let site = nat64(&[&prefix.to_string()]);
                let at = |inner: Ipv4Addr| {
                    IpAddr::V6(nat64::translated(&prefix, &inner.into()).unwrap().network())
                };
                let off_limits = off_limits(site);
                let may = |inner, listed: &[&str]| off_limits.allows(at(inner), &upstream(listed));
                assert!(may(public, &[]), "{prefix}");
                assert!(!may(inside, &[]), "{prefix}");
                assert!(may(inside, &["10.1.0.0/16"]), "{prefix}");
                assert!(!may(Ipv4Addr::new(169, 254, 169, 254), &["169.254.0.0/16"]), "{prefix}");
                assert!(!may(Ipv4Addr::new(198, 51, 100, 53), &EVERYTHING), "{prefix}");
            }
        }
    }

    #[test]
    fn a_discovered_translator_refuses_more_and_opens_nothing() {
        let off_limits = off_limits(Site::default());
        let allows = |text| off_limits.allows(address(text), &upstream(&["10.1.0.0/16"]));
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert!(!off_limits.known().knows_translators());
        for unknown in ["2001:db8:64::10.9.9.9", "2001:db8:64::198.51.100.9", "2001:db8::1"] {
            assert!(!allows(unknown), "nobody has said which translators there are: {unknown}");
        }
        off_limits.discover(&[], later(0));
        assert!(allows("2001:db8:64::10.9.9.9"), "the only answer shows none");
        let found = ["2001:db8:64::/96", "fd64::/96"].map(|text| text.parse().unwrap());
        off_limits.discover(&found, later(0));
        assert!(off_limits.known().knows_translators());
        assert!(allows("2001:db8:64::198.51.100.9"));
        for closed in ["2001:db8:64::10.9.9.9", "2001:db8:64::10.1.2.3", "fd64::198.51.100.9"] {
            assert!(!allows(closed), "{closed}");
        }
        off_limits.discover(&[], later(86_000));
        assert!(!allows("2001:db8:64::10.9.9.9"), "another resolver shows none");
        off_limits.discover(&[], later(87_000));
        assert!(allows("2001:db8:64::10.9.9.9"), "nobody has shown it for a day");
        off_limits.take_site(nat64(&[]));
        assert!(
            off_limits.allows(address("2001:db8:64::10.9.9.9"), &upstream(&[])),
            "the operator knows"
        );
    }
}
