//! The upstream's side of an exchange: a request goes out, and the head of its answer comes.

use std::sync::Arc;

use http::{HeaderValue, Request, Response, StatusCode, header::CONNECTION};
use hyper::{body::Incoming, client::conn};

use super::{
    body::{RequestBody, ResponseBody},
    retryable::Retryable,
    trace::Trace,
    websocket::Switch,
};
use crate::reason::Reason;

/// The one upstream connection behind an agent's connection.
pub(super) enum Sender {
    /// HTTP/1.1: one request at a time, until one of them makes a WebSocket of the connection.
    H1(tokio::sync::Mutex<conn::http1::SendRequest<RequestBody>>, Arc<Switch>),
    /// HTTP/2: many at once.
    H2(conn::http2::SendRequest<RequestBody>),
}

/// The reason why an exchange has no answer from the upstream.
pub(super) enum ExchangeError {
    /// The gateway answers with this reason.
    Refused(Reason),
    /// No API has examined the request.
    Retryable(Retryable),
}

impl From<Reason> for ExchangeError {
    fn from(reason: Reason) -> Self {
        Self::Refused(reason)
    }
}

impl Sender {
    /// Closes the connection after the answer to a handshake, unless a WebSocket follows: bytes
    /// that an agent has sent behind the handshake are never answered.
    pub(super) fn last(&self, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
        let asked = matches!(self, Self::H1(_, switch) if switch.is_asked());
        if asked && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Returns the switch of a connection that can become a WebSocket.
    pub(super) fn switch(&self) -> Option<&Switch> {
        match self {
            Self::H1(_, switch) => Some(switch),
            Self::H2(_) => None,
        }
    }
}

/// Sends a request, and waits for the head of its answer.
pub(super) async fn send(
    sender: &Sender,
    request: Request<RequestBody>,
    trace: &Trace,
) -> Result<Response<Incoming>, ExchangeError> {
    let sent = match sender {
        Sender::H1(sender, _) => {
            let mut sender = sender.lock().await;
            match sender.ready().await {
                Ok(()) => {
                    let response = sender.send_request(request);
                    drop(sender);
                    response.await
                }
                Err(error) => Err(error),
            }
        }
        Sender::H2(sender) => {
            let mut sender = sender.clone();
            let answer = async {
                sender.ready().await?;
                sender.send_request(request).await
            };
            match trace.unless_idle(answer).await {
                Some(answer) => answer,
                None => return Err(ExchangeError::Refused(Reason::UpstreamUnreachable)),
            }
        }
    };
    sent.map_err(|error| {
        tracing::debug!(%error, "upstream");
        let h2 = matches!(sender, Sender::H2(_));
        match (trace.body_refusal(), Retryable::of(&error)) {
            (None, Some(retryable)) if h2 => ExchangeError::Retryable(retryable),
            (refusal, _) => ExchangeError::Refused(refusal.unwrap_or(Reason::UpstreamUnreachable)),
        }
    })
}
