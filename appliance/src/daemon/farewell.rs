//! The refusal of an agent, in the protocol that it speaks.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{identity::FlowId, net::reset, peek::Peeked, reason::Reason, refuse};

/// The protocol that the agent understands at this point, in which it can be refused.
pub(super) enum Language {
    /// Nothing yet.
    Tcp,
    /// It sent a ClientHello.
    Tls,
    /// It sent an HTTP head.
    Http,
}

pub(super) fn language_of(peeked: &Peeked) -> Language {
    match peeked {
        Peeked::Tls(_) => Language::Tls,
        Peeked::Http(_) => Language::Http,
        Peeked::Other | Peeked::Unread(_) => Language::Tcp,
    }
}

pub(super) fn language_of_failure(reason: Reason) -> Language {
    match reason {
        Reason::TlsMalformed => Language::Tls,
        Reason::HttpMalformed | Reason::HeaderLimit => Language::Http,
        _ => Language::Tcp,
    }
}

/// Tells the agent the reason, in its language, and closes.
pub(super) async fn refuse(mut stream: TcpStream, language: Language, reason: Reason, id: FlowId) {
    let farewell = async {
        match language {
            Language::Tcp => return Ok(()),
            Language::Tls => stream.write_all(&refuse::alert_record(reason)).await?,
            Language::Http => stream.write_all(&refuse::answer_bytes(reason, id)).await?,
        }
        stream.shutdown().await?;
        drain(&mut stream).await
    };
    // An agent that does not read is reset.
    let heard = timeout(FAREWELL_TIME, farewell).await;
    if matches!(language, Language::Tcp) || !matches!(heard, Ok(Ok(()))) {
        reset(stream);
    }
}

/// Reads the bytes that the agent has sent. Closing a socket with unread bytes resets it, and the
/// refusal would be lost.
pub(super) async fn drain(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut sink = [0; 1024];
    for _ in 0..FAREWELL_READS {
        if stream.read(&mut sink).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// Time for a refused agent to take its refusal.
const FAREWELL_TIME: Duration = Duration::from_secs(2);
/// Reads of 1 KiB that a refused agent gets before it is reset.
const FAREWELL_READS: usize = 64;
