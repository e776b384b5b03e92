//! The rules of a policy, found by the names that they list: the cost of a lookup does not grow
//! with their number.
//!
//! The rules that name a host, and those of a group, are two lists of indices. A lookup goes
//! through the shorter one to find the rules in both. A group has few rules for one name, however
//! many groups or names there are.

use std::{collections::HashMap, ops::Deref, sync::Arc};

use super::{GroupName, Host, HostPattern};

/// Rules of one kind, in the order of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules<T> {
    rules: Vec<Arc<T>>,
    index: RuleIndex,
}

/// The groups and the names of a rule.
pub trait Rule {
    /// Returns the groups that use it; one may occur twice.
    fn groups(&self) -> impl Iterator<Item = &GroupName>;
    /// Returns the names that it lists.
    fn names(&self) -> impl Iterator<Item = ListedName<'_>>;
}

/// A name as a rule lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListedName<'r> {
    /// This name.
    Exact(&'r Host),
    /// Every name below this one.
    Suffix(&'r Host),
    /// Every name there is.
    Any,
}

impl<'r> From<&'r HostPattern> for ListedName<'r> {
    fn from(pattern: &'r HostPattern) -> Self {
        match pattern {
            HostPattern::Exact(host) => Self::Exact(host),
            HostPattern::Suffix(host) => Self::Suffix(host),
            HostPattern::Any => Self::Any,
        }
    }
}

/// The way in which a rule may match a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeantBy {
    /// By its name alone.
    Name,
    /// By its name or by a pattern.
    NameOrPattern,
}

/// An index of rules by their groups and by the names that they list, computed from the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct RuleIndex {
    of_group: HashMap<GroupName, RulePlaces>,
    exact: HashMap<Host, RulePlaces>,
    below: HashMap<Host, RulePlaces>,
    any: RulePlaces,
}

/// Indices of rules among those of their kind, each once, in ascending order.
type RulePlaces = Vec<usize>;

impl<T> Rules<T> {
    /// Returns the rules of a group that match the host, in their order.
    pub fn of<'r>(
        &'r self,
        group: &GroupName,
        host: &Host,
        by: MeantBy,
    ) -> impl Iterator<Item = &'r Arc<T>> + use<'r, T> {
        let places = self.index.places_of(group, host, by);
        places.into_iter().filter_map(|place| self.rules.get(place))
    }

    /// Returns the rules that list exactly this name, for any group, in their order.
    pub fn naming(&self, host: &Host) -> impl Iterator<Item = &Arc<T>> {
        let places = self.index.exact.get(host).into_iter().flatten();
        places.filter_map(|place| self.rules.get(*place))
    }
}

impl RuleIndex {
    fn enter(&mut self, place: usize, rule: &impl Rule) {
        for group in rule.groups() {
            enter(self.of_group.entry(group.clone()).or_default(), place);
        }
        for name in rule.names() {
            let places = match name {
                ListedName::Exact(host) => self.exact.entry(host.clone()).or_default(),
                ListedName::Suffix(host) => self.below.entry(host.clone()).or_default(),
                ListedName::Any => &mut self.any,
            };
            enter(places, place);
        }
    }

