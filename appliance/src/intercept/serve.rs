//! The one task that drives both sides of an intercepted connection.

use std::{
    convert::Infallible,
    error::Error as _,
    future::{poll_fn, ready},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Request;
use hyper::{body::Incoming, client::conn as client, server::conn as server, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_rustls::{client::TlsStream as ClientTls, server::TlsStream as ServerTls};

use super::{
    body::RequestBody,
    counted::Counted,
    deferred::{Deferred, Flusher},
    exchange::{self, Connection, Sender},
    exchanges::Violation,
    framing::TrailerRule,
    guard::Guard,
    head_watch::{HeadVerdict, HeadWatch, Heads},
    idle_timer::{Ended, IdleTimer},
    read_ahead::ReadAhead,
    tasks::{Spawner, Tasks},
    websocket::{self, Switch, WebSocketEnds},
};
use crate::{
    audit::Record,
    limits::H2Windows,
    phase::Phases,
    policy::Limits,
    reason::Reason,
    refuse::{self, Refusal},
};

/// The agent's side, once TLS is up.
pub(super) type AgentTls = ServerTls<Counted>;

/// Both sides of a connection whose upstream has been verified.
pub(super) struct Sides {
    /// The agent's.
    pub(super) agent: AgentTls,
    /// The upstream's.
    pub(super) upstream: ClientTls<ReadAhead<TcpStream>>,
    /// Whether the agent's is reset where it is dropped.
    pub(super) reset: Arc<AtomicBool>,
}

/// Carries an HTTP/1.1 connection to its end.
pub(super) async fn h1(
    connection: Arc<Connection>,
    Sides { agent, upstream, reset }: Sides,
    limits: &Limits,
    phases: Phases,
    record: &mut Record,
) {
    reset.store(true, Relaxed);
    let mut builder = client::http1::Builder::new();
    builder.max_headers(limits.head_fields).max_buf_size(RESPONSE_BUFFER);
    let Ok((sender, upstream)) = builder.handshake(TokioIo::new(upstream)).await else {
        return record.ended("upstream_closed");
    };
    let switch = Arc::<Switch>::default();
    let sender = Arc::new(Sender::H1(tokio::sync::Mutex::new(sender), Arc::clone(&switch)));
    let trailers: Arc<dyn TrailerRule + Send + Sync> = Arc::clone(&connection) as _;
    let guard = Guard::new(agent, limits, trailers, Arc::clone(&connection.exchanges));
    let service = service_fn({
        let connection = Arc::clone(&connection);
        move |request: Request<Incoming>| -> BoxFuture<'static, _> {
            // Not in the future: it runs later, and the reader must know of it at once.
            let active = connection.exchanges.begin();
            Box::pin(exchange::serve(Arc::clone(&connection), Arc::clone(&sender), request, active))
        }
    });
    let mut agent = server::http1::Builder::new()
        .max_headers(limits.head_fields)
        .max_buf_size(limits.head_bytes + REQUEST_BUFFER)
        .serve_connection(TokioIo::new(guard), service);
    let (mut upstream, mut left) = (Some(upstream), None);
    let traffic = Arc::clone(record.traffic());
    let mut idle_timer = IdleTimer::new(limits, phases, move || traffic.total());
    let ended = poll_fn(|cx| {
        if idle_timer.poll_drain(cx) {
            Pin::new(&mut agent).graceful_shutdown();
        }
        if poll_left(&mut upstream, &mut left, &switch, cx) {
            // Nothing can be sent any more. hyper finishes the answer under way, then closes.
            Pin::new(&mut agent).graceful_shutdown();
        }
        match agent.poll_without_shutdown(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ended::Closed),
            Poll::Ready(Err(error)) => {
                if error.is_parse() {
                    connection.exchanges.break_rule(MALFORMED_HEAD);
                }
                Poll::Ready(Ended::Broken)
            }
            Poll::Pending => idle_timer.poll_idle(cx),
        }
    })
    .await;
    let parts = agent.into_parts();
    let guard = parts.io.into_inner();
    let left = left.or_else(|| upstream.map(left_of));
    if let (Ended::Closed, Some(begun), Some(upstream)) = (ended, switch.take(), left) {
        let (agent, held) = guard.into_parts();
        // Frames that came before the answer, if they are any.
        let early = [parts.read_buf, held.freeze()].concat().into();
        let ends = WebSocketEnds { agent: (agent, early), upstream, reset };
        let (ended, cut) = websocket::carry(ends, begun, idle_timer).await;
        record.ended(ended.as_str());
        return cut.into_iter().for_each(|reason| record.cut(reason));
    }
    // What stands behind a handshake is no request, so that nothing answers it.
    let violation = connection.exchanges.violation().filter(|_| !switch.is_asked());
    let heard = finish_h1(&connection, guard, (ended, violation), limits, record).await;
    reset.store(matches!(ended, Ended::Idle) && !heard, Relaxed);
}

