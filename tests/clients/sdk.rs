//! The `openai`, `anthropic`, `datadog-api-client`, `fal-client`, `googlemaps`,
//! `python-telegram-bot`, `authlib` and `hvac` Python packages, unmodified from the index, with the
//! key from the environment, plain and streamed answers; and pip, node and npm.

use lab::{
    client::{python, succeed, tool},
    gateway::{self, ANTHROPIC_SECRET, BEARER, GIT_SECRET, OPENAI_SECRET, SECRETS},
    net::{ANTHROPIC, GIT, OPENAI},
    sandboxed, wait,
};
use policy_builder::{Config, binding};

use super::{Family, Scene, Swap};

const OPENAI_SCRIPT: &str = r#"
import openai
client = openai.OpenAI(base_url="https://api.openai.example/v1", max_retries=0)
assert client.api_key == "OPENAI_API_KEY", client.api_key
ask = dict(model="lab-1", messages=[{"role": "user", "content": "Hello"}])
answer = client.chat.completions.create(**ask)
assert answer.choices[0].message.content == "Hello from the lab", answer
parts = client.chat.completions.create(**ask, stream=True)
text = "".join(part.choices[0].delta.content or "" for part in parts)
assert text == "Hello from the lab", text
assert [model.id for model in client.models.list()] == ["lab-1"]
"#;

const ANTHROPIC_SCRIPT: &str = r#"
import anthropic
client = anthropic.Anthropic(base_url="https://api.anthropic.example", max_retries=0)
assert client.api_key == "ANTHROPIC_API_KEY", client.api_key
ask = dict(model="lab-1", max_tokens=9, messages=[{"role": "user", "content": "Hello"}])
answer = client.messages.create(**ask)
assert answer.content[0].text == "Hello from the lab", answer
with client.messages.stream(**ask) as stream:
    text = "".join(stream.text_stream)
assert text == "Hello from the lab", text
"#;

const DATADOG_SCRIPT: &str = r#"
from datadog_api_client import ApiClient, Configuration
from datadog_api_client.v1.api.hosts_api import HostsApi
config = Configuration(host="https://api.anthropic.example", enable_retry=False)
config.api_key = {"apiKeyAuth": "DD_API_KEY", "appKeyAuth": "DD_APP_KEY"}
with ApiClient(config) as client:
    HostsApi(client).get_host_totals()
"#;

const FAL_SCRIPT: &str = r#"
import os
os.environ["FAL_RUN_HOST"] = "api.openai.example"
import fal_client
answer = fal_client.SyncClient(key="OPENAI_API_KEY").run("v1/models", arguments={"prompt": "Hello"})
assert answer["data"][0]["id"] == "lab-1", answer
"#;

const MAPS_SCRIPT: &str = r#"
import googlemaps
client = googlemaps.Client(key="AIza-maps-placeholder", base_url="https://api.openai.example/v1")
answer = client.geocode("Coat & Hat Street 1; 2nd floor", language="en")
assert answer[0]["formatted_address"] == "the lab", answer
"#;

const BOT_SCRIPT: &str = r#"
import asyncio, telegram

async def main():
    async with telegram.Bot("TELEGRAM_TOKEN", base_url="https://api.openai.example/v1/bot") as bot:
        assert bot.username == "coat_bot", bot.username

asyncio.run(main())
"#;

const OAUTH_SCRIPT: &str = r#"
from authlib.integrations.requests_client import OAuth2Session
session = OAuth2Session("coat", "OAUTH_CLIENT_SECRET", token_endpoint_auth_method="client_secret_post")
url = "https://api.openai.example/v1/oauth/token"
token = session.fetch_token(url, grant_type="client_credentials", scope="read write")
assert token["access_token"] == "lab-token", token
"#;

const LOGIN_SCRIPT: &str = r#"
import hvac, os
client = hvac.Client(url="https://api.openai.example", verify=os.environ["SSL_CERT_FILE"])
client.auth.userpass.login(username="agent", password="VAULT_PASSWORD")
assert client.token == "lab-token", client.token
"#;

/// Makes each client print a refusal, in its own kind of error.
const REFUSED_SCRIPT: &str = r#"
import os, openai, grpc, boto3, huggingface_hub, postgrest, supabase
from botocore.exceptions import ClientError

def refused(what, text, *parts, word="foreign_credential"):
    for part in (*parts, word, "flow "):
        assert part in text, f"{what} does not print {part}: {text}"

client = openai.OpenAI(base_url="https://api.openai.example/v1", api_key="sk-my-own", max_retries=0)
try:
    client.models.list()
    raise SystemExit("openai was answered")
