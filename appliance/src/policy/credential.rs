//! Credentials in a request, on any host: known by the names under which clients send them. A key
//! of the agent's own would be a way out of an API that is allowed.
//!
//! Errs to refusal: a name that looks like a credential's is one, unless honest clients are known
//! to send other values under it, or the API says that it is plain.

use std::borrow::Cow;

use super::name::{Folded, fold};

/// Whether the value of a header field with this name is a credential. The API's rules decide about
/// cookies.
pub fn is_credential_header(name: &[u8]) -> bool {
    let name = without_number(name);
    let mut endings = ENDINGS.iter().chain(&HEADER_ENDINGS);
    let ending = endings.any(|ending| ends_in(name, ending));
    (ending && !is_plain(name)) || is_one_of(name, &HEADERS)
}

/// Returns a name without a number at its end: some credentials stand in several fields, one part
/// in each (Chef's `X-Ops-Authorization-1`).
fn without_number(name: &[u8]) -> &[u8] {
    let digits = name.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    match name.split_at_checked(name.len() - digits) {
        Some(([before @ .., last], _)) if digits > 0 && fold(*last) == b'-' => before,
        _ => name,
    }
}

/// Whether a value under this name in a query is a credential. The name is decoded already.
pub fn is_credential_query(name: &str) -> bool {
    let folded = fold_query(name);
    let ends_in = |endings: &[&str]| endings.iter().any(|ending| folded.ends_with(ending));
    let plain = PLAIN_QUERIES.contains(&&*folded)
        || ends_in(&PLAIN_QUERY_ENDINGS)
        || PLAIN_PARTS.iter().any(|part| folded.contains(part));
    !plain && (ends_in(&ENDINGS) || ends_in(&QUERY_ENDINGS) || QUERIES.contains(&&*folded))
}

/// Returns a name in a query without the parts that servers and clients write differently: case,
/// separators, and the brackets of a list (`api_key`, `apiKey`, `api-key[]`).
pub(crate) fn fold_query(name: &str) -> Cow<'_, str> {
    let name = name.split('[').next().unwrap_or_default();
    if name.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return Cow::Borrowed(name);
    }
    let kept = name.chars().filter(char::is_ascii_alphanumeric);
    Cow::Owned(kept.map(|char| char.to_ascii_lowercase()).collect())
}

/// Returns every name that some server reads from one in a query or a form, as [`fold_query`]
/// writes them: the part before its first bracket; the part behind brackets that it begins with
/// (Rack, qs); all of it where a bracket stays open, which PHP writes as `_`; and each as far as
/// its first NUL (PHP).
pub(crate) fn query_readings(name: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let odd = name.contains(['[', ']', '\0']).then(|| odd_readings(name));
    std::iter::once(fold_query(name)).chain(odd.into_iter().flatten())
}

fn odd_readings(name: &str) -> Vec<Cow<'_, str>> {
    let to_nul = name.split('\0').next().unwrap_or_default();
    let mut readings = Vec::new();
    for name in [name, to_nul] {
        readings.push(fold_query(name));
        readings.push(fold_query(name.trim_start_matches(['[', ']'])));
        if name.split_once('[').is_some_and(|(_, rest)| !rest.contains(']')) {
            readings.push(nested_name(name));
        }
    }
    readings
}

/// Returns a name with the text in its brackets (`user[key]`), as [`fold_query`] would write it.
pub(crate) fn nested_name(name: &str) -> Cow<'_, str> {
    let kept = name.chars().filter(char::is_ascii_alphanumeric);
    Cow::Owned(kept.map(|char| char.to_ascii_lowercase()).collect())
}

/// Returns the names under which a server may read the value of this field in a query, as
/// [`fold_query`] writes them. Azure Functions have another name there, which at other APIs is a
/// country, a voucher or the code that OAuth trades for a token.
pub(crate) fn queries_of(field: &str) -> impl Iterator<Item = Box<str>> {
    let azure = (field == "x-functions-key").then_some("code");
    [fold_query(field).into()].into_iter().chain(azure.map(Box::from))
}

fn is_plain(name: &[u8]) -> bool {
    is_one_of(name, &PLAIN_HEADERS) || PLAIN_PARTS.iter().any(|part| holds(name, part))
}

fn is_one_of(name: &[u8], names: &[&str]) -> bool {
    names.iter().any(|one| Folded(name) == Folded(one.as_bytes()))
}

fn ends_in(name: &[u8], ending: &str) -> bool {
    let at = name.len().checked_sub(ending.len());
    at.and_then(|at| name.get(at..)).is_some_and(|end| Folded(end) == Folded(ending.as_bytes()))
}

fn holds(name: &[u8], part: &str) -> bool {
    name.windows(part.len()).any(|at| at.iter().map(|&byte| fold(byte)).eq(part.bytes()))
}