/// Says why a stream was ended where nobody is in the middle of an answer, and closes it. Whether
/// the agent heard it.
async fn finish_h1(
    connection: &Arc<Connection>,
    guard: Guard<AgentTls>,
    (ended, violation): (Ended, Option<Violation>),
    limits: &Limits,
    record: &mut Record,
) -> bool {
    record.ended(ended.as_str());
    let mut agent = guard.into_inner();
    let last_word = async {
        if let Some(Violation { reason, at_head }) = violation {
            record.cut(reason);
            if at_head && connection.exchanges.is_empty() {
                let reason = note_violation(connection, reason);
                agent.write_all(&refuse::answer_bytes(reason, connection.flow)).await?;
                agent.shutdown().await?;
                return drain(&mut agent).await;
            }
        }
        agent.shutdown().await?;
        linger(&mut agent).await
    };
    // An agent that does not read its last word does not keep the connection.
    matches!(timeout(limits.head_time.min(LAST_WORD_TIME), last_word).await, Ok(Ok(())))
}

/// Reads on for a while: a socket that is closed with bytes unread is reset, and an agent that is
/// in the middle of a large body would lose the answer that it was just given.
async fn linger(agent: &mut AgentTls) -> std::io::Result<()> {
    let mut sink = [0; 4096];
    let mut left = LINGER_BYTES;
    while left > 0 {
        match agent.read(&mut sink).await? {
            0 => break,
            bytes => left = left.saturating_sub(bytes),
        }
    }
    Ok(())
}

/// Closing a socket with unread bytes resets it, and an answer that is still on its way would be
/// lost with it: what the agent goes on sending is read for a while and thrown away.
async fn drain(agent: &mut AgentTls) -> std::io::Result<()> {
    let mut sink = [0; 1024];
    let until = Instant::now() + DRAIN_TIME;
    for _ in 0..DRAIN_READS {
        match tokio::time::timeout_at(until, agent.read(&mut sink)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0)) | Err(_) => break,
            Ok(Err(error)) => return Err(error),
        }
    }
    Ok(())
}

/// A message that never became a request has its record all the same.
fn note_violation(connection: &Arc<Connection>, reason: Reason) -> Reason {
    match connection.begin(connection.exchanges.begin()) {
        Ok(trace) => {
            trace.refused(reason);
            reason
        }
        Err(unavailable) => unavailable,
    }
}

