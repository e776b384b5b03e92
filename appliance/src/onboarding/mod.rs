//! The pages that agents of a group fetch at the gateway's own address to trust it: its CA, a
//! bundle of that and the public CAs, and a script that installs them.
//!
//! Pure. There is no secret in any page, and nothing that an agent sends gets into one. Errs
//! towards refusal: a request is one of three paths by GET or HEAD at the very address that was
//! dialled, with no query, no body and nothing behind it.

use std::{collections::HashMap, fmt::Write as _, net::IpAddr};

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use httparse::{EMPTY_HEADER, Header, Request, Status};

use crate::{
    policy::{Group, GroupName, Policy},
    reason::Reason,
};

/// The pages of one group.
#[derive(Debug, Clone)]
pub struct Pages {
    ca: Bytes,
    bundle: Bytes,
    fingerprint: String,
}

/// One page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The certificate that agents are to trust, in PEM.
    Ca,
    /// That certificate and the public CAs, in PEM.
    Bundle,
    /// The script that installs them.
    Script,
}

/// A valid request for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRequest {
    /// The page.
    pub page: Page,
    /// Whether the page itself is wanted, and not only its head.
    pub body: bool,
}

/// The error where this machine has no public CAs: a bundle without them would cut agents off from
/// every host that shows a certificate of its own.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a group has onboarding, and there are no public CAs here for its bundle; install \
     ca-certificates"
)]
pub struct NoPublicCas;

/// Returns the pages of each group with onboarding, with the public CAs in DER.
///
/// # Errors
///
/// [`NoPublicCas`], where there is such a group.
pub fn pages(
    policy: &Policy,
    public: &[impl AsRef<[u8]>],
) -> Result<HashMap<GroupName, Pages>, NoPublicCas> {
    let of = |group: &Group| {
        Some((group.name.clone(), Pages::new(group.onboarding.as_deref()?, public)))
    };
    let pages: HashMap<_, _> = policy.groups.iter().filter_map(|group| of(group)).collect();
    if public.is_empty() && !pages.is_empty() { Err(NoPublicCas) } else { Ok(pages) }
}

impl Pages {
    fn new(ca: &[u8], public: &[impl AsRef<[u8]>]) -> Self {
        let others = public.iter().map(AsRef::as_ref).filter(|other| *other != ca);
        let bundle: String = std::iter::once(ca).chain(others).map(pem).collect();
        Self { ca: pem(ca).into(), bundle: bundle.into(), fingerprint: fingerprint(ca) }
    }

    /// Returns a page, as it is served at this address of the gateway.
    pub fn text(&self, page: Page, gateway: IpAddr) -> Bytes {
        match page {
            Page::Ca => self.ca.clone(),
            Page::Bundle => self.bundle.clone(),
            Page::Script => self.script(gateway).into(),
        }
    }

    fn script(&self, gateway: IpAddr) -> String {
        let ca = String::from_utf8_lossy(&self.ca);
        SCRIPT
            .replace("@GATEWAY@", &authority(gateway))
            .replace("@FINGERPRINT@", &self.fingerprint)
            .replace("@CA@", ca.trim_end())
    }
}

impl Page {
    /// All pages.
    pub const ALL: [Self; 3] = [Self::Ca, Self::Bundle, Self::Script];

    /// Returns its path.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Ca => "/ca.pem",
            Self::Bundle => "/bundle.pem",
            Self::Script => "/install.sh",
        }
    }

    /// Returns the head of its answer.
    pub fn head(self, length: usize) -> String {
        let kind = match self {
            Self::Ca | Self::Bundle => "application/x-pem-file",
            Self::Script => "text/plain; charset=utf-8",
        };
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\
             cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
        )
    }
}

/// Returns the request that was read whole as `bytes`, at the gateway's address `dialled`.
///
/// # Errors
///
/// The reason of the refusal.
pub fn asked(bytes: &[u8], max_fields: usize, dialled: IpAddr) -> Result<PageRequest, Reason> {
    let mut fields = vec![EMPTY_HEADER; max_fields];
    let mut request = Request::new(&mut fields);
    match request.parse(bytes) {
        // Bytes behind the head are a body or another request.
        Ok(Status::Complete(length)) if length == bytes.len() => {}
        _ => return Err(Reason::HttpMalformed),
    }
    if request.headers.iter().any(announces_more) {
        return Err(Reason::HttpMalformed);
    }
    let mut hosts = request.headers.iter().filter(|field| is(field, "host"));
    let (host, second) = (hosts.next().ok_or(Reason::HttpMalformed)?, hosts.next());
    if second.is_some() {
        return Err(Reason::HttpMalformed);
    }
    let authority = authority(dialled);
    let named = host.value.trim_ascii();
    if named != authority.as_bytes() && named != format!("{authority}:80").as_bytes() {
        return Err(Reason::HostMismatch);
    }
    let body = match request.method {
        Some("GET") => true,
        Some("HEAD") => false,
        _ => return Err(Reason::MethodDenied),
    };
    let page = Page::ALL.into_iter().find(|page| request.path == Some(page.path()));
    Ok(PageRequest { page: page.ok_or(Reason::PathDenied)?, body })
}

/// Returns whether a field says that something follows the head, or that the protocol is to change.
fn announces_more(field: &Header<'_>) -> bool {
    MORE.iter().any(|name| is(field, name))
}

fn is(field: &Header<'_>, name: &str) -> bool {
    field.name.eq_ignore_ascii_case(name)
}