/// The names by which credentials are known, in small letters.
#[derive(Debug, Clone, Copy)]
pub struct CredentialNames {
    /// Endings of the names of header fields and of names in a query.
    pub endings: &'static [&'static str],
    /// Further endings of the names of header fields.
    pub header_endings: &'static [&'static str],
    /// Header fields of credentials whose names do not show it.
    pub headers: &'static [&'static str],
    /// Header fields with such an ending in which honest clients send values that open nothing.
    pub plain_headers: &'static [&'static str],
    /// Parts of such harmless names, of fields and in a query.
    pub plain_parts: &'static [&'static str],
    /// Further endings of names in a query, without separators.
    pub query_endings: &'static [&'static str],
    /// Names in a query with such an ending whose values open nothing.
    pub plain_queries: &'static [&'static str],
    /// Endings of such harmless names in a query.
    pub plain_query_endings: &'static [&'static str],
}

impl CredentialNames {
    /// The names that count at every API.
    pub const ALL: Self = Self {
        endings: &ENDINGS,
        header_endings: &HEADER_ENDINGS,
        headers: &HEADERS,
        plain_headers: &PLAIN_HEADERS,
        plain_parts: &PLAIN_PARTS,
        query_endings: &QUERY_ENDINGS,
        plain_queries: &PLAIN_QUERIES,
        plain_query_endings: &PLAIN_QUERY_ENDINGS,
    };
}

/// Endings of the names of credentials.
const ENDINGS: [&str; 15] = [
    "token",
    "key",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "authorization",
    "authentication",
    "auth",
    "credential",
    "credentials",
    "signature",
    "jwt",
    "assertion",
    "apikeys",
];

/// Further endings of the names of header fields.
const HEADER_ENDINGS: [&str; 3] = ["bearer", "passcode", "-pass"];

/// Credentials whose names do not show it: of Artifactory, Azure (tokens for further tenants),
/// Docker's engine, Honeycomb, Metabase and OVH; and one that lets a request past the protection of
/// a site at Vercel.
const HEADERS: [&str; 7] = [
    "x-jfrog-art-api",
    "x-ms-authorization-auxiliary",
    "x-registry-config",
    "x-honeycomb-team",
    "x-metabase-session",
    "x-ovh-consumer",
    "x-vercel-protection-bypass",
];

/// Names with such an ending in which honest clients send values that open nothing: seen in runs of
/// SDKs, and in the service models that the AWS SDKs are made from.
const PLAIN_HEADERS: [&str; 15] = [
    "sec-websocket-key",
    // Switches off a check against forged requests (Atlassian).
    "x-atlassian-token",
    "x-splunk-form-key",
    // Marks a request that is sent again.
    "x-amz-client-token",
    "x-amzn-client-token",
    "x-amz-request-token",
    // Keys by which a stored object is encrypted, which do not tell the server who asks.
    "x-amz-server-side-encryption-customer-key",
    "x-amz-copy-source-server-side-encryption-customer-key",
    "x-goog-encryption-key",
    "x-goog-copy-source-encryption-key",
    "x-ms-encryption-key",
    "x-ms-source-encryption-key",
    // The object that is stored, and its state (Amazon S3, Azure Cosmos DB).
    "x-amz-bucket-object-lock-token",
    "x-ms-documentdb-partitionkey",
    "x-ms-session-token",
];

/// Parts of names whose values guard against requests that are sent twice or by another site.
const PLAIN_PARTS: [&str; 4] = ["idempotency", "csrf", "xsrf", "xrfkey"];

/// Further endings of the names of credentials in a query, as [`fold_query`] writes them.
const QUERY_ENDINGS: [&str; 6] = ["bearer", "hmac", "passcode", "pwd", "sig", "alfticket"];

/// Whole names of credentials in a query, which other names end like (`bypass`).
const QUERIES: [&str; 2] = ["pass", "userpass"];

/// Names in a query with such an ending whose values open nothing: marks of a request that is sent
/// again (AWS).
const PLAIN_QUERIES: [&str; 2] = ["clienttoken", "clientrequesttoken"];

