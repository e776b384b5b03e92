//! One direction of a WebSocket: bytes in, frames checked and made again, bytes out. Pure.
//!
//! An upstream's messages are masked one after the other: across the fragments of a message as
//! across the chunks of a body, and with no byte kept back beyond its end. A message in one frame
//! of at most [`WHOLE_FRAME`] bytes leaves in one frame, a larger one in pieces as it comes. How it
//! is cut depends on the bytes that belong to no form of a secret and on the upstream's own frames,
//! and not on how far it agrees with a secret; masks keep every length. An agent's messages are no
//! templates: nothing is put in.
//!
//! Errs to the end of the connection: everything that the protocol forbids is a [`FrameFault`].

use std::{sync::Arc, time::Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use tungstenite::protocol::frame::{
    Frame, FrameHeader,
    coding::{CloseCode, Control, Data, OpCode},
};

use crate::{
    limits::RateLimiter,
    scrub::{MaskStream, Masks, joined},
};

/// One direction of a WebSocket.
pub struct WebSocketLane {
    from: FrameSender,
    held: BytesMut,
    frame: Option<Under>,
    message: Option<MessageState>,
    control: RateLimiter,
    closed: bool,
}

/// The sender in a direction, and the treatment of its frames.
pub enum FrameSender {
    /// The agent. Its frames are masked in the protocol's sense, and so are those that are made of
    /// them, each with a new key (RFC 6455, section 5.3). The function returns `None` where there
    /// is no randomness.
    Agent(fn() -> Option<[u8; 4]>),
    /// The upstream, in whose frames secrets are masked.
    Upstream(Arc<Masks>),
}

/// A part of the bytes to be sent on: always whole frames.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// The frames.
    pub frames: Vec<u8>,
    /// Whether they end a message.
    pub message: bool,
    /// The bytes of messages in them.
    pub bytes: usize,
    /// The bytes that were masked.
    pub masked: u64,
    /// As [`MaskStream::near_misses`].
    pub near_misses: u64,
    /// The last frame of this direction, and its code if it has one.
    pub close: Option<Option<u16>>,
}

/// The reason why nothing more may be sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameFault {
    /// A frame that the protocol forbids.
    Malformed,
    /// A message beyond [`MAX_MESSAGE`] or [`MAX_FRAGMENTS`].
    TooLarge,
    /// More pings, pongs and other control frames than a connection needs.
    TooMany,
    /// There is no randomness, or a fault that cannot be.
    Failed,
}

/// A frame under way.
struct Under {
    header: FrameHeader,
    length: u64,
    /// The bytes of it that are still to come.
    left: u64,
}

/// A message under way.
struct MessageState {
    kind: Data,
    /// Whether a frame of it was sent on.
    begun: bool,
    bytes: u64,
    fragments: u32,
    stream: Option<MaskStream>,
}

impl WebSocketLane {
    /// Begins a direction.
    pub fn new(from: FrameSender, now: Instant) -> Self {
        Self {
            from,
            held: BytesMut::new(),
            frame: None,
            message: None,
            control: RateLimiter::new(now),
            closed: false,
        }
    }

    /// Returns the buffer for the next read. [`Self::next`] must have returned `None` before.
    pub fn room(&mut self) -> &mut BytesMut {
        &mut self.held
    }

    /// Takes other masks for everything that was not sent on yet.
    pub fn renew(&mut self, masks: Arc<Masks>) {
        if let Some(stream) = self.message.as_mut().and_then(|it| it.stream.as_mut()) {
            stream.renew(Arc::clone(&masks));
        }
        if let FrameSender::Upstream(own) = &mut self.from {
            *own = masks;
        }
    }

    /// Returns the next part to be sent on; `None` where more has to come first, or nothing may
    /// come.
    ///
    /// # Errors
    ///
    /// A [`FrameFault`], after which the direction is of no use.
    pub fn next(&mut self, now: Instant) -> Result<Option<Passed>, FrameFault> {
        while !self.closed {
            let Some(under) = self.begin(now)? else { return Ok(None) };
            let (header, payload, ended) = match self.take(under) {
                Ok(taken) => taken,
                Err(waiting) => {
                    self.frame = Some(waiting);
                    return Ok(None);
                }
            };
            let passed = match header.opcode {
                OpCode::Data(_) => self.data(&header, payload, ended)?,
                OpCode::Control(kind) => Some(self.control(kind, payload)?),
            };
            if passed.is_some() {
                return Ok(passed);
            }
        }
        Ok(None)
    }

