//! Requests that are signed last, once nothing else of them will change. The body is read whole
//! where its hash is signed.

use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use http::request;
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::task::yield_now;

use super::{
    connection::Connection,
    trace::Trace,
    whole::{self, BodyBounds, SLOWEST_BODY, WholeBody},
};
use crate::{
    reason::{Reason, SecretCause},
    substitute::Signing,
};

/// Signs the request. Returns the body where it was read.
///
/// # Errors
///
/// Those of [`Signing::check_time`], [`whole::read`] and [`Signing::sign`], and
/// `secret_unavailable`.
pub(super) async fn sign(
    connection: &Connection,
    mut signing: Signing,
    (head, body): (&mut request::Parts, &mut Incoming),
    trace: &Trace,
) -> Result<Option<WholeBody>, Reason> {
    signing.check_time(SystemTime::now())?;
    let whole = match signing.needs_body() && !body.is_end_stream() {
        true => {
            // The body is held whole, and has to fit in the agent's part of the buffers.
            let bytes = Signing::MAX_BODY.min(connection.taken.largest());
            let bounds = BodyBounds { bytes, time: time_for_body(connection) };
            let whole = whole::read(connection, body, bounds, trace).await?;
            // Reading and hashing took time.
            signing.hashed(hash(&whole.bytes).await.as_ref());
            signing.check_time(SystemTime::now())?;
            renew(connection, &mut signing).map_err(|cause| trace.secret_unavailable(cause))?;
            Some(whole)
        }
        false => None,
    };
    signing.sign(head, SystemTime::now())?;
    Ok(whole)
}

fn renew(connection: &Connection, signing: &mut Signing) -> Result<(), SecretCause> {
    let (group, now) = (&connection.group.name, Instant::now());
    let snapshot = connection.secrets.snapshot();
    signing.renew(|own| snapshot.current(group, &own.secret, own.min_value_bytes, now))
}

/// Hashes a body with SHA-256. Between two pieces the worker's other flows have their turns.
async fn hash(body: &[u8]) -> Digest {
    let mut context = Context::new(&SHA256);
    for piece in body.chunks(HASHED_AT_ONCE) {
        context.update(piece);
        yield_now().await;
    }
    context.finish()
}

/// Returns the time for a body: a head's time, and that of the longest body on a slow line.
fn time_for_body(connection: &Connection) -> Duration {
    connection.head_time + Duration::from_secs(Signing::MAX_BODY as u64 / SLOWEST_BODY)
}

/// Bytes that are hashed at once: less than a millisecond's work on any processor.
const HASHED_AT_ONCE: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::digest;

    use super::*;

    #[tokio::test]
    async fn a_body_is_hashed_in_pieces_as_at_once() {
        for length in [0, 1, HASHED_AT_ONCE, 3 * HASHED_AT_ONCE + 1] {
            let body = vec![b'a'; length];
            assert_eq!(hash(&body).await.as_ref(), digest(&SHA256, &body).as_ref());
        }
    }
}
