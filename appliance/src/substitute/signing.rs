//! Signs a request anew, as it is about to be sent, with the keys behind a placeholder. The
//! signature itself is made by the SDK's own crate.
//!
//! What is signed arrives at the server as it is signed: method, path, query, host, the type of the
//! body, and each field whose name begins with `x-amz-`. The keys are copied by the crate into
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

/// How a request is signed that has been examined.
pub struct Signing {
    pub(super) form: SignatureForm,
    pub(super) service: AwsName,
    pub(super) region: AwsName,
    pub(super) payload: Payload,
    pub(super) times: Times,
    /// A pair of AWS keys.
    pub(super) keys: Arc<SecretValue>,
    /// Whose value they are; `None` for a ticket's.
    pub(super) binding: Option<Arc<Binding>>,
}

/// Where a signature stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignatureForm {
    /// In `Authorization`.
    Head,
    /// In the query, as in that of a link.
    Query,
}

/// When the agent's own signature is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
}

/// What is signed of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Payload {
    /// Its hash, which nobody has said; that of an empty one until it is.
    Whole,
    /// Its hash in hex, as the request has it. The server holds the body against it.
    Hash(Box<str>),
    /// Nothing.
    Unsigned,
    /// Nothing, and checksums follow it.
    UnsignedTrailer,
}

impl Signing {
    /// Most bytes of a body whose hash nobody has said: as much as a service of AWS takes in such a
    /// request (Bedrock's InvokeModel).
    pub const MAX_BODY: usize = 25_000_000;

    /// Whether the whole body has to be at hand, because its hash is signed and the request does
    /// not say it.
    pub fn needs_body(&self) -> bool {
        self.payload == Payload::Whole
    }

    /// Takes the SHA-256 of a body that was read.
    pub fn hashed(&mut self, hash: &[u8]) {
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        self.payload = Payload::Hash(hex.into());
    }

    /// Holds the time of the agent's signature against the gateway's clock, as AWS would: what is
    /// made anew would be good again otherwise, whenever a request or a link had been signed.
    ///
    /// # Errors
    ///
    /// `signature_expired`.
    pub fn check_time(&self, now: SystemTime) -> Result<(), Reason> {
        let Times { from, until } = self.times;
        if (from..=until).contains(&now) { Ok(()) } else { Err(Reason::SignatureExpired) }
    }

    /// Takes the keys that are good now: while a body was read, others may have come, or these may
    /// have been taken away.
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

    /// Puts the agent's signature out of a head that is otherwise as it is to be sent, and the
    /// gateway's in. A body whose hash [is needed](Self::needs_body) and was not
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

    /// The crate encodes the query anew, and with it what a link is given there. It panics where that
    /// makes a target that is too long.
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
            // How long a usual token is tells nobody.
            SignatureForm::Query => {
                names() + token.map_or(0, str::len).max(USUAL_TOKEN) + MAX_LINK_FIELDS
            }
        };
        // A byte becomes three at most, and one for a name without a value.
        let most = rest.len() + 3 * (query.len() + added) + 2;
        if most > MAX_TARGET { Err(Reason::HeaderLimit) } else { Ok(()) }
    }

    /// Amazon S3 has rules of its own: the path is not encoded twice, not normalised, and the hash
    /// of the body stands in a field.
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

    /// The target as the server reads it before it looks at the signature. Amazon S3 decodes the
    /// path and encodes it as AWS does, whatever was encoded by whom. A plus it may take for a space,
    /// and answers with the signature of another path then.
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

/// What the server sees as its host: a field in HTTP/1, the authority in HTTP/2.
fn host(head: &Parts) -> Result<&str, Reason> {
    match (head.headers.get(HOST), head.uri.authority()) {
        (Some(host), _) => host.to_str().map_err(|_| Reason::InternalError),
        (None, Some(authority)) => Ok(authority.as_str()),
        (None, None) => Err(Reason::InternalError),
    }
}

/// The fields that no server of AWS takes unsigned, and the type of the body.
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

/// How long a signature in a query is good: as long as one in a head, which AWS takes for five
/// minutes before and after its time. What the agent asked for does not count.
const LINK_LIFE: Duration = Duration::from_secs(300);

/// Bytes of the longest target that the library for HTTP takes.
const MAX_TARGET: usize = u16::MAX as usize - 1;
/// Bytes of a session's token, as AWS says that most of them have.
const USUAL_TOKEN: usize = 4_096;
/// Bytes of what else a signature puts into a query, with room to spare: its names, an id, a date,
/// a service and a region, and the names of the fields that are always signed.
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

/// What AWS does not encode (RFC 3986, section 2.3).
const KEPT_IN_QUERIES: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const KEPT_IN_PATHS: &AsciiSet = &KEPT_IN_QUERIES.remove(b'/');
