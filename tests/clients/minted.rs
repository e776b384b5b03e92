//! Clients that get a credential from one host and take it to another: git-lfs, skopeo, authlib and
//! huggingface_hub, as Debian and the index ship them. They hold tickets, and each works.

use std::fs;

use lab::{
    client::{python, succeed},
    gateway::{self, BEARER, GIT_SECRET, OPENAI_SECRET},
    net::{ANTHROPIC, OPENAI},
    origin::{MINTED, Received, STORED},
    sandboxed,
};
use policy_builder::{binding, mint};

use super::{Family, Scene};
use crate::http::minted::times;

/// Returns a scene in which Git's host and OpenAI's mint credentials, and Anthropic's and OpenAI's
/// want them.
fn scene(family: Family) -> Scene {
    let (anthropic, openai) = ([ANTHROPIC.name], [OPENAI.name]);
    let remote = "header authorization scheme RemoteAuth";
    let lfs = "json /objects/*/actions/*/header/Authorization scheme RemoteAuth in \
               /*/info/lfs/objects/batch";
    let of_registry = ["json /token in /token", "json /access_token in /token"];
    let of_api = [
        "json /access_token in /oauth/token",
        "json /accessToken in /api/models/*/*/xet-read-token/*",
        "header x-xet-access-token raw in /api/models/*/*/xet-read-token/*",
    ];
    let refreshed = ["json /refresh_token in /oauth/token"];
    let refreshing = ["form refresh_token in POST /oauth/token"];
    let exchanged = ["form client_secret in POST /oauth/token"];
    let config = gateway::usual_config()
        .api("openai", |it| {
            it.more("paths", &["/v2/*", "/oauth/token", "/api/*"])
                .set("anonymous", ["GET /v2/"])
                .with(binding("research", "OAUTH_CLIENT_SECRET", &exchanged, "file:openai"))
                .with(mint("access", &of_api, &anthropic, &[BEARER], "5m"))
                .with(mint("refresh", &refreshed, &openai, &refreshing, "24h"))
        })
        .api("anthropic", |it| it.more("paths", &["/lfs/*", "/mine"]))
        .api("git", |it| {
            it.with(mint("lfs", &[lfs], &anthropic, &[remote], "5m")).with(mint(
                "registry",
                &of_registry,
                &openai,
                &[BEARER],
                "5m",
            ))
        });
    Scene::with(family, &config)
}

/// Asserts that every request with a minted credential has it once, in this field, that there is at
/// least one, and that the agent's link had tickets and no credential.
#[track_caller]
fn assert_redeemed(scene: &Scene, is_there: impl Fn(&Received) -> bool, value: &str) {
    let requests = scene.world.origin.log().requests();
    let redeemed: Vec<_> = requests.iter().filter(|request| is_there(request)).collect();
    assert!(!redeemed.is_empty(), "{requests:#?}");
    for request in &redeemed {
        assert_eq!(request.header("authorization"), [value], "{request:#?}");
        assert_eq!(times(request, MINTED), 1, "{request:#?}");
    }
    let sessions = scene.wire.sessions();
    assert!(sessions.iter().any(|it| holds(&it.received)), "no ticket: the search is broken");
    assert!(sessions.iter().any(|it| holds(&it.sent)), "no ticket: the search is broken");
    scene.wire.assert_never(&[MINTED, GIT_SECRET, OPENAI_SECRET]);
    assert!(!scene.world.gateway.audit.text().contains(MINTED));
    assert!(!scene.world.gateway.stderr().contains(MINTED));
    scene.world.assert_secrets_untold();
}

/// Returns whether there is a ticket in HTTP/1.1.
fn holds(bytes: &[u8]) -> bool {
    bytes.windows(7).any(|part| part == b"ticket_")
}

fn to(path: &str) -> impl Fn(&Received) -> bool + '_ {
    move |request| request.uri.path().starts_with(path)
}

/// A program in Go does not write its TLS keys down. Git-lfs itself logs the answers that it got.
#[test]
fn git_lfs_fetches_from_its_storage_host_with_a_ticket() {
    sandboxed(|| {
        let scene = scene(Family::V4);
        scene.world.origin.lfs_repository("coat");
        let script = "set -e; cd /run/lab; export HOME=/run/lab/home; \
            git clone -q https://agent:$GIT_TOKEN@git.example/coat.git clone; cd clone; \
            git lfs install --local >&2; \
            GIT_TRACE=1 GIT_CURL_VERBOSE=1 git lfs fetch >/run/lab/told 2>&1; \
            git lfs smudge < README";
        let mut git = lab::client::agent(&scene.world.lab, lab::net::AGENT, "sh");
        let out = succeed(git.args(["-c", script]));
        assert_eq!(out.as_bytes(), STORED);
        let requests = scene.world.origin.log().requests();
        let fetched: Vec<_> = requests.iter().filter(|it| to("/lfs/")(it)).collect();
        assert_eq!(fetched.len(), 1, "{requests:#?}");
        assert_eq!(fetched[0].header("authorization"), [format!("RemoteAuth {MINTED}-lfs")]);
        assert_eq!(times(fetched[0], MINTED), 1);
        assert!(!scene.world.gateway.audit.text().contains(MINTED));
        let told = fs::read_to_string("/run/lab/told").expect("a trace");
        assert!(told.contains("RemoteAuth ticket_") && !told.contains(MINTED), "{told}");
        let found = succeed(lab::net::AGENT.command("sh").args([
            "-c",
            &format!("grep -rlF {MINTED} /run/lab/clone /run/lab/home || echo none"),
        ]));
        assert_eq!(found.trim(), "none", "what git-lfs keeps");
    });
}

