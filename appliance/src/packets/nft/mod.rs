//! Sends the rules to the kernel, and reads back which rules it holds.

pub(crate) mod install;
mod lower;
mod marks;
mod monitor;
mod netlink;
mod nflog;
mod raw_expr;
pub(crate) mod readback;

pub use marks::{ForeignMark, foreign_marks};
pub use monitor::Monitor;
pub use nflog::{Headers, PacketLog, RefusedPacket};
pub use readback::unlogged;
