//! Answers that a test has written beforehand, piece by piece.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::Frame;

use super::{
    answer::{Answer, streamed, text},
    record::Received,
};

/// An answer: its type, further fields, whether its length is announced, its steps, and the
/// trailers after its body.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// Its status, if that is not 200.
    pub status: Option<u16>,
    /// The type of its content.
    pub kind: &'static str,
    /// Further fields of its head.
    pub fields: Vec<(String, Vec<u8>)>,
    /// Whether the length is announced, which leaves no room for trailers in HTTP/1.1.
    pub with_length: bool,
    /// The chunks that are sent, and their times.
    pub steps: Vec<Step>,
    /// Fields behind the body.
    pub trailers: Vec<(String, Vec<u8>)>,
}

/// Bytes that are sent at once, and the pause after them.
#[derive(Debug, Clone)]
pub struct Step {
    /// One chunk, or one frame.
    pub bytes: Bytes,
    /// The time until the next step.
    pub pause: Duration,
}

/// Keeps a script, and returns its path.
pub(super) fn add(script: Script) -> String {
    let mut all = SCRIPTS.lock().unwrap_or_else(PoisonError::into_inner);
    all.push(script);
    format!("/v1/scripted/{}", all.len() - 1)
}

pub(super) fn answer(request: &Received) -> Answer {
    let number = request.uri.path().rsplit('/').next().and_then(|number| number.parse().ok());
    let all = SCRIPTS.lock().unwrap_or_else(PoisonError::into_inner);
    let script: Option<Script> = number.and_then(|number: usize| all.get(number).cloned());
    script.map_or_else(|| text("no such script"), play)
}

fn play(script: Script) -> Answer {
    let length: usize = script.steps.iter().map(|step| step.bytes.len()).sum();
    let with_trailers = !script.trailers.is_empty();
    let trailers = fields(script.trailers);
    let named = trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
    let steps = script.steps;
    let mut answer = streamed(script.kind, move |frames| async move {
        for Step { bytes, pause } in steps {
            if frames.send(Ok(Frame::data(bytes))).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
        if with_trailers {
            let _ = frames.send(Ok(Frame::trailers(trailers))).await;
        }
    });
    if let Some(status) = script.status {
        *answer.status_mut() = StatusCode::from_u16(status).expect("a status");
    }
    let head = answer.headers_mut();
    // A fixed date has the same length in HPACK at any time.
    head.insert(header::DATE, HeaderValue::from_static("Mon, 01 Jan 2001 00:00:00 GMT"));
    head.extend(fields(script.fields));
    if script.with_length {
        head.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if with_trailers {
        head.insert(header::TRAILER, named.parse().expect("names of fields"));
    }
    answer
}

fn fields(list: impl IntoIterator<Item = (String, Vec<u8>)>) -> HeaderMap {
    let field = |(name, value): (String, Vec<u8>)| {
        let name: HeaderName = name.parse().expect("a field's name");
        (name, HeaderValue::from_bytes(&value).expect("a field's value"))
    };
    list.into_iter().map(field).collect()
}

/// The scripts. One test is one process.
static SCRIPTS: Mutex<Vec<Script>> = Mutex::new(Vec::new());
