//! A resolver that the gateway's machine runs for itself (dnsmasq and named): the two run side by
//! side, or the one that is in the way is named.

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

    /// Starts BIND's, which listens on each address of the machine by default.
    fn named(lab: &Lab) -> Self {
        let files = tools::cache().join("named");
        let named = files.join("usr/sbin/named");
        assert!(named.is_file(), "{} is missing: run tests/named/get", named.display());
        lab.write("lan.zone", ZONE);
        let config = lab.write("named.conf", NAMED.replace("{dir}", &lab.dir.to_string_lossy()));
        let folders = std::fs::read_dir(files.join("usr/lib")).expect("its libraries");
        let folders = folders.map(|folder| folder.expect("a folder").path());
        let libraries: Vec<_> = folders.map(|folder| folder.display().to_string()).collect();
        let mut command: Command = GATEWAY.command(named);
        command.env("LD_LIBRARY_PATH", libraries.join(":")).args(["-f", "-c"]).arg(config);
        let resolver = Self(command.spawn().expect("named starts"));
        wait::expect("named answers", || own("127.0.0.1").is_some());
        resolver
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the answer of the server at this address to a program on the gateway itself.
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
fn another_resolver_at_its_own_addresses_lives_beside_it() {
    sandboxed(|| {
        let here = format!("--listen-address=127.0.0.1,::1,{GATEWAY_V4},{GATEWAY_V6}");
        lives_beside(|_| Resolver::start("127.0.0.1", &["--bind-interfaces", &here]));
    });
}

#[test]
fn named_as_it_comes_lives_beside_the_gateway() {
    sandboxed(|| lives_beside(Resolver::named));
}

/// Checks that both answer, each its own clients.
#[track_caller]
fn lives_beside(start: impl FnOnce(&Lab) -> Resolver) {
    let lab = Lab::new();
    let _dns = Dns::start();
    let _resolver = start(&lab);
    let _gateway = Gateway::start(&lab, &usual_config());
    for server in resolvers() {
        let told = addresses(&ask(server, OPENAI.name, RecordType::A));
        assert_eq!(told, [std::net::IpAddr::from(OPENAI.v4())], "{server}");
        let stream = ask_tcp(AGENT, server, &query(OPENAI.name, RecordType::AAAA));
        assert_eq!(addresses(&stream.expect("an answer")).len(), 1, "{server}");
        // It answers only the machine itself, even where it listens on the agents' own link.
        let foreign = ask(server, OWN, RecordType::A);
        assert_eq!(code(&foreign), ResponseCode::NXDomain, "{server}");
    }
    for at in ["127.0.0.1", "::1"] {
        let answer = own(at).expect("the machine has its resolver");
        assert_eq!(addresses(&answer).len(), 1, "{answer}");
    }
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

const ZONE: &str = "$TTL 60\n@ SOA localhost. root.localhost. 1 60 60 60 60\n@ NS localhost.\n\
                    printer A 192.0.2.99\n";

/// Debian's configuration, except for the folder and queries to the internet.
const NAMED: &str = r#"
options {
    directory "{dir}";
    pid-file none;
    session-keyfile none;
    listen-on-v6 { any; };
    dnssec-validation no;
    recursion no;
    managed-keys-directory "{dir}";
};
controls { };
zone "lan" { type primary; file "lan.zone"; };
"#;
