//! Datagrams of an agent to a target that no agent may reach: they show for how long packet rules
//! were missing.

use std::{
    net::{IpAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::net::{AGENT, Ns};

/// Receivers of datagrams at [`SERVICE`], and the times of their arrival.
pub struct Target {
    addresses: [IpAddr; 2],
    came: Arc<Mutex<Vec<Instant>>>,
}

impl Target {
    /// Listens at these addresses of this namespace.
    ///
    /// # Panics
    /// When it cannot.
    pub fn of(ns: Ns, addresses: [IpAddr; 2]) -> Self {
        let came = Arc::new(Mutex::new(Vec::new()));
        for address in addresses {
            let socket = ns.enter(|| UdpSocket::bind((address, SERVICE)).expect("bound"));
            let came = Arc::clone(&came);
            thread::spawn(move || {
                while socket.recv_from(&mut [0; 16]).is_ok() {
                    came.lock().expect("no panic").push(Instant::now());
                }
            });
        }
        Self { addresses, came }
    }

    /// Returns when datagrams came since the last [`Target::take`].
    ///
    /// # Panics
    /// When its thread has.
    pub fn reached(&self) -> Vec<Instant> {
        self.came.lock().expect("no panic").clone()
    }

    /// Does the same as [`Target::reached`], and forgets the times.
    ///
    /// # Panics
    /// When its thread has.
    pub fn take(&self) -> Vec<Instant> {
        std::mem::take(&mut self.came.lock().expect("no panic"))
    }
}

/// An agent that keeps sending datagrams, one to each address every few milliseconds.
pub struct Sending {
    thread: thread::JoinHandle<usize>,
    ending: Arc<AtomicBool>,
}

impl Sending {
    /// Begins to send from the first agent.
    ///
    /// # Panics
    /// When it has no socket.
    pub fn to(targets: &[&Target]) -> Self {
        let to: Vec<_> = targets.iter().flat_map(|target| target.addresses).collect();
        let (v4, v6) = AGENT.enter(|| {
            let bind = |any| UdpSocket::bind((any, 0)).expect("bound");
            (bind("0.0.0.0"), bind("::"))
        });
        let ending = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ending);
        let thread = thread::spawn(move || {
            let mut sent = 0;
            while !told.load(Relaxed) && sent < MOST_SENT {
                for address in &to {
                    let socket = if address.is_ipv4() { &v4 } else { &v6 };
                    // An error here is the refusal of an earlier datagram.
                    let _ = socket.send_to(b"anybody?", (*address, SERVICE));
                    sent += 1;
                }
                thread::sleep(Duration::from_millis(2));
            }
            sent
        });
        Self { thread, ending }
    }

    /// Stops, and returns how many datagrams left.
    ///
    /// # Panics
    /// When its thread has.
    pub fn ended(self) -> usize {
        self.ending.store(true, Relaxed);
        self.thread.join().expect("no panic")
    }
}

/// A port that no policy names.
pub const SERVICE: u16 = 8200;
const MOST_SENT: usize = 100_000;
