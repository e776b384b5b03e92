//! Why a connection or a request was refused: one closed list of words.
//!
//! The same word stands in the audit record, in the answer, and, for what the kernel refuses, in
//! the packet rules. A new reason does not compile until it has its word here and its wire form in
//! [`crate::refuse`].

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)+) => {
        /// The reasons for which the gateway refuses.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $variant,)+ }

        impl Reason {
            /// All reasons, in the order of this file.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Returns the word that audit, answers and packet rules share.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}

reasons! {
    /// The source belongs to no agent group.
    NoGroup = "no_group",
    /// The source address is not one that its interface may use.
    SpoofedSource = "spoofed_source",
    /// Multicast or broadcast, which reaches nobody beyond the sender's link.
    MulticastDenied = "multicast_denied",
    /// The dialled address may not be reached by policy.
    DestinationDenied = "destination_denied",
    /// The dialled port may not be reached by policy.
    PortDenied = "port_denied",
    /// Neither TLS nor HTTP where one of the two is required.
    ProtocolDenied = "protocol_denied",
    /// The dialled address is the gateway's own: a loop.
    SelfDestination = "self_destination",
    /// Too few bytes to decide on before the deadline.
    PeekTimeout = "peek_timeout",
    /// Plain HTTP to a host that policy allows over TLS only.
    NotTls = "not_tls",
    /// A ClientHello that does not parse, or that two parsers read differently.
    TlsMalformed = "tls_malformed",
    /// A ClientHello without a usable host name.
    SniMissing = "sni_missing",
    /// A host name that policy does not list for this group.
    SniDenied = "sni_denied",
    /// A ClientHello that carries Encrypted Client Hello for a listed name whose rule does not say
    /// `ech = "allow"`.
    EchDenied = "ech_denied",
    /// No application protocol in common.
    AlpnDenied = "alpn_denied",
    /// The dialled address is not one that the gateway answers for this name.
    DialledElsewhere = "dialled_elsewhere",
    /// The name could not be resolved.
    ResolveFailed = "resolve_failed",
    /// The name resolves to an address that must not be dialled.
    PrivateAddress = "private_address",
    /// No connection to the upstream, or no answer that can be passed on: the answer ended early,
    /// or its head is larger than the gateway takes.
    UpstreamUnreachable = "upstream_unreachable",
    /// The upstream's certificate did not verify for the exact name.
    UpstreamTlsInvalid = "upstream_tls_invalid",
    /// The agent ended the handshake in which it was shown the gateway's certificate.
    AgentTlsFailed = "agent_tls_failed",
    /// A name that agents may not resolve.
    DnsDenied = "dns_denied",
    /// Too many DNS queries.
    DnsRate = "dns_rate",
    /// Authority, Host and SNI are not one name and port.
    HostMismatch = "host_mismatch",
    /// An HTTP message that is malformed or ambiguous.
    HttpMalformed = "http_malformed",
    /// An HTTP head or body that did not arrive before its deadline.
    HttpTimeout = "http_timeout",
    /// A head beyond the bounds on size or number of fields.
    HeaderLimit = "header_limit",
    /// A body that has to be read whole is beyond the bound on its size.
    BodyLimit = "body_limit",
    /// CONNECT inside an intercepted connection.
    ConnectDenied = "connect_denied",
    /// An Upgrade that the gateway does not carry.
    UpgradeDenied = "upgrade_denied",
    /// A frame of a WebSocket, of the agent's or the upstream's, that its protocol forbids.
    WebsocketMalformed = "websocket_malformed",
    /// A message of a WebSocket, or a rate of its control frames, beyond the bounds.
    WebsocketLimit = "websocket_limit",
    /// The method is not listed for this host.
    MethodDenied = "method_denied",
    /// The path is not listed for this host.
    PathDenied = "path_denied",
    /// The path could be read in two ways.
    PathAmbiguous = "path_ambiguous",
    /// A credential field in the trailers.
    TrailerDenied = "trailer_denied",
    /// A request without any credential where one is required.
    PlaceholderMissing = "placeholder_missing",
    /// A placeholder of this group at a host that it does not belong to.
    PlaceholderWrongHost = "placeholder_wrong_host",
    /// A placeholder of this host in a place that its binding does not list.
    PlaceholderWrongPlace = "placeholder_wrong_place",
    /// A placeholder in the clear.
    PlaintextPlaceholder = "plaintext_placeholder",
    /// A credential that is not a placeholder of this group and host.
    ForeignCredential = "foreign_credential",
    /// A text that looks like a ticket, but is no good ticket of this group.
    TicketEnded = "ticket_ended",
    /// The agent, or its group, has as many tickets as it may have.
    TicketLimit = "ticket_limit",
    /// More than one credential.
    DuplicateCredential = "duplicate_credential",
    /// A credential whose encoding does not decode.
    CredentialMalformed = "credential_malformed",
    /// A signature of AWS for a service or region that is not listed.
    ScopeDenied = "scope_denied",
    /// A signature of AWS of a kind that the gateway does not make again.
    SignatureDenied = "signature_denied",
    /// A signature of AWS that was made too long ago, or in the future.
    SignatureExpired = "signature_expired",
    /// There is no usable value behind the placeholder.
    SecretUnavailable = "secret_unavailable",
    /// A response in an encoding that cannot be scrubbed.
    ResponseUnscannable = "response_unscannable",
    /// A response in which a secret was masked.
    ResponseMasked = "response_masked",
    /// Responses that look as if somebody were guessing at a secret: they often hold much of one.
    SecretProbed = "secret_probed",
    /// The audit cannot be written.
    AuditUnavailable = "audit_unavailable",
    /// Too many connections at once.
    ConnectionLimit = "connection_limit",
    /// Too many connections or requests in an interval.
    RateLimit = "rate_limit",
    /// The policy that allowed this flow no longer does.
    PolicyRevoked = "policy_revoked",
    /// The group is quarantined.
    Quarantined = "quarantined",
    /// The gateway is about to stop.
    ShuttingDown = "shutting_down",
    /// The gateway itself failed; nothing was forwarded.
    InternalError = "internal_error",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a secret has no usable value. Operators and the audit see it; agents never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SecretCause {
    /// Vault answered 403 or 404: the gateway may not have this secret, or there is none.
    VaultDenied,
    /// Vault could not be reached, or its certificate did not verify.
    VaultUnreachable,
    /// Vault is sealed, in standby or not initialised.
    VaultSealed,
    /// A quota of Vault's refuses the request.
    VaultQuota,
    /// The lease, or the time that a value may outlive its source, has ended, and it is not known
    /// yet why there is no other value.
    LeaseEnded,
    /// The value cannot be put on the wire safely.
    ValueInvalid,
    /// The file of secrets does not hold this name.
    NotInFile,
}

impl SecretCause {
    /// All causes.
    pub const ALL: &'static [Self] = &[
        Self::VaultDenied,
        Self::VaultUnreachable,
        Self::VaultSealed,
        Self::VaultQuota,
        Self::LeaseEnded,
        Self::ValueInvalid,
        Self::NotInFile,
    ];

    /// Returns the word that the audit uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VaultDenied => "vault_denied",
            Self::VaultUnreachable => "vault_unreachable",
            Self::VaultSealed => "vault_sealed",
            Self::VaultQuota => "vault_quota",
            Self::LeaseEnded => "lease_ended",
            Self::ValueInvalid => "value_invalid",
            Self::NotInFile => "not_in_file",
        }
    }
}

