//! From a refusal to what the agent sees on the wire: one total map.
//!
//! Before anything was understood a refusal is a reset; after a ClientHello it is a TLS alert;
//! where HTTP is spoken it is `application/problem+json` (RFC 9457). The text is fixed for each
//! reason, so that an answer cannot carry a value or tell one foreign credential from another.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
};

use crate::{accept::FlowId, reason::Reason};

/// What a refusal looks like in each of the three languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// The TLS alert's description (RFC 8446, section 6).
    pub alert: u8,
    /// The HTTP status.
    pub status: StatusCode,
    /// What an agent's developer reads. Says what to do where something can be done.
    pub text: &'static str,
}

/// The one map from reason to wire.
pub const fn wire(reason: Reason) -> Wire {
    use Reason as R;
    let (alert, status, text) = match reason {
        R::NoGroup => (ACCESS_DENIED, FORBIDDEN, "this address belongs to no agent group"),
        R::SpoofedSource => (ACCESS_DENIED, FORBIDDEN, "this source address is not allowed here"),
        R::DestinationDenied => (ACCESS_DENIED, FORBIDDEN, "this destination is not allowed"),
        R::PortDenied => (ACCESS_DENIED, FORBIDDEN, "this port is not allowed"),
        R::ProtocolDenied => (ACCESS_DENIED, FORBIDDEN, "this protocol is not allowed"),
        R::SelfDestination => (ACCESS_DENIED, FORBIDDEN, "the gateway itself is not a destination"),
        R::PeekTimeout => (ACCESS_DENIED, TIMEOUT, "the connection said too little for too long"),
        R::NotTls => (ACCESS_DENIED, FORBIDDEN, "this host is reached over https only"),
        R::TlsMalformed => (DECODE_ERROR, BAD_REQUEST, "the ClientHello is malformed"),
        R::SniMissing => (MISSING_EXTENSION, BAD_REQUEST, "the ClientHello names no host"),
        R::SniDenied => (UNRECOGNIZED_NAME, FORBIDDEN, "this host is not allowed"),
        R::EchDenied => (ACCESS_DENIED, FORBIDDEN, "Encrypted Client Hello is not allowed"),
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
            (BAD_CERTIFICATE, BAD_GATEWAY, "the upstream's certificate is not valid for this name")
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
        R::ConnectDenied => (ACCESS_DENIED, FORBIDDEN, "CONNECT is not allowed"),
        R::UpgradeDenied => (ACCESS_DENIED, FORBIDDEN, "this upgrade is not allowed"),
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
            "this placeholder may not stand in this field, scheme or half of Basic",
        ),
        R::PlaintextPlaceholder => {
            (ACCESS_DENIED, FORBIDDEN, "a placeholder may not travel in the clear; use https")
        }
        R::ForeignCredential => {
            (ACCESS_DENIED, FORBIDDEN, "this credential is not a placeholder for this host")
        }
        R::DuplicateCredential => (
            ACCESS_DENIED,
            BAD_REQUEST,
            "beside its placeholder the request carries a credential that is none, or one twice",
        ),
        R::CredentialMalformed => (ACCESS_DENIED, BAD_REQUEST, "the credential does not decode"),
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

/// One fatal TLS alert record, in the clear (RFC 8446, section 6). Good before a handshake only.
pub const fn alert_record(reason: Reason) -> [u8; 7] {
    [0x15, 0x03, 0x03, 0, 2, 2, wire(reason).alert]
}

/// The HTTP answer of a refusal.
pub fn answer(reason: Reason, flow: FlowId) -> Response<Bytes> {
    let mut response = Response::new(problem(reason, flow));
    *response.status_mut() = wire(reason).status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if matches!(wire(reason).status, UNAVAILABLE | TOO_MANY) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
    }
    response
}

/// The same answer as bytes of HTTP/1.1, for where no HTTP stack is at hand. Closes.
pub fn answer_bytes(reason: Reason, flow: FlowId) -> Vec<u8> {
    let status = wire(reason).status;
    let body = problem(reason, flow);
    let mut bytes = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or("Refused"),
        body.len(),
    )
    .into_bytes();
    bytes.extend_from_slice(&body);
    bytes
}

/// The last frame of an HTTP/2 connection that ends for this reason: GOAWAY, with the reason's word
/// where RFC 9113, section 6.8, leaves room for one. It says of no stream that it may be tried again.
pub fn goaway(reason: Reason) -> Vec<u8> {
    let word = reason.word().as_bytes();
    let [.., length] = (word.len() + 8).to_be_bytes();
    let frame = [0, 0, length, GOAWAY, 0, 0, 0, 0, 0];
    [&frame, &LAST_STREAM.to_be_bytes()[..], &PROTOCOL_ERROR.to_be_bytes(), word].concat()
}

fn problem(reason: Reason, flow: FlowId) -> Bytes {
    let Wire { status, text, .. } = wire(reason);
    // Every part is a fixed word, a number or hexadecimal, so there is nothing to escape.
    Bytes::from(format!(
        "{{\"type\":\"about:blank\",\"title\":\"Refused by the gateway\",\"status\":{},\
         \"reason\":\"{reason}\",\"detail\":\"{text}\",\"flow\":\"{flow}\"}}\n",
        status.as_u16(),
    ))
}

const RETRY_AFTER_SECONDS: &str = "5";

const BAD_REQUEST: StatusCode = StatusCode::BAD_REQUEST;
const FORBIDDEN: StatusCode = StatusCode::FORBIDDEN;
const TIMEOUT: StatusCode = StatusCode::REQUEST_TIMEOUT;
const MISDIRECTED: StatusCode = StatusCode::MISDIRECTED_REQUEST;
const TOO_MANY: StatusCode = StatusCode::TOO_MANY_REQUESTS;
const HEADERS_TOO_LARGE: StatusCode = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
const BAD_GATEWAY: StatusCode = StatusCode::BAD_GATEWAY;
const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

/// A frame's type, an error code and the highest stream there is (RFC 9113, sections 6.8, 7 and 5.1.1).
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

    #[test]
    fn every_answer_is_json_with_its_reason_and_flow() {
        for &reason in Reason::ALL {
            let answer = answer(reason, FlowId(0xabc));
            assert!(answer.status().is_client_error() || answer.status().is_server_error());
            let json: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
            assert_eq!(json["reason"], reason.word());
            assert_eq!(json["flow"], "0000000000000abc");
            assert_eq!(json["status"], answer.status().as_u16());
        }
    }

    #[test]
    fn the_last_frame_of_a_connection_holds_the_reasons_word() {
        for &reason in Reason::ALL {
            let frame = goaway(reason);
            let (header, payload) = frame.split_at(9);
            assert_eq!(header, [0, 0, payload.len() as u8, 7, 0, 0, 0, 0, 0]);
            assert_eq!(&payload[..8], [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1]);
            assert_eq!(&payload[8..], reason.word().as_bytes());
        }
    }

    #[test]
    fn the_words_are_distinct() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.word()).collect();
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
