//! The thread that answers: a loop for each socket, started again if it ever fails.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{runtime::Builder, task::JoinSet, time::timeout};

use super::{QueryHandler, tcp, udp};
use crate::{packets::DnsSockets, phase::Phase};

/// The thread that answers agents' queries until the daemon drains, and after that the queries that
/// it has already read.
#[derive(Debug)]
pub struct DnsServer {
    thread: JoinHandle<()>,
}

impl DnsServer {
    /// Starts the thread, which answers at once.
    pub fn start(sockets: Vec<DnsSockets>, handler: Arc<QueryHandler>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let mut pairs = Vec::with_capacity(sockets.len());
        {
            let _entered = runtime.enter();
            for DnsSockets { interface, udp, tcp } in sockets {
                let udp = Arc::new(tokio::net::UdpSocket::from_std(udp)?);
                let tcp = Arc::new(tokio::net::TcpListener::from_std(tcp)?);
                pairs.push((interface, udp, tcp));
            }
        }
        let serve = async move {
            let mut loops = JoinSet::new();
            for (interface, udp, tcp) in pairs {
                let (at, name) = (Arc::clone(&handler), interface.clone());
                loops.spawn(keep(Arc::clone(&handler), move || {
                    udp::serve(Arc::clone(&at), name.clone(), Arc::clone(&udp))
                }));
                let (at, name) = (Arc::clone(&handler), interface);
                loops.spawn(keep(Arc::clone(&handler), move || {
                    tcp::serve(Arc::clone(&at), name.clone(), Arc::clone(&tcp))
                }));
            }
            handler.summarise().await;
            while loops.join_next().await.is_some() {}
            handler.write_summaries();
        };
        let thread =
            thread::Builder::new().name("dns".into()).spawn(move || runtime.block_on(serve))?;
        Ok(Self { thread })
    }

    /// Waits for the thread, which ends on its own once the daemon drains.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the resolver panicked");
        }
    }
}

/// Runs a loop, which ends on its own soon after the daemon drains. A loop that panics is started
/// again: no single message may end the resolver of all agents.
async fn keep<F>(handler: Arc<QueryHandler>, begin: impl Fn() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut phases = handler.phases();
    let mut closing = std::pin::pin!(phases.reached(Phase::Drain));
    loop {
        let mut task = JoinSet::new();
        task.spawn(begin());
        tokio::select! {
            () = &mut closing => {
                // An agent without an answer by then asks again.
                let _ = timeout(LAST_ANSWERS, task.join_next()).await;
                return;
            }
            ended = task.join_next() => match ended {
                Some(Err(error)) if error.is_panic() => {
                    tracing::error!("answering a query panicked; going on");
                }
                _ => return,
            },
        }
    }
}

/// Time for the queries that were read before the daemon drains. The next daemon does not get them.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
