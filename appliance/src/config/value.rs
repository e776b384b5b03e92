//! Readers of single values. Each takes a TOML value and returns its meaning, or an error that says
//! what is wrong with it and what would be right.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use http::{HeaderName, Method};
use ipnet::{IpNet, Ipv6Net};
use toml::de::DeValue;

use super::{error::quote, settings::NameServer, table::describe};
use crate::policy::{
    Anonymous, AnonymousRequest, FLOOR_VALUE_BYTES, Host, HostPattern, MAX_VALUE_BYTES,
    NeverAllowed, nat64, never_allowed,
};

/// Reads any text.
pub(super) fn text(value: &DeValue<'_>) -> Result<String, String> {
    str(value).map(str::to_owned)
}

/// Reads a text that `parse` accepts.
pub(super) fn parsed<T, E: Display>(
    parse: impl Fn(&str) -> Result<T, E>,
) -> impl Fn(&DeValue<'_>) -> Result<T, String> {
    move |value| {
        let text = str(value)?;
        parse(text).map_err(|error| format!("{}: {error}", quote(text)))
    }
}

/// Reads a text that `parse` accepts. Errors do not repeat it, because it may be a secret that
/// somebody put in the wrong place.
pub(super) fn unquoted<T, E: Display>(
    parse: impl Fn(&str) -> Result<T, E>,
) -> impl Fn(&DeValue<'_>) -> Result<T, String> {
    move |value| {
        let text = value.as_str().ok_or("write it as a text in quotes")?;
        parse(text).map_err(|error| error.to_string())
    }
}

/// Reads `true` or `false`.
pub(super) fn flag(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| format!("{} is not true or false", describe(value)))
}

/// Reads a whole number in `range`.
pub(super) fn number<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&DeValue<'_>) -> Result<T, String> {
    move |value| {
        let bounds = format!("a whole number from {} to {}", range.start(), range.end());
        let wrong = || format!("{} is not {bounds}", describe(value));
        let number = integer(value).filter(|number| range.contains(number)).ok_or_else(wrong)?;
        T::try_from(number).map_err(|_| wrong())
    }
}

/// Reads the fewest bytes of a value.
pub(super) fn value_bytes(value: &DeValue<'_>) -> Result<usize, String> {
    number(FLOOR_VALUE_BYTES as u64..=MAX_VALUE_BYTES as u64)(value)
}

/// Reads a TCP port.
pub(super) fn port(value: &DeValue<'_>) -> Result<u16, String> {
    match number(1..=65_535)(value)? {
        53 => Err("53 is the port of DNS, which the gateway answers itself; leave it out".into()),
        port => Ok(port),
    }
}

/// Reads a number of bytes in `range`: a number, or a text with `KiB` or `MiB`.
pub(super) fn size(range: RangeInclusive<usize>) -> impl Fn(&DeValue<'_>) -> Result<usize, String> {
    move |value| {
        let bytes = match value {
            DeValue::String(text) => with_unit(text, &SIZES),
            _ => integer(value),
        };
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        bytes.filter(|bytes| range.contains(bytes)).ok_or_else(|| {
            let (least, most) = (bytes_text(*range.start()), bytes_text(*range.end()));
            format!(
                "{} is not a size from {least} to {most}; write \"{most}\" (KiB or MiB, no other \
                 unit), or a number of bytes",
                describe(value)
            )
        })
    }
}

/// Formats a size as the file writes it.
fn bytes_text(bytes: usize) -> String {
    let whole = |(_, unit): &&(&str, u64)| bytes > 0 && (bytes as u64).is_multiple_of(*unit);
    match SIZES.iter().rev().find(whole) {
        Some((name, unit)) => format!("{}{name}", bytes as u64 / unit),
        None => bytes.to_string(),
    }
}

/// Reads a time in `range`: a whole number with its unit, `ms`, `s`, `m` or `h`.
pub(super) fn time(
    range: RangeInclusive<Duration>,
) -> impl Fn(&DeValue<'_>) -> Result<Duration, String> {
    move |value| {
        let time = value.as_str().and_then(|text| with_unit(text, &TIMES));
        let time = time.map(Duration::from_millis);
        time.filter(|time| range.contains(time)).ok_or_else(|| {
            let (least, most) = (duration(*range.start()), duration(*range.end()));
            format!(
                "{} is not a time from {least} to {most}; write a whole number and ms, s, m or h, as \
                 in \"{most}\"",
                describe(value)
            )
        })
    }
}

/// Reads a time as [`time()`] does, but of any length.
pub fn read_duration(text: &str) -> Option<Duration> {
    with_unit(text, &TIMES).map(Duration::from_millis)
}

