//! The gateway without its daemon: before the first start, after a kill, between two runs. The
//! kernel would forward, but nothing gets through.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    client::{Hello, Tls},
    dns::Dns,
    gateway::{self, Gateway, OPENAI_SECRET},
    net::{
        AGENT, AGENT_V4, AGENT_V6, AGENT2, ATTACKER, Capture, INTERNET, Ns, OPENAI, OTHER, PYPI,
    },
    origin::Origin,
    sandboxed, wait,
};

use crate::faults::{CHAT, ask, hello};

#[test]
fn a_daemon_killed_under_traffic_lets_nothing_past() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let mut gateway = Gateway::usual(&lab);
        let config = lab.dir.join("cloakroom.toml");
        let outside = lab.capture(INTERNET);
        let traffic = Traffic::default();
        let hello = hello(&lab, OPENAI);
        thread::scope(|scope| {
            let _end = EndOfTraffic(&traffic);
            for agent in [AGENT, AGENT2] {
                let (hello, traffic) = (&hello, &traffic);
                scope.spawn(move || traffic.requests(agent, OPENAI.port(443), hello));
                scope.spawn(move || traffic.requests(agent, OPENAI.port6(443), hello));
                scope.spawn(move || traffic.knocks(agent));
                scope.spawn(move || traffic.datagrams(agent));
            }
            for cycle in 0..5 {
                traffic.wait_answers(20);
                gateway.kill();
                // Packets under way in the kernel end; after that there is silence.
                origin.log().wait_all_closed();
                let before = origin.log().connections().len();
                let knocks = traffic.tries.load(Relaxed);
                wait::expect("agents keep knocking", || traffic.tries.load(Relaxed) > knocks + 40);
                let now = origin.log().connections().len();
                assert_eq!(now, before, "cycle {cycle}: something got past a dead daemon");
                gateway = Gateway::run(&lab, &config).unwrap_or_else(|failed| {
                    panic!("cycle {cycle}: no restart: {}", failed.stderr)
                });
            }
            traffic.wait_answers(20);
        });
        assert_only_the_gateway_called(&origin);
        assert_no_agent_outside(&outside);
        for request in origin.log().requests() {
            let sent = request.header("authorization");
            assert_eq!(sent, [format!("Bearer {OPENAI_SECRET}")], "never the placeholder");
        }
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
    });
}

#[test]
fn without_a_daemon_the_guard_is_closed() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let outside = lab.capture(INTERNET);
        gateway::guard();
        crate::faults::assert_closed(&origin);
        assert_no_agent_outside(&outside);

        // The daemon's table stays after it, and is closed without it.
        let mut gateway = Gateway::usual(&lab);
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        gateway.terminate(Duration::from_secs(10));
        origin.log().clear();
        crate::faults::assert_closed(&origin);

        // The guard alone closes what the table leaves open.
        lab::net::GATEWAY.shell("nft delete table inet cloakroom");
        crate::faults::assert_closed(&origin);
        assert_no_agent_outside(&outside);
    });
}

#[test]
fn a_connection_that_was_open_dies_with_the_daemon() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let mut gateway = Gateway::usual(&lab);
        let mut spliced = crate::faults::open(&lab, AGENT, PYPI).expect("spliced");
        let mut intercepted = crate::faults::open(&lab, AGENT, OPENAI).expect("intercepted");
        spliced.ask("GET /a HTTP/1.1\r\nHost: pypi.example\r\n\r\n").expect("an answer");
        intercepted.ask(CHAT).expect("an answer");
        assert_eq!(origin.log().requests().len(), 2);
        gateway.kill();
        for tls in [&mut spliced, &mut intercepted] {
            let again = tls.ask("GET /b HTTP/1.1\r\nHost: pypi.example\r\n\r\n");
            assert!(again.is_err(), "{again:?}");
        }
        origin.log().wait_all_closed();
        assert_eq!(origin.log().requests().len(), 2);
    });
}

/// The agents' traffic meanwhile, until they are told to stop.
#[derive(Default)]
struct Traffic {
    stop: AtomicBool,
    tries: AtomicUsize,
    answers: AtomicUsize,
}

/// Ends the traffic even when an assertion fails; otherwise the scope would wait for it for ever.
struct EndOfTraffic<'a>(&'a Traffic);

impl Drop for EndOfTraffic<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

impl Traffic {
    fn each(&self, mut once: impl FnMut()) {
        while !self.stop.load(Relaxed) {
            once();
            self.tries.fetch_add(1, Relaxed);
        }
    }

    fn requests(&self, agent: Ns, to: SocketAddr, hello: &Hello) {
        self.each(|| {
            let answer = Tls::open(agent, to, hello).and_then(|mut tls| {
                if agent == AGENT {
                    tls.ask(CHAT)
                } else {
                    tls.ask(crate::faults::get("/v1/models"))
                }
            });
            if answer.is_ok() {
                self.answers.fetch_add(1, Relaxed);
            }
        });
    }

    /// Tries ports and hosts that are never allowed.
    fn knocks(&self, agent: Ns) {
        let closed = [OTHER.port(8443), OTHER.port6(8443), ATTACKER.port(443), ATTACKER.port6(80)];
        let mut next = closed.into_iter().cycle();
        self.each(|| {
            if let Some(to) = next.next() {
                let _ = agent.connect(to).map(|mut stream| {
                    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n")
                });
            }
            thread::sleep(Duration::from_millis(2));
        });
    }

    fn datagrams(&self, agent: Ns) {
        let sockets = agent.enter(|| {
            ["0.0.0.0:0", "[::]:0"].map(|any| std::net::UdpSocket::bind(any).expect("a socket"))
        });
        self.each(|| {
            for (socket, to) in sockets.iter().zip([OTHER.port(443), OTHER.port6(443)]) {
                let _ = socket.send_to(b"hello", to);
            }
            thread::sleep(Duration::from_millis(2));
        });
    }

    fn wait_answers(&self, more: usize) {
        let (before, begun) = (self.answers.load(Relaxed), Instant::now());
        wait::expect("agents get answers", || self.answers.load(Relaxed) >= before + more);
        println!("{more} answers in {:?}", begun.elapsed());
    }
}

/// Asserts that every connection came from the gateway itself.
#[track_caller]
pub(super) fn assert_only_the_gateway_called(origin: &Origin) {
    let own: [IpAddr; 2] =
        ["203.0.113.2", "2001:db8:f::2"].map(|address| address.parse().expect("an address"));
    for connection in origin.log().connections() {
        assert!(own.contains(&connection.peer.ip()), "got past the gateway: {connection:?}");
    }
}

/// Asserts that no packet outside has an agent's address in it, in any place.
#[track_caller]
pub(crate) fn assert_no_agent_outside(outside: &Capture) {
    let bytes = outside.bytes();
    let holds = |address: &[u8]| bytes.windows(address.len()).any(|at| at == address);
    assert!(!holds(&AGENT_V4.octets()), "a packet of the first agent got outside");
    assert!(!holds(&AGENT_V6.octets()), "a packet of the first agent got outside, IPv6");
    assert!(!holds(&[192, 0, 2, 140]), "a packet of the second agent got outside");
}