/// Carries an HTTP/2 connection to its end.
pub(super) async fn h2(
    connection: Arc<Connection>,
    Sides { agent, upstream, reset }: Sides,
    limits: &Limits,
    phases: Phases,
    record: &mut Record,
) {
    reset.store(true, Relaxed);
    let windows = connection.taken.windows();
    let bounds = H2Bounds::of(&windows);
    let spawner = Spawner::default();
    let mut tasks = Tasks::new(spawner.clone());
    let mut builder = client::http2::Builder::new(spawner.clone());
    builder
        .initial_stream_window_size(bounds.stream)
        .initial_connection_window_size(bounds.connection)
        .max_send_buf_size(bounds.send_buffer)
        .max_header_list_size(header_list_bytes(limits));
    let (upstream, to_upstream) = Deferred::new(upstream);
    let mut handshake = pin!(builder.handshake(TokioIo::new(upstream)));
    let handshake = poll_fn(|cx| {
        tasks.poll(cx);
        handshake.as_mut().poll(cx)
    });
    let Ok(Ok((sender, upstream))) = timeout(limits.dial_time, handshake).await else {
        return record.ended("upstream_closed");
    };
    let sender = Arc::new(Sender::H2(sender));
    let service = service_fn({
        let connection = Arc::clone(&connection);
        move |request: Request<Incoming>| {
            let active = connection.exchanges.begin();
            exchange::serve(Arc::clone(&connection), Arc::clone(&sender), request, active)
        }
    });
    let mut builder = server::http2::Builder::new(spawner);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(header_list_bytes(limits).saturating_add(BEYOND_THE_LIMIT))
        .initial_stream_window_size(bounds.stream)
        .initial_connection_window_size(bounds.connection)
        .max_send_buf_size(bounds.send_buffer);
    let (agent, to_agent) = Deferred::new(agent);
    let (agent, heads) = HeadWatch::new(agent, limits.head_time, Arc::clone(&connection.exchanges));
    let mut agent = pin!(builder.serve_connection(TokioIo::new(agent), service));
    let mut upstream = pin!(Some(upstream));
    let exchanges = Arc::clone(&connection.exchanges);
    let mut idle_timer = IdleTimer::new(limits, phases, move || exchanges.progress());
    let mut last_word: Option<Pin<Box<Sleep>>> = None;
    let (ended, heard) = poll_fn(|cx| {
        if idle_timer.poll_drain(cx) {
            heads.close();
            agent.as_mut().graceful_shutdown();
        }
        if last_word.is_none() && idle_timer.poll_idle(cx).is_ready() {
            heads.close();
            agent.as_mut().graceful_shutdown();
            last_word = Some(Box::pin(sleep(LAST_WORD_TIME)));
        }
        if poll_ended(upstream.as_mut(), cx) {
            heads.close();
            agent.as_mut().graceful_shutdown();
        }
        let polled = poll_by_heads(agent.as_mut(), (&connection, &heads), cx);
        tasks.poll(cx);
        // Everything that may write has had its turn.
        to_upstream.poll(cx);
        to_agent.poll(cx);
        match (polled, &mut last_word) {
            (Poll::Ready(_), Some(_)) => Poll::Ready((Ended::Idle, true)),
            (Poll::Ready(Ok(())), None) => Poll::Ready((Ended::Closed, true)),
            (Poll::Ready(Err(_)), None) => Poll::Ready((Ended::Broken, true)),
            (Poll::Pending, Some(timer)) => timer.as_mut().poll(cx).map(|()| (Ended::Idle, false)),
            (Poll::Pending, None) => Poll::Pending,
        }
    })
    .await;
    record.ended(ended.as_str());
    match connection.exchanges.violation() {
        Some(violation) => {
            let heard = finish_h2(&connection, violation, &to_agent, record).await;
            reset.store(!heard, Relaxed);
        }
        None => reset.store(!heard, Relaxed),
    }
}

/// Gives the library its turn, one head after the other. A head that it refuses by itself has its
/// record all the same; where it ends the connection over one, that broke a rule.
fn poll_by_heads<F>(
    mut agent: Pin<&mut F>,
    (connection, heads): (&Arc<Connection>, &Heads),
    cx: &mut Context<'_>,
) -> Poll<hyper::Result<()>>
where
    F: Future<Output = hyper::Result<()>>,
{
    let exchanges = &connection.exchanges;
    loop {
        let polled = agent.as_mut().poll(cx);
        let verdict = heads.settle(exchanges.begun());
        let head = matches!(verdict, Some(HeadVerdict::Refused(_))) || heads.under_way();
        let ended = match &polled {
            Poll::Ready(Err(error)) => refused_by_library(error, head),
            _ => None,
        };
        if let Some(HeadVerdict::Refused(reason)) = verdict {
            let reason = ended.unwrap_or(reason);
            note_violation(connection, reason);
            if polled.is_ready() {
                exchanges.break_rule(Violation { reason, at_head: false });
            }
        }
        if let Some(reason) = ended {
            exchanges.break_rule(Violation { reason, at_head: head });
        }
        if verdict.is_none() || polled.is_ready() {
            return polled;
        }
    }
}