/// Formats a time as the file writes it.
pub(super) fn duration(time: Duration) -> String {
    let millis = time.as_millis();
    let units = TIMES.iter().rev();
    let whole = units.filter(|(_, unit)| millis.is_multiple_of(u128::from(*unit)));
    match whole.max_by_key(|(_, unit)| *unit) {
        Some((name, unit)) if millis > 0 => format!("{}{name}", millis / u128::from(*unit)),
        _ => format!("{}s", time.as_secs()),
    }
}

/// Reads the path of a file, which starts from `base` where it is relative.
pub(super) fn path(base: &std::path::Path) -> impl Fn(&DeValue<'_>) -> Result<PathBuf, String> {
    move |value| {
        let text = str(value)?;
        if text.is_empty() || text.ends_with('/') || text.contains('\0') {
            return Err(format!("{} is not the path of a file", quote(text)));
        }
        Ok(base.join(text))
    }
}

/// Reads the exact name of a host, for `whom`, which takes no patterns.
pub(super) fn exact_host(whom: &'static str) -> impl Fn(&DeValue<'_>) -> Result<Host, String> {
    move |value| {
        let text = str(value)?;
        if text.contains('*') {
            let text = quote(text);
            return Err(format!("{text} is a pattern; {whom} takes exact host names"));
        }
        Host::parse(text).map_err(|error| not_a_host(text, &error))
    }
}

/// Reads a host name, `*.` and the name that its names end with, or a bare `*`.
pub(super) fn host_pattern(value: &DeValue<'_>) -> Result<HostPattern, String> {
    let text = str(value)?;
    let (name, make): (_, fn(Host) -> HostPattern) = match text.strip_prefix("*.") {
        _ if text == "*" => return Ok(HostPattern::Any),
        Some(suffix) => (suffix, HostPattern::Suffix),
        None => (text, HostPattern::Exact),
    };
    if name.contains('*') {
        let text = quote(text);
        return Err(format!(
            "{text}: '*' stands only for whole labels at the front, as in \"*.example.com\""
        ));
    }
    Host::parse(name).map(make).map_err(|error| not_a_host(text, &error))
}

/// Reads a method that may be allowed.
pub(super) fn method(value: &DeValue<'_>) -> Result<Method, String> {
    let text = str(value)?;
    let upper = text.to_ascii_uppercase();
    match never_allowed(text) {
        Some(NeverAllowed::Tunnel) => {
            return Err(format!("{upper:?} would be a tunnel; it is never allowed"));
        }
        Some(NeverAllowed::Echo) => {
            return Err(format!("{upper:?} sends the credential back; it is never allowed"));
        }
        None if text == "*" => {
            return Err("\"*\" is no method; leave methods out for the usual ones".into());
        }
        None if upper != text => return Err(format!("{}: write {upper:?}", quote(text))),
        None => {}
    }
    Method::from_bytes(text.as_bytes()).map_err(|_| format!("{} is not a method", quote(text)))
}

/// Reads `true`, `false`, or a list of the requests that need no credential.
pub(super) fn anonymous(value: &DeValue<'_>) -> Result<Anonymous, String> {
    match value {
        DeValue::Boolean(true) => Ok(Anonymous::Always),
        DeValue::Boolean(false) => Ok(Anonymous::Never),
        DeValue::Array(items) if !items.is_empty() => {
            let read = parsed(AnonymousRequest::parse);
            let listed = items.iter().map(|item| read(item.get_ref()));
            listed.collect::<Result<_, _>>().map(Anonymous::Listed)
        }
        _ => Err(format!(
            "{} is not true, false or a list such as [\"GET /api/hello\"]",
            describe(value)
        )),
    }
}

/// Reads a prefix without host bits that is not the whole address family.
pub(super) fn prefix(value: &DeValue<'_>) -> Result<IpNet, String> {
    let text = str(value)?;
    let wrong = |why: &str| format!("{} {why}", quote(text));
    let prefix: IpNet = text.parse().map_err(|_| {
        wrong("is not a prefix; write an address, a slash and a length, as in \"192.0.2.0/28\"")
    })?;
    if prefix.prefix_len() == 0 {
        return Err(wrong("is every address there is; name the prefix that is meant"));
    }
    let plain = prefix.trunc();
    if plain != prefix {
        return Err(wrong(&format!("has bits beyond its length; write \"{plain}\"")));
    }
    Ok(prefix)
}

/// Reads a prefix as [`prefix`] does, or one address.
pub(super) fn prefix_or_address(value: &DeValue<'_>) -> Result<IpNet, String> {
    match str(value)?.parse::<IpAddr>() {
        Ok(address) => Ok(address.to_canonical().into()),
        Err(_) => prefix(value),
    }
}

