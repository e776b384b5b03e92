//! The answers that agents were given by their resolver, for as long as an agent may still use
//! them.
//!
//! A connection that is not judged by a certificate is judged by its address: did the gateway give
//! it to this agent, and for which names? Errs towards no: an answer that does not fit is not
//! remembered, and an agent that is refused for it asks again and gets a present address.
//!
//! An agent is known by its address, so that a host which asks over IPv4 and connects over IPv6
//! looks like two. An address that was given over the other family is therefore held for all
//! addresses of the card that asked, where the group binds its agents to their addresses, and
//! otherwise for all agents of the group: nothing tells which of them will dial it. It counts only
//! where the agent was not given that address itself.
//!
//! A sender over UDP can make up any number of sources, but a connection proves its source. So
//! where a group has no room left, the agents that asked longest ago and never dialled a given
//! address are forgotten first, and agents that did dial only when there are no others.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::{
    identity::AgentKey,
    limits::MAX_AGENTS,
    locks::lock,
    policy::{GroupName, Host},
};

/// The names for which each agent was given each address.
#[derive(Debug, Default)]
pub struct Answered(Mutex<HashMap<GroupName, GroupAnswers>>);

/// The answers of one group. `held` counts the pairs of an address and a name. Each agent is in one
/// of the two queues.
#[derive(Debug, Default)]
struct GroupAnswers {
    agents: HashMap<AgentKey, Given>,
    held: usize,
    /// Agents in the order in which they first asked. Some have dialled since.
    asked: VecDeque<AgentKey>,
    /// Agents that were seen to have dialled.
    dialled: VecDeque<AgentKey>,
}

/// The answers of one agent.
#[derive(Debug, Default)]
struct Given {
    names: HashMap<IpAddr, NameExpiries>,
    held: usize,
    /// Whether the agent made a connection to one of these addresses.
    dialled: bool,
}

/// The names of one address and their expiry, sorted by name.
type NameExpiries = Vec<(Host, Instant)>;

impl Answered {
    /// Remembers that the agent was given these addresses for the name, good until `until`. They
    /// are held for [`GRACE`] longer, since clients use an address beyond its time.
    pub fn remember(&self, agent: &AgentKey, host: &Host, addresses: &[IpAddr], until: Instant) {
        let mut groups = self.lock();
        if !groups.contains_key(agent.group()) {
            groups.insert(agent.group().clone(), GroupAnswers::default());
        }
        let Some(group) = groups.get_mut(agent.group()) else { return };
        for address in addresses.iter().map(IpAddr::to_canonical) {
            let same_family = address.is_ipv4() == agent.prefix().is_ipv4();
            let agent = if same_family { agent.clone() } else { anybody(agent, address) };
            group.remember(agent, host, address, until);
        }
    }

    /// Returns whether the agent, which has connected to this address, was given it for the name
    /// and may still use it.
    pub fn holds(&self, agent: &AgentKey, host: &Host, address: IpAddr) -> bool {
        let oldest = Instant::now().checked_sub(GRACE);
        let mut groups = self.lock();
        let Some(group) = groups.get_mut(agent.group()) else { return false };
        [agent, &anybody(agent, address)].into_iter().any(|agent| {
            let names = group.dialled_names(agent, address);
            let at = names.binary_search_by(|(known, _)| known.cmp(host)).ok();
            let until = at.and_then(|at| names.get(at)).map(|(_, until)| *until);
            until.is_some_and(|until| Some(until) > oldest)
        })
    }

    /// Returns every name for which the agent, which has connected to this address, was given it.
    /// It is for a connection of which nothing else is known, so each name counts only
    /// [`NAMELESS_GRACE`] beyond its time.
    pub fn names(&self, agent: &AgentKey, address: IpAddr) -> Vec<Host> {
        let oldest = Instant::now().checked_sub(NAMELESS_GRACE);
        let mut groups = self.lock();
        let Some(group) = groups.get_mut(agent.group()) else { return Vec::new() };
        let mut given_to = |agent: &AgentKey| -> Vec<Host> {
            let names = group.dialled_names(agent, address).iter();
            let still_good = names.filter(|(_, until)| Some(*until) > oldest);
            still_good.map(|(host, _)| host.clone()).collect()
        };
        let own = given_to(agent);
        if own.is_empty() { given_to(&anybody(agent, address)) } else { own }
    }

