//! A request that no API has examined, so that the agent may send it again.
//!
//! An API may close its connection at any moment, when an agent's next request is on its way
//! already. HTTP/2 has the code REFUSED_STREAM for this, after which clients try again on a new
//! connection (RFC 9113, section 8.7). In doubt a request counts as sent.

use std::error::Error;

/// The error that tells the agent. hyper resets a stream with the code that it finds in here.
#[derive(Debug, thiserror::Error)]
#[error("the request was not sent")]
pub(super) struct Retryable(#[source] h2::Error);

impl Retryable {
    /// Returns a value where `error`, of sending over HTTP/2, says that the upstream has not
    /// examined the request.
    pub(super) fn of(error: &hyper::Error) -> Option<Self> {
        // The request was taken back from the queue of a connection that ended, or never put in.
        let queued = error.is_canceled() || error.is_closed();
        let refused = || {
            let source = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
            source.is_some_and(|source| {
                source.is_remote() && source.reason() == Some(h2::Reason::REFUSED_STREAM)
            })
        };
        (queued || refused()).then(|| Self(h2::Reason::REFUSED_STREAM.into()))
    }
}
