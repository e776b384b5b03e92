//! The checks that make a request unambiguous, beyond what the HTTP library already demands.
//!
//! Pure. Errs to refusal: a text that two readers could understand differently is refused.

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
        SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE,
    },
    request,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{
    overrides,
    pinned_authority::PinnedAuthority,
    websocket::{self, Asked},
    wire::content_length,
};
use crate::{
    policy::{Folded, NeverAllowed, never_allowed},
    reason::Reason,
    scrub,
};

/// Refuses a head with too many fields, or, of HTTP/2, with a list of them that is too long (RFC
/// 9113, section 6.5.2). The guard has counted the bytes of HTTP/1 on the wire.
pub(super) fn check_size(head: &request::Parts, fields: usize, bytes: usize) -> Result<(), Reason> {
    let too_long = || head.version == Version::HTTP_2 && list_bytes(head) > bytes;
    if head.headers.len() > fields || too_long() { Err(Reason::HeaderLimit) } else { Ok(()) }
}

/// Returns the size of the list without the names of its pseudo-fields.
fn list_bytes(head: &request::Parts) -> usize {
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    target + fields.map(|bytes| bytes + FIELD_OVERHEAD).sum::<usize>()
}

/// Bytes that RFC 9113 counts for a field beside its name and value.
const FIELD_OVERHEAD: usize = 32;

/// Refuses a request that is not plainly one for `pinned`. Returns the handshake of a WebSocket,
/// where the request is one and the rule allows it.
pub(super) fn check(
    head: &request::Parts,
    pinned: &PinnedAuthority,
    websocket: bool,
) -> Result<Option<Asked>, Reason> {
    match never_allowed(head.method.as_str()) {
        Some(NeverAllowed::Tunnel) => return Err(Reason::ConnectDenied),
        Some(NeverAllowed::Echo) => return Err(Reason::MethodDenied),
        None => {}
    }
    let asked = websocket::asked(head, websocket)?;
    check_authority(head, pinned)?;
    overrides::check_host(&head.headers, pinned)?;
    check_framing(head)?;
    check_path(&head.uri)?;
    Ok(asked)
}

/// Checks the authority. HTTP/1 has exactly one Host and the origin-form; HTTP/2 has an
/// `:authority`, the scheme `https`, and no Host that differs (RFC 9113, section 8.3.1).
fn check_authority(head: &request::Parts, pinned: &PinnedAuthority) -> Result<(), Reason> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Reason::HttpMalformed);
    }
    let fits = |host: &HeaderValue| host.to_str().is_ok_and(|text| pinned.is(text));
    match head.version {
        Version::HTTP_2 => {
            let authority = head.uri.authority().ok_or(Reason::HostMismatch)?;
            if head.uri.scheme() != Some(&Scheme::HTTPS) || !pinned.is(authority.as_str()) {
                return Err(Reason::HostMismatch);
            }
            if host.is_some_and(|host| !fits(host)) {
                return Err(Reason::HostMismatch);
            }
        }
        Version::HTTP_11 | Version::HTTP_10 => {
            if head.uri.authority().is_some() || head.uri.scheme().is_some() {
                return Err(Reason::HostMismatch);
            }
            let host = host.ok_or(Reason::HttpMalformed)?;
            if !fits(host) {
                return Err(Reason::HostMismatch);
            }
        }
        _ => return Err(Reason::HttpMalformed),
    }
    Ok(())
}

/// Checks the framing that is still visible here; the guard has checked that of HTTP/1 on the wire.
fn check_framing(head: &request::Parts) -> Result<(), Reason> {
    let headers = &head.headers;
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(Reason::HttpMalformed);
    }
    length.map_or(Ok(0), |length| content_length(length.as_bytes()))?;
    if headers.keys().any(is_misspelt) {
        return Err(Reason::HttpMalformed);
    }
    // RFC 9113, section 8.2.2: connection-specific fields make an HTTP/2 request malformed.
    let h2 = head.version == Version::HTTP_2;
    if h2 && (headers.contains_key(CONNECTION) || headers.contains_key(TRANSFER_ENCODING)) {
        return Err(Reason::HttpMalformed);
    }
    if connection_names(headers).any(|name| !name.is_ok_and(|name| HOP_BY_HOP.contains(&name))) {
        return Err(Reason::HttpMalformed);
    }
    Ok(())
}

/// Refuses bytes that a log, a path rule and an origin could read differently. A fragment is never
/// on the wire (RFC 9112, section 3.2.1).
fn check_path(uri: &Uri) -> Result<(), Reason> {
    let plain = |path: &PathAndQuery| {
        path.as_str().bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
            && path.path().starts_with('/')
    };
    match uri.path_and_query() {
        Some(path) if plain(path) => Ok(()),
        _ => Err(Reason::HttpMalformed),
    }
}

