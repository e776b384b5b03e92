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
    policy::{Api, GroupName, Host, Policy, RuleName, Upstream},
    scrub::Masks,
    secrets::SecretSnapshot,
    substitute::SubstitutionRules,
    tickets::{KnownValues, Tickets},
    tls::Tls,
};

/// A policy in force.
pub struct PolicySnapshot {
    /// The policy as the operator wrote it.
    pub policy: Policy,
    /// Settings of every TLS handshake under it.
    pub tls: Tls,
    /// Compiled masks. They belong to this policy: another may bind other secrets under one name.
    pub masks: Arc<MaskCache>,
    /// Compressed answers under way.
    pub coded: CodedAnswers,
    /// The number of times that the system has lost a CA since the daemon began.
    lost_roots: u64,
    cas: RuleCas,
    onboarding: HashMap<GroupName, Pages>,
    rules: Mutex<HashMap<(GroupName, RuleName), Arc<SubstitutionRules>>>,
}

/// The reason why a policy cannot be put in force.
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
    /// A group's bundle relies on the system's CAs, and there are none.
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
            masks: Arc::new(MaskCache::new(&policy.apis)),
            policy,
            tls,
            coded: CodedAnswers::default(),
            lost_roots: 0,
            cas,
            onboarding,
            rules: Mutex::default(),
        })
    }

    /// Makes this snapshot the successor of `older`.
    #[must_use]
    pub fn after(self, older: &Self) -> Self {
        let lost = self.tls.has_lost_a_root_of(&older.tls);
        Self { lost_roots: older.lost_roots + u64::from(lost), ..self }
    }

    /// Whether the policy equals that of `older`, and every CA that the system vouched for then is
    /// still trusted.
    #[must_use]
    pub fn forbids_no_more_than(&self, older: &Self) -> bool {
        self.policy == older.policy && self.lost_roots == older.lost_roots
    }

    /// Whether an upstream's certificate that was verified under `older` is still trusted: no CA
    /// that may have vouched for it has gone. A rule's own CAs are a part of the rule, which is
    /// compared apart.
    #[must_use]
    pub fn trusts_as(&self, older: &Self, upstream: &Upstream) -> bool {
        upstream.ca_pem.is_some() || self.lost_roots == older.lost_roots
    }

    /// Returns the issuing CA of a rule that ends TLS here.
    pub fn ca(&self, rule: &RuleName) -> Option<&RuleCa> {
        self.cas.get(rule).map(Arc::as_ref)
    }

    /// Returns the issuing CAs of all rules that end TLS here.
    pub fn cas(&self) -> impl Iterator<Item = &RuleCa> {
        self.cas.values().map(Arc::as_ref)
    }

    /// Returns the pages that the gateway's own address shows agents of a group, if it has any.
    pub fn onboarding(&self, group: &GroupName) -> Option<&Pages> {
        self.onboarding.get(group)
    }

    /// Returns the compiled rules for requests of a group at an API.
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

/// Compiled masks for each group and host of one policy, made again when any value has changed.
pub struct MaskCache {
    none: Arc<Masks>,
    /// The APIs of a host, one for each of its ports; a secret that one is told, another may know.
    apis: HashMap<Host, Vec<Arc<Api>>>,
    compiled: RwLock<HashMap<(GroupName, Host), Compiled>>,
    minted: Mutex<HashMap<GroupName, Arc<Mutex<MintedMasks>>>>,
}

/// The generations of the values of the store and of tickets.
pub type Generations = (u64, u64);

/// Masks, and the generations that they were made for.
#[derive(Clone)]
struct Compiled {
    made: Generations,
    /// For the secrets of bindings alone.
    own: Arc<Masks>,
    all: Arc<Masks>,
}

/// Masks for minted credentials. Most were compiled once; the newest are compiled again for each
/// further one, and there are few of them.
#[derive(Default)]
struct MintedMasks {
    settled: (u64, Option<Arc<Masks>>),
    newest: (u64, Option<Arc<Masks>>),
}

