//! A pair of AWS keys in one value, so that both always have one lease and one version:
//! `ID:SECRET`, or `ID:SECRET:TOKEN` for the keys of a session. None of the three has a colon.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::SecretValue;

/// The parts of a value that is a pair of AWS keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AwsKeys<'a> {
    /// The id of the access key, which stands in every signature.
    pub id: &'a str,
    /// The key that signs. It is never sent.
    pub secret: &'a str,
    /// The token of the session to which the keys belong.
    pub token: Option<&'a str>,
}

impl<'a> AwsKeys<'a> {
    /// Reads a value; returns `None` for one that is no such pair.
    pub fn of(value: &'a SecretValue) -> Option<Self> {
        let mut parts = std::str::from_utf8(value.expose()).ok()?.split(':');
        let (id, secret, token) = (parts.next()?, parts.next()?, parts.next());
        // Any other byte in an id would end it in a signature.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.@+".contains(&b);
        let id_is_good = id.bytes().all(plain) && (1..=MAX_ID).contains(&id.len());
        let good = id_is_good && secret.len() >= MIN_SECRET && token != Some("");
        (good && parts.next().is_none()).then_some(Self { id, secret, token })
    }

    /// Returns the parts that are masked besides the whole value: each part that is as long as the
    /// least that a binding may ask for.
    pub(super) fn parts(value: &'a SecretValue) -> Vec<Arc<SecretValue>> {
        let Some(Self { id, secret, token }) = Self::of(value) else { return vec![] };
        let parts = [Some(id), Some(secret), token].into_iter().flatten();
        let load = |part: &str| {
            let bytes = Zeroizing::new(part.as_bytes().to_vec());
            SecretValue::load(bytes, SecretValue::FLOOR_BYTES).ok().map(Arc::new)
        };
        parts.filter_map(load).collect()
    }
}

/// Most bytes of an id; those of AWS have 16 to 128.
const MAX_ID: usize = 128;
/// Least bytes of a secret key; those of AWS have 40.
const MIN_SECRET: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> SecretValue {
        SecretValue::load(Zeroizing::new(text.as_bytes().to_vec()), 8).unwrap()
    }

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

    #[test]
    fn a_pair_of_keys_has_two_parts_or_three() {
        for (text, token) in [
            (format!("AKIDEXAMPLE:{SECRET}"), None),
            (format!("ASIAEXAMPLE:{SECRET}:FwoGZXIvYXdzEBY+/="), Some("FwoGZXIvYXdzEBY+/=")),
        ] {
            let value = value(&text);
            let keys = AwsKeys::of(&value).unwrap();
            assert_eq!((keys.secret, keys.token), (SECRET, token));
            let parts: Vec<_> =
                AwsKeys::parts(&value).iter().map(|it| it.expose().to_vec()).collect();
            assert!(parts.iter().map(|it| &**it).eq(text.split(':').map(str::as_bytes)));
        }
        for text in [
            SECRET,
            &format!(":{SECRET}"),
            "AKIDEXAMPLE:short",
            "AKIDEXAMPLE:",
            &format!("AKID/X:{SECRET}"),
            &format!("AKID,X:{SECRET}"),
            &format!("AKIDEXAMPLE:{SECRET}:"),
            &format!("AKIDEXAMPLE:{SECRET}:a:b"),
        ] {
            assert!(AwsKeys::of(&value(text)).is_none(), "{text}");
        }
    }
}