/// Reads the address of one machine, to which others may send.
pub(super) fn unicast(value: &DeValue<'_>) -> Result<IpAddr, String> {
    let text = str(value)?;
    let address = text.parse().ok().map(|address: IpAddr| address.to_canonical());
    let usable = |it: &IpAddr| !it.is_unspecified() && !it.is_multicast() && !it.is_loopback();
    address.filter(usable).ok_or_else(|| {
        format!("{} is not the address of a machine; write \"203.0.113.7\"", quote(text))
    })
}

/// Reads the prefix of a translator (RFC 6052, section 2.2).
pub(super) fn nat64_prefix(value: &DeValue<'_>) -> Result<Ipv6Net, String> {
    let wrong = |found: &dyn Display, why: &str| Err(format!("\"{found}\" {why}"));
    match prefix(value)? {
        IpNet::V4(found) => wrong(&found, "is IPv4; the prefix of a translator is IPv6"),
        IpNet::V6(found) if !nat64::LENGTHS.contains(&found.prefix_len()) => {
            wrong(&found, "has a length that no translator has: 32, 40, 48, 56, 64 or 96")
        }
        IpNet::V6(found) if found.addr().octets().get(8).is_some_and(|byte| *byte != 0) => {
            wrong(&found, "is not zero in bits 64 to 71, as that of every translator is")
        }
        IpNet::V6(found) => Ok(found),
    }
}

/// Reads a resolver: an address, or `tls://`, the name in its certificate, `@` and an address. The
/// port is 53, over TLS 853 (RFC 7858, section 3.1), unless the address says otherwise.
pub(super) fn resolver(value: &DeValue<'_>) -> Result<NameServer, String> {
    let text = str(value)?;
    let (tls_name, address, port) = match text.strip_prefix("tls://") {
        None => (None, text, 53),
        Some(rest) => {
            let (name, address) = rest.split_once('@').ok_or_else(|| {
                format!(
                    "{} lacks a name or an address; write \"tls://dns.example@192.0.2.53\": the \
                     name that its certificate is verified for, and where it is",
                    quote(text)
                )
            })?;
            let name = Host::parse(name).map_err(|error| not_a_host(name, &error))?;
            (Some(name), address, 853)
        }
    };
    let usable = |address: &SocketAddr| {
        let ip = address.ip();
        address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
    };
    let address = with_port(address, port).filter(usable).ok_or_else(|| {
        format!(
            "{} is not the address of a resolver; write \"192.0.2.53\", \"[2001:db8::53]:53\" or \
             \"tls://dns.example@192.0.2.53\"",
            quote(text)
        )
    })?;
    Ok(NameServer { address, tls_name })
}

/// Returns whether a credential may stand in this header field. It may not stand in one that frames
/// or routes a message, that clients fill on their own, or that the gateway removes.
pub(super) fn may_hold_a_credential(name: &HeaderName) -> bool {
    let name = name.as_str();
    !RESERVED_HEADERS.contains(&name)
        && !RESERVED_HEADER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Parses an address, in brackets or not, with `port` unless it has one.
fn with_port(text: &str, port: u16) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match bare {
        Some(v6) => v6.parse().ok().map(|ip: Ipv6Addr| SocketAddr::new(ip.into(), port)),
        None => text.parse().map(|ip| SocketAddr::new(ip, port)).or_else(|_| text.parse()).ok(),
    }
}

fn str<'v>(value: &'v DeValue<'_>) -> Result<&'v str, String> {
    value.as_str().ok_or_else(|| format!("{} is not a text; write it in quotes", describe(value)))
}

fn integer(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

fn not_a_host(text: &str, error: &dyn Display) -> String {
    let port = text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match text {
        // Not repeated, because a URL may have a password in it.
        _ if text.contains("://") => "this is a URL; write the host name alone".into(),
        _ if port => format!("{} has a port; the port has its own key", quote(text)),
        _ => format!("{}: {error}", quote(text)),
    }
}

const SIZES: [(&str, u64); 2] = [("KiB", 1 << 10), ("MiB", 1 << 20)];

const TIMES: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

const RESERVED_HEADERS: [&str; 26] = [
    "accept",
    "age",
    "alt-svc",
    "allow",
    "cache-control",
    "connection",
    "cookie",
    "date",
    "expect",
    "forwarded",
    "from",
    "host",
    "http2-settings",
    "keep-alive",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "range",
    "referer",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

const RESERVED_HEADER_PREFIXES: [&str; 9] = [
    "accept-",
    "access-control-",
    "content-",
    "if-",
    "proxy-",
    "sec-",
    "www-",
    "x-forwarded-",
    "via",
];
