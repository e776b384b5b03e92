//! Finds the ends of the messages of gRPC and Connect: each stands behind a byte of flags and its
//! length in four bytes, big-endian (gRPC over HTTP/2, "Length-Prefixed-Message").

/// Follows messages through the chunks of a body.
#[derive(Debug, Default)]
pub(super) struct Envelopes {
    /// The bytes of the prefix that were read.
    prefix: usize,
    /// The length as far as it was read; once the prefix is complete, the bytes of the message that
    /// are still to come.
    left: u32,
}

impl Envelopes {
    /// Takes a chunk and returns the place in it, if any, at which the last message ended.
    pub(super) fn advance(&mut self, chunk: &[u8]) -> Option<usize> {
        let mut ended = None;
        let mut at = 0;
        while at < chunk.len() {
            at += self.take(chunk.get(at..).unwrap_or_default());
            if self.prefix == PREFIX && self.left == 0 {
                ended = Some(at);
                self.prefix = 0;
            }
        }
        ended
    }

    /// Takes a part of `rest`, and returns how many bytes.
    fn take(&mut self, rest: &[u8]) -> usize {
        if self.prefix == PREFIX {
            let taken = rest.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= u32::try_from(taken).unwrap_or(self.left);
            return taken;
        }
        let byte = rest.first().copied().unwrap_or_default();
        if self.prefix > 0 {
            self.left = self.left << 8 | u32::from(byte);
        }
        self.prefix += 1;
        1
    }
}

/// Bytes before a message.
const PREFIX: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_message_is_found_at_every_split() {
        let message = |text: &[u8]| [&[0, 0, 0, 0, text.len() as u8], text].concat();
        let body = [message(b"abc"), message(b""), message(b"defgh")].concat();
        let ends = [8, 13, 23];
        for cut in 0..=body.len() {
            let (one, two) = body.split_at(cut);
            let mut envelopes = Envelopes::default();
            let found = (envelopes.advance(one), envelopes.advance(two).map(|end| cut + end));
            let before = ends.iter().rev().find(|&&end| end <= cut && cut > 0);
            let after = ends.last().filter(|&&end| end > cut);
            assert_eq!(found, (before.copied(), after.copied()), "cut at {cut}");
        }
    }
}
