//! The bytes that the origins received.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wait;

/// The record of everything received. A clone is the same record.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Connection>>>);

/// One TCP connection, from the moment it was accepted.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The address and port that were dialled.
    pub local: SocketAddr,
    /// The address and port of the client.
    pub peer: SocketAddr,
    /// Whether the port speaks TLS.
    pub tls: bool,
    /// The name in the ClientHello, once the handshake is done.
    pub sni: Option<String>,
    /// The agreed application protocol.
    pub alpn: Option<String>,
    /// Every byte received, after decryption, up to [`MOST_KEPT`].
    pub bytes: Vec<u8>,
    /// The HTTP requests in these bytes, each complete.
    pub requests: Vec<Received>,
    /// Whether it has ended.
    pub closed: bool,
    /// The error with which it failed, if it did.
    pub failure: Option<String>,
}

/// Bytes of a connection that are kept: more than any test sends whose bytes are looked at.
pub const MOST_KEPT: usize = 1 << 30;

/// One HTTP request, complete with body and trailers.
#[derive(Debug, Clone)]
pub struct Received {
    /// HTTP/1.1 or HTTP/2.
    pub version: Version,
    /// The method.
    pub method: Method,
    /// The target; with HTTP/2 it holds `:scheme` and `:authority`.
    pub uri: Uri,
    /// The header fields, in the order of arrival for each name.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailer fields.
    pub trailers: HeaderMap,
}

impl Received {
    /// Returns all values of a header field.
    pub fn header(&self, name: &str) -> Vec<String> {
        let values = self.headers.get_all(name).iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    }

    /// Returns `:authority` or Host.
    pub fn authority(&self) -> String {
        let authority = self.uri.authority().map(ToString::to_string);
        authority.or_else(|| self.header("host").into_iter().next()).unwrap_or_default()
    }
}

impl Connection {
    /// Returns how often `needle` occurs in the bytes received. Meaningful for HTTP/1 only: HTTP/2
    /// packs its header fields.
    pub fn count(&self, needle: &str) -> usize {
        self.bytes.windows(needle.len().max(1)).filter(|at| *at == needle.as_bytes()).count()
    }
}

impl Log {
    /// Returns every connection so far.
    pub fn connections(&self) -> Vec<Connection> {
        self.lock().clone()
    }

    /// Returns every complete request so far, in order of the connections.
    pub fn requests(&self) -> Vec<Received> {
        self.lock().iter().flat_map(|connection| connection.requests.clone()).collect()
    }

    /// Waits for `count` requests and returns them.
    ///
    /// # Panics
    /// When they do not arrive, or more do.
    #[track_caller]
    pub fn wait_requests(&self, count: usize) -> Vec<Received> {
        wait::expect(&format!("{count} requests at the origin"), || self.requests().len() >= count);
        let requests = self.requests();
        assert_eq!(requests.len(), count, "more requests than expected: {requests:#?}");
        requests
    }

    /// Waits until every connection has ended.
    ///
    /// # Panics
    /// When one does not.
    #[track_caller]
    pub fn wait_all_closed(&self) {
        wait::expect("every connection at the origin has ended", || {
            self.lock().iter().all(|connection| connection.closed)
        });
    }

    /// Checks for a moment that no connection has arrived or arrives.
    ///
    /// # Panics
    /// When one does. The panic shows what it brought.
    #[track_caller]
    pub fn assert_untouched(&self) {
        std::thread::sleep(wait::QUIET);
        let connections = self.connections();
        assert!(connections.is_empty(), "something reached the origins: {connections:#?}");
    }

    /// Checks for a moment that no request has arrived or arrives; connections may.
    ///
    /// # Panics
    /// When one does.
    #[track_caller]
    pub fn assert_no_request(&self) {
        std::thread::sleep(wait::QUIET);
        for connection in self.connections() {
            assert!(connection.requests.is_empty(), "a request arrived: {connection:#?}");
            let text = String::from_utf8_lossy(&connection.bytes).into_owned();
            assert!(!text.contains("HTTP/1"), "a request head arrived: {text}");
        }
    }

    /// Returns whether `needle` is in any byte received, or any header field or body of any
    /// request.
    pub fn holds(&self, needle: &str) -> bool {
        let of = |request: &Received| {
            let fields = request.headers.iter().chain(request.trailers.iter());
            let mut all: Vec<u8> = fields
                .flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()].concat())
                .collect();
            all.extend_from_slice(request.uri.to_string().as_bytes());
            all.extend_from_slice(&request.body);
            contains(&all, needle)
        };
        self.lock().iter().any(|connection| {
            contains(&connection.bytes, needle) || connection.requests.iter().any(of)
        })
    }

    /// Forgets everything.
    ///
    /// # Panics
    /// When a connection is still open: its place in the record is in use.
    pub fn clear(&self) {
        self.wait_all_closed();
        self.lock().clear();
    }

    pub(super) fn opened(&self, local: SocketAddr, peer: SocketAddr, tls: bool) -> usize {
        let mut all = self.lock();
        all.push(Connection {
            local,
            peer,
            tls,
            sni: None,
            alpn: None,
            bytes: Vec::new(),
            requests: Vec::new(),
            closed: false,
            failure: None,
        });
        all.len() - 1
    }

    pub(super) fn shook_hands(&self, id: usize, sni: Option<&str>, alpn: Option<&[u8]>) {
        self.at(id, |connection| {
            connection.sni = sni.map(str::to_owned);
            connection.alpn = alpn.map(|alpn| String::from_utf8_lossy(alpn).into_owned());
        });
    }

    pub(super) fn received(&self, id: usize, request: Received) {
        self.at(id, |connection| connection.requests.push(request));
    }

    pub(super) fn closed(&self, id: usize, failure: Option<String>) {
        self.at(id, |connection| {
            connection.closed = true;
            connection.failure = failure;
        });
    }

    pub(super) fn tee<S>(&self, id: usize, stream: S) -> Tee<S> {
        Tee { stream, id, log: self.clone() }
    }

    fn at(&self, id: usize, change: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.lock().get_mut(id) {
            change(connection);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn contains(bytes: &[u8], needle: &str) -> bool {
    bytes.windows(needle.len().max(1)).any(|at| at == needle.as_bytes())
}

/// A stream that records the bytes read from it.
pub(super) struct Tee<S> {
    stream: S,
    id: usize,
    log: Log,
}

impl<S: AsyncRead + Unpin> AsyncRead for Tee<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let new = &buffer.filled()[before..];
        self.log.at(self.id, |connection| {
            let room = MOST_KEPT.saturating_sub(connection.bytes.len());
            connection.bytes.extend_from_slice(&new[..new.len().min(room)]);
        });
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tee<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
