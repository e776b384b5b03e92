//! Reads of Vault, whatever the engine, and the values that are taken from their answers.
//!
//! The envelope is read tolerantly, as far as it is needed, and only the requested fields are
//! copied. An entry of an owner's `custom_metadata` that is not understood keeps the value from
//! use. A lease that came with an answer is kept whatever else is wrong with the answer, so that it
//! can be given back.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rustify::{
    endpoint::Endpoint,
    enums::{RequestMethod, RequestType, ResponseType},
    errors::ClientError,
};
use serde::{Deserialize, Serialize, Serializer, de::IgnoredAny};
use zeroize::Zeroizing;

use super::{
    CallError, Session, TokenClient,
    error::Says,
    path::is_plain_path,
    pick::{PickedJson, pick, pick_text},
};
use crate::{
    policy::{
        GroupName, NARROWING_KEYS, Narrowing, Pick, PickPart, VaultLocation, looks_narrowing,
    },
    reason::SecretCause,
    secrets::{
        FetchError, Fetched, Lease, PickedValue as FromAnswer, SecretValue, value::without_line_end,
    },
};

/// Reads `location` with the group's token, and once more where that token turns out to be dead.
pub(super) async fn fetch(
    session: &Session,
    group: &GroupName,
    location: &VaultLocation,
    picks: &[Pick],
) -> Result<Fetched, FetchError> {
    if !is_plain_path(&location.api_path()) {
        let text = "mount and path must not have empty, '.' or '..' segments";
        return Err(FetchError::Gone(SecretCause::VaultDenied, text));
    }
    let mut client = session.group(group).await?;
    let body = match ask(&client, location).await {
        // Vault says 403 both for a token that has ended and for one without the right.
        Err(error @ CallError::Status { code: 403, .. }) => {
            client = session.replace_if_dead(&client).await?.ok_or(read_failed(error))?;
            ask(&client, location).await
        }
        other => other,
    };
    let body = body.map_err(read_failed)?;
    Ok(answer(&body, location, picks, client.generation()))
}

async fn ask(
    client: &TokenClient,
    location: &VaultLocation,
) -> Result<Zeroizing<Vec<u8>>, CallError> {
    let body = client.call(ReadRequest(location)).await?;
    // A body that is no JSON object did not come from Vault, or was damaged.
    match pick(&body, &["data"]) {
        Some(PickedJson::Map) => Ok(body),
        _ => Err(CallError::Transport("the answer is not one of Vault's")),
    }
}

fn answer(body: &[u8], location: &VaultLocation, picks: &[Pick], generation: u64) -> Fetched {
    let data: &[&str] = match location {
        VaultLocation::Kv2 { .. } => &["data", "data"],
        VaultLocation::Read { .. } | VaultLocation::Write { .. } => &["data"],
    };
    let narrowing = match location {
        VaultLocation::Kv2 { .. } => narrowing(body),
        VaultLocation::Read { .. } | VaultLocation::Write { .. } => Ok(Narrowing::default()),
    };
    let value = |wanted| match &narrowing {
        Ok(_) => take(body, data, wanted),
        Err(text) => Err(FetchError::Gone(SecretCause::ValueInvalid, text)),
    };
    let values = picks.iter().map(value).collect();
    let lease = lease(body, generation).or_else(|| token_lease(body, location, generation));
    let changes_in = match location {
        VaultLocation::Kv2 { .. } => None,
        VaultLocation::Read { .. } | VaultLocation::Write { .. } => changes_in(body),
    };
    Fetched { values, lease, changes_in, narrowing: Arc::new(narrowing.unwrap_or_default()) }
}

