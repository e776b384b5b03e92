//! From a permit to an upstream connection: resolve, check, connect.
//!
//! No other module connects anywhere on an agent's behalf. It takes a [`Permit`] and resolves the
//! permit's name itself; the address that the agent dialled is only compared. Where a protocol
//! names no host, the permit holds an address instead, one that the gateway had given to the agent
//! for that name. Each address is checked right before `connect`, in exactly the form that is
//! connected to.

mod address;
mod answered;
mod answers;
mod control_plane;
mod distrust;
mod found;
mod hosts_file;
mod name_servers;
mod off_limits;
mod own_addresses;
mod resolver;
mod translators;

pub use address::{has_route, unwrapped};
pub use answered::{Answered, GRACE, NAMELESS_GRACE};
pub use control_plane::ControlPlane;
pub use found::{Resolved, Unresolved};
pub use off_limits::OffLimits;
pub(crate) use resolver::MAX_TTL;
pub use resolver::Resolver;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{net::TcpStream, time::timeout};

use crate::{decide::Permit, identity::Flow, net, policy::DialledRule, reason::Reason};

/// A connection to a permitted upstream.
#[derive(Debug)]
pub struct UpstreamConnection {
    /// The connection. Whoever keeps it for long makes it
    /// [notice a peer that is gone](crate::net::notice_absence).
    pub stream: TcpStream,
    /// The address that it goes to.
    pub address: IpAddr,
    /// Whether the agent dialled an address that the gateway does not give for the name.
    pub elsewhere: bool,
}

/// Dials the permit's upstream: each checked address in turn until one answers, all of it within
/// `time_limit`.
pub async fn connect(
    permit: &Permit,
    flow: &Flow,
    resolver: &Resolver,
    time_limit: Duration,
) -> Result<UpstreamConnection, Reason> {
    let dialling = async {
        if let Some(given) = permit.given() {
            // The decision rests on this answer, and it is checked here for the last time.
            if !resolver.answered().holds(&flow.agent_key(), permit.host(), given) {
                return Err(Reason::DialledElsewhere);
            }
            let (stream, address) = connect_any(permit, resolver, &[given]).await?;
            return Ok(UpstreamConnection { stream, address, elsewhere: false });
        }
        let found = resolver.resolve(permit.host(), &flow.agent_key()).await;
        let found = found.map_err(|_| Reason::ResolveFailed)?;
        let elsewhere = is_elsewhere(permit, flow, resolver, &found);
        if elsewhere && permit.dialled() == DialledRule::Answered {
            return Err(refusal_of_elsewhere(permit, resolver, &found));
        }
        let (stream, address) = connect_any(permit, resolver, &found.addresses).await?;
        Ok(UpstreamConnection { stream, address, elsewhere })
    };
    let dialled =
        timeout(time_limit, dialling).await.unwrap_or(Err(Reason::UpstreamUnreachable))?;
    // A flow is carried to one address.
    let _ = flow.reached.set(dialled.address);
    // Checked once more, now that a reload which closes an address can see this flow: the address
    // may have been closed while the connection was being made.
    match resolver.off_limits().allows(dialled.address, permit.upstream()) {
        true => Ok(dialled),
        false => Err(Reason::PrivateAddress),
    }
}

/// Returns whether the dialled address is neither one of the name's present addresses nor one that
/// the agent was given for it and may still use.
fn is_elsewhere(permit: &Permit, flow: &Flow, resolver: &Resolver, found: &Resolved) -> bool {
    let dialled = flow.dialled.0.ip();
    // Always asked: an agent that dials a given address is remembered longest.
    let given = resolver.answered().holds(&flow.agent_key(), permit.host(), dialled);
    !given && !found.addresses.iter().any(|address| address.to_canonical() == dialled)
}

/// Returns the reason for a dialled address that is elsewhere. A name that leads only to addresses
/// inside is refused for that, whatever the agent dialled.
fn refusal_of_elsewhere(permit: &Permit, resolver: &Resolver, found: &Resolved) -> Reason {
    let allowed = |&address: &IpAddr| resolver.off_limits().allows(address, permit.upstream());
    if found.addresses.iter().any(allowed) {
        Reason::DialledElsewhere
    } else {
        Reason::PrivateAddress
    }
}

/// Connects to the first address that may be dialled and answers. Where one could have been dialled,
/// the reason is that none answered, whatever the others are.
async fn connect_any(
    permit: &Permit,
    resolver: &Resolver,
    addresses: &[IpAddr],
) -> Result<(TcpStream, IpAddr), Reason> {
    let mut refused = Reason::ResolveFailed;
    for &address in addresses.iter().take(MAX_ADDRESSES) {
        if !resolver.off_limits().allows(address, permit.upstream()) {
            if refused == Reason::ResolveFailed {
                refused = Reason::PrivateAddress;
            }
            continue;
        }
        match timeout(CONNECT_TIME, connect_to(SocketAddr::new(address, permit.port()))).await {
            Ok(Ok(stream)) => return Ok((stream, address)),
            Ok(Err(_)) | Err(_) => refused = Reason::UpstreamUnreachable,
        }
    }
    Err(refused)
}

#[expect(clippy::disallowed_methods, reason = "the one place that may connect")]
async fn connect_to(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    net::send_at_once(&stream)?;
    Ok(stream)
}

/// Most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// Time for one address to answer.
const CONNECT_TIME: Duration = Duration::from_secs(5);
