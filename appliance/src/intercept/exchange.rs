//! One request and its answer on a connection whose TLS ends here.
//!
//! The order is the argument: a slot in the audit, then a message with one meaning for the one
//! pinned authority, then the policy's methods, paths and credentials, then the values, then the
//! upstream. Every failure on the way is answered here, and nothing is sent.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use super::{
    body::{RequestBody, ResponseBody},
    connection::Connection,
    exchanges::ActiveExchange,
    message,
    prepare::{PreparedRequest, prepare},
    receive::receive,
    retryable::Retryable,
    sender::{ExchangeError, Sender, send},
    signed,
    trace::Trace,
    whole::{self, BodyBounds},
    wire::TrailerRule,
};
use crate::{
    identity::FlowId,
    policy::BodyPlace,
    reason::Reason,
    refuse::{self, Dialect, Refusal},
};

/// Serves one request, whose exchange began when its head was read. Every failure becomes an
/// answer, except that of a request which the agent may send again.
pub(super) async fn serve(
    connection: Arc<Connection>,
    sender: Arc<Sender>,
    request: Request<Incoming>,
    active: ActiveExchange,
) -> Result<Response<ResponseBody>, Retryable> {
    let (flow, dialect) = (connection.flow, Dialect::of(request.headers()));
    let trace = match Trace::begin(&connection, active) {
        Ok(trace) => trace,
        Err(reason) => return Ok(answer(reason, flow, dialect)),
    };
    let reason = match forward(&connection, &sender, request, &trace).await {
        Ok(response) => return Ok(sender.last(response)),
        Err(ExchangeError::Retryable(retryable)) => {
            trace.refused(Reason::UpstreamUnreachable);
            return Err(retryable);
        }
        Err(ExchangeError::Refused(reason)) => reason,
    };
    trace.refused(reason);
    Ok(sender.last(answer(reason, flow, dialect)))
}

/// Serves a request on a connection where nothing may be sent upstream: every request gets the same
/// answer.
pub(super) fn serve_refusal(
    connection: &Arc<Connection>,
    request: &Request<Incoming>,
    refusal: Refusal,
) -> Response<ResponseBody> {
    let (flow, dialect) = (connection.flow, Dialect::of(request.headers()));
    let host = connection.pinned.host.as_str();
    match Trace::begin(connection, connection.exchanges.begin()) {
        Ok(trace) => {
            trace.with(|record| {
                record.asked(request.method(), host, &connection.shown_path(request.uri()));
                record.refused(refusal.reason);
                refusal.cause.into_iter().for_each(|cause| record.cause(cause));
            });
            answer(refusal, flow, dialect)
        }
        Err(unavailable) => answer(unavailable, flow, dialect),
    }
}

/// Makes an answer of the gateway's own.
fn answer(refusal: impl Into<Refusal>, flow: FlowId, dialect: Dialect) -> Response<ResponseBody> {
    refuse::answer(refusal, flow, dialect).map(|body| ResponseBody::Own(Full::new(body)))
}

async fn forward(
    connection: &Arc<Connection>,
    sender: &Sender,
    request: Request<Incoming>,
    trace: &Arc<Trace>,
) -> Result<Response<ResponseBody>, ExchangeError> {
    let (mut head, mut body) = request.into_parts();
    trace.with(|record| {
        let path = connection.shown_path(&head.uri);
        record.asked(&head.method, connection.pinned.host.as_str(), &path);
    });
    message::check_size(&head, connection.head_fields, connection.head_bytes)?;
    let mut asked = message::check(&head, &connection.pinned, connection.allows_websocket())?;
    let mut whole = match connection.rules.reads_body(&head) {
        true => {
            let bounds = BodyBounds { bytes: BodyPlace::MAX_BYTES, time: connection.head_time };
            Some(whole::read(connection, &mut body, bounds, trace).await?)
        }
        false => None,
    };
    let snapshot = connection.secrets.snapshot();
    let PreparedRequest { mut answering, used, body: mut swapped, signing } =
        prepare(connection, &mut head, whole.as_ref(), &snapshot, trace)?;
    message::address(&mut head, &connection.pinned)?;
    if let Some(asked) = &mut asked {
        sender.switch().ok_or(Reason::UpgradeDenied)?.ask();
        asked.write(&mut head.headers);
    }
    if let Some(signing) = signing {
        whole = signed::sign(connection, signing, (&mut head, &mut body), trace).await?;
        swapped = whole.as_ref().map(|whole| whole.bytes.clone());
    }
    let body = match (whole, swapped) {
        (Some(whole), Some(bytes)) => {
            whole::frame(&mut head, &bytes);
            RequestBody::whole(whole.becomes(bytes))
        }
        (None, None) => {
            let trailers: Arc<dyn TrailerRule + Send + Sync> = Arc::clone(connection) as _;
            RequestBody::new(body, trailers, Arc::clone(trace))
        }
        _ => return Err(Reason::InternalError.into()),
    };
    trace.with(|record| record.forwarded(&connection.route));
    // An agent that gives up waiting here could have measured the answer on its way.
    answering.reading.on_its_way(true);
    let response = send(sender, Request::from_parts(head, body), trace).await;
    answering.reading.on_its_way(false);
    let response = response?;
    if response.status() == StatusCode::UNAUTHORIZED {
        let group = &connection.group.name;
        used.iter().for_each(|binding| connection.secrets.reject(group, &binding.secret));
    }
    Ok(receive(connection, response, answering, (asked, sender.switch()), trace).await?)
}
