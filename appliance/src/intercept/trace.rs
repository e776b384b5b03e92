//! The record of one exchange, from its beginning to the end of its last body.

use std::{
    pin::pin,
    sync::{Arc, Mutex},
    time::Instant,
};

use tokio::time::timeout;

use super::{connection::Connection, exchanges::ActiveExchange, masking::Masking};
use crate::{
    audit::RequestRecord,
    limits::{RequestSlot, Taken},
    locks::lock,
    policy::Narrowed,
    reason::{Reason, SecretCause},
    substitute::Denial,
};

/// The record of an exchange, shared by both bodies and written when the last of them is gone.
pub(super) struct Trace {
    record: Mutex<RequestRecord>,
    connection: Arc<Connection>,
    refused_body: Mutex<Option<Reason>>,
    _active: ActiveExchange,
    _slot: RequestSlot,
}

impl Trace {
    /// Opens the record of one more exchange. An exchange that comes too fast has no record and is
    /// counted in a sum, so that no agent takes the audit from the others.
    pub(super) fn begin(
        connection: &Arc<Connection>,
        active: ActiveExchange,
    ) -> Result<Arc<Self>, Reason> {
        if !connection.taken.may_ask(Instant::now()) {
            return Err(Reason::RateLimit);
        }
        let slot = connection.audit.reserve().map_err(|_| Reason::AuditUnavailable)?;
        let mut record = RequestRecord::open(
            slot,
            connection.flow,
            (&connection.group.name, connection.agent),
            &connection.route,
        );
        let slot = connection.taken.request().inspect_err(|&reason| record.refused(reason))?;
        Ok(Arc::new(Self {
            record: Mutex::new(record),
            connection: Arc::clone(connection),
            refused_body: Mutex::default(),
            _active: active,
            _slot: slot,
        }))
    }

    /// Writes into the record.
    pub(super) fn with<T>(&self, write: impl FnOnce(&mut RequestRecord) -> T) -> T {
        write(&mut lock(&self.record))
    }

    /// Notes why the exchange was refused.
    pub(super) fn refused(&self, reason: Reason) {
        self.with(|record| record.refused(reason));
    }

    /// Notes which credential was refused, and which placeholder of the group stood there.
    pub(super) fn denied(&self, denial: Denial) -> Reason {
        self.with(|record| {
            record.placeholders(denial.placeholder.iter());
            record.credential(denial.credential.as_deref());
        });
        denial.reason
    }

    /// Notes why there is no value; agents only learn that there is none.
    pub(super) fn secret_unavailable(&self, cause: SecretCause) -> Reason {
        self.with(|record| record.cause(cause));
        Reason::SecretUnavailable
    }

    pub(super) fn narrowed(&self, narrowed: Narrowed) -> Reason {
        match narrowed {
            Narrowed::Refused(reason) => reason,
            Narrowed::Unavailable(cause, _) => self.secret_unavailable(cause),
        }
    }

    /// Notes why a body was ended before its time. The first reason stays.
    pub(super) fn refuse_body(&self, reason: Reason) {
        lock(&self.refused_body).get_or_insert(reason);
        self.refused(reason);
    }

    /// Notes that the agent's body ended before its time: by a broken rule, or because the agent
    /// left. Returns the reason.
    pub(super) fn broken_off(&self) -> Reason {
        let violation = self.connection.exchanges.violation();
        let reason = violation.map_or(Reason::HttpMalformed, |violation| violation.reason);
        self.refuse_body(reason);
        reason
    }

    pub(super) fn body_refusal(&self) -> Option<Reason> {
        *lock(&self.refused_body)
    }

    /// Returns newer masks where values have changed since `masking` was made. The check is cheap.
    pub(super) fn newer(&self, masking: &Masking) -> Option<Masking> {
        masking.newer(&self.connection)
    }

    /// Returns the account against which the exchange is counted.
    pub(super) fn taken(&self) -> Arc<Taken> {
        Arc::clone(&self.connection.taken)
    }

    /// Notes that bytes of the exchange moved.
    pub(super) fn moved(&self, bytes: u64) {
        self.connection.exchanges.moved(bytes);
    }

    /// Counts bytes of the request's body.
    pub(super) fn request_bytes(&self, bytes: usize) {
        self.moved(bytes as u64);
        self.with(|record| record.request_bytes(bytes as u64));
    }

    /// Counts bytes of the response's body, and how many of them were masked.
    pub(super) fn response_bytes(&self, bytes: usize, masked: u64) {
        self.moved(bytes as u64);
        self.with(|record| record.response_bytes(bytes as u64, masked));
    }

    /// Waits for an answer for as long as the request's body moves, and then for the idle time. An
    /// HTTP/1.1 connection is watched as a whole; in HTTP/2, other streams could keep it alive.
    pub(super) async fn unless_idle<F: Future>(&self, answer: F) -> Option<F::Output> {
        let mut answer = pin!(answer);
        loop {
            let sent = self.with(|record| record.sent());
            match timeout(self.connection.idle_time, answer.as_mut()).await {
                Ok(answer) => return Some(answer),
                Err(_) if self.with(|record| record.sent()) == sent => return None,
                Err(_) => {}
            }
        }
    }

    /// Counts parts of the response that hold much of a secret and not all of it.
    ///
    /// # Errors
    ///
    /// [`Reason::SecretProbed`], where the agent has had too many.
    pub(super) fn near_misses(&self, count: u64) -> Result<(), Reason> {
        let may = count == 0 || self.connection.taken.may_probe(count, Instant::now());
        if may { Ok(()) } else { Err(Reason::SecretProbed) }
    }

    /// Notes that the response came to its end.
    pub(super) fn complete(&self) {
        self.with(RequestRecord::complete);
    }
}
