//! A thread that carries flows: one runtime, its own listeners, and every task that it started.

use std::{
    convert::Infallible,
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    runtime::Builder,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::flow::{self, Gateway};
use crate::{
    accept, identity, limits, net, packets::Listener, phase::Phase, policy::InterfaceName,
};

/// A thread that carries flows until the daemon is cut.
pub(super) struct Worker {
    thread: JoinHandle<()>,
    /// Closed with the last of its listeners.
    listening: mpsc::Receiver<Infallible>,
}

impl Worker {
    /// Starts a worker. It accepts once `begin` says so, and not at all if `begin` is dropped.
    pub(super) fn start(
        number: usize,
        listeners: Vec<Listener>,
        gateway: Arc<Gateway>,
        begin: oneshot::Receiver<()>,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let listeners = {
            let _entered = runtime.enter();
            listeners.into_iter().map(into_tokio).collect::<io::Result<Vec<_>>>()?
        };
        let (listens, listening) = mpsc::channel(1);
        let carry = async move {
            if begin.await.is_ok() {
                accept_on_all(listeners, gateway, listens).await;
            }
        };
        let thread = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || runtime.block_on(carry))?;
        Ok(Self { thread, listening })
    }

    /// Waits until the worker accepts nothing any more and holds no listener, which is so once the
    /// daemon drains.
    pub(super) async fn has_stopped_listening(&mut self) {
        // Nothing is ever sent; this waits for the end of the channel.
        let _ = self.listening.recv().await;
    }

    /// Waits for the thread, which ends on its own once the daemon is cut.
    pub(super) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}

fn into_tokio(listener: Listener) -> io::Result<(InterfaceName, TcpListener)> {
    Ok((listener.interface, TcpListener::from_std(listener.socket)?))
}

async fn accept_on_all(
    listeners: Vec<(InterfaceName, TcpListener)>,
    gateway: Arc<Gateway>,
    listens: mpsc::Sender<Infallible>,
) {
    let mut loops = JoinSet::new();
    for (interface, listener) in listeners {
        loops.spawn(accept_on(interface, listener, listens.clone(), Arc::clone(&gateway)));
    }
    drop(listens);
    let carried = async { while loops.join_next().await.is_some() {} };
    tokio::select! {
        () = carried => {}
        never = tick() => match never {},
    }
}

/// Rings sooner than the timers of a flow do. tokio wakes a worker that sets a timer which is to
/// ring before all others, so that it looks at its sockets once more for nothing: two system calls
/// for each such timer, and where little goes on that is every one.
async fn tick() -> Infallible {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
    }
}

/// Shorter than what a flow waits for: its hello, its upstream, its end.
const TICK: Duration = Duration::from_secs(1);

/// Owns every flow of one listener. Flows that are still open when the daemon is cut end
/// themselves.
async fn accept_on(
    interface: InterfaceName,
    listener: TcpListener,
    listens: mpsc::Sender<Infallible>,
    gateway: Arc<Gateway>,
) {
    let mut flows = JoinSet::new();
    let mut phases = gateway.phases.clone();
    let mut closing = std::pin::pin!(phases.reached(Phase::Drain));
    loop {
        tokio::select! {
            biased;
            () = &mut closing => break,
            Some(ended) = flows.join_next() => report(ended),
            Some((connection_slot, (stream, from))) = next(&gateway, &listener) => {
                if flow::is_over_rate(&gateway, from, &interface) {
                    net::reset(stream);
                    continue;
                }
                let gateway = Arc::clone(&gateway);
                flows.spawn(flow::serve(gateway, connection_slot, stream, from, interface.clone()));
            }
        }
    }
    drop(listener);
    drop(listens);
    while let Some(ended) = flows.join_next().await {
        report(ended);
    }
}

/// Takes a slot first, then the connection for it.
async fn next(
    gateway: &Gateway,
    listener: &TcpListener,
) -> Option<(limits::ConnectionSlot, (tokio::net::TcpStream, identity::AgentAddr))> {
    let connection_slot = gateway.capacity.take().await?;
    Some((connection_slot, accept::accept(listener).await))
}

/// Reports a flow that panicked. It has written its record and closed its sockets, and the others
/// go on.
fn report(ended: Result<(), tokio::task::JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        tracing::error!("a flow panicked; its record says internal_error");
    }
}
