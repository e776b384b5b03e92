use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CidrSubnet,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, SanType,
};

use super::*;
use crate::ca::{
    DAY, date,
    testing::{Scratch, api, exact, host, now, policy, verify},
};

/// An engine with a CA, which signs as Vault does.
pub(crate) struct Engine {
    pub(crate) scratch: Scratch,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A change that an engine makes to what it signs.
pub(crate) type EngineChange<'a> = &'a dyn Fn(&mut CertificateParams);

impl Engine {
    pub(crate) fn new() -> Self {
        let mut params = ca_params(None);
        params.not_after = seconds_from_now(3_650 * DAY);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let scratch = Scratch::new();
        std::fs::write(scratch.path("root.pem"), &pem).unwrap();
        Self { scratch, pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn settings(&self) -> PkiSettings {
        PkiSettings {
            mount: "pki".into(),
            root_file: self.scratch.path("root.pem"),
            ttl: Duration::from_secs(30 * 86_400),
            accept_without_ip_exclusion: false,
        }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        one_certificate(self.pem.as_bytes()).unwrap()
    }

    /// Signs what a request body asks for, with `change` applied.
    pub(crate) fn sign(&self, body: &str, change: EngineChange<'_>) -> Signed {
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let text = |key: &str| body[key].as_str().unwrap().to_owned();
        let mut csr = CertificateSigningRequestParams::from_pem(&text("csr")).unwrap();
        let ttl = text("ttl").trim_end_matches('s').parse::<i64>().unwrap();
        let subject = csr.params.distinguished_name.clone();
        csr.params = ca_params(Some(0));
        csr.params.distinguished_name = subject;
        csr.params.not_after = seconds_from_now(ttl);
        let names = body["permitted_dns_domains"].as_array().unwrap();
        let names = names.iter().map(|name| dns(name.as_str().unwrap()));
        csr.params.name_constraints = Some(NameConstraints {
            permitted_subtrees: names.collect(),
            excluded_subtrees: all_ips(),
        });
        change(&mut csr.params);
        let certificate = csr.signed_by(&self.issuer).unwrap().pem();
        Signed { chain: vec![certificate.clone(), self.pem.clone()], certificate }
    }
}

fn ca_params(path_length: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca =
        IsCa::Ca(path_length.map_or(BasicConstraints::Unconstrained, |length| {
            BasicConstraints::Constrained(length)
        }));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = seconds_from_now(-BACKDATE);
    params
}

fn all_ips() -> Vec<GeneralSubtree> {
    let (v4, v6) = (CidrSubnet::V4([0; 4], [0; 4]), CidrSubnet::V6([0; 16], [0; 16]));
    vec![GeneralSubtree::IpAddress(v4), GeneralSubtree::IpAddress(v6)]
}

fn seconds_from_now(seconds: i64) -> time::OffsetDateTime {
    date(unix_seconds(now()).unwrap() + seconds).unwrap()
}

fn dns(name: &str) -> GeneralSubtree {
    GeneralSubtree::DnsName(name.into())
}

/// Asks the engine for the CA of one rule.
fn asked(
    engine: &Engine,
    settings: &PkiSettings,
    change: EngineChange<'_>,
) -> Result<IssuingCa, CaError> {
    let terms = Terms::read(settings).unwrap();
    let names = exact(&["api.test", "b.test"]);
    let ask = SigningRequest::new(&RuleName("api".into()), &names, &terms).unwrap();
    let signed = engine.sign(&serde_json::to_string(&ask.request).unwrap(), change);
    ask.take(&signed, &terms, now())
}

fn fault(engine: &Engine, change: EngineChange<'_>) -> String {
    asked(engine, &engine.settings(), change).map(|_| "taken").unwrap_err().to_string()
}

#[test]
fn what_is_asked_for_can_be_held_against_a_policy() {
    let engine = Engine::new();
    let terms = Terms::read(&engine.settings()).unwrap();
    let names = [exact(&["b.test"]), vec![HostPattern::Suffix(host("a.test"))]].concat();
    let ask = SigningRequest::new(&RuleName("api".into()), &names, &terms).unwrap();
    let mut body = serde_json::to_value(&ask.request).unwrap();
    let csr = body["csr"].take();
    assert!(csr.as_str().unwrap().starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
    body.as_object_mut().unwrap().remove("csr");
    let expected = serde_json::json!({
        "common_name": "Cloakroom api",
        "permitted_dns_domains": ["a.test", "b.test"],
        "excluded_ip_ranges": "0.0.0.0/0,::/0",
        "max_path_length": "0",
        "ttl": "2592000s",
        "not_before_duration": "3600s",
    });
    assert_eq!(body, expected);
    for names in [vec![], vec![HostPattern::Any]] {
        assert!(SigningRequest::new(&RuleName("api".into()), &names, &terms).is_err());
    }
}

#[test]
fn agents_believe_the_leaves_of_a_ca_as_requested() {
    let engine = Engine::new();
    let ca = asked(&engine, &engine.settings(), &|_| {}).unwrap();
    let leaf = ca.mint(&host("b.test"), unix_seconds(now()).unwrap()).unwrap();
    assert_eq!(leaf.key.cert.len(), 2, "the root is not shown");
    assert_eq!(verify(&engine.root(), &leaf.key.cert, "b.test", now()), Ok(()));
    let servers_only: EngineChange<'_> =
        &|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    assert!(asked(&engine, &engine.settings(), servers_only).is_ok(), "narrower");
}

#[test]
fn a_ca_that_differs_from_the_question_is_refused() {
    let engine = Engine::new();
    let changes: [(EngineChange<'_>, &str); 16] = [
        (&|p| p.name_constraints = None, "no name constraints"),
        (&|p| p.name_constraints.as_mut().unwrap().excluded_subtrees.clear(), "every IP address"),
        (&|p| drop(p.name_constraints.as_mut().unwrap().excluded_subtrees.pop()), "every IP"),
        (&|p| p.name_constraints.as_mut().unwrap().permitted_subtrees.clear(), "names are not"),
        (
            &|p| p.name_constraints.as_mut().unwrap().permitted_subtrees.push(dns("c.test")),
            "names are not those of the rule",
        ),
        (
            &|p| drop(p.name_constraints.as_mut().unwrap().permitted_subtrees.pop()),
            "names are not those of the rule",
        ),
        (
            &|p| p.name_constraints.as_mut().unwrap().permitted_subtrees = vec![dns("test")],
            "names are not those of the rule",
        ),
        (&|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)), "another path length"),
        (&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "another path length"),
        (&|p| p.is_ca = IsCa::ExplicitNoCa, "no CA"),
        (&|p| p.key_usages.push(KeyUsagePurpose::DigitalSignature), "key usage"),
        (&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth], "key usage"),
        (
            &|p| p.subject_alt_names = vec![SanType::DnsName("evil.test".try_into().unwrap())],
            "a name itself",
        ),
        (&|p| p.not_after = seconds_from_now(31 * DAY), "longer than was asked"),
        (&|p| p.not_after = seconds_from_now(-60), "it has ended"),
        (&|p| p.not_after = seconds_from_now(2 * DAY), "only 2 days of its life are left"),
    ];
    for (change, word) in changes {
        let said = fault(&engine, change);
        assert!(said.starts_with("what Vault signed for `api` is not used: "), "{said}");
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(fault(&engine, &|p| p.not_before = seconds_from_now(60)).contains("not valid yet"));
}

#[test]
fn only_the_lack_of_the_ip_exclusion_can_be_accepted() {
    let engine = Engine::new();
    let settings = PkiSettings { accept_without_ip_exclusion: true, ..engine.settings() };
    let free: EngineChange<'_> =
        &|p| p.name_constraints.as_mut().unwrap().excluded_subtrees.clear();
    assert!(asked(&engine, &settings, free).is_ok());
    assert!(asked(&engine, &settings, &|_| {}).is_ok(), "narrower is welcome");
    let half: EngineChange<'_> =
        &|p| drop(p.name_constraints.as_mut().unwrap().excluded_subtrees.pop());
    let wider: EngineChange<'_> = &|p| {
        let constraints = p.name_constraints.as_mut().unwrap();
        constraints.excluded_subtrees.clear();
        constraints.permitted_subtrees.push(dns("c.test"));
    };
    for change in [half, wider, &|p| p.name_constraints = None] {
        assert!(asked(&engine, &settings, change).is_err());
    }
    assert!(fault(&engine, free).contains("accept_without_ip_exclusion"), "it says how");
}

/// rcgen makes critical constraints only, so the flag is taken out of the DER.
#[test]
fn constraints_that_are_not_critical_are_refused() {
    let engine = Engine::new();
    let ca = asked(&engine, &engine.settings(), &|_| {}).unwrap();
    let leaf = ca.mint(&host("b.test"), unix_seconds(now()).unwrap()).unwrap();
    let mut der = leaf.key.cert[1].to_vec();
    // The bytes are id-ce-nameConstraints, 2.5.29.30, and BOOLEAN TRUE after it.
    let critical = [0x06, 0x03, 0x55, 0x1d, 0x1e, 0x01, 0x01, 0xff];
    let at = der.windows(critical.len()).position(|bytes| bytes == critical).unwrap();
    der[at + critical.len() - 1] = 0;
    let names = BTreeSet::from(["api.test", "b.test"]);
    let said = check::check_signed(&der.into(), &names, AddressExclusion::Excluded).unwrap_err();
    assert!(said.to_string().contains("critical"), "{said}");
}

#[test]
fn another_key_another_root_and_garbage_are_refused() {
    let (engine, other) = (Engine::new(), Engine::new());
    let terms = Terms::read(&engine.settings()).unwrap();
    let names = exact(&["api.test"]);
    let ask = || SigningRequest::new(&RuleName("api".into()), &names, &terms).unwrap();
    let body = |ask: &SigningRequest| serde_json::to_string(&ask.request).unwrap();
    let refused =
        |signed: &Signed, ask: SigningRequest| ask.take(signed, &terms, now()).unwrap_err();

    let (one, two) = (ask(), ask());
    let said = refused(&engine.sign(&body(&one), &|_| {}), two).to_string();
    assert!(said.contains("its key is not that of its certificate"), "{said}");
    let one = ask();
    let said = refused(&other.sign(&body(&one), &|_| {}), one).to_string();
    assert!(said.contains("another root"), "{said}");
    for text in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let signed = Signed { certificate: text.into(), chain: vec![text.into()] };
        assert!(matches!(refused(&signed, ask()), CaError::Signed { .. }), "{text}");
    }
    let one = ask();
    let twice = engine.sign(&body(&one), &|_| {});
    let twice = Signed { certificate: twice.certificate.repeat(2), ..twice };
    assert!(refused(&twice, one).to_string().contains("one certificate"));
}

/// The engine's CA need not be the root itself.
#[test]
fn a_chain_of_cas_leads_up_to_the_root() {
    let root = Engine::new();
    let between = |path_length, days| {
        let mut params = ca_params(path_length);
        params.distinguished_name.push(DnType::CommonName, "Between");
        params.not_after = seconds_from_now(days * DAY);
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &root.issuer).unwrap().pem();
        Engine { scratch: Scratch::new(), pem, issuer: Issuer::new(params, key) }
    };
    let ask = |engine: &Engine, chain: &dyn Fn(Vec<String>) -> Vec<String>| {
        let terms = Terms::read(&root.settings()).unwrap();
        let ask =
            SigningRequest::new(&RuleName("api".into()), &exact(&["api.test"]), &terms).unwrap();
        let signed = engine.sign(&serde_json::to_string(&ask.request).unwrap(), &|_| {});
        let signed = Signed { chain: chain(signed.chain), ..signed };
        ask.take(&signed, &terms, now())
    };
    let good = between(Some(1), 365);
    for with_root in [false, true] {
        let chain = |mut chain: Vec<String>| {
            chain.extend(with_root.then(|| root.pem.clone()));
            chain
        };
        let ca = ask(&good, &chain).unwrap();
        let leaf = ca.mint(&host("api.test"), unix_seconds(now()).unwrap()).unwrap();
        assert_eq!(leaf.key.cert.len(), 3, "leaf, issuing CA and the one between");
        assert_eq!(verify(&root.root(), &leaf.key.cert, "api.test", now()), Ok(()));
    }
    assert!(ask(&good, &|_| vec![]).is_err(), "a CA is missing");
    let behind = |chain: Vec<String>| [chain, vec!["garbage".to_owned(); 9]].concat();
    assert!(ask(&good, &behind).is_ok(), "nothing behind what leads to the root is looked at");
    let said = ask(&between(Some(0), 365), &|chain| chain).unwrap_err().to_string();
    assert!(said.contains("agents would not believe it"), "{said}");

