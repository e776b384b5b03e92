//! Answers that begin before the request has ended. Only the head of such a request is recorded.
//!
//! | path | answer |
//! |---|---|
//! | `/early` | 413 at once; the body is read and thrown away |
//! | `/duplex`, `/v1/duplex` | every part of the body as it arrives |
//! | `/tardy?ms=N` | 200 after the body, which is not read for a while |

use std::{io, time::Duration};

use http::{HeaderMap, StatusCode, request};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{
    answer::{Answer, number_in, streamed, text},
    record::Received,
};

/// Returns whether this module answers a path.
pub(super) fn is_live(path: &str) -> bool {
    matches!(path, "/early" | "/duplex" | "/v1/duplex" | "/tardy")
}

/// Returns the record of such a request.
pub(super) fn head(head: &request::Parts) -> Received {
    Received {
        version: head.version,
        method: head.method.clone(),
        uri: head.uri.clone(),
        headers: head.headers.clone(),
        body: bytes::Bytes::new(),
        trailers: HeaderMap::new(),
    }
}

pub(super) async fn answer(head: &request::Parts, body: Incoming) -> io::Result<Answer> {
    match head.uri.path() {
        "/early" => Ok(early(body)),
        "/duplex" | "/v1/duplex" => Ok(duplex(body)),
        _ => tardy(head, body).await,
    }
}

fn early(body: Incoming) -> Answer {
    // Closing the connection with unread bytes would reset it and lose the answer.
    tokio::spawn(read(body));
    let mut answer = text("too large");
    *answer.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
    answer
}

fn duplex(mut body: Incoming) -> Answer {
    streamed("application/octet-stream", |frames| async move {
        while let Some(Ok(frame)) = body.frame().await {
            if frames.send(Ok(frame)).await.is_err() {
                break;
            }
        }
    })
}

async fn tardy(head: &request::Parts, body: Incoming) -> io::Result<Answer> {
    let pause = number_in(&head.uri, "ms").unwrap_or(1000);
    tokio::time::sleep(Duration::from_millis(pause)).await;
    let length = read(body).await.map_err(io::Error::other)?;
    Ok(text(format!("{length} bytes")))
}

async fn read(mut body: Incoming) -> hyper::Result<usize> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, bytes::Bytes::len);
    }
    Ok(length)
}
