//! The frame of gzip: any number of members, each with a head, a deflate stream and a sum.

use flate2::Crc;

use super::{
    codec::{Codec, CodecStep, Mark, Undecodable},
    deflate::Inflate,
};

/// A body of gzip members.
pub(super) struct Gzip {
    at: GzipState,
    head: Head,
    inflate: Inflate,
    sum: Crc,
}

/// The part of a member that the next byte belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GzipState {
    /// Before the first member.
    Begin,
    Head,
    Text,
    /// The sum and the length: the number of their bytes that were read, and those bytes.
    Foot(usize, u64),
    /// Behind a member, where another one may begin.
    End,
}

impl Gzip {
    pub(super) fn new() -> Self {
        let (head, inflate) = (Head::default(), Inflate::raw());
        Self { at: GzipState::Begin, head, inflate, sum: Crc::new() }
    }

    fn text(&mut self, input: &[u8], out: &mut [u8]) -> Result<CodecStep, Undecodable> {
        let step = self.inflate.decode(input, out)?;
        self.sum.update(out.get(..step.written).unwrap_or_default());
        if self.inflate.has_ended() {
            self.at = GzipState::Foot(0, 0);
        }
        Ok(step)
    }

    /// Takes a byte of the frame; everything except the text goes byte by byte.
    fn frame(&mut self, byte: u8) -> Result<(), Undecodable> {
        match self.at {
            GzipState::Begin | GzipState::End => {
                (self.head, self.sum) = (Head::default(), Crc::new());
                self.inflate.reset();
                self.at = GzipState::Head;
                self.head(byte)
            }
            GzipState::Head => self.head(byte),
            GzipState::Foot(count, foot) => self.foot(count + 1, foot >> 8 | u64::from(byte) << 56),
            GzipState::Text => Ok(()),
        }
    }

    fn head(&mut self, byte: u8) -> Result<(), Undecodable> {
        if self.head.take(byte)? {
            self.at = GzipState::Text;
        }
        Ok(())
    }

    fn foot(&mut self, count: usize, foot: u64) -> Result<(), Undecodable> {
        let said = u64::from(self.sum.amount()) << 32 | u64::from(self.sum.sum());
        self.at = match count == FOOT {
            true if said == foot => GzipState::End,
            true => return Err(Undecodable::Malformed),
            false => GzipState::Foot(count, foot),
        };
        Ok(())
    }
}

impl Codec for Gzip {
    fn stretch(&mut self, input: &[u8], _: bool) -> usize {
        if self.at == GzipState::Text { self.inflate.stretch(input) } else { 1 }
    }

    fn decode(&mut self, input: &[u8], out: &mut [u8]) -> Result<CodecStep, Undecodable> {
        if self.at == GzipState::Text {
            return self.text(input, out);
        }
        match input.first() {
            Some(&byte) => self.frame(byte).map(|()| CodecStep { read: 1, ..CodecStep::default() }),
            None => Ok(CodecStep::default()),
        }
    }

    fn mark(&mut self) -> Mark {
        match self.at {
            GzipState::Text => self.inflate.mark(),
            GzipState::End => Mark::Flush,
            _ => Mark::None,
        }
    }

    fn is_whole(&self) -> bool {
        self.at == GzipState::End
    }
}

/// The head of a member (RFC 1952, section 2.3), as far as it was read.
#[derive(Default)]
struct Head {
    part: HeaderPart,
    flags: u8,
    sum: Crc,
    /// The bytes of the part that were read.
    count: usize,
    /// The last two bytes.
    last: u16,
    length: usize,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum HeaderPart {
    #[default]
    Fixed,
    ExtraLength,
    Extra(u16),
    Name,
    Comment,
    Sum(u16),
    Done,
}

impl Head {
    /// Takes a byte, and returns whether it was the last one.
    fn take(&mut self, byte: u8) -> Result<bool, Undecodable> {
        self.length += 1;
        self.count += 1;
        self.last = self.last >> 8 | u16::from(byte) << 8;
        if self.length > LONGEST_HEAD || !self.may_be(byte) {
            return Err(Undecodable::Malformed);
        }
        self.sum.update(&[byte]);
        if self.ends(byte) {
            self.count = 0;
            self.part = self.next();
        }
        Ok(self.part == HeaderPart::Done)
    }

    fn may_be(&mut self, byte: u8) -> bool {
        match (self.part, self.count) {
            (HeaderPart::Fixed, 1) => byte == 0x1f,
            (HeaderPart::Fixed, 2) => byte == 0x8b,
            (HeaderPart::Fixed, 3) => byte == DEFLATE,
            (HeaderPart::Fixed, 4) => {
                self.flags = byte;
                byte & RESERVED == 0
            }
            (HeaderPart::Sum(sum), 2) => self.last == sum,
            _ => true,
        }
    }

    fn ends(&self, byte: u8) -> bool {
        match self.part {
            HeaderPart::Fixed => self.count == FIXED,
            HeaderPart::ExtraLength | HeaderPart::Sum(_) => self.count == 2,
            HeaderPart::Extra(length) => self.count == usize::from(length),
            HeaderPart::Name | HeaderPart::Comment => byte == 0,
            HeaderPart::Done => true,
        }
    }

    /// Returns the part behind one that has ended.
    fn next(&self) -> HeaderPart {
        let has = |flag: u8| self.flags & flag != 0;
        let behind = |part: u8| match part {
            0 if has(EXTRA) => HeaderPart::ExtraLength,
            0 | 1 if has(NAME) => HeaderPart::Name,
            0..=2 if has(COMMENT) => HeaderPart::Comment,
            0..=3 if has(SUM) => HeaderPart::Sum(self.sum.sum() as u16),
            _ => HeaderPart::Done,
        };
        match self.part {
            HeaderPart::Fixed => behind(0),
            HeaderPart::ExtraLength if self.last > 0 => HeaderPart::Extra(self.last),
            HeaderPart::ExtraLength | HeaderPart::Extra(_) => behind(1),
            HeaderPart::Name => behind(2),
            HeaderPart::Comment => behind(3),
            HeaderPart::Sum(_) | HeaderPart::Done => HeaderPart::Done,
        }
    }
}

/// Bytes before the optional parts.
const FIXED: usize = 10;
/// Bytes of the sum and the length.
const FOOT: usize = 8;
/// The most bytes of a head. Real heads are far shorter.
const LONGEST_HEAD: usize = 8 * 1024;
const DEFLATE: u8 = 8;
const SUM: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;
