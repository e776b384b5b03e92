//! Protocols that name no host: a connection is judged only by its address, that is, by the names
//! for which the agent was given it. Every origin here speaks first, as SSH and SMTP do.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;
use lab::{
    audit::Record,
    client::{agent, succeed},
    gateway,
    net::{
        AGENT, AGENT2, CDN, GATEWAY, GATEWAY_V4, GATEWAY_V6, GIT, HOSTS, Host, INTERNET, Ns, OTHER,
        PYPI,
    },
    postgres::Postgres,
    sandboxed,
    ssh::Ssh,
    wait,
};
use policy_builder::{Config, tcp};

use crate::{
    dns::client::{addresses, anywhere, ask, ask_udp, query, resolvers},
    world::World,
};

/// Returns the usual policy, and SSH to a git server, which is an API too, for both groups.
pub(crate) fn config() -> Config {
    let ssh = tcp("ssh", &["research", "operations"], &[GIT.name], &[22]);
    gateway::usual_config().gateway("ports", [443, 80, 22]).with(ssh)
}

/// Servers that send the address that they are at, then echo.
#[derive(Clone, Default)]
pub(crate) struct Speakers(Arc<Mutex<Vec<SocketAddr>>>);

impl Speakers {
    /// Starts them at port 22 of every host of the lab, and of these addresses.
    pub(crate) fn start(more: &[IpAddr]) -> Self {
        let speakers = Self::default();
        let hosts = HOSTS.into_iter().flat_map(|host| [host.v4().into(), host.v6().into()]);
        for address in hosts.chain(more.iter().copied()) {
            let listener = INTERNET.enter(|| TcpListener::bind((address, 22))).expect("port 22");
            let speakers = speakers.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let speakers = speakers.clone();
                    thread::spawn(move || speakers.serve(stream));
                }
            });
        }
        speakers
    }

    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let at = stream.local_addr()?;
        self.dialled().push(at);
        writeln!(stream, "220 {at}")?;
        let mut buffer = [0; 4096];
        loop {
            let length = stream.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            stream.write_all(&buffer[..length])?;
        }
    }

    fn dialled(&self) -> std::sync::MutexGuard<'_, Vec<SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[track_caller]
    pub(crate) fn assert_dialled(&self, times: usize) {
        thread::sleep(wait::QUIET);
        let dialled = self.dialled();
        assert_eq!(dialled.len(), times, "{dialled:?}");
    }
}

/// Returns the first bytes of the server at `to`.
fn greeting(from: Ns, to: SocketAddr) -> io::Result<(String, TcpStream)> {
    let mut stream = from.connect(to)?;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    Ok((String::from_utf8_lossy(&line).trim().to_owned(), stream))
}

#[track_caller]
pub(crate) fn reaches(from: Ns, to: SocketAddr) -> TcpStream {
    let (said, stream) =
        greeting(from, to).unwrap_or_else(|error| panic!("{to} was not reached: {error}"));
    assert_eq!(said, format!("220 {to}"), "the very address that was dialled");
    stream
}

#[track_caller]
pub(crate) fn refused(from: Ns, to: SocketAddr) {
    if let Ok((said, _)) = greeting(from, to) {
        panic!("{to} was reached: {said}");
    }
}

/// Returns the record of a connection to `to` that was refused for this reason.
#[track_caller]
fn refusal(world: &World, to: SocketAddr, reason: &str) -> Record {
    let to = to.to_string();
    let record = world.gateway.audit.wait_for(|it| it["dialled"] == to && it["reason"] == reason);
    assert!(record.is("connection"), "{record}");
    assert_eq!(record["decision"], "refuse", "{record}");
    assert!(!record.has("upstream") && !record.has("rule"), "{record}");
    record
}