/// Makes the head one that the gateway sends in its own name: without hop-by-hop fields, with the
/// target in the form of the version, with no trace of a proxy.
pub(super) fn address(head: &mut request::Parts, pinned: &PinnedAuthority) -> Result<(), Reason> {
    let trailers = head.headers.get_all(TE).iter().any(|value| value.as_bytes() == b"trailers");
    remove_hop_by_hop(&mut head.headers);
    head.headers.remove(EXPECT);
    let path = head.uri.path_and_query().cloned().ok_or(Reason::HttpMalformed)?;
    let authority = pinned.authority();
    if head.version == Version::HTTP_2 {
        head.headers.remove(HOST);
        // The one hop-by-hop field of HTTP/2, without which gRPC servers refuse to answer.
        if trailers {
            head.headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        let authority: Authority = authority.parse().map_err(|_| Reason::InternalError)?;
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(authority);
        parts.path_and_query = Some(path);
        head.uri = Uri::from_parts(parts).map_err(|_| Reason::InternalError)?;
    } else {
        head.version = Version::HTTP_11;
        head.uri = Uri::from(path);
        let host = HeaderValue::try_from(authority).map_err(|_| Reason::InternalError)?;
        head.headers.insert(HOST, host);
    }
    Ok(())
}

/// Refuses a response whose bytes a transfer coding hides. Only `chunked` is undone on the way: the
/// library undoes the last of `gzip, chunked`, and the rest would pass the masks unread.
///
/// # Errors
///
/// [`Reason::ResponseUnscannable`] for anything but no coding or a single `chunked`.
pub(super) fn check_codings(headers: &HeaderMap) -> Result<(), Reason> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let plain = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if plain(coding) => Ok(()),
        _ => Err(Reason::ResponseUnscannable),
    }
}

/// Removes what concerns one connection only (RFC 9110, section 7.6.1), in either direction.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(PROXY_AUTHORIZATION);
    headers.remove(PROXY_AUTHENTICATE);
}

/// Returns the field names and options of every Connection field, with an error for each that is no
/// token.
fn connection_names(headers: &HeaderMap) -> impl Iterator<Item = Result<HeaderName, Reason>> {
    let listed =
        headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|&b| b == b','));
    listed.map(|name| HeaderName::from_bytes(name.trim_ascii()).map_err(|_| Reason::HttpMalformed))
}

