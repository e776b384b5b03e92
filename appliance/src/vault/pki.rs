//! The one request to Vault's PKI engine: to sign a CA.

use futures_util::future::BoxFuture;
use rustify::{
    endpoint::Endpoint,
    enums::{RequestMethod, RequestType, ResponseType},
    errors::ClientError,
};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{CallError, Session, TokenClient, path::is_plain_path};
use crate::{
    ca::{SignIntermediate, Signed, Signer, signing_path},
    reason::SecretCause,
    secrets::FetchError,
};

impl Signer for Session {
    fn sign<'a>(
        &'a self,
        mount: &'a str,
        request: &'a SignIntermediate,
    ) -> BoxFuture<'a, Result<Signed, FetchError>> {
        Box::pin(async move {
            if !is_plain_path(mount) {
                let text = "the mount of the PKI engine is not a plain path";
                return Err(FetchError::Gone(SecretCause::VaultDenied, text));
            }
            let body = self.ask_to_sign(mount, request).await?;
            parse(&body).ok_or(FetchError::Gone(SecretCause::ValueInvalid, NOT_SIGNED))
        })
    }
}

impl Session {
    /// Asks with the gateway's own token, which Vault may have ended.
    async fn ask_to_sign(
        &self,
        mount: &str,
        request: &SignIntermediate,
    ) -> Result<Zeroizing<Vec<u8>>, FetchError> {
        let client = self.gateway().await?;
        match ask_once(&client, mount, request).await {
            Err(refused @ CallError::Status { code: 403, .. }) => {
                match self.replace_if_dead(&client).await? {
                    Some(fresh) => ask_once(&fresh, mount, request).await.map_err(failed),
                    None => Err(failed(refused)),
                }
            }
            other => other.map_err(failed),
        }
    }
}

async fn ask_once(
    client: &TokenClient,
    mount: &str,
    request: &SignIntermediate,
) -> Result<Zeroizing<Vec<u8>>, CallError> {
    client.call(SignRequest { mount, request }).await
}

fn failed(error: CallError) -> FetchError {
    match error {
        CallError::Status { code: 403, .. } => {
            FetchError::Gone(SecretCause::VaultDenied, NOT_ALLOWED)
        }
        CallError::Status { code: 400 | 404 | 405, .. } => {
            let text = "Vault does not sign this: is there a PKI engine with a CA at the mount, \
                        whose max_lease_ttl is not below ttl?";
            FetchError::Gone(SecretCause::VaultDenied, text)
        }
        other => other.outage(),
    }
}

/// The request to sign. vaultrs has this endpoint too, without the constraints on addresses.
struct SignRequest<'a> {
    mount: &'a str,
    request: &'a SignIntermediate,
}

impl Endpoint for SignRequest<'_> {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        signing_path(self.mount)
    }

    fn method(&self) -> RequestMethod {
        RequestMethod::POST
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        let body = serde_json::to_vec(self.request);
        body.map(Some).map_err(|error| ClientError::DataParseError { source: error.into() })
    }
}

fn parse(body: &[u8]) -> Option<Signed> {
    let SignResponse { data } = serde_json::from_slice(body).ok()?;
    Some(Signed { certificate: data.certificate, chain: data.ca_chain.unwrap_or_default() })
}

#[derive(Deserialize)]
struct SignResponse {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    certificate: String,
    /// The chain; without it the engine's CA must be the root.
    ca_chain: Option<Vec<String>>,
}

/// The message where Vault's policies do not allow a CA to be signed.
pub(super) const NOT_ALLOWED: &str = "Vault's policies do not let the gateway have this CA signed: \
    they must list its names, ttl and all else as they are asked for";

const NOT_SIGNED: &str = "Vault's answer holds no certificate";

#[cfg(test)]
mod tests;
