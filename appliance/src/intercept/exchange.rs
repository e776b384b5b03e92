//! One request and its answer on a connection whose TLS ends here.
//!
//! The order is the argument: a slot in the audit, then a message with one meaning for the one
//! pinned authority, then the policy's methods, paths and credentials, then the values, then the
//! upstream. Whatever fails on the way is answered here, and nothing is sent.

use std::{
    slice,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, header::CONNECTION, request, response,
};
use http_body::Body as _;
use http_body_util::Full;
use hyper::{body::Incoming, client::conn};
use tokio::time::timeout;

use super::{
    body::{RequestBody, ResponseBody, Scrubbed},
    decoded::{Places, Reading, Source},
    exchanges::{ActiveExchange, Exchanges},
    framing::TrailerRule,
    message,
    minting::{Minting, Receiver},
    overrides, owner_restrictions,
    pinned_authority::PinnedAuthority,
    retryable::Retryable,
    websocket::{self, Asked, Begun, Switch},
    whole::{self, Unread, WholeBody},
};
use crate::{
    audit::{RequestRecord, Sink},
    decide::Route,
    identity::{AgentAddr, AgentKey, FlowId},
    limits::{Coded, RequestSlot, Taken, Way},
    locks::lock,
    policy::{Api, Binding, Carry, Group, Narrowed, Pass, ResponseRules, permits},
    policy_snapshot::{Generations, MaskCache},
    reason::{Reason, SecretCause},
    refuse::{self, Dialect, Refusal},
    scrub::{self, Accepted, Masks, Part},
    secrets::{SecretSnapshot, SecretStore},
    substitute::{self, Denial, Desk, Substitution, SubstitutionRules, TicketsAt},
    tickets::Tickets,
};

/// What every exchange of one connection shares.
pub(super) struct Connection {
    /// Its flow.
    pub flow: FlowId,
    /// Whose it is.
    pub group: Arc<Group>,
    /// Where it came from.
    pub agent: AgentAddr,
    /// The one name and port that requests may be for.
    pub pinned: PinnedAuthority,
    /// How it was permitted.
    pub route: Route,
    /// What a request must look like.
    pub rules: RequestRules,
    /// Where requests are counted.
    pub taken: Arc<Taken>,
    /// Where records go.
    pub audit: Sink,
    /// Where values come from.
    pub secrets: Arc<SecretStore>,
    /// What agents hold for what APIs have minted.
    pub tickets: Arc<Tickets>,
    /// Compiled masks, shared between connections.
    pub masks: Arc<MaskCache>,
    /// Compressed answers to its group.
    pub(super) coded: Arc<Coded>,
    /// Fields that a head may have, and the bytes of a list of them; HTTP/2 has no reader of ours
    /// that counts them.
    pub(super) head_fields: usize,
    pub(super) head_bytes: usize,
    /// How long a body may take that is read whole.
    pub(super) head_time: Duration,
    /// How long an upstream may say nothing to a request of which nothing moves.
    pub(super) idle_time: Duration,
    /// Exchanges under way.
    pub(super) exchanges: Arc<Exchanges>,
}

/// What is asked of a request, by how the connection was permitted.
pub(super) enum RequestRules {
    /// Placeholders become secrets.
    Substitute(Arc<SubstitutionRules>),
    /// Method and path only.
    Inspect,
}

/// Masks, and the generation of the values that they were made for.
pub(super) struct Masking {
    pub(super) masks: Arc<Masks>,
    generations: Generations,
}

/// What is done with the answer to a request.
struct ResponseHandling {
    masking: Masking,
    reading: Reading,
    part: Option<Part>,
    minting: Option<Minting>,
}

/// The one upstream connection behind an agent's connection.
pub(super) enum Sender {
    /// HTTP/1.1: one request at a time, until one of them makes a WebSocket of the connection.
    H1(tokio::sync::Mutex<conn::http1::SendRequest<RequestBody>>, Arc<Switch>),
    /// HTTP/2: many at once.
    H2(conn::http2::SendRequest<RequestBody>),
}

/// Why an exchange has no answer of the upstream's.
enum ExchangeError {
    /// The gateway answers with this.
    Refused(Reason),
    /// Nobody has looked at the request.
    Retryable(Retryable),
}

impl From<Reason> for ExchangeError {
    fn from(reason: Reason) -> Self {
        Self::Refused(reason)
    }
}

