//! Queries in datagrams.

use std::{io, pin::pin, sync::Arc, time::Duration};

use tokio::{
    io::Interest,
    net::UdpSocket,
    task::{JoinSet, yield_now},
};

use super::{
    QueryHandler,
    query_handler::{Origin, Pending, QueryOutcome},
};
use crate::{
    net::{self, Datagram},
    phase::Phase,
    policy::InterfaceName,
};

/// Answers the datagrams of one socket until the daemon drains, and then those that have already
/// arrived.
pub(super) async fn serve(
    handler: Arc<QueryHandler>,
    interface: InterfaceName,
    socket: Arc<UdpSocket>,
) {
    let mut buffer = vec![0; MAX_QUERY_BYTES];
    // Bounded by the number of names that agents may have resolved at once.
    let mut later = JoinSet::new();
    let mut phases = handler.phases();
    let mut closing = pin!(phases.reached(Phase::Drain));
    loop {
        let readable = tokio::select! {
            () = &mut closing => break,
            readable = socket.readable() => readable,
        };
        if readable.is_err() {
            pause("waiting for queries failed").await;
        }
        for _ in 0..AT_A_TIME {
            match receive(&socket, &mut buffer) {
                Ok(Some(datagram)) => {
                    let query = buffer.get(..datagram.bytes).unwrap_or_default();
                    if let Some(pending) = begin(&handler, &interface, (&socket, &datagram), query)
                    {
                        let (handler, socket) = (Arc::clone(&handler), Arc::clone(&socket));
                        later.spawn(async move {
                            finish(&handler, pending, (&socket, &datagram)).await;
                        });
                    }
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, "receive");
                    pause("receiving queries failed").await;
                    break;
                }
            }
        }
        while later.try_join_next().is_some() {}
        // The other sockets of this thread get their turn, however much waits here.
        yield_now().await;
    }
    while later.join_next().await.is_some() {}
}

/// Answers at once where possible; otherwise returns the query that waits for its name.
fn begin(
    handler: &QueryHandler,
    interface: &InterfaceName,
    (socket, asked): (&UdpSocket, &Datagram),
    query: &[u8],
) -> Option<Pending> {
    let &Datagram { from, to, .. } = asked;
    let origin = Origin { interface: interface.clone(), from, to, datagram: true };
    match handler.consider(&origin, query) {
        QueryOutcome::Silence => None,
        QueryOutcome::Answer(answer) => {
            send(handler, &origin, (socket, asked), &answer);
            None
        }
        QueryOutcome::Later(pending) => Some(pending),
    }
}

async fn finish(handler: &QueryHandler, pending: Pending, back: (&UdpSocket, &Datagram)) {
    let origin = pending.origin().clone();
    if let QueryOutcome::Answer(answer) = handler.resolve(pending).await {
        send(handler, &origin, back, &answer);
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
    socket.try_io(Interest::READABLE, || net::receive(socket, buffer))
}

/// Sends an answer. One that cannot be sent is lost, as any datagram may be, and counted; the agent
/// asks again.
fn send(
    handler: &QueryHandler,
    origin: &Origin,
    (socket, asked): (&UdpSocket, &Datagram),
    answer: &[u8],
) {
    if let Err(error) = net::send(socket, asked, answer) {
        tracing::debug!(%error, "answer");
        handler.count_undelivered(origin);
    }
}

async fn pause(why: &str) {
    tracing::warn!("{why}; waiting");
    tokio::time::sleep(PAUSE).await;
}

/// Longest query. A longer one holds no question that would be answered.
const MAX_QUERY_BYTES: usize = 4_096;
/// Datagrams that are read before the others on the thread get their turn.
const AT_A_TIME: usize = 64;
/// Pause after the kernel failed.
const PAUSE: Duration = Duration::from_millis(50);