/// Why the library ended an HTTP/2 connection, over a head or not; nothing where it was the agent
/// that left.
fn refused_by_library(error: &hyper::Error, head: bool) -> Option<Reason> {
    let error = error.source()?.downcast_ref::<h2::Error>()?;
    let refused = error.is_go_away() && error.is_library();
    refused.then(|| match error.reason() {
        Some(h2::Reason::ENHANCE_YOUR_CALM) if head => Reason::HeaderLimit,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Reason::RateLimit,
        _ => Reason::HttpMalformed,
    })
}

/// Records why a connection was ended, and says it to the agent: the library says less, or nothing.
/// Whether the agent was told.
async fn finish_h2(
    connection: &Arc<Connection>,
    Violation { reason, at_head }: Violation,
    to_agent: &Flusher<AgentTls>,
    record: &mut Record,
) -> bool {
    record.cut(reason);
    if at_head {
        note_violation(connection, reason);
    }
    let goodbye = refuse::goaway(reason);
    matches!(timeout(LAST_WORD_TIME, to_agent.say(&goodbye)).await, Ok(Ok(())))
}

/// Answers every request with the same refusal, for a connection that has no upstream.
pub(super) async fn refusal(
    connection: Arc<Connection>,
    agent: AgentTls,
    refusal: Refusal,
    limits: &Limits,
    record: &mut Record,
) {
    let h2 = agent.get_ref().1.alpn_protocol() == Some(b"h2");
    let served = async {
        if h2 {
            refusal_h2(connection, agent, refusal, limits).await
        } else {
            refusal_h1(connection, agent, refusal, limits, record).await
        }
    };
    // Whether the agent stayed to hear it changes nothing.
    let _ = timeout(limits.head_time, served).await;
}

async fn refusal_h1(
    connection: Arc<Connection>,
    agent: AgentTls,
    refusal: Refusal,
    limits: &Limits,
    record: &mut Record,
) {
    let trailers: Arc<dyn TrailerRule + Send + Sync> = Arc::clone(&connection) as _;
    let guard = Guard::new(agent, limits, trailers, Arc::clone(&connection.exchanges));
    let service = service_fn(|request: Request<Incoming>| {
        let answer = exchange::serve_refusal(&connection, &request, refusal);
        ready(Ok::<_, Infallible>(answer))
    });
    let mut builder = server::http1::Builder::new();
    builder.keep_alive(false).max_headers(limits.head_fields);
    builder.max_buf_size(limits.head_bytes + REQUEST_BUFFER);
    let mut agent = builder.serve_connection(TokioIo::new(guard), service);
    let ended = match poll_fn(|cx| agent.poll_without_shutdown(cx)).await {
        Ok(()) => Ended::Closed,
        Err(_) => Ended::Broken,
    };
    let guard = agent.into_parts().io.into_inner();
    let violation = connection.exchanges.violation();
    finish_h1(&connection, guard, (ended, violation), limits, record).await;
}

async fn refusal_h2(
    connection: Arc<Connection>,
    agent: AgentTls,
    refusal: Refusal,
    limits: &Limits,
) {
    let spawner = Spawner::default();
    let mut tasks = Tasks::new(spawner.clone());
    let mut builder = server::http2::Builder::new(spawner);
    builder.max_header_list_size(header_list_bytes(limits));
    let (agent, heads) = HeadWatch::new(agent, limits.head_time, Arc::clone(&connection.exchanges));
    let service = service_fn(|request: Request<Incoming>| {
        let answer = exchange::serve_refusal(&connection, &request, refusal);
        ready(Ok::<_, Infallible>(answer))
    });
    let mut agent = pin!(builder.serve_connection(TokioIo::new(agent), service));
    // The record has its reason already.
    let _ = poll_fn(|cx| {
        let polled = poll_by_heads(agent.as_mut(), (&connection, &heads), cx);
        tasks.poll(cx);
        polled
    })
    .await;
}

