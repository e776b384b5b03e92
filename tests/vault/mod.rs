//! The sources of secrets: a real Vault, or the encrypted file beside the daemon.

mod answers;
mod identity;
pub(crate) mod leased_users;
mod leases;
mod lockout;
mod logins;
mod no_secret;
mod outages;
mod pki;
mod plan;
mod rotation;
mod secret_store;
mod secrets;
mod transport;
