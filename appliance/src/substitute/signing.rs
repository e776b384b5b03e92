//! Signs a request as it is about to be sent, in place of the agent's signature, with the keys
//! behind a placeholder. The SDK's own crate makes the signature.
//!
//! The signed parts arrive at the server as they were signed: method, path, query, host, the type
//! of the body, and each field whose name begins with `x-amz-`. The crate copies the keys into
//! memory that it wipes in part.

use std::{
    borrow::Cow,
    fmt::Write as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation,
        SigningInstructions, SigningSettings, UriPathNormalizationMode, sign,
    },
    sign::v4,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
    request::Parts,
    uri::PathAndQuery,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use zeroize::Zeroizing;

use crate::{
    policy::{AwsName, Binding},
    reason::{Reason, SecretCause},
    secrets::{AwsKeys, SecretValue},
};

/// The signing of a request that has been examined.
pub struct Signing {
    pub(super) form: SignatureForm,
    pub(super) service: AwsName,
    pub(super) region: AwsName,
    pub(super) payload: Payload,
    pub(super) times: Times,
    /// A pair of AWS keys.
    pub(super) keys: Arc<SecretValue>,
    /// The binding of their value; `None` for a ticket's.
    pub(super) binding: Option<Arc<Binding>>,
}

/// The part of the request that holds a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignatureForm {
    /// In `Authorization`.
    Head,
    /// In the query, as in a link.
    Query,
}

/// The times between which the agent's own signature is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
}

/// The statement about the body that is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Payload {
    /// The hash of the body, which the request does not state; until it is known, that of an empty
    /// body.
    Whole,
    /// The hash of the body in hex, as the request states it. The server checks the body against
    /// it.
    Hash(Box<str>),
    /// No hash.
    Unsigned,
    /// No hash; checksums follow the body.
    UnsignedTrailer,
}

impl Signing {
    /// The most bytes of a body whose hash the request does not state: as many as a service of AWS
    /// takes in such a request (Bedrock's InvokeModel).
    pub const MAX_BODY: usize = 25_000_000;

    /// Whether the whole body must be at hand, because its hash is signed and the request does not
    /// state it.
    pub fn needs_body(&self) -> bool {
        self.payload == Payload::Whole
    }

    /// Takes the SHA-256 of a body that was read.
    pub fn hashed(&mut self, hash: &[u8]) {
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        self.payload = Payload::Hash(hex.into());
    }

    /// Checks the time of the agent's signature against the gateway's clock, as AWS would:
    /// otherwise the new signature would make any old request or link good again.
    ///
    /// # Errors
    ///
    /// `signature_expired`.
    pub fn check_time(&self, now: SystemTime) -> Result<(), Reason> {
        let Times { from, until } = self.times;
        if (from..=until).contains(&now) { Ok(()) } else { Err(Reason::SignatureExpired) }
    }

    /// Takes the keys that are good now: while a body was read, they may have been replaced or
    /// taken away.
    ///
    /// # Errors
    ///
    /// The cause of `lookup`, or `value_invalid` where the value is no pair of AWS keys.
    pub fn renew(
        &mut self,
        lookup: impl FnOnce(&Binding) -> Result<Arc<SecretValue>, SecretCause>,
    ) -> Result<(), SecretCause> {
        if let Some(binding) = &self.binding {
            let keys = lookup(binding)?;
            AwsKeys::of(&keys).ok_or(SecretCause::ValueInvalid)?;
            self.keys = keys;
        }
        Ok(())
    }

    /// Removes the agent's signature from a head that is otherwise as it will be sent, and puts in
    /// the gateway's. A body whose hash [is needed](Self::needs_body) and was not
    /// [given](Self::hashed) is empty.
    ///
    /// # Errors
    ///
    /// `http_malformed` for a field or path that cannot be signed, `header_limit` for more than can
    /// be, and `internal_error`.
    pub fn sign(&self, head: &mut Parts, now: SystemTime) -> Result<(), Reason> {
        self.unsign(head)?;
        apply(self.instructions(head, now)?, head)
    }

