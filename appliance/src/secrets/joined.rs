//! Reads that are shared by all who ask at the same time.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};

use crate::locks::lock;

/// Reads one after the other. Every caller gets the result of a read that began after its call; all
/// callers that ask while a read is under way share the next.
pub(super) struct JoinedReads<T> {
    next: Arc<Mutex<Option<JoinedRead<T>>>>,
    /// Held by the read that is under way.
    turn: Arc<Mutex<()>>,
}

/// A read that several callers wait for; `None` if it broke off.
pub(super) type JoinedRead<T> = Shared<BoxFuture<'static, Option<T>>>;

impl<T: Clone + Send + Sync + 'static> JoinedReads<T> {
    /// Returns the read that this call joins. `read` may block.
    pub(super) fn ask(&self, read: impl FnOnce() -> T + Send + 'static) -> JoinedRead<T> {
        let mut next = lock(&self.next);
        // A read that the runtime dropped before it began does not remove itself.
        if let Some(joined) = next.as_ref().filter(|it| !matches!(it.peek(), Some(None))) {
            return joined.clone();
        }
        let (waiting, turn) = (Arc::clone(&self.next), Arc::clone(&self.turn));
        let running = tokio::task::spawn_blocking(move || {
            let _turn = lock(&turn);
            // Later callers are answered by another read.
            lock(&waiting).take();
            read()
        });
        next.insert(running.map(Result::ok).boxed().shared()).clone()
    }
}

impl<T> Clone for JoinedReads<T> {
    fn clone(&self) -> Self {
        Self { next: Arc::clone(&self.next), turn: Arc::clone(&self.turn) }
    }
}

/// The result is never shown.
impl<T> fmt::Debug for JoinedReads<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinedReads").finish_non_exhaustive()
    }
}

impl<T> Default for JoinedReads<T> {
    fn default() -> Self {
        Self { next: Arc::default(), turn: Arc::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    };

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn questions_during_a_read_share_the_next_one() {
        let (reads, begun) = (JoinedReads::default(), Arc::new(AtomicUsize::new(0)));
        let number = {
            let begun = Arc::clone(&begun);
            move || begun.fetch_add(1, SeqCst) + 1
        };
        let (go_on, held_up) = mpsc::sync_channel::<()>(1);
        let (started, has_started) = mpsc::sync_channel(1);
        let first = reads.ask({
            let number = number.clone();
            move || {
                let own = number();
                started.send(()).unwrap();
                held_up.recv().unwrap();
                own
            }
        });
        has_started.recv().unwrap();
        let others: Vec<_> = (0..1_000).map(|_| reads.ask(number.clone())).collect();
        go_on.send(()).unwrap();
        assert_eq!(first.await, Some(1));
        assert!(join_all(others).await.into_iter().all(|own| own == Some(2)));
        assert_eq!(reads.ask(number).await, Some(3));
        assert_eq!(begun.load(SeqCst), 3);
    }

    #[tokio::test]
    async fn a_read_that_broke_off_is_followed_by_another() {
        let reads = JoinedReads::default();
        assert_eq!(reads.ask(|| panic!("it breaks off")).await, None::<usize>);
        assert_eq!(reads.ask(|| 2).await, Some(2));
    }
}
