//! Both sides of an HTTP/2 connection, driven by one task.

use std::{
    convert::Infallible,
    error::Error as _,
    future::{poll_fn, ready},
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use http::Request;
use hyper::{body::Incoming, client::conn as client, server::conn as server, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Sleep, sleep, timeout};

use super::{
    body::RequestBody,
    connection::Connection,
    exchange,
    exchanges::Violation,
    idle_timer::{Ended, IdleTimer},
    sender::Sender,
    sides::{AgentTls, LAST_WORD_TIME, Sides, UpstreamTls, note_violation},
    tasks::{Spawner, Tasks},
    wire::{Deferred, Flusher, HeadVerdict, HeadWatch, Heads},
};
use crate::{
    audit::Record,
    limits::H2Windows,
    phase::Phases,
    policy::Limits,
    reason::Reason,
    refuse::{self, Refusal},
};

/// Carries an HTTP/2 connection to its end.
pub(super) async fn serve(
    connection: Arc<Connection>,
    Sides { agent, upstream, reset }: Sides,
    limits: &Limits,
    phases: Phases,
    record: &mut Record,
) {
    reset.store(true, Relaxed);
    let windows = connection.taken.windows();
    let bounds = Bounds::of(&windows);
    let spawner = Spawner::default();
    let mut tasks = Tasks::new(spawner.clone());
    let (upstream, to_upstream) = Deferred::new(upstream);
    let opened = open_upstream(upstream, (&bounds, limits), spawner.clone(), &mut tasks).await;
    let Some((sender, upstream)) = opened else { return record.ended("upstream_closed") };
    let sender = Arc::new(Sender::H2(sender));
    let service = service_fn({
        let connection = Arc::clone(&connection);
        move |request: Request<Incoming>| {
            let active = connection.exchanges.begin();
            exchange::serve(Arc::clone(&connection), Arc::clone(&sender), request, active)
        }
    });
    let (agent, to_agent) = Deferred::new(agent);
    let (agent, heads) = HeadWatch::new(agent, limits.head_time, Arc::clone(&connection.exchanges));
    let builder = agent_builder(spawner, &bounds, limits);
    let mut agent = pin!(builder.serve_connection(TokioIo::new(agent), service));
    let mut upstream = pin!(Some(upstream));
    let exchanges = Arc::clone(&connection.exchanges);
    let mut closing = Closing::new(IdleTimer::new(limits, phases, move || exchanges.progress()));
    let ConnectionEnd { ended, heard } = poll_fn(|cx| {
        let is_told_to_close = closing.poll_begun(cx);
        let is_left_by_upstream = poll_ended(upstream.as_mut(), cx);
        if is_told_to_close || is_left_by_upstream {
            heads.close();
            agent.as_mut().graceful_shutdown();
        }
        let polled = poll_by_heads(agent.as_mut(), (&connection, &heads), cx);
        tasks.poll(cx);
        // Everything that may write has now had its turn.
        to_upstream.poll(cx);
        to_agent.poll(cx);
        closing.poll_ended(polled, cx)
    })
    .await;
    record.ended(ended.as_str());
    let heard = match connection.exchanges.violation() {
        Some(violation) => finish(&connection, violation, &to_agent, record).await,
        None => heard,
    };
    reset.store(!heard, Relaxed);
}

/// Begins HTTP/2 on the upstream's side. Returns `None` where the upstream fails, or lets the time
/// for dialling pass.
async fn open_upstream(
    upstream: Deferred<UpstreamTls>,
    (bounds, limits): (&Bounds, &Limits),
    spawner: Spawner,
    tasks: &mut Tasks,
) -> Option<(client::http2::SendRequest<RequestBody>, H2UpstreamDriver)> {
    let mut builder = client::http2::Builder::new(spawner);
    builder
        .initial_stream_window_size(bounds.stream)
        .initial_connection_window_size(bounds.connection)
        .max_send_buf_size(bounds.send_buffer)
        .max_header_list_size(header_list_bytes(limits));
    let mut handshake = pin!(builder.handshake(TokioIo::new(upstream)));
    let handshake = poll_fn(|cx| {
        tasks.poll(cx);
        handshake.as_mut().poll(cx)
    });
    timeout(limits.dial_time, handshake).await.ok()?.ok()
}

/// Returns the settings of the agent's side.
fn agent_builder(
    spawner: Spawner,
    bounds: &Bounds,
    limits: &Limits,
) -> server::http2::Builder<Spawner> {
    let mut builder = server::http2::Builder::new(spawner);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.h2_streams)
        .max_header_list_size(header_list_bytes(limits).saturating_add(BEYOND_THE_LIMIT))
        .initial_stream_window_size(bounds.stream)
        .initial_connection_window_size(bounds.connection)
        .max_send_buf_size(bounds.send_buffer);
    builder
}

