//! Checks that a live Vault does all that the configuration needs, and nothing beyond it.
//!
//! The doctor logs in as the gateway does, takes each group's token as the gateway does, and asks
//! Vault for the rights of those tokens: at the paths that are needed, beside them, and where the
//! gateway's and the groups' rights must end. It does not read how policies are written, because
//! only their sum counts: Vault lists each token's rules, and each must be one of the plan's. A
//! token must have the plan's policy alone all the same, for another one may change unnoticed, and
//! each role is asked for a policy that it must not hand on. No secret is read unless that is asked
//! for. The doctor errs towards alarm: a question that Vault does not answer is a finding.
//!
//! Patterns are also found by asking for paths that nobody has, beside each path at each of its
//! levels. Two things stay unseen: a role's glob that no made-up policy fits, and the addresses at
//! which a SecretID is good, because only a token that may read the role learns them. The
//! examination is a login like any other, so it is a use of the SecretID.

mod health;
mod login;
mod paths;
mod rules;
#[cfg(test)]
mod tests;
mod tokens;
mod values;

pub use health::{DoctorError, DoctorReport};

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use ipnet::IpNet;

use self::{
    health::{Check, CheckVerdict},
    paths::{BELOW, ENGINE, EXACT, around, ask, needs, neighbours},
};
use super::{
    VaultSource,
    login::{REFUSED, WRONG_SECRET_ID},
    pki::NOT_ALLOWED,
    plan::{self, GATEWAY, PlanError, Rights, RoleRights},
    session::{NO_TOKEN, Session},
    token::TokenClient,
};
use crate::{
    ca::{Probes, Signer, probes},
    config::{PkiSettings, Settings, VaultLogin, VaultSettings},
    dial::Resolver,
    policy::{GroupName, Policy, VaultLocation},
    reason::SecretCause,
    secrets::{FetchError, Uses},
};

struct Doctor<'a> {
    session: Arc<Session>,
    vault: &'a VaultSettings,
    rights: &'a Rights,
    /// The networks where tokens may be good.
    bound: &'a [IpNet],
    /// A path segment that nobody uses.
    unused: String,
    /// The groups that Vault signs tokens about, each with its entity.
    entities: Vec<(String, String)>,
    health: DoctorReport,
}

/// Examines everything, or until `interrupted`, and gives every token back. Tokens must be good at
/// `bound` alone. `resolver` looks up Vault's address. With `values` each secret is also read, as
/// its group reads it.
///
/// # Errors
///
/// Nothing could be examined, or not everything. A refusal by Vault is a finding and no error.
pub async fn examine(
    settings: &Settings,
    policy: &Policy,
    (bound, resolver): (&[IpNet], &Resolver),
    values: bool,
    interrupted: impl Future<Output = ()>,
) -> Result<DoctorReport, DoctorError> {
    let rights = Rights::new(settings, policy).map_err(DoctorError::Plan)?;
    let Some(vault) = &settings.vault else { return Err(DoctorError::Plan(PlanError::NoVault)) };
    if matches!(vault.login, VaultLogin::AppRole { wrapped: true, .. }) {
        return Err(DoctorError::Wrapped);
    }
    let questions = vault.pki.as_ref().map(|pki| probes(pki, policy)).transpose();
    let questions = questions.map_err(DoctorError::Ca)?;
    let source = VaultSource::new(vault, &policy.groups, resolver);
    let session = source.map_err(DoctorError::Source)?.session();
    let entities: Vec<_> = rights.roles.iter().flat_map(RoleRights::entities).cloned().collect();
    session.set_groups(&policy.groups, &entities);
    let unused = format!("cloakroom-doctor-{:016x}", RandomState::new().hash_one(()));
    let health = DoctorReport::default();
    let entities = Vec::new();
    let mut doctor = Doctor { session, vault, rights: &rights, bound, unused, entities, health };
    let whole = tokio::select! {
        () = doctor.look(questions, values.then(|| Uses::of(policy))) => true,
        () = interrupted => false,
    };
    if !doctor.session.close().await {
        let text = "Vault did not take back all the tokens of this examination; they end by \
                    themselves";
        doctor.add(CheckVerdict::Unanswered, "gateway", text);
    }
    if whole { Ok(doctor.health) } else { Err(DoctorError::Interrupted) }
}

