//! Installs the planned tables in the kernel, all or nothing.
//!
//! One transaction declares the tables, their sets and chains where they are missing, empties the
//! existing chains and sets, and fills them again. Chains stay hooked throughout: replacing a
//! hooked chain would let packets pass between the old and the new.

use std::io;

use nftnl::{Batch, Chain, MsgType, ProtoFamily, Rule, nftnl_sys::libc};

use super::{
    super::{
        error::{PacketsError, netlink_error},
        ruleset::language::{self, Base, Hook, TableFamily},
    },
    lower::{self, TABLE_C, c_string},
    netlink::{Netfilter, messages},
    raw_expr::{MAX_ELEMENTS, RawCounter, RawSet, SetMessage},
    readback::{self, Strangers},
};

/// Sends the tables and waits until the kernel has acknowledged every message about them.
pub(crate) fn send(tables: &[language::NftTable]) -> Result<(), PacketsError> {
    let mut transaction = Transaction { batch: Batch::new(), objects: Vec::new() };
    let mut ids = 1..;
    for table in tables {
        let strangers = readback::strangers(table)?;
        add_table(table, &strangers, &mut ids, &mut transaction);
    }
    if !tables.iter().any(|table| table.family == TableFamily::Netdev)
        && readback::has_table(TableFamily::Netdev)?
    {
        let unused = nftnl::Table::new(TABLE_C, ProtoFamily::NetDev);
        transaction.delete(&unused, "removing table netdev cloakroom");
    }
    transaction.commit()
}

fn add_table(
    table: &language::NftTable,
    strangers: &Strangers,
    ids: &mut impl Iterator<Item = u32>,
    transaction: &mut Transaction,
) {
    let owner = nftnl::Table::new(TABLE_C, table.family.proto());
    transaction.add(
        &owner,
        &format!("table {} cloakroom", super::super::ruleset::render::family(table.family)),
    );
    declare(table, transaction);
    let chains: Vec<Chain<'_>> = table.chains.iter().map(|each| chain(each, &owner)).collect();
    for (each, chain) in table.chains.iter().zip(&chains) {
        transaction.add(chain, &format!("chain {}", each.name));
        // A rule without a handle means every rule of its chain.
        transaction.delete(&Rule::new(chain), &format!("emptying chain {}", each.name));
    }
    remove(strangers, &owner, table.family, transaction);
    fill_sets(table, transaction);
    for (each, chain) in table.chains.iter().zip(&chains) {
        for rule in &each.rules {
            add_rule(rule, table.family, chain, ids, transaction);
        }
    }
}

/// A batch, and the object of each of its messages.
struct Transaction {
    batch: Batch,
    objects: Vec<String>,
}

impl Transaction {
    fn add(&mut self, message: &impl nftnl::NlMsg, object: &str) {
        self.batch.add(message, MsgType::Add);
        self.objects.push(object.to_owned());
    }

    fn delete(&mut self, message: &impl nftnl::NlMsg, object: &str) {
        self.batch.add(message, MsgType::Del);
        self.objects.push(object.to_owned());
    }

    fn commit(self) -> Result<(), PacketsError> {
        let failed = |source| netlink_error("install the packet rules", source);
        let batch = self.batch.finalize();
        let expected = batch.sequence_numbers();
        let bytes: Vec<u8> = batch.iter().flatten().copied().collect();
        let mut netfilter = Netfilter::open().map_err(failed)?;
        // Every message has its own answer, and all of them are queued before the first is read.
        netfilter.widen(expected.len().saturating_mul(ANSWER_BYTES));
        netfilter.make_room(bytes.len().saturating_mul(2).max(SEND_BYTES));
        netfilter.send(&bytes).map_err(failed)?;
        // Kernels before 6.10 do not acknowledge the messages that begin and end the batch.
        let framing = expected.len().saturating_sub(self.objects.len()) / 2;
        let first = expected.start.saturating_add(framing as u32);
        let mut missing = expected.len();
        while missing > 0 {
            for message in messages(netfilter.receive().map_err(failed)?) {
                match message.errno() {
                    Some(0) => missing = missing.saturating_sub(1),
                    Some(errno) => {
                        return Err(self::refused(errno, message.sequence, first, &self.objects));
                    }
                    None => {}
                }
            }
        }
        Ok(())
    }
}

/// Least room for a transaction.
const SEND_BYTES: usize = 1024 * 1024;

/// Kernel memory of one queued acknowledgement, rounded up.
const ANSWER_BYTES: usize = 2_048;

