//! Changes of packet rules are heard at once: nf_tables tells each transaction to whoever listens
//! (`NFNLGRP_NFTABLES`; `nft monitor` prints the same).
//!
//! A message is a reason to look and nothing more: the reader then looks at the kernel's tables
//! themselves. It errs towards looking: where more is told than there is room for, that is a change
//! too.

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

/// A subscription to what changes in nf_tables.
pub struct Monitor {
    socket: TokioSocket,
    buffer: Vec<u8>,
    /// Whether something was told for which there was no room, and may be again until all that is
    /// there has been read: the kernel says so once (`netlink_overrun`).
    lost: bool,
    /// Whether there is a reason to look that nobody has looked for yet.
    due: bool,
    /// No look before.
    rest: Instant,
}

impl Monitor {
    /// Subscribes in the network namespace of this thread, on its runtime. An earlier change is a
    /// reason to look, too.
    ///
    /// # Errors
    ///
    /// Where the capability or nf_tables is missing.
    pub fn open() -> Result<Self, PacketsError> {
        let failed = |source| netlink_error("listen to changes of packet rules", source);
        let mut socket = TokioSocket::new(protocols::NETLINK_NETFILTER).map_err(failed)?;
        let inner = socket.socket_mut();
        inner.set_rx_buf_sz(BUFFER_BYTES).map_err(failed)?;
        inner.bind(&SocketAddr::new(0, NFTABLES_GROUP)).map_err(failed)?;
        let buffer = Vec::with_capacity(READ_BYTES);
        Ok(Self { socket, buffer, lost: false, due: true, rest: Instant::now() })
    }

    /// Waits until somebody, this process included, has touched a table of ours or the guard, or
    /// may have. However often that happens, looks are apart by what [`Self::looked`] was told.
    /// Can be dropped while it waits, and nothing is lost.
    pub async fn changed(&mut self) {
        tokio::time::sleep_until(self.rest).await;
        while !self.due {
            self.buffer.clear();
            let heard = self.socket.recv(&mut self.buffer).await;
            self.hear(heard.map(drop));
        }
        self.drain();
    }

    /// Says that somebody has looked since the last change, and for how long: as long a pause
    /// follows, within bounds, for what else wants the processor.
    pub fn looked(&mut self, time: Duration) {
        self.due = false;
        self.rest = Instant::now() + time.clamp(LEAST_REST, LONGEST_REST);
    }

    /// Has [`Self::changed`] return after the pause, whatever is told.
    pub fn look_again(&mut self) {
        self.due = true;
    }

    /// Reads what is there, up to a bound: one look answers all of it.
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

    /// Takes what is in the buffer.
    fn hear(&mut self, heard: io::Result<()>) {
        match heard {
            Ok(()) => self.due |= self.lost || touches(&self.buffer),
            // No room (ENOBUFS), or something that says even less.
            Err(_) => (self.lost, self.due) = (true, true),
        }
    }
}

/// Whether a datagram tells of one of our tables. A message about a table names it in its first
/// attribute; a transaction's number, which belongs to none, has four bytes there.
fn touches(datagram: &[u8]) -> bool {
    messages(datagram).any(|message| {
        let body = message.payload.get(netlink::GENMSG_BYTES..).unwrap_or_default();
        matches!(text(body, NFTA_TABLE), Some(TABLE | BASE_TABLE))
    })
}

/// linux/netfilter/nf_tables.h: the table's name is attribute 1 of every object.
const NFTA_TABLE: u16 = 1;
/// `NFNLGRP_NFTABLES`, as `bind` takes groups (`netlink(7)`).
const NFTABLES_GROUP: u32 = 1 << (libc::NFNLGRP_NFTABLES - 1);
/// Room for a transaction of some thousand rules.
const BUFFER_BYTES: usize = 1024 * 1024;
/// The largest datagram that the kernel makes of notifications is a page or two.
const READ_BYTES: usize = 64 * 1024;
/// Datagrams that are read in one go.
const READS: usize = 256;
/// Pause after a look. The longest leaves the table time to be back within a tenth of a second.
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