/// Clones where the agent resolves names by DNS alone, at this family's resolver, and the name has
/// one address.
fn clone(resolver: IpAddr, address: IpAddr) {
    let world = World::with(&config());
    world.lab.names(&[]);
    world.lab.write("resolv.conf", format!("nameserver {resolver}\n"));
    world.dns.set(GIT.name, &[address]);
    world.origin.repository("coat", "the coat behind the counter");
    let _ssh = Ssh::start(&world.lab, &[GIT.port(22), GIT.port6(22)]);
    let mut git = agent(&world.lab, AGENT, "git");
    git.env("GIT_SSH_COMMAND", Ssh::client());
    git.args(["clone", "-q", "ssh://git@git.example/run/lab/git/coat.git", "/run/lab/clone"]);
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| succeed(&mut git)));
    assert!(ended.is_ok(), "the server says: {}", Ssh::log());
    let readme = std::fs::read_to_string("/run/lab/clone/README").expect("it was cloned");
    assert_eq!(readme, "the coat behind the counter");
    let record = world.gateway.audit.wait_for(|it| it["rule"] == "ssh");
    let dialled = SocketAddr::new(address, 22);
    for (key, value) in [
        ("decision", "tcp"),
        ("host", GIT.name),
        ("group", "research"),
        ("dialled", &dialled.to_string()),
        ("upstream", &address.to_string()),
        ("end", "closed"),
    ] {
        assert_eq!(record[key], value, "{record}");
    }
    assert!(!record.has("reason"), "{record}");
    assert!(record["bytes_to_agent"].as_u64() > Some(1_000), "{record}");
    assert_eq!(world.connections().len(), 1);
}

#[test]
fn git_clones_over_ssh_and_ipv4() {
    sandboxed(|| clone(GATEWAY_V4.into(), GIT.v4().into()));
}

#[test]
fn git_clones_over_ssh_and_ipv6() {
    sandboxed(|| clone(GATEWAY_V6.into(), GIT.v6().into()));
}

/// Most hosts ask one resolver for the addresses of both families.
#[test]
fn git_clones_over_ipv6_what_it_asked_for_over_ipv4() {
    sandboxed(|| clone(GATEWAY_V4.into(), GIT.v6().into()));
}

#[test]
fn postgresql_answers_at_answered_addresses_alone() {
    sandboxed(|| {
        let name = "db.example";
        let rule = tcp("postgresql", &["research"], &[name], &[5432]);
        let config = config().gateway("ports", [443, 80, 22, 5432]).with(rule);
        let world = World::with(&config);
        let at: SocketAddr = Postgres::ADDRESS.parse().expect("an address");
        world.dns.set(name, &[at.ip()]);
        let postgres = Postgres::start(&world.lab);
        let asks = |to| postgres.asked_by(AGENT, to, "lab", Postgres::ROOT);
        assert!(!asks(at.ip()), "an address that was never answered");
        refusal(&world, at, "dialled_elsewhere");
        assert_eq!(addresses(&ask(anywhere(), name, RecordType::A)), [at.ip()]);
        assert!(asks(at.ip()), "a query through the gateway");
        let record = world.gateway.audit.wait_for(|it| it["rule"] == "postgresql");
        assert_eq!((&record["decision"], &record["host"]), (&"tcp".into(), &name.into()));
        // The same port of another host.
        assert!(!asks(OTHER.v4().into()), "an address that was never answered");
        refusal(&world, OTHER.port(5432), "dialled_elsewhere");
    });
}

#[test]
fn an_address_that_was_never_answered_is_refused() {
    sandboxed(|| {
        let (world, speakers) = (World::with(&config()), Speakers::start(&[]));
        let own = [GIT.port(22), GIT.port6(22)];
        for to in own {
            refused(AGENT, to);
            refusal(&world, to, "dialled_elsewhere");
        }
        speakers.assert_dialled(0);
        assert_eq!(addresses(&ask(v4(), GIT.name, RecordType::A)).len(), 1);
        assert_eq!(addresses(&ask(v6(), GIT.name, RecordType::AAAA)).len(), 1);
        for to in [OTHER.port(22), OTHER.port6(22), PYPI.port(22), PYPI.port6(22)] {
            refused(AGENT, to);
            refusal(&world, to, "dialled_elsewhere");
        }
        // The address was given and its name is listed, but not for this port.
        ask(v4(), PYPI.name, RecordType::A);
        refused(AGENT, PYPI.port(22));
        let record = refusal(&world, PYPI.port(22), "destination_denied");
        assert_eq!(record["answered"], serde_json::json!([PYPI.name]));
        // The port is no way around the inspection on the others.
        refused(AGENT, GIT.port(2222));
        speakers.assert_dialled(0);
        for to in own {
            let mut stream = reaches(AGENT, to);
            stream.write_all(b"EHLO").expect("sent");
            let mut echo = [0; 4];
            stream.read_exact(&mut echo).expect("an answer");
            assert_eq!(&echo, b"EHLO");
        }
        speakers.assert_dialled(2);
        world.origin.log().assert_untouched();
    });
}

