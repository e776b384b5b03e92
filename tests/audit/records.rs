//! Nothing is done that cannot be recorded, and every connection leaves one record, however it
//! ends.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    audit::Record,
    client::{self, Hello, Tls},
    dns::Dns,
    gateway::{self, Gateway, usual_config},
    net::{AGENT, CDN, GATEWAY, OPENAI, PYPI},
    origin::Origin,
    sandboxed, wait,
};
use policy_builder::Config;

use crate::faults::{
    CHAT, ask, assert_closed, assert_one_line, assert_refused, connections, get, hello, open,
    records, reset,
};

#[test]
fn an_audit_that_cannot_be_written_stops_the_start() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let config = usual_config().gateway("audit", "/dev/full");
        let failed = Gateway::try_start(&lab, &config).err().expect("nothing can be recorded");
        assert_one_line(&failed, &["/dev/full", "audit"]);
        assert_closed(&origin);
    });
}

#[test]
fn a_full_disk_closes_the_gateway_and_loses_no_record() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let (disk, gateway) = on_a_disk_of(&lab, "64k", usual_config().gateway("audit_reserve", 0));
        let mut kept = open(&lab, AGENT, OPENAI).expect("a connection from before");
        assert_eq!(kept.ask(CHAT).expect("an answer").status, 200);

        let mut filler = fs::File::create(disk.join("filler")).expect("a file");
        while filler.write_all(&[0; 512]).is_ok() {}
        // The rest of the last page takes a few more records.
        let refused = || open(&lab, AGENT, OPENAI).and_then(|mut tls| tls.ask(CHAT)).is_err();
        wait::expect("connections are refused", refused);
        wait::expect("no record is under way", || {
            gateway.stderr().contains("the audit cannot be written")
        });
        assert_closed_for(&lab, "its file system is full");
        let before = origin.log().connections().len();
        for _ in 0..10 {
            assert!(refused(), "served without a record");
            open(&lab, AGENT, PYPI).map(drop).expect_err("nor spliced");
        }
        assert_refused(&kept.ask(CHAT).expect("an answer"), 503, "audit_unavailable");
        assert_eq!(origin.log().connections().len(), before, "something reached an origin");
        let forwarded = origin.log().requests().len();

        fs::remove_file(disk.join("filler")).expect("room again");
        drop(filler);
        wait::expect("it serves again", || !refused());
        drop(kept);
        origin.log().wait_all_closed();
        let now = origin.log().requests().len();
        assert!(now > forwarded);
        wait::expect("every request at the origin has its record", || {
            let records = records(&gateway, "request");
            records.iter().filter(|record| record["upstream_status"] == 200).count() == now
        });

        // The disk is full again; this time the audit's own file is removed.
        let mut filler = fs::File::create(disk.join("filler")).expect("a file");
        while filler.write_all(&[0; 512]).is_ok() {}
        wait::expect("connections are refused", refused);
        assert!(!lab.dir.join("ready").exists());
        fs::remove_file(disk.join("audit.jsonl")).expect("removed");
        wait::expect("it serves again, and nobody restarted it", || !refused());
        assert_open(&lab);
        assert!(!records(&gateway, "request").is_empty(), "into a file that has a name");
    });
}

#[test]
fn the_last_of_a_disk_is_for_open_connections() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let config = usual_config()
            .gateway("audit_reserve", "2MiB")
            .gateway("audit_rotate", "64KiB")
            .gateway("audit_keep", 1000);
        let (disk, gateway) = on_a_disk_of(&lab, "4m", config);
        let mut kept = open(&lab, AGENT, OPENAI).expect("a connection from before");
        assert_eq!(kept.ask(CHAT).expect("an answer").status, 200);

        // A byte too many.
        fs::write(disk.join("filler"), vec![0; (2 << 20) + 1]).expect("there is room");
        wait::expect("it is told", || gateway.stderr().contains("the audit cannot be written"));
        assert_closed_for(&lab, "audit_reserve keeps 2 MiB");
        let before = origin.log().connections().len();
        let refused = || open(&lab, AGENT, OPENAI).and_then(|mut tls| tls.ask(CHAT)).is_err();
        assert!(refused(), "served with the reserve");
        assert_refused(&kept.ask(CHAT).expect("an answer"), 503, "audit_unavailable");
        drop(kept);
        assert_eq!(origin.log().connections().len(), before, "something reached an origin");
        wait::expect("what was under way has its record", || {
            let served = |record: &Record| record["rule"] == "openai" && record["end"].is_string();
            records(&gateway, "connection").iter().any(served)
        });
        assert_eq!(reload(&lab).0, Some(1));

        fs::remove_file(disk.join("filler")).expect("room again");
        wait::expect("it serves again, and nobody told it to", || !refused());
        assert_open(&lab);
        assert_eq!(reload(&lab), (Some(0), "reloaded\n".into()));

        // So many records that the gateway and another program move the file aside several times.
        let mut kept = open(&lab, AGENT, OPENAI).expect("a connection");
        for round in 0..3 {
            for _ in 0..300 {
                assert_eq!(kept.ask(CHAT).expect("an answer").status, 200);
            }
            let aside = disk.join(format!("audit.jsonl.{round}"));
            fs::rename(disk.join("audit.jsonl"), aside).expect("moved");
            assert_eq!(reload(&lab).0, Some(0));
        }
        drop(kept);
        origin.log().wait_all_closed();
        let forwarded = origin.log().requests().len();
        wait::expect("every request at the origin has one record, in one of the files", || {
            let files = fs::read_dir(&disk).expect("a folder");
            let texts = files.map(|file| fs::read_to_string(file.expect("a file").path()));
            let text: String = texts.map(|text| text.expect("text")).collect();
            let records = text.lines().map(Record::read);
            let is_served = |record: &Record| record["upstream_status"] == 200;
            records.filter(is_served).count() == forwarded
        });
        assert!(disk.join("audit.jsonl.00000002").exists(), "the gateway moved it aside");
    });
}

