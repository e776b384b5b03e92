//! The fields of one record, which writes itself when it is dropped.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use serde::Serialize;

use super::{
    kind::RecordKind,
    stamp::now,
    writer::{AuditEntry, RecordSlot},
};
use crate::{
    decide::{Permit, Route},
    identity::{AgentAddr, Dialled, FlowId},
    metrics::{CarriedLabels, Decided, Metrics, Stage},
    peek::Peeked,
    policy::{GroupName, InterfaceName, Placeholder},
    reason::{Cause, Reason},
};

/// Bytes of a flow so far, seen from the agent's side of the gateway.
#[derive(Debug, Default)]
pub struct Traffic {
    pub(crate) from_agent: AtomicU64,
    pub(crate) to_agent: AtomicU64,
}

impl Traffic {
    /// From the agent.
    pub fn from_agent(&self) -> u64 {
        self.from_agent.load(Relaxed)
    }

    /// To the agent.
    pub fn to_agent(&self) -> u64 {
        self.to_agent.load(Relaxed)
    }

    /// Both directions together; it only grows while the flow lives.
    pub fn total(&self) -> u64 {
        self.from_agent() + self.to_agent()
    }
}

/// The record of one connection.
#[derive(Debug)]
pub struct Record {
    slot: Option<RecordSlot>,
    begun: Instant,
    peeked: Option<Instant>,
    traffic: Arc<Traffic>,
    elsewhere: bool,
    line: ConnectionLine,
}

impl Record {
    /// Opens the record of a connection that was just accepted. Until it is changed, it says that
    /// the gateway failed, which is what a panic leaves behind.
    pub fn open(
        slot: RecordSlot,
        flow: FlowId,
        interface: &InterfaceName,
        from: AgentAddr,
        to: Dialled,
    ) -> Self {
        let line = ConnectionLine {
            time: now(),
            record: RecordKind::Connection,
            flow: flow.to_string(),
            interface: interface.to_string(),
            agent: from.0.to_string(),
            dialled: to.0.to_string(),
            decision: "refuse",
            reason: Some(Reason::InternalError.as_str()),
            ..ConnectionLine::default()
        };
        let (begun, traffic) = (Instant::now(), Arc::default());
        Self { slot: Some(slot), begun, peeked: None, traffic, elsewhere: false, line }
    }

    /// The live byte counts.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// Sets the group of the agent that opened the connection.
    pub fn group(&mut self, group: &GroupName) {
        self.line.group = Some(group.to_string());
    }

    /// Sets the fields that the first bytes say.
    pub fn peeked(&mut self, peeked: &Peeked) {
        took(self.slot.as_ref(), Stage::Peek, self.begun);
        self.peeked = Some(Instant::now());
        match peeked {
            Peeked::Tls(hello) => {
                self.line.sni = hello.sni.as_ref().map(ToString::to_string);
                self.line.alpn = hello.alpn.iter().take(MAX_ALPN).map(|name| text(name)).collect();
                self.line.ech = hello.ech;
            }
            Peeked::Http(head) => self.line.host = head.host.as_ref().map(ToString::to_string),
            Peeked::Other => {}
            Peeked::Unread(names) => {
                let names = names.iter().take(MAX_NAMES);
                self.line.answered = names.map(ToString::to_string).collect();
            }
        }
    }

    /// Sets the decision that lets the connection pass. From here on it has no reason.
    pub fn permitted(&mut self, permit: &Permit) {
        let route = permit.route();
        if matches!(route, Route::Tcp(_)) {
            self.line.host = Some(permit.host().to_string());
        }
        self.line.decision = route.as_str();
        self.line.rule = Some(route.rule().to_string());
        self.line.reason = None;
    }

    /// Sets the address that was dialled for the agent.
    pub fn upstream(&mut self, address: IpAddr) {
        if let Some(peeked) = self.peeked.take() {
            took(self.slot.as_ref(), Stage::Dial, peeked);
        }
        self.line.upstream = Some(address.to_string());
    }

    /// Notes that the agent dialled an address that the gateway does not give for the name. This
    /// does not refuse the connection; it is the record's reason if it has no other.
    pub fn dialled_elsewhere(&mut self) {
        self.elsewhere = true;
    }

    /// Notes that the gateway itself answers, with this page.
    pub fn onboards(&mut self, path: &'static str) {
        self.line.decision = "onboard";
        self.line.path = Some(path);
        self.line.reason = None;
    }

    /// Sets why the connection was cut after it had been permitted. The decision stays as it was,
    /// and so does the reason of a refusal that was being sent.
    pub fn cut(&mut self, reason: Reason) {
        self.line.reason.get_or_insert(reason.as_str());
        self.ended("cut");
    }

    /// Sets why the connection was refused.
    pub fn refused(&mut self, reason: Reason) {
        self.line.decision = "refuse";
        self.line.reason = Some(reason.as_str());
    }

    /// Notes that the agent closed before there were enough bytes to decide on. Nothing was
    /// refused.
    pub fn nothing_said(&mut self) {
        self.line.decision = "none";
        self.line.reason = None;
        self.ended("closed");
    }

