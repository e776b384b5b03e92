//! What in a request is a credential, whatever the host: known by the name under which clients
//! send it. A key of the agent's own would be a way out of an API that is allowed.
//!
//! Errs to refusal: a name that looks like one of a credential is one, unless honest clients are
//! known to send it with something else, or the API says that it is plain.

use std::borrow::Cow;

use super::name::{Folded, fold};

/// Whether the value of a header field with this name is a credential. A cookie is one by the rules
/// of the API.
pub fn is_credential_header(name: &[u8]) -> bool {
    let ending = HEADER_ENDINGS.iter().any(|ending| ends_in(name, ending));
    (ending && !is_plain(name)) || is_one_of(name, &HEADERS)
}

/// Whether a value under this name in a query is a credential. The name is decoded already.
pub fn is_credential_query(name: &str) -> bool {
    let folded = fold_query(name);
    QUERIES.contains(&&*folded) || QUERY_ENDINGS.iter().any(|ending| folded.ends_with(ending))
}

/// A name in a query without what servers and clients write differently: case, separators, and the
/// brackets of a list (`api_key`, `apiKey`, `api-key[]`).
pub(crate) fn fold_query(name: &str) -> Cow<'_, str> {
    let name = name.split('[').next().unwrap_or_default();
    if name.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return Cow::Borrowed(name);
    }
    let kept = name.chars().filter(char::is_ascii_alphanumeric);
    Cow::Owned(kept.map(|char| char.to_ascii_lowercase()).collect())
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
    /// What the names of their header fields end in.
    pub header_endings: &'static [&'static str],
    /// Header fields of theirs whose names do not tell.
    pub headers: &'static [&'static str],
    /// Header fields that end so, and are sent by honest clients with something that opens nothing.
    pub plain_headers: &'static [&'static str],
    /// Parts of the names of such fields.
    pub plain_parts: &'static [&'static str],
    /// Names in a query, without separators.
    pub queries: &'static [&'static str],
    /// What longer names in a query end in, without separators.
    pub query_endings: &'static [&'static str],
}

impl CredentialNames {
    /// Those that count at every API.
    pub const ALL: Self = Self {
        header_endings: &HEADER_ENDINGS,
        headers: &HEADERS,
        plain_headers: &PLAIN_HEADERS,
        plain_parts: &PLAIN_PARTS,
        queries: &QUERIES,
        query_endings: &QUERY_ENDINGS,
    };
}

/// What the names of credentials end in.
const HEADER_ENDINGS: [&str; 13] = [
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
];

/// Credentials whose names do not tell: of Artifactory, Azure (tokens for further tenants), Docker's
/// engine, Honeycomb and Metabase.
const HEADERS: [&str; 5] = [
    "x-jfrog-art-api",
    "x-ms-authorization-auxiliary",
    "x-registry-config",
    "x-honeycomb-team",
    "x-metabase-session",
];

/// Names that end so and are sent by honest clients with something that opens nothing: seen in
/// runs of SDKs, and in the service models that the AWS SDKs are made from.
const PLAIN_HEADERS: [&str; 15] = [
    "sec-websocket-key",
    // Switches a check against forged requests off (Atlassian).
    "x-atlassian-token",
    "x-splunk-form-key",
    // Marks of a request that is sent again.
    "x-amz-client-token",
    "x-amzn-client-token",
    "x-amz-request-token",
    // Keys that a stored object is encrypted with, which tell the server nothing of who asks.
    "x-amz-server-side-encryption-customer-key",
    "x-amz-copy-source-server-side-encryption-customer-key",
    "x-goog-encryption-key",
    "x-goog-copy-source-encryption-key",
    "x-ms-encryption-key",
    "x-ms-source-encryption-key",
    // What is stored, and as of when (Amazon S3, Azure Cosmos DB).
    "x-amz-bucket-object-lock-token",
    "x-ms-documentdb-partitionkey",
    "x-ms-session-token",
];

/// Parts of names whose values guard against requests that are sent twice or by another site.
const PLAIN_PARTS: [&str; 4] = ["idempotency", "csrf", "xsrf", "xrfkey"];

/// Names of credentials in a query, as [`fold_query`] writes them.
const QUERIES: [&str; 14] = [
    "key",
    "token",
    "auth",
    "authorization",
    "bearer",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "sig",
    "hmac",
    "jwt",
    "refreshtoken",
];

/// What longer names of credentials in a query end in. `token` alone is not among them: it would be
/// `page_token`, `next_page_token` and their like.
const QUERY_ENDINGS: [&str; 20] = [
    "apikey",
    "accesskey",
    "authkey",
    "secretkey",
    "subscriptionkey",
    "accesstoken",
    "apitoken",
    "authtoken",
    "bearertoken",
    "deploytoken",
    "jobtoken",
    "oauthtoken",
    "privatetoken",
    "securitytoken",
    "usertoken",
    "apisecret",
    "appsecret",
    "clientsecret",
    "credential",
    "signature",
];

#[cfg(test)]
mod tests {
    use super::*;

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
        ] {
            assert!(!is_credential_header(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_query_name_that_carries_credentials_in_the_wild_is_one() {
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
        ] {
            assert!(is_credential_query(name), "{name}");
        }
    }

    #[test]
    fn where_a_list_goes_on_is_no_credential() {
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
            "sessiontoken",
            "issueKey",
            "projectKey",
            "sort_key",
            "start_key",
            "keys",
            "keyword",
            "author",
            "model",
            "api-version",
        ] {
            assert!(!is_credential_query(name), "{name}");
        }
    }
}