/// Returns the value that a pick makes of the fields below `data`.
fn take(body: &[u8], data: &[&str], wanted: &Pick) -> Result<FromAnswer, FetchError> {
    if let [PickPart::Field(field)] = &*wanted.0 {
        return take_field(body, data, field).map(FromAnswer::from);
    }
    // The buffer has its size from the start: growth would leave copies behind.
    let mut whole = Zeroizing::new(Vec::with_capacity(SecretValue::MAX_BYTES));
    let mut parts = Vec::new();
    for part in wanted.0.iter() {
        match part {
            PickPart::Text(text) => append(&mut whole, text.as_bytes())?,
            PickPart::Field(field) => {
                let field = take_field(body, data, field)?;
                append(&mut whole, without_line_end(&field))?;
                parts.push(field);
            }
        }
    }
    Ok(FromAnswer { whole, parts })
}

fn append(whole: &mut Vec<u8>, text: &[u8]) -> Result<(), FetchError> {
    if whole.len() + text.len() > SecretValue::MAX_BYTES {
        return invalid("the value is longer than 8192 bytes");
    }
    whole.extend_from_slice(text);
    Ok(())
}

fn take_field(body: &[u8], data: &[&str], field: &str) -> Result<Zeroizing<Vec<u8>>, FetchError> {
    match pick(body, &[data, &[field]].concat()) {
        Some(PickedJson::Text(value)) => Ok(value),
        Some(_) => invalid("the field is not a string"),
        None => invalid("the secret has no such field"),
    }
}

fn invalid<T>(text: &'static str) -> Result<T, FetchError> {
    Err(FetchError::Gone(SecretCause::ValueInvalid, text))
}

/// The keys and texts of an owner's restrictions, and nothing else of the answer.
#[derive(Deserialize)]
struct ReadReply {
    data: ReadData,
}

#[derive(Deserialize)]
struct ReadData {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    custom_metadata: HashMap<String, IgnoredAny>,
}

fn narrowing(body: &[u8]) -> Result<Narrowing, &'static str> {
    const METADATA: [&str; 3] = ["data", "metadata", "custom_metadata"];
    let mut narrowing = Narrowing::default();
    match pick(body, &["data", "metadata", "deletion_time"]) {
        None => {}
        Some(PickedJson::Text(text)) if text.is_empty() => {}
        Some(PickedJson::Text(text)) => {
            narrowing.end_at(std::str::from_utf8(&text).map_err(|_| NO_TIME)?)?;
        }
        Some(_) => return Err(NO_TIME),
    }
    match pick(body, &METADATA) {
        None => return Ok(narrowing),
        Some(PickedJson::Map) => {}
        Some(_) => return Err("custom_metadata: it is no object"),
    }
    let ReadReply { data } = serde_json::from_slice(body).map_err(|_| STRANGE)?;
    if let Some(key) = data.metadata.custom_metadata.keys().find(|key| looks_narrowing(key)) {
        // The key may be logged: it is no longer than one of ours.
        tracing::warn!(?key, "{NEAR_MISS}");
        return Err(NEAR_MISS);
    }
    for key in NARROWING_KEYS {
        match pick(body, &[&METADATA[..], &[key]].concat()) {
            None => {}
            Some(PickedJson::Text(text)) => {
                let text = std::str::from_utf8(&text).map_err(|_| NO_TEXT)?;
                narrowing.set(key, text)?;
            }
            Some(_) => return Err(NO_TEXT),
        }
    }
    Ok(narrowing)
}

/// Returns the lease of a signed token, which ends by itself and whose life is in the answer.
fn token_lease(body: &[u8], location: &VaultLocation, generation: u64) -> Option<Lease> {
    let life = location.is_identity_token().then(|| seconds(body, &["data", "ttl"])).flatten()?;
    let id = Arc::default();
    Some(Lease { id, life, renewable: false, generation })
}

/// Returns the time after which a value that is not lent changes: the `ttl` of an engine that
/// rotates it, or the `lease_duration` that was set in KV version 1.
fn changes_in(body: &[u8]) -> Option<Duration> {
    let hint = seconds(body, &["lease_duration"]).filter(|time| !time.is_zero());
    [hint, seconds(body, &["data", "ttl"])].into_iter().flatten().min()
}

fn seconds(body: &[u8], path: &[&str]) -> Option<Duration> {
    match pick(body, path) {
        Some(PickedJson::Number(seconds)) => {
            Some(Duration::from_secs(seconds.min(MAX_LIFE_SECONDS)))
        }
        _ => None,
    }
}

