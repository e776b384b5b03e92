//! The beginning and end of each frame of an HTTP/2 connection, in one direction (RFC 9113, section
//! 4.1). Pure.

/// The position of the next byte.
#[derive(Debug)]
pub(super) struct Frames {
    preface: usize,
    header: [u8; HEADER],
    header_bytes: usize,
    payload: usize,
    code: Option<u32>,
    in_block: bool,
}

/// One whole frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its type.
    pub(super) kind: u8,
    /// Its flags.
    pub(super) flags: u8,
    /// The stream that it belongs to; 0 for the connection.
    pub(super) stream: u32,
    /// The error code of an RST_STREAM, if it has one.
    pub(super) code: Option<u32>,
}

impl Frame {
    /// Whether it ends a header block.
    pub(super) fn ends_block(self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION) && self.flags & END_HEADERS != 0
    }
}

impl Frames {
    /// Begins before a client's bytes: frames behind a preface.
    pub(super) fn of_client() -> Self {
        Self { preface: PREFACE, ..Self::of_server() }
    }

    /// Begins before a server's bytes.
    pub(super) fn of_server() -> Self {
        Self {
            preface: 0,
            header: [0; HEADER],
            header_bytes: 0,
            payload: 0,
            code: None,
            in_block: false,
        }
    }

    /// Whether the preface, a header block or a frame other than DATA has begun and is not whole.
    pub(super) fn in_head(&self) -> bool {
        let in_frame = self.header_bytes > 0 && !(self.header_is_whole() && self.is(DATA));
        self.preface > 0 || self.in_block || in_frame
    }

    /// Whether a header block has begun and is not whole.
    pub(super) fn in_block(&self) -> bool {
        self.in_block || (self.header_is_whole() && self.is(HEADERS))
    }

    /// Whether these bytes, which come next, begin a header block.
    pub(super) fn begins_block(&self, next: &[u8]) -> bool {
        self.preface == 0
            && self.header_bytes == 0
            && matches!(next.first_chunk::<HEADER>(), Some([_, _, _, HEADERS, ..]))
    }

    /// Takes at most one part of a frame. Returns the number of bytes taken, and the frame that
    /// they end.
    pub(super) fn step(&mut self, bytes: &[u8]) -> (usize, Option<Frame>) {
        if self.preface > 0 {
            let taken = self.preface.min(bytes.len());
            self.preface -= taken;
            return (taken, None);
        }
        let taken =
            if self.header_is_whole() { self.take_payload(bytes) } else { self.take_header(bytes) };
        let ended = self.header_is_whole() && self.payload == 0;
        (taken, ended.then(|| self.end()))
    }

    fn header_is_whole(&self) -> bool {
        self.header_bytes == HEADER
    }

    fn take_header(&mut self, bytes: &[u8]) -> usize {
        let room = self.header.iter_mut().skip(self.header_bytes);
        let taken = room.zip(bytes).map(|(place, byte)| *place = *byte).count();
        self.header_bytes += taken;
        if self.header_is_whole() {
            let [high, middle, low, ..] = self.header;
            let length = u32::from_be_bytes([0, high, middle, low]);
            self.payload = usize::try_from(length).unwrap_or(usize::MAX);
            self.code = (self.is(RST_STREAM) && self.payload == CODE).then_some(0);
        }
        taken
    }

    fn take_payload(&mut self, bytes: &[u8]) -> usize {
        let taken = self.payload.min(bytes.len());
        if let Some(code) = &mut self.code {
            *code = bytes.iter().take(taken).fold(*code, |code, byte| code << 8 | u32::from(*byte));
        }
        self.payload -= taken;
        taken
    }

    fn end(&mut self) -> Frame {
        let [_, _, _, kind, flags, stream @ ..] = self.header;
        let stream = u32::from_be_bytes(stream) & !RESERVED;
        let frame = Frame { kind, flags, stream, code: self.code };
        if matches!(kind, HEADERS | CONTINUATION) {
            self.in_block = !frame.ends_block();
        }
        self.header_bytes = 0;
        frame
    }

    fn is(&self, kind: u8) -> bool {
        let [_, _, _, own, ..] = self.header;
        own == kind
    }
}

