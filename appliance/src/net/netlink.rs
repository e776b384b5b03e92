//! The bytes of netlink: messages, and attributes in them (`netlink(7)`).
//!
//! The kernel's messages are walked with bounds checks all the same.

use nftnl::nftnl_sys::libc;

/// One netlink message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    flags: u16,
    pub(crate) sequence: u32,
    /// The bytes after the header of 16 bytes.
    pub(crate) payload: &'a [u8],
}

impl Message<'_> {
    /// Returns the errno of an acknowledgement, 0 for success; `None` for any other message.
    pub(crate) fn errno(&self) -> Option<i32> {
        if i32::from(self.kind) != libc::NLMSG_ERROR {
            return None;
        }
        let code = self.payload.first_chunk::<4>()?;
        Some(i32::from_ne_bytes(*code).saturating_neg())
    }

    /// Returns the errno with which a dump ends, 0 for success; `None` for any other message.
    pub(crate) fn end(&self) -> Option<i32> {
        if i32::from(self.kind) != libc::NLMSG_DONE {
            return None;
        }
        let code = self.payload.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
        Some(code.min(0).saturating_neg())
    }

    /// Returns whether the kernel's objects changed during the dump, which is inconsistent then.
    pub(crate) fn is_interrupted(&self) -> bool {
        i32::from(self.flags) & libc::NLM_F_DUMP_INTR != 0
    }
}

/// Returns the messages of one datagram, up to the first that does not fit.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER_BYTES>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let payload = rest.get(HEADER_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
        })
    })
}

/// Returns the attributes of a message or of a nest, by number, up to the first that does not fit.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    nests(bytes).map(|(number, _, value)| (number, value))
}

/// Returns the same, with whether the attribute is marked as a nest. The kernel does not mark them.
pub(crate) fn nests(bytes: &[u8]) -> impl Iterator<Item = (u16, bool, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [l0, l1, n0, n1] = *rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        let number = u16::from_ne_bytes([n0, n1]);
        Some((number & NUMBER_MASK, number & NEST != 0, value))
    })
}

/// Returns the first attribute of this number.
pub(crate) fn attribute(bytes: &[u8], number: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == number).map(|(_, value)| value)
}

/// Returns an attribute as text, without the NUL at its end.
pub(crate) fn text(bytes: &[u8], number: u16) -> Option<&str> {
    let value = attribute(bytes, number)?;
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}

/// Returns an attribute as a number in network order.
pub(crate) fn number(bytes: &[u8], number: u16) -> Option<u32> {
    attribute(bytes, number)?.first_chunk::<4>().map(|value| u32::from_be_bytes(*value))
}

/// Encodes an attribute with its header and padding.
pub(crate) fn encode(number: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(ALIGN));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(number.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(ALIGN), 0);
    bytes
}

/// Encodes a message from a body that begins with its family's header.
pub(crate) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
    message.extend(((HEADER_BYTES + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
const ALIGN: usize = 4;
/// Removes the flags for nests and byte order.
const NUMBER_MASK: u16 = 0x3fff;
/// `NLA_F_NESTED`.
const NEST: u16 = 1 << 15;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_the_kernel_could_send_panics(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            for message in messages(&bytes) {
                let _ = (message.errno(), attributes(message.payload).count());
            }
            prop_assert!(attributes(&bytes).count() <= bytes.len());
        }
    }
}
