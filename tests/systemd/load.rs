//! New connections and DNS queries at a steady rate, whatever becomes of earlier ones, and how long
//! each of them waited.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use lab::net::{AGENT, GATEWAY_V4, PYPI};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{MissedTickBehavior, interval, timeout},
};

/// The result of each: when it began, and how long it took or why it failed.
type Ended = Arc<Mutex<Vec<(Instant, Result<Duration, String>)>>>;

/// A running load of the first agent.
pub struct Load {
    stop: Arc<AtomicBool>,
    connections: Ended,
    lookups: Ended,
}

impl Load {
    /// Begins with this many connections and DNS queries a second.
    pub fn start(connections: u32, lookups: u32) -> Self {
        let load =
            Self { stop: Arc::default(), connections: Arc::default(), lookups: Arc::default() };
        let (stop, ended) = (Arc::clone(&load.stop), Arc::clone(&load.connections));
        AGENT.spawn(move || repeat(connections, stop, ended, connection));
        let (stop, ended) = (Arc::clone(&load.stop), Arc::clone(&load.lookups));
        AGENT.spawn(move || repeat(lookups, stop, ended, lookup));
        load
    }

    /// Ends, and requires that none failed and none waited longer than this. The report of the
    /// slowest counts from `restart`.
    #[track_caller]
    pub fn assert_none_waited(self, most: Duration, restart: Instant) {
        std::thread::sleep(GIVEN_UP);
        self.stop.store(true, SeqCst);
        std::thread::sleep(GIVEN_UP);
        for (what, ended) in [("connection", self.connections), ("look-up", self.lookups)] {
            let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
            let failed: Vec<_> = ended.iter().filter_map(|(_, one)| one.as_ref().err()).collect();
            let took = |(_, one): &(Instant, Result<Duration, String>)| one.clone().ok();
            let slowest = ended.iter().filter_map(took).max();
            println!("{} of {what}, slowest {slowest:?}, {} failed", ended.len(), failed.len());
            let slow = ended.iter().filter(|one| took(one).is_none_or(|took| took > most / 2));
            for (begun, end) in slow.take(SHOWN) {
                let at = begun.duration_since(restart).as_secs_f32()
                    - restart.duration_since(*begun).as_secs_f32();
                println!("  begun {at:+.3} s after the restart: {end:?}");
            }
            assert!(failed.is_empty(), "{} of {what} failed: {:?}", failed.len(), failed.first());
            assert!(slowest.is_some_and(|it| it < most), "a {what} waited {slowest:?}");
        }
    }
}

async fn repeat<F: Future<Output = io::Result<()>> + Send + 'static>(
    rate: u32,
    stop: Arc<AtomicBool>,
    ended: Ended,
    one: fn() -> F,
) {
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        if stop.load(SeqCst) {
            return tokio::time::sleep(GIVEN_UP).await;
        }
        let ended = Arc::clone(&ended);
        tokio::spawn(async move {
            let begun = Instant::now();
            let done = match timeout(GIVEN_UP, one()).await {
                Ok(Ok(())) => Ok(begun.elapsed()),
                Ok(Err(error)) => Err(format!("{error}")),
                Err(_) => Err("given up".to_owned()),
            };
            ended.lock().unwrap_or_else(PoisonError::into_inner).push((begun, done));
        });
    }
}

async fn connection() -> io::Result<()> {
    let mut stream = TcpStream::connect(PYPI.port(80)).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: pypi.example\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    match answer.starts_with(b"HTTP/1.1 200") {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned())),
    }
}

/// Returns whether an agent is answered.
pub fn lookup_once() -> bool {
    let (told, answer) = std::sync::mpsc::channel();
    AGENT.spawn(async move || {
        let _ = told.send(timeout(GIVEN_UP, lookup()).await.is_ok_and(|it| it.is_ok()));
    });
    answer.recv().unwrap_or(false)
}

/// Sends a query for the address of a listed name (RFC 1035, section 4.1).
async fn lookup() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(SocketAddr::from((GATEWAY_V4, 53))).await?;
    let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let question = b"\x04pypi\x07example\x00\x00\x01\x00\x01";
    socket.send(&[&header[..], question].concat()).await?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).await?;
    match (answer[3] & 0x0f, u16::from_be_bytes([answer[6], answer[7]])) {
        (0, 1..) => Ok(()),
        (code, _) => Err(io::Error::other(format!("code {code}, {length} bytes"))),
    }
}

/// Number of slow ones that are reported.
const SHOWN: usize = 20;
/// Time after which one is given up. It is longer than any may wait, so that those that waited too
/// long are seen.
const GIVEN_UP: Duration = Duration::from_secs(4);
