//! Secrets in a response become asterisks: a second line behind substitution, not a boundary.
//!
//! [`Masks`] are compiled from every value that a group may use at an API, all live versions.
//! Each is found in these forms, also where they overlap, and masked byte for byte so that
//! lengths stay true:
//!
//! - as it is;
//! - base64 at any of the three offsets, in either alphabet, as far as its characters depend on
//!   the secret alone;
//! - hexadecimal, in either case;
//! - each of these with any of its bytes, each by itself, written as one of the escapes of
//!   [`escape`], and in UTF-16 and UTF-32.
//!
//! [`MaskStream`] does so for a body in chunks of any size. The bytes that it keeps back, and the
//! cost of the search, do not depend on how far the body agrees with a secret: otherwise an agent
//! that may store bytes at an API and read them back would learn one from the sizes or the times of
//! the answers. A whole match does tell, since that is the purpose of masks: an agent that guesses
//! all of a value sees it masked. Values that can be guessed are no secrets.
//!
//! A compressed body is decoded first ([`Decoder`]). A body that cannot be read (an unknown
//! encoding, a range that may cut a secret in two) is refused rather than passed. Transforms beyond
//! this list pass; so do the up to six bits of a secret that its outermost base64 characters share
//! with their neighbours, and the bytes before an upstream's pause in the middle of a secret.

mod block;
mod coding;
mod decode;
mod envelope;
mod escape;
mod fields;
mod filter;
mod form;
mod head;
mod marks;
mod masks;
mod range;
mod search;
mod stream;
#[cfg(target_arch = "x86_64")]
mod vector;
#[cfg(not(target_arch = "x86_64"))]
#[path = "no_vector.rs"]
mod vector;

pub use coding::{
    Accepted, Coding, Decoder, DecoderProgress, PIECE, Undecodable, asked_codings, content_coding,
    decoded_head,
};
pub use head::{
    ANSWER_FORM, HeadReport, in_envelopes, mask_head, mask_trailers, request_encodings,
};
pub use masks::Masks;
pub use range::{Part, Window};
pub use stream::{MaskStream, joined};

#[cfg(test)]
mod oracle;
