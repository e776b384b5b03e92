//! A policy for the tests of this module: two groups, two APIs, a placeholder in every place.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, Method, Request, request::Parts};
use zeroize::Zeroizing;

use super::{Denial, Substitution, SubstitutionRules, examine};
use crate::{
    policy::{
        Anonymous, Api, Binding, Constraints, GroupName, Host, Limits, PathRule, Place,
        Placeholder, Policy, ResponseRules, RuleName, Rules, Scheme, SecretRef, Site,
        USUAL_METHODS, Upstream,
    },
    reason::{Reason, SecretCause},
    secrets::SecretValue,
};

pub(super) const BEARER: &str = "OPENAI_API_KEY";
pub(super) const RAW: &str = "X_API_KEY_PLACEHOLDER";
pub(super) const TOKEN: &str = "GITHUB_TOKEN";
pub(super) const PASSWORD: &str = "GIT_PASSWORD";
pub(super) const USER: &str = "TWILIO_ACCOUNT";
pub(super) const EITHER: &str = "EITHER_HALF";
pub(super) const OTHER_HOST: &str = "ANTHROPIC_API_KEY";
pub(super) const OTHER_GROUP: &str = "OTHER_GROUPS_KEY";

pub(super) fn group(name: &str) -> GroupName {
    GroupName(name.into())
}

pub(super) fn header(name: &'static str, scheme: &str) -> Place {
    let words: Vec<_> = scheme.split(' ').collect();
    Place::Header { name: HeaderName::from_static(name), scheme: Scheme::parse(&words).unwrap() }
}

fn binding(placeholder: &str, groups: &[&str], places: Vec<Place>) -> Arc<Binding> {
    Arc::new(Binding {
        groups: groups.iter().map(|name| group(name)).collect(),
        placeholder: Placeholder(placeholder.into()),
        places,
        secret: SecretRef::File { name: placeholder.into() },
        variables: Vec::new(),
        min_value_bytes: SecretValue::MIN_BYTES,
    })
}

fn api(name: &str, bindings: Vec<Arc<Binding>>) -> Api {
    Api {
        name: RuleName(name.into()),
        hosts: vec![Host::parse(&format!("{name}.example")).unwrap()],
        port: 443,
        methods: USUAL_METHODS.to_vec(),
        paths: vec![],
        plain: vec![],
        anonymous: Anonymous::Never,
        upstream: Upstream::default(),
        response: ResponseRules::default(),
        websocket: false,
        aws: None,
        constraints: Constraints::default(),
        bindings,
        mints: vec![],
        redeems: vec![],
    }
}

fn bindings() -> Vec<Arc<Binding>> {
    vec![
        binding(BEARER, &["agents"], vec![header("authorization", "bearer")]),
        binding(RAW, &["agents"], vec![header("x-special-key", "raw")]),
        binding(TOKEN, &["agents"], vec![header("authorization", "token")]),
        binding(PASSWORD, &["agents"], vec![Place::BasicPassword { user: "git".into() }]),
        binding(USER, &["agents"], vec![Place::BasicUser { password: "x".into() }]),
        binding(
            EITHER,
            &["agents"],
            vec![
                Place::BasicUser { password: "".into() },
                Place::BasicPassword { user: "".into() },
            ],
        ),
        binding(OTHER_GROUP, &["others"], vec![header("authorization", "bearer")]),
    ]
}

/// Returns the rules of `agents` at the first API, after `change` to it.
pub(super) fn rules_with(change: impl FnOnce(&mut Api)) -> SubstitutionRules {
    let mut first = api("first", bindings());
    change(&mut first);
    let place = header("authorization", "bearer");
    let second = api("second", vec![binding(OTHER_HOST, &["agents"], vec![place])]);
    let policy = Policy {
        groups: vec![],
        apis: vec![Arc::new(first), Arc::new(second)].into(),
        passes: Rules::default(),
        tcp: Rules::default(),
        ports: vec![443],
        limits: Limits::default(),
        site: Site::default(),
    };
    SubstitutionRules::new(&policy, &group("agents"), &policy.apis[0])
}

pub(super) fn rules() -> SubstitutionRules {
    rules_with(|_| ())
}

/// Returns rules that list one method and one folder.
pub(super) fn narrow() -> SubstitutionRules {
    rules_with(|api| {
        api.methods = vec![Method::POST];
        api.paths = vec![PathRule::parse("/v1/*").unwrap()];
    })
}

pub(super) fn head(fields: &[(&str, &str)]) -> Parts {
    head_to(Method::POST, "/v1/chat", fields)
}

pub(super) fn head_to(method: Method, path: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in fields {
        request = request.header(*name, value.as_bytes());
    }
    request.body(()).unwrap().into_parts().0
}

pub(super) fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

/// Returns the value behind a placeholder: distinct, and not a text of any request.
pub(super) fn value_of(placeholder: &str) -> String {
    format!("secret-value-of-{}", placeholder.to_lowercase())
}

pub(super) fn lookup(binding: &Binding) -> Result<Arc<SecretValue>, SecretCause> {
    let bytes = Zeroizing::new(value_of(binding.placeholder.as_str()).into_bytes());
    SecretValue::load(bytes, binding.min_value_bytes)
        .map(Arc::new)
        .map_err(|_| SecretCause::ValueInvalid)
}

pub(super) fn swapped(
    rules: &SubstitutionRules,
    mut parts: Parts,
) -> Result<(Parts, Substitution), Denial> {
    let substitution = examine(rules, &parts)?;
    substitution.apply(&mut parts, lookup).expect("every value is there");
    Ok((parts, substitution))
}

pub(super) fn refused(rules: &SubstitutionRules, parts: Parts) -> Reason {
    examine(rules, &parts).expect_err("refused").reason
}

/// Returns the one value of a field of a request that is forwarded.
pub(super) fn sent(rules: &SubstitutionRules, fields: &[(&str, &str)], field: &str) -> String {
    let (parts, _) = swapped(rules, head(fields)).unwrap_or_else(|no| panic!("{fields:?}: {no:?}"));
    let values: Vec<_> = parts.headers.get_all(field).iter().collect();
    assert_eq!(values.len(), 1, "{fields:?}");
    assert!(values[0].is_sensitive());
    values[0].to_str().unwrap().to_owned()
}
