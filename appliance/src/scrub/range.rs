//! Cuts a part out of the whole answer after that was masked.
//!
//! Where an API would send a part, a secret could be read in two halves, of which no mask finds
//! either. So the gateway asks for the whole, masks it, and cuts out the part that the agent
//! wanted: a download that broke off goes on where it stopped. To ask the API for a wider part
//! would be cheaper; but only the API can tell whether its bytes may be joined with earlier ones,
//! and the surroundings that a mask needs (64 KiB and everything that came before an escape) are
//! not always known. One plain range is cut; for any other the whole is sent, which RFC 9110
//! (section 14.2) leaves to servers.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{
        CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE,
    },
};

/// The part of an answer that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    first: u64,
    last: Option<u64>,
    condition: Option<HeaderValue>,
}

/// The rest of a body of which a part is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    skip: u64,
    take: u64,
}

impl Part {
    /// Returns the part that a request asks for, where that is one range of bytes with a beginning.
    pub fn of(method: &Method, headers: &HeaderMap) -> Option<Self> {
        let only = |name| {
            let mut values = headers.get_all(name).iter();
            values.next().filter(|_| values.next().is_none())
        };
        let range = only(RANGE).filter(|_| method == Method::GET)?.to_str().ok()?;
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let last = if last.is_empty() { None } else { Some(number(last)?) };
        let condition = only(IF_RANGE).cloned();
        let is_plain = headers.contains_key(IF_RANGE) == condition.is_some();
        let part = Self { first: number(first)?, last, condition };
        (is_plain && part.last.is_none_or(|last| last >= part.first)).then_some(part)
    }

    /// Turns the head of a whole answer into that of the part. Returns `None` and leaves the head
    /// as it was where the whole must be passed on: the answer is not a whole one, it differs from
    /// the answer that the agent has a part of, or too much would have to be skipped.
    pub fn cut(&self, status: &mut StatusCode, headers: &mut HeaderMap) -> Option<Window> {
        let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
        let length = number(lengths.next()?.to_str().ok()?)?;
        let is_whole = *status == StatusCode::OK
            && lengths.next().is_none()
            && !headers.contains_key(CONTENT_ENCODING)
            && !headers.contains_key(CONTENT_RANGE);
        if !is_whole || self.first >= length || self.first > MOST_SKIPPED || !self.fits(headers) {
            return None;
        }
        let last = self.last.unwrap_or(u64::MAX).min(length - 1);
        let window = Window { skip: self.first, take: last - self.first + 1 };
        let range = format!("bytes {}-{last}/{length}", self.first);
        headers.insert(CONTENT_RANGE, HeaderValue::try_from(range).ok()?);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(window.take));
        remove_checksums(headers);
        *status = StatusCode::PARTIAL_CONTENT;
        Some(window)
    }

    /// Whether the agent has a part of this very answer (RFC 9110, section 13.1.5).
    fn fits(&self, headers: &HeaderMap) -> bool {
        let Some(condition) = &self.condition else { return true };
        let is_tag = condition.as_bytes().starts_with(b"\"");
        let name = if is_tag { ETAG } else { LAST_MODIFIED };
        !condition.as_bytes().starts_with(b"W/") && headers.get(name) == Some(condition)
    }
}

impl Window {
    /// Returns those of the next bytes of the body that are in the window.
    pub fn cut(&mut self, bytes: Bytes) -> Bytes {
        let length = |count: u64| usize::try_from(count).unwrap_or(usize::MAX).min(bytes.len());
        let begin = length(self.skip);
        let end = length(self.skip.saturating_add(self.take));
        self.skip -= begin as u64;
        self.take -= (end - begin) as u64;
        bytes.slice(begin..end)
    }

    /// Returns the number of bytes that are still to come.
    pub fn left(&self) -> u64 {
        self.take
    }
}

/// Removes checksums of the whole, which are wrong for a part, and which clients check.
fn remove_checksums(headers: &mut HeaderMap) {
    let of_whole =
        |name: &HeaderName| name.as_str().starts_with("x-amz-checksum-") || *name == GOOGLE_HASH;
    let names: Vec<HeaderName> = headers.keys().filter(|name| of_whole(name)).cloned().collect();
    names.iter().for_each(|name| _ = headers.remove(name));
}

