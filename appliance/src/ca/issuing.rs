//! The CA that signs the leaves of one rule and can sign for no other names.

use std::{
    collections::BTreeSet,
    fmt,
    io::ErrorKind,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType,
};
use rustls::{pki_types::CertificateDer, sign::CertifiedKey};

use super::{
    BACKDATE, CaError, DAY, Fault, FileFault, HOUR, TlsRule,
    check::{self, Validity},
    constraint_names, date,
    folder::{Access, CaFolder},
    key::CaKey,
    name_constraints::NameConstraints,
    one_certificate, random_serial,
    root::Root,
    unix_seconds,
};
use crate::policy::{Constraints, Host, HostPattern, RuleName};

/// The issuing CA of one rule, with its key.
pub struct IssuingCa {
    rule: RuleName,
    names: Vec<HostPattern>,
    /// Its certificate, and those between it and the root.
    chain: Vec<CertificateDer<'static>>,
    validity: Validity,
    issuer: Issuer<'static, CaKey>,
}

/// A certificate and its key as they stand in the folder.
pub(super) struct Pair {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: CaKey,
    pub(super) validity: Validity,
}

/// A leaf, and the times (seconds since 1970) between which it may be used.
pub(super) struct Leaf {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) not_before: i64,
    pub(super) renew_at: i64,
}

impl IssuingCa {
    /// Loads the CA of `rule` from `dir`: `RULE.pem`, one certificate, and `RULE.key`.
    ///
    /// Waits up to two seconds for a `cloakroom ca issue` that is at work there, so a thread that
    /// carries flows must not call it.
    ///
    /// # Errors
    ///
    /// Every doubt is fatal: a key that others may read or that is not the certificate's, names
    /// that are not exactly those of the rule, an end that has come.
    /// certificate's, names that are not exactly those of the rule, an end that has come.
    pub fn load(dir: &Path, rule: &TlsRule, now: SystemTime) -> Result<Self, CaError> {
        let now = unix_seconds(now)?;
        let TlsRule { rule, names, constraints } = rule;
        let fault = |fault| CaError::Issuing { rule: rule.clone(), fault };
        let wanted =
            constraint_names(names).ok_or_else(|| CaError::Unconstrainable(rule.clone()))?;
        let folder = CaFolder::open(dir).map_err(|error| match error {
            CaError::File { fault: FileFault::Io(e), .. } if e.kind() == ErrorKind::NotFound => {
                fault(Fault::Missing)
            }
            error => error,
        })?;
        let lock = folder.lock_to_read()?;
        let pair = Pair::read(&folder, rule, &wanted, *constraints).map_err(fault)?;
        drop(lock);
        pair.validity.check(now, 1).map_err(fault)?;
        let Pair { certificate, key, validity } = pair;
        Self::assemble((rule.clone(), names.to_vec()), vec![certificate], key, validity)
    }

    /// Builds the CA from parts that were checked. The first certificate of `chain` is the one of
    /// `key`.
    pub(super) fn assemble(
        (rule, names): (RuleName, Vec<HostPattern>),
        chain: Vec<CertificateDer<'static>>,
        key: CaKey,
        validity: Validity,
    ) -> Result<Self, CaError> {
        let none = || CaError::Issuing { rule: rule.clone(), fault: Fault::Missing };
        let issuer = Issuer::from_ca_cert_der(chain.first().ok_or_else(none)?, key)?;
        Ok(Self { rule, names, chain, validity, issuer })
    }

    /// Returns the rule that it belongs to.
    pub fn rule(&self) -> &RuleName {
        &self.rule
    }

    /// Returns the names that it may sign for.
    pub fn names(&self) -> &[HostPattern] {
        &self.names
    }

