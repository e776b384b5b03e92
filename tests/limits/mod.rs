//! An agent that takes too much takes it from no other agent, and everything under way has a bound.

mod agents_in_a_flood;
mod bounds;
mod floods;
mod h2_deadlines;
