//! The first line of a run.

use serde::Serialize;

use super::{kind::Kind, stamp::now};

/// The record of one start of the daemon, the first line that a run writes.
#[derive(Debug, Serialize)]
pub(super) struct StartLine {
    time: String,
    record: Kind,
    version: &'static str,
}

impl StartLine {
    pub(super) fn now() -> Self {
        Self { time: now(), record: Kind::Start, version: env!("CARGO_PKG_VERSION") }
    }
}