#[test]
fn skopeo_copies_an_image_with_another_hosts_token() {
    sandboxed(|| {
        let scene = scene(Family::V4);
        let mut skopeo = scene.agent("skopeo");
        skopeo.env("HOME", "/run/lab/home").env("TMPDIR", "/run/lab");
        succeed(skopeo.args([
            "copy",
            "--insecure-policy",
            "--src-creds",
            "agent:GIT_TOKEN",
            "docker://api.openai.example/coat:latest",
            "dir:/run/lab/image",
        ]));
        let files = fs::read_dir("/run/lab/image").expect("an image").flatten();
        let layers = files.filter(|file| fs::read(file.path()).is_ok_and(|text| text == STORED));
        assert_eq!(layers.count(), 1);
        let requests = scene.world.origin.log().requests();
        let with_token: Vec<_> = requests.iter().filter(|it| to("/v2/coat/")(it)).collect();
        assert!(with_token.len() >= 3, "{requests:#?}");
        for request in with_token {
            assert_eq!(request.header("authorization"), [format!("Bearer {MINTED}-registry")]);
            assert_eq!(times(request, MINTED), 1);
        }
        assert!(!scene.world.gateway.audit.text().contains(MINTED));
        scene.world.assert_secrets_untold();
    });
}

const OAUTH_SCRIPT: &str = r#"
from authlib.integrations.requests_client import OAuth2Session
url = "https://api.openai.example/oauth/token"
session = OAuth2Session(
    "coat", "OAUTH_CLIENT_SECRET", token_endpoint=url, token_endpoint_auth_method="client_secret_post"
)
token = session.fetch_token(url, grant_type="client_credentials")
seen = set()
for _ in range(3):
    for name in ("access_token", "refresh_token"):
        assert session.token[name].startswith("ticket_"), session.token
        seen.add(session.token[name])
    answer = session.get("https://api.anthropic.example/mine")
    answer.raise_for_status()
    assert answer.text == "this is yours", answer.text
    session.token["expires_at"] = 1
    session.ensure_active_token(session.token)
assert len(seen) == 6, seen
"#;

#[test]
fn oauth_refreshes_with_refresh_tokens_that_rotate() {
    sandboxed(|| {
        let scene = scene(Family::V6);
        let file = scene.world.lab.write("client.py", OAUTH_SCRIPT);
        succeed(scene.agent(&python().display().to_string()).arg(file));
        let requests = scene.world.origin.log().requests();
        let grants: Vec<_> = requests.iter().filter(|it| to("/oauth/token")(it)).collect();
        assert_eq!(grants.len(), 4, "{requests:#?}");
        for (round, grant) in grants.iter().enumerate() {
            let body = String::from_utf8_lossy(&grant.body);
            assert!(body.contains(&format!("client_secret={OPENAI_SECRET}")), "{body}");
            let refresh = format!("refresh_token={MINTED}-refresh-{round}");
            assert!(round == 0 || body.contains(&refresh), "{body}");
        }
        let mine: Vec<_> = requests.iter().filter(|it| to("/mine")(it)).collect();
        assert_eq!(mine.len(), 3);
        for (nth, request) in mine.iter().enumerate() {
            let value = format!("Bearer {MINTED}-access-{}", nth + 1);
            assert_eq!(request.header("authorization"), [value]);
        }
        scene.wire.assert_never(&[MINTED, OPENAI_SECRET]);
        assert!(scene.wire.sessions().iter().any(|it| holds(&it.sent)));
    });
}

const XET_SCRIPT: &str = r#"
import requests
from huggingface_hub.utils import _xet
url = _xet.xet_connection_info_refresh_url(
    token_type=_xet.XetTokenType.READ, repo_id="lab/coat", repo_type="model", revision="main",
    endpoint="https://api.openai.example",
)
info = _xet.refresh_xet_connection_info(
    file_data=_xet.XetFileData(file_hash="0" * 64, refresh_route=url),
    headers={"authorization": "Bearer OPENAI_API_KEY"},
)
assert info.access_token.startswith("ticket_") and len(info.access_token) == 51, info
assert info.expiration_unix_epoch == 4000000000, info
answer = requests.get(info.endpoint + "/mine", headers={"authorization": f"Bearer {info.access_token}"})
answer.raise_for_status()
"#;

/// hf_xet itself needs a storage that the lab does not have. The library's own code fetches the
/// token, and the test sends it as hf_xet does.
#[test]
fn huggingface_gets_a_ticket_for_xet() {
    sandboxed(|| {
        let scene = scene(Family::V4);
        let file = scene.world.lab.write("client.py", XET_SCRIPT);
        succeed(scene.agent(&python().display().to_string()).arg(file));
        assert_redeemed(&scene, to("/mine"), &format!("Bearer {MINTED}-xet"));
    });
}