#[test]
fn an_address_that_only_another_agent_was_given_is_refused() {
    sandboxed(|| {
        let (world, speakers) = (World::with(&config()), Speakers::start(&[]));
        for (server, kind) in [(v4(), RecordType::A), (v6(), RecordType::AAAA)] {
            let answer = ask_udp(AGENT2, server, &query(GIT.name, kind)).expect("an answer");
            assert_eq!(addresses(&answer).len(), 1);
        }
        for to in [GIT.port(22), GIT.port6(22)] {
            refused(AGENT, to);
            refusal(&world, to, "dialled_elsewhere");
        }
        speakers.assert_dialled(0);
        for to in [GIT.port(22), GIT.port6(22)] {
            reaches(AGENT2, to);
        }
        // The same within one group: an address that 192.0.2.10 was given is not for 192.0.2.11.
        ask(v4(), GIT.name, RecordType::A);
        AGENT.shell(
            "ip addr add 192.0.2.11/25 dev eth0 && \
             ip route add 198.51.100.12/32 via 192.0.2.1 src 192.0.2.11",
        );
        refused(AGENT, GIT.port(22));
        let is_other =
            |it: &Record| it["agent"].as_str().is_some_and(|a| a.starts_with("192.0.2.11:"));
        let record = world.gateway.audit.wait_for(is_other);
        assert_eq!(record["reason"], "dialled_elsewhere", "{record}");
        AGENT.shell("ip route del 198.51.100.12/32");
        reaches(AGENT, GIT.port(22));
        speakers.assert_dialled(3);
    });
}

/// A host that asks over IPv4 and connects over IPv6 is one agent if both addresses belong to one
/// card.
#[test]
fn an_answer_across_families_is_the_asking_cards() {
    sandboxed(|| {
        let card = |last: &str| {
            let addresses = [format!("192.0.2.{last}"), format!("2001:db8:a::{last}")];
            policy_builder::agent(
                &format!("02:00:00:00:00:{last}"),
                &addresses.each_ref().map(String::as_str),
            )
        };
        let bound = config().group("research", |it| it.with(card("10")).with(card("11")));
        let become_card = |last: &str, was: &str| {
            AGENT.shell(&format!(
                "ip link set eth0 address 02:00:00:00:00:{last}; \
                 ip addr del 192.0.2.{was}/25 dev eth0; ip addr del 2001:db8:a::{was}/64 dev eth0; \
                 ip addr add 192.0.2.{last}/25 dev eth0; \
                 ip addr add 2001:db8:a::{last}/64 dev eth0 nodad; \
                 ip route replace default via 192.0.2.1; \
                 ip route replace ::/0 via 2001:db8:a::1"
            ));
        };
        let world = World::prepared(&bound, |_, _| become_card("10", "10"));
        let speakers = Speakers::start(&[]);
        let given = [(RecordType::A, GIT.port(22)), (RecordType::AAAA, GIT.port6(22))];
        for (kind, to) in given {
            ask(v4(), GIT.name, kind);
            reaches(AGENT, to);
        }
        become_card("11", "10");
        for (kind, to) in given {
            refused(AGENT, to);
            let record = refusal(&world, to, "dialled_elsewhere");
            assert!(record["agent"].as_str().is_some_and(|it| it.contains("11")), "{record}");
            ask(v4(), GIT.name, kind);
            reaches(AGENT, to);
        }
        speakers.assert_dialled(4);
    });
}