/// Returns a gateway whose audit has a small disk to itself, in this test's own mount namespace.
fn on_a_disk_of(lab: &Lab, size: &str, config: Config) -> (PathBuf, Gateway) {
    let disk = lab.dir.join("disk");
    fs::create_dir(&disk).expect("a folder");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
        .arg(&disk)
        .status();
    assert!(mounted.is_ok_and(|status| status.success()));
    let gateway = Gateway::start(lab, &config.gateway("audit", "{dir}/disk/audit.jsonl"));
    std::os::unix::fs::symlink(disk.join("audit.jsonl"), lab.dir.join("audit.jsonl"))
        .expect("where the lab looks for records");
    (disk, gateway)
}

/// Asserts that all reports say that nothing is carried, and the reason.
#[track_caller]
fn assert_closed_for(lab: &Lab, why: &str) {
    let status = tell(lab, "status").1;
    assert!(status.contains("the audit cannot be written") && status.contains(why), "{status}");
    let (exit, said) = reload(lab);
    assert_eq!(exit, Some(1), "{said}");
    assert!(said.contains("reloaded, but the audit") && said.contains(why), "{said}");
    assert!(!lab.dir.join("ready").exists(), "the file says that it is ready");
}

#[track_caller]
fn assert_open(lab: &Lab) {
    let status = tell(lab, "status").1;
    assert!(status.starts_with("healthy\n"), "{status}");
    wait::expect("the file says that it is ready", || lab.dir.join("ready").exists());
}

fn reload(lab: &Lab) -> (Option<i32>, String) {
    tell(lab, "reload")
}

