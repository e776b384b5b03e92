//! The kernel knows the neighbours of all interfaces in one table, and an agent that asks for the
//! gateway from ever new addresses takes nobody else's place in it.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout, Stdio},
    thread,
    time::Duration,
};

use lab::{
    client::python,
    net::{AGENT, AGENT2, GATEWAY, GATEWAY_V6, OPENAI},
    sandboxed, tools,
};

use crate::world::World;

#[test]
fn ever_new_neighbours_take_nobodys_place() {
    sandboxed(|| {
        let world = World::usual();
        let flood = Flood::solicitations(&world, 4);
        for _ in 0..10 {
            GATEWAY.shell("ip -6 neigh flush dev agents1");
            let served = world.h1_from(AGENT2, OPENAI.port6(443), OPENAI.name);
            served.map(drop).expect("an agent on another interface is served");
            thread::sleep(Duration::from_millis(200));
        }
        let sent = flood.sent();
        let known = GATEWAY.shell("ip -6 neigh show dev agents0").lines().count();
        println!("{sent} solicitations, {known} neighbours");
        assert!(sent > 3_000 && known < 1_000, "{sent} solicitations, {known} neighbours");
        world.h1_from(AGENT, OPENAI.port6(443), OPENAI.name).expect("and so is the agent itself");
    });
}

/// Neighbour solicitations of the first agent, from ever new link-local addresses.
pub struct Flood {
    process: Child,
    told: BufReader<ChildStdout>,
}

impl Flood {
    /// Begins so many seconds of it; there is a second of it when this returns.
    pub fn solicitations(world: &World, seconds: u32) -> Self {
        let mac = GATEWAY.shell("cat /sys/class/net/agents0/address");
        let script = tools::repository().join("tests/neighbours.py");
        let mut command = lab::client::agent(&world.lab, AGENT, &python().display().to_string());
        command.arg(script).args([mac.trim(), &GATEWAY_V6.to_string(), &seconds.to_string()]);
        let mut process = command.stdout(Stdio::piped()).spawn().expect("python starts");
        let mut told = BufReader::new(process.stdout.take().expect("it is piped"));
        told.read_line(&mut String::new()).expect("it is ready");
        thread::sleep(Duration::from_secs(1));
        Self { process, told }
    }

    /// Waits for its end, and says how many were sent.
    pub fn sent(mut self) -> usize {
        let mut sent = String::new();
        self.told.read_to_string(&mut sent).expect("how many were sent");
        assert!(self.process.wait().expect("it ends").success());
        sent.trim().parse().expect("a number")
    }
}
