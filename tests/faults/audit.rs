//! Nothing is done that cannot be recorded, and whatever ends a connection leaves one record.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    client::{self, Hello, Tls},
    dns::Dns,
    gateway::{Gateway, usual_config},
    net::{AGENT, CDN, GATEWAY, OPENAI, PYPI},
    origin::Origin,
    sandboxed, wait,
};

use super::{
    CHAT, ask, assert_closed, assert_one_line, assert_refused, connections, get, hello, open,
    records, reset,
};

#[test]
fn an_audit_that_cannot_be_written_stops_the_start() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let config = usual_config().replace("{dir}/audit.jsonl", "/dev/full");
        let failed = Gateway::try_start(&lab, &config).err().expect("nothing can be recorded");
        assert_one_line(&failed, &["/dev/full", "audit"]);
        assert_closed(&origin);
    });
}

#[test]
fn a_disk_that_fills_up_closes_the_gateway_and_loses_no_record() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let disk = lab.dir.join("disk");
        fs::create_dir(&disk).expect("a folder");
        // Small, and in this test's own mount namespace.
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(&disk)
            .status();
        assert!(mounted.is_ok_and(|status| status.success()));
        let config = usual_config().replace("{dir}/audit.jsonl", "{dir}/disk/audit.jsonl");
        let gateway = Gateway::start(&lab, &config);
        std::os::unix::fs::symlink(disk.join("audit.jsonl"), lab.dir.join("audit.jsonl"))
            .expect("where the lab looks for records");
        let mut kept = open(&lab, AGENT, OPENAI).expect("a connection from before");
        assert_eq!(kept.ask(CHAT).expect("an answer").status, 200);

        let mut filler = fs::File::create(disk.join("filler")).expect("a file");
        while filler.write_all(&[0; 512]).is_ok() {}
        // What is left of the last page takes a few records more.
        let refused = || open(&lab, AGENT, OPENAI).and_then(|mut tls| tls.ask(CHAT)).is_err();
        wait::expect("connections are refused", refused);
        wait::expect("no record is under way", || {
            gateway.stderr().contains("the audit cannot be written")
        });
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
    });
}

#[test]
fn whatever_ends_a_connection_it_has_one_record() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let limits = "\n[limits]\npeek_time = \"1s\"\nhead_time = \"1s\"\ndrain_time = \"0s\"\n";
        let mut gateway = Gateway::start(&lab, &(usual_config() + limits));
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

        // Silence, garbage, half a hello, and a hello after which nothing comes.
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

        // A client that does not trust the leaf; a reset in the middle of a head, a body, an answer.
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

        // Open when the daemon ends.
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
fn what_an_agent_sends_is_escaped_and_capped_in_the_audit() {
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

        // A name of the same length with a quote, a line feed and an escape in it.
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
fn an_audit_that_nobody_reads_does_not_keep_the_daemon_from_ending() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let _dns = Dns::start();
        let pipe = lab.dir.join("pipe");
        GATEWAY.shell(&format!("mkfifo '{}'", pipe.display()));
        // Open, so that the daemon can write, and never read.
        let _held = fs::File::options().read(true).write(true).open(&pipe).expect("a pipe");
        let config = usual_config().replace("{dir}/audit.jsonl", "{dir}/pipe");
        let mut gateway = Gateway::start(
            &lab,
            &(config + "\n[limits]\ndrain_time = \"1s\"\nagent_new_connections = 100000\n"),
        );
        for _ in 0..600 {
            drop(AGENT.connect(PYPI.port(443)).expect("accepted"));
        }
        let begun = Instant::now();
        gateway.terminate(Duration::from_secs(20));
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    });
}
