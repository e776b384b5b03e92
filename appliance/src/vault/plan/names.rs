//! Names that every plan has.

/// The gateway's policy and AppRole.
pub const GATEWAY: &str = "cloakroom-gateway";