    /// Returns the frame that is under way, or the next one.
    fn begin(&mut self, now: Instant) -> Result<Option<Under>, FrameFault> {
        if let Some(under) = self.frame.take() {
            return Ok(Some(under));
        }
        let mut cursor = std::io::Cursor::new(self.held.as_ref());
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| FrameFault::Malformed)?;
        let Some((header, length)) = parsed else { return Ok(None) };
        let bytes = usize::try_from(cursor.position()).map_err(|_| FrameFault::Failed)?;
        self.check(&header, length, bytes)?;
        self.held.advance(bytes);
        match header.opcode {
            OpCode::Data(kind) => self.count(kind, length)?,
            OpCode::Control(_) => {
                if !self.control.take(CONTROL_A_SECOND, CONTROL_AT_ONCE, now) {
                    return Err(FrameFault::TooMany);
                }
            }
        }
        Ok(Some(Under { header, length, left: length }))
    }

    /// Checks a frame's header (RFC 6455, sections 5.1, 5.2, 5.4 and 5.5). The library has refused
    /// unknown opcodes.
    fn check(&self, header: &FrameHeader, length: u64, bytes: usize) -> Result<(), FrameFault> {
        let masked = matches!(self.from, FrameSender::Agent(_));
        let shortest = header.len(length) == bytes && length <= i64::MAX as u64;
        let plain = !(header.rsv1 || header.rsv2 || header.rsv3);
        let in_order = match header.opcode {
            OpCode::Control(_) => header.is_final && length <= MAX_CONTROL,
            OpCode::Data(Data::Continue) => self.message.is_some(),
            OpCode::Data(_) => self.message.is_none(),
        };
        let good = header.mask.is_some() == masked && shortest && plain && in_order;
        if good { Ok(()) } else { Err(FrameFault::Malformed) }
    }

    /// Counts a frame of a message before any of it is taken.
    fn count(&mut self, kind: Data, length: u64) -> Result<(), FrameFault> {
        let message = self.message.get_or_insert_with(|| MessageState {
            kind,
            begun: false,
            bytes: 0,
            fragments: 0,
            stream: match &self.from {
                FrameSender::Agent(_) => None,
                FrameSender::Upstream(masks) => Some(MaskStream::new(Arc::clone(masks), false)),
            },
        });
        message.bytes = message.bytes.saturating_add(length);
        message.fragments = message.fragments.saturating_add(1);
        let good = message.bytes <= MAX_MESSAGE && message.fragments <= MAX_FRAGMENTS;
        if good { Ok(()) } else { Err(FrameFault::TooLarge) }
    }

    /// Takes a part of a frame, unmasked in the protocol's sense. Returns it and whether it is the
    /// last one; returns the frame itself where more has to come first.
    fn take(&mut self, mut under: Under) -> Result<(FrameHeader, Bytes, bool), Under> {
        let left = usize::try_from(under.left).unwrap_or(usize::MAX);
        let whole = under.length <= WHOLE_FRAME as u64;
        let taken = left.min(self.held.len()).min(WHOLE_FRAME);
        if taken < left && (whole || taken == 0) {
            return Err(under);
        }
        let mut payload = self.held.split_to(taken);
        if let Some(key) = under.header.mask {
            apply(key, under.length - under.left, &mut payload);
        }
        under.left -= taken as u64;
        let (header, ended) = (under.header.clone(), under.left == 0);
        if !ended {
            self.frame = Some(under);
        }
        Ok((header, payload.freeze(), ended))
    }

    fn data(
        &mut self,
        header: &FrameHeader,
        payload: Bytes,
        ended: bool,
    ) -> Result<Option<Passed>, FrameFault> {
        let last = header.is_final && ended;
        let message = self.message.as_mut().ok_or(FrameFault::Failed)?;
        let (payload, masked, near_misses) = message.mask(payload, last);
        let kind = if message.begun { Data::Continue } else { message.kind };
        let silent = payload.is_empty() && !last;
        message.begun |= !silent;
        if last {
            self.message = None;
        }
        if silent && masked == 0 && near_misses == 0 {
            return Ok(None);
        }
        let bytes = payload.len();
        let frames = match silent {
            true => vec![],
            false => self.frame(OpCode::Data(kind), last, payload)?,
        };
        Ok(Some(Passed { frames, message: last, bytes, masked, near_misses, close: None }))
    }

    fn control(&mut self, kind: Control, payload: Bytes) -> Result<Passed, FrameFault> {
        let close = match kind {
            Control::Close => Some(close_code(&payload)?),
            _ => None,
        };
        self.closed = close.is_some();
        let code = close.flatten().map_or(0, |_| CODE_BYTES);
        let mut text = payload;
        let code = text.split_to(code);
        let (text, masked, near_misses) = match &self.from {
            FrameSender::Agent(_) => (text, 0, 0),
            FrameSender::Upstream(masks) => {
                mask_all(MaskStream::new(Arc::clone(masks), false), text)
            }
        };
        let payload = if code.is_empty() { text } else { [code, text].concat().into() };
        let frames = self.frame(OpCode::Control(kind), true, payload)?;
        Ok(Passed { frames, masked, near_misses, close, ..Passed::default() })
    }

    fn frame(&self, opcode: OpCode, is_final: bool, payload: Bytes) -> Result<Vec<u8>, FrameFault> {
        let mask = match &self.from {
            FrameSender::Agent(key) => Some(key().ok_or(FrameFault::Failed)?),
            FrameSender::Upstream(_) => None,
        };
        write(FrameHeader { is_final, opcode, mask, ..FrameHeader::default() }, payload)
    }
}

