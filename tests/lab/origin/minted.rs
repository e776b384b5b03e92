//! Servers that answer a good credential with another one, which some other server wants: git-lfs,
//! a registry of containers, OAuth 2.0 with refresh tokens that rotate, Hugging Face's token for
//! Xet.
//!
//! | path | takes | mints |
//! |---|---|---|
//! | `/NAME.git/info/lfs/objects/batch` | Basic with the password of git | `RemoteAuth` for `/lfs/OID` |
//! | `/token` | Basic with the password of git | a bearer token for `/v2/*` |
//! | `/oauth/token` | the key of OpenAI as client secret, or a refresh token | an access token for `/mine`, and a refresh token |
//! | `/api/models/lab/coat/xet-read-token/main` | the key of OpenAI | a bearer token for `/mine`, in fields and in JSON |

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::{
    answer::{Answer, text, whole},
    git,
    record::Received,
};
use crate::gateway::{GIT_SECRET, OPENAI_SECRET};

/// The text in every credential that is minted here.
pub const MINTED: &str = "minted-5b1d0c7e9f3a4826";

/// The object that the LFS server and the registry store.
pub const STORED: &[u8] = b"a coat that is larger than it looks";

/// Returns the answer, if the path is one of these.
pub(super) fn answer(request: &Received) -> Option<Answer> {
    let path = request.uri.path();
    Some(match path {
        "/token" => registry_token(request),
        "/oauth/token" => oauth(request),
        "/mine" => mine(request),
        "/api/models/lab/coat/xet-read-token/main" => xet(request),
        _ if path.ends_with("/info/lfs/objects/batch") => batch(request),
        _ if path.starts_with("/lfs/") => {
            guarded(request, &format!("RemoteAuth {MINTED}-lfs"), stored)
        }
        _ if path == "/v2/" || path.starts_with("/v2/coat/") => registry(request),
        _ => return None,
    })
}

fn has(request: &Received, value: &str) -> bool {
    request.header("authorization") == [value]
}

fn knows_git(request: &Received) -> bool {
    has(request, &format!("Basic {}", STANDARD.encode(format!("agent:{GIT_SECRET}"))))
}

fn guarded(request: &Received, credential: &str, answer: fn() -> Answer) -> Answer {
    if has(request, credential) { answer() } else { denied() }
}

fn denied() -> Answer {
    let mut answer = json_answer(&json!({"message": "who are you?"}));
    *answer.status_mut() = StatusCode::UNAUTHORIZED;
    answer
}

fn json_answer(value: &Value) -> Answer {
    whole("application/json", value.to_string())
}

fn stored() -> Answer {
    whole("application/octet-stream", STORED)
}

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the pointer file of the stored object.
pub(super) fn pointer() -> String {
    let (oid, size) = (sha256(STORED), STORED.len());
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n")
}

fn batch(request: &Received) -> Answer {
    if !knows_git(request) {
        return git::unauthorized();
    }
    let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let object = |object: &Value| {
        let oid = object["oid"].as_str().unwrap_or_default();
        json!({
            "oid": oid, "size": object["size"], "authenticated": true,
            "actions": {"download": {
                "href": format!("https://api.anthropic.example/lfs/{oid}"),
                "header": {"Authorization": format!("RemoteAuth {MINTED}-lfs")},
                "expires_in": 300,
            }},
        })
    };
    let objects: Vec<_> = asked["objects"].as_array().into_iter().flatten().map(object).collect();
    let answer = json!({"transfer": "basic", "objects": objects}).to_string();
    whole("application/vnd.git-lfs+json", answer)
}

fn registry_token(request: &Received) -> Answer {
    if !knows_git(request) {
        return git::unauthorized();
    }
    let token = format!("{MINTED}-registry");
    json_answer(&json!({"token": token, "access_token": token, "expires_in": 300}))
}

fn registry(request: &Received) -> Answer {
    if !has(request, &format!("Bearer {MINTED}-registry")) {
        let mut answer = denied();
        let realm = "Bearer realm=\"https://git.example/token\",service=\"lab\"";
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(realm));
        return answer;
    }
    let (config, manifest) = image();
    let blob = |bytes: &[u8]| format!("/v2/coat/blobs/sha256:{}", sha256(bytes));
    match request.uri.path() {
        "/v2/" => text("{}"),
        "/v2/coat/manifests/latest" => {
            whole("application/vnd.oci.image.manifest.v1+json", manifest)
        }
        path if path == blob(config.as_bytes()) => whole("application/octet-stream", config),
        path if path == blob(STORED) => stored(),
        _ => {
            let mut answer = text("no such blob");
            *answer.status_mut() = StatusCode::NOT_FOUND;
            answer
        }
    }
}

/// Returns the configuration and the manifest of an image with one layer.
fn image() -> (String, String) {
    let layer = format!("sha256:{}", sha256(STORED));
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    let config = config.to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{}", sha256(config.as_bytes())), "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer, "size": STORED.len(),
        }],
    });
    (config, manifest.to_string())
}

fn oauth(request: &Received) -> Answer {
    let form = String::from_utf8_lossy(&request.body).into_owned();
    let field = |name: &str| {
        let mut pairs = form.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(own, _)| *own == name).map(|(_, value)| value.to_owned())
    };
    let round = ROUND.load(SeqCst);
    let is_known = field("client_secret").as_deref() == Some(OPENAI_SECRET);
    let may = match field("grant_type").as_deref() {
        Some("client_credentials") => is_known,
        Some("refresh_token") => {
            is_known && field("refresh_token") == Some(format!("{MINTED}-refresh-{round}"))
        }
        _ => false,
    };
    if !may {
        return denied();
    }
    let round = ROUND.fetch_add(1, SeqCst) + 1;
    json_answer(&json!({
        "access_token": format!("{MINTED}-access-{round}"), "token_type": "Bearer", "expires_in": 300,
        "refresh_token": format!("{MINTED}-refresh-{round}"),
    }))
}

/// How often tokens were made: earlier ones are no longer good. One test is one process.
static ROUND: AtomicUsize = AtomicUsize::new(0);

fn mine(request: &Received) -> Answer {
    let round = ROUND.load(SeqCst);
    let good = [format!("Bearer {MINTED}-access-{round}"), format!("Bearer {MINTED}-xet")];
    if good.iter().any(|good| has(request, good)) { text("this is yours") } else { denied() }
}

fn xet(request: &Received) -> Answer {
    if !has(request, &format!("Bearer {OPENAI_SECRET}")) {
        return denied();
    }
    let (token, until) = (format!("{MINTED}-xet"), 4_000_000_000_u64);
    let cas = "https://api.anthropic.example";
    let mut answer = json_answer(&json!({"accessToken": token, "exp": until, "casUrl": cas}));
    for (name, value) in [
        ("x-xet-access-token", token.as_str()),
        ("x-xet-token-expiration", &until.to_string()),
        ("x-xet-cas-url", cas),
    ] {
        answer.headers_mut().insert(name, HeaderValue::from_str(value).expect("plain text"));
    }
    answer
}
