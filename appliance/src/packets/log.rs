//! Sends what a rule ends to the audit before it ends it, at a rate that no flood can exceed.
//!
//! Pure. Every rule with a reason goes to a chain of that reason, which ends the packet as the rule
//! would have. Above [`RATE`] a packet is ended without being told, and counted: the counter is
//! read for the audit, so that nothing is missing from the sums.

use super::plan::{Chain, Rule, Statement};
use crate::reason::Reason;

/// Packets of one reason that are told in a second, and that may be told at once.
pub(super) const RATE: u32 = 1_000;

/// Bytes of a packet that are told: the headers of IPv6 with some extensions, and the ports.
pub(super) const SNAPLEN: u32 = 128;

/// The same chains, in which what is refused is told to `group`; the new ones stand after the
/// first, which they go to.
pub(super) fn told(mut chains: Vec<Chain>, group: u16) -> Vec<Chain> {
    let mut endings: Vec<Chain> = Vec::new();
    for rule in chains.iter_mut().flat_map(|chain| &mut chain.rules) {
        let Some(reason) = rule.reason else { continue };
        let Some(end) = rule.statements.pop() else { continue };
        let name = chain_name(reason, &end);
        rule.statements.push(Statement::Goto(name));
        if endings.iter().all(|chain| chain.name != name) {
            endings.push(ending(name, reason, &end, group));
        }
    }
    chains.splice(1.min(chains.len())..1.min(chains.len()), endings);
    chains
}

/// The reason of a chain that tells, by its name.
pub(super) fn reason(chain: &str) -> Option<Reason> {
    if chain == IPV6_OFF {
        return Some(Reason::ProtocolDenied);
    }
    Reason::ALL.iter().copied().find(|reason| reason.word() == chain)
}

fn ending(name: &'static str, reason: Reason, end: &Statement, group: u16) -> Chain {
    let rule = |statements: &[Statement]| Rule { statements: statements.to_vec(), reason: None };
    let rules = vec![
        rule(&[Statement::Above(RATE), Statement::Count, end.clone()]),
        // By itself: a statement before the end must not be able to keep a packet from it.
        rule(&[Statement::Tell(reason, group)]),
        rule(std::slice::from_ref(end)),
    ];
    Chain { name, base: None, rules }
}

/// One chain for each reason. The one reason that ends in two ways has two.
fn chain_name(reason: Reason, end: &Statement) -> &'static str {
    match (reason, end) {
        (Reason::ProtocolDenied, Statement::Drop) => IPV6_OFF,
        _ => reason.word(),
    }
}

const IPV6_OFF: &str = "ipv6_off";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::{kernel_tests::example, plan};

    #[test]
    fn every_rule_with_a_reason_is_told_and_ends_as_it_did() {
        for ipv6 in [true, false] {
            let capture = crate::packets::Capture { ipv6, ..example() };
            let (before, after) = (plan::chains(&capture), plan::table(&capture).chains);
            let mut told = 0;
            for chain in &before {
                let same = after.iter().find(|other| other.name == chain.name).unwrap();
                for (old, new) in chain.rules.iter().zip(&same.rules) {
                    if old.reason.is_none() {
                        assert_eq!(old, new);
                        continue;
                    }
                    told += 1;
                    let Some(Statement::Goto(name)) = new.statements.last() else { panic!() };
                    let end = after.iter().find(|chain| chain.name == *name).unwrap();
                    let last = |rule: &Rule| rule.statements.last().cloned();
                    assert_eq!(last(&end.rules[0]), last(old), "above the rate, {name}");
                    assert_eq!(last(&end.rules[2]), last(old), "told, {name}");
                    assert_eq!(
                        end.rules[1].statements,
                        [Statement::Tell(old.reason.unwrap(), capture.nflog_group)]
                    );
                }
                assert_eq!(chain.rules.len(), same.rules.len());
            }
            assert!(told > 5);
        }
    }
}
