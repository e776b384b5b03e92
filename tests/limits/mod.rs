//! Who takes too much takes it from nobody else, and whatever is under way has its bound.

mod agents_in_a_flood;
mod bounds;
mod floods;
mod h2_deadlines;