    /// Sets the cause behind the reason.
    pub fn cause(&mut self, cause: impl Into<Cause>) {
        self.line.cause = Some(cause.into().as_str());
    }

    /// Sets the TLS alert with which the other side ended a handshake.
    pub fn alert(&mut self, alert: &'static str) {
        self.line.alert = Some(alert);
    }

    /// Notes that the agent ended the handshake in which it was shown a leaf. An earlier reason
    /// stays.
    pub fn agent_tls_failed(&mut self) {
        if self.line.reason.is_none() {
            self.refused(Reason::AgentTlsFailed);
        }
    }

    /// Sets the word for how the connection ended.
    pub fn ended(&mut self, how: &'static str) {
        self.line.end = Some(how);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.refused(Reason::InternalError);
        }
        if self.elsewhere {
            self.line.reason.get_or_insert(Reason::DialledElsewhere.as_str());
        }
        self.line.bytes_from_agent = self.traffic.from_agent();
        self.line.bytes_to_agent = self.traffic.to_agent();
        self.line.duration_ms = millis(self.begun);
        if let Some(slot) = self.slot.take() {
            slot.write(&self.line);
        }
    }
}

/// The record of one request on an intercepted or inspected connection.
#[derive(Debug)]
pub struct RequestRecord {
    slot: Option<RecordSlot>,
    begun: Instant,
    line: RequestLine,
}

impl RequestRecord {
    /// Opens the record of a request whose head has just been read.
    pub fn open(
        slot: RecordSlot,
        flow: FlowId,
        (group, agent): (&GroupName, AgentAddr),
        route: &Route,
    ) -> Self {
        let line = RequestLine {
            time: now(),
            record: RecordKind::Request,
            flow: flow.to_string(),
            group: group.to_string(),
            agent: agent.0.to_string(),
            decision: "refuse",
            rule: route.rule().to_string(),
            reason: Some(Reason::InternalError.as_str()),
            ..RequestLine::default()
        };
        Self { slot: Some(slot), begun: Instant::now(), line }
    }

    /// Sets the request line without its query: the agent chose that, and it may hold anything.
    pub fn asked(&mut self, method: &http::Method, host: &str, path: &str) {
        self.line.method = capped(method.as_str(), MAX_METHOD_BYTES);
        self.line.host = capped(host, crate::policy::Host::MAX_BYTES);
        self.line.path = capped(path, MAX_PATH_BYTES);
    }

    /// Sets the names of the placeholders that were replaced by secrets.
    pub fn placeholders<'a>(&mut self, names: impl Iterator<Item = &'a Placeholder>) {
        self.line.placeholders = names.map(ToString::to_string).collect();
    }

    /// Sets the labels of the tickets in the answer, each once.
    pub fn minted<'a>(&mut self, labels: impl Iterator<Item = &'a Placeholder>) {
        for label in labels.map(ToString::to_string) {
            if !self.line.minted.contains(&label) {
                self.line.minted.push(label);
            }
        }
    }

    /// Sets the name of the place in which a credential stands that is not good.
    pub fn credential(&mut self, place: Option<&str>) {
        self.line.credential = place.map(|place| capped(place, MAX_CREDENTIAL_BYTES));
    }

    /// Notes that the request goes upstream.
    pub fn forwarded(&mut self, route: &Route) {
        self.line.decision = route.as_str();
        self.line.reason = None;
    }

    /// Sets why the request was refused or cut.
    pub fn refused(&mut self, reason: Reason) {
        self.line.decision = "refuse";
        self.line.reason = Some(reason.as_str());
    }

    /// Sets the cause behind the reason.
    pub fn cause(&mut self, cause: impl Into<Cause>) {
        self.line.cause = Some(cause.into().as_str());
    }

    /// Sets the status of the upstream's response.
    pub fn upstream_status(&mut self, status: http::StatusCode) {
        took(self.slot.as_ref(), Stage::Answer, self.begun);
        self.line.upstream_status = Some(status.as_u16());
    }

    /// Adds bytes of the request's body.
    pub fn request_bytes(&mut self, bytes: u64) {
        self.line.request_bytes += bytes;
    }

    /// Returns the bytes of the request's body so far.
    pub fn sent(&self) -> u64 {
        self.line.request_bytes
    }

    /// Adds bytes of the response's body, and the number of them that were masked.
    pub fn response_bytes(&mut self, bytes: u64, masked: u64) {
        self.line.response_bytes += bytes;
        self.masked(masked);
    }

    /// Adds bytes of the response, head or body, that were masked. That does not refuse the
    /// request.
    pub fn masked(&mut self, masked: u64) {
        self.line.masked += masked;
        if self.line.masked > 0 && self.line.reason.is_none() {
            self.line.reason = Some(Reason::ResponseMasked.as_str());
        }
    }

    /// Adds messages of a WebSocket, from the agent and to the agent.
    pub fn messages(&mut self, from_agent: u64, to_agent: u64) {
        let [out, back] = self.line.websocket_mut();
        *out += from_agent;
        *back += to_agent;
    }

    /// Sets the code of a WebSocket's first close frame, if it has one.
    pub fn closed(&mut self, code: Option<u16>) {
        self.line.close_code = self.line.close_code.or(code);
    }

    /// Notes that the response came to its end.
    pub fn complete(&mut self) {
        self.line.complete = true;
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.refused(Reason::InternalError);
        }
        self.line.duration_ms = millis(self.begun);
        took(self.slot.as_ref(), Stage::Request, self.begun);
        if let Some(slot) = self.slot.take() {
            slot.write(&self.line);
        }
    }
}

