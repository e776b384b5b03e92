//! Debian's `nftables.service` begins every action with a flush of all rules. With the shipped
//! drop-in beside it the guard is loaded again after that; the daemon's own rules are back before.

use std::{thread, time::Duration};

use lab::{
    Lab,
    audit::Record,
    datagrams::{Sending, Target},
    dns::Dns,
    net::{AGENT, GATEWAY, GATEWAY_V4, GATEWAY_V6, INTERNET, OPENAI, OTHER},
    origin::Origin,
    sandbox::sandboxed_for,
};
use serde_json::Value;

use crate::{
    assert_served,
    machine::{Machine, config},
};

#[test]
fn debians_flush_is_undone_at_once_in_both_tables() {
    sandboxed_for(Duration::from_secs(180), || {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        machine.install(&lab, &config());
        machine.run("systemctl start nftables; systemctl start cloakroom");
        machine.wait_until("healthy", || health(&machine) == "healthy");
        assert_served(&lab, &origin);
        let service = Target::of(GATEWAY, [GATEWAY_V4.into(), GATEWAY_V6.into()]);
        let outside = Target::of(INTERNET, [OTHER.v4().into(), OTHER.v6().into()]);
        let sending = Sending::to(&[&service, &outside]);
        let mut open = Vec::new();
        for (turn, order) in ORDERS.iter().cycle().take(TURNS).enumerate() {
            thread::sleep(Duration::from_millis(300));
            assert!(service.take().is_empty(), "before {order}");
            machine.run(order);
            // The order ends when the guard is loaded again.
            assert!(guarded(&machine), "after {order}");
            machine.wait_until("healthy again", || health(&machine) == "healthy");
            machine.wait_until("repaired", || records(&machine, "repair").len() > turn);
            // A restart flushes twice, and this is the time from the first flush to the end of the
            // second.
            let reached = service.take();
            let (first, last) = (reached.iter().min(), reached.iter().max());
            open.extend(first.zip(last).map(|(first, last)| *last - *first));
            assert_served(&lab, &origin);
        }
        println!("a service of the gateway's was reached for {open:?}");
        open.sort();
        let median = open.get(open.len() / 2).expect("it was reached while there was no guard");
        assert!(*median < Duration::from_millis(100), "{open:?}");

        without_the_drop_in(&machine, &service);
        assert_served(&lab, &origin);
        assert!(sending.ended() > 500, "the agent sent nothing");
        assert!(outside.reached().is_empty(), "packets reached the internet");
        assert_eq!(records(&machine, "close").len(), records(&machine, "open").len());
    });
}

/// Checks that the unit alone leaves no guard, and the gateway closed until the guard is loaded.
#[track_caller]
fn without_the_drop_in(machine: &Machine, service: &Target) {
    let why = "the guard table inet cloakroom_base is not loaded";
    let closes = records(machine, "close").len();
    machine.run("nft -f /etc/nftables.conf");
    machine.wait_until("closed", || health(machine) == "closed");
    let causes = status(machine)["health"]["causes"].to_string();
    assert!(causes.contains(why), "{causes}");
    assert!(machine.property("StatusText").starts_with("closed: "));
    let record = records(machine, "close").pop().expect("a record");
    assert!(records(machine, "close").len() > closes && record["cause"].to_string().contains(why));
    assert!(machine.journal().contains(&format!("closed to new connections: {why}")));
    machine.run("nft list table inet cloakroom > /dev/null");
    AGENT.connect(OPENAI.port(443)).expect_err("closed");
    service.take();
    thread::sleep(Duration::from_millis(500));
    assert!(service.take().is_empty(), "its own rules were back all the while");

    machine.run("systemctl reload nftables");
    assert!(guarded(machine));
    machine.wait_until("open again", || health(machine) == "healthy");
}

fn guarded(machine: &Machine) -> bool {
    machine.says("nft list set inet cloakroom_base agent_interfaces | grep -q agents0")
}

fn status(machine: &Machine) -> Value {
    serde_json::from_str(&machine.run("cloakroom status --json")).expect("it is JSON")
}

fn health(machine: &Machine) -> String {
    status(machine)["health"]["state"].as_str().unwrap_or_default().to_owned()
}

fn records(machine: &Machine, kind: &str) -> Vec<Record> {
    let text = machine.run("cat /var/log/cloakroom/audit.jsonl");
    text.lines().map(Record::read).filter(|record| record.is(kind)).collect()
}

/// The commands of an administrator, and of a package.
const ORDERS: [&str; 4] = [
    "systemctl reload nftables",
    "systemctl restart nftables",
    "systemctl stop nftables",
    "systemctl start nftables",
];
const TURNS: usize = 8;
