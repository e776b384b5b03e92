//! Answers of the model APIs that are just enough for their own SDKs.

use bytes::Bytes;
use http::StatusCode;
use http_body::Frame;
use serde_json::{Value, json};

use super::{
    answer::{Answer, credential, streamed, whole},
    record::Received,
};

pub(super) fn answer(request: &Received) -> Answer {
    if credential(request).is_empty() {
        let mut answer = json_answer(&json!({"error": {
            "message": "no key", "type": "authentication_error", "code": "missing"}}));
        *answer.status_mut() = StatusCode::UNAUTHORIZED;
        return answer;
    }
    let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let stream = asked["stream"].as_bool().unwrap_or(false);
    match (request.uri.path(), stream) {
        ("/v1/messages", false) => json_answer(&message()),
        ("/v1/messages", true) => events(message_events()),
        ("/v1/chat/completions", false) => json_answer(&completion()),
        ("/v1/chat/completions", true) => events(completion_events()),
        _ => json_answer(&json!({"object": "list", "data": [
            {"id": "lab-1", "object": "model", "created": 0, "owned_by": "lab"}]})),
    }
}

/// Returns Telegram's description of a bot.
pub(super) fn bot() -> Answer {
    json_answer(&json!({"ok": true, "result": {
        "id": 1, "is_bot": true, "first_name": "Coat", "username": "coat_bot"}}))
}

/// Returns a geocoder's answer for any address.
pub(super) fn place() -> Answer {
    json_answer(&json!({"status": "OK", "results": [{"formatted_address": "the lab"}]}))
}

/// Returns an OAuth 2 server's answer to a client that it knows.
pub(super) fn token() -> Answer {
    json_answer(&json!({"access_token": "lab-token", "token_type": "Bearer", "expires_in": 300}))
}

/// Returns Vault's answer to a user that it knows.
pub(super) fn login() -> Answer {
    json_answer(&json!({"auth": {"client_token": "lab-token", "policies": ["default"]}}))
}

fn json_answer(value: &Value) -> Answer {
    whole("application/json", value.to_string())
}

fn events(events: Vec<String>) -> Answer {
    streamed("text/event-stream", |frames| async move {
        for event in events {
            if frames.send(Ok(Frame::data(Bytes::from(event)))).await.is_err() {
                break;
            }
        }
    })
}

fn completion() -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "lab-1",
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": null,
            "message": {"role": "assistant", "content": "Hello from the lab", "refusal": null}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5},
    })
}

fn completion_events() -> Vec<String> {
    let chunk = |delta: Value, end: Value| {
        let chunk = json!({
            "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "lab-1",
            "choices": [{"index": 0, "delta": delta, "finish_reason": end}],
        });
        format!("data: {chunk}\n\n")
    };
    vec![
        chunk(json!({"role": "assistant", "content": "Hello "}), Value::Null),
        chunk(json!({"content": "from the lab"}), Value::Null),
        chunk(json!({}), json!("stop")),
        "data: [DONE]\n\n".to_owned(),
    ]
}

fn message() -> Value {
    json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "lab-1",
        "content": [{"type": "text", "text": "Hello from the lab"}],
        "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {"input_tokens": 1, "output_tokens": 4},
    })
}

fn message_events() -> Vec<String> {
    let mut start = message();
    start["content"] = json!([]);
    start["stop_reason"] = Value::Null;
    let text = |text| {
        json!({"type": "content_block_delta", "index": 0,
        "delta": {"type": "text_delta", "text": text}})
    };
    [
        json!({"type": "message_start", "message": start}),
        json!({"type": "content_block_start", "index": 0,
            "content_block": {"type": "text", "text": ""}}),
        text("Hello "),
        text("from the lab"),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "usage": {"output_tokens": 4},
            "delta": {"stop_reason": "end_turn", "stop_sequence": null}}),
        json!({"type": "message_stop"}),
    ]
    .iter()
    .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or("")))
    .collect()
}