impl Doctor<'_> {
    async fn look(&mut self, questions: Option<Probes>, values: Option<Uses>) {
        let gateway = match self.session.gateway().await {
            Ok(gateway) => gateway,
            // Nothing can be asked without a token.
            Err(error) => return self.refused("gateway", error),
        };
        self.add(CheckVerdict::Ok, "gateway", "logs in");
        self.look_at_login(&gateway).await;
        self.look_at_gateway(&gateway).await;
        if let (Some(questions), Some(pki)) = (questions, &self.vault.pki) {
            self.look_at_engine(pki, questions).await;
        }
        for role in &self.rights.roles {
            for group in &role.groups {
                self.look_at_group(role, group).await;
            }
        }
        if let Some(uses) = values {
            self.look_at_values(&uses).await;
        }
    }

    async fn look_at_gateway(&mut self, gateway: &TokenClient) {
        let whose = "gateway";
        let entity = self.look_at_token(whose, gateway, GATEWAY).await;
        self.entities.extend(entity.map(|entity| (whose.to_owned(), entity)));
        let rights = self.rights;
        let needed = needs(&rights.gateway);
        self.needed(whose, gateway, &needed, &BTreeSet::new()).await;
        let signing = rights.signing.as_slice();
        self.look_at_rules(whose, gateway, &rights.gateway, signing).await;
        self.beside(whose, gateway, needed.keys()).await;
        let roles = self.rights.roles.iter();
        let secrets = roles.flat_map(|role| &role.locations).flat_map(around);
        let text = ["reaches no secret", "reaches secrets, and needs none"];
        self.beyond(whose, gateway, text, secrets.collect()).await;
        let mut others = self.others(&[]);
        if let Some(pki) = &self.vault.pki {
            let below = |path: &&str| format!("{}/{path}", pki.mount);
            others.extend(ENGINE.iter().map(below));
            others.insert(format!("{}/{}", pki.mount, self.unused));
        }
        let text = ["cannot give itself more", "could give itself more"];
        self.beyond(whose, gateway, text, others).await;
    }

    async fn look_at_group(&mut self, role: &RoleRights, group: &GroupName) {
        let whose = &*format!("group {group}");
        let client = match self.session.group(group).await {
            Ok(client) => client,
            Err(error) if error.text() == NO_TOKEN => {
                let text = format!(
                    "Vault makes no token by the role {}: it is not there, or it allows root",
                    role.role
                );
                return self.add(CheckVerdict::Missing, whose, &text);
            }
            Err(error) => return self.refused(whose, error),
        };
        self.add(CheckVerdict::Ok, whose, &format!("gets a token by the role {}", role.role));
        let entity = self.look_at_token(whose, &client, &role.policy()).await;
        if role.entities().any(|other| other == group) {
            self.look_at_entity(whose, entity);
        }
        self.look_at_role(whose, group).await;
        let needed = needs(&role.grants);
        let written = role.locations.iter().filter(|it| matches!(it, VaultLocation::Write { .. }));
        let written = written.map(VaultLocation::api_path).collect();
        let has = self.needed(whose, &client, &needed, &written).await;
        let own: BTreeSet<_> = role.locations.iter().map(VaultLocation::api_path).collect();
        let mut reads: BTreeSet<_> = has.into_iter().filter(|path| own.contains(path)).collect();
        reads.extend(self.look_at_rules(whose, &client, &role.grants, &[]).await);
        reads.extend(self.beside(whose, &client, needed.keys()).await);
        let roles = self.rights.roles.iter();
        let secrets = roles.flat_map(|role| &role.locations).flat_map(around);
        let foreign = secrets.filter(|path| !own.contains(path)).collect();
        let text = ["reaches no other secrets", "reaches secrets that are not its own"];
        reads.extend(self.beyond(whose, &client, text, foreign).await);
        let others = self.others(&self.rights.roles);
        let text = ["cannot give itself more", "could give itself more"];
        self.beyond(whose, &client, text, others).await;
        self.health.reads.insert(group.clone(), reads);
    }

    /// Checks that each path has its capability and no more. Returns those that have it.
    async fn needed(
        &mut self,
        whose: &str,
        client: &TokenClient,
        needed: &BTreeMap<String, BTreeSet<&str>>,
        written: &BTreeSet<String>,
    ) -> Vec<String> {
        let Some(held) = self.capabilities(whose, client, needed.keys().cloned()).await else {
            return Vec::new();
        };
        let mut has = Vec::new();
        for (path, wanted) in needed {
            let mut held: BTreeSet<_> =
                held.get(path).into_iter().flatten().map(String::as_str).collect();
            // Vault asks for "create" or "update", by whether the engine knows the path.
            if written.contains(path) && held.remove("create") {
                held.insert("update");
            }
            let text = |list: &[&str]| format!("{} {path}", list.join(" and "));
            let lacks: Vec<_> = wanted.difference(&held).copied().collect();
            let more: Vec<_> = held.difference(wanted).copied().collect();
            let needs: Vec<_> = wanted.iter().copied().collect();
            if !lacks.is_empty() && !held.contains("root") {
                self.add(CheckVerdict::Missing, whose, &format!("may not {}", text(&lacks)));
            } else {
                has.push(path.clone());
            }
            if !more.is_empty() {
                let text = format!("may {}, and needs {} there", text(&more), needs.join(" and "));
                self.add(CheckVerdict::TooWide, whose, &text);
            } else if lacks.is_empty() {
                self.add(CheckVerdict::Ok, whose, &format!("may {}", text(&needs)));
            }
        }
        has
    }

    /// Checks that no pattern opens paths that nobody has, beside those that are needed.
    async fn beside<'a>(
        &mut self,
        whose: &str,
        client: &TokenClient,
        needed: impl Iterator<Item = &'a String>,
    ) -> Vec<String> {
        let paths = needed.flat_map(|path| neighbours(path, &self.unused)).collect();
        let text = ["no wildcard holds its paths", "a wildcard holds more than its paths"];
        self.beyond(whose, client, text, paths).await
    }

    /// Checks that none of these paths is open. Returns those that are.
    async fn beyond(
        &mut self,
        whose: &str,
        client: &TokenClient,
        [good, wide]: [&str; 2],
        paths: BTreeSet<String>,
    ) -> Vec<String> {
        let Some(held) = self.capabilities(whose, client, paths.iter().cloned()).await else {
            return Vec::new();
        };
        let shown = |path: &str| path.replace(&self.unused, ANY);
        let open = held.into_iter().filter(|(_, held)| !held.is_empty());
        let open = open.map(|(path, held)| (shown(&path), held)).collect();
        self.open(whose, [good, wide], open)
    }

    /// Reports the paths that are open and should not be. Returns those of them that can be read.
    fn open(
        &mut self,
        whose: &str,
        [good, wide]: [&str; 2],
        mut open: Vec<(String, BTreeSet<String>)>,
    ) -> Vec<String> {
        if open.is_empty() {
            self.add(CheckVerdict::Ok, whose, good);
            return Vec::new();
        }
        // An open path near the root says most.
        open.sort_by_key(|(path, _)| path.split('/').count());
        let texts = open.iter().map(|(path, held)| {
            let held: Vec<_> = held.iter().map(String::as_str).collect();
            format!("{} {path}", held.join("+"))
        });
        let mut text = texts.take(MAX_SHOWN).collect::<Vec<_>>().join(", ");
        if open.len() > MAX_SHOWN {
            let _ = write!(text, " and {} more", open.len() - MAX_SHOWN);
        }
        self.add(CheckVerdict::TooWide, whose, &format!("{wide}: {text}"));
        let readable =
            open.into_iter().filter(|(_, held)| held.iter().any(|it| READS.contains(&&**it)));
        readable.map(|(path, _)| path).collect()
    }

    /// Checks what Vault signs for the gateway's token.
    async fn look_at_engine(&mut self, pki: &PkiSettings, questions: Probes) {
        let whose = "gateway";
        for (rule, question) in &questions.good {
            match self.session.sign(&pki.mount, question).await {
                Ok(_) => {
                    self.add(CheckVerdict::Ok, whose, &format!("has the CA of `{rule}` signed"))
                }
                Err(FetchError::Gone(_, text)) => {
                    self.add(CheckVerdict::Missing, whose, &format!("the CA of `{rule}`: {text}"));
                }
                Err(error) => {
                    let text = format!("the CA of `{rule}`: {}", error.text());
                    self.add(CheckVerdict::Unanswered, whose, &text);
                }
            }
        }
        let mut wider = false;
        for (how, question) in &questions.wider {
            let text = match self.session.sign(&pki.mount, question).await {
                Err(error) if error.text() == NOT_ALLOWED => continue,
                Ok(_) => format!(
                    "Vault signs a CA for {how}: list what is allowed, and refuse what is empty in \
                     denied_parameters"
                ),
                Err(error) => format!("a CA for {how}: no policy refuses it; {}", error.text()),
            };
            wider = true;
            self.add(CheckVerdict::TooWide, whose, &text);
        }
        if !wider {
            self.add(CheckVerdict::Ok, whose, "Vault signs no CA that is wider");
        }
    }

    /// Returns the paths that only an operator may use: tokens without a role or by other roles,
    /// roles, policies, engines, logins. The tokens of `roles` must not be made either.
    fn others(&self, roles: &[RoleRights]) -> BTreeSet<String> {
        let login = match &self.vault.login {
            VaultLogin::AppRole { mount, .. } => format!("auth/{mount}/role/{GATEWAY}"),
            VaultLogin::Cert { mount, role, .. } => format!("auth/{mount}/certs/{role}"),
            VaultLogin::Jwt { mount, role, .. } => format!("auth/{mount}/role/{role}"),
        };
        let all = self.rights.roles.iter();
        let own = all.flat_map(|role| {
            [
                format!("auth/token/roles/{}", role.role),
                format!("sys/policies/acl/{}", role.policy()),
            ]
        });
        let named =
            [login.clone(), format!("{login}/secret-id"), format!("sys/policies/acl/{GATEWAY}")];
        let any = BELOW.iter().map(|path| format!("{path}/{}", self.unused));
        let exact = EXACT.iter().map(|path| (*path).to_owned());
        let create = roles.iter().map(|role| plan::create_path(&role.role));
        own.chain(named).chain(any).chain(exact).chain(create).collect()
    }

    /// Returns the capabilities of the token at each path, without paths that have none. `None`
    /// where Vault does not answer, which is then a finding.
    async fn capabilities(
        &mut self,
        whose: &str,
        client: &TokenClient,
        paths: impl Iterator<Item = String>,
    ) -> Option<BTreeMap<String, BTreeSet<String>>> {
        let paths: Vec<_> = paths.collect();
        let mut held = BTreeMap::new();
        for some in paths.chunks(PATHS_AT_ONCE) {
            match ask(client, some).await {
                Ok(more) => held.extend(more),
                Err(_) => {
                    let text = "Vault does not say what its token may do: it needs update on \
                                sys/capabilities-self";
                    self.add(CheckVerdict::Unanswered, whose, text);
                    return None;
                }
            }
        }
        Some(held)
    }

    fn refused(&mut self, whose: &str, error: FetchError) {
        let verdict = match error {
            FetchError::Gone(_, REFUSED | WRONG_SECRET_ID | NO_TOKEN) => CheckVerdict::Missing,
            FetchError::Gone(..) => CheckVerdict::TooWide,
            FetchError::Outage(SecretCause::VaultDenied, _) => CheckVerdict::Missing,
            FetchError::Outage(..) | FetchError::Busy(_) => CheckVerdict::Unanswered,
        };
        self.add(verdict, whose, error.text());
    }

    fn add(&mut self, verdict: CheckVerdict, whose: &str, text: &str) {
        let check = Check { verdict, whose: whose.to_owned(), text: text.to_owned() };
        self.health.checks.push(check);
    }
}

/// The text that stands for any name in findings.
const ANY: &str = "<any>";

/// Capabilities that let a token read.
const READS: [&str; 3] = ["read", "list", "root"];

const PATHS_AT_ONCE: usize = 200;

const MAX_SHOWN: usize = 4;
