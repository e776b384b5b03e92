//! APIs over a WebSocket: OpenAI's Responses, as codex speaks it, Gemini's Live, and Slack's socket
//! mode. Each message of the client is a request, and each event of the answer a message.

use std::io;

use http::{HeaderValue, Request, StatusCode, header};
use hyper::{
    body::Incoming,
    upgrade::{self, OnUpgrade},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    answer::{Answer, empty},
    live, models,
    record::Log,
    services,
};
use crate::websocket::{CLOSE, Frame, PING, PONG, TEXT, accept, frame, read};

/// Returns whether the request asks for a WebSocket of an API that has one.
pub(super) fn is_asked(request: &Request<Incoming>) -> bool {
    let upgrade = request.headers().get(header::UPGRADE);
    let is_websocket = upgrade.is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"websocket"));
    is_websocket && Kind::of(request.uri().path()).is_some()
}

/// An API that has a WebSocket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Responses,
    Live,
    Slack,
}

impl Kind {
    fn of(path: &str) -> Option<Self> {
        match path {
            "/v1/responses" => Some(Self::Responses),
            "/link/" => Some(Self::Slack),
            _ => path.ends_with(".BidiGenerateContent").then_some(Self::Live),
        }
    }

    /// Returns what it says first.
    fn greeting(self) -> Vec<String> {
        match self {
            Self::Slack => services::slack_events(),
            Self::Responses | Self::Live => vec![],
        }
    }

    /// Returns its answer to a message.
    fn answer(self, asked: &Value) -> Vec<String> {
        match self {
            Self::Responses => models::response_messages(asked),
            Self::Live => models::live_messages(asked),
            // It is told that its event has arrived.
            Self::Slack => vec![],
        }
    }
}

/// Records the handshake, answers it, and talks in a task of its own.
pub(super) fn answer(mut request: Request<Incoming>, id: usize, log: &Log) -> Answer {
    let upgrade = upgrade::on(&mut request);
    let (head, _) = request.into_parts();
    let received = live::head(&head);
    let kind = Kind::of(received.uri.path()).expect("it was asked for");
    if kind == Kind::Responses && received.header("authorization").is_empty() {
        log.received(id, received.clone());
        return models::answer(&received);
    }
    let key = received.header(header::SEC_WEBSOCKET_KEY.as_str()).concat();
    log.received(id, received);
    tokio::spawn(converse(upgrade, kind));
    let mut answer = empty();
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = answer.headers_mut();
    fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(&accept(&key)).expect("base64");
    fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    answer
}

async fn converse(upgrade: OnUpgrade, kind: Kind) -> io::Result<()> {
    let mut stream = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
    for event in kind.greeting() {
        stream.write_all(&frame(false, true, TEXT, event.as_bytes())).await?;
    }
    let (mut unread, mut message) = (Vec::new(), Vec::new());
    while let Some(Frame { last, opcode, payload }) = next(&mut stream, &mut unread).await? {
        match opcode {
            CLOSE => return stream.write_all(&frame(false, true, CLOSE, &payload)).await,
            PING => stream.write_all(&frame(false, true, PONG, &payload)).await?,
            PONG => {}
            _ => message.extend(payload),
        }
        if last && opcode < CLOSE {
            let asked = serde_json::from_slice(&message).unwrap_or_default();
            message.clear();
            for event in kind.answer(&asked) {
                stream.write_all(&frame(false, true, TEXT, event.as_bytes())).await?;
            }
        }
    }
    Ok(())
}

/// Reads the next frame, or nothing at the end of the stream.
async fn next(
    stream: &mut (impl AsyncRead + Unpin),
    unread: &mut Vec<u8>,
) -> io::Result<Option<Frame>> {
    loop {
        let mut rest = unread.as_slice();
        if let Ok(frame) = read(&mut rest, true) {
            let used = unread.len() - rest.len();
            unread.drain(..used);
            return Ok(Some(frame));
        }
        if stream.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    }
}
