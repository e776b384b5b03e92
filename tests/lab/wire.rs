//! Everything that a thief on the agent's side of the gateway could read: every packet of the
//! agent's link, as it is and decrypted with the keys that the agent's own TLS library wrote down.
//!
//! Decryption is RFC 8446, section 5.2, over reassembled TCP. Errs on the loud side: a connection
//! that completed a handshake and cannot be decrypted to its last byte is a panic, because a
//! missing key would prove nothing about it.

mod tcp;

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    aead::{
        AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
    },
    hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk},
};
use base64::Engine as _;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::net::{Capture, Lab, Ns};

/// A tap on one namespace's links.
pub struct Wire {
    capture: Capture,
    keys: PathBuf,
}

/// One TLS connection in clear text.
#[derive(Debug, Clone)]
pub struct Session {
    /// The address that the client dialled.
    pub to: SocketAddr,
    /// The bytes that the client sent.
    pub sent: Vec<u8>,
    /// The bytes that it received.
    pub received: Vec<u8>,
}

impl Wire {
    /// Records every packet from now on.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn tap(lab: &Lab, ns: Ns) -> Self {
        Self { capture: lab.capture(ns), keys: lab.dir.join("tls-keys") }
    }

    /// Returns the file to which clients must write their keys: the value of `SSLKEYLOGFILE`.
    pub fn keys(&self) -> &Path {
        &self.keys
    }

    /// Returns every TLS connection so far, decrypted.
    ///
    /// # Panics
    /// When one cannot be decrypted.
    pub fn sessions(&self) -> Vec<Session> {
        let keys = KeyLog::read(&self.keys);
        let streams = tcp::reassemble(&self.capture.packets());
        let mut sessions = Vec::new();
        for ((from, to), sent) in &streams {
            let received = streams.get(&(*to, *from)).map_or(&[][..], Vec::as_slice);
            if let (Some(random), Some(suite)) = (client_random(sent), cipher_suite(received)) {
                let open = |side, stream: &[u8]| {
                    let keys = [keys.of(random, side, "HANDSHAKE"), keys.of(random, side, "")];
                    decrypt(stream, suite, keys)
                };
                let (sent, received) = (open("CLIENT", sent), open("SERVER", received));
                sessions.push(Session { to: *to, sent, received });
            }
        }
        sessions
    }

    /// Requires that no form of any of these values was on the wire, neither in the packets as they
    /// are nor in the clear text inside TLS.
    ///
    /// # Panics
    /// When one was.
    #[track_caller]
    pub fn assert_never(&self, values: &[&str]) {
        let raw = self.capture.bytes();
        let sessions = self.sessions();
        for value in values {
            let forms = forms(value);
            assert!(!holds_any(&raw, &forms), "{value} is in a packet");
            for session in &sessions {
                let to = session.to;
                assert!(!holds_any(&session.sent, &forms), "the agent sent {value} to {to}");
                assert!(!holds_any(&session.received, &forms), "{to} sent {value} to the agent");
            }
        }
    }
}

impl Session {
    /// Returns whether the client sent `text`, plainly or as HTTP/2 packs header fields.
    pub fn sends(&self, text: &str) -> bool {
        holds_any(&self.sent, &forms(text))
    }

    /// Returns whether the client received `text`, plainly or as HTTP/2 packs header fields.
    pub fn receives(&self, text: &str) -> bool {
        holds_any(&self.received, &forms(text))
    }
}

/// Returns the byte strings that show that `text` is there: the text itself, its base64 at each
/// alignment, and each of these in HPACK's Huffman code at each alignment.
pub fn forms(text: &str) -> Vec<Vec<u8>> {
    let mut texts = vec![text.to_owned()];
    for before in 0..3 {
        let padded = [&vec![b'\0'; before][..], text.as_bytes()].concat();
        let encoded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(padded);
        // The first and the last quantum also hold bits of the neighbours.
        texts.push(encoded[4..encoded.len() - 4].to_owned());
    }
    let packed: Vec<_> = texts.iter().flat_map(|text| shifted(&huffman(text))).collect();
    texts.into_iter().map(String::into_bytes).chain(packed).collect()
}

