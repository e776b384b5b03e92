//! The form of a ticket: random, and of one length whatever it stands for.

use aws_lc_rs::rand;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use crate::{policy::TicketShape, secrets::SecretValue};

/// Makes the text of a new ticket. Returns `None` where there is no randomness.
pub(super) fn fresh(shape: TicketShape, value: &SecretValue) -> Option<String> {
    let mut bytes = [0; RANDOM_BYTES];
    rand::fill(&mut bytes).ok()?;
    let word = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
    let times = match shape {
        TicketShape::Opaque => None,
        TicketShape::Jwt => times_of(value.expose()),
    };
    Some(match times {
        None => word,
        Some(times) => {
            [&URL_SAFE_NO_PAD.encode(HEAD), &URL_SAFE_NO_PAD.encode(times), &*word].join(".")
        }
    })
}

/// Returns whether a text could be a ticket, of whatever gateway, now or before.
pub fn looks_like_ticket(text: &[u8]) -> bool {
    let word = text.rsplit(|&byte| byte == b'.').next().unwrap_or_default();
    let is_random = |rest: &[u8]| {
        rest.len() == RANDOM_BYTES.div_ceil(3) * 4 - 1
            && rest.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
    };
    let parts = text.iter().filter(|&&byte| byte == b'.').count();
    matches!(parts, 0 | 2) && word.strip_prefix(PREFIX.as_bytes()).is_some_and(is_random)
}

/// Returns when a JSON Web Token (RFC 7519) was made and ends, as a set of claims; `None` where the
/// text is no such token.
fn times_of(token: &[u8]) -> Option<String> {
    let mut parts = token.split(|&byte| byte == b'.');
    let (Some(_), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let claims = zeroize::Zeroizing::new(URL_SAFE_NO_PAD.decode(claims).ok()?);
    let claims: Map<String, Value> = serde_json::from_slice(&claims).ok()?;
    let whole = |name: &str| Some((name.to_owned(), Value::from(claims.get(name)?.as_u64()?)));
    let times: Map<_, _> = TIMES.into_iter().filter_map(whole).collect();
    serde_json::to_string(&times).ok()
}

/// The beginning of every ticket, or of its last part.
const PREFIX: &str = "ticket_1";
/// Enough random bytes that nobody guesses them.
const RANDOM_BYTES: usize = 32;
/// The head of a token that nobody has signed.
const HEAD: &str = r#"{"alg":"none","typ":"JWT"}"#;
/// Claims of times (RFC 7519, section 4.1).
const TIMES: [&str; 3] = ["exp", "iat", "nbf"];

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn value(text: &str) -> SecretValue {
        SecretValue::load(Zeroizing::new(text.into()), 16).unwrap()
    }

    #[test]
    fn a_ticket_is_random_and_of_one_length() {
        let short = fresh(TicketShape::Opaque, &value("0123456789abcdef")).unwrap();
        let long = fresh(TicketShape::Jwt, &value(&"x".repeat(4_000))).unwrap();
        assert_eq!((short.len(), long.len()), (51, 51));
        assert_ne!(short, long);
        assert!(looks_like_ticket(short.as_bytes()) && looks_like_ticket(long.as_bytes()));
    }

    #[test]
    fn a_tokens_ticket_tells_its_end_and_nothing_else() {
        let claims = r#"{"sub":"who","exp":1800000000,"iat":"x","nbf":1700000000,"scope":"all"}"#;
        let token = format!("eyJhbGciOiJSUzI1NiJ9.{}.c2lnbmF0dXJl", URL_SAFE_NO_PAD.encode(claims));
        let ticket = fresh(TicketShape::Jwt, &value(&token)).unwrap();
        let parts: Vec<_> = ticket.split('.').collect();
        let read = |part: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        assert_eq!(read(parts[0]), HEAD);
        assert_eq!(read(parts[1]), r#"{"exp":1800000000,"nbf":1700000000}"#);
        assert!(URL_SAFE_NO_PAD.decode(parts[2]).is_ok(), "a signature is base64");
        assert!(looks_like_ticket(ticket.as_bytes()));
        let opaque = fresh(TicketShape::Opaque, &value(&token)).unwrap();
        assert_eq!(opaque.len(), 51);
    }

    #[test]
    fn only_a_whole_ticket_looks_like_one() {
        let ticket = fresh(TicketShape::Opaque, &value("0123456789abcdef")).unwrap();
        for text in [
            "",
            "ticket_1",
            &ticket[1..],
            &format!("{ticket}x"),
            &ticket[..49],
            &format!("a.{ticket}"),
        ] {
            assert!(!looks_like_ticket(text.as_bytes()), "{text}");
        }
    }
}