except openai.PermissionDeniedError as error:
    refused("openai", str(error), "this credential is not a placeholder for this host")
    refused("openai", error.message)

os.environ["AWS_BEARER_TOKEN_BEDROCK"] = "my-own"
bedrock = boto3.client(
    "bedrock-runtime", region_name="us-east-1", endpoint_url="https://api.openai.example",
    verify=os.environ["SSL_CERT_FILE"],
)
try:
    bedrock.converse(modelId="lab-1", messages=[{"role": "user", "content": [{"text": "Hello"}]}])
    raise SystemExit("boto3 was answered")
except ClientError as error:
    refused("boto3", str(error), "this credential is not a placeholder for this host")

hub = huggingface_hub.HfApi(endpoint="https://api.openai.example", token="hf_my_own")
try:
    hub.model_info("lab/coat")
    raise SystemExit("huggingface_hub was answered")
except huggingface_hub.errors.HfHubHTTPError as error:
    refused("huggingface_hub", str(error), "this credential is not a placeholder for this host")

try:
    own = supabase.create_client("https://api.openai.example", "eyJhbGciOiJIUzI1NiJ9.e30.bXktb3du")
    own.table("coats").select("*").execute()
    raise SystemExit("supabase was answered")
except postgrest.APIError as error:
    # It sends its key in two fields.
    refused("supabase", error.message, "carries a credential that is none", word="duplicate_credential")

with open(os.environ["SSL_CERT_FILE"], "rb") as bundle:
    roots = grpc.ssl_channel_credentials(bundle.read())
channel = grpc.secure_channel("api.openai.example:443", roots)
call = channel.unary_unary("/v1/Ask", lambda it: it, lambda it: it)
try:
    call(b"", timeout=20, metadata=[("authorization", "Bearer my-own")])
    raise SystemExit("grpc was answered")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED, error
    refused("grpc", error.details(), "this credential is not a placeholder for this host")
"#;

fn run(scene: &Scene, script: &str) {
    let file = scene.world.lab.write("client.py", script);
    succeed(scene.agent(&python().display().to_string()).arg(file));
}

fn openai(family: Family) {
    let scene = Scene::new(family);
    run(&scene, OPENAI_SCRIPT);
    scene.assert_swapped(&Swap::bearer(OPENAI, "OPENAI_API_KEY", OPENAI_SECRET), 3);
}

fn anthropic(family: Family) {
    let scene = Scene::new(family);
    run(&scene, ANTHROPIC_SCRIPT);
    // This package sends its key as a bearer token; `X-Api-Key` is in curl's tests.
    let swap = Swap::bearer(ANTHROPIC, "ANTHROPIC_API_KEY", ANTHROPIC_SECRET);
    scene.assert_swapped(&swap, 2);
}

#[test]
fn a_refusal_is_printed_by_the_clients_that_get_it() {
    sandboxed(|| {
        let scene = Scene::new(Family::V4);
        run(&scene, REFUSED_SCRIPT);
        scene.world.origin.log().assert_no_request();
        let asked = || Some(scene.world.requests()).filter(|requests| requests.len() == 5);
        for record in wait::until(wait::SOON, asked).expect("one request of each") {
            let expected = ["foreign_credential", "duplicate_credential"];
            assert!(expected.contains(&record["reason"].as_str().unwrap_or_default()), "{record}");
        }
    });
}

#[test]
fn openai_works_over_ipv4() {
    sandboxed(|| openai(Family::V4));
}

#[test]
fn openai_works_over_ipv6() {
    sandboxed(|| openai(Family::V6));
}

#[test]
fn anthropic_works_over_ipv4() {
    sandboxed(|| anthropic(Family::V4));
}

#[test]
fn anthropic_works_over_ipv6() {
    sandboxed(|| anthropic(Family::V6));
}

/// Returns the usual policy, with another placeholder for the first API's key, and another place.
fn standing_for_openai(placeholder: &str, place: &str) -> Config {
    gateway::usual_config()
        .binding("OPENAI_API_KEY", |it| it.set("placeholder", placeholder).set("places", [place]))
}