/// Returns the certain bytes of a code within a longer one, at each of the eight alignments.
fn shifted(code: &[u8]) -> impl Iterator<Item = Vec<u8>> + use<> {
    // The last byte is filled up with ones.
    let pairs =
        code[..code.len() - 1].windows(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let pairs: Vec<_> = pairs.collect();
    (0..8_u32).map(move |shift| pairs.iter().map(|pair| (pair >> shift).to_be_bytes()[1]).collect())
}

/// Returns `text` in the Huffman code of RFC 7541, section 5.2, as the h2 crate writes it.
fn huffman(text: &str) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let (mut requests, connection) = h2::client::handshake(ours).await.expect("it writes");
        let request = http::Request::get("https://x/").header("x", text).body(()).expect("ASCII");
        let _answer = requests.send_request(request, true).expect("a first request");
        tokio::select! {
            _ = connection => panic!("the connection ended"),
            block = header_block(&mut theirs) => last_string(&block.expect("h2 writes a head")),
        }
    })
}

/// Reads the first header block that an HTTP/2 client sends.
async fn header_block(client: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    client.read_exact(&mut [0; PREFACE.len()]).await?;
    loop {
        let mut head = [0; 9];
        client.read_exact(&mut head).await?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        client.read_exact(&mut payload).await?;
        if head[3] == HEADERS {
            return Ok(payload);
        }
    }
}

/// Returns the value of `x`, the last field of a header block whose strings are all Huffman coded.
fn last_string(block: &[u8]) -> Vec<u8> {
    // Searched with its name before it, because a code may hold bytes that look like a length.
    let start = (3..block.len()).find(|at| {
        let length = u8::try_from(block.len() - at).map(|length| 0x80 | length);
        length.is_ok_and(|length| block[at - 3..*at] == [0x81, 0xf3, length])
    });
    block[start.expect("the last field is a literal")..].to_vec()
}

fn holds_any(bytes: &[u8], forms: &[Vec<u8>]) -> bool {
    forms.iter().any(|form| bytes.windows(form.len()).any(|at| at == form))
}

/// A file in the format of SSLKEYLOGFILE: the secrets by label and client random.
struct KeyLog(HashMap<(String, String), Vec<u8>>);

impl KeyLog {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let entry = |line: &str| {
            let mut words = line.split_whitespace();
            let (label, random, secret) = (words.next()?, words.next()?, words.next()?);
            Some(((label.to_owned(), random.to_lowercase()), unhex(secret)?))
        };
        Self(text.lines().filter_map(entry).collect())
    }

    /// Returns the secret of one side, of the handshake or (`""`) of the application data.
    fn of(&self, random: &[u8], side: &str, phase: &str) -> &[u8] {
        let label = match phase {
            "" => format!("{side}_TRAFFIC_SECRET_0"),
            phase => format!("{side}_{phase}_TRAFFIC_SECRET"),
        };
        let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let found = self.0.get(&(label.clone(), random));
        found.unwrap_or_else(|| panic!("the client did not write down its {label}"))
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..text.len()).step_by(2).map(digit).collect()
}

/// Returns the random of a ClientHello at the start of a stream.
fn client_random(stream: &[u8]) -> Option<&[u8]> {
    (stream.first() == Some(&HANDSHAKE) && stream.get(5) == Some(&1)).then(|| &stream[11..43])
}

/// Returns the suite of a ServerHello at the start of a stream.
fn cipher_suite(stream: &[u8]) -> Option<u16> {
    if stream.first() != Some(&HANDSHAKE) || stream.get(5) != Some(&2) {
        return None;
    }
    let suite = 44 + usize::from(*stream.get(43)?);
    Some(u16::from_be_bytes([*stream.get(suite)?, *stream.get(suite + 1)?]))
}