#[test]
fn where_names_share_an_address_every_one_must_be_allowed() {
    sandboxed(|| {
        let (world, speakers) = (World::with(&config()), Speakers::start(&[]));
        let shared: [IpAddr; 2] = [GIT.v4().into(), GIT.v6().into()];
        world.dns.set(PYPI.name, &shared);
        for (to, server, kind) in
            [(GIT.port(22), v4(), RecordType::A), (GIT.port6(22), v6(), RecordType::AAAA)]
        {
            ask(server, GIT.name, kind);
            reaches(AGENT, to);
            ask(server, PYPI.name, kind);
            refused(AGENT, to);
            let record = refusal(&world, to, "destination_denied");
            assert_eq!(record["answered"], serde_json::json!([GIT.name, PYPI.name]), "{record}");
            // An address that another agent was given is not for this one, and the other way round.
            ask_udp(AGENT2, server, &query(GIT.name, kind)).expect("an answer");
            reaches(AGENT2, to);
        }
        speakers.assert_dialled(4);
        // Both are allowed, so either may be meant.
        let both = config().tcp("ssh", |it| it.more("hosts", &[PYPI.name]));
        gateway::install(&world.lab, &both);
        world.gateway.reload();
        wait::expect("the new policy allows both", || greeting(AGENT, GIT.port(22)).is_ok());
    });
}

#[test]
fn each_address_of_a_name_is_reached_as_dialled() {
    sandboxed(|| {
        let (world, speakers) = (World::with(&config()), Speakers::start(&[]));
        let hosts: [Host; 3] = [GIT, OTHER, CDN];
        world.dns.set(GIT.name, &hosts.map(|host| host.v4().into()));
        assert_eq!(addresses(&ask(v4(), GIT.name, RecordType::A)).len(), 3);
        for host in hosts.into_iter().rev() {
            reaches(AGENT, host.port(22));
            let record = world.gateway.audit.wait_for(|it| it["upstream"] == host.v4().to_string());
            assert_eq!(record["dialled"], host.port(22).to_string(), "{record}");
            assert_eq!(record["host"], GIT.name, "{record}");
        }
        speakers.assert_dialled(3);
    });
}

#[test]
fn an_answer_counts_for_a_minute_beyond_its_time() {
    sandboxed(|| {
        let (world, speakers) = (World::with(&config()), Speakers::start(&[]));
        world.dns.set_ttl(2);
        ask(v4(), GIT.name, RecordType::A);
        ask(v6(), GIT.name, RecordType::AAAA);
        // Both were given by now at the latest, for two seconds and a minute of grace.
        let given = Instant::now();
        world.dns.set(GIT.name, &[OTHER.v4().into(), OTHER.v6().into()]);
        thread::sleep(Duration::from_secs(50).saturating_sub(given.elapsed()));
        for to in [GIT.port(22), GIT.port6(22)] {
            reaches(AGENT, to);
        }
        thread::sleep(Duration::from_secs(63).saturating_sub(given.elapsed()));
        for to in [GIT.port(22), GIT.port6(22)] {
            refused(AGENT, to);
            refusal(&world, to, "dialled_elsewhere");
        }
        speakers.assert_dialled(2);
        ask(v4(), GIT.name, RecordType::A);
        reaches(AGENT, OTHER.port(22));
        refused(AGENT, GIT.port(22));
    });
}

