//! Compressed answers.
//!
//! | path | answer |
//! |---|---|
//! | `/v1/coded?coding=C` | a text in gzip, deflate, raw (deflate without its frame), br or zstd, where the request accepts it |
//! | `&unasked=1` | in that coding whatever it accepts |
//! | `&echo=1` | the credential in [`forms`] |
//! | `&bytes=N` | N bytes a chunk |
//! | `&cut=N` | without the last N bytes |
//! | `&more=1` | with something behind it |
//! | `&zeros=N` | N zeros in place of the text |
//! | `&status=N` | the head alone, with that status |
//! | `/v1/coded-events?n=5&ms=100` | events in gzip, flushed one by one |

use std::io::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use flate2::{Compression, write};
use http::{HeaderValue, StatusCode, header};
use http_body::Frame;

use super::{
    answer::{Answer, credential, number, parameter, pause, streamed, without_body},
    record::Received,
};

/// The part of the text that holds no secret.
pub const TEXT: &str = "{\"a text\": \"that is compressed, that is compressed\"}\n";

pub(super) fn answer(request: &Received) -> Answer {
    let coding = parameter(&request.uri, "coding").unwrap_or("gzip");
    let name = if coding == "raw" { "deflate" } else { coding };
    let accepted = request.header("accept-encoding").join(",");
    let is_coded = accepted.contains(name) || has(request, "unasked");
    let mut body = if is_coded { encode(coding, &text(request)) } else { text(request) };
    let cut = usize::try_from(number(request, "cut").unwrap_or(0)).unwrap_or(0);
    body.truncate(body.len().saturating_sub(cut));
    if has(request, "more") {
        body.extend(b"and more");
    }
    let length = body.len();
    let bytes = number(request, "bytes").and_then(|bytes| usize::try_from(bytes).ok());
    let mut answer = streamed("application/json", move |frames| async move {
        for chunk in body.chunks(bytes.unwrap_or(16 * 1024).max(1)) {
            if frames.send(Ok(Frame::data(Bytes::copy_from_slice(chunk)))).await.is_err() {
                break;
            }
        }
    });
    let headers = answer.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.insert(header::ETAG, HeaderValue::from_static("\"of-the-text\""));
    if bytes.is_none() {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if is_coded && let Ok(name) = HeaderValue::from_str(name) {
        headers.insert(header::CONTENT_ENCODING, name);
    }
    if let Some(status) = number(request, "status") {
        let status = u16::try_from(status).ok().and_then(|it| StatusCode::from_u16(it).ok());
        *answer.status_mut() = status.expect("a status");
        // RFC 9110, section 8.6: a 204 has no length, and a 304 has the length of the answer it
        // stands for.
        answer.headers_mut().remove(header::CONTENT_LENGTH);
        without_body(&mut answer);
    }
    answer
}

pub(super) fn events(request: &Received) -> Answer {
    let (count, pause) = (number(request, "n").unwrap_or(5), pause(request));
    let mut answer = streamed("text/event-stream", move |frames| async move {
        let mut gzip = write::GzEncoder::new(Vec::new(), Compression::default());
        for event in 0..count {
            let written = gzip.write_all(format!("data: event {event}\n\n").as_bytes());
            let flushed = written.and_then(|()| gzip.flush());
            let frame = flushed.map(|()| Frame::data(std::mem::take(gzip.get_mut()).into()));
            if frames.send(frame).await.is_err() {
                return;
            }
            tokio::time::sleep(pause).await;
        }
        let _ = frames.send(gzip.finish().map(|end| Frame::data(end.into()))).await;
    });
    answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    answer
}

/// Returns a secret as other programs write it: as it is, percent-encoded, for JSON, in base64 and
/// in hexadecimal.
pub fn forms(secret: &str) -> Vec<String> {
    let each = |write: fn(u8) -> String| secret.bytes().map(write).collect::<String>();
    vec![
        secret.to_owned(),
        each(|byte| format!("%{byte:02X}")),
        each(|byte| format!("\\u{byte:04x}")),
        STANDARD.encode(secret),
        each(|byte| format!("{byte:02x}")),
    ]
}

fn text(request: &Received) -> Vec<u8> {
    if let Some(zeros) = number(request, "zeros") {
        return vec![0; usize::try_from(zeros).unwrap_or(0)];
    }
    if !has(request, "echo") {
        return TEXT.into();
    }
    let credential = credential(request);
    let secret = credential.rsplit(' ').next().unwrap_or_default();
    forms(secret).join("\n").into_bytes()
}

fn has(request: &Received, name: &str) -> bool {
    parameter(&request.uri, name).is_some()
}

/// Encodes a text. Writing into memory does not fail.
fn encode(coding: &str, text: &[u8]) -> Vec<u8> {
    let level = Compression::default();
    let encoded = match coding {
        "deflate" => {
            let mut zlib = write::ZlibEncoder::new(Vec::new(), level);
            zlib.write_all(text).and_then(|()| zlib.finish())
        }
        "raw" => {
            let mut raw = write::DeflateEncoder::new(Vec::new(), level);
            raw.write_all(text).and_then(|()| raw.finish())
        }
        "br" => {
            let mut br = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            br.write_all(text).map(|()| br.into_inner())
        }
        "zstd" => {
            let mut out = vec![0; zstd_safe::compress_bound(text.len())];
            let length = zstd_safe::compress(&mut out[..], text, 3).expect("there is room");
            out.truncate(length);
            Ok(out)
        }
        _ => {
            let mut gzip = write::GzEncoder::new(Vec::new(), level);
            gzip.write_all(text).and_then(|()| gzip.finish())
        }
    };
    encoded.expect("memory takes it")
}
