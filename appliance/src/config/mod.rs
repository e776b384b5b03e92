//! Settings and policy from one TOML file.

mod settings;

pub use settings::{AuditTarget, Settings, VaultSettings};