/// Returns the application data of one direction.
fn decrypt(mut stream: &[u8], suite: u16, secrets: [&[u8]; 2]) -> Vec<u8> {
    let [mut keys, mut next] = secrets.map(|secret| Some(Keys::new(suite, secret)));
    let (mut handshake, mut data) = (Vec::new(), Vec::new());
    while let [kind, major, minor, high, low, rest @ ..] = stream {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((record, rest)) = rest.split_at_checked(length) else { break };
        stream = rest;
        if *kind != APPLICATION_DATA {
            continue;
        }
        let header = [*kind, *major, *minor, *high, *low];
        let clear = keys.as_mut().expect("there are keys").open(header, record);
        match clear.split_last() {
            Some((&HANDSHAKE, message)) => handshake.extend_from_slice(message),
            Some((&APPLICATION_DATA, bytes)) => data.extend_from_slice(bytes),
            _ => {}
        }
        if next.is_some() && finished(&handshake) {
            keys = next.take();
        }
    }
    assert!(!holds_key_update(&handshake), "a key update is beyond this decryption");
    data
}

/// Returns the types of complete handshake messages.
fn messages(mut handshake: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let [kind, a, b, c, rest @ ..] = handshake {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(rest) = rest.get(length..) else { break };
        types.push(*kind);
        handshake = rest;
    }
    types
}

fn finished(handshake: &[u8]) -> bool {
    messages(handshake).contains(&20)
}

fn holds_key_update(handshake: &[u8]) -> bool {
    messages(handshake).contains(&24)
}

/// The keys of one direction in one phase.
struct Keys {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Keys {
    fn new(suite: u16, secret: &[u8]) -> Self {
        let (hash, aead): (_, &'static Algorithm) = match suite {
            0x1301 => (HKDF_SHA256, &AES_128_GCM),
            0x1302 => (HKDF_SHA384, &AES_256_GCM),
            0x1303 => (HKDF_SHA256, &CHACHA20_POLY1305),
            other => panic!("suite {other:#06x} is not one of TLS 1.3"),
        };
        let key = UnboundKey::new(aead, &expand(hash, secret, "key", aead.key_len()));
        let iv = expand(hash, secret, "iv", 12);
        Self {
            key: LessSafeKey::new(key.expect("the length fits")),
            iv: iv.try_into().expect("twelve bytes"),
            sequence: 0,
        }
    }

    fn open(&mut self, header: [u8; 5], record: &[u8]) -> Vec<u8> {
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence += 1;
        let mut record = record.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let clear = self.key.open_in_place(nonce, Aad::from(header), &mut record);
        let clear = clear.expect("a record that these keys open: is a packet missing?");
        let end = clear.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        clear[..end].to_vec()
    }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Computes HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
fn expand(hash: hkdf::Algorithm, secret: &[u8], label: &str, length: usize) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let short = |length: usize| u8::try_from(length).expect("short");
    let info = [&[0, short(length), short(label.len())], label.as_bytes(), &[0]].concat();
    let mut key = vec![0; length];
    let prk = Prk::new_less_safe(hash, secret);
    let info = [&info[..]];
    let expanded = prk.expand(&info, Length(length)).expect("the length is in range");
    expanded.fill(&mut key).expect("the length is the one asked for");
    key
}

const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// RFC 9113, sections 3.4 and 6.2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_huffman_code_is_that_of_the_rfc() {
        // RFC 7541, appendix C.4.1.
        let expected = unhex("f1e3c2e5f23a6ba0ab90f4ff").expect("hex");
        assert_eq!(huffman("www.example.com"), expected);
    }

    #[test]
    fn every_form_of_a_text_is_found_inside_other_text() {
        let (text, forms) = ("sk-lab-0penai", forms("sk-lab-0penai"));
        let within =
            ["", "B", "Be", "Bearer ", "agent:", "xyz"].map(|before| format!("{before}{text}~~"));
        for whole in within {
            assert!(holds_any(whole.as_bytes(), &forms), "{whole}");
            let base64 = base64::engine::general_purpose::STANDARD.encode(&whole);
            assert!(holds_any(base64.as_bytes(), &forms), "{base64}");
            assert!(holds_any(&huffman(&whole), &forms), "Huffman of {whole}");
            assert!(holds_any(&huffman(&base64), &forms), "Huffman of {base64}");
        }
        assert!(!holds_any(b"sk-lab-0pena sk-lab-Openai", &forms));
    }
}