    /// Returns when it ends. From then on there are no leaves, unless `cloakroom ca issue` and a
    /// reload come before.
    pub fn ends(&self) -> SystemTime {
        let seconds = u64::try_from(self.validity.not_after).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Returns when it began.
    pub fn begins(&self) -> SystemTime {
        let seconds = u64::try_from(self.validity.not_before).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Returns the time from which its replacement is long overdue. CAs are replaced from the last
    /// third of their lives on.
    pub fn overdue_from(&self) -> SystemTime {
        let tenths = u64::try_from(self.validity.life() / 10 * 3).unwrap_or(0);
        self.ends().checked_sub(Duration::from_secs(tenths)).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Returns whether it may sign for `host`.
    pub fn covers(&self, host: &Host) -> bool {
        self.names.iter().any(|name| name.matches(host))
    }

    /// Makes a leaf with a key of its own for one name. The leaf lives 24 hours, of which one has
    /// passed, and never beyond the end of this CA.
    pub(super) fn mint(&self, host: &Host, now: i64) -> Result<Leaf, CaError> {
        let fault = |fault| CaError::Issuing { rule: self.rule.clone(), fault };
        if !self.covers(host) {
            return Err(CaError::OutsideNames { rule: self.rule.clone(), host: host.clone() });
        }
        self.validity.check(now, 1).map_err(fault)?;
        self.sign_leaf(host, now)
    }

    /// Signs a leaf without the checks of [`IssuingCa::mint`].
    pub(super) fn sign_leaf(&self, host: &Host, now: i64) -> Result<Leaf, CaError> {
        let not_before = now.saturating_sub(BACKDATE);
        let not_after = not_before.saturating_add(LEAF_SPAN).min(self.validity.not_after);
        let key = CaKey::generate()?;
        let leaf = leaf_params(host, not_before, not_after)?.signed_by(&key, &self.issuer)?;
        let chain = std::iter::once(leaf.der()).chain(&self.chain).cloned().collect();
        let key = Arc::new(CertifiedKey::new(chain, key.to_rustls().map_err(CaError::Key)?));
        let quarter = not_after.saturating_sub(now) / 4;
        Ok(Leaf { key, not_before, renew_at: not_after.saturating_sub(quarter) })
    }
}

impl Pair {
    /// Reads a pair and checks it against the names. The folder is locked.
    pub(super) fn read(
        folder: &CaFolder,
        rule: &RuleName,
        names: &BTreeSet<&str>,
        constraints: Constraints,
    ) -> Result<Self, Fault> {
        let read = |name: String, access, most| {
            let bytes = folder.read(&name, access, most);
            bytes.map_err(|fault| Fault::File { name, fault })?.ok_or(Fault::Missing)
        };
        let pem = read(certificate_file(rule), Access::Public, CERTIFICATE_BYTES)?;
        let key = read(key_file(rule), Access::Private, KEY_BYTES)?;
        let (certificate, key) = (one_certificate(&pem)?, CaKey::from_pem(&key)?);
        check::check_key(&certificate, &key)?;
        let validity = check::check_issuing(&certificate, names, constraints)?;
        Ok(Self { certificate, key, validity })
    }
}

impl fmt::Debug for IssuingCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuingCa").field("rule", &self.rule).finish_non_exhaustive()
    }
}

/// Makes a key and its certificate in PEM. The certificate ends with the root where that ends
/// first.
pub(super) fn make(
    root: &Root,
    rule: &RuleName,
    (names, constraints): (&BTreeSet<&str>, Constraints),
    now: i64,
) -> Result<(CaKey, String), CaError> {
    let key = CaKey::generate()?;
    let not_after = now.saturating_add(LIFE).min(root.validity().not_after);
    let mut params = ca_params(rule)?;
    params.custom_extensions.push(NameConstraints::only(names).extension(constraints));
    params.not_before = date(now.saturating_sub(BACKDATE))?;
    params.not_after = date(not_after)?;
    let certificate = params.signed_by(&key, root.issuer())?;
    Ok((key, certificate.pem()))
}

pub(super) fn certificate_file(rule: &RuleName) -> String {
    format!("{rule}.pem")
}

pub(super) fn key_file(rule: &RuleName) -> String {
    format!("{rule}.key")
}

/// Returns all parameters of the certificate except the names that it is limited to.
fn ca_params(rule: &RuleName) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Cloakroom issuing CA");
    params.distinguished_name.push(DnType::CommonName, rule.as_str());
    params.serial_number = Some(random_serial()?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn leaf_params(host: &Host, not_before: i64, not_after: i64) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // The common name is for people and has room for 64 characters (RFC 5280, appendix A.1).
    // Without one the subject is empty, and rcgen marks the SAN as critical.
    if host.as_str().len() <= COMMON_NAME_BYTES {
        params.distinguished_name.push(DnType::CommonName, host.as_str());
    }
    params.subject_alt_names = vec![SanType::DnsName(host.as_str().try_into()?)];
    params.serial_number = Some(random_serial()?);
    params.not_before = date(not_before)?;
    params.not_after = date(not_after)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Lifetime of an issuing CA.
const LIFE: i64 = 90 * DAY;
/// A leaf's lifetime less one second: both ends of its validity belong to it (RFC 5280, section
/// 4.1.2.5).
const LEAF_SPAN: i64 = 24 * HOUR - 1;
const COMMON_NAME_BYTES: usize = 64;
const KEY_BYTES: usize = 4 * 1024;
const CERTIFICATE_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use rcgen::Certificate;
    use x509_parser::{
        certificate::X509Certificate,
        der_parser::Oid,
        extensions::ParsedExtension,
        oid_registry::{OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_NAME_CONSTRAINTS},
        parse_x509_certificate,
    };

    use super::*;
    use crate::ca::testing::{
        Installation, exact, host, later, now, openssl_verify, tls_rule, verify,
    };

    fn chain(ca: &IssuingCa, name: &str) -> Vec<CertificateDer<'static>> {
        ca.mint(&host(name), unix_seconds(now()).unwrap()).unwrap().key.cert.clone()
    }

