use std::convert::Infallible;

use http::{Request, Response};
use http_body_util::Empty;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use proptest::{collection::vec, prelude::*};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    super::{
        super::tasks::{Spawner, Tasks},
        frames::{
            CONTINUATION,
            tests::{WHOLE, frame, preface},
        },
    },
    *,
};

const PING: u8 = 6;
const END_STREAM: u8 = 1;

async fn cut_after(frames: &[Vec<u8>], pause: Duration) -> Option<Violation> {
    let (mut agent, gateway) = tokio::io::duplex(64);
    let exchanges = Arc::<Exchanges>::default();
    let head_time = Duration::from_millis(200);
    let (mut watch, heads) = HeadWatch::new(gateway, head_time, Arc::clone(&exchanges));
    let write = async {
        for frame in frames {
            if agent.write_all(frame).await.is_err() {
                break;
            }
            sleep(pause).await;
        }
        drop(agent);
    };
    let read = async {
        let mut room = [0; 64];
        let read = std::future::poll_fn(|cx| {
            loop {
                let mut out = ReadBuf::new(&mut room);
                let polled = Pin::new(&mut watch).poll_read(cx, &mut out);
                match polled {
                    _ if heads.settle(0).is_some() => {}
                    Poll::Ready(Ok(())) if !out.filled().is_empty() => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        read.await;
        drop(watch);
    };
    tokio::join!(write, read);
    exchanges.violation()
}

#[tokio::test]
async fn a_trickling_head_is_cut_and_whole_ones_pass() {
    let begin = [preface(), frame(HEADERS, 0, 1, b"abc")].concat();
    let trickle: Vec<_> = std::iter::once(begin)
        .chain(std::iter::repeat_n(frame(CONTINUATION, 0, 1, b"x"), 100))
        .collect();
    let late = Some(Violation { reason: Reason::HttpTimeout, at_head: true });
    assert_eq!(cut_after(&trickle, Duration::from_millis(20)).await, late);
    assert_eq!(cut_after(&[b"PRI".to_vec()], Duration::from_secs(1)).await, late);
    // Each ends in the middle of the next one, so no read leaves the reader without a head.
    let head = frame(HEADERS, WHOLE, 1, b"abc");
    let begin = [preface(), head[..5].to_vec()].concat();
    let whole = [&head[5..], &head[..5]].concat();
    let busy: Vec<_> = std::iter::once(begin).chain(std::iter::repeat_n(whole, 100)).collect();
    assert_eq!(cut_after(&busy[..100], Duration::from_millis(20)).await, None);
}

/// A head, by the verdict that is due.
#[derive(Debug, Clone, Copy)]
enum Sent {
    Good,
    /// Malformed as a request; only its stream ends.
    Malformed,
    TooLarge,
    /// A frame that is no head.
    Ping,
}

/// A field that is not indexed, without Huffman coding (RFC 7541, section 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

fn head(stream: u32, sent: Sent, pieces: usize) -> Vec<u8> {
    // GET, https, / and :authority of the static table (RFC 7541, appendix A).
    let good = [vec![0x82, 0x87, 0x84], field(":authority", "api.example")].concat();
    let block = match sent {
        Sent::Good => good,
        Sent::Malformed => [good, field("connection", "close")].concat(),
        Sent::TooLarge => [good, field("x-a", &"a".repeat(120)).repeat(40)].concat(),
        Sent::Ping => return frame(PING, 0, 0, &[0; 8]),
    };
    let mut parts: Vec<_> = block.chunks(block.len().div_ceil(pieces)).collect();
    let last = parts.pop().unwrap_or_default();
    let flags = |whole: bool| if whole { WHOLE } else { 0 };
    let first = parts.first().copied().unwrap_or(last);
    let mut frames = frame(HEADERS, flags(parts.is_empty()) | END_STREAM, stream, first);
    for part in parts.iter().skip(1) {
        frames.extend(frame(CONTINUATION, 0, stream, part));
    }
    if !parts.is_empty() {
        frames.extend(frame(CONTINUATION, WHOLE, stream, last));
    }
    frames
}

/// Lets hyper serve these bytes in pieces of these sizes, and returns the verdicts and the number
/// of requests.
async fn served(bytes: &[u8], splits: &[usize]) -> (Vec<HeadVerdict>, u64) {
    let (mut agent, gateway) = tokio::io::duplex(1 << 20);
    let exchanges = Arc::<Exchanges>::default();
    let (watch, heads) = HeadWatch::new(gateway, Duration::from_secs(10), Arc::clone(&exchanges));
    let spawner = Spawner::default();
    let mut tasks = Tasks::new(spawner.clone());
    let service = service_fn(|_: Request<Incoming>| {
        drop(exchanges.begin());
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let mut builder = http2::Builder::new(spawner);
    builder.max_header_list_size(4_000);
    let mut library = std::pin::pin!(builder.serve_connection(TokioIo::new(watch), service));
    let mut verdicts = Vec::new();
    let serve = std::future::poll_fn(|cx| {
        loop {
            let polled = library.as_mut().poll(cx);
            let verdict = heads.settle(exchanges.begun());
            verdicts.extend(verdict);
            tasks.poll(cx);
            if verdict.is_none() || polled.is_ready() {
                return polled.map(drop);
            }
        }
    });
    let send = async {
        let (mut at, mut splits) = (0, splits.iter().cycle());
        while at < bytes.len() {
            let end = splits.next().map_or(bytes.len(), |split| (at + split).min(bytes.len()));
            agent.write_all(&bytes[at..end]).await.unwrap();
            tokio::task::yield_now().await;
            at = end;
        }
        agent.shutdown().await.unwrap();
        let _ = agent.read_to_end(&mut Vec::new()).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = send => {}
        () = serve => {}
    }
    (verdicts, exchanges.begun())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn each_head_has_one_verdict_however_its_bytes_come(
        sent in vec((prop_oneof![
            Just(Sent::Good), Just(Sent::Malformed), Just(Sent::TooLarge), Just(Sent::Ping),
        ], 1usize..4), 1..12),
        splits in vec(prop_oneof![1usize..30, 1_000usize..20_000], 1..20),
    ) {
        let mut bytes = [preface_text(), frame(4, 0, 0, b"")].concat();
        for (at, (sent, pieces)) in sent.iter().enumerate() {
            bytes.extend(head(2 * u32::try_from(at).unwrap() + 1, *sent, *pieces));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (verdicts, begun) = runtime.block_on(served(&bytes, &splits));
        let meant: Vec<_> = sent.iter().filter_map(|(sent, _)| match sent {
            Sent::Good => Some(HeadVerdict::Passed),
            Sent::Malformed => Some(HeadVerdict::Refused(Reason::HttpMalformed)),
            Sent::TooLarge => Some(HeadVerdict::Refused(Reason::HeaderLimit)),
            Sent::Ping => None,
        }).collect();
        prop_assert_eq!(begun as usize, meant.iter().filter(|it| **it == HeadVerdict::Passed).count());
        prop_assert_eq!(verdicts, meant);
    }
}

fn preface_text() -> Vec<u8> {
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()
}

#[tokio::test]
async fn a_head_that_ends_the_connection_has_its_verdict_too() {
    for last in [
        // CONNECT with a length: hyper tells nobody about it.
        [field(":method", "CONNECT"), field(":authority", "a"), field("content-length", "5")]
            .concat(),
        // A block that is not HPACK.
        vec![0xff; 40],
    ] {
        let frames = [
            preface_text(),
            frame(4, 0, 0, b""),
            head(1, Sent::Good, 1),
            frame(HEADERS, WHOLE, 3, &last),
        ];
        let (verdicts, begun) = served(&frames.concat(), &[usize::MAX >> 1]).await;
        let refused = HeadVerdict::Refused(Reason::HttpMalformed);
        assert_eq!((verdicts, begun), (vec![HeadVerdict::Passed, refused], 1));
    }
}
