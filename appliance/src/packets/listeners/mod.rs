//! The sockets behind the rules: the proxy's listeners and those of the agents' resolver.

mod claim;
mod handover;
mod holder;
pub(crate) mod kept;
mod listen;

pub use claim::{Claim, claim};
pub use handover::{Held, Says};
pub use kept::Kept;
pub use listen::{DnsSockets, Listener};
