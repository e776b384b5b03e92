//! A restart under a service manager: the messages to the manager, and connections that wait
//! instead of being refused.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lab::{
    client::{Hello, Tls, client_hello},
    gateway,
    net::{AGENT, GATEWAY, OPENAI},
    sandboxed, tools, wait,
};
use policy_builder::Config;
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    lifecycle::control::tell,
    world::{TICKET, World, first_event, get, get_path},
};

/// `supervise.py` and the gateway that it starts.
struct Supervised {
    world: World,
    _process: Child,
    words: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Supervised {
    fn start() -> Self {
        Self::with(&usual())
    }

    fn with(config: &Config) -> Self {
        let mut world = World::usual();
        // This gateway has made the certificates; from here on `supervise.py` starts it.
        world.gateway.kill();
        gateway::install(&world.lab, config);
        let log = world.lab.dir.join("gateway.log");
        let log = fs::File::options().create(true).append(true).open(log).expect("writable");
        let mut process = python("lifecycle/supervise.py")
            .arg(world.lab.dir.join("notify"))
            .arg(world.lab.dir.join("notified"))
            .arg(tools::cloakroom())
            .args(["run", "--ready-file"])
            .arg(world.lab.dir.join("ready"))
            .arg(world.lab.dir.join("cloakroom.toml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("python3 starts");
        let words = process.stdin.take().expect("a pipe");
        let answers = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut supervised = Self { world, _process: process, words, answers };
        supervised.run();
        supervised
    }

    fn say(&mut self, word: &str) -> String {
        writeln!(self.words, "{word}").expect("it listens");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("it answers");
        answer.trim().to_owned()
    }

    /// Starts the gateway and waits for it.
    fn run(&mut self) {
        let ready = self.world.lab.dir.join("ready");
        let _ = fs::remove_file(&ready);
        self.say("start");
        wait::expect("it is ready", || ready.exists());
        gateway::forward();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.world.lab.dir.join("gateway.log")).expect("readable")
    }

    fn forget_the_log(&self) {
        fs::write(self.world.lab.dir.join("gateway.log"), "").expect("writable");
    }

    fn notified(&self) -> Vec<String> {
        let text = fs::read_to_string(self.world.lab.dir.join("notified")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn was_told(&self, state: &str) -> usize {
        self.notified().iter().filter(|line| line.starts_with(state)).count()
    }
}

fn python(script: &str) -> Command {
    let mut command = GATEWAY.command("python3");
    command.arg(tools::repository().join("tests").join(script));
    command
}

/// Returns the usual policy of two workers, with some time for a drain.
fn usual() -> Config {
    gateway::usual_config().gateway("workers", 2).limit("drain_time", "20s")
}

/// The log's line once new connections wait.
const NOBODY_COMES: &str = "no other daemon serves yet";

fn ask(world: &World, to: SocketAddr) -> u16 {
    let mut tls = world.h1_from(AGENT, to, OPENAI.name).expect("it is not refused");
    tls.ask(get(&[TICKET])).expect("an answer").status.as_u16()
}

#[test]
fn the_service_manager_is_told_how_it_is() {
    sandboxed(|| {
        let mut it = Supervised::with(&usual().gateway("assert_every", "1s"));
        wait::expect("ready", || it.was_told("READY=1") == 1);
        assert_eq!(
            it.was_told("READY=1 STATUS=healthy: all of 4 secrets have a value"),
            1,
            "{:?}",
            it.notified()
        );
        wait::expect("signs of life", || it.was_told("WATCHDOG=1") >= 3);
        tell(&it.world, &["reload"], 0);
        wait::expect("a reload, and ready again", || {
            it.was_told("RELOADING=1 MONOTONIC_USEC=") == 1 && it.was_told("READY=1") == 2
        });
        let without = usual()
            .gateway("assert_every", "1s")
            .binding("OPS_OPENAI_KEY", |it| it.set("secret", "file:none"));
        gateway::install(&it.world.lab, &without);
        tell(&it.world, &["reload"], 0);
        wait::expect("what is missing, with the reload", || {
            it.was_told("READY=1 STATUS=degraded: operations has no value at") == 1
        });
        wait::expect("and for as long as it is", || {
            it.was_told("STATUS=degraded: operations has no value at") >= 2
        });
        it.say("term");
        assert_eq!(it.was_told("STOPPING=1"), 1, "{:?}", it.notified());
    });
}

#[test]
fn connections_that_arrive_during_a_restart_wait_and_are_served() {
    sandboxed(|| {
        let mut it = Supervised::with(&usual().limit("drain_time", "2s"));
        let all =
            "for each of two interfaces and families a listener of two workers, and DNS's two";
        assert_eq!(it.say("kept"), "16", "{all}");
        for how in ["term", "kill", "abrt", "term"] {
            it.forget_the_log();
            it.say(how);
            if how == "term" {
                assert_eq!(ask(&it.world, OPENAI.port(443)), 200, "by the one that goes");
                assert!(!it.log().contains("draining"), "it goes on for as long as it drains");
                wait::expect("it gives up", || it.log().contains(NOBODY_COMES));
            }
            it.world.origin.log().clear();
            let (waiting, world) = (12, &it.world);
            thread::scope(|scope| {
                let asking: Vec<_> = (0..waiting)
                    .map(|number| {
                        let port =
                            if number % 2 == 0 { OPENAI.port(443) } else { OPENAI.port6(443) };
                        scope.spawn(move || ask(world, port))
                    })
                    .collect();
                thread::sleep(Duration::from_millis(500));
                assert!(asking.iter().all(|one| !one.is_finished()), "they wait");
                world.origin.log().assert_untouched();
                // The lab's pipe is not for two threads.
                let ready = world.lab.dir.join("ready");
                let _ = fs::remove_file(&ready);
                writeln!(it.words, "start").expect("it listens");
                wait::expect("it is ready", || ready.exists());
                for one in asking {
                    assert_eq!(one.join().expect("no panic"), 200, "after {how}");
                }
            });
            let mut answer = String::new();
            it.answers.read_line(&mut answer).expect("it answers");
            gateway::forward();
            assert_eq!(it.say("kept"), "16", "none is kept twice");
        }
    });
}

/// The start of the next daemon interrupts nobody.
#[test]
fn a_daemon_serves_until_its_successor_does_and_not_beside() {
    sandboxed(|| {
        let mut it = Supervised::start();
        for _ in 0..3 {
            it.forget_the_log();
            it.say("term");
            for port in [OPENAI.port(443), OPENAI.port6(443)] {
                assert_eq!(ask(&it.world, port), 200, "nobody waits");
            }
            assert!(!it.log().contains("draining"));
            it.run();
            let log = it.log();
            assert!(
                log.contains("draining"),
                "it accepts nothing once the next one is ready: {log}"
            );
            for unheard in [NOBODY_COMES, "accepts connections still", "cannot tell a daemon"] {
                assert!(!log.contains(unheard), "{log}");
            }
            assert_eq!(ask(&it.world, OPENAI.port(443)), 200, "the next one serves");
        }
    });
}

/// This is a stop after which no other daemon follows.
#[test]
fn a_daemon_without_successor_drains_and_takes_nothing_new() {
    sandboxed(|| {
        let mut it = Supervised::with(&usual().limit("drain_time", "100s"));
        let request = get_path("/sse?n=1000&ms=100", &[TICKET]);
        let mut events = first_event(it.world.h1(OPENAI).expect("intercepted"), &request);
        it.say("int");
        wait::expect("it drains", || it.log().contains("draining"));
        assert!(!it.log().contains(NOBODY_COMES), "it waits for nobody: {}", it.log());
        // The manager keeps its copies of the sockets here, so this connection waits.
        let mut late = AGENT.connect(OPENAI.port(443)).expect("a socket that is kept");
        late.write_all(&client_hello(&Hello::h1(OPENAI.name))).expect("sent");
        late.set_read_timeout(Some(wait::QUIET)).expect("a socket");
        assert!(late.read(&mut [0]).is_err(), "it takes nothing new");
        assert!(events.read_some(4096).is_ok_and(|more| !more.is_empty()), "the stream goes on");
        kill_process(only_daemon(), Signal::TERM).expect("it is there");
        events.read_to_end();
    });
}

/// The signal is the one that `systemctl kill` sends after a stop.
#[test]
fn a_lone_draining_daemon_told_again_cuts_everybody() {
    sandboxed(|| {
        let mut it = Supervised::start();
        let request = get_path("/sse?n=1000&ms=100", &[TICKET]);
        let mut events = first_event(it.world.h1(OPENAI).expect("intercepted"), &request);
        it.say("term");
        let begun = Instant::now();
        kill_process(only_daemon(), Signal::TERM).expect("it is there");
        events.read_to_end();
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

/// Returns the process of the program that is left once its launcher has ended.
fn only_daemon() -> Pid {
    let is_ours = |number: &i32| {
        let name = fs::read_to_string(format!("/proc/{number}/comm"));
        name.is_ok_and(|name| name.trim() == "cloakroom")
    };
    let all = fs::read_dir("/proc").expect("readable").flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let ours: Vec<i32> = numbers.filter(is_ours).collect();
    assert_eq!(ours.len(), 1, "{ours:?}");
    Pid::from_raw(ours[0]).expect("a process")
}

/// Returns a daemon that serves, and a stream of an earlier one, which drains.
fn beside_one_that_drains() -> (Supervised, Tls) {
    let mut it = Supervised::start();
    let request = get_path("/sse?n=1000&ms=100", &[TICKET]);
    let mut events = first_event(it.world.h1(OPENAI).expect("intercepted"), &request);
    it.say("term");
    it.run();
    assert_eq!(ask(&it.world, OPENAI.port(443)), 200, "the next one serves");
    assert!(events.read_some(4096).is_ok_and(|more| !more.is_empty()), "the stream goes on");
    (it, events)
}

/// The orders go to the daemon that came after it.
#[test]
fn a_quarantine_cuts_off_in_a_draining_daemon_too() {
    sandboxed(|| {
        let (it, mut events) = beside_one_that_drains();
        let begun = Instant::now();
        tell(&it.world, &["quarantine", "research"], 0);
        events.read_to_end();
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_new_policy_cuts_in_a_draining_daemon_too() {
    sandboxed(|| {
        let (it, mut events) = beside_one_that_drains();
        tell(&it.world, &["reload"], 0);
        thread::sleep(2 * Duration::from_millis(500));
        assert!(events.read_some(4096).is_ok_and(|more| !more.is_empty()), "nothing is forbidden");
        gateway::install(&it.world.lab, &usual().api("openai", |it| it.less("paths", "/sse")));
        let begun = Instant::now();
        tell(&it.world, &["reload"], 0);
        events.read_to_end();
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_draining_daemon_blind_to_quarantine_cuts_everybody() {
    sandboxed(|| {
        let (it, mut events) = beside_one_that_drains();
        let begun = Instant::now();
        let marks = it.world.lab.dir.join("state/quarantine");
        std::fs::rename(&marks, it.world.lab.dir.join("away")).expect("it is there");
        std::fs::write(&marks, "no folder").expect("writable");
        events.read_to_end();
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_listener_that_no_worker_takes_gets_no_connection() {
    sandboxed(|| {
        let mut it = Supervised::with(&usual().gateway("workers", 4));
        it.say("term");
        gateway::install(&it.world.lab, &usual().gateway("workers", 1));
        it.run();
        for _ in 0..30 {
            assert_eq!(ask(&it.world, OPENAI.port(443)), 200);
        }
    });
}

#[test]
fn somebody_elses_listener_beside_the_kept_ones_is_no_start() {
    sandboxed(|| {
        let mut it = Supervised::start();
        it.say("term");
        let script = "import socket,time\n\
            s=socket.socket()\ns.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEPORT,1)\n\
            s.bind(('',15001))\ns.listen()\nprint('on',flush=True)\ntime.sleep(60)";
        let mut thief = GATEWAY
            .command("python3")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut on = String::new();
        let mut output = BufReader::new(thief.stdout.take().expect("a pipe"));
        output.read_line(&mut on).expect("it listens");
        assert_eq!(on, "on\n");
        let ready = it.world.lab.dir.join("ready");
        assert!(!ready.exists(), "nothing is carried");
        it.say("start");
        wait::expect("it says why", || it.world.gateway.stderr().contains("15001"));
        assert!(!ready.exists());
        thief.kill().expect("it ends");
        thief.wait().expect("it ends");
    });
}
