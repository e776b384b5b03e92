//! Unmodified clients from their indexes: the key stands in a field, in a subprotocol, or in the
//! query.

use lab::{
    client::{agent, python, succeed, tool},
    gateway::OPENAI_SECRET,
    net::AGENT,
    sandboxed,
    websocket::{PING, TEXT},
};

use super::{Live, api::field};

const OPENAI_SCRIPT: &str = r#"
import json, openai
client = openai.OpenAI(api_key="LIVE_API_KEY", base_url="https://live.example/v1", max_retries=0)
with client.realtime.connect(model="lab-1") as connection:
    connection.send({"type": "response.create"})
    event = json.loads(connection.recv_bytes())
assert event == {"type": "response.create"}, event
"#;

const WEBSOCKETS_SCRIPT: &str = r#"
import asyncio, websockets

async def main():
    fields = {"Authorization": "Bearer LIVE_API_KEY"}
    async with websockets.connect("wss://live.example/v1/echo", additional_headers=fields) as socket:
        for message in ("Hello, é", b"\0\1\2", "", "x" * 200_000):
            await socket.send(message)
            assert await socket.recv() == message
        await socket.send(iter(["in ", "three ", "parts"]))
        assert await socket.recv() == "in three parts"
        await (await socket.ping())
    assert (socket.close_code, socket.protocol.extensions) == (1000, []), socket.close_code

asyncio.run(main())
"#;

/// The class of browsers, in which a page can set no other field.
const BROWSER_SCRIPT: &str = r#"
const offers = ["realtime", "openai-insecure-api-key.LIVE_API_KEY", "openai-beta.realtime-v1"];
const socket = new WebSocket("wss://live.example/v1/realtime?model=lab-1", offers);
const fail = (what) => { console.error(what); process.exit(1); };
socket.onopen = () => socket.send("Hello");
socket.onerror = () => fail("no connection");
socket.onmessage = (event) => {
    if (event.data !== "Hello" || socket.protocol !== "realtime") fail(event.data + socket.protocol);
    socket.onclose = (event) => process.exit(event.code === 1000 ? 0 : 2);
    socket.close(1000);
};
"#;

/// Runs a program, and returns the head of the one request that arrived, in which the key stands
/// once.
#[track_caller]
fn run(live: &Live, program: &std::path::Path, arguments: &[&str]) -> String {
    let mut command = agent(&live.world.lab, AGENT, program.to_str().expect("a path"));
    command.env("NODE_EXTRA_CA_CERTS", live.world.lab.dir.join("agents.pem"));
    succeed(command.args(arguments));
    let heads = live.api.heads();
    assert_eq!(heads.len(), 1, "{heads:?}");
    assert_eq!(heads[0].matches(OPENAI_SECRET).count(), 1, "{}", heads[0]);
    let request = live.world.gateway.audit.wait_for(|record| record.is("request"));
    assert_eq!((&request["upstream_status"], &request["close_code"]), (&101.into(), &1000.into()));
    heads[0].clone()
}

#[test]
fn openais_realtime_client_sends_its_key_in_a_field() {
    sandboxed(|| {
        let live = Live::start();
        let head = run(&live, &python(), &["-c", OPENAI_SCRIPT]);
        assert!(head.starts_with("GET /v1/realtime?model=lab-1 HTTP/1.1"), "{head}");
        assert_eq!(field(&head, "authorization"), Some(&*format!("Bearer {OPENAI_SECRET}")));
        live.ends_well();
    });
}

#[test]
fn pythons_websockets_works_with_messages_of_every_kind() {
    sandboxed(|| {
        let live = Live::start();
        run(&live, &python(), &["-c", WEBSOCKETS_SCRIPT]);
        let frames = live.api.frames();
        assert!(frames.iter().any(|frame| frame.opcode == PING));
        assert!(frames.iter().any(|frame| frame.opcode == TEXT && !frame.last));
        live.ends_well();
    });
}

#[test]
fn the_class_of_browsers_sends_its_key_in_a_subprotocol() {
    sandboxed(|| {
        let live = Live::start();
        let head = run(&live, &tool("node"), &["-e", BROWSER_SCRIPT]);
        let offers = field(&head, "sec-websocket-protocol").expect("offers");
        assert!(offers.contains(&format!("openai-insecure-api-key.{OPENAI_SECRET}")), "{offers}");
        assert!(offers.starts_with("realtime"), "{offers}");
        live.ends_well();
    });
}