#[derive(Debug, Default, Serialize)]
struct ConnectionLine {
    time: String,
    record: RecordKind,
    flow: String,
    interface: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    agent: String,
    dialled: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sni: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    /// The names for which the agent was given the address, where the protocol names no host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    answered: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alpn: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ech: bool,
    decision: &'static str,
    /// The onboarding page that was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alert: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<&'static str>,
    bytes_from_agent: u64,
    bytes_to_agent: u64,
    duration_ms: u64,
}

#[derive(Debug, Default, Serialize)]
struct RequestLine {
    time: String,
    record: RecordKind,
    flow: String,
    group: String,
    agent: String,
    decision: &'static str,
    rule: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    method: String,
    host: String,
    path: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    placeholders: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    minted: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_status: Option<u16>,
    #[serde(skip_serializing_if = "is_zero")]
    masked: u64,
    complete: bool,
    request_bytes: u64,
    response_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages_from_agent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages_to_agent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    close_code: Option<u16>,
    duration_ms: u64,
}

impl RequestLine {
    fn websocket_mut(&mut self) -> [&mut u64; 2] {
        [&mut self.messages_from_agent, &mut self.messages_to_agent]
            .map(|count| count.get_or_insert_default())
    }
}

impl AuditEntry for ConnectionLine {
    fn count(&self, metrics: &Metrics) {
        let group = self.group.clone().unwrap_or_default();
        let rule = self.rule.clone().unwrap_or_default();
        let (decision, reason) = (self.decision.to_owned(), self.reason.unwrap_or_default().into());
        let directions = [("from_agent", self.bytes_from_agent), ("to_agent", self.bytes_to_agent)];
        for (direction, bytes) in directions.into_iter().filter(|(_, bytes)| *bytes > 0) {
            let carried = CarriedLabels { group: group.clone(), rule: rule.clone(), direction };
            metrics.bytes(&carried, bytes);
        }
        metrics.connections(&Decided { group, rule, decision, reason }, 1);
    }
}

impl AuditEntry for RequestLine {
    fn count(&self, metrics: &Metrics) {
        if self.masked > 0 {
            metrics.masked(&self.group, &self.rule, self.masked);
        }
        let decided = Decided {
            group: self.group.clone(),
            rule: self.rule.clone(),
            decision: self.decision.to_owned(),
            reason: self.reason.unwrap_or_default().into(),
        };
        metrics.requests(&decided, 1);
    }
}

fn took(slot: Option<&RecordSlot>, stage: Stage, since: Instant) {
    if let Some(slot) = slot {
        slot.took(stage, since.elapsed());
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde calls")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The text, or what of it has room in so many bytes before a mark that says that it went on.
pub(super) fn capped(value: &str, bytes: usize) -> String {
    // An agent's own character is no mark.
    let value = value.replace(CUT, ESCAPED_CUT);
    if value.len() <= bytes {
        return value;
    }
    let whole = |end: &usize| value.is_char_boundary(*end);
    let end = (0..=bytes.saturating_sub(CUT.len())).rev().find(whole).unwrap_or_default();
    value.get(..end).unwrap_or_default().to_owned() + CUT
}

/// Whether a text of a record went on.
pub fn is_cut(text: &str) -> bool {
    text.ends_with(CUT)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.len().min(MAX_ALPN_BYTES);
    bytes.get(..end).unwrap_or_default().escape_ascii().to_string()
}

/// The end of a text that is longer than its room in a record.
const CUT: &str = "\u{2026}";
/// The same character in a text of an agent's (RFC 3986, section 2.1).
const ESCAPED_CUT: &str = "%E2%80%A6";
/// Most names of one address in a record.
const MAX_NAMES: usize = 8;
/// Most protocol names of one ClientHello in a record.
const MAX_ALPN: usize = 8;
/// Most bytes of each of them.
const MAX_ALPN_BYTES: usize = 32;
/// Most bytes of a method.
const MAX_METHOD_BYTES: usize = 32;
/// Most bytes of the name of a credential, with its kind.
const MAX_CREDENTIAL_BYTES: usize = 64;
/// Most bytes of a path.
const MAX_PATH_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_text_of_a_record_is_whole_or_marked(text in "(.|…){0,80}", bytes in 3_usize..64) {
            let shown = capped(&text, bytes);
            prop_assert!(shown.len() <= bytes);
            let whole = text.replace(CUT, ESCAPED_CUT);
            match whole.len() <= bytes {
                true => prop_assert_eq!(&shown, &whole),
                false => prop_assert!(whole.starts_with(shown.trim_end_matches(CUT))),
            }
            prop_assert_eq!(is_cut(&shown), whole.len() > bytes);
        }
    }
}