    /// Forgets expired answers. To be called every few seconds.
    pub fn sweep(&self) {
        let Some(oldest) = Instant::now().checked_sub(GRACE) else { return };
        for group in self.lock().values_mut() {
            group.sweep(oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GroupName, GroupAnswers>> {
        lock(&self.0)
    }
}

impl GroupAnswers {
    fn remember(&mut self, agent: AgentKey, host: &Host, address: IpAddr, until: Instant) {
        while self.held >= MAX_OF_GROUP && self.forget_one() {}
        if !self.agents.contains_key(&agent) {
            while self.agents.len() >= MAX_AGENTS && self.forget_one() {}
            self.asked.push_back(agent.clone());
        }
        let given = self.agents.entry(agent).or_default();
        let before = given.held;
        if given.held >= MAX_OF_AGENT {
            given.drop_older_half();
        }
        given.remember(host, address, until);
        self.held = self.held - before + given.held;
    }

    /// Forgets one agent; returns whether there was one.
    fn forget_one(&mut self) -> bool {
        let oldest = self.oldest();
        if let Some(given) = oldest.as_ref().and_then(|agent| self.agents.remove(agent)) {
            self.held -= given.held;
        }
        oldest.is_some()
    }

    /// Takes the agent that is to be forgotten first off its queue.
    fn oldest(&mut self) -> Option<AgentKey> {
        while let Some(agent) = self.asked.pop_front() {
            if !self.agents.get(&agent).is_some_and(|given| given.dialled) {
                return Some(agent);
            }
            self.dialled.push_back(agent);
        }
        self.dialled.pop_front()
    }

    /// Returns the names for which the agent was given an address, and notes that it has dialled
    /// it.
    fn dialled_names(&mut self, agent: &AgentKey, address: IpAddr) -> &[(Host, Instant)] {
        let Some(given) = self.agents.get_mut(agent) else { return &[] };
        let Some(names) = given.names.get(&address.to_canonical()) else { return &[] };
        given.dialled = true;
        names
    }

    fn sweep(&mut self, oldest: Instant) {
        self.agents.retain(|_, given| {
            given.drop_until(oldest);
            given.held > 0
        });
        self.held = self.agents.values().map(|given| given.held).sum();
        for queue in [&mut self.asked, &mut self.dialled] {
            queue.retain(|agent| self.agents.contains_key(agent));
        }
    }
}

impl Given {
    fn remember(&mut self, host: &Host, address: IpAddr, until: Instant) {
        let names = self.names.entry(address).or_default();
        match names.binary_search_by(|(known, _)| known.cmp(host)) {
            Ok(at) => {
                if let Some((_, known)) = names.get_mut(at) {
                    *known = until.max(*known);
                }
            }
            Err(at) => {
                names.insert(at, (host.clone(), until));
                self.held += 1;
            }
        }
    }

    /// Drops half at a time, so that an agent at its bound does not cost a search for each answer.
    fn drop_older_half(&mut self) {
        let mut times: Vec<Instant> =
            self.names.values().flatten().map(|(_, until)| *until).collect();
        let middle = times.len() / 2;
        if middle < times.len() {
            let (_, median, _) = times.select_nth_unstable(middle);
            self.drop_until(*median);
        }
    }

    fn drop_until(&mut self, end: Instant) {
        self.names.retain(|_, names| {
            names.retain(|(_, until)| *until > end);
            !names.is_empty()
        });
        self.held = self.names.values().map(Vec::len).sum();
    }
}

/// Returns the key that stands for all agents of the card or the group that may dial an address
/// which was given over the other family. No group may have such an address, so no agent is
/// mistaken for it.
fn anybody(agent: &AgentKey, address: IpAddr) -> AgentKey {
    let nobodys = match address.to_canonical() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(MULTICAST),
    };
    agent.at(nobodys)
}

const MULTICAST: Ipv6Addr = Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0);

/// Time beyond its TTL for which an answer counts where the connection also names its host:
/// runtimes and connection pools keep addresses.
pub const GRACE: Duration = Duration::from_secs(600);
/// The same where the connection names no host and only its address is known. That address is
/// dialled itself, and may belong to somebody else by then. The time is enough for a client that
/// tries one address after the other, or that keeps its answers for 30 s, as Java does.
pub const NAMELESS_GRACE: Duration = Duration::from_secs(60);
/// Most pairs of an address and a name that are held for one agent; the older half goes first.
const MAX_OF_AGENT: usize = 1_024;
/// Most pairs that are held for all agents of one group: about 20 MiB.
const MAX_OF_GROUP: usize = 131_072;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{BoundAgent, Group, InterfaceName, Mac};

