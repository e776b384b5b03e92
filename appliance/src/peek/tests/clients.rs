//! ClientHellos as rustls' own client makes them, and ways to change them.

use std::sync::Arc;

use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    client::{EchGreaseConfig, EchMode},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::ServerName,
};

use super::SNI;
use crate::peek::{Hello, Peeked, Progress, parse};

/// Returns the bytes that a client sends first.
pub(super) fn hello_of(config: ClientConfig, name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a hello");
    bytes
}

pub(super) fn config(provider: CryptoProvider, alpn: &[&str]) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

pub(super) fn classic() -> CryptoProvider {
    let kx_groups = vec![aws_lc_rs::kx_group::X25519];
    CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() }
}

/// Returns a hello with a classic share, about 240 bytes.
pub(super) fn hello() -> Vec<u8> {
    hello_of(config(classic(), &["h2", "http/1.1"]), "API.example.com")
}

/// Returns a hello with a post-quantum share, which takes two segments.
pub(super) fn hybrid_hello() -> Vec<u8> {
    let bytes = hello_of(config(aws_lc_rs::default_provider(), &[]), "api.example.com");
    assert!(bytes.len() > 1_400, "{}", bytes.len());
    bytes
}

pub(super) fn ech_hello() -> Vec<u8> {
    use aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128 as SUITE;
    let (key, _) = rustls::crypto::hpke::Hpke::generate_key_pair(SUITE).expect("a key");
    let mut config = ClientConfig::builder_with_provider(Arc::new(classic()))
        .with_ech(EchMode::Grease(EchGreaseConfig::new(SUITE, key)))
        .expect("ECH")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    hello_of(config, "api.example.com")
}

pub(super) fn expect_hello(bytes: &[u8]) -> Hello {
    match parse(bytes) {
        Progress::Done(Peeked::Tls(hello)) => hello,
        other => panic!("{other:?}"),
    }
}

/// Returns the message of a hello in one record, without the record's header.
pub(super) fn message(record: &[u8]) -> &[u8] {
    &record[5..]
}

pub(super) fn in_records_of(len: usize, message: &[u8]) -> Vec<u8> {
    let record = |part: &[u8]| {
        [&[22, 3, 1], &u16::try_from(part.len()).expect("short").to_be_bytes()[..], part].concat()
    };
    message.chunks(len).flat_map(record).collect()
}

/// Returns the hello with its extensions as `change` leaves them.
pub(super) fn with_extensions(
    record: &[u8],
    change: impl FnOnce(&mut Vec<(u16, Vec<u8>)>),
) -> Vec<u8> {
    let body = &message(record)[4..];
    let mut at = 34;
    at += 1 + usize::from(body[at]);
    at += 2 + usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
    at += 1 + usize::from(body[at]);
    let (fixed, mut rest) = (&body[..at], &body[at + 2..]);
    let mut extensions = Vec::new();
    while !rest.is_empty() {
        let len = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        extensions.push((u16::from_be_bytes([rest[0], rest[1]]), rest[4..4 + len].to_vec()));
        rest = &rest[4 + len..];
    }
    change(&mut extensions);
    let len16 = |len: usize| u16::try_from(len).expect("short").to_be_bytes();
    let block: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, content)| {
            [&kind.to_be_bytes(), &len16(content.len())[..], content].concat()
        })
        .collect();
    let body = [fixed, &len16(block.len()), &block].concat();
    let header = u32::try_from(body.len()).expect("short") | 1 << 24;
    let message = [&header.to_be_bytes(), &body[..]].concat();
    in_records_of(16_384, &message)
}

pub(super) fn with_sni(content: &[u8]) -> Vec<u8> {
    with_extensions(&hello(), |list| {
        let sni = list.iter_mut().find(|(kind, _)| *kind == SNI).expect("an SNI");
        sni.1 = content.to_vec();
    })
}

pub(super) fn sni_content(name: &[u8]) -> Vec<u8> {
    let len = u16::try_from(name.len()).expect("short");
    [&(len + 3).to_be_bytes(), &[0][..], &len.to_be_bytes(), name].concat()
}
