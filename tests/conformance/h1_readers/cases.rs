//! The cases, sorted by the point on which two readers disagree, each with its expected fate.

use std::iter;

/// One request, whole or not.
pub(super) struct Case {
    pub(super) what: String,
    pub(super) bytes: Vec<u8>,
    pub(super) fate: Fate,
}

/// The fate of a case and of the marked request behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The case gets this answer and reaches nobody; the connection ends.
    Refused(u16, &'static str),
    /// The case gets this answer and reaches nobody; its end is plain, and the marked one is
    /// served.
    RefusedAlone(u16, &'static str),
    /// The case is served, and the marked one by itself.
    Served,
    /// The case is served, and ends the connection.
    Last,
    /// The case is served; the bytes after its end are another head, which gets this answer. The
    /// connection ends.
    RestRefused(u16, &'static str),
    /// The case's head was sent on, but its body never ends at the API; it gets this answer, and
    /// the connection ends.
    Cut(u16, &'static str),
    /// The case is not whole: the marked one is part of its body, which the API never gets whole.
    Waits,
}

use Fate::{Cut, Last, Refused, RefusedAlone, RestRefused, Served, Waits};

const MALFORMED: Fate = Refused(400, "http_malformed");
/// The fate where only the second look finds the fault, when the end of the message is known.
const MALFORMED_ALONE: Fate = RefusedAlone(400, "http_malformed");
const BROKEN: Fate = Cut(400, "http_malformed");
const TRAILER: Fate = Cut(400, "trailer_denied");
const REST: Fate = RestRefused(400, "http_malformed");
const OTHER_HOST: Fate = RefusedAlone(421, "host_mismatch");
const UPGRADE: Fate = RefusedAlone(426, "upgrade_denied");

const LINE: &str = "POST /v1/case HTTP/1.1\r\n";
const HOST: &str = "Host: api.openai.example\r\n";
const KEY: &str = "Authorization: Bearer OPENAI_API_KEY\r\n";

/// Returns a case with its text as bytes, and a name.
fn case(what: &str, text: &str, fate: Fate) -> Case {
    let byte = |each: char| u8::try_from(u32::from(each)).expect("a text stands for bytes");
    Case { what: what.to_owned(), bytes: text.chars().map(byte).collect(), fate }
}

/// Returns a case with a good head with these lines in it, and the bytes after it.
fn with(fields: &str, body: &str, fate: Fate) -> Case {
    case(&format!("{fields}{body}"), &format!("{LINE}{HOST}{KEY}{fields}\r\n{body}"), fate)
}

/// Returns such a case for each of many lines.
fn each<'a>(lines: &'a [&str], body: &'a str, fate: Fate) -> impl Iterator<Item = Case> + 'a {
    lines.iter().map(move |line| with(&format!("{line}\r\n"), body, fate))
}

pub(super) fn lengths() -> Vec<Case> {
    let refused = [
        // A length beside a coding.
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: identity\r\nContent-Length: 5",
        "Content-Length: 5\r\nTransfer-Encoding: xchunked",
        "Content-Length: 5\r\ntransfer-encoding:",
        // More than one length.
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 0\r\ncontent-length: 5",
        "Content-Length: 5\r\nX: y\r\nCONTENT-LENGTH: 0",
        "Content-Length: 5\r\nContent-Length:",
        "Content-Length: 5, 5",
        "Content-Length: 5,6",
        "Content-Length: 0,5",
        "Content-Length: ,5",
        "Content-Length: 5,",
        // No digits, and other signs.
        "Content-Length:",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: -0",
        "Content-Length: 0x5",
        "Content-Length: 5h",
        "Content-Length: 0b101",
        "Content-Length: 5e0",
        "Content-Length: 5.0",
        "Content-Length: 5.",
        "Content-Length: 5 5",
        "Content-Length: 5\t5",
        "Content-Length: 5;",
        "Content-Length: 5;q=1",
        "Content-Length: \"5\"",
        "Content-Length: '5'",
        "Content-Length: 0_5",
        "Content-Length: five",
        "Content-Length: (5)",
        "Content-Length: \u{d9}\u{a5}",
        "Content-Length: \u{ef}\u{bc}\u{95}",
        "Content-Length: \u{e2}\u{81}\u{b5}",
        "Content-Length: 5\u{c2}\u{a0}",
        "Content-Length: \u{a0}5",
        "Content-Length: \u{85}5",
        "Content-Length: \u{b}5",
        "Content-Length: 5\u{c}",
        "Content-Length: 5\u{0}",
        "Content-Length: \u{0}5",
        "Content-Length: 5\u{7f}",
        // Numbers of which some readers take the last digits.
        "Content-Length: 18446744073709551621",
        "Content-Length: 18446744073709551615",
        "Content-Length: 9223372036854775808",
        "Content-Length: 340282366920938463463374607431768211461",
        // Another form of a number, which some readers take for octal.
        "Content-Length: 05",
        "Content-Length: 00000000000000000000005",
        // An invalid name.
        "Content-Length : 5",
        "Content-Length\t: 5",
        " Content-Length: 5",
        "X: y\r\n Content-Length: 5",
        "Content-Length:\r\n 5",
        "Content-Length\u{0}: 5",
        "Content-Length\u{b}: 5",
        "Content Length: 5",
        "Content-Length; 5",
        "Content-Length=5",
    ];
    let alone = ["content_length: 5", "Content.Length: 5", "CONTENT~LENGTH: 5"];
    let four_gib = "Content-Length: 4294967301\r\n";
    each(&refused, "hello", MALFORMED)
        .chain(each(&alone, "", MALFORMED_ALONE))
        .chain([
            with("Content-Length: 5\r\n", "hello", Served),
            with("content-LENGTH:5\r\n", "hello", Served),
            with("Content-Length: \t 5 \t \r\n", "hello", Served),
            with("Content-Length: 0\r\n", "", Served),
            with("X-Content-Length: 7\r\nContent-Length: 5\r\n", "hello", Served),
            with("Content-Length: 4\r\n", "hello", RestRefused(403, "method_denied")),
            with("Content-Length: 0\r\n", "hello ", REST),
            with("X: y\r\n", "hello ", REST),
            with("Content-Length: 5000\r\n", "hello", Waits),
            with(four_gib, "hello", Waits),
        ])
        .collect()
}

pub(super) fn codings() -> Vec<Case> {
    let refused = [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunkedx",
        "Transfer-Encoding: chunk",
        "Transfer-Encoding: cow",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding:",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: , ,chunked",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: chunked;",
        "Transfer-Encoding: chunked chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: 'chunked'",
        "Transfer-Encoding: [chunked]",
        "Transfer-Encoding: chu nked",
        "Transfer-Encoding: chu\u{0}nked",
        "Transfer-Encoding: chunked\u{0}",
        "Transfer-Encoding: \u{0}chunked",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding: chunked\u{b}",
        "Transfer-Encoding: \u{c}chunked",
        "Transfer-Encoding: chunked\u{c}",
        "Transfer-Encoding: \u{1}chunked",
        "Transfer-Encoding: chunked\u{7f}",
        "Transfer-Encoding: \u{ff}chunked",
        "Transfer-Encoding: chunked\u{ff}",
        "Transfer-Encoding: \u{a0}chunked",
        "Transfer-Encoding: \u{c2}\u{a0}chunked",
        "Transfer-Encoding: \u{e2}\u{80}\u{8b}chunked",
        "Transfer-Encoding: chun\u{e2}\u{84}\u{aa}ed",
        "Transfer-Encoding: =?utf-8?q?chunked?=",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\ntransfer-encoding: x",
        "Transfer-Encoding:\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\r\n\tTransfer-Encoding: chunked",
        "Transfer-Encoding\r\n: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding:\r\n\tchunked",
        "Transfer-Encoding: chunked\r\n ",
        "Transfer-Encoding: chunked\r\n , identity",
        "Transfer-Encoding:\n chunked",
        "X: y\nTransfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "X: y\n\rTransfer-Encoding: chunked",
        "X: y\r\r\nTransfer-Encoding: chunked",
        "Transfer\u{0}-Encoding: chunked",
        "Transfer-Encoding\u{0}: chunked",
        "Transfer Encoding: chunked",
        "Tran\u{c5}\u{bf}fer-Encoding: chunked",
        "Transfer-Encoding chunked",
        "Transfer-Encoding; chunked",
        "Transfer-Encoding=chunked",
        "Transfer-Encoding:: chunked",
        "\"Transfer-Encoding\": chunked",
        "Transfer-Encoding(x): chunked",
    ];
    let served = [
        "TRANSFER-ENCODING: CHUNKED",
        "transfer-encoding:chunked",
        "Transfer-Encoding: \t chunked \t ",
        "TE: chunked\r\nTransfer-Encoding: chunked",
    ];
    let alone = ["transfer_encoding: chunked", "Transfer.Encoding: chunked"];
    let old = format!("POST /v1/case HTTP/1.0\r\n{HOST}{KEY}Transfer-Encoding: chunked\r\n\r\n");
    let get = format!("GET /v1/case HTTP/1.1\r\n{HOST}{KEY}Transfer-Encoding: chunked\r\n\r\n");
    each(&refused, "0\r\n\r\n", MALFORMED)
        .chain(each(&served, "5\r\nhello\r\n0\r\n\r\n", Served))
        .chain(each(&alone, "", MALFORMED_ALONE))
        .chain([
            case("HTTP/1.0, chunked", &format!("{old}0\r\n\r\n"), MALFORMED),
            case("GET, chunked", &format!("{get}5\r\nhello\r\n0\r\n\r\n"), Served),
            // Fields that no reader knows, so that nothing has a length.
            with("X-Transfer-Encoding: chunked\r\n", "0\r\n\r\n", REST),
        ])
        .collect()
}

/// Returns cases with a good head of a chunked body before each.
pub(super) fn chunks() -> Vec<Case> {
    let broken = [
        // Sizes.
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5\t\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5h\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "5,5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "5.0\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        ";a=b\r\nhello\r\n0\r\n\r\n",
        "\u{ef}\u{bc}\u{95}\r\nhello\r\n0\r\n\r\n",
        "5\u{0}\r\nhello\r\n0\r\n\r\n",
        "5\u{b}\r\nhello\r\n0\r\n\r\n",
        "5\u{a0}\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "0000000000000000000005\r\nhello\r\n0\r\n\r\n",
        // Line ends.
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\r\nhello\r\n0\r\n\r\n",
        "5\n\rhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhell\r\n0\r\n\r\n",
        "5\r\nhello\r\n\r\n0\r\n\r\n",
        // Extensions.
        "5 ;a=b\r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "5;a\u{0}b\r\nhello\r\n0\r\n\r\n",
        "5;a=\"\r\n\"\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0;a\n\r\n\r\n",
        // The last chunk.
        "5\r\nhello\r\n0\n\r\n",
        "5\r\nhello\r\n0\r\n\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello\r\n0\r\r\n\r\n",
        "5\r\nhello\r\n0 \r\n\r\n",
        "5\r\nhello\r\n-0\r\n\r\n",
        "5\r\nhello\r\n0x0\r\n\r\n",
        "5\r\nhello\r\n\r\n",
        // Without the last line end, the marked request stands among the trailers.
        "5\r\nhello\r\n0\r\n",
        // Trailers.
        "5\r\nhello\r\n0\r\nX: y\nZ: w\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: y\rZ: w\r\n\r\n",
        "5\r\nhello\r\n0\r\n X: y\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: y\r\n folded\r\n\r\n",
        "5\r\nhello\r\n0\r\nX : y\r\n\r\n",
        "5\r\nhello\r\n0\r\n: y\r\n\r\n",
        "5\r\nhello\r\n0\r\nno colon\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: \u{0}\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: y\r\n\n",
    ];
    let served = [
        "5\r\nhello\r\n0\r\n\r\n",
        "00005\r\nhello\r\n0\r\n\r\n",
        "5;a=b\r\nhello\r\n0\r\n\r\n",
        "5;a=\";0\"\r\nhello\r\n0\r\n\r\n",
        "5;\r\nhello\r\n0;a\r\n\r\n",
        "5\r\nhello\r\n000\r\n\r\n",
        "A\r\n0\r\n\r\nhello\r\n0\r\n\r\n",
        "a\r\n0\r\n\r\nhello\r\n0\r\n\r\n",
        "0\r\n\r\n",
        "5\r\nhello\r\n0\r\nX-Sum: y\r\n\r\n",
        // Framing fields count in the head, and nowhere else.
        "5\r\nhello\r\n0\r\nContent-Length: 40\r\n\r\n",
        "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5\r\nhello\r\n0\r\nHost: attacker.example\r\n\r\n",
    ];
    let trailers = [
        "5\r\nhello\r\n0\r\nAuthorization: Bearer OPENAI_API_KEY\r\n\r\n",
        "5\r\nhello\r\n0\r\nX-Api-Key: k\r\n\r\n",
        "5\r\nhello\r\n0\r\nx_api_key: k\r\n\r\n",
    ];
    let waits = [
        "5000\r\nhello\r\n0\r\n\r\n",
        "100000005\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ];
    let chunked = "Transfer-Encoding: chunked\r\n";
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(300));
    let body = |body: &str, fate| with(chunked, body, fate);
    let all = |bodies: &[&str], fate| bodies.iter().map(|it| body(it, fate)).collect::<Vec<_>>();
    let groups =
        [all(&broken, BROKEN), all(&served, Served), all(&trailers, TRAILER), all(&waits, Waits)];
    groups.into_iter().flatten().chain(iter::once(body(&long, BROKEN))).collect()
}

pub(super) fn lines() -> Vec<Case> {
    let refused = [
        // Line ends.
        "X: y\nZ: w",
        "X: y\rZ: w",
        "X: y\r",
        "X: y\n",
        "X: y\r\r",
        "X\n: y",
        "\n",
        "\r",
        // Folded lines.
        "X: y\r\n z",
        "X: y\r\n\tz",
        "X: y\r\n  ",
        "X:\r\n y",
        " X: y",
        "\tX: y",
        "X: y\r\n Authorization: Bearer sk-mine",
        "X: y\r\n\r \nZ: w",
        // A space before the colon, and lines without a colon.
        "X : y",
        "X\t: y",
        "X\u{b}: y",
        "X\u{a0}: y",
        "X",
        ":",
        ": y",
        " : y",
        // Names.
        "X Y: z",
        "HTTP/1.1 200 OK: y",
        "X\u{0}: y",
        "X\u{7f}: y",
        "X\u{1}: y",
        "\u{ff}: y",
        "X\u{c3}\u{a9}: y",
        "X[]: y",
        "X(): y",
        "X{}: y",
        "X@: y",
        "X/: y",
        "X,Y: z",
        "\"X\": y",
        // Values.
        "X: \u{0}",
        "X: y\u{0}z",
        "X: \u{1}",
        "X: y\u{8}",
        "X: \u{b}y",
        "X: \u{c}y",
        "X: \u{1b}[0m",
        "X: \u{7f}",
    ];
    let served = [
        "X:y",
        "X:",
        "X: \t y \t ",
        "X: y\u{e9}\u{ff}",
        "X: y: z",
        "X: GET /v1/other HTTP/1.1",
        "X!#$%&'*+-.^`|~9: y",
    ];
    each(&refused, "", MALFORMED).chain(each(&served, "", Served)).collect()
}

pub(super) fn request_lines() -> Vec<Case> {
    let line = |line: &str, fate| {
        case(line, &format!("{line}\r\n{HOST}{KEY}Content-Length: 5\r\n\r\nhello"), fate)
    };
    let refused = [
        // The separators of the words.
        "POST  /v1/case HTTP/1.1",
        "POST /v1/case  HTTP/1.1",
        "POST\t/v1/case HTTP/1.1",
        "POST /v1/case\tHTTP/1.1",
        "POST\u{b}/v1/case HTTP/1.1",
        "POST\u{a0}/v1/case HTTP/1.1",
        " POST /v1/case HTTP/1.1",
        "POST /v1/case HTTP/1.1 ",
        "POST /v1/case HTTP/1.1\t",
        "POST /v1/case HTTP/1.1 HTTP/1.1",
        "POST /v1/case x HTTP/1.1",
        "POST /v1/case\r HTTP/1.1",
        "POST /v1/case\n HTTP/1.1",
        "POST /v1/case HTTP/1.1\r",
        // Bytes before the request line.
        "\r\nPOST /v1/case HTTP/1.1",
        "\nPOST /v1/case HTTP/1.1",
        "\r\n\r\nPOST /v1/case HTTP/1.1",
        "\u{0}POST /v1/case HTTP/1.1",
        "\u{ef}\u{bb}\u{bf}POST /v1/case HTTP/1.1",
        // Versions.
        "POST /v1/case",
        "POST /v1/case ",
        "POST /v1/case HTTP",
        "POST /v1/case HTTP/",
        "POST /v1/case HTTP/1",
        "POST /v1/case HTTP/0.9",
        "POST /v1/case HTTP/1.2",
        "POST /v1/case HTTP/1.10",
        "POST /v1/case HTTP/01.1",
        "POST /v1/case HTTP/1.01",
        "POST /v1/case HTTP/1,1",
        "POST /v1/case HTTP/1.-1",
        "POST /v1/case HTTP/1.1.1",
        "POST /v1/case HTTP/2.0",
        "POST /v1/case HTTP/2",
        "POST /v1/case HTTP/3",
        "POST /v1/case http/1.1",
        "POST /v1/case Http/1.1",
        "POST /v1/case HTTPS/1.1",
        "POST /v1/case XHTTP/1.1",
        "POST /v1/case HTTP /1.1",
        "POST /v1/case HTTP/1.1x",
        "POST /v1/case HTTP/1.\u{ef}\u{bc}\u{91}",
        // Methods.
        "/v1/case HTTP/1.1",
        "PO\u{0}ST /v1/case HTTP/1.1",
        "PO(ST /v1/case HTTP/1.1",
        "P\u{c3}\u{96}ST /v1/case HTTP/1.1",
        "POST: /v1/case HTTP/1.1",
        // Targets.
        "POST v1/case HTTP/1.1",
        "POST /v1/case#x HTTP/1.1",
        "POST /v1/ca\u{0}se HTTP/1.1",
        "POST /v1/ca\u{7f}se HTTP/1.1",
        "POST \\v1\\case HTTP/1.1",
        "POST ? HTTP/1.1",
        "POST https:/v1/case HTTP/1.1",
        // A slash is not allowed in a method.
        "HTTP/1.1 /v1/case HTTP/1.1",
    ];
    let other_host = [
        "POST https://api.openai.example/v1/case HTTP/1.1",
        "POST http://api.openai.example/v1/case HTTP/1.1",
        "POST https://attacker.example/v1/case HTTP/1.1",
        "POST HTTPS://API.OPENAI.EXAMPLE/v1/case HTTP/1.1",
        "POST :443 HTTP/1.1",
        "POST api.openai.example HTTP/1.1",
        "POST api.openai.example:443 HTTP/1.1",
    ];
    let connect = ["CONNECT api.openai.example:443 HTTP/1.1", "CONNECT /v1/case HTTP/1.1"];
    let methods = ["TRACE /v1/case HTTP/1.1", "post /v1/case HTTP/1.1", "POSTX /v1/case HTTP/1.1"];
    let all = |lines: &[&str], fate| lines.iter().map(|it| line(it, fate)).collect::<Vec<_>>();
    let groups = [
        all(&refused, MALFORMED),
        all(&other_host, OTHER_HOST),
        all(&connect, RefusedAlone(403, "connect_denied")),
        all(&methods, RefusedAlone(403, "method_denied")),
    ];
    let no_fields = [
        ("GET /v1/case\r\n", MALFORMED),
        ("GET /v1/case\r\n\r\n", MALFORMED),
        ("GET /v1/case HTTP/0.9\r\n\r\n", MALFORMED),
        ("GET /v1/case HTTP/1.1\r\n\r\n", MALFORMED_ALONE),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", MALFORMED),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", MALFORMED),
        ("\u{16}\u{3}\u{1}\u{0}\u{5}hello\r\n\r\n", MALFORMED),
    ];
    let no_fields = no_fields.map(|(text, fate)| case(text, text, fate));
    groups
        .into_iter()
        .flatten()
        .chain(no_fields)
        .chain([
            line("POST * HTTP/1.1", MALFORMED_ALONE),
            line("POST //attacker.example/v1/case HTTP/1.1", RefusedAlone(400, "path_ambiguous")),
            line("POST /v1/case HTTP/1.0", Last),
            line("POST /v1/case%20HTTP/1.1 HTTP/1.1", Served),
            line("POST /v1/case?HTTP/1.1 HTTP/1.1", Served),
        ])
        .collect()
}

pub(super) fn hosts_and_options() -> Vec<Case> {
    let hosts = |hosts: &str, fate| case(hosts, &format!("{LINE}{hosts}\r\n{KEY}\r\n"), fate);
    let all = |lines: &[&str], fate| lines.iter().map(|it| hosts(it, fate)).collect::<Vec<_>>();
    let twice = [
        "Host: api.openai.example\r\nHost: api.openai.example",
        "Host: api.openai.example\r\nHost: attacker.example",
        "Host: attacker.example\r\nhost: api.openai.example",
        "Host: api.openai.example\r\nHost:",
        "X: y",
    ];
    let malformed = [
        "Host : api.openai.example",
        " Host: api.openai.example",
        "Host: api.openai.example\r\n attacker.example",
        "Host:\r\n api.openai.example",
        "Host: api.openai.example\u{0}.attacker.example",
        "Host\u{0}: api.openai.example",
        "X: y\r\n Host: attacker.example\r\nHost: api.openai.example",
        "Host: api.openai.example\nHost: attacker.example",
        "Host: api.openai.example\rHost: attacker.example",
    ];
    let other = [
        "Host: attacker.example",
        "Host: api.openai.example, attacker.example",
        "Host: api.openai.example attacker.example",
        "Host: api.openai.example@attacker.example",
        "Host: attacker.example#api.openai.example",
        "Host: api.openai.example/",
        "Host: api.openai.example:80",
        "Host: api.openai.example:",
        "Host: api.openai.example:0443",
        "Host: api.openai.example:443:443",
        "Host: https://api.openai.example",
        "Host: [api.openai.example]",
        "Host: \"api.openai.example\"",
        "Host: api.openai.example\u{ff}",
        "Host: api%2eopenai.example",
        "Host:",
    ];
    let good = ["Host:api.openai.example", "HOST: API.openai.EXAMPLE:443"];
    let upgrades = [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        "Connection: Upgrade\r\nUpgrade: h2c",
        "Upgrade: h2c",
        "Connection: Upgrade",
        "Connection: Upgrade\r\nUpgrade: HTTP/2.0",
        "Connection: Upgrade\r\nUpgrade: TLS/1.2, HTTP/1.1",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777",
        "Connection: Upgrade\r\nUpgrade:",
    ];
    let options = [
        "Connection: authorization",
        "Connection: host",
        "Connection: content-length",
        "Connection: x-api-key",
        "Connection: keep-alive, , x",
        "Connection: cl\u{e9}ose",
        "Connection: \"close\"",
        "Connection: close;",
    ];
    let options_and_close = ["Connection: Authorization, close", "Connection: close, , x"];
    let served = [
        "Connection: keep-alive",
        "Connection: keep-alive, TE\r\nTE: trailers",
        "Connection: transfer-encoding",
        "Keep-Alive: timeout=5, max=1",
        "Proxy-Connection: close",
        "Expect: 100-continue",
        "Expect: 100-continue, x",
        "Expect: x",
        "Max-Forwards: 0",
    ];
    let last = ["Connection: close", "Connection: CLOSE", "Connection: keep-alive, close"];
    let groups = [
        all(&twice, MALFORMED_ALONE),
        all(&malformed, MALFORMED),
        all(&other, OTHER_HOST),
        all(&good, Served),
        each(&upgrades, "", UPGRADE).collect(),
        each(&options, "", MALFORMED_ALONE).collect(),
        each(&options_and_close, "", MALFORMED).collect(),
        each(&served, "", Served).collect(),
        each(&last, "", Last).collect(),
    ];
    let old = |fields: &str| {
        let text = format!("POST /v1/case HTTP/1.0\r\n{HOST}{KEY}{fields}\r\n");
        case(&format!("HTTP/1.0, {fields}"), &text, Last)
    };
    groups
        .into_iter()
        .flatten()
        .chain([
            with("Expect: 100-continue\r\nContent-Length: 5\r\n", "hello", Served),
            with("Expect: 100-continue\r\nContent-Length: 5\r\n", "", REST),
            old(""),
            old("Connection: close\r\n"),
        ])
        .collect()
}
