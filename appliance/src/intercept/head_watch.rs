//! The deadline of a head on an HTTP/2 connection, which the library does not have.
//!
//! It looks at frames as they pass (RFC 9113, section 4.1) and changes none. From the first byte of
//! the preface, of a header block, or of any frame that is not DATA, the whole of it must arrive
//! within `head_time`, however many frames and bytes it is cut into. Otherwise the stream ends for
//! the library, and the connection's owner says why. A body may take longer: it is watched as
//! messages, and not as frames.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::exchanges::{Exchanges, Violation};
use crate::{reason::Reason, straight::writes_go_straight_through};

/// Passes `S` through and ends it where a head takes too long.
pub(super) struct HeadWatch<S> {
    stream: S,
    frames: Frames,
    head_time: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    exchanges: Arc<Exchanges>,
}

/// Where in the agent's frames the next byte belongs.
#[derive(Debug)]
struct Frames {
    preface: usize,
    header: [u8; HEADER],
    header_bytes: usize,
    payload: usize,
    in_block: bool,
}

impl<S> HeadWatch<S> {
    /// Watches a stream from its first byte on.
    pub(super) fn new(stream: S, head_time: Duration, exchanges: Arc<Exchanges>) -> Self {
        Self { stream, frames: Frames::new(), head_time, deadline: None, exchanges }
    }