/// Datadog has two keys, each in a field of its own.
#[test]
fn datadog_sends_two_placeholders_and_both_are_swapped() {
    sandboxed(|| {
        let application =
            binding("research", "DD_APP_KEY", &["header dd-application-key raw"], "file:git");
        let config = gateway::usual_config()
            .binding("ANTHROPIC_API_KEY", |it| {
                it.set("placeholder", "DD_API_KEY").set("places", ["header dd-api-key raw"])
            })
            .api("anthropic", |it| it.set("paths", ["/api/*"]).with(application));
        let scene = Scene::with(Family::V4, &config);
        run(&scene, DATADOG_SCRIPT);
        let requests = scene.world.origin.log().wait_requests(1);
        assert_eq!(requests.len(), 1, "{requests:?}");
        assert_eq!(requests[0].header("dd-api-key"), [ANTHROPIC_SECRET]);
        assert_eq!(requests[0].header("dd-application-key"), [GIT_SECRET]);
        let (_, records) = scene.records(scene.wire.sessions().len(), 1);
        assert_eq!(records[0]["placeholders"], serde_json::json!(["DD_API_KEY", "DD_APP_KEY"]));
        scene.wire.assert_never(&[ANTHROPIC_SECRET, GIT_SECRET]);
        scene.world.assert_secrets_untold();
    });
}

/// The field is `Authorization: Key ...`.
#[test]
fn fal_sends_a_scheme_word_of_its_own() {
    sandboxed(|| {
        let config = gateway::usual_config()
            .binding("OPENAI_API_KEY", |it| it.set("places", ["header authorization scheme Key"]));
        let scene = Scene::with(Family::V6, &config);
        run(&scene, FAL_SCRIPT);
        let swap = Swap {
            value: format!("Key {OPENAI_SECRET}"),
            ..Swap::bearer(OPENAI, "OPENAI_API_KEY", OPENAI_SECRET)
        };
        scene.assert_swapped(&swap, 1);
    });
}

/// The key is `?key=`, behind other names.
#[test]
fn google_maps_sends_its_key_in_the_query() {
    sandboxed(|| {
        let config = standing_for_openai("AIza-maps-placeholder", "query key");
        let scene = Scene::with(Family::V6, &config);
        run(&scene, MAPS_SCRIPT);
        let (_, told) = scene.records(1, 1);
        let received = &scene.world.origin.log().wait_requests(1)[0];
        let query =
            format!("address=Coat+%26+Hat+Street+1%3B+2nd+floor&language=en&key={OPENAI_SECRET}");
        assert_eq!(received.uri.query(), Some(&*query));
        assert_eq!(told[0]["placeholders"], serde_json::json!(["AIza-maps-placeholder"]));
        assert_eq!(told[0]["path"], "/v1/maps/api/geocode/json");
        scene.wire.assert_never(&SECRETS);
        scene.world.assert_secrets_untold();
    });
}

/// The path is `/botTOKEN/`.
#[test]
fn telegram_sends_its_token_in_the_path() {
    sandboxed(|| {
        let config = standing_for_openai("TELEGRAM_TOKEN", "path /v1/bot{}/").api("openai", |it| {
            it.less("paths", "/v1/*").more("paths", &["/v1/botTELEGRAM_TOKEN/*"])
        });
        let scene = Scene::with(Family::V4, &config);
        run(&scene, BOT_SCRIPT);
        let (_, told) = scene.records(1, 1);
        let received = &scene.world.origin.log().wait_requests(1)[0];
        assert_eq!(received.uri.path(), format!("/v1/bot{OPENAI_SECRET}/getMe"));
        assert_eq!(told[0]["placeholders"], serde_json::json!(["TELEGRAM_TOKEN"]));
        assert_eq!(told[0]["path"], "/v1/botTELEGRAM_TOKEN/getMe");
        scene.wire.assert_never(&SECRETS);
        scene.world.assert_secrets_untold();
    });
}

/// The key is `client_secret` in a form (RFC 6749, section 2.3.1).
#[test]
fn authlib_sends_its_client_secret_in_a_form() {
    sandboxed(|| {
        let place = "form client_secret in POST /v1/oauth/token";
        let config = standing_for_openai("OAUTH_CLIENT_SECRET", place);
        let scene = Scene::with(Family::V4, &config);
        run(&scene, OAUTH_SCRIPT);
        let received = &scene.world.origin.log().wait_requests(1)[0];
        let body = String::from_utf8_lossy(&received.body).into_owned();
        assert_eq!(body.matches(&format!("client_secret={OPENAI_SECRET}")).count(), 1, "{body}");
        assert!(body.contains("grant_type=client_credentials"), "{body}");
        assert_eq!(received.header("content-length"), [received.body.len().to_string()]);
        swapped_in_a_body(&scene, "OAUTH_CLIENT_SECRET");
    });
}