#[test]
fn a_private_address_needs_its_rules_leave() {
    sandboxed(|| {
        let inside = SocketAddr::from((Ipv4Addr::new(10, 1, 2, 3), 22));
        let at_home = |_: &lab::Lab, _: &lab::dns::Dns| {
            INTERNET.shell("ip addr add 10.1.2.3/32 dev lo");
        };
        let world = World::prepared(&config(), at_home);
        let speakers = Speakers::start(&[inside.ip()]);
        let others = ["127.0.0.1", "169.254.169.254", "192.0.2.1", "203.0.113.2", "10.1.2.3"];
        let others = others.map(|address| address.parse::<IpAddr>().expect("an address"));
        world.dns.set(GIT.name, &others);
        assert!(addresses(&ask(v4(), GIT.name, RecordType::A)).is_empty());
        for address in others {
            refused(AGENT, SocketAddr::new(address, 22));
        }
        speakers.assert_dialled(0);
        let listing = config().tcp("ssh", |it| it.set("private_prefixes", ["10.1.0.0/16"]));
        gateway::install(&world.lab, &listing);
        world.gateway.reload();
        wait::expect("the address is told", || {
            addresses(&ask(v4(), GIT.name, RecordType::A)) == [inside.ip()]
        });
        reaches(AGENT, inside);
        for address in &others[..4] {
            refused(AGENT, SocketAddr::new(*address, 22));
        }
        speakers.assert_dialled(1);
    });
}

/// The gateway accepts a connection before it has made its own, so an agent does not see which
/// family has no route. Its client asks for both, and takes IPv6 first.
fn clone_without_route_of(default: &str, told: RecordType, untold: RecordType) {
    let world = World::prepared(&config(), |_, _| {
        GATEWAY.shell(&format!("ip {default}"));
    });
    let log = world.gateway.stderr();
    assert!(log.contains("no route to the IPv"), "{log}");
    for server in [v4(), v6()] {
        assert_eq!(addresses(&ask(server, GIT.name, untold)), [] as [IpAddr; 0]);
        assert_eq!(addresses(&ask(server, GIT.name, told)).len(), 1);
        // For names that are spliced or intercepted, the gateway itself takes the other family.
        assert_eq!(addresses(&ask(server, PYPI.name, untold)).len(), 1);
    }
    world.lab.names(&[]);
    world.lab.write("resolv.conf", format!("nameserver {GATEWAY_V4}\n"));
    world.origin.repository("coat", "the coat behind the counter");
    let _ssh = Ssh::start(&world.lab, &[GIT.port(22), GIT.port6(22)]);
    let mut git = agent(&world.lab, AGENT, "git");
    git.env("GIT_SSH_COMMAND", Ssh::client());
    git.args(["clone", "-q", "ssh://git@git.example/run/lab/git/coat.git", "/run/lab/clone"]);
    succeed(&mut git);
    GATEWAY.shell(&format!("ip {}", default.replace(" del ", " add ")));
    assert_eq!(addresses(&ask(v4(), GIT.name, untold)).len(), 1, "there is a route again");
}

#[test]
fn an_unreachable_ipv6_address_of_a_nameless_host_is_untold() {
    let default = "-6 route del default via 2001:db8:f::1";
    sandboxed(|| clone_without_route_of(default, RecordType::A, RecordType::AAAA));
}

#[test]
fn an_unreachable_ipv4_address_of_a_nameless_host_is_untold() {
    let default = "route del default via 203.0.113.1";
    sandboxed(|| clone_without_route_of(default, RecordType::AAAA, RecordType::A));
}

#[test]
fn a_policy_without_the_rule_ends_its_connections() {
    sandboxed(|| {
        let (world, _speakers) = (World::with(&config()), Speakers::start(&[]));
        ask(v4(), GIT.name, RecordType::A);
        let mut stream = reaches(AGENT, GIT.port(22));
        gateway::install(&world.lab, &gateway::usual_config());
        let begun = Instant::now();
        world.gateway.reload();
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "it was cut");
        assert!(begun.elapsed() < Duration::from_secs(5));
        let record = world.gateway.audit.wait_reason("policy_revoked");
        assert_eq!((&record["rule"], &record["end"]), (&"ssh".into(), &"cut".into()), "{record}");
        refused(AGENT, GIT.port(22));
    });
}

fn v4() -> SocketAddr {
    anywhere()
}

/// Returns a resolver that is asked over IPv6, so that the agent is known by its IPv6 address.
fn v6() -> SocketAddr {
    let v6 = resolvers().into_iter().find(SocketAddr::is_ipv6);
    v6.expect("there are some of both families")
}
