//! Ids of flows that reveal nothing of one another.
//!
//! An agent learns the id of its flow from answers. A plain count would tell one group how many
//! connections the others open, and let two groups that may not speak to each other signal by
//! opening them. So an id is the count under a permutation with a secret key: no two flows of a run
//! share an id, and nobody can derive the others from known ids.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use aws_lc_rs::{error::Unspecified, hmac, rand::SystemRandom};

/// The id of one flow in the audit, in answers and in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId(pub u64);

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The source of the ids of one run.
#[derive(Debug)]
pub struct FlowIds {
    permutation: Permutation,
    count: AtomicU64,
}

impl FlowIds {
    /// Creates a source with a key of its own.
    ///
    /// # Errors
    ///
    /// The system returned no random bytes.
    pub fn new() -> Result<Self, Unspecified> {
        Ok(Self { permutation: Permutation::new()?, count: AtomicU64::new(0) })
    }

    /// Returns an id that no other flow of this run has.
    pub fn next(&self) -> FlowId {
        FlowId(self.permutation.of(self.count.fetch_add(1, Relaxed)))
    }
}

/// A keyed permutation of all 64-bit numbers: a balanced Feistel network whose round function is
/// HMAC-SHA-256. With six rounds or more, nobody without the key can tell it from any other
/// permutation before some 2^32 ids are known (Patarin, "Security of random Feistel schemes with 5
/// or more rounds", 2004).
#[derive(Debug)]
struct Permutation(hmac::Key);

impl Permutation {
    fn new() -> Result<Self, Unspecified> {
        hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map(Self)
    }

    fn of(&self, number: u64) -> u64 {
        let (left, right) = (0..ROUNDS)
            .fold(halves(number), |(left, right), round| (right, left ^ self.round(round, right)));
        u64::from(left) << 32 | u64::from(right)
    }

    fn round(&self, round: u8, half: u32) -> u32 {
        let [a, b, c, d] = half.to_be_bytes();
        let tag = hmac::sign(&self.0, &[round, a, b, c, d]);
        tag.as_ref().iter().take(4).fold(0, |word, byte| word << 8 | u32::from(*byte))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the halves are what is asked for")]
const fn halves(number: u64) -> (u32, u32) {
    ((number >> 32) as u32, number as u32)
}

const ROUNDS: u8 = 8;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Returns the number that has this id, which takes the key.
    fn undone(permutation: &Permutation, name: u64) -> u64 {
        let (left, right) = (0..ROUNDS).rev().fold(halves(name), |(left, right), round| {
            (right ^ permutation.round(round, left), left)
        });
        u64::from(left) << 32 | u64::from(right)
    }

    proptest! {
        #[test]
        fn each_number_has_one_name_and_each_name_one_number(number in any::<u64>()) {
            let permutation = Permutation::new().unwrap();
            prop_assert_eq!(undone(&permutation, permutation.of(number)), number);
        }
    }

    #[test]
    fn no_two_flows_of_a_run_share_a_name() {
        let ids = FlowIds::new().unwrap();
        let names: HashSet<_> = (0..20_000).map(|_| ids.next()).collect();
        assert_eq!(names.len(), 20_000);
    }

    #[test]
    fn two_runs_name_their_flows_differently() {
        let [one, other] = [(); 2].map(|()| FlowIds::new().unwrap());
        assert!((0..100).all(|_| one.next() != other.next()));
    }

    /// A group that sees its own ids learns nothing of how many lie between two of them: the bits
    /// of neighbours, and of ids far apart, differ like those of unrelated numbers.
    #[test]
    fn the_distance_of_two_flow_names_tells_nothing_of_others() {
        let permutation = Permutation::new().unwrap();
        for between in [1, 2, 3, 16, 256, 1 << 31, 1 << 32, 1 << 48] {
            let pairs = 4_000_u64;
            let mut flips = [0_u32; 64];
            for number in 0..pairs {
                let differ = permutation.of(number) ^ permutation.of(number + between);
                for (bit, flips) in flips.iter_mut().enumerate() {
                    *flips += u32::from(differ >> bit & 1 == 1);
                }
            }
            // Six standard deviations of a fair coin that is thrown 4,000 times are 190.
            for (bit, flips) in flips.iter().enumerate() {
                assert!((1_810..=2_190).contains(flips), "{between}, bit {bit}: {flips}");
            }
        }
    }
}