/// Returns an address as it stands in a URL (RFC 3986, section 3.2.2).
fn authority(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Encodes a certificate in PEM (RFC 7468).
fn pem(der: &[u8]) -> String {
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in STANDARD.encode(der).as_bytes().chunks(PEM_LINE) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// Returns the fingerprint in the form of `openssl x509 -fingerprint -sha256`.
fn fingerprint(der: &[u8]) -> String {
    let mut text = String::new();
    for byte in digest::digest(&digest::SHA256, der).as_ref() {
        let colon = if text.is_empty() { "" } else { ":" };
        // Writing to a string cannot fail.
        let _ = write!(text, "{colon}{byte:02X}");
    }
    text
}

const SCRIPT: &str = include_str!("install.sh");
/// Fields with which a request is more than its head (RFC 9112, section 6; RFC 9110, sections 7.8
/// and 10.1.1).
const MORE: [&str; 4] = ["content-length", "transfer-encoding", "upgrade", "expect"];
/// Characters of a line of PEM.
const PEM_LINE: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn ask(request: &str) -> Result<PageRequest, Reason> {
        asked(request.as_bytes(), 16, HERE)
    }

    #[test]
    fn each_page_is_at_its_path_by_get_and_head() {
        for page in Page::ALL {
            for (method, body) in [("GET", true), ("HEAD", false)] {
                let path = page.path();
                for host in ["192.0.2.1", "192.0.2.1:80"] {
                    let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
                    assert_eq!(ask(&request), Ok(PageRequest { page, body }));
                }
            }
        }
        let v6 = "2001:db8::1".parse().unwrap();
        let request = b"GET /ca.pem HTTP/1.1\r\nHost: [2001:db8::1]\r\n\r\n";
        assert_eq!(asked(request, 16, v6), Ok(PageRequest { page: Page::Ca, body: true }));
    }

    #[test]
    fn anything_else_is_refused_with_its_reason() {
        use Reason as R;
        let with = |line: &str, fields: &str| format!("{line} HTTP/1.1\r\n{fields}\r\n");
        let host = "Host: 192.0.2.1\r\n";
        let cases = [
            ("GET /", host, "", R::PathDenied),
            ("GET /ca.pem?", host, "", R::PathDenied),
            ("GET /ca.pem#x", host, "", R::PathDenied),
            ("GET //ca.pem", host, "", R::PathDenied),
            ("GET /CA.pem", host, "", R::PathDenied),
            ("GET /%63a.pem", host, "", R::PathDenied),
            ("GET /../ca.pem", host, "", R::PathDenied),
            ("POST /ca.pem", host, "", R::MethodDenied),
            ("OPTIONS *", host, "", R::MethodDenied),
            ("get /ca.pem", host, "", R::MethodDenied),
            ("GET /ca.pem", "", "", R::HttpMalformed),
            ("GET /ca.pem", "Host: 192.0.2.1\r\nhost: 192.0.2.1\r\n", "", R::HttpMalformed),
            ("GET /ca.pem", "Host: api.openai.example\r\n", "", R::HostMismatch),
            ("GET /ca.pem", "Host: 192.0.2.1:8080\r\n", "", R::HostMismatch),
            ("GET /ca.pem", "Host: 192.0.2.1\r\nContent-Length: 0\r\n", "", R::HttpMalformed),
            (
                "GET /ca.pem",
                "Host: 192.0.2.1\r\nTransfer-Encoding: chunked\r\n",
                "",
                R::HttpMalformed,
            ),
            ("GET /ca.pem", "Host: 192.0.2.1\r\nUpgrade: h2c\r\n", "", R::HttpMalformed),
            (
                "GET /ca.pem",
                host,
                "GET /ca.pem HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
                R::HttpMalformed,
            ),
            ("GET /ca.pem", host, "x", R::HttpMalformed),
        ];
        for (line, fields, rest, reason) in cases {
            let request = with(line, fields) + rest;
            assert_eq!(ask(&request), Err(reason), "{request:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_get_more_than_pages(bytes in any::<Vec<u8>>()) {
            prop_assert!(asked(&bytes, 16, HERE).is_err());
        }

        #[test]
        fn one_byte_changed_in_the_path_is_another_path(at in 0_usize..6, byte in 0x21_u8..0x7f) {
            let mut path = *b"/ca.pem";
            prop_assume!(path[at + 1] != byte);
            path[at + 1] = byte;
            let path = String::from_utf8_lossy(&path).into_owned();
            let request = format!("GET {path} HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n");
            prop_assert!(ask(&request).is_err());
        }
    }

    #[test]
    fn a_bundle_has_the_ca_once_and_the_public_ones() {
        let pages = Pages::new(b"ours", &[b"public".as_slice(), b"ours"]);
        let (ca, public) = (pem(b"ours"), pem(b"public"));
        assert_eq!(pages.text(Page::Ca, HERE), ca);
        assert_eq!(pages.text(Page::Bundle, HERE), ca + &public);
    }

    #[test]
    fn nothing_is_left_to_fill_in_the_script() {
        let pages = Pages::new(b"ours", &[b"public"]);
        let script = String::from_utf8(pages.text(Page::Script, HERE).to_vec()).unwrap();
        for blank in ["@GATEWAY@", "@FINGERPRINT@", "@CA@"] {
            assert!(SCRIPT.contains(blank) && !script.contains(blank), "{blank}");
        }
        assert!(script.contains(&pem(b"ours")) && script.contains(&fingerprint(b"ours")));
        assert!(script.ends_with("main \"$@\"\n"), "a part of it does something");
    }
}
