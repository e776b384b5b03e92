//! Requests to Amazon's services: an agent signs them with placeholders, the gateway signs them
//! again with the real keys, and botocore's own signers check the signatures at the origin.

mod boto3;
mod signatures;
mod vault;

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{client::python, gateway, net::OPENAI, origin::Received, tools};
use policy_builder::{Config, Table, api, binding};
use serde_json::json;

use crate::attack::Ask;

/// An access key's id and secret, and its session's token.
type Keys<'a> = (&'a str, &'a str, Option<&'a str>);

const ID: &str = "ASIALABLABLABLAB4W7Q";
const SECRET: &str = "kLab/9sX2vB7nQ4wE6rT8yU1iO3pA5sD+gH0jK2l";
const TOKEN: &str = "FwoGZXIvYXdzELabLabLab//////////wEaDGxhYmxhYmxhYg+session/token==";
const BEARER: &str = "bedrock-api-key-lab-4f8e2a6c";
/// The placeholder, which has its variable's name.
const KEY: &str = "AWS_ACCESS_KEY_ID";

/// Returns the file of secrets.
fn secrets() -> String {
    format!("aws = {ID}:{SECRET}:{TOKEN}\nbearer = {BEARER}\n")
}

/// Returns an API of these services in one region.
fn amazon(hosts: &[&str], services: &[&str]) -> Table {
    let scope = Table::section("aws").set("services", services).set("regions", ["eu-central-1"]);
    api("amazon", hosts).set("upstream_ca", "{dir}/public-ca.pem").with(scope)
}

/// Returns a binding of a pair of keys.
fn key_of(group: &str, placeholder: &str, secret: &str) -> Table {
    binding(group, placeholder, &["aws"], secret)
}

/// Returns the usual policy with this API alone.
fn only(amazon: Table) -> Config {
    gateway::usual_config().without("api").with(amazon)
}

fn script(name: &str) -> PathBuf {
    tools::repository().join("tests/aws").join(name)
}

/// Gives these keys to a program.
fn with_keys<'c>(command: &'c mut Command, (id, secret, token): Keys<'_>) -> &'c mut Command {
    command
        .env(KEY, id)
        .env("AWS_SECRET_ACCESS_KEY", secret)
        .envs(token.map(|token| ("AWS_SESSION_TOKEN", token)))
        .env("PYTHONDONTWRITEBYTECODE", "1")
}

/// Requires that botocore's own signer, with these keys, finds the request signed.
#[track_caller]
fn assert_signed(what: &str, request: &Received, keys: Keys<'_>) {
    let fields: Vec<(String, String)> = request
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    let asked = json!({
        "method": request.method.as_str(), "target": target, "host": request.authority(),
        "headers": fields, "body": STANDARD.encode(&request.body),
    });
    let mut command = Command::new(python());
    with_keys(&mut command, keys).arg(script("verify.py"));
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut verify = command.spawn().expect("python starts");
    let mut stdin = verify.stdin.take().expect("a pipe");
    write!(stdin, "{asked}").expect("it reads");
    drop(stdin);
    let output = verify.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}, {:?}: {stderr}\n{asked}", request.version);
}

/// Returns a time relative to now, in AWS's form.
fn date(from_now: time::Duration) -> String {
    let at = time::OffsetDateTime::now_utc() + from_now;
    let ((year, month, day), (hour, minute, second)) = (at.date().to_calendar_date(), at.to_hms());
    let month = u8::from(month);
    format!("{year}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// Returns a time so long ago that `verify.py` can tell it from the time that the gateway writes.
fn earlier() -> String {
    date(-time::Duration::minutes(10))
}

fn day() -> String {
    earlier()[..8].to_owned()
}

fn field_for(key: &str, scope: &str) -> String {
    let (day, signature) =
        (day(), "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7");
    format!(
        "AWS4-HMAC-SHA256 Credential={key}/{day}/{scope}/aws4_request, \
         SignedHeaders=host;x-amz-date, Signature={signature}"
    )
}

fn asked(path: &str) -> Ask {
    Ask::to(OPENAI).path(path)
}

/// Returns the same, signed with the placeholder.
fn signed(path: &str, scope: &str) -> Ask {
    asked(path).field("authorization", field_for(KEY, scope)).field("x-amz-date", earlier())
}