    let ends = |engine: &Engine| ask(engine, &|chain| chain).unwrap().ends();
    let days = |days: u64| now() + Duration::from_secs(days * 86_400);
    assert!(ends(&good) > days(29), "it lives as long as it was asked for");
    assert!(ends(&between(Some(1), 10)) <= days(10), "and no longer than what is above it");
}

#[test]
fn a_root_that_is_none_is_refused() {
    let engine = Engine::new();
    let with = |text: &str| {
        std::fs::write(engine.scratch.path("root.pem"), text).unwrap();
        Terms::read(&engine.settings()).unwrap_err().to_string()
    };
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["a.test".into()]).unwrap().self_signed(&key).unwrap();
    for (text, word) in [
        (String::new(), "one certificate"),
        (engine.pem.repeat(2), "one certificate"),
        (leaf.pem(), "no CA"),
        ("x".repeat(70_000), "too large"),
    ] {
        let said = with(&text);
        assert!(said.contains("root.pem") && said.contains(word), "{word}: {said}");
    }
}

#[test]
fn the_policy_lists_each_rule_and_nothing_between_them() {
    let engine = Engine::new();
    let settings = PkiSettings { ttl: Duration::from_secs(20), ..engine.settings() };
    let rules = vec![
        api("openai", &["other.example", "api.openai.example"]),
        api("anthropic", &["api.anthropic.example"]),
        api("git", &["git.example"]),
    ];
    assert_eq!(policy_hcl(&settings, &policy(rules)).unwrap(), POLICY);
    assert_eq!(policy_hcl(&engine.settings(), &policy(vec![])).unwrap(), "");
}

/// The policy that the tests against a real Vault write there.
const POLICY: &str = include_str!("../../../../tests/vault/pki.hcl");
