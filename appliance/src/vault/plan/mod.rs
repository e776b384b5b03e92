//! The settings that Vault needs for a configuration to work, and nothing beyond that: policies,
//! token roles and the gateway's login. Pure; nothing is asked of Vault.
//!
//! The gateway's policy lets it make its groups' tokens, look after its own, and read no secret. A
//! group's policy lists the group's paths one by one, each with the one right that it needs. The
//! plan errs towards refusal: a text that a Vault policy would read as a pattern is no path here,
//! and two groups that would have to share a policy are an error and not a wider policy.

mod error;
mod grant;
mod names;
mod shell;
mod terraform;
#[cfg(test)]
mod tests;

pub use error::PlanError;
pub use grant::PathGrant;
pub(crate) use grant::WritableParameters;
pub use names::GATEWAY;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use self::grant::{check_path, check_text, hcl, leases, reads};
use crate::{
    ca,
    config::{PkiSettings, Settings, VaultLogin, is_guessable},
    policy::{Group, GroupName, Location, Policy, VaultLocation},
};

/// All the settings that Vault needs.
#[derive(Debug)]
pub struct VaultPlan {
    rights: Rights,
    login: VaultLogin,
    namespace: Option<Arc<str>>,
    pki: Option<PkiSettings>,
    /// The networks to which every token is bound. Never empty.
    bound_cidrs: Vec<IpNet>,
}

/// The rights of the gateway and of each token role.
#[derive(Debug)]
pub struct Rights {
    /// The gateway's grants, for the policy [`GATEWAY`].
    pub gateway: Vec<PathGrant>,
    /// The rights of each token role, ordered by its name.
    pub roles: Vec<RoleRights>,
    /// The text of the policy by which the gateway has its issuing CAs signed; empty without
    /// `[vault.pki]`.
    pki: String,
    /// The path at which the engine signs CAs, if any.
    pub signing: Option<String>,
}

/// A token role, and the policy of the same name.
#[derive(Debug, PartialEq, Eq)]
pub struct RoleRights {
    /// The token role.
    pub role: Arc<str>,
    /// The groups whose tokens it makes. Never empty.
    pub groups: Vec<GroupName>,
    /// The locations that they read. Never empty.
    pub locations: BTreeSet<VaultLocation>,
    /// The grants of their tokens, including these reads.
    pub grants: Vec<PathGrant>,
}

impl VaultPlan {
    /// Makes the plan for a configuration. All tokens are bound to `bound_cidrs`.
    ///
    /// # Errors
    ///
    /// No `[vault]`, no address, or a text that a Vault policy would read as more than it says.
    pub fn new(
        settings: &Settings,
        policy: &Policy,
        mut bound_cidrs: Vec<IpNet>,
    ) -> Result<Self, PlanError> {
        let vault = settings.vault.as_ref().ok_or(PlanError::NoVault)?;
        bound_cidrs.sort_unstable();
        bound_cidrs.dedup();
        if bound_cidrs.is_empty() {
            return Err(PlanError::Unbound);
        }
        check_login(&vault.login)?;
        vault.namespace.iter().try_for_each(|text| check_path("namespace", text))?;
        if let Some(pki) = &vault.pki {
            check_text("root_file", &pki.root_file.to_string_lossy())?;
        }
        Ok(Self {
            rights: Rights::new(settings, policy)?,
            login: vault.login.clone(),
            namespace: vault.namespace.clone(),
            pki: vault.pki.clone(),
            bound_cidrs,
        })
    }

    /// Returns one policy, for `vault policy write NAME -`.
    ///
    /// # Errors
    ///
    /// No policy has that name.
    pub fn policy(&self, name: &str) -> Result<String, PlanError> {
        let mut policies = self.policies();
        let found = policies.find(|(other, _)| other == name);
        found.map(|(_, hcl)| hcl).ok_or_else(|| PlanError::NoPolicy(name.to_owned()))
    }

    /// Returns names and texts, the gateway's first.
    fn policies(&self) -> impl Iterator<Item = (String, String)> {
        let gateway = hcl(&self.rights.gateway) + &self.rights.pki;
        let roles = self.rights.roles.iter();
        std::iter::once((GATEWAY.to_owned(), gateway))
            .chain(roles.map(|role| (role.policy(), hcl(&role.grants))))
    }

