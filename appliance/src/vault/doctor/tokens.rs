//! Checks of a token and of its role: the networks where a token is good, its life and its
//! policies, and the policies that its role would hand on.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use vaultrs::api::token::requests::LookupTokenSelfRequest;

use super::{
    super::token::{DEFAULT_POLICY, TokenClient},
    CheckVerdict, Doctor,
};
use crate::policy::GroupName;

#[derive(Deserialize)]
struct Looked {
    data: LookedData,
}

/// The part of Vault's answer that is no secret.
#[derive(Deserialize)]
struct LookedData {
    bound_cidrs: Option<Vec<String>>,
    /// The remaining life in seconds; 0 for a token that does not end.
    ttl: u64,
    policies: Vec<String>,
    /// The policies that come from its identity.
    #[serde(default)]
    identity_policies: Option<Vec<String>>,
    /// The entity; empty where the token has none.
    #[serde(default)]
    entity_id: String,
}

impl Doctor<'_> {
    /// Checks that a token ends, is good at the gateway's addresses alone, and has `policy` alone.
    /// Returns its entity.
    pub(super) async fn look_at_token(
        &mut self,
        whose: &str,
        client: &TokenClient,
        policy: &str,
    ) -> Option<String> {
        let asked = client.call(LookupTokenSelfRequest {}).await;
        let Some(Looked { data }) = asked.ok().and_then(|body| serde_json::from_slice(&body).ok())
        else {
            let text = "Vault does not say how its token is bound";
            self.add(CheckVerdict::Unanswered, whose, text);
            return None;
        };
        self.look_at_bound(whose, &data.bound_cidrs.unwrap_or_default());
        match data.ttl {
            0 => self.add(CheckVerdict::TooWide, whose, "its token never ends: set token_period"),
            _ => self.add(CheckVerdict::Ok, whose, "its token ends unless it is renewed"),
        }
        let all = data.policies.into_iter().chain(data.identity_policies.unwrap_or_default());
        let mut more: Vec<_> = all.filter(|it| it != policy && it != DEFAULT_POLICY).collect();
        more.sort_unstable();
        more.dedup();
        match more.is_empty() {
            true => {
                self.add(CheckVerdict::Ok, whose, &format!("its token has no policy but {policy}"))
            }
            false => {
                let text = format!(
                    "its token has the policies {}, and needs {policy} alone",
                    more.join(", ")
                );
                self.add(CheckVerdict::TooWide, whose, &text);
            }
        }
        Some(data.entity_id)
    }

    /// Checks that a group which Vault signs tokens about has an entity of its own.
    pub(super) fn look_at_entity(&mut self, whose: &str, entity: Option<String>) {
        // A token that could not be looked up is a finding already.
        let Some(entity) = entity else { return };
        let other = self.entities.iter().find(|(_, other)| *other == entity).map(|(of, _)| of);
        let (verdict, text) = match other {
            _ if entity.is_empty() => (CheckVerdict::Missing, NO_ENTITY.to_owned()),
            Some(other) => (
                CheckVerdict::TooWide,
                format!("Vault signs the same sub for it as for the {other}"),
            ),
            None => (CheckVerdict::Ok, format!("the sub of what Vault signs about it is {entity}")),
        };
        self.add(verdict, whose, &text);
        self.entities.push((whose.to_owned(), entity));
    }

    /// Checks that a token is good at the gateway's addresses alone.
    fn look_at_bound(&mut self, whose: &str, bound: &[String]) {
        let own = self.bound;
        let is_own = |cidr: &&String| {
            network(cidr).is_some_and(|cidr| own.iter().any(|own| own.contains(&cidr)))
        };
        let list = |of: Vec<String>| of.join(", ");
        let wide: Vec<_> = bound.iter().filter(|cidr| !is_own(cidr)).cloned().collect();
        if bound.is_empty() || bound.iter().any(|cidr| cidr.ends_with("/0")) {
            let text = "its token is good from everywhere: set token_bound_cidrs";
            self.add(CheckVerdict::TooWide, whose, text);
        } else if own.is_empty() {
            let text = "its token is bound, and to whom it should be is not known: name the \
                        gateway's address towards Vault with --from";
            self.add(CheckVerdict::Unanswered, whose, text);
        } else if !wide.is_empty() {
            let text = format!(
                "its token is good at {}, and needs {} alone: set token_bound_cidrs, or name the \
                 gateway's address towards Vault with --from",
                list(wide),
                list(own.iter().map(IpNet::to_string).collect())
            );
            self.add(CheckVerdict::TooWide, whose, &text);
        } else {
            let text = format!("its token is bound to {}", list(bound.to_vec()));
            self.add(CheckVerdict::Ok, whose, &text);
        }
    }

    /// Checks that the role of a group hands on no policy but its own.
    pub(super) async fn look_at_role(&mut self, whose: &str, group: &GroupName) {
        let (verdict, text) = match self.session.hands_on(group, &self.unused).await {
            Ok(false) => (CheckVerdict::Ok, "its role hands on no other policy"),
            Ok(true) => (
                CheckVerdict::TooWide,
                "its role hands on any policy: set allowed_policies_glob=\"\"",
            ),
            Err(error) => (CheckVerdict::Unanswered, error.text()),
        };
        self.add(verdict, whose, text);
    }
}

const NO_ENTITY: &str = "its token has no entity, so that Vault signs nothing about it: set \
    allowed_entity_aliases on its role";

/// Reads an address or a prefix, as Vault writes it.
fn network(text: &str) -> Option<IpNet> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).ok()
}
