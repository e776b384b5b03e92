//! Discovers the prefixes of this network's translators (NAT64) from the configured resolvers'
//! answers (RFC 7050): a resolver that makes up IPv6 addresses for names that have none also does
//! so for a name that is known to have none.
//!
//! Until a resolver has answered, it is not known which IPv6 addresses stand for an IPv4 address,
//! and none is used. Errs towards no: an answer that can be read in two ways is read in both.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use hickory_resolver::net::NetError;
use ipnet::Ipv6Net;
use tokio::time::{sleep, timeout};

use super::{name_servers::NameServers, off_limits::OffLimits};
use crate::policy::{nat64, special};

/// Asks from time to time for as long as there are servers to ask, unless the operator states which
/// translators there are.
pub(super) async fn follow(upstream: Weak<NameServers>, off_limits: OffLimits) {
    let (mut site, mut failed) = (off_limits.watch(), 0);
    loop {
        let stated = site.borrow_and_update().is_stated();
        let Some(servers) = upstream.upgrade() else { return };
        let pause = if stated {
            MOST
        } else {
            let pause = ask(&servers, &off_limits, &mut failed).await;
            site.mark_unchanged();
            pause
        };
        drop(servers);
        tokio::select! {
            changed = site.changed() => if changed.is_err() { return },
            () = sleep(pause) => {}
        }
    }
}

/// Waits a moment until the translators are known, and returns whether they are.
pub(super) async fn are_known(off_limits: &OffLimits) -> bool {
    let mut site = off_limits.watch();
    let known = site.wait_for(|site| site.knows_translators());
    timeout(TIMEOUT, known).await.is_ok_and(|known| known.is_ok())
}

/// Asks once, and returns the time after which to ask again.
async fn ask(servers: &Arc<NameServers>, off_limits: &OffLimits, failed: &mut u32) -> Duration {
    let answer = timeout(ROUND, servers.made_up(nat64::ASKED_FOR)).await;
    match answer.unwrap_or(Err(NetError::Timeout)) {
        Ok((records, ttl)) => {
            *failed = 0;
            take(off_limits, &nat64::prefixes(records));
            ttl.clamp(LEAST, MOST)
        }
        Err(error) => {
            *failed += 1;
            // Logged at first, and then once in a while.
            if !off_limits.watch().borrow().knows_translators() && (*failed == 1 || *failed > 6) {
                tracing::warn!(
                    %error,
                    "no resolver says whether it makes up IPv6 addresses (NAT64, ipv4only.arpa); \
                     none is used until one does, or until nat64_prefixes in [gateway] says it"
                );
            }
            RETRY.saturating_mul(1 << failed.saturating_sub(1).min(6)).min(LEAST)
        }
    }
}

fn take(off_limits: &OffLimits, found: &[Ipv6Net]) {
    let before = Arc::clone(&off_limits.watch().borrow());
    off_limits.discover(found, Instant::now());
    for &prefix in found.iter().filter(|prefix| !before.is_discovered(prefix)) {
        let usable = prefix == nat64::WELL_KNOWN || !special::is_special(prefix.addr().into());
        if usable {
            tracing::info!(%prefix, "NAT64: an address below it is judged by the IPv4 address in it");
        } else {
            tracing::warn!(
                %prefix,
                "NAT64, but no public prefix: what the resolvers make up below it is refused; where \
                 that is this site's own translator, name it in nat64_prefixes of [gateway]"
            );
        }
    }
}

/// Time that a name, once resolved, waits for the translators to be known.
const TIMEOUT: Duration = Duration::from_millis(500);
/// Time for all tries of one round.
const ROUND: Duration = Duration::from_secs(6);
/// Time after which a failed round is repeated; it doubles after each.
const RETRY: Duration = Duration::from_secs(1);
/// Shortest and longest time for which an answer is valid, whatever its TTL.
const LEAST: Duration = Duration::from_secs(60);
const MOST: Duration = Duration::from_secs(3_600);
