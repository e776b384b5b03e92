//! Maps every refusal to the bytes that the agent sees: one total map.
//!
//! Before anything was understood a refusal is a reset; after a ClientHello it is a TLS alert;
//! where HTTP is spoken it is `application/problem+json` (RFC 9457), and where gRPC is, a status of
//! gRPC. The text is fixed for each reason, so that an answer cannot carry a value or tell one
//! foreign credential from another.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, UPGRADE, WWW_AUTHENTICATE},
};

use crate::{
    identity::FlowId,
    reason::{Reason, TlsCause},
};

/// The reason that an agent is told, with its cause where that is no secret of the gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub reason: Reason,
    /// The fault that TLS found in the upstream.
    pub cause: Option<TlsCause>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, cause: None }
    }
}

impl Refusal {
    const fn text(self) -> &'static str {
        match self.cause {
            Some(cause) => tls_text(cause),
            None => wire(self.reason).text,
        }
    }
}

/// The way in which a client reads an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// By its HTTP status and its body.
    Http,
    /// By `grpc-status` and `grpc-message`; the text is the answer's content type.
    Grpc(&'static str),
}

impl Dialect {
    /// Returns the dialect of a request with these fields.
    pub fn of(headers: &HeaderMap) -> Self {
        let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let is = |name: &str| {
            let (start, rest) = kind.split_at_checked(name.len()).unwrap_or_default();
            let ends = matches!(rest.first(), None | Some(b'+' | b';' | b' '));
            ends && start.eq_ignore_ascii_case(name.as_bytes())
        };
        let known = [GRPC, GRPC_WEB, GRPC_WEB_TEXT].into_iter().find(|name| is(name));
        known.map_or(Self::Http, Self::Grpc)
    }
}

/// The forms of a refusal in TLS, in HTTP and in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// The TLS alert's description (RFC 8446, section 6).
    pub alert: u8,
    /// The HTTP status.
    pub status: StatusCode,
    /// The sentence for the agent's developer, with a remedy where there is one.
    pub text: &'static str,
}

