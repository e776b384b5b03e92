//! The gateway's token: fetched by AppRole, renewed at two thirds of its life, fetched anew when
//! Vault no longer takes it, and given back at the end.
//!
//! There is one session and one login at a time; whoever needs a token meanwhile waits for that
//! login. A failed login counts for a second, so that a hundred waiting questions make one.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustify::{
    endpoint::Endpoint,
    enums::{RequestMethod, RequestType, ResponseType},
    errors::ClientError,
};
use serde::Serialize;
use tokio::sync::{Mutex, Notify};
use vaultrs::{
    api::token::requests::{LookupTokenSelfRequest, RenewTokenSelfRequest, RevokeTokenSelfRequest},
    client::VaultClient,
};
use zeroize::{Zeroize, Zeroizing};

use super::{
    super::{FetchError, private_file::read_private},
    client::{CallError, Transport, VaultSourceError, call},
    is_plain_path,
    pick::{Picked, pick, pick_text},
};
use crate::{config::VaultSettings, policy::GroupName, reason::SecretCause};

/// Asks Vault with one token, which is wiped with the last user.
pub(crate) struct TokenClient {
    vault: VaultClient,
    generation: u64,
}

impl TokenClient {
    /// Runs one endpoint with this token and returns the body of a successful answer.
    pub(crate) async fn call(
        &self,
        endpoint: impl Endpoint,
    ) -> Result<Zeroizing<Vec<u8>>, CallError> {
        call(&self.vault, endpoint).await
    }

    /// Which token this is. A later token of the same holder has a larger number; a renewed one
    /// keeps its own. What was leased under one number ends with it.
    pub(crate) const fn generation(&self) -> u64 {
        self.generation
    }
}

impl Drop for TokenClient {
    fn drop(&mut self) {
        self.vault.middle.token.zeroize();
    }
}

/// The gateway's session with one Vault.
pub(crate) struct Session {
    transport: Transport,
    mount: String,
    role_id: String,
    secret_id_file: PathBuf,
    state: Mutex<State>,
    /// How many tokens were made.
    tokens: AtomicU64,
    /// When the token is to be renewed; apart from `state`, which is locked during a login.
    renew_at: std::sync::Mutex<Option<Instant>>,
    /// Rings when `renew_at` changes.
    replanned: Notify,
}

#[derive(Default)]
struct State {
    live: Option<Live>,
    failed: Option<(Instant, FetchError)>,
    /// When a token was last thrown away because of a 403.
    replaced: Option<Instant>,
}

struct Live {
    client: Arc<TokenClient>,
    /// How long a renewed token should be good for.
    full_life: Duration,
    /// `None` for a token that does not end.
    ends: Option<Instant>,
}

/// What Vault says about a token that it made or renewed.
struct Grant {
    token: Zeroizing<Vec<u8>>,
    life: Duration,
    renewable: bool,
}

impl Session {
    pub(super) fn new(
        transport: Transport,
        settings: &VaultSettings,
    ) -> Result<Self, VaultSourceError> {
        if !is_plain_path(&settings.approle_mount) {
            return Err(VaultSourceError::Setting("the AppRole mount is not a plain path"));
        }
        read_secret_id(&settings.secret_id_file)?;
        Ok(Self {
            transport,
            mount: settings.approle_mount.to_string(),
            role_id: settings.role_id.to_string(),
            secret_id_file: settings.secret_id_file.clone(),
            state: Mutex::default(),
            tokens: AtomicU64::new(0),
            renew_at: std::sync::Mutex::default(),
            replanned: Notify::new(),
        })
    }

    /// The token of `group`, whose policies say what it may read.
    pub(crate) async fn group(&self, _group: &GroupName) -> Result<Arc<TokenClient>, FetchError> {
        self.gateway().await
    }

    /// The gateway's own token, which makes the tokens of groups and signs, and reads no secret.
    pub(crate) async fn gateway(&self) -> Result<Arc<TokenClient>, FetchError> {
        let mut state = self.state.lock().await;
        match &state.live {
            Some(live) if live.ends.is_none_or(|ends| Instant::now() < ends) => {
                Ok(Arc::clone(&live.client))
            }
            _ => self.log_in(&mut state).await,
        }
    }