    fn unsign(&self, head: &mut Parts) -> Result<(), Reason> {
        for name in [&AUTHORIZATION, &SECURITY_TOKEN, &DATE] {
            head.headers.remove(name);
        }
        if self.form == SignatureForm::Query {
            let query = head.uri.query().unwrap_or_default();
            let kept = query.split('&').filter(|part| {
                !SIGNATURE_QUERIES.contains(&part.split('=').next().unwrap_or_default())
            });
            let kept = kept.collect::<Vec<_>>().join("&");
            set_query(&mut head.uri, &kept)?;
        }
        Ok(())
    }

    fn instructions(&self, head: &Parts, now: SystemTime) -> Result<SigningInstructions, Reason> {
        let keys = AwsKeys::of(&self.keys).ok_or(Reason::InternalError)?;
        let token = keys.token.map(str::to_owned);
        let identity = Credentials::new(keys.id, keys.secret, token, None, "cloakroom").into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region.as_str())
            .name(self.service.as_str())
            .time(now)
            .settings(self.settings())
            .build()
            .map_err(|_| Reason::InternalError)?;
        let (uri, host) = (self.signed_uri(head)?, host(head)?);
        let fields = signed_fields(&head.headers)?;
        self.check_size(&uri, &fields, keys.token)?;
        let fields = [(HOST.as_str(), host)].into_iter().chain(fields);
        let request = SignableRequest::new(head.method.as_str(), uri, fields, self.signable())
            .map_err(|_| Reason::HttpMalformed)?;
        let signed = sign(request, &params.into()).map_err(|_| Reason::HttpMalformed)?;
        Ok(signed.into_parts().0)
    }

    /// Checks the size of the target. The crate encodes the query again, and adds the parameters of
    /// a link. It panics where the target becomes too long.
    fn check_size(
        &self,
        uri: &str,
        fields: &[(&str, &str)],
        token: Option<&str>,
    ) -> Result<(), Reason> {
        let (rest, query) = uri.split_once('?').unwrap_or((uri, ""));
        let names = || fields.iter().map(|(name, _)| name.len() + 1).sum::<usize>();
        let added = match self.form {
            SignatureForm::Head => 0,
            // With this bound, nobody learns the length of a usual token.
            SignatureForm::Query => {
                names() + token.map_or(0, str::len).max(USUAL_TOKEN) + MAX_LINK_FIELDS
            }
        };
        // A byte becomes three at most, with one more for a name without a value.
        let most = rest.len() + 3 * (query.len() + added) + 2;
        if most > MAX_TARGET { Err(Reason::HeaderLimit) } else { Ok(()) }
    }

    /// Returns the settings of the signature. Amazon S3 has rules of its own: the path is not
    /// encoded twice and not normalised, and the hash of the body stands in a field.
    fn settings(&self) -> SigningSettings {
        let mut settings = SigningSettings::default();
        settings.excluded_headers = None;
        if self.service.is_s3() {
            settings.percent_encoding_mode = PercentEncodingMode::Single;
            settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
            settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        }
        if self.form == SignatureForm::Query {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(LINK_LIFE);
        }
        settings
    }

    fn signable(&self) -> SignableBody<'static> {
        match &self.payload {
            Payload::Whole => SignableBody::Bytes(&[]),
            Payload::Hash(hash) => SignableBody::Precomputed(hash.to_string()),
            Payload::Unsigned => SignableBody::UnsignedPayload,
            Payload::UnsignedTrailer => SignableBody::StreamingUnsignedPayloadTrailer,
        }
    }

    /// Returns the target as the server reads it before it checks the signature. Amazon S3 decodes
    /// the path and encodes it as AWS does, however it was encoded before. S3 may take a plus for a
    /// space, and would then expect the signature of another path.
    fn signed_uri(&self, head: &Parts) -> Result<String, Reason> {
        let path = head.uri.path();
        let path = match self.service.is_s3() {
            true if path.contains('+') => return Err(Reason::HttpMalformed),
            true => {
                let plain: Cow<'_, [u8]> = percent_decode_str(path).into();
                percent_encode(&plain, KEPT_IN_PATHS).to_string()
            }
            false => path.to_owned(),
        };
        Ok(match head.uri.query() {
            Some(query) => format!("https://{}{path}?{query}", host(head)?),
            None => format!("https://{}{path}", host(head)?),
        })
    }
}

