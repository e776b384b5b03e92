//! The protocol of the control socket: one line to the daemon, one JSON object back.
//!
//! Both sides are bounded in bytes and time. No answer holds a value of a secret.

use std::{
    fmt,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::policy::GroupName;

/// An order that the daemon can be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Take the configuration and the file of secrets again.
    Reload,
    /// Cut a group off.
    Quarantine(GroupName),
    /// End the quarantine of a group.
    Release(GroupName),
    /// Report the state of the daemon.
    Status,
}

/// The daemon's reply to an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderReply {
    /// The exit status for the command: 0 done, 64 the configuration or the order is wrong, 1
    /// anything else.
    pub exit: u8,
    /// A text for a person: the result, or the mistake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The state of the daemon, where the order asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

impl Order {
    /// Longest order in bytes, with its line end.
    pub const MAX_BYTES: usize = 1_024;

    /// Reads one line, without its end.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let (word, group) = match line.split_once(' ') {
            Some((word, group)) => (word, Some(GroupName::parse(group).ok()?)),
            None => (line, None),
        };
        match (word, group) {
            ("reload", None) => Some(Self::Reload),
            ("status", None) => Some(Self::Status),
            ("quarantine", Some(group)) => Some(Self::Quarantine(group)),
            ("release", Some(group)) => Some(Self::Release(group)),
            _ => None,
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reload => f.write_str("reload"),
            Self::Status => f.write_str("status"),
            Self::Quarantine(group) => write!(f, "quarantine {group}"),
            Self::Release(group) => write!(f, "release {group}"),
        }
    }
}

impl OrderReply {
    /// Makes the reply to an order that was carried out.
    pub fn done(text: impl Into<String>) -> Self {
        Self { exit: 0, text: Some(text.into()), status: None }
    }

    /// Makes the reply to an order that failed, with the reason.
    pub fn failed(exit: u8, text: impl Into<String>) -> Self {
        Self { exit, text: Some(text.into()), status: None }
    }
}

/// Gives an order to the daemon whose socket is at `path`, and waits at most a minute.
///
/// # Errors
///
/// Where no daemon answers there, or where it does not answer in time ([`io::ErrorKind::TimedOut`])
/// or in full. An order that was heard may still be carried out.
pub fn tell(path: &Path, order: &Order) -> io::Result<OrderReply> {
    tell_within(TIMEOUT, path, order)
}

fn tell_within(timeout: Duration, path: &Path, order: &Order) -> io::Result<OrderReply> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(format!("{order}\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).map_err(in_words)?;
    serde_json::from_slice(&answer).map_err(|_| io::ErrorKind::UnexpectedEof.into())
}

/// The kernel reports a socket's timeout as if the call should be made again (`socket(7)`).
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

/// The exit status for a wrong use of a command, or a wrong configuration (sysexits.h).
pub const EX_USAGE: u8 = 64;

/// The time for a reply: a reload waits for values that are new in it.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Room for the state of every group and secret that a policy of 4 MiB can name.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gateway_slow_to_answer_is_not_asked_twice() {
        let path = std::env::temp_dir().join(format!("cloakroom-mute-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let _mute = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let told = tell_within(Duration::from_millis(20), &path, &Order::Reload);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(told.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn an_order_reads_as_it_was_written() {
        let group = GroupName::parse("research").unwrap();
        let orders =
            [Order::Reload, Order::Status, Order::Quarantine(group.clone()), Order::Release(group)];
        for order in orders {
            assert_eq!(Order::parse(order.to_string().as_bytes()), Some(order));
        }
    }

    #[test]
    fn what_is_no_order_is_not_guessed_at() {
        for line in [
            "",
            " ",
            "reload ",
            "reload now",
            "Reload",
            "status\r",
            "quarantine",
            "quarantine ",
            "quarantine  red",
            "quarantine red ",
            "quarantine red blue",
            "quarantine ../red",
            "quarantine RED",
            "release *",
            "stop",
        ] {
            assert_eq!(Order::parse(line.as_bytes()), None, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_an_order_or_none(line: Vec<u8>) {
            if let Some(order) = Order::parse(&line) {
                prop_assert_eq!(order.to_string().into_bytes(), line);
            }
        }
    }
}
