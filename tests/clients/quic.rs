//! QUIC: a client of HTTP/3 learns at once that there is none, and goes on over TCP.

use lab::{
    client::{python, succeed},
    gateway::OPENAI_SECRET,
    net::OPENAI,
    sandboxed,
};

use super::{Family, Scene, Swap};

/// aioquic makes the first flight. The socket is connected, as in browsers and curl, so that the
/// kernel passes on the gateway's answer. Each attempt is timed by itself, from its first datagram
/// to the refusal, without the start of the interpreter and the making of the flight.
const QUIC_SCRIPT: &str = r#"
import socket, sys, time
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
address = (sys.argv[1], 443)
client = QuicConnection(configuration=QuicConfiguration(
    is_client=True, alpn_protocols=["h3"], server_name="api.openai.example"))
client.connect(address, now=time.time())
flight = [data for data, _ in client.datagrams_to_send(now=time.time())]
assert flight and len(flight[0]) >= 1200
times = []
for _ in range(5):
    with socket.socket(family, socket.SOCK_DGRAM) as quic:
        quic.settimeout(2)
        quic.connect(address)
        begun = time.monotonic()
        try:
            for data in flight:
                quic.send(data)
            quic.recv(9)
        except socket.timeout:
            raise SystemExit("silence, not a refusal")
        except OSError:
            times.append(time.monotonic() - begun)
        else:
            raise SystemExit("an answer")
print(*sorted(times))
"#;

fn falls_back(family: Family) {
    let scene = Scene::new(family);
    let file = scene.world.lab.write("quic.py", QUIC_SCRIPT);
    let address = family.address(OPENAI).to_string();
    let python = python().display().to_string();
    let measure = || {
        let times = succeed(scene.agent(&python).arg(&file).arg(&address));
        let times = times.split_whitespace().map(|time| time.parse::<f64>().expect("seconds"));
        times.collect::<Vec<_>>()
    };
    // On a busy machine a client may notice late. Then all of it is measured again; in the run that
    // counts, none is late.
    let mut runs: Vec<Vec<f64>> = Vec::new();
    let none_is_late = |times: &Vec<f64>| times.len() == 5 && times.iter().all(|time| *time < 0.3);
    while runs.len() < 3 && !runs.last().is_some_and(none_is_late) {
        runs.push(measure());
    }
    assert!(runs.last().is_some_and(none_is_late), "told after {runs:?} s");
    let script = "exec curl -sS --fail -H \"Authorization: Bearer $OPENAI_API_KEY\" \
                  https://api.openai.example/v1/models";
    succeed(scene.agent("sh").args(["-c", script]));
    scene.assert_swapped(&Swap::bearer(OPENAI, "OPENAI_API_KEY", OPENAI_SECRET), 1);
}

#[test]
fn a_quic_client_falls_back_at_once_over_ipv4() {
    sandboxed(|| falls_back(Family::V4));
}

#[test]
fn a_quic_client_falls_back_at_once_over_ipv6() {
    sandboxed(|| falls_back(Family::V6));
}