    fn places_of(&self, group: &GroupName, host: &Host, by: MeantBy) -> RulePlaces {
        let mut found = RulePlaces::new();
        let Some(own) = self.of_group.get(group) else { return found };
        let mut meant = |places: &RulePlaces| add_common(own, places, &mut found);
        self.exact.get(host).map(&mut meant);
        if by == MeantBy::NameOrPattern {
            host.parents().filter_map(|parent| self.below.get(parent)).for_each(&mut meant);
            meant(&self.any);
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Adds a place, unless it is there: then it is the last one.
fn enter(places: &mut RulePlaces, place: usize) {
    if places.last() != Some(&place) {
        places.push(place);
    }
}

fn add_common(one: &RulePlaces, other: &RulePlaces, found: &mut RulePlaces) {
    let (few, many) = if one.len() < other.len() { (one, other) } else { (other, one) };
    found.extend(few.iter().filter(|place| many.binary_search(place).is_ok()));
}

impl<T: Rule> From<Vec<Arc<T>>> for Rules<T> {
    fn from(rules: Vec<Arc<T>>) -> Self {
        let mut index = RuleIndex::default();
        rules.iter().enumerate().for_each(|(place, rule)| index.enter(place, &**rule));
        Self { rules, index }
    }
}

impl<T: Rule> FromIterator<Arc<T>> for Rules<T> {
    fn from_iter<I: IntoIterator<Item = Arc<T>>>(rules: I) -> Self {
        rules.into_iter().collect::<Vec<_>>().into()
    }
}

impl<T> Default for Rules<T> {
    fn default() -> Self {
        Self { rules: Vec::new(), index: RuleIndex::default() }
    }
}

impl<T> Deref for Rules<T> {
    type Target = [Arc<T>];

    fn deref(&self) -> &[Arc<T>] {
        &self.rules
    }
}

impl<'r, T> IntoIterator for &'r Rules<T> {
    type Item = &'r Arc<T>;
    type IntoIter = std::slice::Iter<'r, Arc<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.rules.iter()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    #[derive(Debug, Clone)]
    struct Listed {
        groups: Vec<GroupName>,
        hosts: Vec<HostPattern>,
    }

    impl Rule for Listed {
        fn groups(&self) -> impl Iterator<Item = &GroupName> {
            self.groups.iter()
        }

        fn names(&self) -> impl Iterator<Item = ListedName<'_>> {
            self.hosts.iter().map(ListedName::from)
        }
    }

    fn group() -> impl Strategy<Value = GroupName> {
        select(vec!["red", "blue", "green"]).prop_map(|name| GroupName(name.into()))
    }

    /// Names of few labels, so that rules often meet. Some end alike without a dot before the same
    /// ending.
    fn host() -> impl Strategy<Value = Host> {
        vec(select(vec!["a", "b", "ab"]), 1..5)
            .prop_map(|labels| Host::parse(&labels.join(".")).expect("a name"))
    }

    fn pattern() -> impl Strategy<Value = HostPattern> {
        prop_oneof![
            4 => host().prop_map(HostPattern::Exact),
            4 => host().prop_map(HostPattern::Suffix),
            1 => Just(HostPattern::Any),
        ]
    }

    fn rules() -> impl Strategy<Value = Vec<Arc<Listed>>> {
        let rule = (vec(group(), 0..3), vec(pattern(), 0..4));
        vec(rule.prop_map(|(groups, hosts)| Arc::new(Listed { groups, hosts })), 0..12)
    }

    fn is_exact(pattern: &HostPattern) -> bool {
        matches!(pattern, HostPattern::Exact(_))
    }

    fn same<'r>(
        found: impl Iterator<Item = &'r Arc<Listed>>,
        meant: impl Iterator<Item = &'r Arc<Listed>>,
    ) -> bool {
        let place = |rule: &'r Arc<Listed>| Arc::as_ptr(rule);
        found.map(place).eq(meant.map(place))
    }

    proptest! {
        #[test]
        fn a_look_up_finds_what_a_linear_scan_finds(
            list in rules(),
            group in group(),
            host in host(),
        ) {
            let rules = Rules::from(list.clone());
            let own = || list.iter().filter(|rule| rule.groups.contains(&group));
            let meant = own().filter(|rule| rule.hosts.iter().any(|it| it.matches(&host)));
            prop_assert!(same(rules.of(&group, &host, MeantBy::NameOrPattern), meant));
            let by_name = |rule: &&Arc<Listed>| {
                rule.hosts.iter().any(|it| is_exact(it) && it.matches(&host))
            };
            prop_assert!(same(rules.of(&group, &host, MeantBy::Name), own().filter(by_name)));
            prop_assert!(same(rules.naming(&host), list.iter().filter(by_name)));
        }
    }
}