impl MintedMasks {
    fn take(&mut self, known: &KnownValues) {
        let masks = |since: u64| {
            let values = known.since(since);
            (values.len() > 0).then(|| Arc::new(Masks::new(values.map(|value| &**value))))
        };
        let seen = known.seen();
        if seen == self.newest.0 {
            return;
        }
        if known.since(self.settled.0).len() > NEWEST_MINTED {
            *self = Self { settled: (seen, masks(0)), newest: (seen, None) };
        } else {
            self.newest = (seen, masks(self.settled.0));
        }
    }
}

/// Credentials whose masks are compiled again with each further one.
const NEWEST_MINTED: usize = 24;

impl MaskCache {
    fn new(apis: &[Arc<Api>]) -> Self {
        let mut of_host: HashMap<Host, Vec<Arc<Api>>> = HashMap::new();
        for api in apis {
            for host in &api.hosts {
                of_host.entry(host.clone()).or_default().push(Arc::clone(api));
            }
        }
        Self {
            none: Arc::new(Masks::new([])),
            apis: of_host,
            compiled: RwLock::default(),
            minted: Mutex::default(),
        }
    }

    /// Returns masks that mask nothing.
    pub fn none(&self) -> Arc<Masks> {
        Arc::clone(&self.none)
    }

    /// Returns the masks for every known version of every secret that the group has at an API of
    /// the host, and of those that it had anywhere before the policy changed, and for every
    /// credential that was minted for the group; and the generations that they were made for.
    pub fn of(
        &self,
        (group, host): (&GroupName, &Host),
        (snapshot, tickets): (&SecretSnapshot, &Tickets),
    ) -> (Arc<Masks>, Generations) {
        let key = (group.clone(), host.clone());
        let generations = (snapshot.generation(), tickets.generation());
        let before = read(&self.compiled).get(&key).cloned();
        let own = match before {
            Some(before) if before.made == generations => return (before.all, generations),
            // Only minted credentials have changed.
            Some(before) if before.made.0 == generations.0 => before.own,
            _ => Arc::new(self.own((group, host), snapshot)),
        };
        let minted = self.minted(group, tickets);
        let all = match minted.is_empty() {
            true => Arc::clone(&own),
            false => Arc::new(Masks::joined([&*own], minted.iter().map(|it| &**it))),
        };
        let compiled = Compiled { made: generations, own, all: Arc::clone(&all) };
        write(&self.compiled).insert(key, compiled);
        (all, generations)
    }

    /// As [`Self::of`], for the secrets of bindings alone.
    pub fn of_bindings(
        &self,
        (group, host): (&GroupName, &Host),
        values: (&SecretSnapshot, &Tickets),
    ) -> Arc<Masks> {
        let (all, _) = self.of((group, host), values);
        let compiled = read(&self.compiled);
        let of_host = compiled.get(&(group.clone(), host.clone()));
        of_host.map_or(all, |compiled| Arc::clone(&compiled.own))
    }

    fn own(&self, (group, host): (&GroupName, &Host), snapshot: &SecretSnapshot) -> Masks {
        let bindings = self.apis.get(host).into_iter().flatten().flat_map(|api| &api.bindings);
        let bindings = bindings.filter(|binding| binding.groups.contains(group));
        let values = bindings
            .flat_map(|binding| snapshot.known(group, &binding.secret, binding.min_value_bytes));
        let values = values.chain(snapshot.left(group));
        Masks::new(values.map(|value| &**value))
    }

    fn minted(&self, group: &GroupName, tickets: &Tickets) -> Vec<Arc<Masks>> {
        // No group waits while another's are compiled.
        let minted = Arc::clone(lock(&self.minted).entry(group.clone()).or_default());
        let mut minted = lock(&minted);
        minted.take(&tickets.known(group));
        [&minted.settled.1, &minted.newest.1].into_iter().flatten().cloned().collect()
    }
}
