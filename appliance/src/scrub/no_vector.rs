//! Stands for [`Vectors`] on processors of other kinds, which have none.

#[cfg(test)]
use super::block::Block;
use super::filter::Filter;

/// A type without values: there is no such processor here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Vectors {}

impl Vectors {
    pub(super) fn detected() -> Option<Self> {
        None
    }

    #[cfg(test)]
    pub(super) fn block(self, _: &[u8; 64]) -> Block {
        match self {}
    }

    pub(super) fn next_marked(self, _: &[u8], _: usize, _: usize) -> Option<(usize, u64)> {
        match self {}
    }

    pub(super) fn held_at_end(self, _: &[[u8; 64]]) -> usize {
        match self {}
    }

    pub(super) fn append_unmarked(self, _: &mut Vec<u8>, _: &[u8]) -> usize {
        match self {}
    }

    pub(super) fn hash<const WIDTH: usize>(self, _: &[[u8; 16]; 2], _: &[u8; WIDTH]) -> u64 {
        match self {}
    }

    pub(super) fn barren<const WIDTH: usize>(
        self,
        _: &[[u8; 16]; 2],
        _: &Filter,
        _: usize,
        _: &[u8],
    ) -> usize {
        match self {}
    }
}
