//! Tickets that agents hold in the place of credentials which an API has minted for them.
//!
//! A ticket is good for one group, for the hosts and places of one rule, and until it ends. The
//! table is in memory alone: after a restart no ticket is good, and clients ask for new ones.
//!
//! Errs towards refusal. A credential with a living ticket is always masked, so no living ticket
//! makes room for a new one: where an agent or its group has as many as it may have, an answer with
//! another credential is refused. Credentials whose tickets have ended are masked for
//! [`MASKED_AFTER`], or until the room is needed.
//!
//! The table reads no clock: every call passes the time.

mod text;

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

pub use text::looks_like_ticket;

use crate::{
    locks::lock,
    policy::{GroupName, Mint, Placeholder, RuleName},
    secrets::SecretValue,
};

/// The tickets of all groups.
#[derive(Default)]
pub struct Tickets {
    racks: Mutex<HashMap<GroupName, Rack>>,
    generation: AtomicU64,
}

/// The meaning of one ticket.
pub struct Ticket {
    /// The rule under which it was given.
    pub mint: RuleName,
    /// Its name in the audit.
    pub label: Placeholder,
    /// The credential that it stands for.
    pub value: Arc<SecretValue>,
    /// The other half, if the credential is one of Basic.
    pub beside: Option<Arc<str>>,
    ends: Instant,
}

/// A credential that was found in an answer.
pub struct Minted {
    /// The rule under which it was found.
    pub mint: Arc<Mint>,
    /// The credential.
    pub value: SecretValue,
    /// The other half, if the credential is one of Basic.
    pub beside: Option<Arc<str>>,
}

/// The reasons why no ticket is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTicket {
    /// There is no room for another, or no randomness to make one.
    Room,
    /// The credential has tickets of another rule, which are not good at all of these hosts.
    OtherHosts,
}

/// The credentials of a group that are to be masked.
#[derive(Clone, Default)]
pub struct KnownValues(Vec<(u64, Arc<SecretValue>)>);

impl KnownValues {
    /// Returns the credentials that came after the first `seen`.
    pub fn since(&self, seen: u64) -> impl ExactSizeIterator<Item = &Arc<SecretValue>> {
        let from = self.0.partition_point(|(serial, _)| *serial < seen);
        self.0.get(from..).unwrap_or_default().iter().map(|(_, value)| value)
    }

    /// Returns a number that grows with each new credential.
    pub fn seen(&self) -> u64 {
        self.0.last().map_or(0, |(serial, _)| serial + 1)
    }
}

impl Tickets {
    /// Gives a ticket for each credential of one answer, or for none of them.
    ///
    /// # Errors
    ///
    /// The agent, or its group, has as many as it may have, or a credential has tickets of another
    /// rule: otherwise an API that echoes a request would carry the credential on to further hosts.
    pub fn issue(
        &self,
        group: &GroupName,
        agent: IpAddr,
        minted: Vec<Minted>,
        now: Instant,
    ) -> Result<Vec<Arc<str>>, NoTicket> {
        if minted.is_empty() {
            return Ok(vec![]);
        }
        let mut racks = lock(&self.racks);
        let rack = racks.entry(group.clone()).or_default();
        rack.clear(now);
        rack.check_hosts(&minted)?;
        rack.make_room(agent, &minted, now)?;
        let texts = minted.iter().map(|one| text::fresh(one.mint.shape, &one.value));
        let texts: Option<Vec<Arc<str>>> = texts.map(|text| text.map(Arc::from)).collect();
        let texts = texts.ok_or(NoTicket::Room)?;
        for (text, minted) in texts.iter().zip(minted) {
            rack.add(Arc::clone(text), agent, minted, now);
        }
        self.generation.fetch_add(1, Relaxed);
        Ok(texts)
    }

    /// Returns the ticket that a text is, if it belongs to the group and has not ended.
    pub fn find(&self, group: &GroupName, text: &[u8], now: Instant) -> Option<Arc<Ticket>> {
        let text = std::str::from_utf8(text).ok().filter(|_| looks_like_ticket(text))?;
        let racks = lock(&self.racks);
        let (_, ticket) = racks.get(group)?.tickets.get(text)?;
        (now < ticket.ends).then(|| Arc::clone(ticket))
    }

    /// Returns the credentials that are masked in answers to the group.
    pub fn known(&self, group: &GroupName) -> KnownValues {
        let racks = lock(&self.racks);
        let mut known: Vec<_> = racks.get(group).into_iter().flat_map(Rack::known).collect();
        known.sort_unstable_by_key(|(serial, _)| *serial);
        KnownValues(known)
    }

    /// Returns a number that grows with each new credential, of whatever group.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// Returns how many tickets of a group are good.
    pub fn good(&self, group: &GroupName, now: Instant) -> usize {
        let racks = lock(&self.racks);
        let tickets = racks.get(group).into_iter().flat_map(|rack| rack.tickets.values());
        tickets.filter(|(_, ticket)| now < ticket.ends).count()
    }

    /// Ends all tickets of the groups for which `stays` returns false. Their credentials stay
    /// masked.
    pub fn end(&self, stays: impl Fn(&GroupName) -> bool) {
        let mut racks = lock(&self.racks);
        racks.iter_mut().filter(|(group, _)| !stays(group)).for_each(|(_, rack)| {
            rack.tickets.clear();
        });
    }
}