/// The record of an exchange, shared by both bodies. It is written when the last of them is gone.
pub(super) struct Trace {
    record: Mutex<RequestRecord>,
    connection: Arc<Connection>,
    refused_body: Mutex<Option<Reason>>,
    _active: ActiveExchange,
    _slot: RequestSlot,
}

impl Connection {
    /// Opens the record of one more exchange. One that comes too fast has none, so that no agent
    /// takes the audit from the others; it is in a sum.
    pub(super) fn begin(self: &Arc<Self>, active: ActiveExchange) -> Result<Arc<Trace>, Reason> {
        if !self.taken.may_ask(Instant::now()) {
            return Err(Reason::RateLimit);
        }
        let slot = self.audit.reserve().map_err(|_| Reason::AuditUnavailable)?;
        let mut record =
            RequestRecord::open(slot, self.flow, (&self.group.name, self.agent), &self.route);
        let slot = self.taken.request().inspect_err(|&reason| record.refused(reason))?;
        Ok(Arc::new(Trace {
            record: Mutex::new(record),
            connection: Arc::clone(self),
            refused_body: Mutex::default(),
            _active: active,
            _slot: slot,
        }))
    }

    /// Masks for the values as they are now.
    fn masking(&self, api: &Api, snapshot: &SecretSnapshot) -> Masking {
        let (masks, generations) = self.masks.of(&self.group.name, api, (snapshot, &self.tickets));
        Masking { masks, generations }
    }

    /// Others than `masking`, where values have changed since it was made.
    fn newer(&self, masking: &Masking) -> Option<Masking> {
        let Route::Intercept(api) = &self.route else { return None };
        let now = (self.secrets.generation(), self.tickets.generation());
        let changed = now != masking.generations;
        changed.then(|| self.masking(api, &self.secrets.snapshot()))
    }

    /// Who gets the tickets of an answer.
    fn receiver(&self) -> Receiver<'_> {
        Receiver {
            tickets: &self.tickets,
            group: &self.group.name,
            agent: AgentKey::of(&self.group, self.agent.ip()).prefix(),
            taken: &self.taken,
            deadline: self.head_time,
        }
    }

    /// Whether one of its requests may become a WebSocket.
    fn allows_websocket(&self) -> bool {
        match &self.route {
            Route::Intercept(api) => api.websocket,
            Route::Inspect(pass) => matches!(pass.carry, Carry::Inspect { websocket: true, .. }),
            Route::Splice(_) | Route::Tcp(_) => false,
        }
    }

    fn response_rules(&self) -> ResponseRules {
        match &self.route {
            Route::Intercept(api) => api.response,
            Route::Splice(_) | Route::Tcp(_) | Route::Inspect(_) => {
                ResponseRules { cookies: true, ranges: true }
            }
        }
    }
}

impl TrailerRule for Connection {
    fn check(&self, trailers: &http::HeaderMap) -> Result<(), Reason> {
        match &self.rules {
            RequestRules::Substitute(rules)
                if substitute::trailers_carry_credential(rules, trailers) =>
            {
                Err(Reason::TrailerDenied)
            }
            _ => Ok(()),
        }
    }
}

