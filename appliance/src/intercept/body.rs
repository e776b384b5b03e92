//! Bodies on their way through an exchange: counted, checked and masked. The gateway gathers a body
//! only where a place is in it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

use super::{decoded::ReadableBody, masking::Masking, trace::Trace, wire::TrailerRule};
use crate::{
    limits::{Taken, Way},
    policy::ResponseRules,
    scrub::{self, MaskStream, Window, joined},
};

/// A body whose exchange was refused or broke on the way.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct BodyError(&'static str);

/// The agent's body, on its way upstream.
pub(super) enum RequestBody {
    /// As it comes.
    Passing(Passing),
    /// A body that has been read whole, counted and examined.
    Whole(Full<Bytes>),
}

/// A body that is sent on as it comes.
pub(super) struct Passing {
    inner: Incoming,
    room: BodyRoom,
    trailers: Arc<dyn TrailerRule + Send + Sync>,
    trace: Arc<Trace>,
}

/// Room for data among the bytes that the agent's bodies may hold. Data without room waits here,
/// and meanwhile the body is not read.
struct BodyRoom {
    way: Way,
    taken: Arc<Taken>,
    waiting: Option<BoxFuture<'static, Bytes>>,
}

/// The body that the agent receives.
pub(super) enum ResponseBody {
    /// The gateway's own answer.
    Own(Full<Bytes>),
    /// The upstream's answer.
    Upstream(Box<Scrubbed>),
}

/// The upstream's answer with every known secret masked, also those that became known after it
/// began. The bytes that it keeps back, and for how long, do not depend on them.
pub(super) struct Scrubbed {
    inner: ReadableBody,
    room: BodyRoom,
    masking: Masking,
    rules: ResponseRules,
    stream: MaskStream,
    release: Option<Pin<Box<Sleep>>>,
    trailers: Option<HeaderMap>,
    drained: bool,
    ended: bool,
    window: Option<Window>,
    trace: Arc<Trace>,
}

impl RequestBody {
    /// Makes the body of a request that is forwarded.
    pub(super) fn new(
        inner: Incoming,
        trailers: Arc<dyn TrailerRule + Send + Sync>,
        trace: Arc<Trace>,
    ) -> Self {
        let room = BodyRoom::new(Way::Out, &trace);
        Self::Passing(Passing { inner, room, trailers, trace })
    }

    /// Makes a body of bytes that have been read.
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self::Whole(Full::new(bytes))
    }
}

impl Passing {
    fn pass(&self, frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
        if let Some(data) = frame.data_ref() {
            self.trace.request_bytes(data.len());
        }
        if let Some(trailers) = frame.trailers_ref()
            && let Err(reason) = self.trailers.check(trailers)
        {
            self.trace.refuse_body(reason);
            return Err(BodyError("the trailers were refused"));
        }
        Ok(frame)
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = ready!(self.room.poll_waiting(cx)) {
            return Poll::Ready(Some(Ok(data)));
        }
        match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => match self.pass(frame) {
                Ok(frame) => self.room.poll_take(frame, cx).map(|frame| Some(Ok(frame))),
                Err(error) => Poll::Ready(Some(Err(error))),
            },
            Some(Err(_)) => {
                self.trace.broken_off();
                Poll::Ready(Some(Err(BodyError("the agent's body broke off"))))
            }
            None => Poll::Ready(None),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Passing(body) => body.poll_frame(cx),
            Self::Whole(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Passing(body) => body.room.waiting.is_none() && body.inner.is_end_stream(),
            Self::Whole(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Passing(body) => body.inner.size_hint(),
            Self::Whole(body) => body.size_hint(),
        }
    }
}

impl BodyRoom {
    fn new(way: Way, trace: &Trace) -> Self {
        Self { way, taken: trace.taken(), waiting: None }
    }

    /// Returns waiting data once there is room for it; `None` where none waits.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let Some(waiting) = &mut self.waiting else { return Poll::Ready(None) };
        let data = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        Poll::Ready(Some(Frame::data(data)))
    }

    /// Takes a frame. No data may be waiting.
    fn poll_take(&mut self, frame: Frame<Bytes>, cx: &mut Context<'_>) -> Poll<Frame<Bytes>> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => return Poll::Ready(frame),
        };
        match self.taken.try_hold(self.way, data) {
            Ok(data) => Poll::Ready(Frame::data(data)),
            Err(data) => {
                let mut waiting = Box::pin(Arc::clone(&self.taken).hold(self.way, data));
                match waiting.as_mut().poll(cx) {
                    Poll::Ready(data) => Poll::Ready(Frame::data(data)),
                    Poll::Pending => {
                        self.waiting = Some(waiting);
                        Poll::Pending
                    }
                }
            }
        }
    }
}

impl Scrubbed {
    /// Makes the body of a response whose head has been masked.
    pub(super) fn new(
        inner: ReadableBody,
        masking: Masking,
        rules: ResponseRules,
        in_envelopes: bool,
        trace: Arc<Trace>,
    ) -> Self {
        let stream = MaskStream::new(Arc::clone(&masking.masks), in_envelopes);
        let ended = inner.is_end_stream();
        if ended {
            trace.complete();
        }
        Self {
            inner,
            room: BodyRoom::new(Way::Back, &trace),
            masking,
            rules,
            stream,
            release: None,
            trailers: None,
            drained: ended,
            ended,
            window: None,
            trace,
        }
    }

    /// Limits the body to the bytes in the window.
    pub(super) fn within(self, window: Option<Window>) -> Self {
        Self { window, ..self }
    }

