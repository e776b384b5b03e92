//! Queries in streams: each message behind its length (RFC 1035, section 4.2.2; RFC 7766).
//!
//! Pipelined queries are answered one after the other, in their order, so that an agent that does
//! not read its answers delays only itself.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{
    QueryHandler,
    agents::INTERFACE_CONNECTIONS,
    query_handler::{Origin, QueryOutcome},
};
use crate::{accept, net, phase::Phase, policy::InterfaceName};

/// Answers the connections of one listener until the daemon drains, and then the queries that they
/// have sent.
pub(super) async fn serve(
    handler: Arc<QueryHandler>,
    interface: InterfaceName,
    listener: Arc<TcpListener>,
) {
    let places = Arc::new(Semaphore::new(INTERFACE_CONNECTIONS));
    let mut open = JoinSet::new();
    let mut phases = handler.phases();
    let mut closing = pin!(phases.reached(Phase::Drain));
    loop {
        // A slot first: without one, connections wait in the kernel's queue.
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, accept::accept(&listener).await)
        };
        let (Ok(place), (stream, from)) = (tokio::select! {
            () = &mut closing => break,
            next = next => next,
        }) else {
            return;
        };
        while open.try_join_next().is_some() {}
        let Some(share) = handler.connection(&interface, from.ip()) else { continue };
        let (handler, interface) = (Arc::clone(&handler), interface.clone());
        open.spawn(async move {
            // An agent that goes away in the middle needs no answer.
            let _ = converse(&handler, interface, from.0, stream).await;
            drop((share, place));
        });
    }
    while open.join_next().await.is_some() {}
}

async fn converse(
    handler: &QueryHandler,
    interface: InterfaceName,
    from: SocketAddr,
    mut stream: TcpStream,
) -> io::Result<()> {
    let to = net::canonical(stream.local_addr()?).ip();
    let origin = Origin { interface, from, to, datagram: false };
    let mut query = Vec::new();
    let mut phases = handler.phases();
    let mut closing = pin!(phases.reached(Phase::Drain));
    for _ in 0..MAX_QUERIES {
        tokio::select! {
            () = &mut closing => return Ok(()),
            read = timeout(IDLE, read(&mut stream, &mut query)) => read??,
        }
        let mut outcome = handler.consider(&origin, &query);
        if let QueryOutcome::Later(pending) = outcome {
            outcome = handler.resolve(pending).await;
        }
        let QueryOutcome::Answer(answer) = outcome else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let whole = [length.to_be_bytes().as_slice(), &answer].concat();
        timeout(IDLE, stream.write_all(&whole)).await??;
    }
    Ok(())
}

async fn read(stream: &mut TcpStream, query: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUERY_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    query.resize(length, 0);
    stream.read_exact(query).await?;
    Ok(())
}

/// Most queries on one connection.
const MAX_QUERIES: usize = 1_024;
/// Longest query, as in a datagram.
const MAX_QUERY_BYTES: usize = 4_096;
/// Time for a query to arrive whole, and for an answer to be taken.
const IDLE: Duration = Duration::from_secs(10);