    /// Makes the chain that a thief of the issuing key would make.
    fn forge(ca: &IssuingCa, san: SanType) -> Vec<CertificateDer<'static>> {
        let now = unix_seconds(now()).unwrap();
        let mut params = leaf_params(&host("any.test"), now - 60, now + 60).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![san];
        let key = CaKey::generate().unwrap();
        let leaf: Certificate = params.signed_by(&key, &ca.issuer).unwrap();
        vec![leaf.der().clone(), ca.chain[0].clone()]
    }

    #[test]
    fn a_chain_is_verified_with_the_root_alone() {
        let long = format!("{0}.{0}.test", "a".repeat(60));
        let names = ["api.test", "under_score.test", &long];
        let (made, ca) = Installation::with("api", &names);
        let root = made.root.certificate().der();
        for name in names {
            let chain = chain(&ca, name);
            assert_eq!(verify(root, &chain, name, now()), Ok(()), "{name}");
            if let Some(said) = openssl_verify(&made.scratch, root, &chain) {
                assert_eq!(said, Ok(()), "{name}");
            }
        }
        let api = chain(&ca, "api.test");
        assert!(verify(root, &api, "under_score.test", now()).is_err(), "one name each");
        let other = Installation::new();
        assert!(verify(other.root.certificate().der(), &api, "api.test", now()).is_err());
    }

    #[test]
    fn a_stolen_issuing_key_is_good_for_nothing_else() {
        let (made, ca) = Installation::with("api", &["api.test"]);
        let root = made.root.certificate().der();
        let inside = forge(&ca, SanType::DnsName("api.test".try_into().unwrap()));
        assert_eq!(verify(root, &inside, "api.test", now()), Ok(()));

        for name in ["evil.test", "test", "xapi.test", "api.test.evil.test"] {
            let forged = forge(&ca, SanType::DnsName(name.try_into().unwrap()));
            let said = format!("{:?}", verify(root, &forged, name, now()));
            assert!(said.contains("NameConstraintViolation"), "{name}: {said}");
            let openssl = openssl_verify(&made.scratch, root, &forged);
            let refused = |said: &str| said.contains("permitted subtree violation");
            assert!(openssl.is_none_or(|said| said.is_err_and(|s| refused(&s))), "{name}");
        }
        for address in ["192.0.2.1", "2001:db8::1"] {
            let ip: IpAddr = address.parse().unwrap();
            let forged = forge(&ca, SanType::IpAddress(ip));
            let said = format!("{:?}", verify(root, &forged, address, now()));
            assert!(said.contains("NameConstraintViolation"), "{address}: {said}");
            let openssl = openssl_verify(&made.scratch, root, &forged);
            assert!(openssl.is_none_or(|said| said.is_err()), "{address}");
        }
    }

    #[test]
    fn a_leaf_says_everything_that_strict_clients_ask_for() {
        let (_made, ca) = Installation::with("api", &["api.test"]);
        let chain = chain(&ca, "api.test");
        let (_, leaf) = parse_x509_certificate(&chain[0]).unwrap();
        let (_, issuing) = parse_x509_certificate(&chain[1]).unwrap();
        let key_id = |e: &ParsedExtension<'_>| match e {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        };
        let authority = |e: &ParsedExtension<'_>| match e {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().map(|id| id.0.to_vec())
            }
            _ => None,
        };
        let find = |c: &x509_parser::certificate::X509Certificate<'_>,
                    f: &dyn Fn(&ParsedExtension<'_>) -> Option<Vec<u8>>| {
            c.extensions().iter().find_map(|e| f(e.parsed_extension()))
        };
        assert_eq!(find(&leaf, &authority), find(&issuing, &key_id));
        assert!(find(&leaf, &authority).is_some() && find(&leaf, &key_id).is_some());
        assert!(find(&issuing, &authority).is_some());
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.flags == 1, "digitalSignature alone");
        let purpose = leaf.extended_key_usage().unwrap().unwrap();
        assert!(purpose.value.server_auth && !purpose.value.client_auth && !purpose.value.any);
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        assert!(!leaf.is_ca() && leaf.basic_constraints().unwrap().is_some());
        assert_eq!(leaf.raw_serial().len(), 16);
        assert!(leaf.raw_serial()[0] < 0x80);
        assert_ne!(leaf.public_key().raw, issuing.public_key().raw);
        let span = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
        assert_eq!(span, 24 * HOUR - 1);
    }

    #[test]
    fn a_leaf_never_outlives_its_ca() {
        let (made, ca) = Installation::with("api", &["api.test"]);
        let near_end = unix_seconds(later(90 * 24 - 2)).unwrap();
        let leaf = ca.mint(&host("api.test"), near_end).unwrap();
        let (_, parsed) = parse_x509_certificate(&leaf.key.cert[0]).unwrap();
        assert_eq!(parsed.validity().not_after.timestamp(), ca.validity.not_after);
        assert!(leaf.renew_at > near_end, "no leaf is stale at birth");
        assert!(ca.mint(&host("api.test"), ca.validity.not_after + 1).is_err());
        assert!(made.load("api", &exact(&["api.test"]), later(89 * 24 + 1)).is_ok());
        let loaded = made.load("api", &exact(&["api.test"]), later(90 * 24 + 1));
        assert!(matches!(loaded, Err(CaError::Issuing { fault: Fault::EndsSoon(_), .. })));
        let before = made.load("api", &exact(&["api.test"]), now() - Duration::from_secs(7_200));
        assert!(matches!(before, Err(CaError::Issuing { fault: Fault::NotYetValid, .. })));
    }

    /// wolfSSL accepts no other order.
    #[test]
    fn a_ca_says_that_it_is_one_before_its_names() {
        let (made, ca) = Installation::with("api", &["api.test"]);
        let place = |certificate: &X509Certificate<'_>, oid: &Oid<'_>| {
            certificate.extensions().iter().position(|extension| extension.oid == *oid)
        };
        let (_, issuing) = parse_x509_certificate(&ca.chain[0]).unwrap();
        let basic = place(&issuing, &OID_X509_EXT_BASIC_CONSTRAINTS).unwrap();
        let names = place(&issuing, &OID_X509_EXT_NAME_CONSTRAINTS).unwrap();
        assert!(basic < names && names == issuing.extensions().len() - 1, "{basic} {names}");
        check::check_order(&ca.chain[0]).unwrap();

        // An earlier version made such a CA: the daemon uses it, `ca issue` replaces it.
        let mut params = ca_params(ca.rule()).unwrap();
        params.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("api.test".into())],
            excluded_subtrees: Vec::new(),
        });
        let early = params.signed_by(&CaKey::generate().unwrap(), made.root.issuer()).unwrap();
        assert!(matches!(check::check_order(early.der()), Err(Fault::Shape(_))));
    }

    /// The root signed these CAs, but they say something else than policy does.
    #[test]
    fn a_ca_that_is_wider_than_its_rule_is_refused() {
        let (made, _) = Installation::with("api", &["api.test"]);
        let rule = RuleName("api".into());
        let names = exact(&["api.test"]);
        let wanted = constraint_names(&names).unwrap();
        let now_s = unix_seconds(now()).unwrap();
        type Change<'a> = &'a dyn Fn(&mut CertificateParams, &mut Option<NameConstraints>);
        let changes: [Change<'_>; 11] = [
            &|_, c| *c = None,
            &|_, c| c.as_mut().unwrap().excluded.clear(),
            &|_, c| c.as_mut().unwrap().excluded.truncate(1),
            &|_, c| c.as_mut().unwrap().permitted.clear(),
            &|_, c| c.as_mut().unwrap().permitted.push("b.test".into()),
            &|_, c| c.as_mut().unwrap().permitted = vec!["test".into()],
            &|_, c| c.as_mut().unwrap().permitted = vec![String::new()],
            &|p, _| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            &|p, _| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)),
            &|p, _| p.extended_key_usages.clear(),
            &|p, _| p.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
        ];
        let unchanged: Change<'_> = &|_, _| {};
        for (number, change) in std::iter::once(&unchanged).chain(&changes).enumerate() {
            let (mut params, mut constraints) =
                (ca_params(&rule).unwrap(), Some(NameConstraints::only(&wanted)));
            params.not_before = date(now_s - 60).unwrap();
            params.not_after = date(now_s + 30 * DAY).unwrap();
            change(&mut params, &mut constraints);
            let constraints = constraints.map(|it| it.extension(Constraints::Critical));
            params.custom_extensions.extend(constraints);
            let key = CaKey::generate().unwrap();
            let certificate = params.signed_by(&key, made.root.issuer()).unwrap();
            std::fs::write(made.dir().join("api.pem"), certificate.pem()).unwrap();
            std::fs::write(made.dir().join("api.key"), key.to_pem().as_bytes()).unwrap();
            let loaded = made.load("api", &names, now());
            assert_eq!(loaded.is_ok(), number == 0, "{number}: {loaded:?}");
        }
    }

    #[test]
    fn errors_say_what_to_run_and_hold_no_key() {
        let (made, ca) = Installation::with("api", &["api.test"]);
        std::fs::remove_file(made.dir().join("api.pem")).unwrap();
        let error = made.load("api", &exact(&["api.test"]), now()).unwrap_err().to_string();
        assert_eq!(error, "issuing CA of `api`: there is none; run `cloakroom ca issue`");
        let nowhere = IssuingCa::load(&made.scratch.path("x"), &tls_rule("api", ca.names()), now());
        assert_eq!(nowhere.unwrap_err().to_string(), error);
        let folder = made.dir().join("api.pem");
        std::fs::create_dir(folder).unwrap();
        let error = made.load("api", &exact(&["api.test"]), now()).unwrap_err().to_string();
        assert!(error.contains("`api`: api.pem: not a plain file; run"), "{error}");
        assert_eq!(format!("{ca:?}"), "IssuingCa { rule: RuleName(\"api\"), .. }");
    }
}
