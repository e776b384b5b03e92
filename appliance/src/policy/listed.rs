//! The groups that each kind of rule is for, and the names that it lists.

use super::{Api, GroupName, ListedName, Pass, Rule, Tcp};

impl Rule for Api {
    fn groups(&self) -> impl Iterator<Item = &GroupName> {
        let bound = self.bindings.iter().flat_map(|binding| &binding.groups);
        bound.chain(self.redeems.iter().flat_map(|mint| &mint.groups))
    }

    fn names(&self) -> impl Iterator<Item = ListedName<'_>> {
        self.hosts.iter().map(ListedName::Exact)
    }
}

impl Rule for Pass {
    fn groups(&self) -> impl Iterator<Item = &GroupName> {
        self.groups.iter()
    }

    fn names(&self) -> impl Iterator<Item = ListedName<'_>> {
        self.hosts.iter().map(ListedName::from)
    }
}

impl Rule for Tcp {
    fn groups(&self) -> impl Iterator<Item = &GroupName> {
        self.groups.iter()
    }

    fn names(&self) -> impl Iterator<Item = ListedName<'_>> {
        self.hosts.iter().map(ListedName::Exact)
    }
}
