//! Log lines for the journal: each has its priority in front (`sd-daemon(3)`) and no time, which
//! the journal adds itself. A text of several lines becomes as many entries there.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// A formatter of events that puts the event's priority before each line.
pub(super) struct Prioritized<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for Prioritized<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        writer.write_str(&prioritized(&text, *event.metadata().level()))
    }
}

/// Returns each line of a text with its priority.
pub(super) fn prioritized(text: &str, level: Level) -> String {
    text.lines().map(|line| format!("<{}>{line}\n", priority(level))).collect()
}

/// Returns the priority of a level (`syslog(3)`).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