/// The upstream's side of an HTTP/2 connection.
type H2UpstreamDriver =
    client::http2::Connection<TokioIo<Deferred<UpstreamTls>>, RequestBody, Spawner>;

/// The end of a connection on the agent's side.
struct ConnectionEnd {
    ended: Ended,
    /// Whether the library wrote its last word.
    heard: bool,
}

/// Closes a connection for a drain or for silence. Where nothing moves any more, the agent has a
/// while to take the last word.
struct Closing {
    idle_timer: IdleTimer,
    last_word: Option<Pin<Box<Sleep>>>,
}

impl Closing {
    const fn new(idle_timer: IdleTimer) -> Self {
        Self { idle_timer, last_word: None }
    }

    /// Returns true once for the drain, and once for silence.
    fn poll_begun(&mut self, cx: &mut Context<'_>) -> bool {
        let drains = self.idle_timer.poll_drain(cx);
        let is_idle = self.last_word.is_none() && self.idle_timer.poll_idle(cx).is_ready();
        if is_idle {
            self.last_word = Some(Box::pin(sleep(LAST_WORD_TIME)));
        }
        drains || is_idle
    }

    /// Is ready when the library has ended the agent's side, or the agent did not take the last
    /// word in time.
    fn poll_ended(
        &mut self,
        agent: Poll<hyper::Result<()>>,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionEnd> {
        let end = |ended, heard| ConnectionEnd { ended, heard };
        match (agent, &mut self.last_word) {
            (Poll::Ready(_), Some(_)) => Poll::Ready(end(Ended::Idle, true)),
            (Poll::Ready(Ok(())), None) => Poll::Ready(end(Ended::Closed, true)),
            (Poll::Ready(Err(_)), None) => Poll::Ready(end(Ended::Broken, true)),
            (Poll::Pending, Some(timer)) => {
                timer.as_mut().poll(cx).map(|()| end(Ended::Idle, false))
            }
            (Poll::Pending, None) => Poll::Pending,
        }
    }
}

/// Polls the library, one head after the other. A head that the library refuses by itself has its
/// record all the same; where the library ends the connection over a head, that head broke a rule.
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

/// Returns why the library ended an HTTP/2 connection, over a head or not; `None` where the agent
/// left.
fn refused_by_library(error: &hyper::Error, head: bool) -> Option<Reason> {
    let error = error.source()?.downcast_ref::<h2::Error>()?;
    let refused = error.is_go_away() && error.is_library();
    refused.then(|| match error.reason() {
        Some(h2::Reason::ENHANCE_YOUR_CALM) if head => Reason::HeaderLimit,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Reason::RateLimit,
        _ => Reason::HttpMalformed,
    })
}

/// Returns true once, when the upstream connection takes no more requests. The connection is
/// dropped then: kept, it would leave the queue of requests open, and the next request would wait
/// in it for ever.
fn poll_ended<F: Future>(mut upstream: Pin<&mut Option<F>>, cx: &mut Context<'_>) -> bool {
    let ended = upstream.as_mut().as_pin_mut().is_some_and(|open| open.poll(cx).is_ready());
    if ended {
        upstream.set(None);
    }
    ended
}

/// Records why a connection was ended, and tells the agent, because the library says less, or
/// nothing. Returns whether the agent was told.
async fn finish(
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

/// Answers every request with a refusal, on a connection that has no upstream.
pub(super) async fn serve_refusal(
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

/// The bytes that an HTTP/2 connection may hold on each of its sides.
struct Bounds {
    /// Bytes that one stream may send ahead of its reader.
    stream: u32,
    /// Bytes that all streams of a connection may send ahead.
    connection: u32,
    /// Bytes of one stream that wait for a peer which opens its window and does not read.
    send_buffer: usize,
}

impl Bounds {
    /// Returns the bounds for the large or the small windows. The small ones are HTTP/2's initial
    /// ones, and HTTP/2 knows no smaller window for a connection (RFC 9113, section 6.9.2).
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

/// Bytes of an HTTP/2 head beyond `head_bytes` that the library takes, so that the refusal is ours.
const BEYOND_THE_LIMIT: u32 = 16 * 1024;
