//! APIs of services that are no models, just enough for their own SDKs.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, header};
use http_body::Frame;
use serde_json::{Value, json};

use super::{
    answer::{Answer, parameter, streamed, whole},
    record::Received,
};

/// Returns the answer, if the request is one of these with a credential.
pub(super) fn answer(request: &Received) -> Option<Answer> {
    let path = request.uri.path();
    let answer = match (request.authority().as_str(), request.method.as_str(), path) {
        ("slack.com", "POST", "/api/chat.postMessage") => slack(),
        ("slack.com", "POST", "/api/apps.connections.open") => {
            json!({"ok": true, "url": "wss://wss-primary.slack.com/link/?ticket=lab&app_id=A1"})
        }
        ("api.stripe.com", "POST", "/v1/customers") => customer(),
        ("api.stripe.com", "GET", "/v1/customers") => {
            json!({"object": "list", "url": path, "has_more": false, "data": [customer()]})
        }
        ("api.twilio.com", "POST", path) if path.ends_with("/Messages.json") => sms(),
        ("api.github.com", "GET", "/user") => json!({"login": "lab", "id": 1, "url": ""}),
        ("api.github.com", "GET", "/repos/lab/coat") => {
            json!({"id": 1, "name": "coat", "full_name": "lab/coat",
                "url": "https://api.github.com/repos/lab/coat"})
        }
        ("api.github.com", "POST", "/repos/lab/coat/issues") => json!({"id": 1, "number": 7}),
        ("kube.example", "GET", "/api/v1/namespaces/default/pods") => return Some(pods(request)),
        ("api.openai.com", "POST", "/v1/files") => file(request),
        _ => return None,
    };
    if request.header("authorization").is_empty() {
        let mut refused = whole("application/json", "{}");
        *refused.status_mut() = StatusCode::UNAUTHORIZED;
        return Some(refused);
    }
    let mut answer = whole("application/json", answer.to_string());
    if path.ends_with("/issues") || path.ends_with("/Messages.json") {
        *answer.status_mut() = StatusCode::CREATED;
    }
    Some(answer)
}

fn slack() -> Value {
    json!({"ok": true, "channel": "C1", "ts": "1.1",
        "message": {"type": "message", "text": "Hello from the lab", "user": "U1", "ts": "1.1"}})
}

/// Returns the first two messages of a WebSocket of Slack's.
pub(super) fn slack_events() -> Vec<String> {
    let event = json!({"type": "message", "text": "Hello from the lab", "channel": "C1"});
    let hello = json!({"type": "hello", "num_connections": 1, "connection_info": {"app_id": "A1"}});
    let envelope = json!({"type": "events_api", "envelope_id": "1",
        "accepts_response_payload": false, "payload": {"type": "event_callback", "event": event}});
    vec![hello.to_string(), envelope.to_string()]
}

fn customer() -> Value {
    json!({"id": "cus_lab", "object": "customer", "created": 0, "livemode": false})
}

fn sms() -> Value {
    json!({"sid": "SM00000000000000000000000000000001", "status": "queued", "body": "Hello"})
}

/// Returns OpenAI's description of a file that was uploaded as a part of a form.
fn file(request: &Received) -> Value {
    let kind = request.header(header::CONTENT_TYPE.as_str()).concat();
    let boundary = kind.split_once("boundary=").map_or("", |(_, boundary)| boundary);
    let parts = String::from_utf8_lossy(&request.body);
    let part = parts.split(boundary).find(|part| part.contains("filename=")).unwrap_or_default();
    let content = part.split_once("\r\n\r\n").map_or("", |(_, content)| content);
    json!({"id": "file-lab", "object": "file", "created_at": 0, "filename": "coat.txt",
        "bytes": content.trim_end_matches("\r\n--").len(), "purpose": "assistants",
        "status": "processed"})
}

/// Returns the pods of a cluster, or, to one who watches, the events of one pod.
fn pods(request: &Received) -> Answer {
    let pod = |version: u32| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
            "name": "coat", "namespace": "default", "resourceVersion": version.to_string()}})
    };
    if !matches!(parameter(&request.uri, "watch"), Some("True" | "true")) {
        let list = json!({"apiVersion": "v1", "kind": "PodList",
            "metadata": {"resourceVersion": "1"}, "items": [pod(1)]});
        return whole("application/json", list.to_string());
    }
    streamed("application/json", move |frames| async move {
        for (version, kind) in [(2, "ADDED"), (3, "MODIFIED"), (4, "DELETED")] {
            let event = json!({"type": kind, "object": pod(version)});
            let line = Bytes::from(format!("{event}\n"));
            if frames.send(Ok(Frame::data(line))).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // A watch lasts until its time is over.
        tokio::time::sleep(Duration::from_secs(4)).await;
    })
}
