//! One request and its answer: what is swapped and where, what is refused, and what comes back.

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
mod places;
mod ranges;
mod responses;
mod streaming;
mod substitution;
mod upgrades;
mod websocket;
