//! A ClientHello that rustls reads after our parser: both see one name and the same protocols, or
//! we refuse. A hello that is built here shows what was built into it.

use cloakroom::{
    peek::{Hello, Peeked, Progress, parse},
    policy::{Host, HostError},
};
use rustls::server::Acceptor;

use crate::{input::Input, peek::check_pieces};

/// Takes a byte for the size of pieces, and the stream.
pub(crate) fn any_records(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let most = input.up_to(256);
    let stream = input.rest();
    let Progress::Done(Peeked::Tls(hello)) = parse(stream) else { return };
    check(stream, most, &hello);
}

/// Checks that rustls reads the same from the hello's own records, and nothing else from all bytes
/// that came, in whatever pieces.
fn check(stream: &[u8], most: usize, hello: &Hello) {
    let answer = Progress::Done(Peeked::Tls(hello.clone()));
    if let Some(end) = check_pieces(stream, 1, &answer) {
        for most in [1, most, end] {
            let theirs = rustls_reads(&stream[..end], most);
            assert_eq!(theirs.as_ref(), Some(&seen_of(hello)), "in pieces of {most}");
        }
    }
    if let Some(theirs) = rustls_reads(stream, most) {
        assert_eq!(theirs, seen_of(hello), "with what follows, in pieces of {most}");
    }
}

/// The server's name, and the protocols on offer.
type Seen = (Option<String>, Vec<Vec<u8>>);

fn seen_of(hello: &Hello) -> Seen {
    let name = hello.sni.as_ref().map(|host| host.as_str().to_owned());
    (name, hello.alpn.iter().map(|protocol| protocol.to_vec()).collect())
}

fn rustls_reads(stream: &[u8], most: usize) -> Option<Seen> {
    let mut acceptor = Acceptor::default();
    for mut piece in stream.chunks(most) {
        while !piece.is_empty() {
            acceptor.read_tls(&mut piece).ok()?;
            if let Some(accepted) = acceptor.accept().ok()? {
                let hello = accepted.client_hello();
                let name = hello.server_name().map(|name| {
                    let name = name.to_ascii_lowercase();
                    name.strip_suffix('.').map(str::to_owned).unwrap_or(name)
                });
                let protocols = hello.alpn().into_iter().flatten();
                return Some((name, protocols.map(<[u8]>::to_vec).collect()));
            }
        }
    }
    None
}

/// Takes the plan of a hello and of the records that it comes in.
pub(crate) fn built(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let plan = Plan::new(&mut input);
    let stream = records(&plan.message(), &mut input);
    match (parse(&stream), plan.hello()) {
        (Progress::Done(Peeked::Tls(hello)), Some(meant)) => {
            assert_eq!(hello, meant);
            check(&stream, input.up_to(256), &hello);
        }
        (Progress::Malformed(_), None) => {}
        // rustls takes a name that looks like an address only if it is one.
        (Progress::Malformed(_), Some(Hello { sni: None, .. })) if plan.names_someone() => {}
        (read, meant) => panic!("{read:?} is read, and {meant:?} was meant"),
    }
}

/// The extensions of a hello, by their numbers.
struct Plan(Vec<(u16, Extension)>);

enum Extension {
    ServerNames(Vec<Vec<u8>>),
    Protocols(Vec<Vec<u8>>),
    Other(Vec<u8>),
}

impl Plan {
    fn new(input: &mut Input<'_>) -> Self {
        let count = input.below(8);
        let mut extensions = Vec::new();
        for _ in 0..count {
            extensions.push(match input.below(8) {
                0 | 1 => (SERVER_NAME, Extension::ServerNames(vec![name(input)])),
                2 => {
                    let names = (0..input.below(3)).map(|_| name(input)).collect();
                    (SERVER_NAME, Extension::ServerNames(names))
                }
                3 | 4 => {
                    let protocols = (0..input.below(4)).map(|_| {
                        let bytes = input.below(9);
                        input.take(bytes).to_vec()
                    });
                    (ALPN, Extension::Protocols(protocols.collect()))
                }
                5 => match input.pick(&ECH) {
                    // rustls reads these two, and takes them only in a valid form.
                    kind @ 0xfe0d => (kind, Extension::Other(ECH_OUTER.to_vec())),
                    kind @ 0xfd00 => (kind, Extension::Other(vec![2, 0, 13])),
                    kind => (kind, other(input)),
                },
                _ => (input.pick(&UNKNOWN), other(input)),
            });
        }
        // rustls refuses a hello without this extension.
        extensions.push((SIGNATURE_ALGORITHMS, Extension::Other(vec![0, 2, 4, 3])));
        Self(extensions)
    }

