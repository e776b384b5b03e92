//! An answer on its way back: its head checked and masked, its body behind the masks.

use std::sync::Arc;

use http::{HeaderMap, Response, StatusCode, response};
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;

use super::{
    body::{ResponseBody, Scrubbed},
    connection::Connection,
    decoded::{ReadableBody, Reading},
    masking::Masking,
    message,
    minting::Minting,
    switched::Switched,
    trace::Trace,
    websocket::{Asked, Switch},
};
use crate::{
    decide::Route,
    reason::Reason,
    scrub::{self, Accepted, Part},
};

/// The handling of the answer to a request.
pub(super) struct ResponseHandling {
    pub(super) masking: Masking,
    pub(super) reading: Reading,
    pub(super) part: Option<Part>,
    pub(super) minting: Option<Minting>,
}

/// Turns the upstream's answer into the one that the agent receives.
pub(super) async fn receive(
    connection: &Connection,
    response: Response<Incoming>,
    ResponseHandling { masking, reading, part, minting }: ResponseHandling,
    (asked, switch): (Option<Asked>, Option<&Switch>),
    trace: &Arc<Trace>,
) -> Result<Response<ResponseBody>, Reason> {
    let (mut head, body) = response.into_parts();
    trace.with(|record| record.upstream_status(head.status));
    connection.exchanges.moved(1);
    let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let answered = match (asked, switch) {
        (Some(asked), Some(switch)) if switched => Some((asked.answered(&head.headers)?, switch)),
        // Nobody asked for another protocol.
        _ if switched => return Err(Reason::UpstreamUnreachable),
        _ => None,
    };
    // hyper's own bound depends on how much a single read brings.
    if head_bytes(&head.headers) > MAX_RESPONSE_HEAD {
        return Err(Reason::UpstreamUnreachable);
    }
    message::check_codings(&head.headers)?;
    message::remove_hop_by_hop(&mut head.headers);
    let mut body = source(connection, reading, &mut head, body)?;
    if let Some(minting) = minting {
        body = minting.rewrite(body, &mut head, (connection, trace)).await?;
    }
    // Meanwhile values may have changed, and the answer itself may have brought some that must be
    // masked.
    let masking = masking.newer(connection).unwrap_or(masking);
    if matches!(connection.route, Route::Intercept(_)) {
        let rules = connection.response_rules();
        let report = scrub::mask_head(&masking.masks, &rules, &head.status, &mut head.headers)?;
        trace.with(|record| record.masked(report.masked));
        trace.near_misses(report.near_misses)?;
    }
    let window = part.and_then(|part| part.cut(&mut head.status, &mut head.headers));
    head.extensions.clear();
    if let Some((answered, switch)) = answered {
        answered.write(&mut head.headers);
        switch.make(Arc::new(Switched::new(Arc::clone(trace), masking)));
        return Ok(Response::from_parts(head, ResponseBody::Own(Full::default())));
    }
    let rules = connection.response_rules();
    let in_envelopes = scrub::in_envelopes(&head.headers);
    let body = Scrubbed::new(body, masking, rules, in_envelopes, Arc::clone(trace)).within(window);
    Ok(Response::from_parts(head, ResponseBody::Upstream(Box::new(body))))
}

/// Returns the source of the body. Where the body is decoded, the head becomes that of a plain one.
fn source(
    connection: &Connection,
    reading: Reading,
    head: &mut response::Parts,
    body: Incoming,
) -> Result<ReadableBody, Reason> {
    let Reading::Decoded(places) = reading else { return Ok(ReadableBody::Plain(body)) };
    let accepted = places.accepted();
    let coding = scrub::content_coding(head.status, &head.headers)?;
    // A 304 has the head of the answer that the agent holds, which may have been compressed.
    if coding.is_some() || accepted != Accepted::Identity && head.status == StatusCode::NOT_MODIFIED
    {
        scrub::decoded_head(&mut head.headers);
    }
    match coding {
        Some(coding) if !body.is_end_stream() => {
            places.decode((&connection.coded, &connection.taken), coding, body)
        }
        _ => Ok(ReadableBody::Plain(body)),
    }
}

fn head_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// Bytes of a response's fields.
const MAX_RESPONSE_HEAD: usize = 256 * 1024;