    /// After a 403 with `used`: a client with another token, if that one is dead.
    pub(crate) async fn replace_if_dead(
        &self,
        used: &Arc<TokenClient>,
    ) -> Result<Option<Arc<TokenClient>>, FetchError> {
        let mut state = self.state.lock().await;
        match &state.live {
            Some(live) if !Arc::ptr_eq(&live.client, used) => {
                return Ok(Some(Arc::clone(&live.client)));
            }
            _ => {}
        }
        // A role without the default policy may not look itself up, and is then taken for dead:
        // not more often than this, or each refused secret would cost a login.
        let recently = state.replaced.is_some_and(|then| then.elapsed() < REPLACE_EVERY);
        if recently || used.call(LookupTokenSelfRequest {}).await.is_ok() {
            return Ok(None);
        }
        let fresh = self.log_in(&mut state).await?;
        state.replaced = Some(Instant::now());
        Ok(Some(fresh))
    }

    /// The generation of the token that `group` has now; 0 for none.
    pub(crate) fn generation(&self, _group: &GroupName) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Renews the token whenever it is due. Never returns.
    pub(super) async fn tend(&self) {
        loop {
            let due = *self.renew_at.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => self.renew().await,
                () = self.replanned.notified() => {}
            }
        }
    }

    /// Revokes the token, so that it does not outlive the daemon.
    pub(super) async fn close(&self) {
        let live = self.state.lock().await.live.take();
        if let Some(live) = live {
            let revoked = live.client.call(RevokeTokenSelfRequest {});
            // It ends by itself where Vault cannot be told.
            let _ = tokio::time::timeout(CLOSE_TIME, revoked).await;
        }
    }

    async fn renew(&self) {
        let used = self.state.lock().await.live.as_ref().map(|live| Arc::clone(&live.client));
        let Some(used) = used else { return self.plan(None) };
        let now = Instant::now();
        let request = RenewTokenSelfRequest { increment: None };
        let renewed = used.call(request).await.map(|body| parse_grant(&body));
        let mut state = self.state.lock().await;
        let Some(live) = state.live.as_mut().filter(|live| Arc::ptr_eq(&live.client, &used)) else {
            return; // Replaced meanwhile, and planned anew with that.
        };
        match renewed {
            // Near its maximum life a token is renewed for ever less: better a new one.
            Ok(Some(grant)) if grant.life >= live.full_life / 2 && grant.renewable => {
                live.ends = Some(now + grant.life);
                self.plan(Some(now + grant.life * 2 / 3));
            }
            Err(CallError::Transport(_) | CallError::Status { code: 500.., .. }) => {
                self.plan(Some(Instant::now() + RETRY_RENEWAL));
            }
            // The old token stays good for what is left of it if the login fails too.
            _ => {
                if self.log_in(&mut state).await.is_err() {
                    self.plan(Some(Instant::now() + RETRY_RENEWAL));
                }
            }
        }
    }

    async fn log_in(&self, state: &mut State) -> Result<Arc<TokenClient>, FetchError> {
        if let Some((_, error)) = state.failed.filter(|(then, _)| then.elapsed() < FAILURE_COUNTS) {
            return Err(error);
        }
        match self.ask_for_token().await {
            Ok(live) => {
                let client = Arc::clone(&live.client);
                self.plan(live.ends.map(|_| Instant::now() + live.full_life * 2 / 3));
                *state = State { live: Some(live), failed: None, replaced: state.replaced };
                tracing::info!("logged in to Vault");
                Ok(client)
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error));
                Err(error)
            }
        }
    }

    async fn ask_for_token(&self) -> Result<Live, FetchError> {
        let secret_id = read_secret_id(&self.secret_id_file).map_err(|_| {
            let text = "the SecretID file is missing, not private or not one line";
            FetchError::Outage(SecretCause::VaultUnreachable, text)
        })?;
        let now = Instant::now();
        let login = Login { mount: &self.mount, role_id: &self.role_id, secret_id: &secret_id };
        let body = call(&self.transport.client(""), login).await.map_err(login_failed)?;
        let strange = CallError::Transport("Vault's answer to the login holds no usable token");
        let grant = parse_grant(&body).ok_or(strange.outage())?;
        let token = std::str::from_utf8(&grant.token).map_err(|_| strange.outage())?;
        Ok(Live {
            client: Arc::new(TokenClient {
                vault: self.transport.client(token),
                generation: self.tokens.fetch_add(1, Ordering::Relaxed) + 1,
            }),
            full_life: grant.life,
            ends: (!grant.life.is_zero()).then_some(now + grant.life),
        })
    }

    fn plan(&self, renew_at: Option<Instant>) {
        *self.renew_at.lock().unwrap_or_else(PoisonError::into_inner) = renew_at;
        self.replanned.notify_one();
    }
}