/// Returns the lease of an answer. KV has none, whatever duration the answer names: that is only a
/// hint.
fn lease(body: &[u8], generation: u64) -> Option<Lease> {
    let id = pick_text(body, &["lease_id"]).filter(|id| !id.is_empty())?;
    let id = Zeroizing::new(std::str::from_utf8(&id).ok()?.to_owned());
    let life = seconds(body, &["lease_duration"]).unwrap_or_default();
    let renewable = matches!(pick(body, &["renewable"]), Some(PickedJson::Bool(true)));
    Some(Lease { id: Arc::new(id), life, renewable, generation })
}

fn read_failed(error: CallError) -> FetchError {
    match error {
        // The token died while it was being made, together with its parent: this says nothing of
        // the secret.
        error if error.is_unknown_token() => error.outage(),
        CallError::Status { code: 403, .. } => {
            let text = "Vault's policies do not let the group read this secret";
            FetchError::Gone(SecretCause::VaultDenied, text)
        }
        CallError::Status { code: 404, .. } => {
            FetchError::Gone(SecretCause::VaultDenied, "Vault has no such secret or version")
        }
        CallError::Status { says: Says::NoEntity, .. } => {
            let text = "Vault signs nothing about the group, which has no entity: apply `cloakroom \
                        vault plan`";
            FetchError::Gone(SecretCause::VaultDenied, text)
        }
        CallError::Status { code: 400 | 405, .. } => {
            let text = "Vault's engine does not take this question: check path and parameters";
            FetchError::Gone(SecretCause::VaultDenied, text)
        }
        other => other.outage(),
    }
}

/// A read as it is sent.
struct ReadRequest<'a>(&'a VaultLocation);

/// The parameters of a write as a JSON object.
struct WriteBody<'a>(&'a [(Arc<str>, Arc<str>)]);

impl Serialize for WriteBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (&**key, &**value)))
    }
}

impl Endpoint for ReadRequest<'_> {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.0.api_path()
    }

    fn method(&self) -> RequestMethod {
        match self.0 {
            VaultLocation::Kv2 { .. } | VaultLocation::Read { .. } => RequestMethod::GET,
            VaultLocation::Write { .. } => RequestMethod::POST,
        }
    }

    fn query(&self) -> Result<Option<String>, ClientError> {
        Ok(match self.0 {
            VaultLocation::Kv2 { version: Some(version), .. } => Some(format!("version={version}")),
            _ => None,
        })
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        let VaultLocation::Write { parameters, .. } = self.0 else { return Ok(None) };
        serde_json::to_vec(&WriteBody(parameters))
            .map(Some)
            .map_err(|error| ClientError::DataParseError { source: error.into() })
    }
}

const STRANGE: &str = "custom_metadata: it cannot be read";
const NEAR_MISS: &str = "custom_metadata: a key is almost one that narrows; write it in small \
    letters and in the plural: hosts, places, methods, paths, expires";
const NO_TIME: &str = "Vault's deletion_time is not a time";
const NO_TEXT: &str = "custom_metadata: a key that narrows is not a text";

