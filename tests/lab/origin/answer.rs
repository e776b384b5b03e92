//! The origins' answers; the path decides, unless a test has written a site for the host
//! ([`sites`]).
//!
//! | path | answer |
//! |---|---|
//! | `/v1/chat/completions`, `/v1/responses`, `/v1/messages`, `/v1/models`, `*:generateContent` | like the real APIs, also streamed; the second also over a WebSocket ([`sockets`]) |
//! | `/api/chat.postMessage`, `/v1/customers` and others, by their hosts | see [`services`] |
//! | `/copilot_internal/user`, `/models`, `/chat/completions` | Copilot's |
//! | `/reflect` | the credential in a header field and in the body |
//! | `/reflect-split` | the credential in the body, one byte a chunk |
//! | `/v1/pieces?bytes=N&ms=M` | the request's body, N bytes at a time, with a pause after each |
//! | `/v1/scripted/N` | what the test has written beforehand: [`super::Script`] |
//! | `/v1/coded`, `/v1/coded-events` | see [`coded`] |
//! | `/sse?n=5&ms=100` | events with a pause between them |
//! | `/gated?n=5` | events, each when the test asks for it: [`super::Origin::release`] |
//! | `/big?bytes=N` | N bytes |
//! | `/pattern?bytes=N` | N bytes of [`pattern`], which shows what is lost or out of order |
//! | `/slow?ms=N` | an answer after a while |
//! | `/cut` | half of the body it announced |
//! | `/trailers` | a body, then trailer fields |
//! | `/redirect?to=URL` | 302 |
//! | `/status/N` | that status |
//! | `/*.git/*` | a git repository; Basic is required |
//! | `/@lab%2f*` | an npm package |
//! | `/simple/*` | an index of Python packages; Basic is required |
//! | `/early`, `/duplex`, `/tardy` | see [`live`] |
//! | `/token`, `/oauth/token`, `/mine`, `/lfs/*`, `/v2/*` and others | see [`minted`] |
//! | anything else | the request as it arrived, in JSON |

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc};

use super::{
    coded, git, live, minted, models,
    record::{Log, Received},
    scripted, services, sites, sockets,
};

/// A body that is made while it is sent.
pub(super) struct Script(mpsc::Receiver<io::Result<Frame<Bytes>>>);

/// The other end of a [`Script`].
pub(super) type Frames = mpsc::Sender<io::Result<Frame<Bytes>>>;

pub(super) type Answer = Response<Script>;

/// Records the request once it is complete, then answers it.
pub(super) async fn answer(
    request: Request<Incoming>,
    id: usize,
    log: Log,
) -> Result<Answer, io::Error> {
    if sockets::is_asked(&request) {
        return Ok(sockets::answer(request, id, &log));
    }
    let (head, body) = request.into_parts();
    if live::is_live(head.uri.path()) {
        log.received(id, live::head(&head));
        return live::answer(&head, body).await;
    }
    let body = body.collect().await.map_err(io::Error::other)?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let received = Received {
        version: head.version,
        method: head.method,
        uri: head.uri,
        headers: head.headers,
        body: body.to_bytes(),
        trailers,
    };
    log.received(id, received.clone());
    let mut answer = route(&received).await;
    if received.method == Method::HEAD {
        without_body(&mut answer);
    }
    Ok(answer)
}

/// Removes a body that the answer may not have: hyper does so in HTTP/1 only, and clients of HTTP/2
/// reject it.
pub(super) fn without_body(answer: &mut Answer) {
    *answer.body_mut() = empty().into_body();
}

/// Returns an answer without a field or a body.
pub(super) fn empty() -> Answer {
    Response::new(Script(mpsc::channel(1).1))
}

async fn route(request: &Received) -> Answer {
    let by_host = sites::answer(request).or_else(|| services::answer(request));
    if let Some(answer) = by_host.or_else(|| minted::answer(request)) {
        return answer;
    }
    let path = request.uri.path();
    match path {
        _ if models::is_of_a_model(request) => models::answer(request),
        "/reflect" => reflect(request),
        "/v1/mirror" => mirror(request),
        "/v1/oauth/token" => models::token(),
        "/v1/auth/userpass/login/agent" => models::login(),
        "/reflect-split" => split(credential(request)),
        "/v1/pieces" => pieces(request),
        _ if path.starts_with("/v1/scripted/") => scripted::answer(request),
        "/v1/coded" => coded::answer(request),
        "/v1/coded-events" => coded::events(request),
        "/sse" => events(request),
        "/gated" => gated(number(request, "n").unwrap_or(5)),
        "/big" => big(number(request, "bytes").unwrap_or(1 << 20)),
        "/pattern" => patterned(number(request, "bytes").unwrap_or(1 << 20)),
        "/slow" => {
            tokio::time::sleep(pause(request)).await;
            text("slow")
        }
        "/cut" => cut(),
        "/trailers" => with_trailers(),
        "/redirect" => redirect(request),
        "/@lab%2fcoat" => package(),
        "/v1/maps/api/geocode/json" => models::place(),
        _ if path.starts_with("/v1/bot") => models::bot(),
        _ if path.starts_with("/simple/") => index(request),
        _ if path.starts_with("/status/") => status(path),
        _ if path.contains(".git/") => git::answer(request),
        _ => echo(request),
    }
}