/// Maps each reason to its forms: the one such map.
#[expect(clippy::too_many_lines, reason = "a table, with one entry for each reason")]
pub const fn wire(reason: Reason) -> Wire {
    use Reason as R;
    let (alert, status, text) = match reason {
        R::NoGroup => (ACCESS_DENIED, FORBIDDEN, "this address belongs to no agent group"),
        R::SpoofedSource => (ACCESS_DENIED, FORBIDDEN, "this source address is not allowed here"),
        R::MulticastDenied => {
            (ACCESS_DENIED, FORBIDDEN, "multicast and broadcast go no further than the link")
        }
        R::DestinationDenied => (ACCESS_DENIED, FORBIDDEN, "this destination is not allowed"),
        R::PortDenied => (ACCESS_DENIED, FORBIDDEN, "this port is not allowed"),
        R::ProtocolDenied => (ACCESS_DENIED, FORBIDDEN, "this protocol is not allowed"),
        R::SelfDestination => (ACCESS_DENIED, FORBIDDEN, "the gateway itself is not a destination"),
        R::PeekTimeout => (ACCESS_DENIED, TIMEOUT, "the connection said too little for too long"),
        R::NotTls => (ACCESS_DENIED, FORBIDDEN, "this host is reached over https only"),
        R::TlsMalformed => (DECODE_ERROR, BAD_REQUEST, "the ClientHello is malformed"),
        R::SniMissing => (MISSING_EXTENSION, BAD_REQUEST, "the ClientHello names no host"),
        R::SniDenied => (UNRECOGNIZED_NAME, FORBIDDEN, "this host is not allowed"),
        R::EchDenied => (
            ACCESS_DENIED,
            FORBIDDEN,
            "Encrypted Client Hello is not allowed; the gateway's operator can allow it by ech in the \
             rule of this host, or turn it off in the client",
        ),
        R::AlpnDenied => {
            (NO_APPLICATION_PROTOCOL, BAD_REQUEST, "no application protocol in common")
        }
        R::DialledElsewhere => (
            ACCESS_DENIED,
            MISDIRECTED,
            "the address does not belong to this name; resolve it again",
        ),
        R::ResolveFailed => (INTERNAL_ERROR, BAD_GATEWAY, "the name could not be resolved"),
        R::PrivateAddress => {
            (ACCESS_DENIED, BAD_GATEWAY, "the name resolves to an address that is not allowed")
        }
        R::UpstreamUnreachable => (
            INTERNAL_ERROR,
            BAD_GATEWAY,
            "the upstream could not be reached, or gave no answer that can be passed on",
        ),
        R::UpstreamTlsInvalid => {
            (BAD_CERTIFICATE, BAD_GATEWAY, "the upstream did not prove that it is this host")
        }
        R::AgentTlsFailed => {
            (BAD_CERTIFICATE, FORBIDDEN, "the agent does not take the gateway's certificate")
        }
        R::DnsDenied => (ACCESS_DENIED, FORBIDDEN, "this name is not allowed"),
        R::DnsRate => (ACCESS_DENIED, TOO_MANY, "too many DNS queries"),
        R::HostMismatch => (
            ACCESS_DENIED,
            MISDIRECTED,
            "Host, authority and server name are not one name and port",
        ),
        R::HttpMalformed => (ACCESS_DENIED, BAD_REQUEST, "the request is malformed or ambiguous"),
        R::HttpTimeout => (ACCESS_DENIED, TIMEOUT, "the request did not arrive in time"),
        R::HeaderLimit => (ACCESS_DENIED, HEADERS_TOO_LARGE, "the request head is too large"),
        R::BodyLimit => (
            ACCESS_DENIED,
            BODY_TOO_LARGE,
            "the request body is too large to be read whole, for its placeholder or its signature",
        ),
        R::ConnectDenied => (ACCESS_DENIED, FORBIDDEN, "CONNECT is not allowed"),
        R::UpgradeDenied => {
            (ACCESS_DENIED, UPGRADE_REQUIRED, "no upgrade to another protocol is carried here")
        }
        R::WebsocketMalformed => {
            (ACCESS_DENIED, BAD_REQUEST, "a frame of the WebSocket breaks its protocol")
        }
        R::WebsocketLimit => (
            ACCESS_DENIED,
            TOO_MANY,
            "a message of the WebSocket, or a rate of control frames, is too large",
        ),
        R::MethodDenied => (ACCESS_DENIED, FORBIDDEN, "this method is not allowed on this host"),
        R::PathDenied => (ACCESS_DENIED, FORBIDDEN, "this path is not allowed on this host"),
        R::PathAmbiguous => (ACCESS_DENIED, BAD_REQUEST, "the path could be read in two ways"),
        R::TrailerDenied => {
            (ACCESS_DENIED, BAD_REQUEST, "a credential field may not stand in the trailers")
        }
        R::PlaceholderMissing => {
            (ACCESS_DENIED, FORBIDDEN, "this host needs a placeholder in its credential field")
        }
        R::PlaceholderWrongHost => {
            (ACCESS_DENIED, FORBIDDEN, "this placeholder belongs to another host")
        }
        R::PlaceholderWrongPlace => (
            ACCESS_DENIED,
            FORBIDDEN,
            "this placeholder may not stand in this place; see where its binding has it",
        ),
        R::PlaintextPlaceholder => {
            (ACCESS_DENIED, FORBIDDEN, "a placeholder may not travel in the clear; use https")
        }
        R::ForeignCredential => {
            (ACCESS_DENIED, FORBIDDEN, "this credential is not a placeholder for this host")
        }
        R::TicketEnded => (
            ACCESS_DENIED,
            UNAUTHORIZED,
            "this ticket is not good any more; ask the API for another credential",
        ),
        R::TicketLimit => (
            ACCESS_DENIED,
            TOO_MANY,
            "this agent or its group has as many tickets for minted credentials as it may have",
        ),
        R::DuplicateCredential => (
            ACCESS_DENIED,
            BAD_REQUEST,
            "beside its placeholder the request carries a credential that is none, or one twice",
        ),
        R::CredentialMalformed => (
            ACCESS_DENIED,
            BAD_REQUEST,
            "the credential, or the cookies or the body that it stands in, cannot be read in one way",
        ),
        R::ScopeDenied => (
            ACCESS_DENIED,
            FORBIDDEN,
            "this host is not allowed for the service or region that the request is signed for",
        ),
        R::SignatureDenied => (
            ACCESS_DENIED,
            FORBIDDEN,
            "the gateway cannot replace this kind of AWS signature; sign with AWS4-HMAC-SHA256, and no chunks",
        ),
        R::SignatureExpired => (
            ACCESS_DENIED,
            FORBIDDEN,
            "this AWS signature was made too long ago, or in the future; look at the clock and sign again",
        ),
        R::SecretUnavailable => (
            INTERNAL_ERROR,
            UNAVAILABLE,
            "there is no usable value behind this placeholder now; nothing was forwarded",
        ),
        R::ResponseUnscannable => {
            (INTERNAL_ERROR, BAD_GATEWAY, "the upstream's response could not be scanned")
        }
        R::ResponseMasked => {
            (INTERNAL_ERROR, BAD_GATEWAY, "the upstream's response carried a secret")
        }
        R::SecretProbed => (
            ACCESS_DENIED,
            FORBIDDEN,
            "too many responses resemble a secret without being one; somebody may be guessing",
        ),
        R::AuditUnavailable => {
            (INTERNAL_ERROR, UNAVAILABLE, "the audit cannot be written; nothing was forwarded")
        }
        R::ConnectionLimit => (ACCESS_DENIED, TOO_MANY, "too many connections"),
        R::RateLimit => (ACCESS_DENIED, TOO_MANY, "too many requests"),
        R::PolicyRevoked => (ACCESS_DENIED, FORBIDDEN, "the policy no longer allows this"),
        R::Quarantined => (ACCESS_DENIED, FORBIDDEN, "this agent group is quarantined"),
        R::ShuttingDown => (INTERNAL_ERROR, UNAVAILABLE, "the gateway is about to stop"),
        R::InternalError => {
            (INTERNAL_ERROR, UNAVAILABLE, "the gateway failed; nothing was forwarded")
        }
    };
    Wire { alert, status, text }
}

