//! The sockets behind the rules: the proxy's listeners and those of the agents' resolver.

mod claim;
mod holder;
pub(crate) mod kept;
mod listen;

pub use claim::{Claim, claim};
pub use kept::Kept;
pub use listen::{DnsSockets, Listener};
