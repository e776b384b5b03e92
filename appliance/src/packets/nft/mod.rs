//! Sends the rules to the kernel, and reads back which rules it holds.

mod foreign;
pub(crate) mod install;
mod lower;
mod monitor;
mod netlink;
mod nflog;
mod raw_expr;
pub(crate) mod readback;

pub use foreign::{ForeignRules, foreign_rules};
pub use monitor::Monitor;
pub use nflog::{Headers, PacketLog, RefusedPacket};
pub use readback::unlogged;
