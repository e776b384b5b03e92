//! Explains why something is refused, and which change of the configuration would allow it.
//!
//! Pure. The question is put to the very code that decides on connections and requests; there is no
//! second implementation. A remedy is a change of the configuration's text, and it is tried before
//! it is shown: the changed text is read as any configuration is, and the same question is put
//! again.

mod ask;
mod mend;
mod recorded;
mod remedy;
mod suggest;
mod verdict;

pub use ask::{Question, Who, request};
pub use mend::{Ending, Explanation, Source, explain};
pub use recorded::{Recorded, recorded};
pub use remedy::Remedy;
pub use suggest::{Refusals, Suggestion, suggest};
pub use verdict::{Refused, Step, Verdict, judge};

#[cfg(test)]
mod tests;