/// Returns one fatal TLS alert record in the clear (RFC 8446, section 6), for use before a
/// handshake only.
pub const fn alert_record(reason: Reason) -> [u8; 7] {
    [0x15, 0x03, 0x03, 0, 2, 2, wire(reason).alert]
}

/// Returns the sentence for a fault in an upstream's TLS.
const fn tls_text(cause: TlsCause) -> &'static str {
    match cause {
        TlsCause::Expired => "the upstream's certificate has expired",
        TlsCause::NotYetValid => "the upstream's certificate is not valid yet",
        TlsCause::WrongName => "the upstream's certificate is not for this name",
        TlsCause::SelfSigned => {
            "the upstream's certificate is signed by itself; where it is the right one, the \
             gateway's operator can trust it in upstream_ca"
        }
        TlsCause::UnknownIssuer => {
            "the upstream's certificate is signed by no CA that the gateway trusts, or one between \
             them is missing; the gateway's operator can add a CA in upstream_ca"
        }
        TlsCause::BadSignature => "a signature in the upstream's handshake is wrong",
        TlsCause::CertificateInvalid => {
            "the upstream's certificate cannot be read, or is not one for a server"
        }
        TlsCause::AlertReceived => "the upstream ended the TLS handshake with an alert",
        TlsCause::NothingInCommon => {
            "the upstream speaks no version, cipher suite or protocol that the gateway speaks"
        }
        TlsCause::ProtocolViolated => "the upstream breaks the rules of TLS",
        TlsCause::NotTls => "what answers at the upstream does not speak TLS",
    }
}

/// Makes the answer for a refusal, in the client's dialect.
pub fn answer(refusal: impl Into<Refusal>, flow: FlowId, dialect: Dialect) -> Response<Bytes> {
    let refusal = refusal.into();
    match dialect {
        Dialect::Http => http_answer(refusal, flow),
        Dialect::Grpc(kind) => grpc_answer(refusal, flow, kind),
    }
}

