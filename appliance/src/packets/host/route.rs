//! Policy routing: a marked packet is delivered here, for every destination.
//!
//! One rule (mark to table) and one route (everything in that table is local) for each family. Both
//! outlive the daemon and are harmless without it: no packet carries the mark unless a listener
//! took it.

use std::{
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use nftnl::nftnl_sys::libc;
use rtnetlink::{
    Error, Handle, RouteMessageBuilder,
    packet_route::{
        route::{RouteAttribute, RouteMessage, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use tokio::time::timeout;

use super::super::{error::PacketsError, ruleset::capture::Capture};

/// Installs rule and route of each captured family; leaves existing ones alone.
pub(crate) async fn install(capture: &Capture) -> Result<(), PacketsError> {
    ask(async |handle| install_with(handle, capture).await).await
}

/// Opens a connection to rtnetlink, and runs `conversation` on it.
pub(crate) async fn ask(
    conversation: impl AsyncFnOnce(&Handle) -> Result<(), PacketsError>,
) -> Result<(), PacketsError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|source| route_error("open rtnetlink", source))?;
    // The connection ends by itself when the last handle is dropped, at the end of this function.
    let driver = tokio::spawn(connection);
    let result = timeout(DEADLINE, conversation(&handle)).await;
    drop(handle);
    driver.abort();
    let late = || route_error("hear from rtnetlink", io::Error::from(io::ErrorKind::TimedOut));
    result.unwrap_or_else(|_| Err(late()))
}

async fn install_with(handle: &Handle, capture: &Capture) -> Result<(), PacketsError> {
    let mut rule = handle.rule().add().v4();
    complete(rule.message_mut(), capture);
    settle("add the IPv4 rule of the mark", rule.execute()).await?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
        .output_interface(LOOPBACK);
    let route = local(route.build(), capture);
    settle("add the IPv4 route of the mark", handle.route().add(route).execute()).await?;
    if !capture.ipv6 {
        return Ok(());
    }
    let mut rule = handle.rule().add().v6();
    complete(rule.message_mut(), capture);
    settle("add the IPv6 rule of the mark", rule.execute()).await?;
    let route = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
        .output_interface(LOOPBACK);
    let route = local(route.build(), capture);
    settle("add the IPv6 route of the mark", handle.route().add(route).execute()).await
}

/// Adds the mask of the mark and the number of a table above 255: rtnetlink's builder knows
/// neither.
fn complete(rule: &mut RuleMessage, capture: &Capture) {
    rule.header.action = RuleAction::ToTable;
    rule.header.table = table_byte(capture.route_table);
    rule.attributes.extend([
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::FwMark(capture.mark),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(capture.route_table),
    ]);
}

fn local(mut route: RouteMessage, capture: &Capture) -> RouteMessage {
    route.header.kind = RouteType::Local;
    route.header.scope = RouteScope::Host;
    route.header.table = table_byte(capture.route_table);
    route.attributes.push(RouteAttribute::Table(capture.route_table));
    route
}

/// Returns the table's byte in the header; a larger number stands in the attribute only.
fn table_byte(table: u32) -> u8 {
    u8::try_from(table).unwrap_or_default()
}

/// Takes "it exists" for success, so that a restart accepts the existing rule and route.
async fn settle(
    doing: &'static str,
    request: impl Future<Output = Result<(), Error>>,
) -> Result<(), PacketsError> {
    let Err(error) = request.await else { return Ok(()) };
    let source = io_error(error);
    if source.raw_os_error() == Some(libc::EEXIST) {
        return Ok(());
    }
    Err(route_error(doing, source))
}

/// Returns the kernel's error, if the error is the kernel's.
pub(crate) fn io_error(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

pub(crate) fn route_error(doing: &'static str, source: io::Error) -> PacketsError {
    match source.raw_os_error() {
        Some(libc::EPERM) => PacketsError::NoNetAdmin { doing },
        Some(libc::ENETDOWN) => PacketsError::LoopbackDown,
        _ => PacketsError::Route { doing, source },
    }
}

/// Priority of the rule: before the main table (32766), and after the local one (0), which answers
/// for our addresses.
const RULE_PRIORITY: u32 = 1000;

/// Time for an answer. The kernel answers each request at once.
const DEADLINE: Duration = Duration::from_secs(5);

/// The index of `lo`, the same in every network namespace.
const LOOPBACK: u32 = 1;
