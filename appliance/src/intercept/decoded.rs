//! The body of an upstream's answer, decoded where it is compressed.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, header::ACCEPT_ENCODING};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use crate::{
    limits::{self, CodedPlace, LargeDecoder, Taken},
    reason::Reason,
    scrub::{Accepted, Coding, Decoder, DecoderProgress, asked_codings},
};

/// The way in which the answer to a request is read.
pub(super) enum Reading {
    /// The answer is passed on as it is: nothing is masked at such a host.
    Unread,
    /// The answer is decoded, where it is compressed.
    Decoded(DecoderPlaces),
}

/// The slots that a compressed answer may take.
#[derive(Default)]
pub(super) struct DecoderPlaces {
    coded: Option<CodedPlace>,
    large: Option<LargeDecoder>,
}

/// The group's compressed answers and the agent's account, which the slots come from.
type CodedShare<'a> = (&'a Arc<limits::Coded>, &'a Arc<Taken>);

/// The body that an upstream sends.
pub(super) enum ReadableBody {
    /// A body without compression.
    Plain(Incoming),
    /// A compressed body.
    Coded(Box<CompressedBody>),
    /// A body that was read whole and examined; with its slot where it was compressed.
    Whole(Option<Bytes>, Option<CodedPlace>),
}

/// A compressed body.
pub(super) struct CompressedBody {
    inner: Incoming,
    decoder: Decoder,
    trailers: Option<HeaderMap>,
    drained: bool,
    ended: bool,
    /// The pieces that were given since other tasks had their turn.
    given: u32,
    place: CodedPlace,
    _large: Option<LargeDecoder>,
}

impl Reading {
    /// Returns the codings that the API may be asked for.
    pub(super) fn accepted(&self) -> Accepted {
        match self {
            Self::Unread => Accepted::Identity,
            Self::Decoded(places) => places.accepted(),
        }
    }

    /// Notes whether a compressed answer may be on its way.
    pub(super) fn on_its_way(&mut self, is: bool) {
        if let Self::Decoded(DecoderPlaces { coded: Some(place), .. }) = self {
            place.unseen(is);
        }
    }
}

impl DecoderPlaces {
    /// Takes the slots for the codings that a request asks for, as far as there are any.
    pub(super) fn of((all, taken): CodedShare<'_>, headers: &HeaderMap) -> Self {
        let asked = asked_codings(headers.get_all(ACCEPT_ENCODING).iter());
        let coded = (asked != Accepted::Identity).then(|| all.place()).flatten();
        let is_large = coded.is_some() && asked == Accepted::All;
        let large = is_large.then(|| taken.large_decoder()).flatten();
        Self { coded, large }
    }

    /// Returns the codings that the API may be asked for.
    pub(super) fn accepted(&self) -> Accepted {
        match (&self.coded, &self.large) {
            (None, _) => Accepted::Identity,
            (Some(_), None) => Accepted::Small,
            (Some(_), Some(_)) => Accepted::All,
        }
    }

    /// Makes the source of a compressed body. A body that nobody asked to be compressed takes its
    /// slots now.
    pub(super) fn decode(
        self,
        (all, taken): CodedShare<'_>,
        coding: Coding,
        inner: Incoming,
    ) -> Result<ReadableBody, Reason> {
        let place = self.coded.or_else(|| all.place());
        let mut place = place.ok_or(Reason::ResponseUnscannable)?;
        let large = match coding {
            Coding::Gzip | Coding::Deflate => None,
            Coding::Brotli | Coding::Zstd => {
                let large = self.large.or_else(|| taken.large_decoder());
                Some(large.ok_or(Reason::ResponseUnscannable)?)
            }
        };
        place.unseen(true);
        Ok(ReadableBody::Coded(Box::new(CompressedBody {
            inner,
            decoder: Decoder::new(coding),
            trailers: None,
            drained: false,
            ended: false,
            given: 0,
            place,
            _large: large,
        })))
    }
}

