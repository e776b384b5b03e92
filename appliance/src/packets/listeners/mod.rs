//! The sockets behind the rules: the proxy's listeners and those of the agents' resolver.

mod claim;
mod handover;
mod holder;
pub(crate) mod inherited;
mod listen;

pub use claim::{ListenerClaim, claim};
pub use handover::{DaemonState, HeldName};
pub use inherited::InheritedListeners;
pub use listen::{DnsSockets, Listener};
