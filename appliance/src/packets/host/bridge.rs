//! Agents behind a bridge of this machine.
//!
//! Where the kernel has br_netfilter (Docker and Kubernetes load it), a bridge may itself pass its
//! packets through the hooks of IP, and IP then does not call them again. A packet that tproxy
//! captured there has lost its socket by the time that it reaches IP: every connection hangs, and
//! nothing reports it. So no bridge below an agents' interface may do it, neither by the switches
//! of the network namespace (kernel, ip-sysctl.rst, `bridge-nf-call-*`) nor by its own.

use std::pin::pin;

use futures_util::TryStreamExt;
use nftnl::nftnl_sys::libc;
use rtnetlink::{
    Error, Handle, LinkBridge, LinkMessageBuilder,
    packet_route::link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};

use super::{super::error::PacketsError, route, sysctl};
use crate::policy::InterfaceName;

/// Makes sure that no bridge passes packets of these interfaces through the hooks of IP.
///
/// # Errors
///
/// A switch is on and cannot be turned off.
pub(crate) async fn assert_unfiltered(interfaces: &[&InterfaceName]) -> Result<(), PacketsError> {
    route::ask(async |handle| {
        for interface in interfaces {
            if let Some(bridge) = below(handle, interface).await? {
                unfilter(handle, &bridge).await?;
            }
        }
        Ok(())
    })
    .await
}

async fn unfilter(handle: &Handle, bridge: &LinkMessage) -> Result<(), PacketsError> {
    for switch in SWITCHES {
        sysctl::hold_where_it_is(switch, "0")?;
    }
    if !is_filtered(bridge) {
        return Ok(());
    }
    let Some(name) = name(bridge) else { return Ok(()) };
    let off = LinkMessageBuilder::<LinkBridge>::new(name)
        .nf_call_iptables(false)
        .nf_call_ip6tables(false)
        .build();
    let changed = handle.link().change(off).execute().await;
    changed.map_err(|error| PacketsError::Filtered {
        bridge: name.to_owned(),
        source: route::io_error(error),
    })?;
    tracing::warn!("bridge {name} took packets through the hooks of IP; that is turned off");
    Ok(())
}

/// Returns the bridge that carries the packets of this interface: the interface itself, or one
/// below it. The other end of a veth pair may be a port of a bridge, if it is in this network
/// namespace.
async fn below(
    handle: &Handle,
    interface: &InterfaceName,
) -> Result<Option<LinkMessage>, PacketsError> {
    let request = handle.link().get().match_name(interface.as_str());
    let mut link = one(request.execute()).await?;
    for depth in 0..DEEPEST {
        let Some(found) = link else { return Ok(None) };
        if is_bridge(&found) {
            return Ok(Some(found));
        }
        let Some(next) = next(&found, depth > 0) else { return Ok(None) };
        link = one(handle.link().get().match_index(next).execute()).await?;
    }
    Ok(None)
}

/// Returns the link below a link, or the one that it is a port of.
fn next(link: &LinkMessage, is_below: bool) -> Option<u32> {
    let attributes = || link.attributes.iter();
    let controller = attributes().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) if is_below => Some(*index),
        _ => None,
    });
    let elsewhere = attributes().any(|each| matches!(each, LinkAttribute::LinkNetNsId(_)));
    let lower = attributes().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) if !elsewhere => Some(*index),
        _ => None,
    });
    controller.or(lower).filter(|index| *index != 0 && *index != link.header.index)
}

/// Returns the first answer; none where the link does not exist any more.
async fn one(
    links: impl futures_util::Stream<Item = Result<LinkMessage, Error>>,
) -> Result<Option<LinkMessage>, PacketsError> {
    let first = pin!(links).try_next().await;
    first.or_else(|error| {
        let source = route::io_error(error);
        if source.raw_os_error() == Some(libc::ENODEV) {
            return Ok(None);
        }
        Err(route::route_error("look for bridges", source))
    })
}

fn infos(link: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten()
}

fn is_bridge(link: &LinkMessage) -> bool {
    infos(link).any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)))
}

/// Returns whether a switch of the bridge's own turns this on.
fn is_filtered(bridge: &LinkMessage) -> bool {
    let is_on = |info: &InfoBridge| {
        matches!(info, InfoBridge::NfCallIpTables(true) | InfoBridge::NfCallIp6Tables(true))
    };
    infos(bridge)
        .any(|info| matches!(info, LinkInfo::Data(InfoData::Bridge(of)) if of.iter().any(is_on)))
}

fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// Each network namespace has its own switches, which start as 1.
const SWITCHES: [&str; 2] =
    ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
/// Most links that are followed: a VLAN on a bond whose other end is a port of a bridge, and as
/// many again.
const DEEPEST: usize = 8;
