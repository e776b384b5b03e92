//! WebSocket over HTTP/1.1 (RFC 6455), where a rule says so.
//!
//! The handshake is a request like any other until its answer: held against the same rules, with
//! values put in at the same places and at one more, a subprotocol. An answer that is not the one
//! to this request, by its key and its protocol, is refused. From then on no byte passes as it
//! came: each side's frames are read, checked and made again ([`lane`]), so that neither can say to
//! the other what the gateway did not read.
//!
//! Frame headers are read and written by `tungstenite`: the codec that most of Rust's WebSocket
//! stacks stand on, kept up for years by a company that lives of it, MIT or Apache-2.0, and with a
//! header parser that stands by itself. `fastwebsockets` has its parser inside of its own streams,
//! which gather a frame whole. Without its default features it brings no handshake, no TLS and no
//! hash.
//!
//! No extension is offered to either side: what `permessage-deflate` compresses would have to be
//! decoded to be masked. HTTP/2 carries none (RFC 8441): it is not announced.

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
