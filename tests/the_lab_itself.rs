//! The lab works. A test that finds nothing at an origin proves something only if the lab would
//! show what arrives there.

use std::process::Command;

use lab::{
    Lab,
    client::{self, H2, Hello, Tls},
    dns::{Answer, Dns},
    net::{AGENT, AGENT2, ATTACKER, GATEWAY, GIT, INTERNET, OPENAI, OTHER, sysctl},
    origin::Origin,
    pki::Flaw,
    sandbox, sandboxed,
    vault::{self, Vault},
    wait,
};

#[test]
fn without_packet_rules_agents_reach_every_origin() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        for (agent, to) in [
            (AGENT, OPENAI.port(443)),
            (AGENT, OTHER.port6(443)),
            (AGENT2, ATTACKER.port(443)),
            (AGENT2, ATTACKER.port6(80)),
        ] {
            agent.connect(to).unwrap_or_else(|error| panic!("{agent:?} to {to}: {error}"));
        }
        wait::expect("four connections, though they brought no byte", || {
            origin.log().connections().len() == 4
        });
    });
}

/// A job that a shell starts with `&` ignores some, for example.
#[test]
fn a_test_has_the_usual_signals_whatever_its_parent_ignores() {
    if !sandbox::inside() && std::env::var_os(IGNORED).is_none() {
        let mut again = Command::new("sh");
        let own = std::env::current_exe().expect("the test knows where it is");
        again.args(["-c", "trap '' INT QUIT; exec \"$@\"", "sh"]).arg(own);
        let name = "the_lab_itself::a_test_has_the_usual_signals_whatever_its_parent_ignores";
        client::succeed(again.args(["--exact", name]).env(IGNORED, "1"));
        return;
    }
    if !sandbox::inside() {
        assert_eq!(ignored() & INT_AND_QUIT, INT_AND_QUIT, "the question is a fair one");
    }
    sandboxed(|| assert_eq!(ignored() & INT_AND_QUIT, 0));
}

/// Returns the signals that this process ignores (`proc_pid_status(5)`).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
    u64::from_str_radix(mask.expect("a mask"), 16).expect("hexadecimal")
}

/// A variable that is set where this test was started a second time.
const IGNORED: &str = "CLOAKROOM_TEST_SIGNALS_IGNORED";
/// SIGINT is 2, SIGQUIT 3.
const INT_AND_QUIT: u64 = 1 << 1 | 1 << 2;

#[test]
fn without_forwarding_agents_reach_nothing() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        GATEWAY.enter(|| {
            sysctl("ipv4/ip_forward", "0");
            sysctl("ipv6/conf/all/forwarding", "0");
        });
        AGENT.connect(OPENAI.port(443)).expect_err("nothing forwards");
        AGENT.connect(OPENAI.port6(443)).expect_err("nothing forwards");
        origin.log().assert_untouched();
    });
}

#[test]
fn an_origin_writes_down_the_exact_bytes_of_http_1() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let request = "POST /v1/x HTTP/1.1\r\nhOsT: api.openai.example\r\n\
            X-Odd:   spaced \r\nContent-Length: 4\r\n\r\nbody";
        let hello = Hello::h1(OPENAI.name).trusting(lab.public.pem());
        let mut tls = Tls::open(AGENT, OPENAI.port(443), &hello).expect("a connection");
        let answer = tls.ask(request).expect("an answer");
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("\"body\":\"body\""), "{}", answer.text());
        drop(tls);
        origin.log().wait_all_closed();
        let connections = origin.log().connections();
        assert_eq!(connections.len(), 1);
        let seen = &connections[0];
        assert_eq!(seen.bytes, request.as_bytes());
        assert_eq!(seen.sni.as_deref(), Some(OPENAI.name));
        assert_eq!(seen.alpn.as_deref(), Some("http/1.1"));
        assert_eq!(seen.local, OPENAI.port(443));
        assert_eq!(seen.requests[0].header("x-odd"), ["spaced"]);
    });
}

#[test]
fn an_origin_records_bytes_of_malformed_http_1_too() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let mut tls =
            Tls::open(AGENT, OPENAI.port(443), &Hello::h1(OPENAI.name)).expect("a connection");
        tls.send("NOT HTTP AT ALL\r\n\r\n").expect("sent");
        tls.read_to_end();
        drop(tls);
        origin.log().wait_all_closed();
        assert!(origin.log().holds("NOT HTTP AT ALL"));
        assert!(origin.log().connections()[0].failure.is_some());
    });
}

#[test]
fn an_origin_writes_down_every_request_of_http_2() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let hello = Hello::h2(OPENAI.name).trusting(lab.public.pem());
        let mut h2 = H2::open(AGENT, OPENAI.port6(443), &hello).expect("a connection");
        for authority in ["api.openai.example", "attacker.example"] {
            let request = http::Request::post(format!("https://{authority}/v1/x"))
                .header("authorization", "Bearer one")
                .body(())
                .expect("a request");
            assert_eq!(h2.ask(request, "body").expect("an answer").status, 200);
        }
        let requests = origin.log().wait_requests(2);
        assert_eq!(requests[0].authority(), "api.openai.example");
        assert_eq!(requests[1].authority(), "attacker.example");
        assert_eq!(requests[1].header("authorization"), ["Bearer one"]);
        assert_eq!(requests[1].body, "body");
        assert_eq!(origin.log().connections()[0].alpn.as_deref(), Some("h2"));
    });
}