fn http_answer(refusal: Refusal, flow: FlowId) -> Response<Bytes> {
    let mut response = Response::new(problem(refusal, flow));
    *response.status_mut() = wire(refusal.reason).status;
    for (name, value) in fields(refusal.reason) {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Trailers-Only: a head that is the end as well ("gRPC over HTTP2", Responses).
fn grpc_answer(refusal: Refusal, flow: FlowId, kind: &'static str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(GRPC_STATUS, grpc_status(wire(refusal.reason).status).into());
    // Percent-encoded text is always a valid field value.
    if let Ok(message) = HeaderValue::try_from(grpc_message(&message(refusal, flow))) {
        headers.insert(GRPC_MESSAGE, message);
    }
    response
}

/// Returns the gRPC code that means the same ("Status codes and their use in gRPC"). A failure that
/// may pass is UNAVAILABLE, which clients try again.
fn grpc_status(status: StatusCode) -> u16 {
    match status {
        BAD_REQUEST => 3,
        TIMEOUT => 4,
        FORBIDDEN => 7,
        UNAUTHORIZED => 16,
        TOO_MANY | HEADERS_TOO_LARGE | BODY_TOO_LARGE => 8,
        MISDIRECTED => 9,
        UPGRADE_REQUIRED => 12,
        BAD_GATEWAY | UNAVAILABLE => 14,
        _ => 2,
    }
}

/// Keeps printable ASCII other than `%`, and writes every other byte as `%XX`.
fn grpc_message(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b'%' | ..0x20 | 0x7f.. => _ = write!(encoded, "%{byte:02X}"),
            _ => encoded.push(char::from(byte)),
        }
        encoded
    })
}

/// Returns the same answer as bytes of HTTP/1.1, for callers without an HTTP stack. It closes the
/// connection.
pub fn answer_bytes(reason: Reason, flow: FlowId) -> Vec<u8> {
    let status = wire(reason).status;
    let body = problem(reason.into(), flow);
    let fields: String =
        fields(reason).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!(
        "HTTP/1.1 {} {}\r\n{fields}content-length: {}\r\nconnection: close\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or("Refused"),
        body.len(),
    );
    [head.as_bytes(), &body].concat()
}

/// Returns the fields of every answer, and those that this reason adds.
fn fields(reason: Reason) -> impl Iterator<Item = (HeaderName, &'static str)> {
    let status = wire(reason).status;
    let always = [(CONTENT_TYPE, "application/problem+json"), (CACHE_CONTROL, "no-store")];
    let later = matches!(status, BAD_GATEWAY | UNAVAILABLE | TOO_MANY);
    // RFC 9110, section 15.5.22: the answer names the protocol that is spoken here.
    let instead = status == UPGRADE_REQUIRED;
    // RFC 6750, section 3.1: clients renew a token when they read this.
    let renew = status == UNAUTHORIZED;
    let always = always.into_iter().chain(renew.then_some((WWW_AUTHENTICATE, INVALID_TOKEN)));
    always.chain(later.then_some((RETRY_AFTER, RETRY_AFTER_SECONDS))).chain(
        instead.then_some([(UPGRADE, "HTTP/1.1"), (CONNECTION, "upgrade")]).into_iter().flatten(),
    )
}

/// Returns the last frame of an HTTP/2 connection that ends for this reason: GOAWAY, with the
/// reason's word where RFC 9113, section 6.8, leaves room for one. It names the highest stream, so
/// that clients may try none of them again.
pub fn goaway(reason: Reason) -> Vec<u8> {
    let word = reason.as_str().as_bytes();
    let [.., length] = (word.len() + 8).to_be_bytes();
    let frame = [0, 0, length, GOAWAY, 0, 0, 0, 0, 0];
    [&frame, &LAST_STREAM.to_be_bytes()[..], &PROTOCOL_ERROR.to_be_bytes(), word].concat()
}