    /// Returns what a reader should see; nothing where the hello is to be refused.
    fn hello(&self) -> Option<Hello> {
        let mut hello = Hello { sni: None, alpn: Vec::new(), ech: false };
        for (at, (kind, extension)) in self.0.iter().enumerate() {
            if self.0[..at].iter().any(|(other, _)| other == kind) {
                return None;
            }
            match extension {
                Extension::ServerNames(names) => {
                    let [name] = &names[..] else { return None };
                    hello.sni = match Host::parse(std::str::from_utf8(name).ok()?) {
                        Ok(host) => Some(host),
                        Err(HostError::IpAddress) => None,
                        Err(_) => return None,
                    };
                }
                Extension::Protocols(protocols) => {
                    if protocols.is_empty() || protocols.iter().any(Vec::is_empty) {
                        return None;
                    }
                    let protocols = protocols.iter().map(|protocol| protocol.as_slice().into());
                    hello.alpn = protocols.collect();
                }
                Extension::Other(_) => hello.ech |= ECH.contains(kind),
            }
        }
        Some(hello)
    }

    fn names_someone(&self) -> bool {
        self.0.iter().any(|(kind, _)| *kind == SERVER_NAME)
    }

    /// Returns the handshake message (RFC 8446, section 4.1.2).
    fn message(&self) -> Vec<u8> {
        let extensions = self.0.iter().map(|(kind, extension)| {
            let content = match extension {
                Extension::ServerNames(names) => vec16(
                    &names
                        .iter()
                        .map(|it| [&[0], &*vec16(it)].concat())
                        .collect::<Vec<_>>()
                        .concat(),
                ),
                Extension::Protocols(names) => {
                    vec16(&names.iter().map(|it| vec8(it)).collect::<Vec<_>>().concat())
                }
                Extension::Other(content) => content.clone(),
            };
            [kind.to_be_bytes().to_vec(), vec16(&content)].concat()
        });
        let extensions = vec16(&extensions.collect::<Vec<_>>().concat());
        let before = [&[3, 3], &[7; 32][..], &[0], &vec16(&[0x13, 1]), &[1, 0]].concat();
        let body = [before, extensions].concat();
        let length = u32::try_from(body.len()).expect("a short hello").to_be_bytes();
        [&[1], &length[1..], &body].concat()
    }
}

/// Returns a name that is often one of a host.
fn name(input: &mut Input<'_>) -> Vec<u8> {
    let length = input.below(24);
    (0..length).map(|_| input.pick(LETTERS)).collect()
}

fn other(input: &mut Input<'_>) -> Extension {
    let length = input.below(20);
    Extension::Other(input.take(length).to_vec())
}

/// Splits the message into handshake records, each as long as the input says.
fn records(message: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let (mut left, mut stream) = (message, Vec::new());
    while !left.is_empty() {
        // Where the input ends, the remaining bytes go into one record.
        let most = match input.below(256) {
            0 => left.len(),
            most => most,
        };
        let (payload, rest) = left.split_at(most.min(left.len()));
        stream.extend([&[22, 3, 1], &*vec16(payload)].concat());
        left = rest;
    }
    stream
}

fn vec8(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).expect("a short vector")], bytes].concat()
}

fn vec16(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a short vector").to_be_bytes();
    [&length, bytes].concat()
}

/// Extension types (IANA, TLS ExtensionType Values); those of RFC 9849 and its drafts.
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SIGNATURE_ALGORITHMS: u16 = 13;
const ECH: [u16; 5] = [0xfe0d, 0xfd00, 0xff02, 0xff03, 0xffce];
/// A server's extension: the suite, the number of a configuration, no key, and a byte of content.
const ECH_OUTER: [u8; 11] = [0, 0, 1, 0, 1, 7, 0, 0, 0, 1, 9];
/// Two values of GREASE (RFC 8701), and two that nobody has registered.
const UNKNOWN: [u16; 4] = [0x0a0a, 0xfafa, 0xfe0c, 0x7777];
const LETTERS: &[u8; 16] = b"aexmplEX.-_01 7\0";
