//! A resolver that the gateway's machine has for itself (dnsmasq here; systemd-resolved, named and
//! unbound do the same): the two live side by side, or the one that is in the way is named.

use std::{
    net::UdpSocket,
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use lab::{
    Lab,
    dns::Dns,
    gateway::{Gateway, usual_config},
    net::{AGENT, GATEWAY, GATEWAY_V4, GATEWAY_V6, OPENAI},
    sandboxed, tools, wait,
};

use crate::dns::client::{addresses, ask, ask_tcp, code, query, resolvers};

/// A name that only the machine's own resolver has.
const OWN: &str = "printer.lan";

struct Resolver(Child);

impl Resolver {
    /// Starts it on the gateway, with these arguments beside the usual ones, and waits until it
    /// answers there.
    fn start(at: &str, arguments: &[&str]) -> Self {
        let usual = PathBuf::from("/usr/sbin/dnsmasq");
        let dnsmasq = tools::on_path(&["dnsmasq"]).or_else(|| usual.is_file().then_some(usual));
        let mut command: Command =
            GATEWAY.command(dnsmasq.expect("tests/prerequisites installs dnsmasq-base"));
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file",
            "--user=root",
        ]);
        command.args(["--no-resolv", "--no-hosts", "--port=53"]).args(arguments);
        command.arg(format!("--address=/{OWN}/192.0.2.99"));
        let resolver = Self(command.spawn().expect("dnsmasq starts"));
        wait::expect("dnsmasq answers", || own(at).is_some());
        resolver
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a program on the gateway itself is told by whoever is at this address.
fn own(at: &str) -> Option<Message> {
    GATEWAY.enter(|| {
        let any = if at.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
        let at: std::net::IpAddr = at.parse().expect("an address");
        socket.send_to(&query(OWN, RecordType::A).to_vec().expect("a message"), (at, 53)).ok()?;
        let mut buffer = [0; 512];
        let (length, _) = socket.recv_from(&mut buffer).ok()?;
        Message::from_vec(&buffer[..length]).ok()
    })
}

#[test]
fn a_resolver_at_addresses_of_the_machines_own_lives_beside_the_gateway() {
    sandboxed(|| {
        let lab = Lab::new();
        let _dns = Dns::start();
        let here = format!("--listen-address=127.0.0.1,::1,{GATEWAY_V4},{GATEWAY_V6}");
        let _resolver = Resolver::start("127.0.0.1", &["--bind-interfaces", &here]);
        let _gateway = Gateway::start(&lab, &usual_config());
        for server in resolvers() {
            let told = addresses(&ask(server, OPENAI.name, RecordType::A));
            assert_eq!(told, [std::net::IpAddr::from(OPENAI.v4())], "{server}");
            let stream = ask_tcp(AGENT, server, &query(OPENAI.name, RecordType::AAAA));
            assert_eq!(addresses(&stream.expect("an answer")).len(), 1, "{server}");
            // It is nobody's but the machine's, also where it listens on the agents' own link.
            let foreign = ask(server, OWN, RecordType::A);
            assert_eq!(code(&foreign), ResponseCode::NXDomain, "{server}");
        }
        for at in ["127.0.0.1", "::1"] {
            let answer = own(at).expect("the machine has its resolver");
            assert_eq!(addresses(&answer).len(), 1, "{answer}");
        }
    });
}

#[test]
fn a_resolver_at_every_address_is_named() {
    sandboxed(|| {
        let lab = Lab::new();
        let _resolver = Resolver::start("127.0.0.1", &[]);
        let failed = Gateway::try_start(&lab, &usual_config()).map(drop).expect_err("no room");
        assert_eq!(failed.code(), Some(1), "{}", failed.stderr);
        let line = failed.stderr.lines().find(|line| line.starts_with("cloakroom: "));
        let line = line.expect("why");
        for said in ["port 53 is in use on agents0 by dnsmasq (process ", "bind-interfaces"] {
            assert!(line.contains(said), "{line}");
        }
    });
}
