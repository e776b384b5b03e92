//! An executor whose tasks live and die with one connection.
//!
//! hyper's HTTP/2 sides spawn a task for each stream and one for the upstream connection. On the
//! runtime these tasks would outlive a connection that is cut, and every hop between tasks costs a
//! wake-up. Here the one task that owns the connection polls them.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper::rt::Executor;

use crate::locks::lock;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The handle that hyper spawns with.
#[derive(Clone, Default)]
pub(super) struct Spawner(Arc<Mutex<Incoming>>);

#[derive(Default)]
struct Incoming {
    tasks: Vec<Task>,
    owner: Option<Waker>,
}

/// The tasks of one connection. Dropping it ends them.
pub(super) struct Tasks {
    spawner: Spawner,
    running: FuturesUnordered<Task>,
}

impl Tasks {
    /// Makes an empty set of tasks; `spawner` brings them.
    pub(super) fn new(spawner: Spawner) -> Self {
        Self { spawner, running: FuturesUnordered::new() }
    }

    /// Polls every task that can go on.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        loop {
            self.take_new(cx);
            match self.running.poll_next_unpin(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
    }

    fn take_new(&self, cx: &Context<'_>) {
        let mut incoming = lock(&self.spawner.0);
        for task in incoming.tasks.drain(..) {
            self.running.push(task);
        }
        match &mut incoming.owner {
            Some(owner) => owner.clone_from(cx.waker()),
            None => incoming.owner = Some(cx.waker().clone()),
        }
    }
}

impl<F> Executor<F> for Spawner
where
    F: Future + Send + 'static,
{
    fn execute(&self, future: F) {
        let mut incoming = lock(&self.0);
        incoming.tasks.push(Box::pin(async {
            future.await;
        }));
        if let Some(owner) = &incoming.owner {
            owner.wake_by_ref();
        }
    }
}
