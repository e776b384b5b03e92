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

pub(crate) use crate::net::netlink::{
    attribute, attributes, encode, message, messages, nests, number, text,
};

use super::super::ruleset::language::TableFamily;
use crate::policy::InterfaceName;

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
                interrupted |= message.is_interrupted();
                if let Some(errno) = message.errno() {
                    return Err(io::Error::from_raw_os_error(errno));
                }
                match message.end() {
                    None => {}
                    Some(0) => return Ok((!interrupted).then_some(answers)),
                    Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                }
                answers.push(message.payload.get(GENMSG_BYTES..).unwrap_or_default().to_vec());
            }
        }
    }
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
/// `struct nfgenmsg`.
pub(crate) const GENMSG_BYTES: usize = 4;
const DUMP_ATTEMPTS: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_reads_back_as_one_message() {
        let bytes =
            question(TableFamily::Inet, libc::NFT_MSG_GETRULE, &[(1, "cloakroom"), (2, "input")]);
        let message = messages(&bytes).next().unwrap();
        assert_eq!(messages(&bytes).count(), 1);
        let body = &message.payload[GENMSG_BYTES..];
        assert_eq!((text(body, 1), text(body, 2)), (Some("cloakroom"), Some("input")));
    }
}
