//! The values behind the placeholders: how they are held, where they come from.

mod value;

pub use value::{SecretError, SecretValue};
