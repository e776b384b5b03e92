//! Datagrams that an attacker sends from the address of the gateway's resolver are not believed.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;
use lab::{
    dns::{Forgery, Manner},
    gateway,
    net::OPENAI,
    sandboxed,
};

use super::client::{addresses, anywhere, ask};
use crate::world::{TICKET, World, get};

/// Requires that the name soon leads to the host's own addresses.
#[track_caller]
fn assert_led_home(what: impl std::fmt::Debug) {
    for (kind, own) in [
        (RecordType::A, std::net::IpAddr::from(OPENAI.v4())),
        (RecordType::AAAA, OPENAI.v6().into()),
    ] {
        let begun = Instant::now();
        let told = addresses(&ask(anywhere(), OPENAI.name, kind));
        assert_eq!(told, [own], "{what:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{what:?}: {:?}", begun.elapsed());
    }
}

#[test]
fn each_question_has_unguessable_port_number_and_capitals() {
    sandboxed(|| {
        let world = World::usual();
        for _ in 0..20 {
            assert_led_home("in peace");
        }
        // The gateway also asks whether there is a translator (RFC 7050).
        let mut asked = world.dns.datagrams();
        asked.retain(|it| !it.name.eq_ignore_ascii_case("ipv4only.arpa."));
        assert!(asked.len() >= 80, "A and AAAA each time: {}", asked.len());
        let ports: HashSet<u16> = asked.iter().map(|it| it.port).collect();
        let numbers: HashSet<u16> = asked.iter().map(|it| it.number).collect();
        let names: HashSet<&str> = asked.iter().map(|it| &*it.name).collect();
        for (what, different) in [("ports", ports.len()), ("numbers", numbers.len())] {
            assert!(different * 10 >= asked.len() * 9, "{different} {what} of {}", asked.len());
        }
        let (least, most) = (ports.iter().min(), ports.iter().max());
        assert!(least < Some(&20_000) && most > Some(&45_000), "{least:?} to {most:?}");
        // With 16 letters, two of a hundred agree only by a rare chance.
        assert!(names.len() * 10 >= asked.len() * 9, "{names:?}");
        let lowered = names.iter().all(|name| name.eq_ignore_ascii_case("api.openai.example."));
        assert!(lowered, "{names:?}");
    });
}

#[test]
fn a_forged_answer_is_not_believed_but_asked_again() {
    sandboxed(|| {
        let world = World::usual();
        for forgery in [Forgery::Number, Forgery::Name, Forgery::Capitals].repeat(5) {
            let before = (world.dns.asked().len(), world.dns.datagrams().len());
            world.dns.behave(Manner::Forged(forgery));
            assert_led_home(forgery);
            let asked = world.dns.asked().len() - before.0;
            let in_datagrams = world.dns.datagrams().len() - before.1;
            assert!(asked > in_datagrams, "{forgery:?}: {in_datagrams} of {asked} in datagrams");
            // An attacker who guesses port and number is lucky, and not always so.
            world.dns.behave(Manner::Plain);
            assert_led_home("in peace");
        }
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        assert!(world.gateway.stderr().contains("an answer to no question of ours"));
    });
}

#[test]
fn a_resolver_of_small_letters_is_asked_in_streams_first() {
    sandboxed(|| {
        let world = World::prepared(&gateway::usual_config(), |_, dns| {
            dns.behave(Manner::SmallLetters);
        });
        for _ in 0..10 {
            assert_led_home("small letters");
        }
        let before = (world.dns.asked().len(), world.dns.datagrams().len());
        assert!(before.0 > before.1, "some came in streams: {before:?}");
        for _ in 0..10 {
            assert_led_home("a habit");
        }
        let after = (world.dns.asked().len(), world.dns.datagrams().len());
        assert_eq!(after.0 - before.0, after.1 - before.1, "none in a stream any more");
        // After that the resolver keeps the capitals again.
        world.dns.behave(Manner::Plain);
        assert_led_home("capitals");
        world.dns.behave(Manner::Forged(Forgery::Capitals));
        assert_led_home("capitals are looked at");
    });
}

#[test]
fn a_resolver_without_capitals_and_streams_is_believed_in_time() {
    sandboxed(|| {
        let world = World::prepared(&gateway::usual_config(), |_, dns| {
            dns.behave(Manner::SmallLetters);
            dns.close_streams();
        });
        assert_led_home("the first of all");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}
