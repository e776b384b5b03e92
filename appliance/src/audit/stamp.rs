//! When something was recorded.

use std::time::SystemTime;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The time now, as records say it.
pub(super) fn now() -> String {
    let now = OffsetDateTime::from(SystemTime::now());
    // RFC 3339 cannot write years beyond 9999; a clock that far off is told as it is.
    now.format(&Rfc3339).unwrap_or_else(|_| now.unix_timestamp().to_string())
}

/// The time that a record says.
pub fn time_of(text: &str) -> Option<SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from)
}
