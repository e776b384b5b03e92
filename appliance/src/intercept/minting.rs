//! Answers that may hold a credential which the API has minted. Such an answer is read whole before
//! anything of it is passed on, and tickets take the place of the credentials.
//!
//! Errs to refusal: an answer that is too large, breaks off, takes too long or cannot be read is
//! refused.

use std::{future::poll_fn, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    header::{
        CACHE_CONTROL, CONTENT_LENGTH, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
        IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
    },
    request, response,
};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{connection::Connection, decoded::ReadableBody, overrides, trace::Trace};
use crate::{
    identity::AgentKey,
    limits::{HeldBytes, Taken, Way, held},
    policy::{Mint, MintedAt},
    reason::Reason,
    scrub::decoded_head,
    substitute::{SubstitutionRules, find_minted},
    tickets::NoTicket,
};

/// The credentials that the answer to one request may hold.
pub(super) struct Minting {
    mints: Vec<Arc<Mint>>,
    path: String,
    is_head: bool,
}

impl Minting {
    /// Returns the credentials that the answer to this request may hold, if any. Such an answer is
    /// asked for whole and unconditionally: an earlier one may hold a credential, or tell of one.
    ///
    /// # Errors
    ///
    /// Where some server would answer for another path than the request's, and `rate_limit`.
    pub(super) fn of(
        rules: &SubstitutionRules,
        head: &mut request::Parts,
        taken: &Taken,
    ) -> Result<Option<Self>, Reason> {
        if rules.has_mints() {
            overrides::check_path(&head.headers)?;
        }
        let path = rules.named(head.uri.path()).into_owned();
        let mints: Vec<_> = rules.mints(&path).cloned().collect();
        if mints.is_empty() {
            return Ok(None);
        }
        if !taken.may_mint(Instant::now()) {
            return Err(Reason::RateLimit);
        }
        // In a request that changes something, conditions decide whether it may.
        let is_safe = head.method.is_safe();
        CONDITIONS.iter().filter(|_| is_safe).for_each(|name| drop(head.headers.remove(name)));
        PARTS.iter().for_each(|name| drop(head.headers.remove(name)));
        Ok(Some(Self { mints, path, is_head: head.method == Method::HEAD }))
    }

    /// Reads the answer, and returns one with tickets in it.
    ///
    /// # Errors
    ///
    /// `response_unscannable`, `ticket_limit`, and the reason for which a body breaks off.
    pub(super) async fn rewrite(
        &self,
        mut source: ReadableBody,
        head: &mut response::Parts,
        (connection, trace): (&Connection, &Trace),
    ) -> Result<ReadableBody, Reason> {
        let switches = head.status == StatusCode::SWITCHING_PROTOCOLS;
        if switches || head.status == StatusCode::PARTIAL_CONTENT {
            return Err(Reason::ResponseUnscannable);
        }
        let (body, room) = timeout(connection.head_time, read(&mut source, &connection.taken))
            .await
            .unwrap_or(Err(Reason::UpstreamUnreachable))?;
        let answer = (head.status, &head.headers, body.as_slice());
        let (found, minted) = find_minted(self.mints.iter(), &self.path, answer)?;
        let agent = AgentKey::of(&connection.group, connection.agent.ip()).prefix();
        let group = &connection.group.name;
        // An API that answers with the credential of the request mints nothing: a ticket for that
        // would be good beyond the limits of its binding.
        let values = (&*connection.secrets.snapshot(), &*connection.tickets);
        let bound = connection.masks.of_bindings((group, &connection.pinned.host), values);
        if !minted.is_empty() {
            source.holds_secret();
        }
        if minted.iter().any(|one| bound.hides(&one.value)) {
            return Err(Reason::ResponseUnscannable);
        }
        let labels: Vec<_> = minted.iter().map(|one| one.mint.label.clone()).collect();
        let issued = connection.tickets.issue(group, agent, minted, Instant::now());
        let issued = issued.map_err(|error| match error {
            NoTicket::Room => Reason::TicketLimit,
            NoTicket::OtherHosts => Reason::ResponseUnscannable,
        })?;
        trace.with(|record| record.minted(labels.iter()));
        let body = found.write(&issued, &mut head.headers, &body)?;
        self.frame(head, &body);
        Ok(source.read_as(held(body, room)))
    }

    /// Fits the head to the rewritten body. The original head could tell of a credential, first of
    /// all by its length.
    fn frame(&self, head: &mut response::Parts, body: &Bytes) {
        decoded_head(&mut head.headers);
        head.headers.remove(ETAG);
        head.headers.remove(LAST_MODIFIED);
        head.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&head.status);
        if !self.is_head && !bodiless {
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
    }
}

/// The fields that ask for an answer only if it differs from an earlier one.
static CONDITIONS: [HeaderName; 4] =
    [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];
/// The fields that ask for a part of an answer.
static PARTS: [HeaderName; 2] = [IF_RANGE, RANGE];

/// Reads a body within the bound on its size. Trailers are left out: a body of a known length has
/// none.
async fn read(
    source: &mut ReadableBody,
    taken: &Taken,
) -> Result<(Zeroizing<Vec<u8>>, Option<HeldBytes>), Reason> {
    let most = source.size_hint().upper().and_then(|most| usize::try_from(most).ok());
    let most = most.unwrap_or(MintedAt::MAX_BYTES);
    if most > MintedAt::MAX_BYTES {
        return Err(Reason::ResponseUnscannable);
    }
    let room = taken.room(Way::Back, most).await;
    // The buffer has its size from the start: growth would leave copies behind.
    let mut all = Zeroizing::new(Vec::with_capacity(most));
    while let Some(frame) = poll_fn(|cx| source.poll_frame(cx)).await {
        let Ok(data) = frame?.into_data() else { continue };
        if all.len() + data.len() > most {
            return Err(Reason::ResponseUnscannable);
        }
        all.extend_from_slice(&data);
    }
    source.was_seen();
    Ok((all, room))
}