/// Further endings of such harmless names: the position in a list, and the objects that are asked
/// for. As Google's, Amazon's, Microsoft's and Meta's APIs, CouchDB, Jira, Confluence, SonarQube,
/// LaunchDarkly and PagerDuty have them.
const PLAIN_QUERY_ENDINGS: [&str; 34] = [
    "pagetoken",
    "pagingtoken",
    "paginationtoken",
    "nexttoken",
    "previoustoken",
    "prevtoken",
    "forwardtoken",
    "backwardtoken",
    "starttoken",
    "startingtoken",
    "continuetoken",
    "continuationtoken",
    "cursortoken",
    "scrolltoken",
    "resumetoken",
    "resumptiontoken",
    "skiptoken",
    "deltatoken",
    "synctoken",
    "changetoken",
    "authenticitytoken",
    "sortkey",
    "startkey",
    "endkey",
    "partitionkey",
    "rowkey",
    "issuekey",
    "projectkey",
    "spacekey",
    "propertykey",
    "componentkey",
    "flagkey",
    "incidentkey",
    "dedupkey",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_name_is_read_as_any_server_reads_it() {
        for name in ["api_key", "apiKey[]", "api[key", "[api_key]", "api_key\0x", "[[api-key]"] {
            assert!(query_readings(name).any(|it| it == "apikey"), "{name:?}");
        }
        for name in ["filter[key]", "api", "x[api_key]"] {
            assert!(query_readings(name).all(|it| it != "apikey"), "{name:?}");
        }
    }

    #[test]
    fn a_header_that_is_named_like_a_credential_is_one() {
        for name in [
            "authorization",
            "Proxy-Authorization",
            "x-api-key",
            "API_KEY",
            "X.Goog.Api.Key",
            "Private-Token",
            "x-auth-token",
            "x-auth-key",
            "x-vault-token",
            "x-amz-security-token",
            "ocp-apim-subscription-key",
            "Job-Token",
            "Deploy-Token",
            "Apikey",
            "X-Access-Token",
            "X-Shopify-Access-Token",
            "DD-API-KEY",
            "dd-application-key",
            "xi-api-key",
            "X-Goog-IAM-Authorization-Token",
            "X-JFrog-Art-Api",
            "X-Consul-Token",
            "x-hasura-admin-secret",
            "x-sentry-auth",
            "x-amz-s3session-token",
            "x-ms-copy-source-authorization",
            "X-Amz-Bucket-Token",
            "X-Client-Token",
            "X-ApiKeys",
            "X-Ops-Authorization-1",
            "x_ops_authorization_12",
            "Cf-Access-Jwt-Assertion",
            "X-Goog-Iap-Jwt-Assertion",
            "X-NITRO-PASS",
            "X-Bearer",
            "X-OVH-Consumer",
            "x-vercel-protection-bypass",
            "token",
            "key",
        ] {
            assert!(is_credential_header(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn what_honest_clients_send_beside_a_credential_is_none() {
        for name in [
            "",
            "accept",
            "amz-sdk-invocation-id",
            "anthropic-version",
            "Idempotency-Key",
            "X-Idempotency-Key",
            "Sec-WebSocket-Key",
            "X-CSRF-Token",
            "X-CSRFToken",
            "x_xsrf_token",
            "X-Qlik-Xrfkey",
            "X-Atlassian-Token",
            "x-amz-content-sha256",
            "x-amz-server-side-encryption-customer-key",
            "x-amz-server-side-encryption-customer-key-md5",
            "x-goog-api-client",
            "x-goog-encryption-key",
            "x-goog-encryption-key-sha256",
            "x-ms-documentdb-partitionkey",
            "x-stainless-runtime",
            "openai-organization",
            "mcp-session-id",
            "keys",
            "x-monkey-business",
            "x-cache-bypass",
            "x-part-1",
            "1",
        ] {
            assert!(!is_credential_header(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn query_names_that_carry_credentials_in_the_wild_count() {
        for name in [
            "key",
            "KEY",
            "key[]",
            "api_key",
            "apikey",
            "apiKey",
            "api-key",
            "api key",
            "access_token",
            "token",
            "auth",
            "auth_token",
            "private_token",
            "job_token",
            "sig",
            "Signature",
            "X-Amz-Signature",
            "X-Amz-Credential",
            "X-Amz-Security-Token",
            "X-Goog-Signature",
            "subscription-key",
            "hapikey",
            "client_secret",
            "oauth_token",
            "user_key",
            "license_key",
            "app_key",
            "application-key",
            "X-Plex-Token",
            "circle-token",
            "feed_token",
            "id_token",
            "refresh_token",
            "admin_secret",
            "api_sig",
            "assertion_jwt",
            "client_assertion",
            "alf_ticket",
            "X-ApiKeys",
            "db_password",
            "pass",
            "user_pass",
            "session_token",
        ] {
            assert!(is_credential_query(name), "{name}");
        }
    }

    #[test]
    fn cursors_and_what_is_asked_for_are_no_credential() {
        for name in [
            "",
            "page_token",
            "pageToken",
            "next_page_token",
            "NextToken",
            "continuation-token",
            "continuationToken",
            "syncToken",
            "clientToken",
            "clientRequestToken",
            "bypass",
            "$skiptoken",
            "__paging_token",
            "exclusiveStartKey",
            "NextRowKey",
            "idempotency_key",
            "csrf_token",
            "authenticity_token",
            "issueKey",
            "projectKey",
            "sort_key",
            "start_key",
            "keys",
            "max_tokens",
            "keyword",
            "author",
            "code",
            "config",
            "design",
            "model",
            "api-version",
        ] {
            assert!(!is_credential_query(name), "{name}");
        }
    }
}
