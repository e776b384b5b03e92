//! Subscribes to changes of packet rules: nf_tables announces each transaction to its subscribers
//! (`NFNLGRP_NFTABLES`; `nft monitor` prints the same).
//!
//! A message is only a reason to look: the reader then looks at the kernel's tables themselves.
//! Errs towards looking: a message for which there was no room counts as a change too.

use std::{io, time::Duration};

use nftnl::nftnl_sys::libc;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols};
use tokio::time::Instant;

use super::{
    super::{
        error::{PacketsError, netlink_error},
        ruleset::language::TABLE,
    },
    netlink::{self, messages, text},
    readback::BASE_TABLE,
};

/// A subscription to the changes in nf_tables.
pub struct Monitor {
    socket: TokioSocket,
    buffer: Vec<u8>,
    /// Whether a message was lost for lack of room, and others may be until all waiting messages
    /// have been read: the kernel reports it only once (`netlink_overrun`).
    lost: bool,
    /// Whether there is a reason to look that nobody has acted on yet.
    due: bool,
    /// The time of the earliest next look.
    rest: Instant,
}

impl Monitor {
    /// Subscribes in the network namespace of this thread, on its runtime. Because there may have
    /// been earlier changes, the first look is due at once.
    ///
    /// # Errors
    ///
    /// The capability or nf_tables is missing.
    pub fn open() -> Result<Self, PacketsError> {
        let failed = |source| netlink_error("listen to changes of packet rules", source);
        let mut socket = TokioSocket::new(protocols::NETLINK_NETFILTER).map_err(failed)?;
        let inner = socket.socket_mut();
        inner.set_rx_buf_sz(BUFFER_BYTES).map_err(failed)?;
        inner.bind(&SocketAddr::new(0, NFTABLES_GROUP)).map_err(failed)?;
        let buffer = Vec::with_capacity(READ_BYTES);
        Ok(Self { socket, buffer, lost: false, due: true, rest: Instant::now() })
    }

    /// Waits until some process, which may be this one, has touched a table of ours or the guard,
    /// or may have. However often that happens, looks are separated by the pause of
    /// [`Self::looked`]. Can be dropped while it waits, and nothing is lost.
    pub async fn changed(&mut self) {
        tokio::time::sleep_until(self.rest).await;
        while !self.due {
            self.buffer.clear();
            let heard = self.socket.recv(&mut self.buffer).await;
            self.hear(heard.map(drop));
        }
        self.drain();
    }

    /// Notes that the tables were looked at since the last change, and for how long. A pause as
    /// long as that follows, within bounds, to leave the processor to others.
    pub fn looked(&mut self, time: Duration) {
        self.due = false;
        self.rest = Instant::now() + time.clamp(LEAST_REST, LONGEST_REST);
    }

    /// Makes [`Self::changed`] return after the pause, even without a message.
    pub fn look_again(&mut self) {
        self.due = true;
    }

    /// Reads the waiting messages, up to a bound: one look answers all of them.
    fn drain(&mut self) {
        for _ in 0..READS {
            self.buffer.clear();
            match self.socket.socket_ref().recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.lost = false;
                    return;
                }
                heard => self.hear(heard.map(drop)),
            }
        }
    }

    /// Processes the message in the buffer.
    fn hear(&mut self, heard: io::Result<()>) {
        match heard {
            Ok(()) => self.due |= self.lost || touches(&self.buffer),
            // There was no room (ENOBUFS), or an error that tells even less.
            Err(_) => (self.lost, self.due) = (true, true),
        }
    }
}

/// Returns whether a datagram is about one of our tables. A message about a table names it in its
/// first attribute; that of a transaction, which belongs to no table, has a number of four bytes
/// there.
fn touches(datagram: &[u8]) -> bool {
    messages(datagram).any(|message| {
        let body = message.payload.get(netlink::GENMSG_BYTES..).unwrap_or_default();
        matches!(text(body, NFTA_TABLE), Some(TABLE | BASE_TABLE))
    })
}

/// The number of the table's name in every object (linux/netfilter/nf_tables.h).
const NFTA_TABLE: u16 = 1;
/// `NFNLGRP_NFTABLES`, in the form that `bind` takes (`netlink(7)`).
const NFTABLES_GROUP: u32 = 1 << (libc::NFNLGRP_NFTABLES - 1);
/// Room for a transaction of some thousand rules.
const BUFFER_BYTES: usize = 1024 * 1024;
/// Bytes of a read. The kernel's largest datagram of notifications has a page or two.
const READ_BYTES: usize = 64 * 1024;
/// Datagrams that are read at once.
const READS: usize = 256;
/// Pause after a look. The longest still allows the table to be restored within a tenth of a
/// second.
const LEAST_REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(kind: i32, attribute: &[u8]) -> Vec<u8> {
        let mut body = vec![1, 0, 0, 0];
        body.extend(netlink::encode(NFTA_TABLE, attribute));
        netlink::message((libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16, 0, &body)
    }

    #[test]
    fn changes_in_other_peoples_tables_wake_nobody() {
        assert!(touches(&told(libc::NFT_MSG_DELRULE, b"cloakroom\0")));
        assert!(touches(&told(libc::NFT_MSG_DELSETELEM, b"cloakroom_base\0")));
        let others = [
            told(libc::NFT_MSG_NEWRULE, b"filter\0"),
            told(libc::NFT_MSG_NEWSETELEM, b"cloakroom_other\0"),
            told(libc::NFT_MSG_NEWGEN, &[0, 0, 0, 7]),
        ];
        assert!(!touches(&others.concat()));
        let among = [&others.concat()[..], &told(libc::NFT_MSG_DELTABLE, b"cloakroom\0")].concat();
        assert!(touches(&among));
    }

    proptest! {
        #[test]
        fn nothing_that_could_be_told_panics(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = touches(&bytes);
        }
    }
}
