//! The causes of failed TLS handshakes, in words that say what to do about them.

use std::{io, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, Error, InvalidMessage, OtherError,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::reason::TlsCause;

/// A handshake that failed for TLS itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsFailure {
    /// The cause.
    pub cause: TlsCause,
    /// The alert of the other side, where it sent one.
    pub alert: Option<&'static str>,
}

impl TlsFailure {
    /// Returns the failure of TLS that this error holds, or `None` where the connection broke.
    pub fn of(error: &io::Error) -> Option<Self> {
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        Some(Self { cause: cause(error), alert: alert(error) })
    }
}

fn cause(error: &Error) -> TlsCause {
    match error {
        Error::InvalidCertificate(error) => certificate_cause(error),
        Error::AlertReceived(_) => TlsCause::AlertReceived,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => TlsCause::NothingInCommon,
        // The first bytes are not a TLS record.
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge,
        ) => TlsCause::NotTls,
        Error::NoCertificatesPresented => TlsCause::CertificateInvalid,
        _ => TlsCause::ProtocolViolated,
    }
}

fn certificate_cause(error: &CertificateError) -> TlsCause {
    use CertificateError as E;
    match error {
        E::Expired | E::ExpiredContext { .. } => TlsCause::Expired,
        E::NotValidYet | E::NotValidYetContext { .. } => TlsCause::NotYetValid,
        E::NotValidForName | E::NotValidForNameContext { .. } => TlsCause::WrongName,
        E::UnknownIssuer => TlsCause::UnknownIssuer,
        E::BadSignature => TlsCause::BadSignature,
        E::Other(OtherError(other)) if other.is::<SelfSigned>() => TlsCause::SelfSigned,
        _ => TlsCause::CertificateInvalid,
    }
}

fn alert(error: &Error) -> Option<&'static str> {
    match error {
        Error::AlertReceived(alert) => Some(alert_word(*alert)),
        _ => None,
    }
}

/// The name that RFC 8446, section 6, and the registry of alerts give it.
const fn alert_word(alert: AlertDescription) -> &'static str {
    use AlertDescription as A;
    match alert {
        A::CloseNotify => "close_notify",
        A::UnexpectedMessage => "unexpected_message",
        A::BadRecordMac => "bad_record_mac",
        A::RecordOverflow => "record_overflow",
        A::HandshakeFailure => "handshake_failure",
        A::BadCertificate => "bad_certificate",
        A::UnsupportedCertificate => "unsupported_certificate",
        A::CertificateRevoked => "certificate_revoked",
        A::CertificateExpired => "certificate_expired",
        A::CertificateUnknown => "certificate_unknown",
        A::IllegalParameter => "illegal_parameter",
        A::UnknownCA => "unknown_ca",
        A::AccessDenied => "access_denied",
        A::DecodeError => "decode_error",
        A::DecryptError => "decrypt_error",
        A::ProtocolVersion => "protocol_version",
        A::InsufficientSecurity => "insufficient_security",
        A::InternalError => "internal_error",
        A::InappropriateFallback => "inappropriate_fallback",
        A::UserCanceled => "user_canceled",
        A::MissingExtension => "missing_extension",
        A::UnsupportedExtension => "unsupported_extension",
        A::UnrecognisedName => "unrecognized_name",
        A::BadCertificateStatusResponse => "bad_certificate_status_response",
        A::CertificateRequired => "certificate_required",
        A::NoApplicationProtocol => "no_application_protocol",
        _ => "other",
    }
}

/// Verifies as `WebPkiServerVerifier` does, and tells a certificate that signs itself apart from
/// one whose issuer is unknown: the first is repaired by trusting it, the second often by its
/// server.
#[derive(Debug)]
pub(super) struct Verifier(pub(super) Arc<WebPkiServerVerifier>);

/// The certificate names itself as its issuer.
#[derive(Debug, thiserror::Error)]
#[error("the certificate is signed by itself")]
struct SelfSigned;

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.verify_server_cert(leaf, chain, name, ocsp, now).map_err(|error| match error {
            Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::Other(_),
            ) if is_self_signed(leaf) => {
                CertificateError::Other(OtherError(Arc::new(SelfSigned))).into()
            }
            other => other,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, certificate)| certificate.subject() == certificate.issuer())
}