    fn agent(group: &str, address: &str) -> AgentKey {
        AgentKey::new(&GroupName(group.into()), address.parse().unwrap())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn host(name: &str) -> Host {
        Host::parse(name).unwrap()
    }

    const V4: &str = "198.51.100.1";
    const V6: &str = "2001:db8:e::1";

    #[test]
    fn an_answer_is_for_its_agent_name_and_time() {
        let answered = Answered::default();
        let (red, now) = (agent("red", "192.0.2.1"), Instant::now());
        answered.remember(&red, &host("a.example"), &[address(V4)], now);
        assert!(answered.holds(&red, &host("a.example"), address(V4)), "the grace");
        assert!(answered.holds(&red, &host("a.example"), address("::ffff:198.51.100.1")));
        assert!(!answered.holds(&red, &host("a.example"), address("198.51.100.2")));
        assert!(!answered.holds(&red, &host("b.example"), address(V4)));
        for other in [agent("red", "192.0.2.2"), agent("blue", "192.0.2.1")] {
            assert!(!answered.holds(&other, &host("a.example"), address(V4)), "{other:?}");
            assert!(answered.names(&other, address(V4)).is_empty(), "{other:?}");
        }
        let long_ago = now.checked_sub(GRACE).unwrap();
        answered.remember(&red, &host("old.example"), &[address(V4)], long_ago);
        assert!(!answered.holds(&red, &host("old.example"), address(V4)));
    }

    #[test]
    fn each_name_of_an_address_is_known_for_less_time() {
        let answered = Answered::default();
        let (red, now) = (agent("red", "2001:db8:a::1"), Instant::now());
        let earlier = now.checked_sub(NAMELESS_GRACE).unwrap();
        answered.remember(&red, &host("b.example"), &[address(V6)], now);
        answered.remember(&red, &host("a.example"), &[address(V6)], now);
        answered.remember(&red, &host("old.example"), &[address(V6)], earlier);
        answered.remember(&agent("red", "2001:db8:b::1"), &host("c.example"), &[address(V6)], now);
        let same_64 = agent("red", "2001:db8:a::2");
        assert_eq!(answered.names(&same_64, address(V6)), [host("a.example"), host("b.example")]);
        assert!(answered.holds(&red, &host("old.example"), address(V6)));
    }

    #[test]
    fn an_answer_never_loses_time() {
        let answered = Answered::default();
        let (red, now) = (agent("red", "192.0.2.1"), Instant::now());
        let later = now + Duration::from_secs(5);
        answered.remember(&red, &host("a.example"), &[address(V4)], later);
        answered.remember(&red, &host("a.example"), &[address(V4)], now);
        let groups = answered.lock();
        let given = &groups[red.group()].agents[&red];
        assert_eq!((given.held, given.names[&address(V4)][0].1), (1, later));
    }

    #[test]
    fn an_answer_across_families_is_the_groups_unless_it_asked() {
        let answered = Answered::default();
        let now = Instant::now();
        let [asked, dials] = ["192.0.2.1", "2001:db8:a::1"].map(|address| agent("red", address));
        answered.remember(&asked, &host("a.example"), &[address(V4), address(V6)], now);
        assert_eq!(answered.names(&dials, address(V6)), [host("a.example")]);
        assert!(answered.holds(&dials, &host("a.example"), address(V6)));
        assert!(answered.names(&agent("blue", "2001:db8:b::1"), address(V6)).is_empty());
        assert!(answered.names(&agent("red", "192.0.2.2"), address(V4)).is_empty());
        answered.remember(&dials, &host("b.example"), &[address(V6)], now);
        assert_eq!(answered.names(&dials, address(V6)), [host("b.example")]);
    }

    #[test]
    fn a_bound_agents_answer_is_its_cards_alone_across_families() {
        let of_card = |last: u16| {
            let v4 = IpAddr::from([192, 0, 2, last as u8]);
            let v6 = IpAddr::from([0x2001, 0xdb8, 0xa, 0, 0, 0, 0, last]);
            let mac = Mac::parse(&format!("02:00:00:00:00:{last:02x}")).unwrap();
            BoundAgent { mac, addresses: vec![v4, v6] }
        };
        let agents = vec![of_card(1), of_card(2)];
        let group = Group {
            name: GroupName("red".into()),
            interface: InterfaceName("agents0".into()),
            prefixes: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8:a::/64".parse().unwrap()],
            vault_role: "cloakroom".into(),
            clients: Vec::new(),
            mtu: None,
            onboarding: None,
            agents: agents.clone(),
        };
        let answered = Answered::default();
        let [mine, others] = [&agents[0], &agents[1]]
            .map(|agent| [0, 1].map(|family| AgentKey::of(&group, agent.addresses[family])));
        let both = [address(V4), address(V6)];
        answered.remember(&mine[0], &host("a.example"), &both, Instant::now());
        for (key, address) in mine.iter().zip(both) {
            assert_eq!(answered.names(key, address), [host("a.example")], "{key:?}");
            assert!(answered.holds(key, &host("a.example"), address), "{key:?}");
        }
        for (key, address) in others.iter().zip(both) {
            assert!(answered.names(key, address).is_empty(), "{key:?}");
            assert!(!answered.holds(key, &host("a.example"), address), "{key:?}");
        }
    }

    #[test]
    fn one_agent_cannot_push_out_anothers_answers() {
        let answered = Answered::default();
        let (greedy, modest) = (agent("red", "192.0.2.1"), agent("red", "192.0.2.2"));
        let now = Instant::now();
        answered.remember(&modest, &host("a.example"), &[address(V4)], now);
        for number in 0..5 * MAX_OF_AGENT as u64 {
            let name = host(&format!("n{number}.example"));
            let until = now + Duration::from_millis(number);
            answered.remember(&greedy, &name, &[address(V4)], until);
            assert!(answered.holds(&greedy, &name, address(V4)), "the newest is there");
        }
        assert!(answered.holds(&modest, &host("a.example"), address(V4)));
        assert!(!answered.holds(&greedy, &host("n0.example"), address(V4)), "the oldest went");
        let groups = answered.lock();
        assert!(groups[greedy.group()].agents[&greedy].held <= MAX_OF_AGENT);
    }

    #[test]
    fn countless_agents_fill_neither_memory_nor_another_groups_room() {
        let answered = Answered::default();
        let now = Instant::now();
        let addresses: Vec<IpAddr> = (0..16).map(|last| [198, 51, 100, last].into()).collect();
        for number in 0..20_000u32 {
            let red = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
            let red = AgentKey::new(&GroupName("red".into()), red);
            answered.remember(&red, &host("a.example"), &addresses, now);
        }
        let blue = agent("blue", "192.0.2.1");
        answered.remember(&blue, &host("a.example"), &addresses, now);
        assert!(answered.holds(&blue, &host("a.example"), addresses[0]));
        let groups = answered.lock();
        let red = &groups[&GroupName("red".into())];
        let held: usize = red.agents.values().map(|given| given.held).sum();
        assert!(held == red.held && held <= MAX_OF_GROUP, "{held} {}", red.held);
        assert!(red.agents.len() <= MAX_AGENTS);
        assert_eq!(red.asked.len() + red.dialled.len(), red.agents.len());
    }

    #[test]
    fn made_up_agents_displace_nobody_who_dialled_and_block_nobody() {
        let (name, now) = (host("a.example"), Instant::now());
        for addresses in [1, 16] {
            let answered = Answered::default();
            let addresses: Vec<IpAddr> =
                (0..addresses).map(|it| [198, 51, 100, it].into()).collect();
            let ask = |agent: &AgentKey| answered.remember(agent, &name, &addresses, now);
            let dialled = agent("red", "192.0.2.1");
            ask(&dialled);
            assert!(answered.holds(&dialled, &name, addresses[0]));
            for number in 0..50_000_u32 {
                let made_up = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
                ask(&AgentKey::new(dialled.group(), made_up));
                if number % 1_000 == 0 {
                    let new = agent("red", &format!("192.0.2.{}", 10 + number / 1_000));
                    ask(&new);
                    assert!(answered.holds(&new, &name, addresses[0]), "{number}");
                }
            }
            for last in [1, 10, 59] {
                let dialled = agent("red", &format!("192.0.2.{last}"));
                assert!(answered.holds(&dialled, &name, addresses[0]), "{last}");
            }
        }
    }

    #[test]
    fn a_sweep_forgets_what_has_ended_and_nothing_else() {
        let answered = Answered::default();
        let (red, now) = (agent("red", "192.0.2.1"), Instant::now());
        let ended = now.checked_sub(GRACE).unwrap();
        answered.remember(&red, &host("old.example"), &[address(V4)], ended);
        answered.remember(&agent("red", "192.0.2.2"), &host("x.example"), &[address(V4)], ended);
        answered.remember(&red, &host("new.example"), &[address(V4)], now);
        answered.sweep();
        assert_eq!(answered.names(&red, address(V4)), [host("new.example")]);
        let groups = answered.lock();
        assert_eq!((groups[red.group()].held, groups[red.group()].agents.len()), (1, 1));
    }
}
