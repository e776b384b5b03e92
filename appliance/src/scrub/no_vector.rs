//! What stands for [`Vectors`] where the processor is of another kind: there are none.

use super::filter::Filter;

/// No such proof can be had.
#[derive(Debug, Clone, Copy)]
pub(super) enum Vectors {}

impl Vectors {
    pub(super) fn detected() -> Option<Self> {
        None
    }

    pub(super) fn marks_and_ends(self, _: &[u8; 64]) -> (u64, u64) {
        match self {}
    }

    pub(super) fn without_marks(self, _: &[[u8; 64]]) -> usize {
        match self {}
    }

    pub(super) fn hash<const WIDTH: usize>(self, _: &AesKey, _: &[u8; WIDTH]) -> u64 {
        match self {}
    }

    pub(super) fn barren<const WIDTH: usize>(
        self,
        _: &AesKey,
        _: &Filter,
        _: usize,
        _: &[u8],
    ) -> usize {
        match self {}
    }
}

/// The keys of two rounds of AES.
#[expect(dead_code, reason = "nobody reads it where there is no proof")]
pub(super) struct AesKey(pub(super) [[u8; 16]; 2]);
