//! Netlink messages to netfilter: a batch and its acknowledgements, or a dump.
//!
//! Each exchange has one short-lived socket, with a deadline on every read: the kernel answers at
//! once or not at all. The kernel's messages are read with bounds checks all the same.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use nftnl::nftnl_sys::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::super::ruleset::language::TableFamily;
use crate::policy::InterfaceName;

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
}

/// A socket to netfilter.
#[derive(Debug)]
pub(crate) struct Netfilter {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Netfilter {
    pub(crate) fn open() -> io::Result<Self> {
        let domain = Domain::from(libc::AF_NETLINK);
        let protocol = Protocol::from(libc::NETLINK_NETFILTER);
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.set_read_timeout(Some(READ_DEADLINE))?;
        // The kernel reads a batch whole and queues every answer before `send` returns.
        socket.set_send_buffer_size(BUFFER_BYTES)?;
        socket.set_recv_buffer_size(BUFFER_BYTES)?;
        Ok(Self { socket, buffer: vec![0; READ_BYTES] })
    }

    /// Gives the kernel this much room for messages that it sends unasked. The room stays as it is
    /// where that is not allowed.
    pub(crate) fn widen(&self, bytes: usize) {
        // The reader counts messages that do not fit.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&self.socket, bytes);
    }

    /// Makes room for one datagram of this many bytes, where that is allowed.
    pub(crate) fn make_room(&self, bytes: usize) {
        // A datagram that does not fit is refused as a whole when it is sent.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&self.socket, bytes);
    }

    /// Sets how long a read waits.
    pub(crate) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(timeout))
    }

    /// Returns the name of an interface by its number in this network namespace.
    pub(crate) fn interface(&self, index: u32) -> Option<InterfaceName> {
        let name = rustix::net::netdevice::index_to_name(&self.socket, index).ok()?;
        Some(InterfaceName(name.into()))
    }

    /// Sends one transaction. The kernel wants all of it in one datagram.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.socket.write(bytes)? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(io::Error::other("the transaction was cut short")),
        }
    }

    /// Receives the next datagram; its messages are read with [`messages`].
    pub(crate) fn receive(&mut self) -> io::Result<&[u8]> {
        let length = self.socket.read(&mut self.buffer)?;
        Ok(self.buffer.get(..length).unwrap_or_default())
    }

    /// Returns all of the kernel's objects of one kind in a family, each without its `nfgenmsg`.
    /// `attributes` narrow the request.
    pub(crate) fn dump(
        &mut self,
        family: TableFamily,
        kind: i32,
        attributes: &[(u16, &str)],
    ) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(&question(family, kind, attributes))?;
            if let Some(answers) = self.answers()? {
                return Ok(answers);
            }
        }
        Err(io::Error::other("the tables kept changing while they were read"))
    }

    /// Collects one dump; `None` where a change in between made it inconsistent.
    fn answers(&mut self) -> io::Result<Option<Vec<Vec<u8>>>> {
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let datagram = self.receive()?;
            if datagram.is_empty() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            for message in messages(datagram) {
                interrupted |= i32::from(message.flags) & libc::NLM_F_DUMP_INTR != 0;
                if let Some(errno) = message.errno() {
                    return Err(io::Error::from_raw_os_error(errno));
                }
                if i32::from(message.kind) == libc::NLMSG_DONE {
                    return Ok((!interrupted).then_some(answers));
                }
                answers.push(message.payload.get(GENMSG_BYTES..).unwrap_or_default().to_vec());
            }
        }
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

/// Encodes a message to netfilter from a body that begins with its `nfgenmsg`.
pub(crate) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
    message.extend(((HEADER_BYTES + body.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn question(family: TableFamily, kind: i32, attributes: &[(u16, &str)]) -> Vec<u8> {
    let mut body = vec![family.proto() as u8, 0, 0, 0];
    for (number, value) in attributes {
        body.extend(encode(*number, &[value.as_bytes(), &[0]].concat()));
    }
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    message((libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16, flags, &body)
}

const READ_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a read. The kernel's largest datagram of a dump has 32 KiB.
const READ_BYTES: usize = 64 * 1024;
const BUFFER_BYTES: usize = 1024 * 1024;
/// `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// `struct nfgenmsg`.
pub(crate) const GENMSG_BYTES: usize = 4;
const ALIGN: usize = 4;
/// Removes the flags for nests and byte order.
const NUMBER_MASK: u16 = 0x3fff;
/// `NLA_F_NESTED`.
const NEST: u16 = 1 << 15;
const DUMP_ATTEMPTS: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_question_reads_back_as_one_message() {
        let bytes =
            question(TableFamily::Inet, libc::NFT_MSG_GETRULE, &[(1, "cloakroom"), (2, "input")]);
        let message = messages(&bytes).next().unwrap();
        assert_eq!(message.payload.len() + HEADER_BYTES, bytes.len());
        let body = &message.payload[GENMSG_BYTES..];
        assert_eq!((text(body, 1), text(body, 2)), (Some("cloakroom"), Some("input")));
    }

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
