//! The relay against peers that behave badly: on loopback sockets, and on legs in memory that
//! read and write as little as they like.

mod descriptors;

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf},
    net::TcpListener,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{buffer::Buffer, pipe::Pipe, relay::Leg, *};
use crate::{
    identity::AgentKey,
    limits::Capacity,
    policy::{GroupName, Limits},
};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(300);
/// A bound, and a pause that does not reach it even when a busy machine stretches it sevenfold.
const BOUND: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(250);

/// A flow under test: the agent's and the upstream's own ends, and the relay between them.
struct Rig {
    agent: TcpStream,
    upstream: TcpStream,
    traffic: Arc<Traffic>,
    relay: JoinHandle<SpliceEnd>,
}

impl Rig {
    async fn new(first: &'static [u8], bounds: RelayTimeouts) -> Self {
        let (agent, gateway_agent) = connection().await;
        let (gateway_upstream, upstream) = connection().await;
        let traffic = Arc::new(Traffic::default());
        let relay = tokio::spawn({
            let traffic = traffic.clone();
            async move {
                Relay::new(gateway_agent, gateway_upstream, &traffic, bounds)
                    .run(Bytes::from_static(first))
                    .await
            }
        });
        Self { agent, upstream, traffic, relay }
    }

    async fn end(self) -> SpliceEnd {
        timeout(LONG, self.relay).await.expect("an end").expect("no panic")
    }
}

fn bounds(idle: Duration, half_open: Duration) -> RelayTimeouts {
    RelayTimeouts { idle, half_open, lasting: LONG }
}

/// Returns two ends of a loopback connection with small buffers, so that writes are partial.
#[expect(clippy::disallowed_methods, reason = "no policy here: both ends are the test's own")]
async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (client, server) = (client.expect("connected"), accepted.expect("accepted").0);
    for stream in [&client, &server] {
        SockRef::from(stream).set_send_buffer_size(40_000).expect("set");
    }
    (client, server)
}

/// A cheap source of numbers that look random (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(sides).expect("small")).expect("small")
    }
}

/// Returns the byte at a place of a test stream; the period is no power of two.
fn pattern(at: usize, seed: u64) -> u8 {
    u8::try_from((at as u64 * 31 + at as u64 / 251 + seed) % 253).expect("a byte")
}

async fn send(sink: &mut (impl AsyncWrite + Unpin), len: usize, seed: u64) {
    let mut dice = Dice(seed + 1);
    let mut at = 0;
    while at < len {
        let size = (1 + dice.roll(100_000)).min(len - at);
        let piece: Vec<u8> = (at..at + size).map(|at| pattern(at, seed)).collect();
        sink.write_all(&piece).await.expect("written");
        at += size;
    }
    sink.shutdown().await.expect("ended");
}

