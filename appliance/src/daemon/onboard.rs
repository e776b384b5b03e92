//! A connection to the gateway's own address, from an agent that may fetch there what it must
//! trust: one request, one answer, under the bounds that every connection has until it is decided.
//! There is no permit here, so nothing can be dialled.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::Bytes;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::farewell::{self, Language};
use crate::{
    audit::Record,
    identity::Flow,
    limits::AgentShare,
    net::reset,
    onboarding::{self, PageRequest, Pages},
    peek::{self, PeekFailure, Peeked},
    phase::{Phase, Phases},
    policy::Limits,
    quarantine::Quarantined,
    reason::Reason,
};

/// The connected agent, and its right to be served.
pub(super) struct OnboardingAgent<'a> {
    pub stream: TcpStream,
    pub flow: &'a Flow,
    pub share: &'a AgentShare,
}

/// Reads a request, answers it, and closes.
pub(super) async fn serve(
    (mut phases, mut quarantined): (Phases, Quarantined),
    limits: &Limits,
    pages: &Pages,
    mut agent: OnboardingAgent<'_>,
    record: &mut Record,
) {
    let cut = tokio::select! {
        biased;
        () = quarantined.reached(&agent.flow.group.name) => Reason::Quarantined,
        () = phases.reached(Phase::Cut) => Reason::ShuttingDown,
        answered = answer(limits, pages, &mut agent, record) => match answered {
            Ok(()) => return,
            Err((language, reason)) => {
                record.refused(reason);
                return farewell::refuse(agent.stream, language, reason, agent.flow.id).await;
            }
        },
    };
    record.refused(cut);
    reset(agent.stream);
}

/// The reason why a request is refused, and the language of the refusal.
type OnboardingRefusal = (Language, Reason);

async fn answer(
    limits: &Limits,
    pages: &Pages,
    agent: &mut OnboardingAgent<'_>,
    record: &mut Record,
) -> Result<(), OnboardingRefusal> {
    let share = agent.share;
    let read = match peek::read(&mut agent.stream, limits, |bytes| share.peek(bytes)).await {
        Ok(read) => read,
        Err(PeekFailure::Closed) => {
            record.nothing_said();
            return Ok(());
        }
        Err(PeekFailure::Refused(reason)) => {
            return Err((farewell::language_of_failure(reason), reason));
        }
    };
    record.peeked(&read.peeked);
    count(&record.traffic().from_agent, read.bytes.len());
    let dialled = agent.flow.dialled.0.ip();
    let asked = match &read.peeked {
        Peeked::Http(_) => onboarding::asked(&read.bytes, limits.head_fields, dialled),
        Peeked::Tls(_) | Peeked::Other | Peeked::Unread(_) => Err(Reason::ProtocolDenied),
    };
    let PageRequest { page, body } =
        asked.map_err(|reason| (farewell::language_of(&read.peeked), reason))?;
    record.onboards(page.path());
    let text = pages.text(page, dialled);
    let head = page.head(text.len());
    let text = if body { text } else { Bytes::new() };
    count(&record.traffic().to_agent, head.len() + text.len());
    let told = timeout(TELL_TIME, tell(&mut agent.stream, head.as_bytes(), &text)).await;
    record.ended(if matches!(told, Ok(Ok(()))) { "closed" } else { "cut" });
    Ok(())
}

async fn tell(stream: &mut TcpStream, head: &[u8], text: &[u8]) -> std::io::Result<()> {
    stream.write_all(head).await?;
    stream.write_all(text).await?;
    stream.shutdown().await?;
    farewell::drain(stream).await
}

fn count(bytes: &std::sync::atomic::AtomicU64, more: usize) {
    bytes.fetch_add(more as u64, Relaxed);
}

/// Time for an agent to take its page: a bundle of 300 KB at 100 kbit/s.
const TELL_TIME: Duration = Duration::from_secs(30);