const GOOGLE_HASH: HeaderName = HeaderName::from_static("x-goog-hash");

/// Reads a number as HTTP writes it: digits alone.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// The most bytes that are fetched and not passed on.
const MOST_SKIPPED: u64 = 4 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn cut(
        request: &[(&'static str, &str)],
        answer: &[(&'static str, &str)],
    ) -> Option<(String, Window)> {
        let part = Part::of(&Method::GET, &fields(request))?;
        let (mut status, mut headers) = (StatusCode::OK, fields(answer));
        let before = headers.clone();
        let Some(window) = part.cut(&mut status, &mut headers) else {
            assert_eq!((status, headers), (StatusCode::OK, before), "the head stays");
            return None;
        };
        assert_eq!(status, 206);
        assert_eq!(headers["content-length"], window.take.to_string());
        Some((headers["content-range"].to_str().unwrap().to_owned(), window))
    }

    #[test]
    fn a_part_has_no_checksum_of_the_whole() {
        let part = Part::of(&Method::GET, &fields(&[("range", "bytes=3-")])).unwrap();
        let names =
            ["content-length", "x-amz-checksum-crc32", "x-amz-checksum-type", "x-goog-hash"];
        let mut headers = fields(&names.map(|name| (name, "10")));
        headers.append("x-amz-version-id", "1".parse().unwrap());
        part.cut(&mut StatusCode::OK.clone(), &mut headers).unwrap();
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "content-range", "x-amz-version-id"]);
    }

    #[test]
    fn one_range_is_cut_and_any_other_is_the_whole() {
        let of = |range: &str| {
            cut(&[("range", range)], &[("content-length", "10")]).map(|(text, _)| text)
        };
        for (range, expected) in [
            ("bytes=0-", "bytes 0-9/10"),
            ("bytes=3-", "bytes 3-9/10"),
            ("bytes=3-3", "bytes 3-3/10"),
            ("bytes=3-99", "bytes 3-9/10"),
        ] {
            assert_eq!(of(range).as_deref(), Some(expected), "{range}");
        }
        for whole in [
            "bytes=10-",
            "bytes=5-4",
            "bytes=-5",
            "bytes=0-1,3-4",
            "bytes=",
            "bytes=+1-",
            "bytes=1",
            "lines=1-2",
            "bytes= 1-2",
            "bytes=99999999999999999999-",
            "bytes=0x1-",
        ] {
            assert_eq!(of(whole), None, "{whole}");
        }
    }

    #[test]
    fn a_part_is_cut_from_the_answer_the_agent_began() {
        let answer = [
            ("content-length", "10"),
            ("etag", "\"a\""),
            ("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ];
        let with =
            |condition: &str| cut(&[("range", "bytes=1-"), ("if-range", condition)], &answer);
        assert!(with("\"a\"").is_some());
        assert!(with("Mon, 01 Jan 2024 00:00:00 GMT").is_some());
        for other in ["\"b\"", "W/\"a\"", "Mon, 01 Jan 2024 00:00:01 GMT", ""] {
            assert_eq!(with(other), None, "{other}");
        }
        let twice = [("range", "bytes=1-"), ("if-range", "\"a\""), ("if-range", "\"a\"")];
        assert_eq!(cut(&twice, &answer), None);
        assert_eq!(cut(&[("range", "bytes=1-")], &[("etag", "\"a\"")]), None, "no length");
        let coded = [("content-length", "10"), ("content-encoding", "gzip")];
        assert_eq!(cut(&[("range", "bytes=1-")], &coded), None);
    }

    #[test]
    fn a_window_is_the_same_bytes_however_the_body_comes() {
        let body: Vec<u8> = (0..40).collect();
        for (skip, take) in [(0, 40), (7, 12), (39, 1), (0, 1)] {
            for size in 1..=40 {
                let mut window = Window { skip, take };
                let cut = body.chunks(size).flat_map(|it| window.cut(Bytes::copy_from_slice(it)));
                let expected = &body[skip as usize..(skip + take) as usize];
                assert_eq!(cut.collect::<Vec<_>>(), expected, "{skip} {take} {size}");
                assert_eq!(window.left(), 0);
            }
        }
    }
}
