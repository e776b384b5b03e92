//! Hosts that are spliced: all bytes arrive, in both directions, whatever the two ends do.

use std::{net::Shutdown, time::Duration};

use lab::{
    client::{Hello, Tls},
    net::{AGENT, CDN, PYPI},
    sandboxed, wait,
};

use crate::world::World;

#[test]
fn a_suffix_lets_its_subdomains_through() {
    sandboxed(|| {
        let world = World::usual();
        let hello = Hello::h1(CDN.name).trusting(world.lab.public.pem());
        let mut tls = Tls::open(AGENT, CDN.port(443), &hello).expect("a connection");
        let host = CDN.name;
        let answer =
            tls.ask(format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n")).expect("an answer");
        assert_eq!(answer.status, 200);
    });
}

#[test]
fn a_half_closer_still_gets_its_answer() {
    sandboxed(|| {
        let world = World::usual();
        let hello = Hello::h1(PYPI.name).trusting(world.lab.public.pem());
        let mut tls = Tls::open(AGENT, PYPI.port(443), &hello).expect("a connection");
        tls.send("GET /slow?ms=700 HTTP/1.1\r\nHost: pypi.example\r\nConnection: close\r\n\r\n")
            .expect("sent");
        tls.socket().shutdown(Shutdown::Write).expect("a socket");
        let answer = String::from_utf8_lossy(&tls.read_to_end()).into_owned();
        assert!(answer.ends_with("slow"), "{answer:?}");
    });
}

#[test]
fn whoever_resets_or_vanishes_leaves_nothing_behind() {
    sandboxed(|| {
        let world = World::usual();
        let hello = Hello::h1(PYPI.name);
        for _ in 0..10 {
            let mut tls = Tls::open(AGENT, PYPI.port(443), &hello).expect("a connection");
            tls.send("GET /big?bytes=50000000 HTTP/1.1\r\nHost: pypi.example\r\n\r\n")
                .expect("sent");
            tls.read_some(100).expect("a beginning");
            // Unread bytes in the socket make this a reset.
            drop(tls);
        }
        world.origin.log().wait_all_closed();
        wait::expect("ten records", || world.connections().len() == 10);
        wait::expect("no socket is left", || {
            let left = world.gateway.sockets();
            !left
                .iter()
                .any(|state| ["ESTAB", "CLOSE-WAIT", "FIN-WAIT-1"].contains(&state.as_str()))
        });
    });
}

#[test]
fn a_never_reader_holds_back_its_own_flow_only() {
    sandboxed(|| {
        let world = World::usual();
        let hello = Hello::h1(PYPI.name);
        let mut stuck = Tls::open(AGENT, PYPI.port(443), &hello).expect("a connection");
        stuck
            .send("GET /big?bytes=500000000 HTTP/1.1\r\nHost: pypi.example\r\n\r\n")
            .expect("sent");
        std::thread::sleep(Duration::from_millis(500));
        let mut other = Tls::open(AGENT, PYPI.port(443), &hello).expect("a connection");
        let answer = other.ask("GET /x HTTP/1.1\r\nHost: pypi.example\r\n\r\n").expect("an answer");
        assert_eq!(answer.status, 200);
        let status = format!("/proc/{}/status", world.gateway.pid());
        let status = std::fs::read_to_string(status).unwrap_or_default();
        let resident = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
        let kib: u64 =
            resident.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
        assert!(kib < 200 * 1024, "the daemon hoards what nobody reads: {resident}");
    });
}

#[test]
fn a_hello_that_is_cut_anywhere_is_replayed_whole() {
    sandboxed(|| {
        let world = World::usual();
        for cut in [1, 5, 6, 43, 100, 500, 1_000, 1_400] {
            let socket = AGENT.connect(PYPI.port(443)).expect("a connection");
            let mut cutter = Cutter { socket, left: cut };
            let hello = Hello::h1(PYPI.name).trusting(world.lab.public.pem());
            let answer = lab::client::tls_over(
                &mut cutter,
                &hello,
                b"GET /x HTTP/1.1\r\n\
                Host: pypi.example\r\n\r\n",
            );
            assert_eq!(answer.expect("an answer").status, 200, "cut after {cut} bytes");
        }
        world.origin.log().wait_requests(8);
    });
}

/// Sends the first bytes separately, and the rest a little later.
struct Cutter {
    socket: std::net::TcpStream,
    left: usize,
}

impl std::io::Write for Cutter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return self.socket.write(bytes);
        }
        let first = &bytes[..self.left.min(bytes.len())];
        let written = self.socket.write(first)?;
        self.left -= written;
        std::thread::sleep(Duration::from_millis(30));
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.socket.flush()
    }
}

impl std::io::Read for Cutter {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.socket.read(buffer)
    }
}
