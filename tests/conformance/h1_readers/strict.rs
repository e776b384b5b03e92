//! A reader of HTTP/1.1 requests that accepts only one form of everything: the one that the gateway
//! should write. It shares no code with the gateway.

/// A whole request.
pub(super) struct Request {
    pub(super) target: String,
    pub(super) head: String,
}

/// Returns the whole requests at the beginning of `bytes`; the bytes after them are no whole
/// request.
///
/// # Panics
/// Where something is written in another form.
#[track_caller]
pub(super) fn requests(what: &str, mut bytes: &[u8]) -> Vec<Request> {
    let mut requests = vec![];
    while let Some(end) = find(bytes, b"\r\n\r\n") {
        let head: String = bytes[..end].iter().copied().map(char::from).collect();
        let (target, framing) = read_head(what, &head);
        let body = &bytes[end + 4..];
        let length = match framing {
            Framing::Length(length) => (body.len() >= length).then_some(length),
            Framing::Chunked => chunked(what, body),
        };
        let Some(length) = length else { break };
        bytes = &body[length..];
        requests.push(Request { target, head });
    }
    requests
}

enum Framing {
    Length(usize),
    Chunked,
}

#[track_caller]
fn read_head(what: &str, head: &str) -> (String, Framing) {
    let plain = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let words: Vec<_> = first.split(' ').collect();
    assert!(plain(first) && words.len() == 3 && words[2] == "HTTP/1.1", "{what}: {first:?}");
    let (mut hosts, mut framings) = (vec![], vec![]);
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("{what}: {line:?}"));
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        assert!(name.bytes().all(token) && value.trim() == value, "{what}: {line:?}");
        assert!(value.bytes().all(|byte| !byte.is_ascii_control()), "{what}: {line:?}");
        match &*name.to_ascii_lowercase() {
            "host" => hosts.push(value),
            "content-length" => framings.push(Framing::Length(length(what, value))),
            "transfer-encoding" => {
                assert_eq!(value, "chunked", "{what}");
                framings.push(Framing::Chunked);
            }
            "connection" | "upgrade" | "expect" | "te" | "keep-alive" | "proxy-connection" => {
                panic!("{what}: of the other connection: {line:?}")
            }
            _ => {}
        }
    }
    assert_eq!(hosts, [lab::net::OPENAI.name], "{what}: {head}");
    assert!(framings.len() <= 1, "{what}: framed twice: {head}");
    (words[1].to_owned(), framings.pop().unwrap_or(Framing::Length(0)))
}

#[track_caller]
fn length(what: &str, value: &str) -> usize {
    let length: usize = value.parse().unwrap_or_else(|_| panic!("{what}: a length of {value:?}"));
    assert_eq!(length.to_string(), value, "{what}: another spelling of a length");
    length
}

/// Returns the length of a chunked body, if it is whole. There are neither extensions nor trailers.
#[track_caller]
fn chunked(what: &str, body: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = find(&body[at..], b"\r\n")?;
        let size = String::from_utf8_lossy(&body[at..at + line]).into_owned();
        let length = usize::from_str_radix(&size, 16);
        let length = length.unwrap_or_else(|_| panic!("{what}: a chunk of {size:?}"));
        assert_eq!(
            format!("{length:x}"),
            size.to_lowercase(),
            "{what}: another spelling of a size"
        );
        at += line + 2 + length;
        let end = body.get(at..at + 2)?;
        assert_eq!(end, b"\r\n", "{what}: behind a chunk");
        at += 2;
        if length == 0 {
            return Some(at);
        }
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}
