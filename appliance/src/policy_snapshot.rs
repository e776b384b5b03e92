//! A policy in force, with everything that is made from it once: compiled rules, TLS settings,
//! masks, and the issuing CAs of its rules. Immutable except for its caches, and for the CAs, which
//! are replaced as they age; a reload makes a new one, and a flow keeps the one it began with.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, RwLock},
};

use rustls::RootCertStore;

use crate::{
    ca::{RuleCa, RuleCas},
    limits::CodedAnswers,
    locks::{lock, read, write},
    onboarding::{self, NoPublicCas, Pages},
    policy::{Api, GroupName, Policy, RuleName},
    scrub::Masks,
    secrets::SecretSnapshot,
    substitute::SubstitutionRules,
    tls::Tls,
};

/// A policy in force.
pub struct PolicySnapshot {
    /// What the operator said.
    pub policy: Policy,
    /// Settings of every TLS handshake under it.
    pub tls: Tls,
    /// Compiled masks. They belong to this policy: another may bind other secrets under one name.
    pub masks: Arc<MaskCache>,
    /// Compressed answers under way.
    pub coded: CodedAnswers,
    cas: RuleCas,
    onboarding: HashMap<GroupName, Pages>,
    rules: Mutex<HashMap<(GroupName, RuleName), Arc<SubstitutionRules>>>,
}

/// Why a policy cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum PolicySnapshotError {
    /// The TLS provider lacks what the gateway needs.
    #[error("the TLS provider cannot be used: {0}")]
    Tls(rustls::Error),
    /// A rule relies on the system's CAs, and there are none.
    #[error(
        "rule {:?} trusts the system's CAs, and there are none; install ca-certificates or set \
         upstream_ca",
        .0.as_str()
    )]
    NoSystemRoots(RuleName),
    /// A group's bundle relies on them.
    #[error(transparent)]
    NoPublicCas(NoPublicCas),
}

impl PolicySnapshot {
    /// Puts a policy in force, with the issuing CAs of its rules.
    pub fn new(
        policy: Policy,
        cas: RuleCas,
        system_roots: Arc<RootCertStore>,
        public: &[impl AsRef<[u8]>],
    ) -> Result<Self, PolicySnapshotError> {
        check_roots(&policy, &system_roots)?;
        let onboarding =
            onboarding::pages(&policy, public).map_err(PolicySnapshotError::NoPublicCas)?;
        let tls = Tls::new(system_roots).map_err(PolicySnapshotError::Tls)?;
        Ok(Self {
            policy,
            tls,
            masks: Arc::default(),
            coded: CodedAnswers::default(),
            cas,
            onboarding,
            rules: Mutex::default(),
        })
    }

    /// The issuing CA of a rule that ends TLS here.
    pub fn ca(&self, rule: &RuleName) -> Option<&RuleCa> {
        self.cas.get(rule).map(Arc::as_ref)
    }

    /// The issuing CAs of all rules that end TLS here.
    pub fn cas(&self) -> impl Iterator<Item = &RuleCa> {
        self.cas.values().map(Arc::as_ref)
    }

    /// What the gateway's own address tells agents of a group, where that is anything.
    pub fn onboarding(&self, group: &GroupName) -> Option<&Pages> {
        self.onboarding.get(group)
    }

    /// What a request of a group must look like at an API.
    pub fn rules(&self, group: &GroupName, api: &Arc<Api>) -> Arc<SubstitutionRules> {
        let mut rules = lock(&self.rules);
        let compiled = rules
            .entry((group.clone(), api.name.clone()))
            .or_insert_with(|| Arc::new(SubstitutionRules::new(&self.policy, group, api)));
        Arc::clone(compiled)
    }
}

fn check_roots(policy: &Policy, system_roots: &RootCertStore) -> Result<(), PolicySnapshotError> {
    let apis = policy.apis.iter().map(|api| (&api.name, &api.upstream));
    let inspected = policy.passes.iter().filter(|pass| !pass.carry.is_splice());
    let mut rules = apis.chain(inspected.map(|pass| (&pass.name, &pass.upstream)));
    let rootless = rules.find(|(_, upstream)| upstream.ca_pem.is_none() && system_roots.is_empty());
    match rootless {
        Some((rule, _)) => Err(PolicySnapshotError::NoSystemRoots(rule.clone())),
        None => Ok(()),
    }
}

/// Compiled masks for each group and API of one policy, made again when any value has changed.
pub struct MaskCache {
    none: Arc<Masks>,
    compiled: RwLock<HashMap<(GroupName, RuleName), Compiled>>,
}

/// Masks, and the generation of the values that they were made for.
type Compiled = (u64, Arc<Masks>);

impl Default for MaskCache {
    fn default() -> Self {
        Self { none: Arc::new(Masks::new([])), compiled: RwLock::default() }
    }
}

impl MaskCache {
    /// Masks that mask nothing.
    pub fn none(&self) -> Arc<Masks> {
        Arc::clone(&self.none)
    }

    /// Masks for every known version of every secret that the group has at the API, and of those
    /// that it had anywhere before the policy changed.
    pub fn of(&self, group: &GroupName, api: &Api, snapshot: &SecretSnapshot) -> Arc<Masks> {
        let key = (group.clone(), api.name.clone());
        let generation = snapshot.generation();
        let compiled = read(&self.compiled);
        match compiled.get(&key) {
            Some((made, masks)) if *made == generation => return Arc::clone(masks),
            _ => drop(compiled),
        }
        let bindings = api.bindings.iter().filter(|binding| binding.groups.contains(group));
        let values = bindings
            .flat_map(|binding| snapshot.known(group, &binding.secret, binding.min_value_bytes));
        let values = values.chain(snapshot.left(group));
        let masks = Arc::new(Masks::new(values.map(|value| &**value)));
        let mut compiled = write(&self.compiled);
        compiled.insert(key, (generation, Arc::clone(&masks)));
        masks
    }
}
