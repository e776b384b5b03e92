//! Model APIs over a WebSocket: OpenAI's Responses, as codex speaks it, and Gemini's Live. Each
//! message of the client is a request, and each event of the answer a message.

use std::io;

use http::{HeaderValue, Request, StatusCode, header};
use hyper::{
    body::Incoming,
    upgrade::{self, OnUpgrade},
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    answer::{Answer, empty},
    live, models,
    record::Log,
};
use crate::websocket::{CLOSE, Frame, PING, PONG, TEXT, accept, frame, read};

/// Returns whether the request asks for a WebSocket of an API that has one.
pub(super) fn is_asked(request: &Request<Incoming>) -> bool {
    let upgrade = request.headers().get(header::UPGRADE);
    let is_websocket = upgrade.is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let path = request.uri().path();
    is_websocket && (path == "/v1/responses" || path.ends_with(LIVE))
}

/// How the path of Gemini's Live ends.
const LIVE: &str = ".GenerativeService.BidiGenerateContent";

/// Records the handshake, answers it, and talks in a task of its own.
pub(super) fn answer(mut request: Request<Incoming>, id: usize, log: &Log) -> Answer {
    let upgrade = upgrade::on(&mut request);
    let (head, _) = request.into_parts();
    let received = live::head(&head);
    let is_live = received.uri.path().ends_with(LIVE);
    if !is_live && received.header("authorization").is_empty() {
        log.received(id, received.clone());
        return models::answer(&received);
    }
    let key = received.header(header::SEC_WEBSOCKET_KEY.as_str()).concat();
    log.received(id, received);
    tokio::spawn(converse(upgrade, is_live));
    let mut answer = empty();
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = answer.headers_mut();
    fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::from_str(&accept(&key)).expect("base64");
    fields.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    answer
}

async fn converse(upgrade: OnUpgrade, is_live: bool) -> io::Result<()> {
    let mut stream = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
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
            let events = match is_live {
                true => models::live_messages(&asked),
                false => models::response_messages(&asked),
            };
            for event in events {
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
