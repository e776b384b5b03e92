//! Whether a value could ever stand where the policy wants it. Pure.
//!
//! Every request for a value that cannot is answered 503, so that is logged as soon as the value is
//! read.

use std::{collections::HashMap, sync::Arc};

use super::{AwsKeys, SecretValue};
use crate::policy::{Api, Binding, GroupName, Narrowing, Place, Policy, SecretRef};

/// A group, and a secret of it.
pub(crate) type GroupSecret = (GroupName, SecretRef);

/// The places where a policy wants each value.
#[derive(Default)]
pub struct Uses(HashMap<GroupSecret, Vec<Use>>);

struct Use {
    api: Arc<Api>,
    binding: Arc<Binding>,
}

impl Uses {
    /// Returns the uses in a policy.
    pub fn of(policy: &Policy) -> Self {
        let mut uses = Self::default();
        for api in &policy.apis {
            for binding in &api.bindings {
                for group in &binding.groups {
                    let one = Use { api: Arc::clone(api), binding: Arc::clone(binding) };
                    uses.0.entry((group.clone(), binding.secret.clone())).or_default().push(one);
                }
            }
        }
        uses
    }

    /// Returns each value that some group may need.
    pub fn keys(&self) -> impl Iterator<Item = &(GroupName, SecretRef)> {
        self.0.keys()
    }

    /// Returns whether a binding uses the value as a pair of AWS keys.
    pub(super) fn are_aws_keys(&self, key: &GroupSecret) -> bool {
        self.0.get(key).is_some_and(|uses| uses.iter().any(|one| one.binding.is_aws()))
    }

    /// Returns why the value cannot be used in some place where it is wanted.
    pub(crate) fn unfit(
        &self,
        key: &GroupSecret,
        value: &SecretValue,
        narrowing: &Narrowing,
    ) -> Option<&'static str> {
        self.0.get(key)?.iter().find_map(|one| one.unfit(value, narrowing))
    }
}

impl Use {
    fn unfit(&self, value: &SecretValue, narrowing: &Narrowing) -> Option<&'static str> {
        unfit((&self.api, &self.binding), value, narrowing)
    }
}

/// Returns why no request can have this value where the binding wants it.
pub fn unfit(
    (api, binding): (&Api, &Binding),
    value: &SecretValue,
    narrowing: &Narrowing,
) -> Option<&'static str> {
    let bytes = value.expose();
    let is_user = |place: &Place| matches!(place, Place::BasicUser { .. });
    if bytes.len() < binding.min_value_bytes {
        return Some("the value is shorter than a binding takes it: see min_value_bytes");
    }
    if bytes.contains(&b':') && binding.places.iter().all(is_user) {
        return Some("the value has a ':', and the user of Basic cannot: it ends there");
    }
    if binding.is_aws() && AwsKeys::of(value).is_none() {
        return Some("the value is no pair of AWS keys, which are ID:SECRET or ID:SECRET:TOKEN");
    }
    narrowing.leaves(api, binding).err()
}