    fn renew_masks(&mut self) {
        if let Some(newer) = self.trace.newer(&self.masking) {
            self.stream.renew(Arc::clone(&newer.masks));
            self.masking = newer;
        }
    }

    /// Lets the stream give bytes, and counts those that it gave, the masked ones and the near
    /// misses.
    fn give(&mut self, give: impl FnOnce(&mut MaskStream) -> Bytes) -> Result<Bytes, BodyError> {
        let before = (self.stream.masked(), self.stream.near_misses());
        let out = give(&mut self.stream);
        let masked = self.stream.masked() - before.0;
        if masked > 0 {
            self.inner.holds_secret();
        }
        self.trace.response_bytes(out.len(), masked);
        match self.trace.near_misses(self.stream.near_misses() - before.1) {
            Ok(()) => Ok(out),
            Err(reason) => {
                self.trace.refuse_body(reason);
                Err(BodyError("somebody is guessing at a secret"))
            }
        }
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = ready!(self.room.poll_waiting(cx)) {
            return Poll::Ready(Some(Ok(data)));
        }
        match ready!(self.poll_part(cx)) {
            Some(Ok(frame)) => self.room.poll_take(frame, cx).map(|frame| Some(Ok(frame))),
            other => Poll::Ready(other),
        }
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match ready!(self.poll_inner(cx)) {
                Some(Ok(frame)) => {
                    if let Some(frame) = self.in_window(frame) {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                }
                other => return Poll::Ready(other),
            }
        }
    }

    /// Returns the part of a frame that is in the window. The body is not read beyond the window.
    fn in_window(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        let Some(window) = &mut self.window else { return Some(frame) };
        let data = window.cut(frame.into_data().ok()?);
        if window.left() == 0 && !self.ended {
            (self.drained, self.ended) = (true, true);
            self.trace.complete();
        }
        (!data.is_empty()).then(|| Frame::data(data))
    }

    fn poll_inner(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        while !self.drained {
            match self.inner.poll_frame(cx) {
                Poll::Pending => return self.poll_release(cx).map(Some),
                Poll::Ready(Some(Ok(frame))) => {
                    self.release = None;
                    if let Some(out) = self.take(frame).transpose() {
                        return Poll::Ready(Some(out));
                    }
                }
                Poll::Ready(Some(Err(reason))) => {
                    self.trace.refuse_body(reason);
                    return Poll::Ready(Some(Err(BodyError("the upstream's body broke off"))));
                }
                Poll::Ready(None) => self.drained = true,
            }
        }
        Poll::Ready(self.end().transpose())
    }

    /// Gives out kept-back bytes after a pause: they may be the end of a message, and both sides
    /// could be waiting for each other.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame<Bytes>, BodyError>> {
        let has_some = self.stream.can_release() || self.inner.has_rest();
        if !has_some || !self.inner.rests() {
            self.release = None;
            return Poll::Pending;
        }
        let release = self.release.get_or_insert_with(|| Box::pin(sleep(RELEASE_AFTER)));
        ready!(release.as_mut().poll(cx));
        self.release = None;
        let rest = self.inner.rest();
        let pushed = self.give(|stream| stream.push(rest))?;
        let released = self.give(MaskStream::release)?;
        Poll::Ready(Ok(Frame::data(joined(pushed, released))))
    }

    /// Ends the body once the upstream has no more: returns the bytes that were kept back, then the
    /// trailers, then nothing.
    fn end(&mut self) -> Result<Option<Frame<Bytes>>, BodyError> {
        if self.ended {
            return Ok(None);
        }
        let rest = self.give(MaskStream::finish)?;
        if !rest.is_empty() {
            return Ok(Some(Frame::data(rest)));
        }
        self.ended = true;
        self.inner.was_seen();
        self.trace.complete();
        Ok(self.trailers.take().map(Frame::trailers))
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<Option<Frame<Bytes>>, BodyError> {
        self.renew_masks();
        match frame.into_data() {
            Ok(data) => {
                let mut out = self.give(|stream| stream.push(data))?;
                if self.inner.is_end_stream() {
                    out = self.end_with(out)?;
                }
                Ok((!out.is_empty()).then(|| Frame::data(out)))
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    self.take_trailers(trailers)?;
                }
                Ok(None)
            }
        }
    }

    fn take_trailers(&mut self, mut trailers: HeaderMap) -> Result<(), BodyError> {
        let report = scrub::mask_trailers(&self.masking.masks, &self.rules, &mut trailers);
        self.trace.response_bytes(0, report.masked);
        self.trailers = Some(trailers);
        self.drained = true;
        self.trace.near_misses(report.near_misses).map_err(|reason| {
            self.trace.refuse_body(reason);
            BodyError("somebody is guessing at a secret")
        })
    }

    /// Returns the last data of a body of known length. hyper asks for no more once it has written
    /// that many bytes, so nothing may be left behind.
    fn end_with(&mut self, out: Bytes) -> Result<Bytes, BodyError> {
        let rest = self.give(MaskStream::finish)?;
        self.drained = true;
        self.ended = true;
        self.trace.complete();
        Ok(joined(out, rest))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Upstream(body) => body.poll_held(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Upstream(body) => body.ended && body.room.waiting.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Upstream(body) if body.window.is_some() => {
                SizeHint::with_exact(body.window.map_or(0, |window| window.left()))
            }
            // Masks keep every length, so what the upstream announced still holds.
            Self::Upstream(body) => body.inner.size_hint(),
        }
    }
}

/// The time for which the end of the received bytes is kept back while nothing follows it: longer
/// than the pause between two flights of one answer, and hardly noticed by a person. A chunk that
/// ends a line or a message of gRPC never waits.
const RELEASE_AFTER: Duration = Duration::from_millis(250);
