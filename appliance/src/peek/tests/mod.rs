//! Properties of the peek as a whole, over hellos that rustls' own client makes.

mod clients;
mod head;
mod hello;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;
use rustls::server::Acceptor;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use self::{clients::*, head::HEAD};
use super::*;
use crate::policy::Host;

const SNI: u16 = 0;
const TLS_MALFORMED: Progress = Progress::Malformed(Reason::TlsMalformed);

/// Returns the result for a stream that arrives in `cuts`, and the number of bytes that it took.
fn in_pieces(bytes: &[u8], cuts: impl IntoIterator<Item = usize>) -> (Progress, usize) {
    let mut scan = PrefixScan::new(100);
    for end in cuts {
        match scan.advance(&bytes[..end]) {
            Progress::NeedMore => {}
            answer => return (answer, end),
        }
    }
    (Progress::NeedMore, bytes.len())
}

fn limits() -> Limits {
    Limits { peek_bytes: 4_096, peek_time: Duration::from_millis(200), ..Limits::default() }
}

/// Returns room. No other connection takes any.
fn room(bytes: usize) -> Option<OwnedSemaphorePermit> {
    Arc::new(Semaphore::new(bytes)).try_acquire_owned().ok()
}

async fn read_all(bytes: &[u8], cut: usize) -> Result<PeekedBytes, PeekFailure> {
    let (mut agent, mut gateway) = tokio::io::duplex(64);
    let write = async {
        for piece in bytes.chunks(cut) {
            let _ = agent.write_all(piece).await;
        }
    };
    let (answer, ()) = tokio::join!(
        async {
            let answer = read(&mut gateway, &limits(), room).await;
            drop(gateway);
            answer
        },
        write
    );
    answer
}

#[tokio::test]
async fn what_was_read_is_kept_for_the_next_reader() {
    for cut in [1, 7, 5_000] {
        for bytes in [hello(), in_records_of(1, message(&hello())), HEAD.to_vec()] {
            let read = read_all(&bytes, cut).await.expect("an answer");
            assert_eq!(read.bytes, bytes);
            assert_eq!(Progress::Done(read.peeked), parse(&bytes));
        }
    }
}

#[tokio::test]
async fn a_stream_beyond_the_bound_is_refused() {
    let refused = |reason| Some(PeekFailure::Refused(reason));
    let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];
    endless.resize(8_192, 0);
    assert_eq!(read_all(&endless, 999).await.err(), refused(Reason::TlsMalformed));
    let endless = [b"GET /", &[b'a'; 8_192][..]].concat();
    assert_eq!(read_all(&endless, 999).await.err(), refused(Reason::HeaderLimit));
    assert_eq!(read_all(&[22, 9], 1).await.err(), refused(Reason::TlsMalformed));
}

#[tokio::test]
async fn a_long_beginning_needs_room_and_a_short_one_none() {
    let long =
        [b"GET / HTTP/1.1\r\nHost: a.example\r\nX: ", &[b'x'; 6_000][..], b"\r\n\r\n"].concat();
    let limits = Limits { peek_bytes: 16 * 1024, ..limits() };
    for (bytes, there_is_room) in [(hello(), false), (long.clone(), true), (long, false)] {
        let (mut agent, mut gateway) = tokio::io::duplex(64 * 1024);
        agent.write_all(&bytes).await.expect("written");
        let short = bytes.len() < 4_096;
        let read = read(&mut gateway, &limits, |bytes| room(bytes).filter(|_| there_is_room)).await;
        match short || there_is_room {
            true => assert_eq!(read.expect("an answer").bytes, bytes),
            false => {
                let refused = PeekFailure::Refused(Reason::ConnectionLimit);
                assert_eq!(read.err(), Some(refused));
            }
        }
    }
}

#[tokio::test]
async fn a_slow_agent_is_refused_unlike_a_leaving_one() {
    let (mut agent, mut gateway) = tokio::io::duplex(64);
    agent.write_all(&[22, 3]).await.expect("written");
    let answer = read(&mut gateway, &limits(), room).await;
    assert_eq!(answer.err(), Some(PeekFailure::Refused(Reason::PeekTimeout)));
    drop(agent);
    assert_eq!(read(&mut gateway, &limits(), room).await.err(), Some(PeekFailure::Closed));
}

#[tokio::test]
async fn a_rewound_stream_yields_every_byte_once() {
    for room in [1, 3, 100] {
        let (mut agent, gateway) = tokio::io::duplex(64);
        agent.write_all(b"world").await.expect("written");
        drop(agent);
        let mut stream = Rewind::new(Bytes::from_static(b"hello, "), gateway);
        let mut all = Vec::new();
        let mut piece = vec![0; room];
        loop {
            match stream.read(&mut piece).await.expect("read") {
                0 => break,
                n => all.extend_from_slice(&piece[..n]),
            }
        }
        assert_eq!(all, b"hello, world");
    }
}

/// Returns the name as rustls alone reads it.
fn rustls_name(mut bytes: &[u8]) -> Option<Option<Host>> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            let name = accepted.client_hello().server_name().map(str::to_owned);
            return Some(name.and_then(|name| Host::parse(&name).ok()));
        }
    }
    None
}

proptest! {
    #[test]
    fn no_mutation_yields_a_name_that_rustls_does_not_read(
        hybrid in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        records in 1_usize..300,
    ) {
        let mut message = message(&if hybrid { hybrid_hello() } else { hello() }).to_vec();
        for (at, value) in changes {
            let at = at.index(message.len().min(300));
            message[at] = value;
        }
        let bytes = in_records_of(records, &message);
        let answer = parse(&bytes);
        prop_assert_eq!(&in_pieces(&bytes, 0..=bytes.len()).0, &answer);
        if let Progress::Done(Peeked::Tls(hello)) = answer {
            prop_assert_eq!(Some(hello.sni), rustls_name(&bytes));
        }
    }

    #[test]
    fn an_answer_never_changes(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..3) {
        let start: &[u8] = match kind { 0 => b"", 1 => &[22, 3, 1, 0, 120, 1, 0, 0, 116], _ => b"GET / HTTP/1.1\r\n" };
        let bytes = [start, &bytes].concat();
        let (answer, after) = in_pieces(&bytes, 0..=bytes.len());
        prop_assert_eq!(parse(&bytes), answer.clone());
        for end in after..=bytes.len() {
            prop_assert_eq!(&parse(&bytes[..end]), &answer);
        }
    }
}
