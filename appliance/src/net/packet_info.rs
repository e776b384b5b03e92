//! Datagrams with the address that they were sent to, and answers that come from there.
//!
//! The socket is bound to an address that nobody asks. So the kernel tells the destination beside
//! each datagram (`IP_PKTINFO`, `IPV6_PKTINFO`), and takes the source of each answer in the same
//! way. A source that is not the machine's own is possible because the socket is transparent.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
};

use nftnl::nftnl_sys::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo},
};
use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_send_buffer_size,
    set_socket_send_buffer_size_force,
};

/// A datagram that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    /// The address that it was sent to, which need not be the gateway's.
    pub(crate) to: IpAddr,
    /// The bytes of the buffer that it fills.
    pub(crate) bytes: usize,
}

/// Makes the kernel tell the destination of each datagram.
pub(crate) fn tell_destinations(socket: &impl AsFd, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        setsockopt(socket, Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(socket, Ipv4PacketInfo, &true)?;
    }
    Ok(())
}

/// Gives a socket room for [`RECEIVE_BYTES`] of queries and [`SEND_BYTES`] of answers.
///
/// The agents of an interface share its socket. An agent that floods gets no answer from its second
/// excess query on, and dropping a query takes less time than answering it. The room for queries
/// bridges the time in which the thread does something else. A packet for an agent that does not
/// reveal its card's address waits in the kernel, and takes up room meanwhile: [`crate::packets`]
/// bounds the packets that wait for each address, and there is room for thousands of such
/// addresses.
///
/// Without the right to set these sizes, the socket has those of `net.core.rmem_max` and
/// `net.core.wmem_max`: less room, and nothing else changes.
pub(crate) fn make_room(socket: &impl AsFd) {
    if set_socket_recv_buffer_size_force(socket, RECEIVE_BYTES).is_err()
        && let Err(error) = set_socket_recv_buffer_size(socket, RECEIVE_BYTES)
    {
        tracing::warn!(%error, "the receive buffer for DNS stays as it is");
    }
    if set_socket_send_buffer_size_force(socket, SEND_BYTES).is_err()
        && let Err(error) = set_socket_send_buffer_size(socket, SEND_BYTES)
    {
        tracing::warn!(%error, "the send buffer for DNS stays as it is");
    }
}

/// Receives one datagram without waiting. Returns `None` for one that cannot be answered: it is too
/// long, or the kernel does not tell its destination.
pub(crate) fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
    // On the heap, where it is aligned for the kernel's structures.
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut into = [IoSliceMut::new(buffer)];
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut into,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    if received.flags.contains(MsgFlags::MSG_TRUNC) {
        return Ok(None);
    }
    let mut to = None;
    for message in received.cmsgs()? {
        match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                to = Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                to = Some(IpAddr::from(info.ipi6_addr.s6_addr));
            }
            _ => {}
        }
    }
    let from = received.address.as_ref().and_then(socket_address);
    let bytes = received.bytes;
    Ok(from.zip(to).map(|(from, to)| Datagram { from, to, bytes }))
}

/// Sends an answer that comes from the address that was asked, without waiting.
pub(crate) fn send(socket: &impl AsRawFd, asked: &Datagram, answer: &[u8]) -> io::Result<()> {
    let bytes = [IoSlice::new(answer)];
    let to = SockaddrStorage::from(asked.from);
    let (v4, v6);
    let source = match asked.to {
        IpAddr::V4(address) => {
            v4 = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            ControlMessage::Ipv4PacketInfo(&v4)
        }
        IpAddr::V6(address) => {
            v6 = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: address.octets() },
                ipi6_ifindex: 0,
            };
            ControlMessage::Ipv6PacketInfo(&v6)
        }
    };
    sendmsg(socket.as_raw_fd(), &bytes, &[source], MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6)))
}

/// Room for queries that wait. The kernel counts some 800 bytes for a short one and doubles the
/// number (`socket(7)`, `SO_RCVBUF`): about 2,500 queries.
const RECEIVE_BYTES: usize = 1 << 20;
/// Room for answers on their way. Doubled as well: 32 MiB, for the packets that wait for 8,192
/// addresses.
const SEND_BYTES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_sockets_buffer_grows_as_far_as_it_may() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let room = || {
            [
                rustix::net::sockopt::socket_recv_buffer_size(&socket).unwrap(),
                rustix::net::sockopt::socket_send_buffer_size(&socket).unwrap(),
            ]
        };
        let before = room();
        make_room(&socket);
        let after = room();
        assert!(after[0] >= before[0] && after[1] >= before[1], "{before:?} {after:?}");
    }

    #[test]
    fn an_answer_comes_from_the_address_that_was_asked() {
        for (any, asked, ipv6) in [("0.0.0.0:0", "127.0.0.53", false), ("[::]:0", "::1", true)] {
            let socket = UdpSocket::bind(any).unwrap();
            tell_destinations(&socket, ipv6).unwrap();
            let port = socket.local_addr().unwrap().port();
            let asked = SocketAddr::new(asked.parse().unwrap(), port);
            let agent = UdpSocket::bind((if ipv6 { "::1" } else { "127.0.0.1" }, 0)).unwrap();
            agent.send_to(b"question", asked).unwrap();
            let mut buffer = [0; 64];
            let datagram = receive(&socket, &mut buffer).unwrap().unwrap();
            assert_eq!(datagram.to, asked.ip());
            assert_eq!(datagram.from, agent.local_addr().unwrap());
            assert_eq!(&buffer[..datagram.bytes], b"question");
            send(&socket, &datagram, b"answer").unwrap();
            let (bytes, from) = agent.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..bytes], from), (&b"answer"[..], asked));
            agent.send_to(&[7; 100], asked).unwrap();
            assert_eq!(receive(&socket, &mut buffer).unwrap(), None, "too long");
        }
    }
}