/// Clients print `message` and `error`, because they look where their own API puts an error. They
/// can all read a `code` that is a number.
fn problem(refusal: Refusal, flow: FlowId) -> Bytes {
    let (code, reason) = (wire(refusal.reason).status.as_u16(), refusal.reason);
    let (text, message) = (refusal.text(), message(refusal, flow));
    // Every part is a fixed word, a number or hexadecimal, so there is nothing to escape.
    Bytes::from(format!(
        "{{\"type\":\"about:blank\",\"title\":\"Refused by the gateway\",\"status\":{code},\
         \"reason\":\"{reason}\",\"detail\":\"{text}\",\"flow\":\"{flow}\",\
         \"message\":\"{message}\",\
         \"error\":{{\"message\":\"{message}\",\"code\":{code},\"status\":\"{reason}\"}}}}\n",
    ))
}

/// Puts all of it in one line, for clients that print no more.
fn message(refusal: Refusal, flow: FlowId) -> String {
    let (reason, text) = (refusal.reason, refusal.text());
    format!("refused by the gateway: {text} ({reason}, flow {flow})")
}

const INVALID_TOKEN: &str = "Bearer error=\"invalid_token\"";
const RETRY_AFTER_SECONDS: &str = "5";

const GRPC: &str = "application/grpc";
const GRPC_WEB: &str = "application/grpc-web";
const GRPC_WEB_TEXT: &str = "application/grpc-web-text";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

const BAD_REQUEST: StatusCode = StatusCode::BAD_REQUEST;
const UNAUTHORIZED: StatusCode = StatusCode::UNAUTHORIZED;
const FORBIDDEN: StatusCode = StatusCode::FORBIDDEN;
const TIMEOUT: StatusCode = StatusCode::REQUEST_TIMEOUT;
const MISDIRECTED: StatusCode = StatusCode::MISDIRECTED_REQUEST;
const UPGRADE_REQUIRED: StatusCode = StatusCode::UPGRADE_REQUIRED;
const TOO_MANY: StatusCode = StatusCode::TOO_MANY_REQUESTS;
const BODY_TOO_LARGE: StatusCode = StatusCode::PAYLOAD_TOO_LARGE;
const HEADERS_TOO_LARGE: StatusCode = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
const BAD_GATEWAY: StatusCode = StatusCode::BAD_GATEWAY;
const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

/// A frame's type, an error code and the highest stream there is (RFC 9113, sections 6.8, 7 and
/// 5.1.1).
const GOAWAY: u8 = 7;
const PROTOCOL_ERROR: u32 = 1;
const LAST_STREAM: u32 = (1 << 31) - 1;

const BAD_CERTIFICATE: u8 = 42;
const ACCESS_DENIED: u8 = 49;
const DECODE_ERROR: u8 = 50;
const INTERNAL_ERROR: u8 = 80;
const MISSING_EXTENSION: u8 = 109;
const UNRECOGNIZED_NAME: u8 = 112;
const NO_APPLICATION_PROTOCOL: u8 = 120;

#[cfg(test)]
mod tests {
    use super::*;

    fn every_refusal() -> Vec<Refusal> {
        let tls =
            |cause: &TlsCause| Refusal { reason: Reason::UpstreamTlsInvalid, cause: Some(*cause) };
        let reasons = Reason::ALL.iter().map(|reason| Refusal::from(*reason));
        reasons.chain(TlsCause::ALL.iter().map(tls)).collect()
    }

    #[test]
    fn every_answer_is_json_with_its_reason_and_flow() {
        for refusal in every_refusal() {
            let answer = answer(refusal, FlowId(0xabc), Dialect::Http);
            assert!(answer.status().is_client_error() || answer.status().is_server_error());
            let json: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
            assert_eq!(json["reason"], refusal.reason.as_str());
            assert_eq!(json["flow"], "0000000000000abc");
            assert_eq!(json["status"], answer.status().as_u16());
        }
    }

    /// Clients look at `message`, `error.message`, and a code that is a number.
    #[test]
    fn every_answer_says_all_in_the_members_that_clients_print() {
        for refusal in every_refusal() {
            let answer = answer(refusal, FlowId(0xabc), Dialect::Http);
            let json: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
            let message = json["message"].as_str().unwrap();
            for part in [refusal.reason.as_str(), refusal.text(), "0000000000000abc", "gateway"] {
                assert!(message.contains(part), "{message}");
            }
            let error = &json["error"];
            assert_eq!(error["message"], message);
            assert_eq!(error["code"], answer.status().as_u16());
            assert_eq!(error["status"], refusal.reason.as_str());
        }
    }

