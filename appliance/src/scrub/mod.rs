//! Secrets in a response become asterisks: a second line behind substitution, not a boundary.
//!
//! [`Masks`] are compiled from every value that a group may use at an API, all live versions.
//! Each is found in these forms, also where they overlap, and masked byte for byte so that
//! lengths stay true:
//!
//! - as it is, with any of its bytes outside RFC 3986's unreserved set written `%XX`, `\u00XX`
//!   or, where JSON has one, as a short escape, each byte independently of the others;
//! - with every byte written `%XX`, or every byte written `\u00XX`;
//! - base64 at any of the three offsets, in either alphabet, as far as its characters depend on
//!   the secret alone; `+` and `/` may be escaped as above;
//! - hexadecimal, in either case.
//!
//! [`MaskStream`] does so for a body in chunks of any size, and holds back nothing but a suffix
//! that may still become one of the forms. Whatever cannot be read (an encoding that was not
//! asked for, a range that may cut a secret in two) is refused rather than passed. Transforms
//! beyond this list pass; so do the up to six bits of a secret that its outermost base64
//! characters share with their neighbours.

mod form;
mod head;
mod masks;
mod stream;

pub use head::{HeadReport, mask_head, mask_trailers, request_encodings};
pub use masks::Masks;
pub use stream::MaskStream;

#[cfg(test)]
mod oracle;
