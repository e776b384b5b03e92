//! The encryption of a file of secrets at rest: one line that marks it, then AES-256-GCM under a
//! random nonce. A file that was cut, altered or encrypted with another key is not opened at all.
//!
//! ```text
//! cloakroom-secrets 1 LF   nonce, 12 bytes   ciphertext   tag, 16 bytes
//! ```
//!
//! The key is 32 random bytes in a file of their own. Each writing draws a nonce; one key sees far
//! fewer of them than the 2^32 that NIST SP 800-38D, section 8.3 allows. An old file under the same
//! key cannot be told from the newest: a user who may replace the file can bring back its earlier
//! content, and nothing else.
//! it said before, and nothing else.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// The key of a file of secrets. Never printed or cloned.
pub(super) struct SealKey(RandomizedNonceKey);

/// The error where the system returned no random bytes, or the cipher failed. Nothing was
/// encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SealError;

/// Returns whether the file is marked as encrypted.
pub(super) fn is_sealed(content: &[u8]) -> bool {
    content.starts_with(HEADER)
}

impl SealKey {
    /// Generates a key, as the text of its file.
    pub(super) fn generate() -> Result<Zeroizing<String>, SealError> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        rand::fill(bytes.as_mut_slice()).map_err(|_| SealError)?;
        // The text has room for all of it from the start: one that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(KEY_PREFIX.len() + 2 * KEY_BYTES));
        text.push_str(KEY_PREFIX);
        URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut text);
        text.push('\n');
        Ok(text)
    }

    /// Returns the key that the text of a file holds, if it is one.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let digits = text.trim_ascii_end().strip_prefix(KEY_PREFIX.as_bytes())?;
        let mut bytes = Zeroizing::new([0; 2 * KEY_BYTES]);
        let length = URL_SAFE_NO_PAD.decode_slice(digits, bytes.as_mut_slice()).ok()?;
        let key = bytes.get(..length).filter(|key| key.len() == KEY_BYTES)?;
        RandomizedNonceKey::new(&AES_256_GCM, key).ok().map(Self)
    }

    /// Returns the whole file for `plain`.
    pub(super) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut body = Zeroizing::new(Vec::with_capacity(plain.len() + AES_256_GCM.tag_len()));
        body.extend_from_slice(plain);
        let nonce = self.0.seal_in_place_append_tag(Aad::from(HEADER), &mut *body);
        let nonce = nonce.map_err(|_| SealError)?;
        Ok([HEADER, nonce.as_ref(), &body].concat())
    }

    /// Returns the decrypted content, if the file is whole, unaltered and of this key.
    pub(super) fn open(&self, file: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, body) = file.strip_prefix(HEADER)?.split_first_chunk::<NONCE_LEN>()?;
        let mut body = Zeroizing::new(body.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.0.open_in_place(nonce, Aad::from(HEADER), &mut body).ok()?.len();
        body.truncate(length);
        Some(body)
    }
}

const HEADER: &[u8] = b"cloakroom-secrets 1\n";
const KEY_PREFIX: &str = "cloakroom-key-1:";
const KEY_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> SealKey {
        SealKey::parse(SealKey::generate().unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn a_sealed_file_opens_with_its_own_key_alone() {
        let (key, other) = (key(), key());
        for plain in [b"".as_slice(), b"openai = sk-0123456789abcdef\n"] {
            let file = key.seal(plain).unwrap();
            assert!(is_sealed(&file));
            assert_eq!(key.open(&file).unwrap().as_slice(), plain);
            assert!(other.open(&file).is_none());
            assert_ne!(key.seal(plain).unwrap(), file, "a nonce of its own each time");
        }
    }

    #[test]
    fn a_file_changed_in_any_bit_is_not_opened() {
        let key = key();
        let file = key.seal(b"openai = sk-0123456789abcdef\n").unwrap();
        for at in 0..file.len() {
            assert!(key.open(&file[..at]).is_none(), "cut at {at}");
            let mut altered = file.clone();
            altered[at] ^= 1;
            assert!(key.open(&altered).is_none(), "altered at {at}");
        }
        assert!(key.open(&[file.as_slice(), b"\n"].concat()).is_none());
    }

    #[test]
    fn a_text_that_is_no_key_is_not_taken() {
        let good = SealKey::generate().unwrap();
        let good = good.trim_end();
        assert!(SealKey::parse(good.as_bytes()).is_some());
        for bad in ["", "cloakroom-key-1:", "hunter2", &good[1..], &good[..good.len() - 1]] {
            assert!(SealKey::parse(bad.as_bytes()).is_none(), "{bad}");
        }
        for bad in [format!("{good}AAAA"), good.replace("-1:", "-2:"), format!("{good}\n{good}")] {
            assert!(SealKey::parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_opened_or_refused(bytes: Vec<u8>) {
            let _ = SealKey::parse(&bytes);
            prop_assert!(key().open(&[HEADER, &bytes].concat()).is_none());
        }
    }
}