impl MessageState {
    /// Returns the bytes of a part of the message that may be sent on, how many of them were
    /// masked, and the near misses.
    fn mask(&mut self, payload: Bytes, last: bool) -> (Bytes, u64, u64) {
        let Some(stream) = &mut self.stream else { return (payload, 0, 0) };
        // Bytes that are kept back were searched when they came.
        if payload.is_empty() && !last {
            return (payload, 0, 0);
        }
        let before = (stream.masked(), stream.near_misses());
        let mut given = stream.push(payload);
        if last {
            given = joined(given, stream.finish());
        }
        (given, stream.masked() - before.0, stream.near_misses() - before.1)
    }
}

/// Returns the close frame by which the gateway itself ends a direction.
pub(super) fn close_frame(code: u16, reason: &str, key: Option<[u8; 4]>) -> Vec<u8> {
    let payload = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
    let header = FrameHeader { mask: key, ..FrameHeader::default() };
    write(header, payload.into()).unwrap_or_default()
}

fn write(header: FrameHeader, payload: Bytes) -> Result<Vec<u8>, FrameFault> {
    let mut frame = Vec::with_capacity(header.len(payload.len() as u64) + payload.len());
    // Writing into memory does not fail.
    Frame::from_payload(header, payload).format(&mut frame).map_err(|_| FrameFault::Failed)?;
    Ok(frame)
}

fn mask_all(mut stream: MaskStream, text: Bytes) -> (Bytes, u64, u64) {
    let given = stream.push(text);
    let given = joined(given, stream.finish());
    (given, stream.masked(), stream.near_misses())
}

/// Returns the code of a close frame, if it has one (RFC 6455, sections 5.5.1 and 7.4).
fn close_code(payload: &[u8]) -> Result<Option<u16>, FrameFault> {
    let Some((code, reason)) = payload.split_first_chunk::<CODE_BYTES>() else {
        return if payload.is_empty() { Ok(None) } else { Err(FrameFault::Malformed) };
    };
    let code = u16::from_be_bytes(*code);
    // 1014 was registered later, for gateways.
    let known = CloseCode::from(code).is_allowed() || code == BAD_GATEWAY;
    let good = known && std::str::from_utf8(reason).is_ok();
    if good { Ok(Some(code)) } else { Err(FrameFault::Malformed) }
}

/// Does, or undoes, masking in the protocol's sense (RFC 6455, section 5.3), from an offset in the
/// frame.
fn apply(mut key: [u8; 4], place: u64, payload: &mut [u8]) {
    key.rotate_left((place % 4) as usize);
    for four in payload.chunks_mut(4) {
        four.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
    }
}

/// The longest payload in bytes that leaves in one frame, as it came.
pub const WHOLE_FRAME: usize = 64 * 1024;
/// The longest message in bytes.
pub const MAX_MESSAGE: u64 = 64 * 1024 * 1024;
/// The most frames of a message.
pub const MAX_FRAGMENTS: u32 = 64 * 1024;
/// Control frames that a side may send each second, in the long run.
pub(super) const CONTROL_A_SECOND: u32 = 50;
/// Control frames that it may send at once.
pub(super) const CONTROL_AT_ONCE: u32 = 200;
/// The longest control frame in bytes (RFC 6455, section 5.5).
const MAX_CONTROL: u64 = 125;
/// Bytes of the code in a close frame.
const CODE_BYTES: usize = 2;
const BAD_GATEWAY: u16 = 1014;