/// Returns a short answer in clear text.
pub(super) fn text(body: impl Into<Bytes>) -> Answer {
    whole("text/plain", body)
}

/// Returns a complete answer of a known length.
pub(super) fn whole(kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let body = body.into();
    let length = body.len();
    let mut answer = streamed(kind, |frames| async move {
        let _ = frames.send(Ok(Frame::data(body))).await;
    });
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    answer
}

/// Returns an answer that `write` writes bit by bit. Errors of sending mean that nobody reads any
/// more.
pub(super) fn streamed<F>(kind: &'static str, write: impl FnOnce(Frames) -> F) -> Answer
where
    F: Future<Output = ()> + Send + 'static,
{
    let (frames, body) = mpsc::channel(1);
    tokio::spawn(write(frames));
    let mut answer = Response::new(Script(body));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// Returns the credential in the usual fields of the request.
pub(super) fn credential(request: &Received) -> String {
    let fields = ["authorization", "x-api-key"];
    fields.iter().flat_map(|name| request.header(name)).collect::<Vec<_>>().join(" ")
}

fn echo(request: &Received) -> Answer {
    let headers: Vec<_> = request
        .headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    let seen = json!({
        "method": request.method.as_str(),
        "authority": request.authority(),
        "path": request.uri.path_and_query().map_or("", |path| path.as_str()),
        "headers": headers,
        "body": String::from_utf8_lossy(&request.body),
    });
    whole("application/json", seen.to_string())
}

fn reflect(request: &Received) -> Answer {
    let credential = credential(request);
    let mut answer = text(format!("you sent {credential}, twice: {credential}"));
    if let Ok(value) = HeaderValue::from_str(&credential) {
        answer.headers_mut().insert("x-reflected", value);
    }
    answer
}

/// Returns the request as it came, with nothing escaped.
fn mirror(request: &Received) -> Answer {
    let target = request.uri.path_and_query().map_or("", |target| target.as_str());
    let mut seen = format!("{} {target}\n", request.method).into_bytes();
    for (name, value) in &request.headers {
        seen.extend_from_slice(name.as_str().as_bytes());
        seen.extend_from_slice(&[b": ", value.as_bytes(), b"\n"].concat());
    }
    seen.extend_from_slice(b"\n");
    seen.extend_from_slice(&request.body);
    text(seen)
}

fn split(credential: String) -> Answer {
    streamed("text/plain", |frames| async move {
        for byte in format!("you sent {credential}.").into_bytes() {
            let frame = Frame::data(Bytes::copy_from_slice(&[byte]));
            if frames.send(Ok(frame)).await.is_err() {
                break;
            }
        }
    })
}

fn pieces(request: &Received) -> Answer {
    let (body, pause) = (request.body.clone(), pause(request));
    let bytes = number(request, "bytes").and_then(|bytes| usize::try_from(bytes).ok());
    let bytes = bytes.unwrap_or(64).max(1);
    streamed("application/octet-stream", move |frames| async move {
        for begin in (0..body.len()).step_by(bytes) {
            let piece = body.slice(begin..body.len().min(begin + bytes));
            if frames.send(Ok(Frame::data(piece))).await.is_err() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
    })
}

fn events(request: &Received) -> Answer {
    let (count, pause) = (number(request, "n").unwrap_or(5), pause(request));
    streamed("text/event-stream", move |frames| async move {
        for event in 0..count {
            let line = format!("data: event {event}\n\n");
            if frames.send(Ok(Frame::data(line.into()))).await.is_err() {
                break;
            }
            tokio::time::sleep(pause).await;
        }
    })
}

fn gated(count: u64) -> Answer {
    streamed("text/event-stream", move |frames| async move {
        for event in 0..count {
            tokio::select! {
                permit = GATE.acquire() => permit.expect("it is never closed").forget(),
                () = frames.closed() => {
                    ABANDONED.fetch_add(1, Relaxed);
                    return;
                }
            }
            let line = format!("data: event {event}\n\n");
            if frames.send(Ok(Frame::data(line.into()))).await.is_err() {
                break;
            }
        }
    })
}

fn patterned(bytes: u64) -> Answer {
    let mut answer = streamed("application/octet-stream", move |frames| async move {
        for block in blocks(bytes) {
            if frames.send(Ok(Frame::data(block.into()))).await.is_err() {
                break;
            }
        }
    });
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    answer
}

/// Returns `bytes` bytes, of which no 16 are like any other 16.
pub fn pattern(bytes: u64) -> Vec<u8> {
    blocks(bytes).flatten().collect()
}

/// Returns the pattern, in blocks of 64 KiB and a rest.
fn blocks(bytes: u64) -> impl Iterator<Item = Vec<u8>> {
    const BLOCK: u64 = 64 * 1024;
    (0..bytes.div_ceil(BLOCK)).map(move |block| {
        let words = block * BLOCK / 8..(block + 1) * BLOCK / 8;
        // Multiplication by an odd number: every word differs from every other.
        let mut content: Vec<u8> = words
            .flat_map(|word| (word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
            .collect();
        content.truncate(usize::try_from((bytes - block * BLOCK).min(BLOCK)).unwrap_or(0));
        content
    })
}

fn big(bytes: u64) -> Answer {
    let mut answer = streamed("application/octet-stream", move |frames| async move {
        let block = Bytes::from(vec![b'x'; 64 * 1024]);
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        while left > 0 {
            let now = left.min(block.len());
            if frames.send(Ok(Frame::data(block.slice(..now)))).await.is_err() {
                break;
            }
            left -= now;
        }
    });
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    answer
}

fn cut() -> Answer {
    let mut answer = streamed("text/plain", |frames| async move {
        let _ = frames.send(Ok(Frame::data("half".into()))).await;
        let _ = frames.send(Err(io::Error::other("cut as asked"))).await;
    });
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("8"));
    answer
}

fn with_trailers() -> Answer {
    let mut answer = streamed("text/plain", |frames| async move {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", HeaderValue::from_static("abc"));
        let _ = frames.send(Ok(Frame::data("body".into()))).await;
        let _ = frames.send(Ok(Frame::trailers(trailers))).await;
    });
    answer.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-checksum"));
    answer
}

fn redirect(request: &Received) -> Answer {
    let mut answer = text("");
    *answer.status_mut() = StatusCode::FOUND;
    if let Some(Ok(to)) = parameter(&request.uri, "to").map(HeaderValue::from_str) {
        answer.headers_mut().insert(header::LOCATION, to);
    }
    answer
}

/// Returns the one page that `pip index versions` reads (PEP 503).
fn index(request: &Received) -> Answer {
    if request.header("authorization").is_empty() {
        return git::unauthorized();
    }
    whole(
        "text/html",
        "<!DOCTYPE html><a href=\"coat-1.0-py3-none-any.whl\">coat-1.0-py3-none-any.whl</a>",
    )
}

/// Returns the document of a package that `npm view` reads.
fn package() -> Answer {
    let version = json!({"name": "@lab/coat", "version": "1.0.0",
        "dist": {"tarball": "https://git.example/@lab/coat/-/coat-1.0.0.tgz", "shasum": ""}});
    let package = json!({"name": "@lab/coat", "dist-tags": {"latest": "1.0.0"},
        "versions": {"1.0.0": version}});
    whole("application/json", package.to_string())
}

fn status(path: &str) -> Answer {
    let code = path.trim_start_matches("/status/").parse::<u16>().ok();
    let code = code.and_then(|code| StatusCode::from_u16(code).ok());
    let code = code.unwrap_or(StatusCode::BAD_REQUEST);
    let mut answer = text("as you asked");
    if code == StatusCode::NO_CONTENT || code == StatusCode::NOT_MODIFIED {
        without_body(&mut answer);
        answer.headers_mut().remove(header::CONTENT_LENGTH);
    }
    *answer.status_mut() = code;
    answer
}

/// The gate for which `/gated` waits. One test is one process, so one gate is enough.
pub(super) static GATE: Semaphore = Semaphore::const_new(0);

/// Answers of `/gated` that were given up.
pub(super) static ABANDONED: AtomicUsize = AtomicUsize::new(0);

pub(super) fn pause(request: &Received) -> Duration {
    Duration::from_millis(number(request, "ms").unwrap_or(100))
}

pub(super) fn number(request: &Received, name: &str) -> Option<u64> {
    number_in(&request.uri, name)
}

/// Returns a number in the query of a target.
pub(super) fn number_in(uri: &Uri, name: &str) -> Option<u64> {
    parameter(uri, name)?.parse().ok()
}

pub(super) fn parameter<'r>(uri: &'r Uri, name: &str) -> Option<&'r str> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(cx)
    }
}
