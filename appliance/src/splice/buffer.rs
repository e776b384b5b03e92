//! Copy buffers. A direction holds one only while it has bytes. A few free ones stay with each
//! thread, so that taking one costs no allocation.

use std::{cell::RefCell, mem};

/// [`Buffer::BYTES`] of initialised memory. It may hold old bytes of other flows: only bytes that
/// were read into it may be written out.
pub(super) struct Buffer(Box<[u8]>);

impl Buffer {
    /// Bytes of one buffer. A larger one gains little when copying, and a stalled flow would hold
    /// more.
    pub(super) const BYTES: usize = 64 * 1024;

    pub(super) fn take() -> Self {
        let free = FREE.try_with(|free| free.borrow_mut().pop()).ok().flatten();
        Self(free.unwrap_or_else(|| vec![0; Self::BYTES].into_boxed_slice()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = mem::take(&mut self.0);
        // At a thread's end the list is gone, and the bytes are freed.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < MAX_FREE {
                free.push(bytes);
            }
        });
    }
}

/// Most free buffers of one thread: 1 MiB.
const MAX_FREE: usize = 16;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}
