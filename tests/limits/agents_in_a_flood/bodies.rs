//! Bodies that nobody reads at the other end fill what their agent may have on its way, in either
//! direction. The agent waits then, and no other agent does; what it gives up, it may use again.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use lab::{
    client::{Hello, Response, Tls},
    gateway::usual_config,
    load::{Ask, Load},
    net::{AGENT, AGENT_V4, AGENT_V6, AGENT2, Ns, OPENAI},
    sandbox::sandboxed_for,
    sandboxed, wait,
};
use policy_builder::Config;

use crate::world::World;

#[test]
fn an_agent_that_reads_nothing_delays_only_itself() {
    sandboxed(|| {
        let world = World::with(&least());
        for to in [OPENAI.port(443), OPENAI.port6(443)] {
            assert_carried(get(&world, AGENT, to));
            let from: IpAddr = if to.is_ipv4() { AGENT_V4.into() } else { AGENT_V6.into() };
            let ask = Ask { streams: 100, ..Ask::of(from, "/big?bytes=4000000", Bytes::new()) };
            let load = Load::take(AGENT, &h2(&world), &[ask.clone(), ask], SERVED).expect("a load");
            assert_eq!(load.held(), 2, "{:?}", load.failures);
            wait::expect("no room for one more answer", || get(&world, AGENT, to).is_err());
            assert_carried(get(&world, AGENT2, to));
            drop(load);
            wait::expect("room comes back", || get(&world, AGENT, to).is_ok());
        }
    });
}

#[test]
fn unread_requests_delay_their_own_agent_alone() {
    sandboxed_for(Duration::from_secs(240), || {
        let world = World::with(&least());
        for to in [OPENAI.port(443), OPENAI.port6(443)] {
            assert_carried(post(&world, AGENT, to, CHAT, BODY));
            let stuck: Vec<Tls> = thread::scope(|scope| {
                let send = || unread(&world, to).expect("a connection");
                let all: Vec<_> = (0..UNREAD).map(|_| scope.spawn(send)).collect();
                all.into_iter().map(|one| one.join().expect("it is sent")).collect()
            });
            let late = || post(&world, AGENT, to, CHAT, BODY);
            wait::expect("no room for one more request", || late().is_err());
            assert_carried(post(&world, AGENT2, to, CHAT, BODY));
            // The other direction has its own room.
            assert_carried(get(&world, AGENT, to));
            // The API reads nothing, so it does not see the end of what the agent has sent. These
            // are cut after the idle time, which is checked once in each.
            drop(stuck);
            let begun = Instant::now();
            let again = || post(&world, AGENT, to, CHAT, BODY).ok();
            let back = wait::until(Duration::from_secs(60), again);
            println!("room came back after {:?}", begun.elapsed());
            assert!(back.is_some(), "no room came back: {}", world.gateway.audit.text());
        }
    });
}

/// Returns the usual policy, whose first API also lets agents ask for answers that are not read.
pub(super) fn config() -> Config {
    usual_config().api("openai", |it| it.more("paths", &["/tardy"]))
}

/// Returns the same, with both limits at their minimum.
fn least() -> Config {
    config().limit("agent_buffers", "1MiB").limit("idle_time", "10s")
}

/// Returns an HTTP/2 client of the first API.
pub(super) fn h2(world: &World) -> Hello {
    Hello { alpn: vec![b"h2"], ..world.hello(OPENAI.name) }
}

#[track_caller]
fn assert_carried(answer: io::Result<Response>) {
    assert_eq!(answer.expect("it is carried").status, 200);
}

fn get(world: &World, from: Ns, to: SocketAddr) -> io::Result<Response> {
    let head = format!("GET /big?bytes={BODY} HTTP/1.1\r\n{}\r\n", fields(from));
    let answer = open(world, from, to)?.ask(head)?;
    assert_eq!(answer.body.len(), BODY, "{}", answer.text());
    Ok(answer)
}

fn post(world: &World, from: Ns, to: SocketAddr, path: &str, bytes: usize) -> io::Result<Response> {
    let mut tls = open(world, from, to)?;
    tls.send(format!("POST {path} HTTP/1.1\r\n{}Content-Length: {bytes}\r\n\r\n", fields(from)))?;
    tls.send(vec![b'x'; bytes])?;
    tls.response()
}

/// Sends a request whose body goes on until nobody takes any more of it.
fn unread(world: &World, to: SocketAddr) -> io::Result<Tls> {
    let mut tls = open(world, AGENT, to)?;
    let length = "Content-Length: 100000000\r\n\r\n";
    tls.send(format!("POST /tardy?ms=600000 HTTP/1.1\r\n{}{length}", fields(AGENT)))?;
    while tls.send([b'x'; 64 * 1024]).is_ok() {}
    Ok(tls)
}

fn open(world: &World, from: Ns, to: SocketAddr) -> io::Result<Tls> {
    let tls = Tls::open(from, to, &world.hello(OPENAI.name))?;
    tls.socket().set_read_timeout(Some(TIMEOUT))?;
    tls.socket().set_write_timeout(Some(TIMEOUT))?;
    Ok(tls)
}

fn fields(from: Ns) -> String {
    let placeholder = if from == AGENT { "OPENAI_API_KEY" } else { "OPS_OPENAI_KEY" };
    format!("Host: {}\r\nAuthorization: Bearer {placeholder}\r\n", OPENAI.name)
}

/// A path that reads the whole body before it answers.
const CHAT: &str = "/v1/chat/completions";
/// More than an agent may have on its way.
const BODY: usize = 3_000_000;
/// Connections with a request that is not read. Each holds some hundred KiB in the gateway.
const UNREAD: usize = 8;
/// Time for which a client waits for the next byte to move.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Time for which connections are served before they stand still.
const SERVED: Duration = Duration::from_millis(500);
