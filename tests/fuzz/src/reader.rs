//! hyper, which reads behind our parsers, and what it understands of a stream.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    convert::Infallible,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use cloakroom::policy::Limits;
use http::{HeaderMap, Method, Request, Response, Version, request::Parts};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    runtime::{Builder, Runtime},
};

/// A request that was read from a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) version: Version,
    pub(crate) fields: Fields,
    /// The part of the body that was read.
    pub(crate) body: Vec<u8>,
    /// The trailers, once the body has come to its end.
    pub(crate) end: Option<Fields>,
}

/// The values of each field, by its name in small letters.
pub(crate) type Fields = BTreeMap<String, Vec<Vec<u8>>>;

/// Adds a value after those that the field has.
pub(crate) fn add(fields: &mut Fields, name: &str, value: &[u8]) {
    fields.entry(name.to_ascii_lowercase()).or_default().push(value.to_vec());
}

pub(crate) fn fields_of(headers: &HeaderMap) -> Fields {
    let mut fields = Fields::new();
    headers.iter().for_each(|(name, value)| add(&mut fields, name.as_str(), value.as_bytes()));
    fields
}

/// Returns the requests that hyper's server reads from a stream that ends, with the gateway's
/// settings.
pub(crate) fn requests(stream: &[u8]) -> Vec<Message> {
    let read = RefCell::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        // A request counts as read even where hyper never looks at the answer to it.
        let number = read.borrow().len();
        read.borrow_mut().push(message(&head));
        let read = &read;
        async move {
            let (body, end) = whole(body).await;
            let message = &mut read.borrow_mut()[number];
            (message.body, message.end) = (body, end);
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let limits = Limits::default();
    let mut server = http1::Builder::new();
    server.max_headers(limits.head_fields).max_buf_size(limits.head_bytes + REQUEST_BUFFER);
    // The last request is read to its end although the stream ends behind it.
    server.half_close(true);
    // The requests that were read show how it ended.
    let _ = block_on(server.serve_connection(Whole(stream), service));
    read.into_inner()
}

fn message(head: &Parts) -> Message {
    Message {
        method: head.method.clone(),
        target: head.uri.to_string(),
        version: head.version,
        fields: fields_of(&head.headers),
        body: Vec::new(),
        end: None,
    }
}

/// Returns the part of a body that is there, and its trailers if it comes to its end.
async fn whole(mut incoming: Incoming) -> (Vec<u8>, Option<Fields>) {
    let (mut body, mut trailers) = (Vec::new(), Fields::new());
    loop {
        match incoming.frame().await {
            None => return (body, Some(trailers)),
            Some(Err(_)) => return (body, None),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => body.extend_from_slice(&data),
                Err(frame) => trailers = fields_of(&frame.into_trailers().unwrap_or_default()),
            },
        }
    }
}

/// Runs a future that waits for nothing except a clock.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    thread_local! {
        static RUNTIME: Runtime =
            Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// A stream that is there at once; written bytes are dropped.
struct Whole<'a>(&'a [u8]);

impl Read for Whole<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut out: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let (taken, rest) = self.0.split_at(self.0.len().min(out.remaining()));
        out.put_slice(taken);
        self.0 = rest;
        Poll::Ready(Ok(()))
    }
}

impl Write for Whole<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, b: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(b.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A stream that comes in pieces of at most `most` bytes.
pub(crate) struct Pieces<'a> {
    pub(crate) left: &'a [u8],
    pub(crate) most: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = self.left.len().min(out.remaining()).min(self.most);
        let (taken, rest) = self.left.split_at(most);
        out.put_slice(taken);
        self.left = rest;
        Poll::Ready(Ok(()))
    }
}

/// Bytes of the buffer that the gateway gives hyper beyond the longest head.
const REQUEST_BUFFER: usize = 16 * 1024;