const CLOSE: HeaderName = HeaderName::from_static("close");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The names that a Connection field may hold. Any other could strip a field that matters
/// (`Connection: authorization`), so it is refused.
static HOP_BY_HOP: [HeaderName; 8] =
    [CLOSE, KEEP_ALIVE, CONNECTION, PROXY_CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// Whether a server that cannot tell `_` from `-` would take this field for one that frames the
/// message, which would have a second length; for one of a WebSocket's handshake, whose offers may
/// hold a credential; or for one by which the gateway has the answer readable.
fn is_misspelt(name: &HeaderName) -> bool {
    let framing = [
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        SEC_WEBSOCKET_PROTOCOL,
        SEC_WEBSOCKET_EXTENSIONS,
        SEC_WEBSOCKET_KEY,
    ];
    let folded = Folded(name.as_str().as_bytes());
    let mut exact = framing.iter().chain(&scrub::ANSWER_FORM);
    exact.any(|one| one != name && Folded(one.as_str().as_bytes()) == folded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Host;

    fn pinned() -> PinnedAuthority {
        PinnedAuthority { host: Host::parse("api.example").unwrap(), port: 443 }
    }

    fn head(version: Version, uri: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut request = http::Request::builder().version(version).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn h1(fields: &[(&str, &str)]) -> Result<(), Reason> {
        check(&head(Version::HTTP_11, "/v1", fields), &pinned(), false).map(|_| ())
    }

    #[test]
    fn authority_host_and_sni_are_one_name_and_port() {
        assert_eq!(h1(&[("host", "api.example")]), Ok(()));
        assert_eq!(h1(&[("host", "API.example:443")]), Ok(()));
        for host in [
            "evil.example",
            "api.example:8443",
            "api.example:0443",
            "api.example:+443",
            "api.example:",
            "",
            "api.example, evil.example",
            "user@api.example",
            "api.example.evil.example",
            "198.51.100.1",
        ] {
            assert_eq!(h1(&[("host", host)]), Err(Reason::HostMismatch), "{host}");
        }
        assert_eq!(h1(&[]), Err(Reason::HttpMalformed));
        assert_eq!(
            h1(&[("host", "api.example"), ("host", "api.example")]),
            Err(Reason::HttpMalformed)
        );
    }

    #[test]
    fn absolute_form_is_refused_whatever_it_names() {
        let head = head(Version::HTTP_11, "https://api.example/v1", &[("host", "api.example")]);
        assert_eq!(check(&head, &pinned(), false).err(), Some(Reason::HostMismatch));
    }

    #[test]
    fn a_second_authority_on_an_h2_connection_is_refused() {
        let to =
            |uri, fields| check(&head(Version::HTTP_2, uri, fields), &pinned(), true).map(|_| ());
        assert_eq!(to("https://api.example/v1", &[]), Ok(()));
        assert_eq!(to("https://api.example/v1", &[("host", "api.example")]), Ok(()));
        assert_eq!(to("https://evil.example/v1", &[]), Err(Reason::HostMismatch));
        assert_eq!(to("http://api.example/v1", &[]), Err(Reason::HostMismatch));
        assert_eq!(to("https://api.example:8443/v1", &[]), Err(Reason::HostMismatch));
        assert_eq!(to("/v1", &[("host", "api.example")]), Err(Reason::HostMismatch));
        assert_eq!(
            to("https://api.example/v1", &[("host", "evil.example")]),
            Err(Reason::HostMismatch)
        );
    }

    #[test]
    fn connection_cannot_strip_a_field_that_matters() {
        for name in
            ["authorization", "x-api-key, close", "host", "content-length", "close,,", "a b"]
        {
            let result = h1(&[("host", "api.example"), ("connection", name)]);
            assert_eq!(result, Err(Reason::HttpMalformed), "{name}");
        }
        assert_eq!(h1(&[("host", "api.example"), ("connection", "keep-alive, TE")]), Ok(()));
    }

    #[test]
    fn no_spelling_of_a_field_gives_a_message_another_length() {
        for name in [
            "content_length",
            "Content.Length",
            "transfer_encoding",
            "Transfer~Encoding",
            "sec_websocket_protocol",
            "Sec.WebSocket.Protocol",
        ] {
            let result = h1(&[("host", "api.example"), (name, "5")]);
            assert_eq!(result, Err(Reason::HttpMalformed), "{name}");
        }
        assert_eq!(h1(&[("host", "api.example"), ("content-lengths", "5")]), Ok(()));
    }

    #[test]
    fn a_length_has_one_spelling() {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let length = |length| {
                let head = head(version, "https://api.example/v1", &[("content-length", length)]);
                check_framing(&head)
            };
            for good in ["0", "5", "9223372036854775807"] {
                assert_eq!(length(good), Ok(()), "{good}");
            }
            for bad in ["05", "00", "+5", "5, 5", "", "9223372036854775808"] {
                assert_eq!(length(bad), Err(Reason::HttpMalformed), "{bad}");
            }
        }
    }

    #[test]
    fn upgrades_and_connect_are_refused() {
        assert_eq!(h1(&[("host", "api.example"), ("upgrade", "h2c")]), Err(Reason::UpgradeDenied));
        assert_eq!(
            h1(&[("host", "api.example"), ("connection", "Upgrade")]),
            Err(Reason::UpgradeDenied)
        );
        let mut connect = head(Version::HTTP_11, "/", &[("host", "api.example")]);
        connect.method = http::Method::CONNECT;
        assert_eq!(check(&connect, &pinned(), true).err(), Some(Reason::ConnectDenied));
        for echo in ["TRACE", "trace", "TRACK", "Track"] {
            connect.method = http::Method::from_bytes(echo.as_bytes()).unwrap();
            assert_eq!(
                check(&connect, &pinned(), true).err(),
                Some(Reason::MethodDenied),
                "{echo}"
            );
        }
    }

    #[test]
    fn chunked_is_the_only_transfer_coding_of_a_response() {
        let with = |codings: &[&str]| {
            let fields: Vec<_> = codings.iter().map(|it| ("transfer-encoding", *it)).collect();
            check_codings(&head(Version::HTTP_11, "/", &fields).headers)
        };
        for good in [&[][..], &["chunked"], &["Chunked"]] {
            assert_eq!(with(good), Ok(()), "{good:?}");
        }
        for bad in [
            &["gzip, chunked"][..],
            &["gzip", "chunked"],
            &["chunked", "gzip"],
            &["chunked, chunked"],
            &["chunked", "chunked"],
            &["identity, chunked"],
            &[", chunked"],
            &["gzip"],
            &["xchunked"],
            &["chunked;a=b"],
            &[""],
        ] {
            assert_eq!(with(bad), Err(Reason::ResponseUnscannable), "{bad:?}");
        }
    }

    #[test]
    fn what_goes_upstream_names_the_site_and_no_proxy() {
        let fields = [
            ("host", "API.example:443"),
            ("connection", "keep-alive, te"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("proxy-authorization", "Basic eDp5"),
            ("proxy-connection", "close"),
            ("expect", "100-continue"),
        ];
        let mut h1 = head(Version::HTTP_11, "/v1?q=1", &fields);
        address(&mut h1, &pinned()).unwrap();
        assert_eq!(h1.uri, "/v1?q=1");
        let names: Vec<_> =
            h1.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        assert_eq!(names, [("host", "api.example")]);
        let fields = [("host", "api.example"), ("te", "trailers")];
        let mut h2 = head(Version::HTTP_2, "https://api.example:443/v1", &fields);
        address(&mut h2, &PinnedAuthority { port: 8443, ..pinned() }).unwrap();
        assert_eq!(h2.uri, "https://api.example:8443/v1");
        assert_eq!(h2.headers.len(), 1);
        assert_eq!(h2.headers["te"], "trailers");
    }
}
