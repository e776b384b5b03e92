//! A recording of the packets that a namespace sends and receives, which reports every gap.

use std::{
    fs,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SocketType, eth, recv, socket,
    sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force},
};

use crate::{net::Ns, wait};

/// A recording of every packet that a namespace sends and receives. Reading it panics if the kernel
/// had to leave a packet out.
pub struct Capture {
    ns: Ns,
    /// The inode by which the kernel lists its socket.
    inode: u64,
    packets: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Capture {
    pub(crate) fn start(ns: Ns) -> Self {
        let socket = ns.enter(|| {
            let socket = socket(AddressFamily::PACKET, SocketType::RAW, Some(eth::ALL));
            let socket = socket.expect("the sandbox may read packets");
            // A recorder that is not scheduled for a while must not lose packets.
            // Only root may have this much; others get twice what the machine gives to everybody.
            if set_socket_recv_buffer_size_force(&socket, 64 << 20).is_err() {
                let _ = set_socket_recv_buffer_size(&socket, 64 << 20);
            }
            socket
        });
        let inode = fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd()));
        let inode = inode.expect("a socket").ino();
        let packets = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let recorded = Arc::clone(&packets);
        thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            while let Ok((length, _)) = recv(&socket, &mut buffer[..], RecvFlags::empty()) {
                let mut packets = recorded.lock().unwrap_or_else(PoisonError::into_inner);
                packets.push(buffer[..length].to_vec());
            }
        });
        Self { ns, inode, packets }
    }

    /// Returns everything on the wire so far, one packet after the other.
    pub fn bytes(&self) -> Vec<u8> {
        self.packets().concat()
    }

    /// Returns every packet so far, with its Ethernet header.
    ///
    /// # Panics
    /// When one is missing.
    pub fn packets(&self) -> Vec<Vec<u8>> {
        // Packets under way get time to arrive, and the recorder's thread time to read them.
        thread::sleep(wait::QUIET);
        wait::expect("the recorder reads what is queued", || self.memory("r") == 0);
        let lost = self.memory("d");
        assert_eq!(lost, 0, "packets that the capture in {:?} had no room for", self.ns);
        // The recorder may have taken the last packet off the queue and not have stored it yet.
        thread::sleep(Duration::from_millis(20));
        self.packets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the kernel's figures of the socket's memory: `r` for the bytes that wait in it, `d`
    /// for the packets that found no room.
    fn memory(&self, of: &str) -> u64 {
        let listed = self.ns.enter(|| Command::new("ss").args(["-H0me"]).output());
        let listed = String::from_utf8_lossy(&listed.expect("ss starts").stdout).into_owned();
        let ours = listed.split_once(&format!("ino:{} ", self.inode));
        let memory = ours.and_then(|(_, rest)| rest.split_once("skmem:(")?.1.split_once(')'));
        let numbers = memory.map(|(numbers, _)| numbers.split(','));
        let number =
            numbers.and_then(|mut each| each.find_map(|it| it.strip_prefix(of)?.parse().ok()));
        number.unwrap_or_else(|| panic!("no packet_diag in this kernel? ss says:\n{listed}"))
    }

    /// Returns whether `text` was on the wire, within one packet and in any mixture of capitals:
    /// names are asked for in such mixtures.
    pub fn holds(&self, text: &str) -> bool {
        let (bytes, text) = (self.bytes().to_ascii_lowercase(), text.to_ascii_lowercase());
        bytes.windows(text.len().max(1)).any(|at| at == text.as_bytes())
    }
}
