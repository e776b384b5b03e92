//! The address that an agent dials is compared with those that the gateway gives for the name, and
//! never connected to.

use std::net::SocketAddr;

use hickory_proto::rr::RecordType;
use lab::{
    gateway,
    net::{AGENT, ATTACKER, CDN, OPENAI, OTHER, PYPI},
    sandboxed, wait,
};

use crate::{
    dns::client::{anywhere, ask},
    world::{TICKET, World, get},
};

#[test]
fn a_spliced_name_is_reached_at_its_own_addresses_only() {
    sandboxed(|| {
        let world = World::usual();
        let http = "GET / HTTP/1.1\r\nHost: pypi.example\r\n\r\n";
        let spliced = |to: SocketAddr| world.h1_from(AGENT, to, PYPI.name);
        for to in [ATTACKER.port(443), ATTACKER.port6(443), OTHER.port(443)] {
            spliced(to).map(drop).expect_err("not an address of that name");
        }
        wait::expect("a record for each", || world.connections().len() == 3);
        for record in world.connections() {
            assert_eq!(record["reason"], "dialled_elsewhere", "{record}");
            assert_eq!(record["decision"], "refuse");
            assert!(!record.has("upstream"), "{record}");
        }
        world.origin.log().assert_untouched();
        for to in [PYPI.port(443), PYPI.port6(443)] {
            assert_eq!(spliced(to).expect("its own").ask(http).expect("an answer").status, 200);
        }
        // An answer stays good while it may be in use, also after the name has other addresses.
        ask(anywhere(), PYPI.name, RecordType::A);
        world.dns.set(PYPI.name, &[CDN.v4().into()]);
        spliced(PYPI.port6(443)).map(drop).expect_err("never answered to this agent");
        let moved = spliced(PYPI.port(443)).map(drop);
        let record = world.gateway.audit.wait_for(|it| it["upstream"] == CDN.v4().to_string());
        assert_eq!(record["decision"], "splice", "{moved:?}");
        assert!(!record.has("reason"), "{record}");
    });
}

#[test]
fn an_intercepted_name_dialled_elsewhere_is_recorded_and_served() {
    sandboxed(|| {
        let world = World::usual();
        let mut tls = world.h1_from(AGENT, ATTACKER.port(443), OPENAI.name).expect("a connection");
        assert_eq!(tls.ask(get(&[TICKET])).expect("an answer").status, 200);
        drop(tls);
        let record = world.gateway.audit.wait_for(|it| it.is("connection"));
        assert_eq!(record["decision"], "intercept");
        assert_eq!(record["reason"], "dialled_elsewhere");
        assert_eq!(record["upstream"], OPENAI.v4().to_string());
    });
}

#[test]
fn a_rule_may_take_its_names_at_any_address() {
    sandboxed(|| {
        let config = gateway::usual_config().splice("pypi", |it| it.set("dialled", "any"));
        let world = World::with(&config);
        let mut tls = world.h1_from(AGENT, ATTACKER.port(443), PYPI.name).expect("a connection");
        let answer = tls.ask("GET / HTTP/1.1\r\nHost: pypi.example\r\n\r\n").expect("an answer");
        assert_eq!(answer.status, 200);
        drop(tls);
        let record = world.gateway.audit.wait_for(|it| it.is("connection"));
        assert_eq!(record["decision"], "splice");
        assert_eq!(record["reason"], "dialled_elsewhere");
        assert_eq!(record["upstream"], PYPI.v4().to_string(), "never where the agent pointed");
    });
}