/// A year. Keeps sums of instants in range.
pub(super) const MAX_LIFE_SECONDS: u64 = 365 * 24 * 3600;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kv2() -> VaultLocation {
        VaultLocation::Kv2 { mount: "kv".into(), path: "a".into(), version: None }
    }

    fn field(name: &str) -> PickPart {
        PickPart::Field(name.into())
    }

    fn pick_of<const N: usize>(parts: [PickPart; N]) -> Pick {
        Pick(parts.into())
    }

    fn texts(answer: &Fetched) -> Vec<Result<String, FetchError>> {
        let text = |value: &FromAnswer| String::from_utf8(value.whole.to_vec()).unwrap();
        answer.values.iter().map(|value| value.as_ref().map(text).map_err(|error| *error)).collect()
    }

    const LENT: &str = r#"{"lease_id":"database/creds/r/x","renewable":true,"lease_duration":30,
        "data":{"username":"v-user\n","password":"p:w","number":1},"warnings":null}"#;

    #[test]
    fn fields_and_templates_are_made_of_one_answer() {
        let location = VaultLocation::Read { path: "database/creds/r".into() };
        let both = [field("username"), PickPart::Text(":".into()), field("password")];
        let picks = [pick_of([field("password")]), pick_of(both), pick_of([field("number")])];
        let answer = answer(LENT.as_bytes(), &location, &picks, 7);
        let invalid = FetchError::Gone(SecretCause::ValueInvalid, "the field is not a string");
        let wanted = [Ok("p:w".to_owned()), Ok("v-user:p:w".to_owned()), Err(invalid)];
        assert_eq!(texts(&answer), wanted);
        let lease = answer.lease.unwrap();
        assert_eq!((lease.id.as_str(), lease.life.as_secs()), ("database/creds/r/x", 30));
        assert!(lease.renewable && lease.generation == 7);
    }

    #[test]
    fn a_lease_is_kept_whatever_else_is_wrong() {
        let location = VaultLocation::Read { path: "a/b".into() };
        let answer = answer(LENT.as_bytes(), &location, &[pick_of([field("other")])], 0);
        assert!(answer.values[0].is_err() && answer.lease.is_some());
    }

    #[test]
    fn what_kv_calls_a_duration_is_no_lease() {
        let body = r#"{"lease_id":"","lease_duration":2764800,"data":{"key":"v"}}"#;
        let location = VaultLocation::Read { path: "kv1/a".into() };
        assert!(answer(body.as_bytes(), &location, &[], 0).lease.is_none());
    }

    #[test]
    fn an_engines_own_rotation_says_when_it_changes() {
        let changes = |location: &VaultLocation, body: &str| {
            answer(body.as_bytes(), location, &[], 0).changes_in.map(|time| time.as_secs())
        };
        let rotated = VaultLocation::Read { path: "database/static-creds/r".into() };
        assert_eq!(changes(&rotated, r#"{"lease_duration":0,"data":{"ttl":17}}"#), Some(17));
        assert_eq!(changes(&rotated, r#"{"lease_duration":0,"data":{"ttl":0}}"#), Some(0));
        assert_eq!(
            changes(&rotated, r#"{"lease_duration":1800,"data":{"ttl":"30m"}}"#),
            Some(1800)
        );
        assert_eq!(changes(&rotated, r#"{"lease_duration":0,"data":{"ttl":-1}}"#), None);
        assert_eq!(
            changes(&kv2(), r#"{"data":{"data":{"ttl":17}}}"#),
            None,
            "a field of its owner's"
        );
    }

    #[test]
    fn a_signed_token_is_lent_for_its_life() {
        let location = VaultLocation::Read { path: "identity/oidc/token/cloud".into() };
        let body = r#"{"lease_id":"","data":{"token":"e.y.J","client_id":"c","ttl":600}}"#;
        let lease = answer(body.as_bytes(), &location, &[], 4).lease.unwrap();
        assert_eq!((lease.life.as_secs(), lease.renewable, lease.generation), (600, false, 4));
        assert!(lease.id.is_empty());
    }

    #[test]
    fn what_vault_deletes_at_a_time_ends_then() {
        assert_eq!(narrowed(r#"{"deletion_time":""}"#), Ok(Narrowing::default()));
        let sooner = r#"{"deletion_time":"2030-01-01T00:00:00.123456789Z",
            "custom_metadata":{"expires":"2040-01-01T00:00:00Z"}}"#;
        let only = r#"{"deletion_time":"2030-01-01T00:00:00.123456789Z"}"#;
        assert_eq!(narrowed(sooner), narrowed(only));
        assert_ne!(narrowed(only), Ok(Narrowing::default()));
        for broken in [r#"{"deletion_time":"soon"}"#, r#"{"deletion_time":7}"#] {
            assert!(narrowed(broken).is_err(), "{broken}");
        }
    }

    fn narrowed(metadata: &str) -> Result<Narrowing, &'static str> {
        narrowing(format!(r#"{{"data":{{"data":{{}},"metadata":{metadata}}}}}"#).as_bytes())
    }

    #[test]
    fn an_owners_words_are_understood_or_forbid_use() {
        for open in [
            "{}",
            "null",
            r#"{"custom_metadata":null}"#,
            r#"{"custom_metadata":{"owner":"team","hosts":null}}"#,
        ] {
            assert_eq!(narrowed(open), Ok(Narrowing::default()), "{open}");
        }
        for broken in [
            r#""hosts""#,
            r#"["hosts"]"#,
            r#"{"hosts":1}"#,
            r#"{"hosts":["api.example"]}"#,
            r#"{"hosts":""}"#,
            r#"{"hosts":"*.example.com"}"#,
            r#"{"hosts":"a.example,,b.example"}"#,
            r#"{"places":"query"}"#,
            r#"{"methods":"get"}"#,
            r#"{"methods":"CONNECT"}"#,
            r#"{"paths":"v1"}"#,
            r#"{"paths":"/a/../b"}"#,
            r#"{"expires":"tomorrow"}"#,
            r#"{"expires":"2030-01-01"}"#,
            r#"{"host":"api.example"}"#,
            r#"{"hosts":"api.example","Method":"GET"}"#,
            r#"{"Expires":"2030-01-31T12:00:00Z","owner":"team"}"#,
        ] {
            let metadata = format!(r#"{{"custom_metadata":{broken}}}"#);
            assert!(narrowed(&metadata).is_err(), "{broken}");
            let body = format!(r#"{{"data":{{"data":{{"k":"v"}},"metadata":{metadata}}}}}"#);
            let answer = answer(body.as_bytes(), &kv2(), &[pick_of([field("k")])], 0);
            assert_eq!(answer.values[0].as_ref().err().unwrap().cause(), SecretCause::ValueInvalid);
        }
        let good = r#"{"custom_metadata":{"hosts":"api.example, b.example","methods":"GET,POST",
            "places":"header authorization bearer,basic user","paths":"/v1/*","expires":"2030-01-31T12:00:00Z"}}"#;
        assert_ne!(narrowed(good).unwrap(), Narrowing::default());
    }

    proptest! {
        /// Vault decides by the path in the URL, so this must be the path that a policy names.
        #[test]
        fn the_requested_path_is_the_locations(
            segments in prop::collection::vec("[A-Za-z0-9_.@+-]{1,8}", 1..5),
            version: Option<u64>,
        ) {
            let path: Arc<str> = segments.join("/").into();
            prop_assume!(is_plain_path(&path));
            let parameters = [("key".into(), "/../a?b#c%2e".into())].into();
            for location in [
                VaultLocation::Kv2 { mount: "team/kv".into(), path: path.clone(), version },
                VaultLocation::Read { path: path.clone() },
                VaultLocation::Write { path: path.clone(), parameters },
            ] {
                let middleware = vaultrs::api::EndpointMiddleware {
                    token: "t".to_owned(),
                    version: "v1".to_owned(),
                    wrap: None,
                    namespace: Some("team".to_owned()),
                };
                let question = ReadRequest(&location).with_middleware(&middleware);
                let request = question.request("https://vault.example:8200/").unwrap();
                prop_assert_eq!(request.uri().path(), format!("/v1/{}", location.api_path()));
                let query = match &location {
                    VaultLocation::Kv2 { .. } => version.map(|it| format!("version={it}")),
                    _ => None,
                };
                prop_assert_eq!(request.uri().query(), query.as_deref());
                prop_assert_eq!(&request.headers()["x-vault-namespace"], "team");
            }
        }

        #[test]
        fn no_answer_is_taken_for_more_than_it_is(body: Vec<u8>, at in 0_usize..200) {
            let pick = [pick_of([field("password")])];
            let cut = LENT.as_bytes().get(..at).unwrap_or_default();
            for body in [&*body, cut] {
                prop_assert!(answer(body, &kv2(), &pick, 0).values[0].is_err());
            }
        }
    }
}
