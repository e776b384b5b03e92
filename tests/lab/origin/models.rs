//! Answers of the model APIs that are just enough for their own SDKs.

use bytes::Bytes;
use http::StatusCode;
use http_body::Frame;
use serde_json::{Value, json};

use super::{
    answer::{Answer, credential, streamed, whole},
    record::Received,
};

/// The text of every model's answer.
const TEXT: &str = "Hello from the lab";

/// Returns whether the request is one that [`answer`] answers.
pub(super) fn is_of_a_model(request: &Received) -> bool {
    is_known(request.uri.path()) || is_unknown_at_github(request)
}

/// Returns whether the request is one that GitHub's two APIs answer with 404 here: the Copilot CLI
/// asks them for much that it does without.
fn is_unknown_at_github(request: &Received) -> bool {
    let hosts = ["api.github.com", "api.githubcopilot.com"];
    hosts.contains(&request.authority().as_str()) && !is_known(request.uri.path())
}

fn is_known(path: &str) -> bool {
    let paths = [
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/models",
        "/v1/responses",
        "/chat/completions",
        "/models",
        "/copilot_internal/user",
    ];
    paths.contains(&path)
        || path.ends_with(":generateContent")
        || path.ends_with(":streamGenerateContent")
}

pub(super) fn answer(request: &Received) -> Answer {
    if credential(request).is_empty() && request.header("x-goog-api-key").is_empty() {
        let mut answer = json_answer(&json!({"error": {
            "message": "no key", "type": "authentication_error", "code": "missing"}}));
        *answer.status_mut() = StatusCode::UNAUTHORIZED;
        return answer;
    }
    if is_unknown_at_github(request) {
        let mut answer = json_answer(&json!({"message": "Not Found"}));
        *answer.status_mut() = StatusCode::NOT_FOUND;
        return answer;
    }
    let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let stream = asked["stream"].as_bool().unwrap_or(false);
    let path = request.uri.path();
    match (path, stream) {
        ("/v1/messages", false) => json_answer(&message()),
        ("/v1/messages", true) => events(message_events()),
        ("/v1/chat/completions" | "/chat/completions", false) => json_answer(&completion()),
        ("/v1/chat/completions" | "/chat/completions", true) => events(completion_events()),
        ("/v1/responses", false) => json_answer(&response()),
        ("/v1/responses", true) => events(response_events().iter().map(in_stream).collect()),
        ("/models", _) => json_answer(&copilot_models()),
        ("/copilot_internal/user", _) => json_answer(&copilot_user()),
        _ if path.ends_with(":generateContent") => json_answer(&generated(TEXT, Some("STOP"))),
        _ if path.ends_with(":streamGenerateContent") => events(generated_events()),
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
            "message": {"role": "assistant", "content": TEXT, "refusal": null}}],
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
        "content": [{"type": "text", "text": TEXT}],
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
    .map(in_stream)
    .collect()
}

/// Returns an answer of OpenAI's Responses API.
fn response() -> Value {
    let mut response = empty_response();
    response["status"] = json!("completed");
    response["output"] = json!([item()]);
    response["usage"] = json!({
        "input_tokens": 1, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 5});
    response
}

fn empty_response() -> Value {
    json!({
        "id": "resp_1", "object": "response", "created_at": 0, "status": "in_progress",
        "model": "lab-1", "error": null, "incomplete_details": null, "instructions": null,
        "metadata": {}, "parallel_tool_calls": true, "temperature": 1, "tool_choice": "auto",
        "tools": [], "top_p": 1, "output": [],
    })
}

fn item() -> Value {
    json!({"id": "msg_1", "type": "message", "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": TEXT, "annotations": []}]})
}

