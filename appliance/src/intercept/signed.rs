//! A request that is signed when it is otherwise as it will be sent, with its body read whole where
//! that is what is signed.

use std::time::{Duration, SystemTime};

use http::request;
use http_body::Body as _;
use hyper::body::Incoming;

use super::{
    connection::Connection,
    trace::Trace,
    whole::{self, Bounds, WholeBody},
};
use crate::{reason::Reason, substitute::Signing};

/// Signs the request. Gives the body where it was read.
///
/// # Errors
///
/// Those of [`Signing::check_time`], [`whole::read`] and [`Signing::sign`].
pub(super) async fn sign(
    connection: &Connection,
    signing: &Signing,
    (head, body): (&mut request::Parts, &mut Incoming),
    trace: &Trace,
) -> Result<Option<WholeBody>, Reason> {
    signing.check_time(SystemTime::now())?;
    let whole = match signing.needs_body() && !body.is_end_stream() {
        true => {
            // What is held has room in the agent's part of the buffers, whole.
            let bytes = Signing::MAX_BODY.min(connection.taken.largest());
            let bounds = Bounds { bytes, time: time_for_body(connection) };
            Some(whole::read(connection, body, bounds, trace).await?)
        }
        false => None,
    };
    let bytes = whole.as_ref().map_or(&[][..], |whole| &whole.bytes);
    signing.sign(head, bytes, SystemTime::now())?;
    Ok(whole)
}

/// A head's time, and what the longest body takes on a slow line.
fn time_for_body(connection: &Connection) -> Duration {
    connection.head_time + Duration::from_secs(Signing::MAX_BODY as u64 / SLOWEST_BODY)
}

/// Bytes a second of the slowest body that is read whole.
const SLOWEST_BODY: u64 = 64 * 1024;
