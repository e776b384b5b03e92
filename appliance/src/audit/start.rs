//! The record of the start.

use serde::Serialize;

use super::{kind::RecordKind, stamp::now};

/// The record of one start of the daemon, the first line that a run writes.
#[derive(Debug, Serialize)]
pub(super) struct StartLine {
    time: String,
    record: RecordKind,
    version: &'static str,
}

impl StartLine {
    pub(super) fn now() -> Self {
        Self { time: now(), record: RecordKind::Start, version: env!("CARGO_PKG_VERSION") }
    }
}
