//! One request and its answer: the placeholders that become secrets, the refusals, and the
//! response.

mod answers;
mod authority;
mod clear_text;
mod coded;
mod credentials;
mod framing;
mod h2_frames;
mod masking;
mod matrix;
mod methods_and_paths;
pub(crate) mod minted;
mod places;
mod ranges;
mod responses;
pub(crate) mod streaming;
mod substitution;
mod upgrades;
mod websocket;