    fn bound(&self) -> impl Iterator<Item = String> {
        self.bound_cidrs.iter().map(IpNet::to_string)
    }
}

impl Rights {
    /// Returns the rights that a configuration needs.
    ///
    /// # Errors
    ///
    /// As [`VaultPlan::new`].
    pub fn new(settings: &Settings, policy: &Policy) -> Result<Self, PlanError> {
        let vault = settings.vault.as_ref().ok_or(PlanError::NoVault)?;
        let mut roles: BTreeMap<String, RoleRights> = BTreeMap::new();
        for group in &policy.groups {
            let Some(own) = RoleRights::new(group, locations(policy, &group.name))? else {
                continue;
            };
            // Vault has one policy for names that differ in case alone.
            match roles.get_mut(&own.policy()) {
                None => drop(roles.insert(own.policy(), own)),
                Some(other) if other.role == own.role && other.locations == own.locations => {
                    other.groups.extend(own.groups);
                }
                Some(other) => return Err(shared(other, group)),
            }
        }
        let roles: Vec<_> = roles.into_values().collect();
        let pki = match &vault.pki {
            None => String::new(),
            Some(pki) => {
                check_path("mount", &pki.mount)?;
                ca::policy_hcl(pki, policy).map_err(PlanError::Ca)?
            }
        };
        let create = |role: &RoleRights| PathGrant::new(create_path(&role.role), "update");
        let gateway = roles.iter().map(create).chain(own_token()).chain([
            // A group's token that may not end itself is ended by its accessor.
            PathGrant::new("auth/token/revoke-accessor", "update"),
        ]);
        let gateway = gateway.chain(own_login(&vault.login)?);
        let mount = vault.pki.as_ref().map(|pki| &pki.mount).filter(|_| !pki.is_empty());
        let signing = mount.map(|mount| ca::signing_path(mount));
        Ok(Self { gateway: gateway.collect(), roles, pki, signing })
    }
}

impl RoleRights {
    /// Returns `None` for a group that reads nothing from Vault.
    fn new(group: &Group, locations: BTreeSet<VaultLocation>) -> Result<Option<Self>, PlanError> {
        if locations.is_empty() {
            return Ok(None);
        }
        check_path("vault_role", &group.vault_role)?;
        if RESERVED.iter().any(|name| group.vault_role.eq_ignore_ascii_case(name)) {
            return Err(PlanError::Reserved(group.name.clone(), Arc::clone(&group.vault_role)));
        }
        let mut grants = reads(&locations)?;
        grants.extend(own_token());
        grants.extend(leases(&locations));
        let role = Arc::clone(&group.vault_role);
        Ok(Some(Self { role, groups: vec![group.name.clone()], locations, grants }))
    }

    /// Returns the groups that have an entity of their own: those that Vault signs tokens about.
    pub(crate) fn entities(&self) -> impl Iterator<Item = &GroupName> {
        let signed = self.locations.iter().any(VaultLocation::is_identity_token);
        self.groups.iter().filter(move |_| signed)
    }

    /// Returns the name of the policy, as Vault keeps it.
    pub fn policy(&self) -> String {
        self.role.to_ascii_lowercase()
    }
}

/// Returns the name by which Vault knows a group: that of its tokens, and of its entity where it
/// has one.
pub fn entity(group: &GroupName) -> String {
    format!("cloakroom-{group}")
}

/// Returns the path at which a role makes a token for the gateway.
pub fn create_path(role: &str) -> String {
    format!("auth/token/create/{role}")
}

/// An engine for logins by signed tokens, and the fields that say whose tokens its role accepts.
/// Those are not in the gateway's configuration, so the operator is asked for them.
struct Bearers {
    engine: &'static str,
    /// The fields of the role that are always the same.
    fixed: &'static [(&'static str, &'static str)],
    /// Fields of the role, the variable for each, and whether it is one of a list.
    asked: &'static [(&'static str, &'static str, bool)],
}

