//! WebSocket over HTTP/1.1 (RFC 6455), where a rule says so.
//!
//! The handshake is a request like any other until its answer: it meets the same rules, and values
//! are put in at the same places and at one more, a subprotocol. An answer with another key or
//! protocol than this request asks for is refused. From then on no byte passes as it came: each
//! side's frames are read, checked and made again ([`lane`]), so that no side can say to the other
//! a thing that the gateway has not read.
//!
//! `tungstenite` reads and writes frame headers: most of Rust's WebSocket stacks use it, a company
//! that lives by it has kept it up for years, its licence is MIT or Apache-2.0, and its header
//! parser can be used alone. `fastwebsockets` has its parser inside of its own streams, which
//! gather a frame whole. Without its default features `tungstenite` brings no handshake, no TLS and
//! no hash.
//!
//! No extension is offered to either side: a message that `permessage-deflate` compresses would
//! have to be decoded to be masked. WebSocket over HTTP/2 (RFC 8441) is not announced.

mod carry;
mod handshake;
mod lane;
mod switch;
#[cfg(test)]
mod tests;

pub(super) use carry::{WebSocketEnds, carry};
pub(super) use handshake::{Asked, asked};
pub use lane::{
    FrameFault, FrameSender, MAX_FRAGMENTS, MAX_MESSAGE, Passed, WHOLE_FRAME, WebSocketLane,
};
pub(super) use switch::{Begun, Switch};