impl fmt::Display for SecretCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why the TLS handshake with an upstream failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsCause {
    /// The certificate, or one above it, is no longer valid.
    Expired,
    /// It is not valid yet, or the gateway's clock is wrong.
    NotYetValid,
    /// It is for other names.
    WrongName,
    /// It signs itself and is not among the CAs that are trusted here.
    SelfSigned,
    /// It is signed by a CA that is not trusted here, or the server did not send a CA between the
    /// two.
    UnknownIssuer,
    /// A signature in the chain, or in the handshake, does not fit its key.
    BadSignature,
    /// It cannot be read, or is not a server's certificate.
    CertificateInvalid,
    /// The upstream ended the handshake with an alert.
    AlertReceived,
    /// The two sides have no version, cipher suite or application protocol in common.
    NothingInCommon,
    /// The server breaks the rules of TLS.
    ProtocolViolated,
    /// The server does not speak TLS.
    NotTls,
}

impl TlsCause {
    /// All causes.
    pub const ALL: &'static [Self] = &[
        Self::Expired,
        Self::NotYetValid,
        Self::WrongName,
        Self::SelfSigned,
        Self::UnknownIssuer,
        Self::BadSignature,
        Self::CertificateInvalid,
        Self::AlertReceived,
        Self::NothingInCommon,
        Self::ProtocolViolated,
        Self::NotTls,
    ];

    /// Returns the word that the audit uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "certificate_expired",
            Self::NotYetValid => "certificate_not_yet_valid",
            Self::WrongName => "certificate_wrong_name",
            Self::SelfSigned => "certificate_self_signed",
            Self::UnknownIssuer => "certificate_unknown_issuer",
            Self::BadSignature => "bad_signature",
            Self::CertificateInvalid => "certificate_invalid",
            Self::AlertReceived => "alert_received",
            Self::NothingInCommon => "nothing_in_common",
            Self::ProtocolViolated => "protocol_violated",
            Self::NotTls => "not_tls",
        }
    }
}

impl fmt::Display for TlsCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The cause behind a reason, where the reason alone names no remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Behind [`Reason::SecretUnavailable`].
    Secret(SecretCause),
    /// Behind [`Reason::UpstreamTlsInvalid`].
    Tls(TlsCause),
}

impl Cause {
    /// Returns the word that the audit uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Secret(cause) => cause.as_str(),
            Self::Tls(cause) => cause.as_str(),
        }
    }
}

impl From<SecretCause> for Cause {
    fn from(cause: SecretCause) -> Self {
        Self::Secret(cause)
    }
}

impl From<TlsCause> for Cause {
    fn from(cause: TlsCause) -> Self {
        Self::Tls(cause)
    }
}