    #[test]
    fn no_two_refusals_have_the_same_text() {
        let mut texts: Vec<_> = every_refusal().iter().map(|refusal| refusal.text()).collect();
        let all = texts.len();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), all);
    }

    #[test]
    fn what_may_pass_says_when_to_come_back() {
        for refusal in every_refusal() {
            let answer = answer(refusal, FlowId(1), Dialect::Http);
            let passing = matches!(answer.status().as_u16(), 429 | 502 | 503);
            assert_eq!(answer.headers().contains_key(RETRY_AFTER), passing, "{refusal:?}");
            let bytes = answer_bytes(refusal.reason, FlowId(1));
            let bytes = String::from_utf8(bytes).unwrap();
            assert_eq!(bytes.contains("\r\nretry-after: 5\r\n"), passing, "{bytes}");
        }
    }

    #[test]
    fn a_refused_upgrade_names_what_is_spoken_here() {
        let answer = answer(Reason::UpgradeDenied, FlowId(1), Dialect::Http);
        assert_eq!(answer.status(), 426);
        assert_eq!(answer.headers()[UPGRADE], "HTTP/1.1");
    }

    #[test]
    fn a_grpc_refusal_is_a_head_with_status_and_message() {
        for refusal in every_refusal() {
            let answer = answer(refusal, FlowId(0xabc), Dialect::Grpc(GRPC));
            assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, 0));
            assert_eq!(answer.headers()[CONTENT_TYPE], "application/grpc");
            let code: u16 = answer.headers()["grpc-status"].to_str().unwrap().parse().unwrap();
            assert!([3, 4, 7, 8, 9, 12, 14, 16].contains(&code), "{refusal:?}: {code}");
            let message = answer.headers()["grpc-message"].to_str().unwrap();
            assert!(message.contains(refusal.reason.as_str()) && message.contains("0abc"));
        }
        assert_eq!(grpc_message("100% \u{e9}\n ~"), "100%25 %C3%A9%0A ~");
    }

    #[test]
    fn grpc_is_told_by_the_type_of_its_content() {
        let of = |kind: &str| {
            let kind = HeaderValue::from_str(kind).unwrap();
            Dialect::of(&HeaderMap::from_iter([(CONTENT_TYPE, kind)]))
        };
        for kind in ["application/grpc", "application/grpc+proto", "Application/GRPC; x=y"] {
            assert_eq!(of(kind), Dialect::Grpc(GRPC), "{kind}");
        }
        assert_eq!(of("application/grpc-web+proto"), Dialect::Grpc(GRPC_WEB));
        assert_eq!(of("application/grpc-web-text"), Dialect::Grpc(GRPC_WEB_TEXT));
        for kind in ["application/json", "application/grpcx", "application/grp", "", "text/plain"] {
            assert_eq!(of(kind), Dialect::Http, "{kind}");
        }
        assert_eq!(Dialect::of(&HeaderMap::new()), Dialect::Http);
    }

    #[test]
    fn the_last_frame_of_a_connection_holds_the_reasons_word() {
        for &reason in Reason::ALL {
            let frame = goaway(reason);
            let (header, payload) = frame.split_at(9);
            assert_eq!(header, [0, 0, payload.len() as u8, 7, 0, 0, 0, 0, 0]);
            assert_eq!(&payload[..8], [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1]);
            assert_eq!(&payload[8..], reason.as_str().as_bytes());
        }
    }

    #[test]
    fn the_words_are_distinct() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn the_bytes_of_an_answer_are_one_whole_http_response() {
        let bytes = answer_bytes(Reason::HttpMalformed, FlowId(1));
        let mut fields = [httparse::EMPTY_HEADER; 8];
        let mut response = httparse::Response::new(&mut fields);
        let head = response.parse(&bytes).unwrap().unwrap();
        assert_eq!(response.code, Some(400));
        let length = response.headers.iter().find(|h| h.name == "content-length").unwrap().value;
        assert_eq!(std::str::from_utf8(length).unwrap(), (bytes.len() - head).to_string());
    }
}
