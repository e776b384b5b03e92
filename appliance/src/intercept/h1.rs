//! Both sides of an HTTP/1.1 connection, driven by one task.

use std::{
    convert::Infallible,
    future::{poll_fn, ready},
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Request;
use hyper::{body::Incoming, client::conn as client, server::conn as server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout, timeout_at},
};

use super::{
    body::RequestBody,
    connection::Connection,
    exchange,
    exchanges::Violation,
    idle_timer::{Ended, IdleTimer},
    sender::Sender,
    sides::{AgentTls, LAST_WORD_TIME, Sides, UpstreamTls, note_violation},
    websocket::{self, Switch, WebSocketEnds},
    wire::{Guard, TrailerRule},
};
use crate::{
    audit::Record,
    phase::Phases,
    policy::Limits,
    reason::Reason,
    refuse::{self, Refusal},
};

/// Carries an HTTP/1.1 connection to its end.
pub(super) async fn serve(
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
            // This is outside the future, which runs later: the reader must know of it at once.
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
            // No more requests can be sent. hyper finishes the answer under way, then closes.
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
        // Frames that the agent sent before the answer, if there are any.
        let early = [parts.read_buf, held.freeze()].concat().into();
        let ends = WebSocketEnds { agent: (agent, early), upstream, reset };
        let (ended, cut) = Box::pin(websocket::carry(ends, begun, idle_timer)).await;
        record.ended(ended.as_str());
        return cut.into_iter().for_each(|reason| record.cut(reason));
    }
    // Bytes behind a handshake are no request, so nothing answers them.
    let violation = connection.exchanges.violation().filter(|_| !switch.is_asked());
    let heard = Box::pin(finish(&connection, guard, (ended, violation), limits, record)).await;
    reset.store(matches!(ended, Ended::Idle) && !heard, Relaxed);
}

/// Tells the agent why the stream was ended, unless an answer is under way, and closes the stream.
/// Returns whether the agent heard it.
async fn finish(
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

/// Reads on for a while: closing a socket with unread bytes resets it, and an agent in the middle
/// of a large body would lose the answer that it was just given.
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

/// Reads on for a while and throws the bytes away: closing a socket with unread bytes resets it,
/// and an answer on its way would be lost.
async fn drain(agent: &mut AgentTls) -> std::io::Result<()> {
    let mut sink = [0; 1024];
    let until = Instant::now() + DRAIN_TIME;
    for _ in 0..DRAIN_READS {
        match timeout_at(until, agent.read(&mut sink)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0)) | Err(_) => break,
            Ok(Err(error)) => return Err(error),
        }
    }
    Ok(())
}

/// Answers a request with a refusal, on a connection that has no upstream.
pub(super) async fn serve_refusal(
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
    finish(&connection, guard, (ended, violation), limits, record).await;
}

/// The upstream's side of an HTTP/1.1 connection.
type UpstreamDriver = client::http1::Connection<TokioIo<UpstreamTls>, RequestBody>;

/// The stream and the unparsed bytes of an HTTP/1.1 connection that became something else.
type LeftStream = (UpstreamTls, Bytes);

/// Returns true once, when the upstream connection takes no more requests. Once a handshake went
/// out, the end of the HTTP connection may be the beginning of a WebSocket: the stream is kept for
/// it, and the answer ends the agent's side.
fn poll_left(
    upstream: &mut Option<UpstreamDriver>,
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

fn left_of(upstream: UpstreamDriver) -> LeftStream {
    let parts = upstream.into_parts();
    (parts.io.into_inner(), parts.read_buf)
}

/// The violation of a head that hyper refuses although the guard has let it through. No such head
/// is known to us; if there is one, it has a record.
const MALFORMED_HEAD: Violation = Violation { reason: Reason::HttpMalformed, at_head: true };
/// Time for a refused agent to take its answer.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// Reads of 1 KiB while it does.
const DRAIN_READS: usize = 256;
/// Bytes of an unwanted body that are read while it takes its answer.
const LINGER_BYTES: usize = 16 * 1024 * 1024;
/// Bytes that hyper may hold of an HTTP/1.1 connection's requests beyond one head.
const REQUEST_BUFFER: usize = 16 * 1024;
/// Bytes that hyper may hold of the responses: the longest head and a read.
const RESPONSE_BUFFER: usize = 320 * 1024;
