//! The gateway asks its resolvers over TLS: names leave it encrypted, to a verified server, or not
//! at all.

use std::time::{Duration, Instant};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Gateway, OPENAI_SECRET, PUBLIC_CA},
    net::{AGENT, Capture, GATEWAY, INTERNET, OPENAI, PYPI, VAULT},
    origin::Origin,
    pki::Flaw,
    sandboxed, tools,
    vault::{self, Vault},
    wait,
};
use policy_builder::Config;

use crate::{
    dns::client::{addresses, anywhere, ask, ask_udp, code, query},
    world::{TICKET, World, get},
};

/// The name in the certificate of the lab's resolver.
pub(crate) const NAME: &str = "dns.example";

/// Changes a policy to ask the lab's resolver over TLS.
fn asking_over_tls(config: Config) -> Config {
    config
        .gateway("resolvers", [format!("tls://{NAME}@203.0.113.53")])
        .gateway("resolver_ca", PUBLIC_CA)
}

/// Returns the usual policy, with every secret from a Vault that is known by its name.
fn named(vault: &Vault) -> Config {
    vault.config().vault("address", format!("https://{}:8200", vault::NAME))
}

/// Returns the usual policy, with that resolver.
pub(crate) fn over_tls() -> Config {
    asking_over_tls(gateway::usual_config())
}

/// Returns the number of packets to or from any port 53, in UDP and TCP.
fn plain_dns(capture: &Capture) -> usize {
    let at_port = |packet: &[u8], ports: usize| {
        packet
            .get(ports..ports + 4)
            .is_some_and(|ports| ports.chunks(2).any(|port| port == 53_u16.to_be_bytes()))
    };
    let is_plain = |packet: &Vec<u8>| match packet.get(12..14) {
        Some([0x08, 0x00]) => matches!(packet.get(23), Some(6 | 17)) && at_port(packet, 34),
        Some([0x86, 0xdd]) => matches!(packet.get(20), Some(6 | 17)) && at_port(packet, 54),
        _ => false,
    };
    capture.packets().iter().filter(|packet| is_plain(packet)).count()
}

/// Returns a name as DNS writes it. In a ClientHello to the API it has dots.
fn labels(name: &str) -> String {
    name.split('.').map(|label| format!("{}{label}", char::from(label.len() as u8))).collect()
}

/// Asserts that names do not resolve, in time, and that nothing is dialled or asked in the clear.
fn assert_unresolved(world: &World) {
    let wan = world.lab.capture(INTERNET);
    let before = world.dns.asked().len();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let begun = Instant::now();
            let answer = world.ask(&get(&[TICKET]));
            assert_eq!(answer.reason().as_deref(), Some("resolve_failed"), "{}", answer.text());
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        });
        scope.spawn(|| {
            world.h1(PYPI).map(drop).expect_err("nowhere to splice to");
        });
        scope.spawn(|| {
            let query = query(PYPI.name, RecordType::A);
            let begun = Instant::now();
            // The test's client may give up first, as others do.
            if let Ok(answer) = ask_udp(AGENT, anywhere(), &query) {
                assert_eq!(code(&answer), ResponseCode::ServFail);
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        });
    });
    world.origin.log().assert_untouched();
    assert_eq!(plain_dns(&wan), 0, "a question in clear text");
    assert!(!wan.holds(&labels(OPENAI.name)) && !wan.holds(&labels(PYPI.name)));
    assert_eq!(world.dns.asked().len(), before, "no question was asked in any way");
}

/// Asserts the same if the resolver's certificate has this flaw.
fn assert_asked_nothing(flaw: Flaw) {
    let world = World::prepared(&over_tls(), |lab, dns| {
        dns.start_tls(&lab.public.issue_flawed(NAME, flaw));
    });
    assert_unresolved(&world);
    let log = world.gateway.stderr();
    assert!(log.contains("has a certificate that verifies"), "{log}");
}

/// Asks for new names from many clients at a time; none of them exists.
fn many_at_once() {
    std::thread::scope(|scope| {
        for client in 0..40 {
            scope.spawn(move || {
                for number in 0..5 {
                    let name = format!("n{client}-{number}.cdn.example");
                    assert_eq!(
                        code(&ask(anywhere(), &name, RecordType::A)),
                        ResponseCode::NXDomain
                    );
                }
            });
        }
    });
}

#[test]
fn names_are_asked_for_over_tls_alone() {
    sandboxed(|| {
        let world = World::prepared(&over_tls(), |lab, dns| dns.start_tls(&lab.public.issue(NAME)));
        let wan = world.lab.capture(INTERNET);
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        let mut spliced = world.h1(PYPI).expect("spliced");
        let head = "GET /a HTTP/1.1\r\nHost: pypi.example\r\n\r\n";
        assert_eq!(spliced.ask(head).expect("an answer").status, 200);
        for _ in 0..100 {
            let answer = ask(anywhere(), OPENAI.name, RecordType::A);
            assert_eq!(addresses(&answer).len(), 1);
        }
        assert!(world.dns.was_asked(OPENAI.name) && world.dns.was_asked(PYPI.name));
        many_at_once();
        assert_eq!(plain_dns(&wan), 0);
        assert!(!wan.holds(&labels(OPENAI.name)) && !wan.holds(&labels(PYPI.name)));
        assert!(!wan.holds(NAME), "not even whom it asks");
    });
}

