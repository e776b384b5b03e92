//! The rules that `client` in a `[[group]]` stands for.
//!
//! The file's own rules take precedence: a host of an API belongs to the API, and a name that
//! another rule of the group lists on the port belongs to that rule.

use std::{collections::BTreeMap, iter, sync::LazyLock};

use toml::{Spanned, de::DeTable};

use super::{
    check::Draft,
    error::{Report, Span},
    files::Files,
    rules::{ApiRule, GroupRule, PassRule},
    table::TomlTable,
};
use crate::{
    catalogue::{self, Client, ClientRule},
    policy::{Anonymous, AnonymousRequest, GroupName, Host, HostPattern, RuleName},
};

/// Adds the rules of all groups' clients.
pub(super) fn add(draft: &mut Draft, files: Files<'_>, report: &Report<'_>) {
    for client in catalogue::clients() {
        let groups = who_runs(draft, client);
        let Some((_, span)) = groups.first() else { continue };
        let (span, groups) = (span.clone(), groups.into_iter().map(|(name, _)| name).collect());
        let at = Added { rules: client.rules(), groups, span };
        at.add(draft, files, report);
        for (host, requests) in client.anonymous() {
            let requests = requests.iter().filter_map(|text| AnonymousRequest::parse(text).ok());
            at.admit(draft, host, &requests.collect::<Vec<_>>());
        }
    }
}

fn who_runs(draft: &Draft, client: &Client) -> Vec<(Spanned<GroupName>, Span)> {
    let runs = |group: &GroupRule| {
        let own = group.clients.iter().find(|own| own.get_ref().name == client.name)?;
        Some((group.name.clone()?, own.span()))
    };
    draft.groups.iter().filter_map(runs).collect()
}

/// Hosts without a rule, by the groups and the ports for which they have none.
type Missing = BTreeMap<(Vec<GroupName>, Vec<u16>), Vec<Spanned<HostPattern>>>;

/// The additions of one client.
struct Added {
    rules: &'static [ClientRule],
    groups: Vec<Spanned<GroupName>>,
    /// The place in the file that asks for the client.
    span: Span,
}

impl Added {
    fn add(&self, draft: &mut Draft, files: Files<'_>, report: &Report<'_>) {
        for rule in self.rules {
            let whole = read(rule, &self.span, files, report);
            for ((groups, ports), hosts) in self.missing(draft, &whole) {
                let mut part = read(rule, &self.span, files, report);
                part.name = part.name.and_then(|name| free(draft, &name));
                part.groups = self
                    .groups
                    .iter()
                    .filter(|it| groups.contains(it.get_ref()))
                    .cloned()
                    .collect();
                part.hosts = hosts;
                part.ports.retain(|port| ports.contains(port.get_ref()));
                draft.passes.push(part);
            }
        }
    }

    /// Makes the host's API accept these requests without a credential, if all its groups run the
    /// client and the file does not decide it.
    fn admit(&self, draft: &mut Draft, host: &str, requests: &[AnonymousRequest]) {
        let runs = |group: &Spanned<GroupName>| {
            self.groups.iter().any(|it| it.get_ref() == group.get_ref())
        };
        let is_its = |api: &&mut ApiRule| {
            let mut groups = api.bindings.iter().flat_map(|binding| &binding.groups).peekable();
            !api.says_anonymous
                && api.hosts.iter().any(|own| own.get_ref().as_str() == host)
                && groups.peek().is_some()
                && groups.all(runs)
        };
        for api in draft.apis.iter_mut().filter(is_its) {
            let mut listed = match &api.anonymous {
                Anonymous::Always => continue,
                Anonymous::Listed(listed) => listed.clone(),
                Anonymous::Never => vec![],
            };
            let new = requests.iter().filter(|it| !listed.contains(it)).cloned();
            let new: Vec<_> = new.collect();
            listed.extend(new);
            api.anonymous = Anonymous::Listed(listed);
        }
    }

    /// Returns the hosts that no rule has yet, by the groups and the ports for which that is so.
    fn missing(&self, draft: &Draft, rule: &PassRule) -> Missing {
        let mut missing = Missing::new();
        let left = |host: &&Spanned<HostPattern>| !is_of_api(draft, host.get_ref(), rule);
        for host in rule.hosts.iter().filter(left) {
            let mut without: BTreeMap<Vec<GroupName>, Vec<u16>> = BTreeMap::new();
            for port in rule.ports.iter().map(Spanned::get_ref) {
                let names = self.groups.iter().map(Spanned::get_ref);
                let has = |group: &&GroupName| !has(draft, group, host.get_ref(), *port);
                without.entry(names.filter(has).cloned().collect()).or_default().push(*port);
            }
            for (groups, ports) in without.into_iter().filter(|(groups, _)| !groups.is_empty()) {
                missing.entry((groups, ports)).or_default().push(host.clone());
            }
        }
        missing
    }
}

/// Returns whether the host belongs to an API on a port of the rule. If so, none of its ports is
/// added here, because it would bypass the API.
fn is_of_api(draft: &Draft, host: &HostPattern, rule: &PassRule) -> bool {
    let port = |port: &u16| rule.ports.iter().any(|own| own.get_ref() == port);
    let mut apis = draft.apis.iter().filter(|api| port(api.port.get_ref()));
    let is_host = |own: &Spanned<Host>| HostPattern::Exact(own.get_ref().clone()) == *host;
    apis.any(|api| api.hosts.iter().any(is_host))
}

/// Returns whether the file, or another client, already has a rule for the host on the port.
fn has(draft: &Draft, group: &GroupName, host: &HostPattern, port: u16) -> bool {
    draft.passes.iter().any(|pass| {
        pass.groups.iter().any(|own| own.get_ref() == group)
            && pass.ports.iter().any(|own| *own.get_ref() == port)
            && pass.hosts.iter().any(|own| own.get_ref() == host)
    })
}

fn read(rule: &'static ClientRule, span: &Span, files: Files<'_>, report: &Report<'_>) -> PassRule {
    let table = |name| TomlTable::of_defaults(name, span.clone(), &EMPTY, &rule.entries, report);
    match rule.kind {
        "inspect" => PassRule::inspect(table("[[inspect]]"), files),
        _ => PassRule::splice(table("[[splice]]")),
    }
}

/// Returns the name, with a number where another rule has it.
fn free(draft: &Draft, name: &Spanned<RuleName>) -> Option<Spanned<RuleName>> {
    let plain = name.get_ref().as_str();
    let numbered = (2..).map(|number| format!("{plain}-{number}"));
    let mut names = iter::once(plain.to_owned()).chain(numbered);
    let free = names.find(|name| draft.rule_names().all(|(taken, _)| taken != name))?;
    Some(Spanned::new(name.span(), RuleName::parse(&free).ok()?))
}

static EMPTY: LazyLock<DeTable<'static>> = LazyLock::new(DeTable::new);
