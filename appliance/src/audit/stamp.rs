//! The times in records.

use std::time::SystemTime;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Returns the time now, in the form that records have.
pub(super) fn now() -> String {
    let now = OffsetDateTime::from(SystemTime::now());
    // RFC 3339 cannot write years beyond 9999; a clock that far off is written as a number.
    now.format(&Rfc3339).unwrap_or_else(|_| now.unix_timestamp().to_string())
}

/// Parses the time of a record.
pub fn time_of(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}