impl ReadableBody {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        match self {
            Self::Plain(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|it| it.map_err(|_| Reason::UpstreamUnreachable))),
            Self::Coded(body) => body.poll_frame(cx),
            Self::Whole(body, _) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
        }
    }

    /// Whether it is known that no frame follows. This is never known of a compressed body, so that
    /// its end arrives as a frame of its own, whatever the upstream's last bytes came with.
    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(body) => body.is_end_stream(),
            Self::Coded(_) => false,
            Self::Whole(body, _) => body.as_ref().is_none_or(Bytes::is_empty),
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(body) => body.size_hint(),
            Self::Coded(_) => SizeHint::default(),
            Self::Whole(body, _) => {
                SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64))
            }
        }
    }

    /// Whether the upstream may be waiting for an answer to all that has arrived.
    pub(super) fn rests(&self) -> bool {
        match self {
            Self::Plain(_) | Self::Whole(..) => true,
            Self::Coded(body) => body.decoder.rests(),
        }
    }

    /// Whether it rests, and [`Self::rest`] has something to give.
    pub(super) fn has_rest(&self) -> bool {
        matches!(self, Self::Coded(body) if body.decoder.has_rest())
    }

    /// Returns the bytes that have arrived but were in no frame yet, where the body
    /// [rests](Self::rests).
    pub(super) fn rest(&mut self) -> Bytes {
        match self {
            Self::Plain(_) | Self::Whole(..) => Bytes::new(),
            Self::Coded(body) => body.decoder.rest(),
        }
    }

    /// Notes that the whole body was seen.
    pub(super) fn was_seen(&mut self) {
        if let Self::Coded(body) = self {
            body.place.unseen(false);
        }
    }

    /// Notes that a secret was seen in the body.
    pub(super) fn holds_secret(&self) {
        match self {
            Self::Plain(_) | Self::Whole(_, None) => {}
            Self::Coded(body) => body.place.close(),
            Self::Whole(_, Some(place)) => place.close(),
        }
    }

    /// Replaces a body that was read whole by what it has become.
    pub(super) fn read_as(self, body: Bytes) -> Self {
        let place = match self {
            Self::Plain(_) => None,
            Self::Coded(body) => Some(body.place),
            Self::Whole(_, place) => place,
        };
        Self::Whole(Some(body), place)
    }
}

impl CompressedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        loop {
            if self.given >= PIECES_A_TURN {
                self.given = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.decoder.advance() {
                Ok(DecoderProgress::Piece(piece)) => {
                    self.given += 1;
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                Ok(DecoderProgress::Busy) => {
                    // Other tasks have their turn.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(DecoderProgress::Hungry) if self.drained => return Poll::Ready(self.end()),
                Ok(DecoderProgress::Hungry) => {}
                Err(why) => {
                    tracing::debug!(%why, "a compressed answer");
                    return Poll::Ready(Some(Err(Reason::ResponseUnscannable)));
                }
            }
            let frame = Pin::new(&mut self.inner).poll_frame(cx);
            if frame.is_pending() {
                self.given = 0;
            }
            match ready!(frame) {
                Some(Ok(frame)) => self.take(frame),
                Some(Err(_)) => return Poll::Ready(Some(Err(Reason::UpstreamUnreachable))),
                None => self.drained = true,
            }
        }
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => self.decoder.push(data),
            Err(frame) => {
                self.trailers = frame.into_trailers().ok();
                self.drained = true;
            }
        }
    }

    fn end(&mut self) -> Option<Result<Frame<Bytes>, Reason>> {
        if !self.ended {
            self.ended = true;
            match self.decoder.finish() {
                Ok(rest) if !rest.is_empty() => return Some(Ok(Frame::data(rest))),
                Ok(_) => {}
                Err(why) => {
                    tracing::debug!(%why, "a compressed answer");
                    return Some(Err(Reason::ResponseUnscannable));
                }
            }
        }
        self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))
    }
}

/// Pieces that are given before other tasks have their turn.
const PIECES_A_TURN: u32 = 32;