/// The tickets and credentials of one group.
#[derive(Default)]
struct Rack {
    /// The agent of each ticket, and its meaning.
    tickets: HashMap<Arc<str>, (IpAddr, Arc<Ticket>)>,
    values: HashMap<ByBytes, MintedValue>,
    /// The number of values that were ever known.
    seen: u64,
}

/// A credential that is masked.
struct MintedValue {
    serial: u64,
    /// The agent that got it first since it is alive.
    agent: IpAddr,
    /// The rule under which it was given first.
    mint: Arc<Mint>,
    /// The time at which the last of its tickets ends.
    ends: Instant,
}

/// A credential that is found by its bytes, in a table with a random key.
#[derive(Clone)]
struct ByBytes(Arc<SecretValue>);

impl PartialEq for ByBytes {
    fn eq(&self, other: &Self) -> bool {
        self.0.expose() == other.0.expose()
    }
}

impl Eq for ByBytes {}

impl Borrow<[u8]> for ByBytes {
    fn borrow(&self) -> &[u8] {
        self.0.expose()
    }
}

impl Hash for ByBytes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.expose().hash(state);
    }
}

impl Rack {
    fn clear(&mut self, now: Instant) {
        self.tickets.retain(|_, (_, ticket)| now < ticket.ends);
        self.values.retain(|_, known| now < known.ends + MASKED_AFTER);
    }

    /// Checks that no credential is wanted back at a host where it was not wanted from the first. A
    /// credential whose tickets have ended counts as well, because it may be on its way.
    fn check_hosts(&self, minted: &[Minted]) -> Result<(), NoTicket> {
        let mut first: HashMap<&[u8], &Mint> = HashMap::new();
        for Minted { mint, value, .. } in minted {
            let known = self.values.get(value.expose()).map(|known| &*known.mint);
            let first = first.entry(value.expose()).or_insert(known.unwrap_or(mint));
            if !mint.hosts.iter().all(|host| first.is_wanted_at(host)) {
                return Err(NoTicket::OtherHosts);
            }
        }
        Ok(())
    }

    /// Makes room for all of `minted` by dropping credentials that are masked although their
    /// tickets have ended.
    fn make_room(
        &mut self,
        agent: IpAddr,
        minted: &[Minted],
        now: Instant,
    ) -> Result<(), NoTicket> {
        let own = self.tickets.values().filter(|(of, _)| *of == agent).count();
        if own + minted.len() > AGENT_TICKETS || self.tickets.len() + minted.len() > GROUP_TICKETS {
            return Err(NoTicket::Room);
        }
        // Each value once, with its entry if it has one.
        let minted: HashMap<&[u8], Option<&MintedValue>> = minted
            .iter()
            .map(|one| (one.value.expose(), self.values.get(one.value.expose())))
            .collect();
        let lives = |known: &&MintedValue| now < known.ends;
        // A credential that has ended lives again.
        let new = minted.values().filter(|known| known.filter(lives).is_none()).count();
        let living = self.values.values().filter(lives);
        let own = living.clone().filter(|known| known.agent == agent).count();
        if own + new > AGENT_VALUES || living.count() + new > GROUP_VALUES {
            return Err(NoTicket::Room);
        }
        let unknown = minted.values().filter(|known| known.is_none()).count();
        let beyond = (self.values.len() + unknown).saturating_sub(GROUP_VALUES);
        let ended = self.values.iter().filter(|(_, known)| known.ends <= now);
        let mut ended: Vec<&MintedValue> = ended
            .filter(|(value, _)| !minted.contains_key(value.0.expose()))
            .map(|(_, known)| known)
            .collect();
        ended.sort_unstable_by_key(|known| known.ends);
        let gone: HashSet<u64> = ended.iter().take(beyond).map(|known| known.serial).collect();
        self.values.retain(|_, known| !gone.contains(&known.serial));
        Ok(())
    }

    fn add(&mut self, text: Arc<str>, agent: IpAddr, minted: Minted, now: Instant) {
        let Minted { mint, value, beside } = minted;
        let ends = now + mint.life;
        let value = Arc::new(value);
        let known = self.values.entry(ByBytes(Arc::clone(&value)));
        // All tickets share one copy of each credential.
        let value = Arc::clone(&known.key().0);
        let seen = &mut self.seen;
        let known = known.or_insert_with(|| {
            *seen += 1;
            MintedValue { serial: *seen - 1, agent, mint: Arc::clone(&mint), ends }
        });
        if known.ends <= now {
            known.agent = agent;
        }
        known.ends = known.ends.max(ends);
        let (name, label) = (mint.name.clone(), mint.label.clone());
        let ticket = Ticket { mint: name, label, value, beside, ends };
        self.tickets.insert(text, (agent, Arc::new(ticket)));
    }

    fn known(&self) -> impl Iterator<Item = (u64, Arc<SecretValue>)> {
        self.values.iter().map(|(value, known)| (known.serial, Arc::clone(&value.0)))
    }
}

/// Good tickets of one agent at once. A batch of git-lfs takes up to two for each of a hundred
/// objects.
const AGENT_TICKETS: usize = 2_048;
/// The same for a group.
const GROUP_TICKETS: usize = 4_096;
/// Credentials behind the tickets of one agent. To mask one takes up to 100 KiB.
const AGENT_VALUES: usize = 256;
/// The same for a group, including credentials that have ended and are still masked.
const GROUP_VALUES: usize = 512;
/// Time for which a credential is masked after the last of its tickets has ended, if there is room:
/// as long as a replaced one of Vault's.
const MASKED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests;
