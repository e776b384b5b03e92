//! What the agents' resolver has answered, for as long as an agent may still use it.
//!
//! The check of a spliced connection asks here whether the address that an agent dialled came from
//! the gateway. It errs towards no: what does not fit is not remembered, and an agent that is
//! refused for it asks again and gets an address of today.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::policy::{GroupName, Host};

/// The addresses that each group was given for each name.
#[derive(Debug, Default)]
pub struct Answered(Mutex<HashMap<GroupName, Names>>);

type Names = HashMap<Host, Vec<Given>>;

#[derive(Debug, Clone, Copy)]
struct Given {
    address: IpAddr,
    until: Instant,
}

impl Answered {
    /// The group was given these addresses for the name, good until `until`. They are held for
    /// [`GRACE`] longer, since clients use an address beyond its time.
    pub fn remember(&self, group: &GroupName, host: &Host, addresses: &[IpAddr], until: Instant) {
        let now = Instant::now();
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !groups.contains_key(group) {
            groups.insert(group.clone(), Names::new());
        }
        let Some(names) = groups.get_mut(group) else { return };
        if !names.contains_key(host) {
            make_room(names, now);
            if names.len() >= MAX_NAMES {
                return;
            }
            names.insert(host.clone(), Vec::new());
        }
        let Some(given) = names.get_mut(host) else { return };
        given.retain(|each| each.until > now && !addresses.contains(&each.address));
        let until = until + GRACE;
        given.extend(addresses.iter().map(|&address| Given { address, until }));
        let surplus = given.len().saturating_sub(MAX_ADDRESSES);
        given.drain(..surplus);
    }

    /// Whether the group was given this address for the name and may still use it.
    pub fn holds(&self, group: &GroupName, host: &Host, address: IpAddr) -> bool {
        let now = Instant::now();
        let groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let given = groups.get(group).and_then(|names| names.get(host));
        given.into_iter().flatten().any(|each| each.address == address && each.until > now)
    }
}

fn make_room(names: &mut Names, now: Instant) {
    if names.len() >= MAX_NAMES {
        names.retain(|_, given| given.iter().any(|each| each.until > now));
    }
}

/// Time beyond its TTL for which an answer counts: runtimes and connection pools keep addresses.
pub const GRACE: Duration = Duration::from_secs(600);
/// Names that are held for one group.
const MAX_NAMES: usize = 4_096;
/// Addresses that are held for one name; the oldest go first.
const MAX_ADDRESSES: usize = 64;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn group(name: &str) -> GroupName {
        GroupName(Arc::from(name))
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([198, 51, 100, last])
    }

    #[test]
    fn an_answer_is_good_for_its_group_its_name_and_its_time() {
        let answered = Answered::default();
        let host = |name: &str| Host::parse(name).unwrap();
        let now = Instant::now();
        answered.remember(&group("red"), &host("a.example"), &[address(1), address(2)], now);
        assert!(answered.holds(&group("red"), &host("a.example"), address(2)), "the grace");
        assert!(!answered.holds(&group("red"), &host("a.example"), address(3)));
        assert!(!answered.holds(&group("red"), &host("b.example"), address(1)));
        assert!(!answered.holds(&group("blue"), &host("a.example"), address(1)));
        let long_ago = now.checked_sub(GRACE * 2).unwrap();
        answered.remember(&group("red"), &host("old.example"), &[address(1)], long_ago);
        assert!(!answered.holds(&group("red"), &host("old.example"), address(1)));
    }

    #[test]
    fn neither_names_nor_addresses_grow_without_end() {
        let answered = Answered::default();
        let later = Instant::now() + GRACE;
        for number in 0..MAX_NAMES + 100 {
            let host = Host::parse(&format!("n{number}.example")).unwrap();
            answered.remember(&group("red"), &host, &[address(1)], later);
        }
        let host = Host::parse("n0.example").unwrap();
        for last in 0..=255 {
            answered.remember(&group("red"), &host, &[address(last)], later);
        }
        let groups = answered.0.lock().unwrap();
        assert_eq!(groups[&group("red")].len(), MAX_NAMES);
        assert_eq!(groups[&group("red")][&host].len(), MAX_ADDRESSES);
        drop(groups);
        assert!(answered.holds(&group("red"), &host, address(255)));
        let other = Host::parse("a.example").unwrap();
        answered.remember(&group("blue"), &other, &[address(1)], later);
        assert!(answered.holds(&group("blue"), &other, address(1)), "a bound for each group");
    }
}