/// Bytes of the connection preface before its SETTINGS frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Bytes of a frame's header (RFC 9113, section 4.1).
const HEADER: usize = 9;
/// Bytes of an error code (RFC 9113, section 6.4).
const CODE: usize = 4;
/// The reserved bit of a stream's number.
const RESERVED: u32 = 1 << 31;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

#[cfg(test)]
pub(super) mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    pub(in crate::intercept) const WHOLE: u8 = END_HEADERS;
    const PING: u8 = 6;

    pub(in crate::intercept) fn preface() -> Vec<u8> {
        vec![b'P'; PREFACE]
    }

    pub(in crate::intercept) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn pass(frames: &mut Frames, bytes: &[u8]) -> Vec<Frame> {
        let (mut at, mut ended) = (0, Vec::new());
        while at < bytes.len() {
            let (taken, frame) = frames.step(&bytes[at..]);
            at += taken;
            ended.extend(frame);
        }
        ended
    }

    /// Returns the parts of a connection, and whether a head is under way after the last byte of
    /// each.
    fn conversation() -> Vec<(Vec<u8>, bool)> {
        vec![
            (vec![b'P'; PREFACE - 1], true),
            (vec![b'P'], false),
            (frame(4, 0, 0, b""), false),
            (frame(HEADERS, END_HEADERS, 1, b"abc"), false),
            (frame(HEADERS, END_HEADERS, 3, b"abc")[..11].to_vec(), true),
            (b"c".to_vec(), false),
            (frame(DATA, 0, 3, &[0; 300])[..9].to_vec(), false),
            (vec![0; 299], false),
            (vec![0], false),
            (frame(PING, 0, 0, &[0; 8])[..10].to_vec(), true),
            (vec![0; 7], false),
            (frame(HEADERS, 0, 5, b"abc"), true),
            (frame(CONTINUATION, 0, 5, b""), true),
            (frame(CONTINUATION, END_HEADERS, 5, b"d"), false),
            (frame(DATA, 0, 5, b"")[..3].to_vec(), true),
        ]
    }

    #[test]
    fn a_head_is_under_way_from_first_to_last_byte() {
        for cut in [1, 2, 5, 1_000] {
            let mut frames = Frames::of_client();
            for (bytes, in_head) in conversation() {
                for piece in bytes.chunks(cut) {
                    pass(&mut frames, piece);
                }
                assert_eq!(frames.in_head(), in_head, "{bytes:?}, {cut} at a time: {frames:?}");
            }
        }
    }

    /// Whether a head is under way after so many bytes, computed from the frames themselves.
    fn in_head_after(frames: &[(u8, u8, u32, Vec<u8>)], bytes: usize) -> bool {
        let Some(mut left) = bytes.checked_sub(PREFACE) else { return true };
        let mut in_block = false;
        for (kind, flags, _, payload) in frames {
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
            sent in vec((0u8..12, any::<u8>(), any::<u32>(), vec(any::<u8>(), 0..40)), 0..12),
            splits in vec(1usize..60, 1..200),
        ) {
            let bytes = sent.iter().map(|(kind, flags, on, payload)| frame(*kind, *flags, *on, payload));
            let all = [preface(), bytes.collect::<Vec<_>>().concat()].concat();
            let (mut watched, mut at, mut seen) = (Frames::of_client(), 0, Vec::new());
            for split in splits.iter().cycle() {
                let end = (at + split).min(all.len());
                seen.extend(pass(&mut watched, &all[at..end]));
                prop_assert_eq!(watched.in_head(), in_head_after(&sent, end));
                at = end;
                if at == all.len() {
                    break;
                }
            }
            let meant = sent.iter().map(|(kind, flags, stream, payload)| Frame {
                kind: *kind,
                flags: *flags,
                stream: stream & !RESERVED,
                code: payload[..].try_into().ok().filter(|_| *kind == RST_STREAM).map(u32::from_be_bytes),
            });
            prop_assert_eq!(seen, meant.collect::<Vec<_>>());
        }

        #[test]
        fn whatever_comes_is_passed_to_its_end(bytes in vec(any::<u8>(), 0..400), at in 0usize..400) {
            let at = at.min(bytes.len());
            let (mut whole, mut parts) = (Frames::of_client(), Frames::of_client());
            pass(&mut whole, &bytes);
            pass(&mut parts, &bytes[..at]);
            pass(&mut parts, &bytes[at..]);
            prop_assert_eq!(format!("{whole:?}"), format!("{parts:?}"));
        }
    }
}
