//! Helpers that every user of sockets shares: options, addresses, the end of a connection.

pub(crate) mod netlink;
mod packet_info;
mod passthrough;
mod socket;

pub(crate) use packet_info::{Datagram, make_room, receive, send, tell_destinations};
pub(crate) use passthrough::writes_go_straight_through;
pub use socket::{canonical, harden, notice_absence, reset, send_at_once};