/// Returns the host that the server sees: a field in HTTP/1, the authority in HTTP/2.
fn host(head: &Parts) -> Result<&str, Reason> {
    match (head.headers.get(HOST), head.uri.authority()) {
        (Some(host), _) => host.to_str().map_err(|_| Reason::InternalError),
        (None, Some(authority)) => Ok(authority.as_str()),
        (None, None) => Err(Reason::InternalError),
    }
}

/// Returns the fields that every server of AWS wants signed, and the type of the body.
fn signed_fields(headers: &HeaderMap) -> Result<Vec<(&str, &str)>, Reason> {
    let signed = |name: &HeaderName| name.as_str().starts_with("x-amz-") || SIGNED.contains(name);
    let fields = headers.iter().filter(|(name, _)| signed(name)).map(|(name, value)| {
        let value = std::str::from_utf8(value.as_bytes()).map_err(|_| Reason::HttpMalformed)?;
        Ok((name.as_str(), value))
    });
    fields.collect()
}

fn apply(instructions: SigningInstructions, head: &mut Parts) -> Result<(), Reason> {
    let (fields, queries) = instructions.into_parts();
    for field in fields {
        let mut value = HeaderValue::from_str(field.value()).map_err(|_| Reason::InternalError)?;
        value.set_sensitive(true);
        head.headers.insert(field.name(), value);
    }
    if queries.is_empty() {
        return Ok(());
    }
    let mut query = Zeroizing::new(head.uri.query().unwrap_or_default().to_owned());
    for (name, value) in &queries {
        let mark = if query.is_empty() { "" } else { "&" };
        let value = percent_encode(value.as_bytes(), KEPT_IN_QUERIES);
        write!(query, "{mark}{name}={value}").map_err(|_| Reason::InternalError)?;
    }
    set_query(&mut head.uri, &query)
}

fn set_query(uri: &mut Uri, query: &str) -> Result<(), Reason> {
    let mark = if query.is_empty() { "" } else { "?" };
    let target = PathAndQuery::try_from(format!("{}{mark}{query}", uri.path()));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target.map_err(|_| Reason::HttpMalformed)?);
    *uri = Uri::from_parts(parts).map_err(|_| Reason::InternalError)?;
    Ok(())
}

/// The life of a signature in a query: the same as in a head, which AWS accepts for five minutes
/// before and after its time. The agent's own choice does not count.
const LINK_LIFE: Duration = Duration::from_secs(300);

/// The most bytes of a target that the library for HTTP takes.
const MAX_TARGET: usize = u16::MAX as usize - 1;
/// The most bytes of a session's token, by AWS' statement about most of them.
const USUAL_TOKEN: usize = 4_096;
/// The most bytes of everything else that a signature puts into a query, with room to spare: its
/// names, an id, a date, a service and a region, and the names of the fields that are always
/// signed.
const MAX_LINK_FIELDS: usize = 1_024;

pub(super) const ALGORITHM: &str = "X-Amz-Algorithm";
pub(super) const CREDENTIAL: &str = "X-Amz-Credential";
pub(super) const DATE_QUERY: &str = "X-Amz-Date";
pub(super) const EXPIRES: &str = "X-Amz-Expires";
pub(super) const SIGNED_HEADERS: &str = "X-Amz-SignedHeaders";
pub(super) const SIGNATURE: &str = "X-Amz-Signature";
pub(super) const SECURITY_TOKEN_QUERY: &str = "X-Amz-Security-Token";

/// The names of a signature in a query.
pub(super) const SIGNATURE_QUERIES: [&str; 7] =
    [ALGORITHM, CREDENTIAL, DATE_QUERY, EXPIRES, SIGNED_HEADERS, SIGNATURE, SECURITY_TOKEN_QUERY];

pub(super) const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
pub(super) const DATE: HeaderName = HeaderName::from_static("x-amz-date");
static SIGNED: [HeaderName; 2] = [CONTENT_TYPE, HeaderName::from_static("content-md5")];

/// The characters that AWS does not encode (RFC 3986, section 2.3).
const KEPT_IN_QUERIES: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const KEPT_IN_PATHS: &AsciiSet = &KEPT_IN_QUERIES.remove(b'/');
