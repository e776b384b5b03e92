//! Answers that may hold a credential which the API has minted. Such an answer is read whole before
//! anything of it is passed on, and tickets stand in it where credentials were.
//!
//! Errs to refusal: what is too large, breaks off, takes too long or cannot be read is no answer.

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

use super::{connection::Connection, decoded::Source, overrides, trace::Trace};
use crate::{
    identity::AgentKey,
    limits::{HeldBytes, Taken, Way, held},
    policy::{Mint, MintedAt},
    reason::Reason,
    scrub::decoded_head,
    substitute::{SubstitutionRules, find_minted},
    tickets::NoTicket,
};

/// What the answer to one request may hold.
pub(super) struct Minting {
    mints: Vec<Arc<Mint>>,
    path: String,
    is_head: bool,
}

impl Minting {
    /// What the answer to this request may hold. Then it is asked for as a whole: an answer from
    /// before may hold a credential, or tell of one.
    ///
    /// # Errors
    ///
    /// Where some server answers for another path than that of the request, and `rate_limit`.
    pub(super) fn of(
        rules: &SubstitutionRules,
        head: &mut request::Parts,
        taken: &Taken,
    ) -> Result<Option<Self>, Reason> {
        if rules.has_mints() {
            overrides::check_path(&head.headers)?;
        }
        let mints: Vec<_> = rules.mints(head.uri.path()).cloned().collect();
        if mints.is_empty() {
            return Ok(None);
        }
        if !taken.may_mint(Instant::now()) {
            return Err(Reason::RateLimit);
        }
        // Of a method that changes something, conditions say whether it may.
        let is_safe = head.method.is_safe();
        CONDITIONS.iter().filter(|_| is_safe).for_each(|name| drop(head.headers.remove(name)));
        PARTS.iter().for_each(|name| drop(head.headers.remove(name)));
        let (path, is_head) = (head.uri.path().to_owned(), head.method == Method::HEAD);
        Ok(Some(Self { mints, path, is_head }))
    }

    /// Reads the answer, and gives one with tickets in it.
    ///
    /// # Errors
    ///
    /// `response_unscannable`, `ticket_limit`, and what a body breaks off for.
    pub(super) async fn rewrite(
        &self,
        mut source: Source,
        head: &mut response::Parts,
        (connection, trace): (&Connection, &Trace),
    ) -> Result<Source, Reason> {
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
        // An API that answers with the credential that it was asked with mints nothing: a ticket
        // for it would be good beyond the limits of its binding.
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

    /// The head of what the body has become. What was said of the one that came could tell of a
    /// credential, its length first of all.
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

/// What an answer from before would be asked for by.
static CONDITIONS: [HeaderName; 4] =
    [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE];
/// What a part of an answer would be asked for by.
static PARTS: [HeaderName; 2] = [IF_RANGE, RANGE];

/// Reads a body within the bound on its size. Trailers are left out: a body of a known length has
/// none.
async fn read(
    source: &mut Source,
    taken: &Taken,
) -> Result<(Zeroizing<Vec<u8>>, Option<HeldBytes>), Reason> {
    let most = source.size_hint().upper().and_then(|most| usize::try_from(most).ok());
    let most = most.unwrap_or(MintedAt::MAX_BYTES);
    if most > MintedAt::MAX_BYTES {
        return Err(Reason::ResponseUnscannable);
    }
    let room = taken.room(Way::Back, most).await;
    // Sized before it is filled, so that no copy is left behind by growth.
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
