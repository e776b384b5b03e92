//! The opening handshake (RFC 6455, sections 4.1 and 4.2): which requests are one, and which answer
//! belongs to it. Pure. Errs to refusal: a handshake that two readers could understand differently
//! is none.

use std::collections::HashSet;

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS,
        SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING,
        UPGRADE,
    },
    request,
};

use crate::{policy::is_token, reason::Reason};

/// A request for a WebSocket.
pub(in crate::intercept) struct Asked {
    key: HeaderValue,
    /// The only answer to the key.
    accept: HeaderValue,
    /// The agent's offers in its own words, without a secret.
    offers: Option<HeaderValue>,
    /// The offers to the upstream, in the same order.
    sent: Option<HeaderValue>,
}

/// An answer that fits the request.
pub(in crate::intercept) struct UpgradeAnswer {
    accept: HeaderValue,
    protocol: Option<HeaderValue>,
}

/// Returns the handshake that a request is; `None` for a request that asks for no other protocol.
///
/// # Errors
///
/// `upgrade_denied` where the rule allows none, for another protocol and for another version;
/// `http_malformed` for a handshake that is none.
pub(in crate::intercept) fn asked(
    head: &request::Parts,
    allowed: bool,
) -> Result<Option<Asked>, Reason> {
    let headers = &head.headers;
    if !headers.contains_key(UPGRADE) && !lists(headers, &CONNECTION, b"upgrade") {
        return Ok(None);
    }
    let known = only(headers, &UPGRADE).is_some_and(is_websocket)
        && only(headers, &SEC_WEBSOCKET_VERSION).is_some_and(|it| it.as_bytes() == VERSION);
    if !allowed || !known {
        return Err(Reason::UpgradeDenied);
    }
    let bodiless = !headers.contains_key(TRANSFER_ENCODING)
        && headers.get_all(CONTENT_LENGTH).iter().all(|length| length.as_bytes() == b"0");
    let plain = head.version == Version::HTTP_11
        && head.method == Method::GET
        && lists(headers, &CONNECTION, b"upgrade")
        && bodiless;
    let key = only(headers, &SEC_WEBSOCKET_KEY).filter(|key| is_key(key));
    let key = key.filter(|_| plain).ok_or(Reason::HttpMalformed)?.clone();
    let accept = accept(&key).ok_or(Reason::InternalError)?;
    Ok(Some(Asked { key, accept, offers: offers(headers)?, sent: None }))
}

impl Asked {
    /// Writes the handshake into a head that holds the values and from which everything about a
    /// single connection was taken. It offers no extension: masks cannot find what a codec hides.
    pub(in crate::intercept) fn write(&mut self, headers: &mut HeaderMap) {
        headers.remove(SEC_WEBSOCKET_EXTENSIONS);
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONNECTION, UPGRADE_OPTION);
        headers.insert(UPGRADE, WEBSOCKET);
        headers.insert(SEC_WEBSOCKET_KEY, self.key.clone());
        self.sent = headers.get(SEC_WEBSOCKET_PROTOCOL).cloned();
    }

    /// Accepts a head with status 101 as the answer to this request.
    ///
    /// # Errors
    ///
    /// `response_unscannable` for an extension, which nobody offered; `upstream_unreachable` where
    /// the head is not the answer for another cause.
    pub(in crate::intercept) fn answered(
        &self,
        headers: &HeaderMap,
    ) -> Result<UpgradeAnswer, Reason> {
        if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
            return Err(Reason::ResponseUnscannable);
        }
        let fits = only(headers, &UPGRADE).is_some_and(is_websocket)
            && lists(headers, &CONNECTION, b"upgrade")
            && only(headers, &SEC_WEBSOCKET_ACCEPT) == Some(&self.accept)
            && !headers.contains_key(TRANSFER_ENCODING);
        if !fits {
            return Err(Reason::UpstreamUnreachable);
        }
        let protocol = match headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
            true => Some(self.chosen(headers).ok_or(Reason::UpstreamUnreachable)?),
            false => None,
        };
        Ok(UpgradeAnswer { accept: self.accept.clone(), protocol })
    }

    /// Returns the agent's own words for the protocol that the upstream chose: where the protocol
    /// holds a secret, the agent hears of its placeholder.
    fn chosen(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let chosen = only(headers, &SEC_WEBSOCKET_PROTOCOL)?;
        let nth = members(self.sent.as_ref()?).position(|sent| sent == chosen.as_bytes())?;
        HeaderValue::from_bytes(members(self.offers.as_ref()?).nth(nth)?).ok()
    }
}

impl UpgradeAnswer {
    /// Writes the answer into a head that was masked.
    pub(in crate::intercept) fn write(self, headers: &mut HeaderMap) {
        for name in [CONTENT_LENGTH, CONTENT_TYPE, SEC_WEBSOCKET_PROTOCOL] {
            headers.remove(name);
        }
        headers.insert(CONNECTION, UPGRADE_OPTION);
        headers.insert(UPGRADE, WEBSOCKET);
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        if let Some(protocol) = self.protocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        }
    }
}

/// Returns the one field of offers, each a token that stands there once (RFC 6455, section 4.1).
fn offers(headers: &HeaderMap) -> Result<Option<HeaderValue>, Reason> {
    if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
        return Ok(None);
    }
    let field = only(headers, &SEC_WEBSOCKET_PROTOCOL).ok_or(Reason::HttpMalformed)?;
    let mut seen = HashSet::new();
    if members(field).all(|offer| is_token(offer) && seen.insert(offer)) {
        Ok(Some(field.clone()))
    } else {
        Err(Reason::HttpMalformed)
    }
}

fn accept(key: &HeaderValue) -> Option<HeaderValue> {
    let text = [key.as_bytes(), ACCEPT_GUID].concat();
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    HeaderValue::try_from(STANDARD.encode(hash)).ok()
}

/// Whether a key is sixteen bytes in base64, without a bit that two decoders read differently.
fn is_key(key: &HeaderValue) -> bool {
    STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16)
}

fn is_websocket(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"websocket")
}

/// Returns the value of a field that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn lists(headers: &HeaderMap, name: &HeaderName, option: &[u8]) -> bool {
    let mut all = headers.get_all(name).iter().flat_map(members);
    all.any(|member| member.eq_ignore_ascii_case(option))
}

/// Returns the members of a comma-separated list.
fn members(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

const VERSION: &[u8] = b"13";
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE_OPTION: HeaderValue = HeaderValue::from_static("Upgrade");
/// RFC 6455, section 1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
