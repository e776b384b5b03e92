//! Reports packets to the audit before a rule ends them, at a rate that no flood can exceed.
//!
//! Pure. Every rule with a reason goes to a chain of that reason, which ends the packet as the rule
//! would have. Above its rate a packet is ended without being logged, and counted: the counter is
//! read for the audit, so that nothing is missing from the sums. Each agent has a rate of its own,
//! so that one does not hide another; a source that belongs to no agent shares the rate of its
//! interface.

use super::{
    capture::Capture,
    language::{
        Chain, Family, MatchKey, NftRule, NftTable, Set, SetKey, Statement, TableFamily, meter,
    },
    meters,
};
use crate::reason::Reason;

/// Packets of one reason that are logged in a second of one agent, and that may be logged at once.
pub(crate) const AGENT_RATE: u32 = 200;

/// The same for all packets of one reason; and for an interface, where the source proves nothing.
pub(crate) const RATE: u32 = 2_000;

/// Chains in which refused packets are logged, and the counters and meters that they need.
pub(crate) struct Logged {
    pub(crate) chains: Vec<Chain>,
    pub(crate) meters: Vec<Set>,
    pub(crate) counters: Vec<String>,
}

/// Returns the same chains with logging of refused packets; the new chains stand after the first,
/// whose rules go to them.
pub(crate) fn logged(mut chains: Vec<Chain>, capture: &Capture) -> Logged {
    let (mut endings, mut meters, mut counters) = (Vec::<Chain>::new(), Vec::new(), Vec::new());
    for rule in chains.iter_mut().flat_map(|chain| &mut chain.rules) {
        let Some(reason) = rule.reason else { continue };
        let Some(end) = rule.statements.pop() else { continue };
        let name = chain_name(reason, &end);
        rule.statements.push(Statement::Goto(name));
        if endings.iter().all(|chain| chain.name != name) {
            endings.push(ending(name, reason, &end, capture));
            meters.extend(own_meters(name, reason, capture));
            counters.push(counter(name));
        }
    }
    chains.splice(1.min(chains.len())..1.min(chains.len()), endings);
    Logged { chains, meters, counters }
}

/// The reason of the packets that a named counter counts.
pub(crate) fn reason(counter: &str) -> Option<Reason> {
    let chain = counter.strip_prefix(UNLOGGED)?;
    if chain == IPV6_OFF {
        return Some(Reason::ProtocolDenied);
    }
    Reason::ALL.iter().copied().find(|reason| reason.as_str() == chain)
}

fn ending(name: &'static str, reason: Reason, end: &Statement, capture: &Capture) -> Chain {
    let rule = |statements: &[Statement]| NftRule { statements: statements.to_vec(), reason: None };
    let unlogged = [Statement::CountAs(counter(name)), end.clone()];
    let over = |before: &[Statement]| rule(&[before, &unlogged[..]].concat());
    let mut rules: Vec<NftRule> = own_meters(name, reason, capture)
        .into_iter()
        .flat_map(|meter| match meter.key {
            SetKey::InterfaceAndAddress(family) => {
                let each = meters::agents(family, capture).into_iter();
                each.map(|(mut who, key)| {
                    who.push(Statement::Over(key, meter.name.clone(), AGENT_RATE.into()));
                    over(&who)
                })
                .collect()
            }
            _ => vec![over(&[Statement::Over(MatchKey::Interface, meter.name, RATE.into())])],
        })
        .collect();
    // This also applies where a meter is full and takes no new agent.
    rules.push(over(&[Statement::Above(RATE)]));
    // A rule by itself: a statement before the end must not be able to keep a packet from it.
    rules.push(rule(&[Statement::Tell(reason, capture.nflog_group)]));
    rules.push(rule(std::slice::from_ref(end)));
    Chain { name: name.into(), base: None, rules }
}

/// Returns the meters of a rule, one for each agent's packets. An agent whose source is in doubt
/// could fill such a set with others' addresses, so there the interfaces are counted.
fn own_meters(name: &'static str, reason: Reason, capture: &Capture) -> Vec<Set> {
    let in_doubt = matches!(reason, Reason::SpoofedSource | Reason::MulticastDenied);
    if in_doubt || name == IPV6_OFF {
        return vec![meter(format!("told_{name}"), SetKey::Interface)];
    }
    let families = [(Family::V4, "4"), (Family::V6, "6")];
    let families = families.into_iter().filter(|(family, _)| capture.ipv6 || *family == Family::V4);
    families
        .map(|(family, number)| {
            meter(format!("told_{name}_{number}"), SetKey::InterfaceAndAddress(family))
        })
        .collect()
}

fn counter(chain: &str) -> String {
    format!("{UNLOGGED}{chain}")
}

/// Returns the name of a reason's chain. The one reason that ends in two ways has two.
fn chain_name(reason: Reason, end: &Statement) -> &'static str {
    match (reason, end) {
        (Reason::ProtocolDenied, Statement::Drop) => IPV6_OFF,
        _ => reason.as_str(),
    }
}

const IPV6_OFF: &str = "ipv6_off";
const UNLOGGED: &str = "untold_";

/// Returns a table in which refused packets are logged, with the counters and meters for that.
pub(crate) fn finished(
    family: TableFamily,
    mut sets: Vec<Set>,
    chains: Vec<Chain>,
    capture: &Capture,
) -> NftTable {
    let logged = logged(chains, capture);
    sets.extend(logged.meters);
    NftTable { family, counters: logged.counters, sets, chains: logged.chains }
}

#[cfg(test)]
mod tests {
    use super::{super::table, *};
    use crate::packets::kernel_tests::example;

    #[test]
    fn every_rule_with_a_reason_is_logged_and_ends_unchanged() {
        for ipv6 in [true, false] {
            let capture = Capture { ipv6, ..example() };
            let (before, after) = (table::chains(&capture), table::table(&capture).chains);
            let mut logged = 0;
            for chain in &before {
                let same = after.iter().find(|other| other.name == chain.name).unwrap();
                for (old, new) in chain.rules.iter().zip(&same.rules) {
                    if old.reason.is_none() {
                        assert_eq!(old, new);
                        continue;
                    }
                    logged += 1;
                    let Some(Statement::Goto(name)) = new.statements.last() else { panic!() };
                    let end = after.iter().find(|chain| chain.name == *name).unwrap();
                    let last = |rule: &NftRule| rule.statements.last().cloned();
                    let (ends, tells): (Vec<_>, Vec<_>) =
                        end.rules.iter().partition(|rule| last(rule) == last(old));
                    assert!(ends.len() >= 3, "{name} is logged without bound");
                    assert_eq!(end.rules.last().unwrap().statements.len(), 1, "{name} has no end");
                    let tell = Statement::Tell(old.reason.unwrap(), capture.nflog_group);
                    assert_eq!(tells.len(), 1, "{name}");
                    assert_eq!(tells[0].statements, [tell]);
                }
                assert_eq!(chain.rules.len(), same.rules.len());
            }
            assert!(logged > 5);
        }
    }
}