#[test]
fn a_bad_certificate_is_noticed_by_a_client_that_looks() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let hello = Hello::h1(OPENAI.name).trusting(lab.public.pem());
        let flaws =
            [Flaw::WrongName, Flaw::Expired, Flaw::NotYet, Flaw::SelfSigned, Flaw::UnknownIssuer];
        for flaw in flaws {
            origin.flaw(&lab, OPENAI.name, flaw);
            let outcome = Tls::open(AGENT, OPENAI.port(443), &hello);
            assert!(outcome.is_err(), "{flaw:?} was believed");
        }
        origin.flaw(&lab, OPENAI.name, Flaw::None);
        Tls::open(AGENT, OPENAI.port(443), &hello).expect("a good certificate again");
    });
}

#[test]
fn unmodified_curl_and_git_work_when_nothing_is_between() {
    sandboxed(|| {
        let lab = Lab::new();
        lab.write("agents.pem", lab.public.pem());
        let origin = Origin::start(&lab);
        origin.repository("coat", "hello from the repository");
        for version in ["--http1.1", "--http2"] {
            let mut curl = client::agent(&lab, AGENT, "curl");
            curl.args(["-sS", version, "https://api.openai.example/anything"]);
            assert!(client::succeed(&mut curl).contains("/anything"));
        }
        let mut git = client::agent(&lab, AGENT, "git");
        git.args(["clone", "-q", "https://me:GIT_TOKEN@git.example/coat.git", "/run/lab/clone"]);
        client::succeed(&mut git);
        let readme = std::fs::read_to_string("/run/lab/clone/README").expect("it was cloned");
        assert_eq!(readme, "hello from the repository");
        let first = &origin.log().connections()[2].requests[0];
        assert_eq!(first.authority(), GIT.name);
        assert!(first.header("authorization").is_empty(), "git waits for a 401");
    });
}

#[test]
fn the_resolver_answers_as_told_and_remembers() {
    sandboxed(|| {
        let lab = Lab::new();
        let dns = Dns::start();
        lab.write("resolv.conf", "nameserver 203.0.113.53\n");
        lab.names(&[]);
        let ask = || GATEWAY.shell("getent ahostsv4 api.openai.example | cut -d' ' -f1 | sort -u");
        assert_eq!(ask().trim(), "198.51.100.10");
        dns.set(OPENAI.name, &["127.0.0.1".parse().expect("an address")]);
        assert_eq!(ask().trim(), "127.0.0.1");
        let turns = [OPENAI.v4(), ATTACKER.v4()].map(|address| vec![address.into()]);
        dns.script("turn.example", Answer::Alternating(turns.to_vec()));
        let turn = || GATEWAY.shell("getent ahostsv4 turn.example | cut -d' ' -f1 | sort -u");
        assert_eq!((turn().trim(), turn().trim()), ("198.51.100.10", "198.51.100.66"));
        assert!(dns.was_asked("turn.example") && !dns.was_asked("other.example"));
    });
}

#[test]
fn a_capture_sees_what_an_agent_sends() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let capture = lab.capture(AGENT);
        let mut stream = AGENT.connect(OTHER.port(80)).expect("a connection");
        std::io::Write::write_all(&mut stream, b"GET /in-the-clear HTTP/1.1\r\n\r\n")
            .expect("sent");
        assert!(capture.holds("/in-the-clear"));
    });
}

#[test]
fn a_real_vault_gives_the_gateway_what_its_policy_allows() {
    sandboxed(|| {
        let lab = Lab::new();
        let mut vault = Vault::start(&lab);
        let token = vault.gateway_token();
        let read = |token: &str| vault.try_cli(&["kv", "get", "-mount=kv", "agents/openai"], token);
        assert!(!read(&token).status.success(), "the gateway itself reads nothing");
        let child = ["token", "create", "-role=cloakroom-research"];
        let child = vault.try_cli(&child, &token);
        let child = vault::token(&String::from_utf8_lossy(&child.stdout));
        let read = || read(&child);
        assert!(String::from_utf8_lossy(&read().stdout).contains(lab::gateway::OPENAI_SECRET));
        vault.forbid();
        assert!(!read().status.success());
        vault.allow();
        assert!(read().status.success());
        vault.seal();
        assert!(!read().status.success());
        vault.unseal();
        vault.stop();
        INTERNET.connect((lab::net::VAULT, 8200).into()).expect_err("it is stopped");
        vault.resume();
        vault.cli(&["kv", "get", "-mount=kv", "agents/openai"]);
    });
}

#[test]
fn nothing_outlives_its_sandbox() {
    let marker = format!("cloakroom-lab-marker-{}", std::process::id());
    let script = "ip netns add x && (sh -c 'sleep 300; :' \"$0\" &) && ps ax | grep -c \"$0\"";
    let output = lab::sandbox::command("sh".as_ref())
        .args(["-c", script, &marker])
        .output()
        .expect("the sandbox starts");
    assert!(output.status.success(), "{output:?}");
    let left = std::fs::read_dir("/proc").expect("proc").filter_map(Result::ok).any(|process| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.windows(marker.len()).any(|at| at == marker.as_bytes())
    });
    assert!(!left, "a process outlived its sandbox");
    assert!(!std::path::Path::new("/run/netns/x").exists(), "a namespace outlived its sandbox");
}