/// Serves one request, whose exchange began when its head was read. Every failure is an answer, but
/// for a request that the agent may send again.
pub(super) async fn serve(
    connection: Arc<Connection>,
    sender: Arc<Sender>,
    request: Request<Incoming>,
    active: ActiveExchange,
) -> Result<Response<ResponseBody>, Retryable> {
    let (flow, dialect) = (connection.flow, Dialect::of(request.headers()));
    let trace = match connection.begin(active) {
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

impl Sender {
    /// An answer to a handshake is the last one of its connection, unless a WebSocket follows: what
    /// an agent has sent behind it is answered by nobody.
    fn last(&self, mut response: Response<ResponseBody>) -> Response<ResponseBody> {
        let asked = matches!(self, Self::H1(_, switch) if switch.is_asked());
        if asked && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Where a WebSocket can be made.
    fn switch(&self) -> Option<&Switch> {
        match self {
            Self::H1(_, switch) => Some(switch),
            Self::H2(_) => None,
        }
    }
}

/// Serves a connection on which nothing may be sent: every request gets the same answer.
pub(super) fn serve_refusal(
    connection: &Arc<Connection>,
    request: &Request<Incoming>,
    refusal: Refusal,
) -> Response<ResponseBody> {
    let (flow, dialect) = (connection.flow, Dialect::of(request.headers()));
    let host = connection.pinned.host.as_str();
    match connection.begin(connection.exchanges.begin()) {
        Ok(trace) => {
            trace.with(|record| {
                record.asked(request.method(), host, request.uri().path());
                record.refused(refusal.reason);
                refusal.cause.into_iter().for_each(|cause| record.cause(cause));
            });
            answer(refusal, flow, dialect)
        }
        Err(unavailable) => answer(unavailable, flow, dialect),
    }
}

/// An answer of the gateway's own.
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
        record.asked(&head.method, connection.pinned.host.as_str(), head.uri.path());
    });
    message::check_size(&head, connection.head_fields, connection.head_bytes)?;
    let mut asked = message::check(&head, &connection.pinned, connection.allows_websocket())?;
    let whole = match connection.rules.reads_body(&head) {
        true => Some(read_whole(connection, &mut body, trace).await?),
        false => None,
    };
    let snapshot = connection.secrets.snapshot();
    let PreparedRequest { mut answering, used, body: swapped } =
        prepare(connection, &mut head, whole.as_ref(), &snapshot, trace)?;
    message::address(&mut head, &connection.pinned)?;
    if let Some(asked) = &mut asked {
        sender.switch().ok_or(Reason::UpgradeDenied)?.ask();
        asked.write(&mut head.headers);
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
    // Whoever gives up waiting here could have measured what was on its way.
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

async fn read_whole(
    connection: &Connection,
    body: &mut Incoming,
    trace: &Trace,
) -> Result<WholeBody, Reason> {
    let count = |bytes| trace.request_bytes(bytes);
    let read = whole::read(body, &connection.taken, count, connection.head_time).await;
    read.map_err(|unread| match unread {
        Unread::Refused(reason) => reason,
        Unread::BrokenOff => trace.broken_off(),
    })
}

/// What a request that may be sent has become.
struct PreparedRequest {
    /// How its answer is read.
    answering: ResponseHandling,
    /// The bindings whose values are in the request.
    used: Vec<Arc<Binding>>,
    /// The body, where it has been read.
    body: Option<Bytes>,
}

/// Checks the request against its rules and puts the values in.
fn prepare(
    connection: &Connection,
    head: &mut request::Parts,
    whole: Option<&WholeBody>,
    snapshot: &SecretSnapshot,
    trace: &Trace,
) -> Result<PreparedRequest, Reason> {
    match (&connection.rules, &connection.route) {
        (RequestRules::Substitute(rules), Route::Intercept(api)) => {
            let (all, host) = (&connection.tickets, &connection.pinned.host);
            let tickets = TicketsAt { all, host, now: Instant::now() };
            let desk = Desk::new(rules, tickets);
            let substitution = match whole {
                Some(whole) => substitute::examine_whole(desk, head, &whole.bytes),
                None => substitute::examine(desk, head),
            };
            let substitution = substitution.map_err(|denial| trace.denied(denial))?;
            trace.with(|record| record.placeholders(substitution.placeholders()));
            let scope = rules.scope(&substitution, head)?;
            overrides::check(head, Some(scope.methods), scope.paths)?;
            if let Some(path) = rules.body_path() {
                // A value in a body is for one method and one path, whatever else the API allows.
                let (method, path) = (slice::from_ref(&head.method), slice::from_ref(path));
                overrides::check(head, Some(method), path)?;
            }
            let target = (&connection.group.name, api.as_ref(), &connection.pinned.host);
            owner_restrictions::admit(target, head, snapshot, &substitution)
                .map_err(|word| trace.narrowed(word))?;
            let minting = Minting::of(rules, head, &connection.taken)?;
            let masking = connection.masking(api, snapshot);
            let part = Part::of(&head.method, &head.headers).filter(|_| !api.response.ranges);
            let reading = match (&part, &minting) {
                // It is cut out of an answer of a known length, or read whole.
                (Some(_), _) | (_, Some(_)) => Reading::Decoded(Places::default()),
                (None, None) => Reading::Decoded(Places::of(
                    (&connection.coded, &connection.taken),
                    &head.headers,
                )),
            };
            let accepted = reading.accepted();
            scrub::request_encodings(&api.response, accepted, &mut head.headers);
            let body = swap(connection, head, snapshot, &substitution)
                .map_err(|cause| trace.secret_unavailable(cause))?;
            let used = substitution.bindings().cloned().collect();
            Ok(PreparedRequest {
                answering: ResponseHandling { masking, reading, part, minting },
                used,
                body,
            })
        }
        (RequestRules::Inspect, Route::Inspect(pass)) => {
            inspect(pass, head)?;
            let masking = Masking { masks: connection.masks.none(), generations: (0, 0) };
            let answering =
                ResponseHandling { masking, reading: Reading::Unread, part: None, minting: None };
            Ok(PreparedRequest { answering, used: vec![], body: None })
        }
        _ => Err(Reason::InternalError),
    }
}

fn swap(
    connection: &Connection,
    head: &mut request::Parts,
    snapshot: &SecretSnapshot,
    substitution: &Substitution,
) -> Result<Option<Bytes>, SecretCause> {
    let group = &connection.group.name;
    let now = Instant::now();
    substitution.apply(head, |binding: &Binding| {
        snapshot.current(group, &binding.secret, binding.min_value_bytes, now)
    })
}

fn inspect(pass: &Pass, head: &request::Parts) -> Result<(), Reason> {
    match &pass.carry {
        Carry::Inspect { methods, paths, .. } => {
            permits(methods, paths, &head.method, head.uri.path())?;
            overrides::check(head, Some(methods), paths)
        }
        Carry::Splice { .. } => Err(Reason::InternalError),
    }
}

async fn send(
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

async fn receive(
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
        // Nobody asked for it.
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
        body = minting.rewrite(body, &mut head, &connection.receiver()).await?;
    }
    // The answer may have taken its time, or brought what is to be masked.
    let masking = connection.newer(&masking).unwrap_or(masking);
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
        switch.make(Arc::new(Opened { trace: Arc::clone(trace), masking: Mutex::new(masking) }));
        return Ok(Response::from_parts(head, ResponseBody::Own(Full::default())));
    }
    let rules = connection.response_rules();
    let in_envelopes = scrub::in_envelopes(&head.headers);
    let body = Scrubbed::new(body, masking, rules, in_envelopes, Arc::clone(trace)).within(window);
    Ok(Response::from_parts(head, ResponseBody::Upstream(Box::new(body))))
}

/// Where the body comes from. Makes the head of one that is decoded that of a plain one.
fn source(
    connection: &Connection,
    reading: Reading,
    head: &mut response::Parts,
    body: Incoming,
) -> Result<Source, Reason> {
    let Reading::Decoded(places) = reading else { return Ok(Source::Plain(body)) };
    let accepted = places.accepted();
    let coding = scrub::content_coding(head.status, &head.headers)?;
    // That of the answer which the agent has, and which may have been compressed.
    if coding.is_some() || accepted != Accepted::Identity && head.status == StatusCode::NOT_MODIFIED
    {
        scrub::decoded_head(&mut head.headers);
    }
    match coding {
        Some(coding) if !body.is_end_stream() => {
            places.decode((&connection.coded, &connection.taken), coding, body)
        }
        _ => Ok(Source::Plain(body)),
    }
}

fn head_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// Bytes of a response's fields.
const MAX_RESPONSE_HEAD: usize = 256 * 1024;

impl Trace {
    /// Writes into the record.
    pub(super) fn with<T>(&self, write: impl FnOnce(&mut RequestRecord) -> T) -> T {
        write(&mut lock(&self.record))
    }

    /// Why the exchange was refused.
    pub(super) fn refused(&self, reason: Reason) {
        self.with(|record| record.refused(reason));
    }

    /// Notes which credential was not good, and which placeholder of the group stood there.
    fn denied(&self, denial: Denial) -> Reason {
        self.with(|record| {
            record.placeholders(denial.placeholder.iter());
            record.credential(denial.credential.as_deref());
        });
        denial.reason
    }

    /// Notes why there is no value; agents only learn that there is none.
    fn secret_unavailable(&self, cause: SecretCause) -> Reason {
        self.with(|record| record.cause(cause));
        Reason::SecretUnavailable
    }

    fn narrowed(&self, narrowed: Narrowed) -> Reason {
        match narrowed {
            Narrowed::Refused(reason) => reason,
            Narrowed::Unavailable(cause, _) => self.secret_unavailable(cause),
        }
    }

    /// Why a body was ended before its time. The first reason stays.
    pub(super) fn refuse_body(&self, reason: Reason) {
        lock(&self.refused_body).get_or_insert(reason);
        self.refused(reason);
    }

    /// The agent's body ended before its time: by a broken rule, or because the agent left off.
    /// Gives the reason.
    pub(super) fn broken_off(&self) -> Reason {
        let violation = self.connection.exchanges.violation();
        let reason = violation.map_or(Reason::HttpMalformed, |violation| violation.reason);
        self.refuse_body(reason);
        reason
    }

    fn body_refusal(&self) -> Option<Reason> {
        *lock(&self.refused_body)
    }

    /// Newer masks, where values have changed since `masking` was made. Cheap where they have not.
    pub(super) fn newer(&self, masking: &Masking) -> Option<Masking> {
        self.connection.newer(masking)
    }

    /// What the exchange is counted against.
    pub(super) fn taken(&self) -> Arc<Taken> {
        Arc::clone(&self.connection.taken)
    }

    /// Counts bytes of the request's body.
    pub(super) fn request_bytes(&self, bytes: usize) {
        self.connection.exchanges.moved(bytes as u64);
        self.with(|record| record.request_bytes(bytes as u64));
    }

    /// Counts bytes of the response's body, and how many of them were masked.
    pub(super) fn response_bytes(&self, bytes: usize, masked: u64) {
        self.connection.exchanges.moved(bytes as u64);
        self.with(|record| record.response_bytes(bytes as u64, masked));
    }

    /// Waits for an answer for as long as the request's body moves, and then for the idle time. An
    /// HTTP/1.1 connection is watched as a whole; here other streams may be what keeps it alive.
    async fn unless_idle<F: Future>(&self, answer: F) -> Option<F::Output> {
        let mut answer = std::pin::pin!(answer);
        loop {
            let sent = self.with(|record| record.sent());
            match timeout(self.connection.idle_time, answer.as_mut()).await {
                Ok(answer) => return Some(answer),
                Err(_) if self.with(|record| record.sent()) == sent => return None,
                Err(_) => {}
            }
        }
    }

    /// Counts places of the response that hold much of a secret and not all of it.
    ///
    /// # Errors
    ///
    /// [`Reason::SecretProbed`], where the agent has had too many.
    pub(super) fn near_misses(&self, count: u64) -> Result<(), Reason> {
        let may = count == 0 || self.connection.taken.may_probe(count, Instant::now());
        if may { Ok(()) } else { Err(Reason::SecretProbed) }
    }

    /// The response came to its end.
    pub(super) fn complete(&self) {
        self.with(RequestRecord::complete);
    }
}

/// An exchange that became a WebSocket: its record counts on.
struct Opened {
    trace: Arc<Trace>,
    masking: Mutex<Masking>,
}

impl Begun for Opened {
    fn masks(&self) -> Arc<Masks> {
        Arc::clone(&lock(&self.masking).masks)
    }

    fn newer_masks(&self) -> Option<Arc<Masks>> {
        let mut masking = lock(&self.masking);
        *masking = self.trace.newer(&masking)?;
        Some(Arc::clone(&masking.masks))
    }

    fn passed(&self, way: Way, passed: &websocket::Passed) {
        let (bytes, messages) = (passed.bytes as u64, u64::from(passed.message));
        self.trace.connection.exchanges.moved(bytes);
        self.trace.with(|record| {
            match way {
                Way::Out => {
                    record.request_bytes(bytes);
                    record.messages(messages, 0);
                }
                Way::Back => {
                    record.response_bytes(bytes, passed.masked);
                    record.messages(0, messages);
                }
            }
            passed.close.into_iter().for_each(|code| record.closed(code));
        });
    }

    fn near_misses(&self, count: u64) -> Result<(), Reason> {
        self.trace.near_misses(count)
    }

    fn taken(&self) -> Arc<Taken> {
        self.trace.taken()
    }

    fn refused(&self, reason: Reason) {
        self.trace.refused(reason);
    }

    fn complete(&self) {
        self.trace.complete();
    }
}

/// The rules for a group at an API, or for inspection.
impl RequestRules {
    /// Whether the body of such a request is read whole.
    fn reads_body(&self, head: &request::Parts) -> bool {
        match self {
            Self::Substitute(rules) => rules.reads_body(head),
            Self::Inspect => false,
        }
    }

    /// Whether the API's rules are in here; for a route that carries none there is nothing.
    pub(super) fn of(
        route: &Route,
        rules: impl FnOnce(&Arc<Api>) -> Arc<SubstitutionRules>,
    ) -> Self {
        match route {
            Route::Intercept(api) => Self::Substitute(rules(api)),
            Route::Splice(_) | Route::Tcp(_) | Route::Inspect(_) => Self::Inspect,
        }
    }
}