/// AppRole login. vaultrs has it too, in a type that prints the SecretID and does not wipe it.
struct Login<'a> {
    mount: &'a str,
    role_id: &'a str,
    secret_id: &'a str,
}

#[derive(Serialize)]
struct LoginBody<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

impl Endpoint for Login<'_> {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        format!("auth/{}/login", self.mount)
    }

    fn method(&self) -> RequestMethod {
        RequestMethod::POST
    }

    fn body(&self) -> Result<Option<Vec<u8>>, ClientError> {
        let body = LoginBody { role_id: self.role_id, secret_id: self.secret_id };
        // Room for every byte as an escape: a buffer that grows leaves copies behind.
        let room = 64 + 6 * (self.role_id.len() + self.secret_id.len());
        let mut bytes = Vec::with_capacity(room);
        serde_json::to_writer(&mut bytes, &body)
            .map_err(|error| ClientError::DataParseError { source: error.into() })?;
        Ok(Some(bytes))
    }
}

fn login_failed(error: CallError) -> FetchError {
    match error {
        // Vault says 400 for a wrong RoleID or SecretID.
        CallError::Status { code: 400 | 401 | 403 | 404, .. } => {
            let text = "Vault refused the login: check role_id, the SecretID and approle_mount";
            FetchError::Gone(SecretCause::VaultDenied, text)
        }
        other => other.outage(),
    }
}

fn parse_grant(body: &[u8]) -> Option<Grant> {
    let token = pick_text(body, &["auth", "client_token"])?;
    // A token with other bytes could not be put in a header.
    if token.is_empty() || token.len() > MAX_TOKEN_BYTES || !token.iter().all(u8::is_ascii_graphic)
    {
        return None;
    }
    let life = match pick(body, &["auth", "lease_duration"]) {
        Some(Picked::Number(seconds)) => Duration::from_secs(seconds.min(MAX_LIFE_SECONDS)),
        _ => return None,
    };
    let renewable = matches!(pick(body, &["auth", "renewable"]), Some(Picked::Bool(true)));
    Some(Grant { token, life, renewable })
}

fn read_secret_id(path: &Path) -> Result<Zeroizing<String>, VaultSourceError> {
    let content = read_private(path, MAX_TOKEN_BYTES)
        .map_err(|error| VaultSourceError::SecretIdFile(path.to_owned(), error))?;
    let line = content.trim_ascii_end();
    match std::str::from_utf8(line) {
        Ok(text) if !line.is_empty() && line.iter().all(u8::is_ascii_graphic) => {
            Ok(Zeroizing::new(text.to_owned()))
        }
        _ => Err(VaultSourceError::SecretId(path.to_owned())),
    }
}

/// Batch tokens are a few hundred bytes.
const MAX_TOKEN_BYTES: usize = 4_096;

/// A year. Keeps sums of instants in range.
const MAX_LIFE_SECONDS: u64 = 365 * 24 * 3600;

const FAILURE_COUNTS: Duration = Duration::from_secs(1);

const REPLACE_EVERY: Duration = Duration::from_secs(30);

const RETRY_RENEWAL: Duration = Duration::from_secs(5);

const CLOSE_TIME: Duration = Duration::from_secs(2);
