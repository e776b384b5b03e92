//! P-256 keys: zeroised when dropped; never printed or cloned.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use zeroize::{Zeroize, Zeroizing};

use super::Fault;

/// A P-256 key that can sign certificates. There is no Clone, Debug or Display on purpose.
pub(super) struct CaKey(Zeroizing<KeyPair>);

impl CaKey {
    pub(super) fn generate() -> Result<Self, rcgen::Error> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(|pair| Self(Zeroizing::new(pair)))
    }

    /// Reads a text that holds exactly one key, PKCS#8 in PEM.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, Fault> {
        let mut keys = PrivateKeyDer::pem_slice_iter(pem);
        let (Some(Ok(mut key)), None) = (keys.next(), keys.next()) else {
            return Err(Fault::NotOneKey);
        };
        let pair = match &key {
            PrivateKeyDer::Pkcs8(der) => {
                KeyPair::from_pkcs8_der_and_sign_algo(der, &PKCS_ECDSA_P256_SHA256).ok()
            }
            _ => None,
        };
        key.zeroize();
        pair.map(|pair| Self(Zeroizing::new(pair))).ok_or(Fault::NotOneKey)
    }

    /// Returns the key as PKCS#8 in PEM.
    pub(super) fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// Returns the same key for rustls to sign handshakes with.
    pub(super) fn to_rustls(
        &self,
    ) -> Result<std::sync::Arc<dyn rustls::sign::SigningKey>, rustls::Error> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialized_der()));
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der)
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&*self.0)
    }
}

impl SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file() {
        let key = CaKey::generate().unwrap();
        let again = CaKey::from_pem(key.to_pem().as_bytes()).unwrap();
        assert_eq!(key.subject_public_key_info(), again.subject_public_key_info());
    }

    #[test]
    fn what_is_not_exactly_one_p256_key_is_refused() {
        let pem = CaKey::generate().unwrap().to_pem();
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
        let cut = &pem[..pem.len() / 2];
        for text in ["", cut, &p384, &format!("{}{}", *pem, *pem)] {
            assert!(matches!(CaKey::from_pem(text.as_bytes()), Err(Fault::NotOneKey)));
        }
    }
}
