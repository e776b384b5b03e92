//! `cloakroom status`, `reload`, `quarantine` and `release`: the orders to the running daemon.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::Value;

use super::image::ImageStatus;
use crate::{
    config::{self, DEFAULT_CONFIG},
    control::{self, Order, OrderReply},
    policy::GroupName,
};

/// The running daemon to which an order is sent.
#[derive(Debug, Args)]
pub struct Target {
    /// The configuration; `control` in it is where the daemon listens
    #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// The daemon's control socket, whatever the configuration says
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

impl Target {
    fn socket(&self) -> PathBuf {
        self.control.clone().unwrap_or_else(|| config::control(&self.config))
    }
}

/// Arguments of `cloakroom status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// All of it, for programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// A group of the running daemon.
#[derive(Debug, Args)]
pub struct GroupArgs {
    /// The group
    #[arg(value_name = "GROUP", value_parser = GroupName::parse)]
    group: GroupName,
    #[command(flatten)]
    target: Target,
}

/// The daemon's answer, or the reason why there is none.
#[derive(Debug)]
pub enum OrderOutcome {
    /// The order was executed; the text is the answer.
    Done(String),
    /// The order failed; the command ends with this status and text.
    Failed(u8, String),
}

/// Sends the order to the daemon.
pub fn tell(target: &Target, order: &Order) -> OrderOutcome {
    say(target, order, |answer| answer.text)
}

/// Asks the daemon for its status, and adds that of the router image where it runs in one.
pub fn status(
    StatusArgs { json, target }: &StatusArgs,
    image: Option<&ImageStatus>,
) -> OrderOutcome {
    say(target, &Order::Status, |answer| match json {
        true => answer.status.and_then(|status| as_json(status, image)),
        false => answer.text.map(|text| match image {
            Some(image) => format!("{text}\n{}", image.words().trim_end()),
            None => text,
        }),
    })
}

fn as_json(mut status: Value, image: Option<&ImageStatus>) -> Option<String> {
    if let Some(image) = image {
        status.as_object_mut()?.insert("image".into(), serde_json::to_value(image).ok()?);
    }
    serde_json::to_string_pretty(&status).ok()
}

fn say(
    target: &Target,
    order: &Order,
    show: impl FnOnce(OrderReply) -> Option<String>,
) -> OrderOutcome {
    let socket = target.socket();
    let answer = match control::tell(&socket, order) {
        Ok(answer) => answer,
        Err(error) => return OrderOutcome::Failed(1, unreached(&socket, &error)),
    };
    let exit = answer.exit;
    let text = show(answer).unwrap_or_default();
    match exit {
        0 => OrderOutcome::Done(text + "\n"),
        exit => OrderOutcome::Failed(exit, text),
    }
}

/// Sends the daemon an order about a group.
pub fn tell_of(
    GroupArgs { group, target }: GroupArgs,
    order: fn(GroupName) -> Order,
) -> OrderOutcome {
    tell(&target, &order(group))
}

fn unreached(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
            "no gateway runs here (control socket {path}): look at \"systemctl status cloakroom\" and \
             \"journalctl -u cloakroom\"; --control names another socket"
        ),
        io::ErrorKind::PermissionDenied => format!("{path} is for root and the daemon's own user"),
        io::ErrorKind::UnexpectedEof => format!("the gateway at {path} gave no answer"),
        io::ErrorKind::TimedOut => format!(
            "the gateway at {path} has not answered in time; it may still do what it was told: \
             look with `cloakroom status` before you say it again"
        ),
        _ => format!("cannot speak to the gateway at {path}: {error}"),
    }
}