/// Reads to the end, checks every byte, and returns their number.
async fn receive(source: &mut (impl AsyncRead + Unpin), seed: u64) -> usize {
    let mut dice = Dice(seed + 7);
    let mut room = vec![0; 200_000];
    let mut at = 0;
    loop {
        let size = 1 + dice.roll(room.len());
        let read = source.read(&mut room[..size]).await.expect("read");
        if read == 0 {
            return at;
        }
        assert!((at..).zip(&room[..read]).all(|(at, &byte)| byte == pattern(at, seed)), "at {at}");
        at += read;
        if dice.roll(20) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn no_byte_is_lost_where_copying_turns_into_splicing() {
    const K: usize = 1024;
    for len in [0, 1, 256 * K - 1, 256 * K, 256 * K + 1, 1024 * K + 1, 8 * 1024 * K + 13] {
        let mut rig = Rig::new(b"", bounds(LONG, LONG)).await;
        let (mut from_agent, mut to_agent) = rig.agent.split();
        let (mut from_upstream, mut to_upstream) = rig.upstream.split();
        let other = len / 2 + 3;
        let ((), (), up, down) = tokio::join!(
            send(&mut to_agent, len, 1),
            send(&mut to_upstream, other, 2),
            receive(&mut from_upstream, 1),
            receive(&mut from_agent, 2),
        );
        assert_eq!((up, down), (len, other));
        let traffic = rig.traffic.clone();
        assert_eq!(rig.end().await, SpliceEnd::BothClosed);
        assert_eq!((traffic.from_agent(), traffic.to_agent()), (len as u64, other as u64));
        assert!(len >= 256 * K || Pipe::free() == 0, "{len} bytes took a pipe");
    }
    assert!(Pipe::free() > 0, "nothing was spliced");
}

/// A leg in memory that does as little as it may, and often nothing.
struct Stingy {
    inner: DuplexStream,
    dice: Dice,
}

impl Stingy {
    /// Returns how many bytes to offer, or none for now.
    fn allow(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        if self.dice.roll(3) == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(1 + self.dice.roll(700))
    }
}

impl AsyncRead for Stingy {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Poll::Ready(most) = self.allow(cx) else { return Poll::Pending };
        let mut room = vec![0; most.min(buf.remaining())];
        let mut piece = ReadBuf::new(&mut room);
        let result = Pin::new(&mut self.inner).poll_read(cx, &mut piece);
        buf.put_slice(piece.filled());
        result
    }
}

impl AsyncWrite for Stingy {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(most) = self.allow(cx) else { return Poll::Pending };
        Pin::new(&mut self.inner).poll_write(cx, &buf[..most.min(buf.len())])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Poll::Ready(_) = self.allow(cx) else { return Poll::Pending };
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl Leg for Stingy {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }

    fn notice_absence(&self) {}

    fn abort(&self) {}
}

#[tokio::test]
async fn no_byte_is_lost_to_short_or_pending_writers() {
    for seed in 1..20 {
        let (agent, gateway_agent) = tokio::io::duplex(3_000);
        let (gateway_upstream, upstream) = tokio::io::duplex(500);
        let leg = |inner| Stingy { inner, dice: Dice(seed) };
        let traffic = Traffic::default();
        let bounds = bounds(LONG, LONG);
        let relay = Relay::new(leg(gateway_agent), leg(gateway_upstream), &traffic, bounds);
        let (mut from_agent, mut to_agent) = tokio::io::split(agent);
        let (mut from_upstream, mut to_upstream) = tokio::io::split(upstream);
        let (end, (), (), up, down) = tokio::join!(
            relay.run(Bytes::new()),
            send(&mut to_agent, 150_000, seed),
            send(&mut to_upstream, 99_991, seed + 50),
            receive(&mut from_upstream, seed),
            receive(&mut from_agent, seed + 50),
        );
        assert_eq!((end, up, down), (SpliceEnd::BothClosed, 150_000, 99_991));
    }
}

#[tokio::test]
async fn what_was_peeked_goes_first() {
    let mut rig = Rig::new(b"hello, ", bounds(LONG, LONG)).await;
    rig.agent.write_all(b"world").await.expect("written");
    rig.agent.shutdown().await.expect("ended");
    let mut all = Vec::new();
    rig.upstream.read_to_end(&mut all).await.expect("read");
    assert_eq!(all, b"hello, world");
    rig.upstream.shutdown().await.expect("ended");
    assert_eq!(rig.end().await, SpliceEnd::BothClosed);
}

#[tokio::test]
async fn who_ends_first_still_hears_the_other_to_the_end() {
    for agent_ends in [true, false] {
        let mut rig = Rig::new(b"", bounds(LONG, LONG)).await;
        let (ender, other) = if agent_ends {
            (&mut rig.agent, &mut rig.upstream)
        } else {
            (&mut rig.upstream, &mut rig.agent)
        };
        ender.shutdown().await.expect("ended");
        assert_eq!(receive(other, 0).await, 0);
        let ((), heard) = tokio::join!(send(other, 900_000, 3), receive(ender, 3));
        assert_eq!(heard, 900_000);
        assert_eq!(rig.end().await, SpliceEnd::BothClosed);
    }
}

#[tokio::test]
async fn a_reset_of_one_side_resets_the_other() {
    for agent_resets in [true, false] {
        // In the middle of a bulk transfer in either direction, and in silence.
        for sent in [0, 3_000_000] {
            let Rig { agent, upstream, relay, .. } = Rig::new(b"", bounds(LONG, LONG)).await;
            let (mut resetter, mut other, side) = if agent_resets {
                (agent, upstream, Side::Agent)
            } else {
                (upstream, agent, Side::Upstream)
            };
            let piece = vec![1; 10_000];
            let mut room = vec![0; 10_000];
            let mut left = sent;
            while left > 0 {
                resetter.write_all(&piece).await.expect("written");
                other.read_exact(&mut room).await.expect("read");
                left -= piece.len();
            }
            resetter.set_zero_linger().expect("set");
            drop(resetter);
            let end = timeout(LONG, relay).await.expect("an end").expect("no panic");
            assert_eq!(end, SpliceEnd::Reset(side));
            expect_reset(&mut other).await;
        }
    }
}

async fn expect_reset(stream: &mut TcpStream) {
    let mut room = vec![0; 100_000];
    let error = loop {
        match timeout(LONG, stream.read(&mut room)).await.expect("not silent") {
            Ok(0) => panic!("a clean end"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_side_that_stops_reading_stops_the_other_too() {
    for (read_first, in_memory) in [(0, Buffer::BYTES), (4_000_000, 1024 * 1024)] {
        let mut rig = Rig::new(b"", bounds(5 * SHORT, LONG)).await;
        let piece = vec![1; 50_000];
        let mut room = piece.clone();
        for _ in 0..read_first / piece.len() {
            let (written, read) =
                tokio::join!(rig.agent.write_all(&piece), rig.upstream.read_exact(&mut room));
            written.and(read.map(|_| ())).expect("through");
        }
        let mut sent = read_first;
        // The kernel trickles on for a while, so the reset may come to a write.
        let mut write_failed = false;
        while let (Ok(result), false) =
            (timeout(SHORT, rig.agent.write(&piece)).await, write_failed)
        {
            write_failed = result.is_err();
            sent += result.unwrap_or(0);
            assert!(sent < read_first + 64 * 1024 * 1024, "it takes without end");
        }
        // The gateway holds what both kernels' socket buffers do not.
        let delivered = usize::try_from(rig.traffic.from_agent()).expect("small");
        let in_sockets = 24 * 1024 * 1024;
        assert!(sent - delivered < in_memory + in_sockets, "{sent} {delivered}");
        let Rig { mut agent, upstream, relay, .. } = rig;
        let end = timeout(LONG, relay).await.expect("an end").expect("no panic");
        assert_eq!(end, SpliceEnd::Idle);
        if !write_failed {
            expect_reset(&mut agent).await;
        }
        drop(upstream);
    }
}

#[tokio::test]
async fn a_silent_flow_ends_and_one_that_speaks_does_not() {
    let rig = Rig::new(b"", bounds(SHORT, LONG)).await;
    assert_eq!(rig.end().await, SpliceEnd::Idle);
    let mut rig = Rig::new(b"", bounds(BOUND, LONG)).await;
    for _ in 0..12 {
        sleep(PAUSE).await;
        rig.upstream.write_all(b".").await.expect("written");
        assert_eq!(rig.agent.read_u8().await.expect("read"), b'.');
    }
    let (start, mut agent) = (Instant::now(), rig.agent);
    assert_eq!(rig.relay.await.expect("no panic"), SpliceEnd::Idle);
    assert!(start.elapsed() < 5 * BOUND, "{:?}", start.elapsed());
    expect_reset(&mut agent).await;
}

#[tokio::test]
async fn a_flow_that_lasts_notices_peers_that_are_gone() {
    let (_agent, gateway_agent) = connection().await;
    let (gateway_upstream, _upstream) = connection().await;
    let sockets = [&gateway_agent, &gateway_upstream].map(|it| it.as_fd().try_clone_to_owned());
    let notices = |socket: &io::Result<OwnedFd>| {
        let socket = SockRef::from(socket.as_ref().expect("a socket"));
        socket.keepalive().expect("told") && socket.tcp_user_timeout().expect("told").is_some()
    };
    let relay = tokio::spawn(async move {
        let bounds = RelayTimeouts { lasting: BOUND, ..bounds(LONG, LONG) };
        let traffic = Traffic::default();
        Relay::new(gateway_agent, gateway_upstream, &traffic, bounds).run(Bytes::new()).await
    });
    sleep(PAUSE).await;
    assert_eq!(sockets.each_ref().map(notices), [false, false]);
    sleep(BOUND * 2).await;
    assert_eq!(sockets.each_ref().map(notices), [true, true]);
    assert!(!relay.is_finished());
}

#[tokio::test]
async fn a_side_that_outlives_the_other_too_long_is_reset() {
    for agent_ends in [true, false] {
        let mut rig = Rig::new(b"", bounds(LONG, BOUND)).await;
        let (ender, other) = if agent_ends {
            (&mut rig.agent, &mut rig.upstream)
        } else {
            (&mut rig.upstream, &mut rig.agent)
        };
        ender.shutdown().await.expect("ended");
        for _ in 0..12 {
            sleep(PAUSE).await;
            other.write_all(b".").await.expect("written");
            assert_eq!(ender.read_u8().await.expect("read"), b'.');
        }
        expect_reset(ender).await;
        assert_eq!(rig.end().await, SpliceEnd::HalfOpen);
    }
}

#[tokio::test]
async fn a_flow_that_is_dropped_is_reset_on_both_sides() {
    let mut rig = Rig::new(b"", bounds(LONG, LONG)).await;
    rig.agent.write_all(b".").await.expect("written");
    assert_eq!(rig.upstream.read_u8().await.expect("read"), b'.');
    rig.relay.abort();
    assert!(rig.relay.await.expect_err("cut").is_cancelled());
    expect_reset(&mut rig.agent).await;
    expect_reset(&mut rig.upstream).await;
}

#[tokio::test]
async fn a_flow_takes_little_memory() {
    let ((agent, _a), (upstream, _u)) = tokio::join!(connection(), connection());
    let traffic = Traffic::default();
    let agent_key = AgentKey::new(&GroupName("red".into()), [192, 0, 2, 1].into());
    let share = Capacity::new(1).share(&agent_key, &Limits::default(), 1).expect("room");
    let taken = share.taken();
    let flow = run(agent, upstream, Bytes::new(), (&traffic, &taken), LONG);
    assert!(size_of_val(&flow) <= 1024, "{}", size_of_val(&flow));
}