/// An HTTP/1.1 connection.
type UpstreamH1 = client::http1::Connection<TokioIo<ClientTls<ReadAhead<TcpStream>>>, RequestBody>;

/// What is left of an HTTP/1.1 connection that became something else.
type LeftStream = (ClientTls<ReadAhead<TcpStream>>, Bytes);

/// As [`poll_ended`], for HTTP/1.1. Once a handshake went out the connection's end may be a
/// beginning: the stream is kept for it, and the agent's side ends by its answer.
fn poll_left(
    upstream: &mut Option<UpstreamH1>,
    left: &mut Option<LeftStream>,
    switch: &Switch,
    cx: &mut Context<'_>,
) -> bool {
    let Some(open) = upstream else { return false };
    let asked = switch.is_asked();
    let ended = if asked { open.poll_without_shutdown(cx) } else { Pin::new(&mut *open).poll(cx) };
    if ended.is_pending() {
        return false;
    }
    let parts = upstream.take().map(left_of);
    if asked {
        *left = parts;
    }
    !asked
}

fn left_of(upstream: UpstreamH1) -> LeftStream {
    let parts = upstream.into_parts();
    (parts.io.into_inner(), parts.read_buf)
}

/// True once, when the upstream connection takes no more requests. It is dropped then: done but
/// alive it would keep the queue of requests open, and the next one would wait in it for ever.
fn poll_ended<F: Future>(mut upstream: Pin<&mut Option<F>>, cx: &mut Context<'_>) -> bool {
    let ended = upstream.as_mut().as_pin_mut().is_some_and(|open| open.poll(cx).is_ready());
    if ended {
        upstream.set(None);
    }
    ended
}

/// What an HTTP/2 connection may hold on each of its sides.
struct H2Bounds {
    /// Bytes that one stream may send ahead of its reader.
    stream: u32,
    /// Bytes that all streams of a connection may send ahead.
    connection: u32,
    /// Bytes of one stream that wait for a peer who opens its window and does not read.
    send_buffer: usize,
}

impl H2Bounds {
    /// The small ones are what HTTP/2 begins with, and it knows no smaller ones for a connection
    /// (RFC 9113, section 6.9.2).
    const fn of(windows: &H2Windows) -> Self {
        if windows.large {
            Self { stream: 256 * 1024, connection: 1024 * 1024, send_buffer: 128 * 1024 }
        } else {
            Self { stream: 65_535, connection: 65_535, send_buffer: 32 * 1024 }
        }
    }
}

fn header_list_bytes(limits: &Limits) -> u32 {
    u32::try_from(limits.head_bytes).unwrap_or(u32::MAX)
}

/// What hyper refuses of HTTP/1 although the guard has let it through. There is no such head that
/// we know of; this one would have its record.
const MALFORMED_HEAD: Violation = Violation { reason: Reason::HttpMalformed, at_head: true };
/// Bytes of an HTTP/2 head beyond `head_bytes` that the library takes, so that the answer is ours.
const BEYOND_THE_LIMIT: u32 = 16 * 1024;
/// Time for a refused agent to take its answer.
const DRAIN_TIME: std::time::Duration = std::time::Duration::from_secs(2);
/// Reads of 1 KiB that it gets meanwhile.
const DRAIN_READS: usize = 256;
/// Time for an agent to take the last word of a connection.
const LAST_WORD_TIME: std::time::Duration = std::time::Duration::from_secs(2);
/// Bytes of an unwanted body that are read while it does.
const LINGER_BYTES: usize = 16 * 1024 * 1024;
/// Bytes that hyper may hold of an HTTP/1.1 connection's requests beyond one head.
const REQUEST_BUFFER: usize = 16 * 1024;
/// Bytes that it may hold of the responses: the longest head and a read.
const RESPONSE_BUFFER: usize = 320 * 1024;