fn refused(errno: i32, sequence: u32, first: u32, objects: &[String]) -> PacketsError {
    let source = io::Error::from_raw_os_error(errno);
    if errno == libc::EPERM {
        return PacketsError::NoNetAdmin { doing: "install packet rules" };
    }
    let object = sequence.checked_sub(first).and_then(|index| objects.get(index as usize));
    PacketsError::Transaction {
        object: object.cloned().unwrap_or_else(|| "the transaction".to_owned()),
        source,
    }
}

fn declare(table: &language::NftTable, transaction: &mut Transaction) {
    for name in &table.counters {
        let raw = RawCounter::new(TABLE_C, table.family, &c_string(name));
        transaction.add(&raw, &format!("counter {name}"));
    }
    for set in &table.sets {
        let raw = RawSet::new(&lower::declaration(set, table.family), &[]);
        transaction.add(&SetMessage::Declare(&raw), &format!("set {}", set.name));
    }
}

/// Removes foreign objects with the rules that used them; our own chains are empty by now.
fn remove(
    strangers: &Strangers,
    owner: &nftnl::Table,
    family: TableFamily,
    transaction: &mut Transaction,
) {
    let chains: Vec<Chain<'_>> =
        strangers.chains.iter().map(|name| Chain::new(c_string(name), owner)).collect();
    for (chain, name) in chains.iter().zip(&strangers.chains) {
        transaction.delete(&Rule::new(chain), &format!("emptying leftover chain {name}"));
    }
    for (chain, name) in chains.iter().zip(&strangers.chains) {
        transaction.delete(chain, &format!("removing leftover chain {name}"));
    }
    for name in &strangers.sets {
        let raw = RawSet::new(&lower::named(name, family), &[]);
        transaction.delete(&SetMessage::Declare(&raw), &format!("removing leftover set {name}"));
    }
    for name in &strangers.counters {
        let raw = RawCounter::new(TABLE_C, family, &c_string(name));
        transaction.delete(&raw, &format!("removing leftover counter {name}"));
    }
}

fn fill_sets(table: &language::NftTable, transaction: &mut Transaction) {
    // Packets put the elements of a meter there, and these expire by themselves.
    for set in table.sets.iter().filter(|set| !set.meter) {
        let declaration = lower::declaration(set, table.family);
        let empty = RawSet::new(&declaration, &[]);
        let object = format!("emptying set {}", set.name);
        transaction.delete(&SetMessage::Elements(&empty), &object);
        let elements = lower::elements(set);
        let object = format!("elements of set {}", set.name);
        for chunk in elements.chunks(MAX_ELEMENTS) {
            let raw = RawSet::new(&declaration, chunk);
            transaction.add(&SetMessage::Elements(&raw), &object);
        }
    }
}

fn add_rule(
    rule: &language::NftRule,
    family: TableFamily,
    chain: &Chain<'_>,
    ids: &mut impl Iterator<Item = u32>,
    transaction: &mut Transaction,
) {
    let lowered = lower::rule(rule, family, ids);
    let chain_name = chain.get_name().to_string_lossy();
    let object =
        format!("rule `{}` of chain {chain_name}", super::super::ruleset::render::rule(rule));
    for (declaration, elements) in &lowered.sets {
        let raw = RawSet::new(declaration, elements);
        transaction.add(&SetMessage::Declare(&raw), &object);
        transaction.add(&SetMessage::Elements(&raw), &object);
    }
    let mut raw = Rule::new(chain);
    for expression in &lowered.expressions {
        raw.add_expr(expression);
    }
    if let Some(reason) = rule.reason {
        // The words are short and nft takes 128 bytes. A comment that does not fit is left out.
        let _ = raw.set_comment(c_string(reason.as_str()));
    }
    transaction.add(&raw, &object);
}

fn chain<'a>(planned: &language::Chain, owner: &'a nftnl::Table) -> Chain<'a> {
    let mut chain = Chain::new(c_string(&planned.name), owner);
    if let Some(Base { hook, priority, drop }) = &planned.base {
        chain.set_type(nftnl::ChainType::Filter);
        chain.set_hook(
            match hook {
                // Hook 0 is prerouting for IP packets, and ingress for frames.
                Hook::Ingress(_) | Hook::Prerouting => nftnl::Hook::PreRouting,
                Hook::Input => nftnl::Hook::In,
                Hook::Forward => nftnl::Hook::Forward,
                Hook::Output => nftnl::Hook::Out,
            },
            *priority,
        );
        if let Hook::Ingress(device) = hook {
            chain.set_device(c_string(device.as_str()));
        }
        chain.set_policy(if *drop { nftnl::Policy::Drop } else { nftnl::Policy::Accept });
    }
    chain
}