fn response_events() -> Vec<Value> {
    let mut begun = item();
    begun["status"] = json!("in_progress");
    begun["content"] = json!([]);
    let part = |text| json!({"type": "output_text", "text": text, "annotations": []});
    let delta = |text| {
        json!({"type": "response.output_text.delta", "item_id": "msg_1",
            "output_index": 0, "content_index": 0, "delta": text})
    };
    let events = [
        json!({"type": "response.created", "response": empty_response()}),
        json!({"type": "response.output_item.added", "output_index": 0, "item": begun}),
        json!({"type": "response.content_part.added", "item_id": "msg_1", "output_index": 0,
            "content_index": 0, "part": part("")}),
        delta("Hello "),
        delta("from the lab"),
        json!({"type": "response.output_text.done", "item_id": "msg_1", "output_index": 0,
            "content_index": 0, "text": TEXT}),
        json!({"type": "response.content_part.done", "item_id": "msg_1", "output_index": 0,
            "content_index": 0, "part": part(TEXT)}),
        json!({"type": "response.output_item.done", "output_index": 0, "item": item()}),
        json!({"type": "response.completed", "response": response()}),
    ];
    numbered(events)
}

/// Returns the messages with which a WebSocket answers one of the client's. One that asks for nothing
/// to be generated prepares the next.
pub(super) fn response_messages(asked: &Value) -> Vec<String> {
    let mut events = response_events();
    if asked["generate"] == json!(false) {
        let mut nothing = empty_response();
        nothing["status"] = json!("completed");
        nothing["usage"] = response()["usage"].clone();
        events = numbered([
            json!({"type": "response.created", "response": empty_response()}),
            json!({"type": "response.completed", "response": nothing}),
        ]);
    }
    events.iter().map(Value::to_string).collect()
}

/// Returns the messages with which Gemini's Live answers one of the client's.
pub(super) fn live_messages(asked: &Value) -> Vec<String> {
    let part = json!({"modelTurn": {"role": "model", "parts": [{"text": TEXT}]}});
    let answers = match asked.get("setup") {
        Some(_) => vec![json!({"setupComplete": {}})],
        None => vec![
            json!({"serverContent": part}),
            json!({"serverContent": {"generationComplete": true}}),
            json!({"serverContent": {"turnComplete": true}}),
        ],
    };
    answers.iter().map(Value::to_string).collect()
}

fn numbered(events: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let numbered = events.into_iter().enumerate().map(|(number, mut event)| {
        event["sequence_number"] = json!(number);
        event
    });
    numbered.collect()
}

/// Returns an event as a stream of server-sent events has it.
fn in_stream(event: &Value) -> String {
    format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or(""))
}

/// Returns an answer of Gemini's API, or a part of one.
fn generated(text: &str, end: Option<&str>) -> Value {
    let mut candidate =
        json!({"index": 0, "content": {"role": "model", "parts": [{"text": text}]}});
    if let Some(end) = end {
        candidate["finishReason"] = json!(end);
    }
    json!({
        "candidates": [candidate], "modelVersion": "lab-1", "responseId": "r1",
        "usageMetadata": {
            "promptTokenCount": 1, "candidatesTokenCount": 4, "totalTokenCount": 5},
    })
}

fn generated_events() -> Vec<String> {
    let parts = [generated("Hello ", None), generated("from the lab", Some("STOP"))];
    parts.map(|part| format!("data: {part}\n\n")).to_vec()
}

/// Returns GitHub's description of a token's user, for the Copilot CLI.
fn copilot_user() -> Value {
    json!({
        "login": "lab", "access_type_sku": "lab", "copilot_plan": "individual",
        "chat_enabled": true, "analytics_tracking_id": "1",
        "endpoints": {
            "api": "https://api.githubcopilot.com",
            "telemetry": "https://telemetry.githubcopilot.com"},
    })
}

fn copilot_models() -> Value {
    let model = |name| {
        json!({
            "id": name, "name": name, "object": "model", "vendor": "Lab", "version": name,
            "preview": false, "model_picker_enabled": true,
            "policy": {"state": "enabled", "terms": ""},
            "supported_endpoints": ["/chat/completions"],
            "billing": {"is_premium": false, "multiplier": 0},
            "capabilities": {
                "family": name, "type": "chat", "object": "model_capabilities",
                "tokenizer": "o200k_base",
                "limits": {
                    "max_context_window_tokens": 128_000, "max_output_tokens": 16_000,
                    "max_prompt_tokens": 100_000},
                "supports": {"streaming": true, "tool_calls": true, "parallel_tool_calls": true}},
        })
    };
    json!({"object": "list", "data": [model("gpt-4.1"), model("gpt-5-mini")]})
}
