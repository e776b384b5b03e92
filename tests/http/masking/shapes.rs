//! Two agents, for whom different secrets are masked, read the same answer and measure all that can
//! be measured of it. Neither learns which of the two secrets its guesses come near to.

use std::{collections::BTreeMap, io, thread};

use lab::{
    Lab,
    gateway::{self, BEARER, PUBLIC_CA},
    net::{AGENT, AGENT2, ANTHROPIC, CDN, GIT, Host, OPENAI, OTHER},
    origin::Script,
    sandboxed,
};
use policy_builder::{Config, api, binding};

use super::{
    guesses::{Chance, Pair, script, seed},
    seen::{End, Question, Seen},
};
use crate::{attack::raw_h2::DATA, world::World};

/// One pair of secrets for each of these hosts.
const APIS: [Host; 5] = [OPENAI, ANTHROPIC, GIT, OTHER, CDN];

#[test]
fn measured_answers_tell_nothing_of_a_guess_near_secrets() {
    sandboxed(|| {
        let seed = seed();
        let mut chance = Chance::of(seed);
        let pairs = APIS.map(|_| Pair::random(&mut chance));
        let world = World::prepared(&policy(), |lab, _| secrets(lab, &pairs));
        let mut held = 0;
        for round in 0..ROUNDS {
            let mut asked = Vec::new();
            for (at, pair) in pairs.iter().enumerate() {
                asked.push((at, script(pair, &mut chance)));
            }
            held += thread::scope(|scope| {
                let mut asking = Vec::new();
                for (at, script) in &asked {
                    for protocol in [Protocol::H1, Protocol::H2] {
                        let (world, pairs) = (&world, &pairs);
                        let about = format!("CLOAKROOM_SEED={seed} round {round} API {at}");
                        let case = Case { at: *at, protocol, script, about };
                        asking.push(scope.spawn(move || same(world, &pairs[case.at], &case)));
                    }
                }
                let held = asking.into_iter().map(|it| it.join().expect("no panic"));
                held.filter(|held| *held).count()
            });
        }
        assert!(held > ROUNDS * APIS.len(), "CLOAKROOM_SEED={seed}: little was kept back");
        let cut = world.requests().into_iter().filter(|it| it["reason"].is_string()).count();
        assert_eq!(cut, 0, "CLOAKROOM_SEED={seed}: an answer was refused");
    });
}

/// An answer of the API with this number, and its description.
struct Case<'a> {
    at: usize,
    protocol: Protocol,
    script: &'a Script,
    about: String,
}

#[derive(Debug, Clone, Copy)]
enum Protocol {
    H1,
    H2,
}

/// Requires that both see the same: at once, or in several attempts. On a busy machine, pieces that
/// left the API one by one may arrive together, and the ends between them are not seen. An end that
/// depends on a secret is seen by one of the two nearly every time, and never by the other.
///
/// Returns whether the pieces came in other sizes than they left, because some bytes were held
/// back.
fn same(world: &World, pair: &Pair, case: &Case<'_>) -> bool {
    let Case { at, protocol, script, ref about } = *case;
    let path = world.origin.script(script.clone());
    let sent: Vec<u8> = script.steps.iter().flat_map(|step| step.bytes.clone()).collect();
    let mut tallies: [Tally; 2] = Default::default();
    for _ in 0..ATTEMPTS {
        let [one, other] = thread::scope(|scope| {
            [0, 1]
                .map(|side| (side, path.as_str()))
                .map(|(side, path)| scope.spawn(move || ask(world, at, side, protocol, path)))
                .map(|asking| asking.join().expect("no panic"))
        })
        .map(|seen| seen.unwrap_or_else(|error| panic!("{about} {protocol:?}: {error}")));
        assert_eq!(one.body, sent, "{about} {protocol:?}: no secret is whole in it");
        assert_eq!((&one.body, &one.fields), (&other.body, &other.fields), "{about} {protocol:?}");
        tallies[0].add(&one);
        tallies[1].add(&other);
        if one == other || !tallies[0].differs(&tallies[1]) && !tallies[1].differs(&tallies[0]) {
            let sizes = one.parts.iter().filter(|(kind, ..)| *kind == DATA).map(|part| part.2);
            return sizes.ne(script.steps.iter().map(|step| step.bytes.len()));
        }
    }
    panic!(
        "{about} {protocol:?}: of {pair:?} one sees\n{:?}\nthe other\n{:?}",
        tallies[0], tallies[1]
    );
}

/// How often a part ended at each place, in some attempts.
#[derive(Debug, Default)]
struct Tally {
    attempts: usize,
    ends: BTreeMap<End, usize>,
}

impl Tally {
    fn add(&mut self, seen: &Seen) {
        self.attempts += 1;
        for end in seen.ends() {
            *self.ends.entry(end).or_default() += 1;
        }
    }

    /// Returns whether most attempts had an end that the other never had.
    fn differs(&self, other: &Self) -> bool {
        let most = |count: &usize| count * 2 > self.attempts;
        self.ends.iter().any(|(end, count)| most(count) && !other.ends.contains_key(end))
    }
}

fn ask(world: &World, at: usize, side: usize, protocol: Protocol, path: &str) -> io::Result<Seen> {
    let host = APIS[at];
    let alpn = match protocol {
        Protocol::H1 => &b"http/1.1"[..],
        Protocol::H2 => b"h2",
    };
    let placeholder = placeholder(at, side);
    let question = Question {
        from: [AGENT, AGENT2][side],
        to: host.port(443),
        hello: lab::client::Hello { alpn: vec![alpn], ..world.hello(host.name) },
        path,
        placeholder: &placeholder,
    };
    match protocol {
        Protocol::H1 => question.h1(),
        Protocol::H2 => question.h2(),
    }
}

/// Returns the lab's groups, and an API with two secrets for each host.
fn policy() -> Config {
    let key = |at: usize, side: usize| {
        let (group, placeholder) = (["research", "operations"][side], placeholder(at, side));
        binding(group, &placeholder, &[BEARER], &format!("file:{placeholder}"))
    };
    let apis = APIS.into_iter().enumerate().map(|(at, host)| {
        api(&format!("api{at}"), &[host.name])
            .set("methods", ["GET"])
            .set("paths", ["/v1/scripted/*"])
            .set("upstream_ca", PUBLIC_CA)
            .with(key(at, 0))
            .with(key(at, 1))
    });
    let groups = gateway::usual_config().without("api").without("splice");
    apis.fold(groups.secrets("file", "{dir}/pairs.toml"), Config::with)
}

fn secrets(lab: &Lab, pairs: &[Pair]) {
    let line = |at: usize, side: usize, pair: &Pair| {
        format!("{} = {}\n", placeholder(at, side), pair.0[side])
    };
    let lines = pairs.iter().enumerate();
    let lines = lines.flat_map(|(at, pair)| [line(at, 0, pair), line(at, 1, pair)]);
    lab.write("pairs.toml", lines.collect::<String>());
}

fn placeholder(at: usize, side: usize) -> String {
    format!("PLACEHOLDER_{at}_{side}")
}

const ROUNDS: usize = 3;
const ATTEMPTS: usize = 8;
