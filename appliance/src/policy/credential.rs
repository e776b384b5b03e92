//! The header fields in which clients put credentials, whatever the host.

use http::{
    HeaderName,
    header::{AUTHORIZATION, PROXY_AUTHORIZATION},
};

/// The header fields whose value is a credential at every intercepted host, besides those that
/// a binding of the host names.
pub static CREDENTIAL_FIELDS: [HeaderName; 11] = [
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("private-token"),
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("x-auth-key"),
    HeaderName::from_static("x-vault-token"),
    HeaderName::from_static("x-amz-security-token"),
    HeaderName::from_static("ocp-apim-subscription-key"),
];