#[test]
fn the_capture_would_show_a_name_in_the_clear() {
    sandboxed(|| {
        let world = World::usual();
        let wan = world.lab.capture(INTERNET);
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        assert!(plain_dns(&wan) >= 4, "two questions, two answers");
        assert!(wan.holds(&labels(OPENAI.name)));
    });
}

#[test]
fn a_resolver_certified_for_another_name_is_asked_nothing() {
    sandboxed(|| assert_asked_nothing(Flaw::WrongName));
}

#[test]
fn a_resolver_with_an_old_certificate_is_asked_nothing() {
    sandboxed(|| assert_asked_nothing(Flaw::Expired));
}

#[test]
fn a_resolver_that_vouches_for_itself_is_asked_nothing() {
    sandboxed(|| assert_asked_nothing(Flaw::SelfSigned));
}

#[test]
fn only_the_ca_that_is_named_vouches_for_a_resolver() {
    sandboxed(|| {
        let other = over_tls().gateway("resolver_ca", "{dir}/other-ca.pem");
        let world = World::prepared(&other, |lab, dns| {
            lab.write("other-ca.pem", lab::pki::Authority::new("Another root").pem());
            dns.start_tls(&lab.public.issue(NAME));
        });
        assert_unresolved(&world);
    });
}

#[test]
fn without_its_resolver_nothing_is_asked_in_the_clear() {
    sandboxed(|| {
        // Plain DNS is served at the same address. TLS is not at first, and then it is.
        let world = World::with(&over_tls());
        assert_unresolved(&world);
        world.dns.start_tls(&world.lab.public.issue(NAME));
        assert_eq!(world.ask(&get(&[TICKET])).status, 200, "it is tried again");
        // The server falls silent in the middle of a connection.
        INTERNET.shell("ip addr del 203.0.113.53/24 dev wan0");
        world.origin.log().wait_all_closed();
        world.origin.log().clear();
        assert_unresolved(&world);
        INTERNET.shell("ip addr add 203.0.113.53/24 dev wan0");
        wait::expect("it is asked again", || world.ask(&get(&[TICKET])).status == 200);
    });
}

/// A gateway whose Vault has a name. The resolver that the system would ask for it, in the clear,
/// would answer.
#[test]
fn vaults_name_is_asked_for_over_tls_alone() {
    sandboxed(|| {
        let lab = Lab::new();
        let (origin, dns) = (Origin::start(&lab), Dns::start());
        dns.start_tls(&lab.public.issue(NAME));
        dns.set(vault::NAME, &[VAULT.into()]);
        lab.write("resolv.conf", "nameserver 203.0.113.53\n");
        let vault = Vault::start(&lab);
        let config = asking_over_tls(named(&vault));
        let wan = lab.capture(INTERNET);
        let gateway = Gateway::start(&lab, &config);
        let world = World { lab, origin, dns, gateway };
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        assert!(world.origin.log().holds(OPENAI_SECRET), "it is Vault's");
        assert!(world.dns.was_asked(vault::NAME));
        // The commands resolve names as the daemon does.
        let file = world.lab.dir.join("cloakroom.toml");
        for command in ["plan", "doctor"] {
            let before = asked_for_vault(&world.dns);
            let mut cloakroom = GATEWAY.command(tools::cloakroom());
            let said = cloakroom.args(["vault", command]).arg(&file).output().expect("it starts");
            let text = String::from_utf8_lossy(&said.stdout);
            assert!(
                text.contains("203.0.113.2") || text.contains("logs in"),
                "{command}: {said:?}"
            );
            assert!(asked_for_vault(&world.dns) > before, "{command}");
        }
        assert_eq!(plain_dns(&wan), 0, "a question in clear text");
        assert!(!wan.holds(&labels(vault::NAME)));
    });
}

fn asked_for_vault(dns: &Dns) -> usize {
    dns.asked().iter().filter(|question| question.name == vault::NAME).count()
}

#[test]
fn the_hosts_file_answers_for_vault_before_any_resolver() {
    sandboxed(|| {
        let lab = Lab::new();
        let (_origin, dns) = (Origin::start(&lab), Dns::start());
        let vault = Vault::start(&lab);
        let named = named(&vault);
        // The system's resolver has no server to ask, because its file is empty.
        let logs_in = || {
            let mut gateway = Gateway::start(&lab, &named);
            let log = gateway.stderr();
            assert!(log.contains("logged in to Vault"), "{log}");
            gateway.terminate(Duration::from_secs(10));
        };
        dns.set(vault::NAME, &[VAULT.into()]);
        logs_in();
        let before = asked_for_vault(&dns);
        assert!(before > 0);
        lab.names(&[(vault::NAME, vec![VAULT.into()])]);
        logs_in();
        assert_eq!(asked_for_vault(&dns), before);
        // Where neither has the name, the error says which is missing.
        lab.names(&[]);
        dns.set(vault::NAME, &[]);
        let gateway = Gateway::start(&lab, &named);
        wait::expect("it is said", || gateway.stderr().contains("Vault's name does not resolve"));
    });
}
