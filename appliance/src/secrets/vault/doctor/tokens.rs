//! What Vault says of a token by itself: where it is good, for how long, and by which policies; and
//! what its role would hand on.

use serde::Deserialize;
use vaultrs::api::token::requests::LookupTokenSelfRequest;

use super::{
    super::token::{DEFAULT_POLICY, TokenClient},
    Doctor, Verdict,
};
use crate::policy::GroupName;

#[derive(Deserialize)]
struct Looked {
    data: LookedData,
}

/// The part of it that is no secret.
#[derive(Deserialize)]
struct LookedData {
    bound_cidrs: Option<Vec<String>>,
    /// Seconds; 0 for a token that does not end.
    ttl: u64,
    policies: Vec<String>,
    /// What its identity brings along.
    #[serde(default)]
    identity_policies: Option<Vec<String>>,
}

impl Doctor<'_> {
    /// Whether a token ends, is good at the gateway's addresses alone, and has `policy` alone.
    pub(super) async fn look_at_token(&mut self, whose: &str, client: &TokenClient, policy: &str) {
        let asked = client.call(LookupTokenSelfRequest {}).await;
        let Some(Looked { data }) = asked.ok().and_then(|body| serde_json::from_slice(&body).ok())
        else {
            let text = "Vault does not say how its token is bound";
            return self.add(Verdict::Unanswered, whose, text);
        };
        let bound = data.bound_cidrs.unwrap_or_default();
        if bound.is_empty() || bound.iter().any(|cidr| cidr.ends_with("/0")) {
            let text = "its token is good from everywhere: set token_bound_cidrs";
            self.add(Verdict::TooWide, whose, text);
        } else {
            let text = format!("its token is bound to {}", bound.join(", "));
            self.add(Verdict::Ok, whose, &text);
        }
        match data.ttl {
            0 => self.add(Verdict::TooWide, whose, "its token never ends: set token_period"),
            _ => self.add(Verdict::Ok, whose, "its token ends unless it is renewed"),
        }
        let all = data.policies.into_iter().chain(data.identity_policies.unwrap_or_default());
        let mut more: Vec<_> = all.filter(|it| it != policy && it != DEFAULT_POLICY).collect();
        more.sort_unstable();
        more.dedup();
        match more.is_empty() {
            true => self.add(Verdict::Ok, whose, &format!("its token has no policy but {policy}")),
            false => {
                let text = format!(
                    "its token has the policies {}, and needs {policy} alone",
                    more.join(", ")
                );
                self.add(Verdict::TooWide, whose, &text);
            }
        }
    }

    /// Whether the role of a group would hand on a policy that is not its own.
    pub(super) async fn look_at_role(&mut self, whose: &str, group: &GroupName) {
        let (verdict, text) = match self.session.hands_on(group, &self.unused).await {
            Ok(false) => (Verdict::Ok, "its role hands on no other policy"),
            Ok(true) => {
                (Verdict::TooWide, "its role hands on any policy: set allowed_policies_glob=\"\"")
            }
            Err(error) => (Verdict::Unanswered, error.text()),
        };
        self.add(verdict, whose, text);
    }
}
