//! The shipped unit and the package under systemd as the first process of a machine: Debian in
//! systemd-nspawn, whose network is the lab's gateway. `make test-systemd` runs it; it needs root.

mod addresses;
mod beside;
mod boot;
mod files;
mod flushed;
mod guide;
mod health;
mod load;
mod machine;
mod package;
mod router;
mod watch;

use std::{
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    client::Tls,
    dns::Dns,
    gateway::OPENAI_SECRET,
    net::{AGENT, GATEWAY, OPENAI},
    origin::Origin,
    sandboxed,
};
use load::Load;

use machine::{Machine, config, hello};

const CHAT: &str = "POST /v1/chat HTTP/1.1\r\nHost: api.openai.example\r\n\
    Authorization: Bearer OPENAI_API_KEY\r\nContent-Length: 0\r\n\r\n";

/// Asks the API, and requires that the origin got the secret.
#[track_caller]
fn assert_served(lab: &Lab, origin: &Origin) {
    let before = origin.log().requests().len();
    let tls = Tls::open(AGENT, OPENAI.port(443), &hello(lab, OPENAI.name));
    let answer = tls.expect("intercepted").ask(CHAT).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let requests = origin.log().requests();
    assert_eq!(requests[before].header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
}

#[test]
fn the_shipped_unit_serves_confined_and_again_after_a_restart() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        machine.install(&lab, &config());
        machine.run("systemctl start cloakroom");
        assert_served(&lab, &origin);

        // Exactly these: CAP_NET_BIND_SERVICE is bit 10, CAP_NET_ADMIN bit 12 (capabilities(7)).
        let status = machine.run("cat /proc/$(systemctl show --value -p MainPID cloakroom)/status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:\t")));
            line.unwrap_or_else(|| panic!("no {name}: {status}")).to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000001400", "{set}");
        }
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()));
        assert_ne!(field("Uid").split('\t').next(), Some("0"));

        let security = machine.run("systemd-analyze security --no-pager cloakroom");
        let exposure = security.lines().find_map(|line| line.split_once("cloakroom.service: "));
        let exposure: f64 = exposure
            .and_then(|(_, figure)| figure.split(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no figure: {security}"));
        println!("exposure {exposure}");
        assert!(exposure <= 2.0, "{security}");

        let status = machine.run("cloakroom status --json");
        let confined = ["fully", "partly"].map(|how| format!("\"landlock\": \"{how}\""));
        assert!(confined.iter().any(|how| status.contains(how)), "{status}");
        machine.run("systemctl reload cloakroom");
        machine.run("systemctl restart cloakroom");
        assert_served(&lab, &origin);
        assert_eq!(machine.property("NRestarts"), "0", "{}", machine.journal());
        let log = machine.journal();
        let (_, again) = log.rsplit_once("Starting cloakroom").expect("it was restarted");
        assert!(!again.contains("WARN") && !again.contains("ERROR"), "{again}");

        // An operator finds it by its priority; the journal has the time.
        machine.run("echo nothing >> /etc/cloakroom/cloakroom.toml");
        assert!(!machine.says("systemctl reload cloakroom"));
        let errors = machine.run("journalctl --no-pager -o cat -p err -u cloakroom");
        for line in ["not reloaded, the old policy stays in force", "cloakroom.toml: 1 error"] {
            assert!(errors.contains(line), "{errors}");
        }
        assert!(!errors.contains("ready") && !errors.trim_start().starts_with("20"), "{errors}");
    });
}

/// Returns a stream of events that is longer than any drain, with the first of them read.
fn stream(lab: &Lab) -> Tls {
    let mut tls =
        Tls::open(AGENT, OPENAI.port(443), &hello(lab, OPENAI.name)).expect("intercepted");
    let request = "GET /sse?n=10000&ms=100 HTTP/1.1\r\nHost: api.openai.example\r\n\
        Authorization: Bearer OPENAI_API_KEY\r\n\r\n";
    tls.send(request).expect("sent");
    let first = tls.read_some(4096).expect("the first bytes");
    assert!(first.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&first));
    tls
}