impl Bearers {
    /// Returns the engine at a mount. Kubernetes has an engine of its own, which its mount is named
    /// after.
    fn at(mount: &str) -> &'static Self {
        if mount.rsplit('/').next() == Some(KUBERNETES.engine) { &KUBERNETES } else { &JWT }
    }
}

/// Returns the grants that a token needs for itself: to look itself up, to renew and revoke itself,
/// and to list its rights.
fn own_token() -> [PathGrant; 5] {
    [
        PathGrant::new(OWN_RULES, "read"),
        PathGrant::new("auth/token/lookup-self", "read"),
        PathGrant::new("auth/token/renew-self", "update"),
        PathGrant::new("auth/token/revoke-self", "update"),
        PathGrant::new("sys/capabilities-self", "update"),
    ]
}

/// Returns the grant to look up the SecretID: how long it lasts and, with that, whether wrong ones
/// lock its role out.
fn own_login(login: &VaultLogin) -> Result<Option<PathGrant>, PlanError> {
    let VaultLogin::AppRole { mount, .. } = login else { return Ok(None) };
    check_path("mount", mount)?;
    let path = format!("auth/{mount}/role/{GATEWAY}/secret-id/lookup");
    Ok(Some(PathGrant::new(path, "update")))
}

/// Returns everything in Vault that the group's bindings name.
fn locations(policy: &Policy, group: &GroupName) -> BTreeSet<VaultLocation> {
    let bindings = policy.apis.iter().flat_map(|api| &api.bindings);
    let own = bindings.filter(|binding| binding.groups.contains(group));
    own.filter_map(|binding| match binding.secret.location() {
        Location::Vault(location) => Some(location),
        Location::File(_) => None,
    })
    .collect()
}

fn shared(other: &RoleRights, group: &Group) -> PlanError {
    let role = Arc::clone(&group.vault_role);
    match other.groups.first() {
        Some(first) => PlanError::SharedRole(first.clone(), group.name.clone(), role),
        None => PlanError::Reserved(group.name.clone(), role),
    }
}

fn check_login(login: &VaultLogin) -> Result<(), PlanError> {
    if let VaultLogin::AppRole { role_id, .. } = login
        && is_guessable(role_id)
    {
        return Err(PlanError::Guessable(Arc::clone(role_id)));
    }
    let (mount, role, files) = match login {
        VaultLogin::AppRole { mount, role_id, secret_id_file, .. } => {
            (mount, role_id, vec![secret_id_file])
        }
        VaultLogin::Cert { mount, role, certificate_file, key_file } => {
            check_path("role", role)?;
            (mount, role, vec![certificate_file, key_file])
        }
        VaultLogin::Jwt { mount, role, token_file } => {
            check_path("role", role)?;
            (mount, role, vec![token_file])
        }
    };
    check_path("mount", mount)?;
    check_text("role_id", role)?;
    files.iter().try_for_each(|file| check_text("file", &file.to_string_lossy()))
}

/// The path at which Vault lists the rules of the asking token.
pub const OWN_RULES: &str = "sys/internal/ui/resultant-acl";

/// The policies that Vault has by itself, and the gateway's.
const RESERVED: [&str; 5] = ["root", "default", "response-wrapping", "control-group", GATEWAY];

/// <https://developer.hashicorp.com/vault/api-docs/auth/jwt#create-update-role>
const JWT: Bearers = Bearers {
    engine: "jwt",
    fixed: &[("role_type", "jwt"), ("user_claim", "sub")],
    asked: &[("bound_subject", "SUBJECT", false), ("bound_audiences", "AUDIENCE", true)],
};

/// <https://developer.hashicorp.com/vault/api-docs/auth/kubernetes#create-update-role>
const KUBERNETES: Bearers = Bearers {
    engine: "kubernetes",
    fixed: &[],
    asked: &[
        ("bound_service_account_names", "SERVICE_ACCOUNT", true),
        ("bound_service_account_namespaces", "SERVICE_ACCOUNT_NAMESPACE", true),
        ("audience", "AUDIENCE", false),
    ],
};

/// The life of every token between two renewals.
const PERIOD: &str = "1h";
const PERIOD_SECONDS: u32 = 3_600;
