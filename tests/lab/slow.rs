//! A relay before a server, which can delay the server's answers.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use crate::net::INTERNET;

/// A running relay. It ends with the sandbox.
pub struct Slow {
    held_millis: Arc<AtomicU64>,
}

impl Slow {
    /// Relays connections to `at` on to `to`, both on the lab's internet.
    ///
    /// # Panics
    /// When it cannot listen at the address.
    pub fn start(at: SocketAddr, to: SocketAddr) -> Self {
        let listener = INTERNET.enter(|| TcpListener::bind(at)).expect("a free port");
        let held_millis = Arc::<AtomicU64>::default();
        let held = Arc::clone(&held_millis);
        thread::spawn(move || {
            for client in listener.incoming().filter_map(Result::ok) {
                let Ok(server) = INTERNET.connect(to) else { continue };
                let _ = server.set_read_timeout(None);
                let (from, into) = (client.try_clone(), server.try_clone());
                let (Ok(from), Ok(into)) = (from, into) else { continue };
                let held = Arc::clone(&held);
                thread::spawn(move || copy(from, into, &AtomicU64::new(0)));
                thread::spawn(move || copy(server, client, &held));
            }
        });
        Self { held_millis }
    }

    /// Delays each part of an answer by this time from now on.
    pub fn answers_after(&self, time: Duration) {
        self.held_millis.store(time.as_millis().try_into().unwrap_or(u64::MAX), SeqCst);
    }
}

fn copy(mut from: TcpStream, mut into: TcpStream, held_millis: &AtomicU64) {
    let mut bytes = [0; 16_384];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        thread::sleep(Duration::from_millis(held_millis.load(SeqCst)));
        if into.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
