//! (being written)

pub mod ca;