/// Returns the exit status and the gateway's answer to an order.
fn tell(lab: &Lab, order: &str) -> (Option<i32>, String) {
    let mut command = gateway::program();
    command.arg(order).arg("--control").arg(lab.dir.join("control/control.sock"));
    let output = command.output().expect("it starts");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn whatever_ends_a_connection_it_has_one_record() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let config = usual_config().limit("peek_time", "1s").limit("head_time", "1s");
        let mut gateway = Gateway::start(&lab, &config.limit("drain_time", "0s"));
        let trusting = hello(&lab, OPENAI);
        let hello_bytes = client::client_hello(&trusting);
        let mut held = Vec::new();
        let mut made = 0;
        let mut count = |more: usize| {
            made += more;
            made
        };

        drop(AGENT.connect(OPENAI.port(443)).expect("captured"));
        reset(AGENT.connect(OPENAI.port(443)).expect("captured"));
        connections(&gateway, count(2));

        // Silence, garbage, half a hello, and a hello without anything after it.
        held.push(AGENT.connect(OPENAI.port6(443)).expect("captured"));
        let mut garbage = AGENT.connect(OPENAI.port(443)).expect("captured");
        garbage.write_all(b"\0\0\0garbage").expect("sent");
        held.push(garbage);
        for part in [hello_bytes.len() / 2, hello_bytes.len()] {
            let mut stream = AGENT.connect(OPENAI.port(443)).expect("captured");
            stream.write_all(&hello_bytes[..part]).expect("sent");
            held.push(stream);
        }
        connections(&gateway, count(4));

        // A client that does not trust the leaf; a reset in the middle of a head, a body and an
        // answer.
        let distrusting = Hello::h1(OPENAI.name).trusting(lab.public.pem());
        Tls::open(AGENT, OPENAI.port(443), &distrusting).map(drop).expect_err("another root");
        let upload = "POST /v1/x HTTP/1.1\r\nHost: api.openai.example\r\n\
            Authorization: Bearer OPENAI_API_KEY\r\nContent-Length: 100\r\n\r\nhalf";
        let sse = get("/sse?n=1000&ms=20");
        for sent in ["", "POST /v1", upload, &sse] {
            let mut tls = open(&lab, AGENT, OPENAI).expect("a handshake");
            tls.send(sent).expect("sent");
            if sent == sse {
                tls.read_some(10).expect("an answer");
            }
            reset(tls.socket().try_clone().expect("a socket"));
        }
        connections(&gateway, count(5));
        wait::expect("the interrupted requests have their records", || {
            records(&gateway, "request").len() >= 2
        });
        origin.log().wait_all_closed();

        // This one is open when the daemon ends.
        let mut spliced = open(&lab, AGENT, PYPI).expect("spliced");
        spliced.send("GET /sse?n=1000&ms=50 HTTP/1.1\r\nHost: pypi.example\r\n\r\n").expect("sent");
        spliced.read_some(10).expect("an answer");
        let mut events = open(&lab, AGENT, OPENAI).expect("a handshake");
        events.send(&sse).expect("sent");
        events.read_some(10).expect("an answer");
        assert!(gateway.terminate(Duration::from_secs(10)).success());
        let all = connections(&gateway, count(2));
        let flows: BTreeSet<&str> =
            all.iter().filter_map(|record| record["flow"].as_str()).collect();
        assert_eq!(flows.len(), all.len(), "each flow has one name: {all:#?}");
        for record in &all {
            assert_ne!(record["reason"], "internal_error", "{record}");
            assert!(record["decision"].is_string() && record["time"].is_string(), "{record}");
        }
        let said: Vec<_> = all.iter().filter_map(|record| record["reason"].as_str()).collect();
        for reason in ["peek_timeout", "protocol_denied", "shutting_down"] {
            assert!(said.contains(&reason), "{reason} is not in {said:?}");
        }
    });
}

#[test]
fn an_agents_words_are_escaped_and_capped_in_the_audit() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let _dns = Dns::start();
        let gateway = Gateway::usual(&lab);
        // Names that would break a line, an escape or a terminal.
        let odd: [&'static [u8]; 3] = [b"http/1.1", b"\"\n\x1b[2J\\u0000\0", &[0xff; 255]];
        let hello = Hello { alpn: odd.to_vec(), ..Hello::h1(CDN.name) };
        drop(Tls::open(AGENT, CDN.port(443), &hello));
        let mut many = Hello::h1(CDN.name);
        many.alpn = vec![&[b'x'; 255]; 150];
        drop(Tls::open(AGENT, CDN.port(443), &many));

        // The name has the same length, with a quote, a line feed and an escape in it.
        let mut bytes = client::client_hello(&Hello::h1(CDN.name));
        let at = bytes.windows(CDN.name.len()).position(|at| at == CDN.name.as_bytes());
        let at = at.expect("the name is in the clear");
        bytes[at..at + 5].copy_from_slice(b"a\"\n\x1b\\");
        let mut stream = AGENT.connect(CDN.port(443)).expect("captured");
        stream.write_all(&bytes).expect("sent");

        let long = format!("/v1/{}%22%0a{{\"}}", "x".repeat(20_000));
        ask(&lab, &gateway, &get(&long));
        let method = format!(
            "{} /v1/models HTTP/1.1\r\nHost: api.openai.example\r\n\r\n",
            "M".repeat(5_000)
        );
        ask(&lab, &gateway, &method);
        connections(&gateway, 5);
        let text = gateway.audit.text();
        for line in text.lines() {
            assert!(line.len() < 3_000, "{} bytes: {line}", line.len());
            assert!(line.chars().all(|letter| !letter.is_control()), "{line}");
        }
        assert_eq!(text.lines().count(), gateway.audit.records().len());
    });
}

#[test]
fn an_unread_audit_lets_the_daemon_end() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let _dns = Dns::start();
        let pipe = lab.dir.join("pipe");
        GATEWAY.shell(&format!("mkfifo '{}'", pipe.display()));
        // The pipe is open, so that the daemon can write, but is never read.
        let _held = fs::File::options().read(true).write(true).open(&pipe).expect("a pipe");
        let config = usual_config()
            .gateway("audit", "{dir}/pipe")
            .limit("drain_time", "1s")
            .limit("agent_new_connections", 100_000);
        let mut gateway = Gateway::start(&lab, &config);
        for _ in 0..600 {
            drop(AGENT.connect(PYPI.port(443)).expect("accepted"));
        }
        let begun = Instant::now();
        gateway.terminate(Duration::from_secs(20));
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    });
}
