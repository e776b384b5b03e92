//! The values behind the placeholders: their storage, their sources and their lifetimes.
//!
//! A [`SecretStore`] asks a [`SecretSource`] in the background and publishes a [`SecretSnapshot`].
//! A request keeps the snapshot that it began with and never waits for Vault. Everything is keyed
//! by agent group and reference, so that Vault can give two groups two values for one reference.
//! Every doubt means "no value": the request is then answered 503.

mod aws_keys;
mod file;
mod fit;
mod joined;
mod lanes;
mod lease;
mod ledger;
mod lines;
pub(crate) mod private_file;
mod refresh_rate;
mod revocation;
mod scheduler;
mod seal;
mod sealed_file;
mod sleep;
mod snapshot;
mod source;
mod store;
pub(crate) mod timing;
pub(crate) mod value;

pub use aws_keys::AwsKeys;
pub use file::FileSource;
pub use fit::{Uses, unfit};
pub use lines::FileError;
pub use private_file::PrivateFileError;
pub use sealed_file::{EditError, SealedFile};
pub use snapshot::{SecretSnapshot, SecretsHealth};
pub use source::{FetchError, Fetched, Lease, PickedValue, Prolonged, SecretSource, Standing};
pub use store::SecretStore;
pub use value::{SecretError, SecretValue};