#[test]
fn a_restart_costs_no_connection_name_or_stream() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        let config = config()
            .splice("pypi", |it| it.set("ports", [443, 80]))
            .limit("agent_new_connections", 5000)
            .limit("dns_rate", 5000)
            .limit("drain_time", "12s");
        machine.install(&lab, &config);
        // Every container of this kind filters the call that takes descriptors of another process
        // (pidfd_getfd(2), 438 everywhere), so the unit works without it here.
        let asks = "$! = 0; syscall(438, -1, 0, 0); print $! + 0";
        machine.run(&format!("echo '{asks}' > /run/asks"));
        let errno = machine.run("systemd-run --quiet --wait --pipe perl /run/asks");
        assert_eq!(errno, "1", "EPERM, and not EBADF");
        machine.run("systemctl start cloakroom");
        let streams: Vec<Tls> = (0..STREAMS).map(|_| stream(&lab)).collect();

        let [connections, lookups] = rates();
        let load = Load::start(connections, lookups);
        thread::sleep(Duration::from_secs(2));
        let begun = Instant::now();
        machine.run("systemctl restart cloakroom");
        println!("restarted in {:?}", begun.elapsed());
        let ends = thread::spawn(move || {
            let each = streams.into_iter().map(|mut stream| {
                thread::spawn(move || {
                    while stream.read_some(65_536).is_ok_and(|bytes| !bytes.is_empty()) {}
                    begun.elapsed()
                })
            });
            let each: Vec<_> = each.collect();
            each.into_iter().map(|one| one.join().expect("no panic")).collect::<Vec<_>>()
        });
        let lost = GATEWAY.shell("nstat -asz TcpExtListenOverflows TcpExtListenDrops");
        load.assert_none_waited(Duration::from_secs(1), begun);
        // A dropped SYN is sent again a second later.
        let counts = lost.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
        assert!(counts.eq(["0", "0"]), "{lost}");
        let ends = ends.join().expect("no panic");
        let (first, last) = (ends.iter().min(), ends.iter().max());
        println!("streams ended from {first:?} to {last:?}");
        assert!(first.is_some_and(|end| *end > Duration::from_secs(11)), "{ends:?}");
        assert!(last.is_some_and(|end| *end < Duration::from_secs(18)), "{ends:?}");
        machine.wait_until("only the new daemon is left", || {
            machine.run("pgrep -c cloakroom").trim() == "2"
        });
    });
}

/// The daemon is told whether another follows: after a stop none does.
#[test]
fn a_stop_takes_nothing_new_and_lets_flows_finish() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        machine.install(&lab, &config().limit("drain_time", "6s"));
        machine.run("systemctl start cloakroom");
        let mut open = stream(&lab);
        machine.run("systemctl restart cloakroom");
        assert!(!machine.journal().contains(NONE_FOLLOWS), "{}", machine.journal());
        assert_served(&lab, &origin);
        while open.read_some(65_536).is_ok_and(|bytes| !bytes.is_empty()) {}

        let mut open = stream(&lab);
        let begun = Instant::now();
        machine.run("systemctl stop cloakroom");
        machine.wait_until("nobody listens", || AGENT.connect(OPENAI.port(443)).is_err());
        assert!(!load::lookup_once(), "no name is answered");
        let taken = begun.elapsed();
        assert!(taken < Duration::from_secs(6), "{taken:?}: while it drains");
        assert!(machine.journal().contains(NONE_FOLLOWS), "{}", machine.journal());
        assert!(open.read_some(4096).is_ok_and(|bytes| !bytes.is_empty()), "it goes on");
        while open.read_some(65_536).is_ok_and(|bytes| !bytes.is_empty()) {}
        machine.wait_until("nothing is left of it", || !machine.says("pgrep cloakroom"));
        assert!(begun.elapsed() > Duration::from_secs(5), "it was let finish");
        assert_eq!(machine.property("Result"), "success");
        machine.run("systemctl start cloakroom");
        assert_served(&lab, &origin);
    });
}

/// The log's line at a stop.
const NONE_FOLLOWS: &str = "no other daemon is to follow";

#[test]
fn the_timer_renews_a_ca_for_the_daemon() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        machine.install(&lab, &config());
        machine.run("systemctl start cloakroom cloakroom-ca.timer");
        assert!(machine.run("systemctl list-timers").contains("cloakroom-ca.service"));
        let pem = "/var/lib/cloakroom/ca/openai.pem";
        let before = machine.run(&format!("cat {pem}; rm {pem}"));
        machine.run("systemctl start cloakroom-ca.service");
        let after = machine.run(&format!("cat {pem}"));
        assert_ne!(before, after);
        let owner = machine.run(&format!("stat -c %U {pem} /var/lib/cloakroom/ca/openai.key"));
        assert_eq!(owner, "cloakroom\ncloakroom\n");
        assert!(machine.journal().contains("reloaded"), "{}", machine.journal());
        assert_served(&lab, &origin);
    });
}

/// An interface that appears late must not leave the unit failed for good.
#[test]
fn an_interface_that_appears_late_is_waited_for() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        machine.install(&lab, &config());
        GATEWAY.shell("ip link set agents0 down && ip link set agents0 name late0");
        machine.run("systemctl start --no-block cloakroom");
        thread::sleep(Duration::from_secs(12));
        assert_ne!(machine.property("ActiveState"), "failed", "{}", machine.journal());
        GATEWAY.shell("ip link set late0 name agents0 && ip link set agents0 up");
        machine.wait_until("ready", || machine.property("ActiveState") == "active");
        // The IPv6 addresses went with the link, but nothing here asks for them.
        assert_served(&lab, &origin);
    });
}

/// Returns [`RATES`], or those of a machine that is slower or has other work: `CLOAKROOM_RATES="100
/// 40"`.
fn rates() -> [u32; 2] {
    let Ok(text) = std::env::var("CLOAKROOM_RATES") else { return RATES };
    let mut rates = text.split(' ').map(|rate| rate.parse().expect("two numbers"));
    [(); 2].map(|()| rates.next().expect("two numbers"))
}

const STREAMS: usize = 50;
/// Connections and DNS queries a second.
const RATES: [u32; 2] = [500, 200];