    /// A head that is whole ends its deadline; one that has begun has one, from its own beginning.
    fn saw(&mut self, bytes: &[u8]) {
        if self.frames.pass(bytes) {
            self.deadline = None;
        }
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.frames.in_head() {
            return Poll::Pending;
        }
        let head_time = self.head_time;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(head_time)));
        if deadline.as_mut().poll(cx).is_ready() || deadline.deadline() <= Instant::now() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Frames {
    fn new() -> Self {
        Self { preface: PREFACE, header: [0; HEADER], header_bytes: 0, payload: 0, in_block: false }
    }

    /// Takes bytes; says whether at some point among them, or after them, no head was under way.
    fn pass(&mut self, bytes: &[u8]) -> bool {
        let mut left = bytes;
        let mut clear = !self.in_head();
        while !left.is_empty() {
            left = self.step(left);
            clear |= !self.in_head();
        }
        clear
    }

    /// Whether the preface, a header block or a frame other than DATA has begun and is not whole.
    fn in_head(&self) -> bool {
        let in_frame = self.header_bytes > 0 && !(self.header_bytes == HEADER && self.is(DATA));
        self.preface > 0 || self.in_block || in_frame
    }

    /// Takes what belongs together at most, and gives the rest.
    fn step<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.preface > 0 {
            let taken = self.preface.min(bytes.len());
            self.preface -= taken;
            return bytes.get(taken..).unwrap_or_default();
        }
        let rest = if self.header_bytes < HEADER {
            let Some((byte, rest)) = bytes.split_first() else { return bytes };
            if let Some(place) = self.header.get_mut(self.header_bytes) {
                *place = *byte;
            }
            self.header_bytes += 1;
            if self.header_bytes == HEADER {
                let [high, middle, low, ..] = self.header;
                let length = u32::from_be_bytes([0, high, middle, low]);
                self.payload = usize::try_from(length).unwrap_or(usize::MAX);
            }
            rest
        } else {
            let taken = self.payload.min(bytes.len());
            self.payload -= taken;
            bytes.get(taken..).unwrap_or_default()
        };
        if self.header_bytes == HEADER && self.payload == 0 {
            self.end_frame();
        }
        rest
    }

    fn end_frame(&mut self) {
        let [.., flags, _, _, _, _] = self.header;
        if self.is(HEADERS) || self.is(CONTINUATION) {
            self.in_block = flags & END_HEADERS == 0;
        }
        self.header_bytes = 0;
    }

    fn is(&self, kind: u8) -> bool {
        let [_, _, _, own, ..] = self.header;
        own == kind
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadWatch<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let watch = self.get_mut();
        let before = out.filled().len();
        let read = Pin::new(&mut watch.stream).poll_read(cx, out);
        watch.saw(out.filled().get(before..).unwrap_or_default());
        if watch.poll_late(cx).is_ready() {
            let violation = Violation { reason: Reason::HttpTimeout, at_head: true };
            watch.exchanges.break_rule(violation);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

writes_go_straight_through!(HeadWatch, stream);

/// Bytes of the connection preface before its SETTINGS frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Bytes of a frame's header (RFC 9113, section 4.1).
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PING: u8 = 6;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &[0, 0, 0, 1], payload].concat()
    }

    /// What a connection may look like, and for each of its bytes whether a head is under way after
    /// it.
    fn conversation() -> Vec<(Vec<u8>, bool)> {
        vec![
            (vec![b'P'; PREFACE - 1], true),
            (vec![b'P'], false),
            (frame(4, 0, b""), false),
            (frame(HEADERS, END_HEADERS, b"abc"), false),
            (frame(HEADERS, END_HEADERS, b"abc")[..11].to_vec(), true),
            (b"c".to_vec(), false),
            (frame(DATA, 0, &[0; 300])[..9].to_vec(), false),
            (vec![0; 299], false),
            (vec![0], false),
            (frame(PING, 0, &[0; 8])[..10].to_vec(), true),
            (vec![0; 7], false),
            (frame(HEADERS, 0, b"abc"), true),
            (frame(CONTINUATION, 0, b""), true),
            (frame(CONTINUATION, END_HEADERS, b"d"), false),
            (frame(DATA, 0, b"")[..3].to_vec(), true),
        ]
    }

    #[test]
    fn a_head_is_under_way_from_its_first_byte_to_its_last_however_it_is_cut() {
        for cut in [1, 2, 5, 1_000] {
            let mut frames = Frames::new();
            for (bytes, in_head) in conversation() {
                for piece in bytes.chunks(cut) {
                    frames.pass(piece);
                }
                assert_eq!(frames.in_head(), in_head, "{bytes:?}, {cut} at a time: {frames:?}");
            }
        }
        let all: Vec<u8> = conversation().into_iter().flat_map(|(bytes, _)| bytes).collect();
        for end in 0..all.len() {
            let (mut one, mut other) = (Frames::new(), Frames::new());
            one.pass(&all[..end]);
            all[..end].iter().for_each(|byte| _ = other.pass(&[*byte]));
            assert_eq!(one.in_head(), other.in_head(), "{end}");
        }
    }

    /// The same from the frames themselves: whether a head is under way after so many bytes.
    fn in_head_after(frames: &[(u8, u8, Vec<u8>)], bytes: usize) -> bool {
        let Some(mut left) = bytes.checked_sub(PREFACE) else { return true };
        let mut in_block = false;
        for (kind, flags, payload) in frames {
            let length = HEADER + payload.len();
            if left < length {
                let known_data = left >= HEADER && *kind == DATA;
                return in_block || (left > 0 && !known_data);
            }
            left -= length;
            if [HEADERS, CONTINUATION].contains(kind) {
                in_block = flags & END_HEADERS == 0;
            }
        }
        in_block
    }

    proptest! {
        #[test]
        fn frames_of_every_kind_are_told_apart_at_every_split(
            frames in vec((0u8..12, any::<u8>(), vec(any::<u8>(), 0..40)), 0..12),
            splits in vec(1usize..60, 1..200),
        ) {
            let sent = frames.iter().map(|(kind, flags, payload)| frame(*kind, *flags, payload));
            let all = [vec![b'P'; PREFACE], sent.collect::<Vec<_>>().concat()].concat();
            let (mut watched, mut at) = (Frames::new(), 0);
            for split in splits.iter().cycle() {
                let end = (at + split).min(all.len());
                let clear = watched.pass(&all[at..end]);
                prop_assert_eq!(watched.in_head(), in_head_after(&frames, end));
                prop_assert_eq!(clear, (at..=end).any(|at| !in_head_after(&frames, at)));
                at = end;
                if at == all.len() {
                    break;
                }
            }
        }

        #[test]
        fn whatever_comes_is_passed_to_its_end(bytes in vec(any::<u8>(), 0..400), at in 0usize..400) {
            let at = at.min(bytes.len());
            let (mut whole, mut parts) = (Frames::new(), Frames::new());
            whole.pass(&bytes);
            parts.pass(&bytes[..at]);
            parts.pass(&bytes[at..]);
            prop_assert_eq!(format!("{whole:?}"), format!("{parts:?}"));
        }
    }

    async fn cut_after(frames: &[Vec<u8>], pause: Duration) -> Option<Violation> {
        let (mut agent, gateway) = tokio::io::duplex(64);
        let exchanges = Arc::<Exchanges>::default();
        let head_time = Duration::from_millis(200);
        let mut watch = HeadWatch::new(gateway, head_time, Arc::clone(&exchanges));
        let write = async {
            for frame in frames {
                if agent.write_all(frame).await.is_err() {
                    break;
                }
                sleep(pause).await;
            }
            drop(agent);
        };
        let read = async {
            let _ = watch.read_to_end(&mut Vec::new()).await;
            drop(watch);
        };
        tokio::join!(write, read);
        exchanges.violation()
    }

    #[tokio::test]
    async fn a_head_that_trickles_is_cut_and_many_whole_ones_are_not() {
        let begin = [vec![b'P'; PREFACE], frame(HEADERS, 0, b"abc")].concat();
        let trickle: Vec<_> = std::iter::once(begin)
            .chain(std::iter::repeat_n(frame(CONTINUATION, 0, b"x"), 100))
            .collect();
        let late = Some(Violation { reason: Reason::HttpTimeout, at_head: true });
        assert_eq!(cut_after(&trickle, Duration::from_millis(20)).await, late);
        assert_eq!(cut_after(&[b"PRI".to_vec()], Duration::from_secs(1)).await, late);
        // Each ends in the middle of the next one, so no read leaves the reader without a head.
        let whole = [&frame(HEADERS, END_HEADERS, b"abc")[5..], &frame(HEADERS, 4, b"abc")[..5]];
        let begin = [vec![b'P'; PREFACE], whole[1].to_vec()].concat();
        let busy: Vec<_> =
            std::iter::once(begin).chain(std::iter::repeat_n(whole.concat(), 100)).collect();
        assert_eq!(cut_after(&busy[..100], Duration::from_millis(20)).await, None);
    }
}
