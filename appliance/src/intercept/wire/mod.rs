//! The bytes of an agent's connection below the HTTP library: counted, held back until they have
//! one meaning, and written together.

mod counted;
mod deferred;
mod frames;
mod framing;
mod guard;
mod head_watch;
mod read_ahead;

pub(super) use counted::Counted;
pub(super) use deferred::{Deferred, Flusher};
pub(super) use framing::content_length;
pub use framing::{Framing, TrailerRule};
pub(super) use guard::Guard;
pub(super) use head_watch::{HeadVerdict, HeadWatch, Heads};
pub(super) use read_ahead::ReadAhead;