/// The key is a password in JSON.
#[test]
fn hvac_sends_its_password_in_json() {
    sandboxed(|| {
        let place = "json /password in POST /v1/auth/userpass/login/agent";
        let config = standing_for_openai("VAULT_PASSWORD", place);
        let scene = Scene::with(Family::V6, &config);
        run(&scene, LOGIN_SCRIPT);
        let received = &scene.world.origin.log().wait_requests(1)[0];
        let body: serde_json::Value = serde_json::from_slice(&received.body).expect("JSON");
        assert_eq!(body, serde_json::json!({"password": OPENAI_SECRET}));
        assert_eq!(received.header("content-length"), [received.body.len().to_string()]);
        swapped_in_a_body(&scene, "VAULT_PASSWORD");
    });
}

#[track_caller]
fn swapped_in_a_body(scene: &Scene, placeholder: &str) {
    let (_, told) = scene.records(scene.wire.sessions().len(), 1);
    assert_eq!(told[0]["placeholders"], serde_json::json!([placeholder]));
    scene.wire.assert_never(&SECRETS);
    scene.world.assert_secrets_untold();
}

/// npm requests a scoped package with an encoded slash.
#[test]
fn npm_reads_a_scoped_package() {
    sandboxed(|| {
        let config =
            gateway::usual_config().binding("GIT_TOKEN", |it| it.more("places", &[BEARER]));
        let scene = Scene::with(Family::V4, &config);
        let lab = &scene.world.lab;
        let own = lab.write(
            ".npmrc",
            "registry=https://git.example/\n//git.example/:_authToken=${GIT_TOKEN}\n\
             update-notifier=false\nfetch-retries=0\n",
        );
        let mut command = scene.agent(&tool("npm").display().to_string());
        // A machine-wide `cafile` of npm's would replace NODE_EXTRA_CA_CERTS.
        command.env("NPM_CONFIG_CAFILE", lab.dir.join("agents.pem"));
        command.env("NPM_CONFIG_USERCONFIG", own).env("HOME", &lab.dir);
        command.env("NPM_CONFIG_CACHE", lab.dir.join("npm")).current_dir(&lab.dir);
        let seen = succeed(command.args(["view", "@lab/coat", "version"]));
        assert_eq!(seen.trim(), "1.0.0");
        let requests = scene.world.origin.log().wait_requests(1);
        assert_eq!(requests[0].uri.path(), "/@lab%2fcoat", "{requests:?}");
        let swap = Swap::bearer(GIT, "GIT_TOKEN", GIT_SECRET);
        requests.iter().for_each(|request| swap.assert_in(request));
        scene.world.assert_secrets_untold();
    });
}

/// pip takes user and password from the URL of its index.
#[test]
fn pip_reads_a_private_index() {
    sandboxed(|| {
        let scene = Scene::new(Family::V6);
        let python = python().display().to_string();
        let script = format!(
            "exec {python} -m pip --disable-pip-version-check --no-cache-dir index versions coat \
             --index-url https://agent:$GIT_TOKEN@git.example/simple"
        );
        let seen = succeed(scene.agent("sh").args(["-c", &script]));
        assert!(seen.contains("coat (1.0)"), "{seen}");
        let swap = Swap::basic(GIT, "GIT_TOKEN", GIT_SECRET, "agent");
        let requests = scene.world.origin.log().requests();
        let with: Vec<_> =
            requests.iter().filter(|it| !it.header("authorization").is_empty()).collect();
        assert!(!with.is_empty(), "{requests:?}");
        for request in with {
            swap.assert_in(request);
        }
        scene.wire.assert_never(&[GIT_SECRET, &super::base64(&format!("agent:{GIT_SECRET}"))]);
        scene.world.assert_secrets_untold();
    });
}

#[test]
fn node_works() {
    sandboxed(|| {
        let scene = Scene::new(Family::V4);
        let script = r#"
            const url = "https://api.openai.example/v1/chat/completions";
            const headers = { authorization: `Bearer ${process.env.OPENAI_API_KEY}` };
            const body = JSON.stringify({ model: "lab-1", stream: true });
            fetch(url, { method: "POST", headers, body }).then(async (answer) => {
                for await (const part of answer.body) process.stdout.write(part);
            });"#;
        let keys = format!("--tls-keylog={}", scene.wire.keys().display());
        let mut command = scene.agent(&tool("node").display().to_string());
        command.env("NODE_EXTRA_CA_CERTS", scene.world.lab.dir.join("agents.pem"));
        let seen = succeed(command.args([&keys, "-e", script]));
        assert!(seen.contains("[DONE]"), "{seen}");
        scene.assert_swapped(&Swap::bearer(OPENAI, "OPENAI_API_KEY", OPENAI_SECRET), 1);
    });
}
