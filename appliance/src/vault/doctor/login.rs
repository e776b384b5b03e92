//! Conditions that can keep the gateway from logging in again: a role that others can lock out, and
//! a SecretID that does not last.

use rustify::{
    endpoint::Endpoint,
    enums::{RequestMethod, RequestType, ResponseType},
};

use super::{
    super::{
        pick::{PickedJson, pick},
        plan::GATEWAY,
        token::TokenClient,
    },
    CheckVerdict, Doctor,
};
use crate::config::{VaultLogin, is_guessable};

impl Doctor<'_> {
    pub(super) async fn look_at_login(&mut self, gateway: &TokenClient) {
        let VaultLogin::AppRole { mount, role_id, .. } = &self.vault.login else { return };
        let whose = "gateway";
        match is_guessable(role_id) {
            true => self.add(CheckVerdict::TooWide, whose, GUESSABLE),
            false => self.add(CheckVerdict::Ok, whose, "its role_id is random"),
        }
        let mount = gateway.call(Mount(mount)).await;
        match mount.map(|body| pick(&body, &LOCKOUT_DISABLE)) {
            Ok(Some(PickedJson::Bool(true))) => {
                self.add(CheckVerdict::Ok, whose, "wrong SecretIDs do not lock its role out");
            }
            Ok(_) => self.add(CheckVerdict::TooWide, whose, LOCKABLE),
            Err(_) => self.add(CheckVerdict::Unanswered, whose, UNTOLD_MOUNT),
        }
        self.look_at_secret_id(whose, gateway).await;
    }

    /// Examines the SecretID after a login, which is one of its uses.
    async fn look_at_secret_id(&mut self, whose: &str, gateway: &TokenClient) {
        let Some(role) = self.session.login.approle() else { return };
        let looked = role.look_up(GATEWAY, gateway).await;
        let (verdict, text) = match looked.map(|body| secret_id(&body)) {
            Ok(SecretIdState::Lasting) => (CheckVerdict::Ok, "its SecretID lasts"),
            Ok(SecretIdState::UsedUp) => (CheckVerdict::Missing, USED_UP),
            Ok(SecretIdState::Counted) => (CheckVerdict::Missing, COUNTED),
            Ok(SecretIdState::Ending) => (CheckVerdict::Missing, ENDING),
            Err(_) => (CheckVerdict::Unanswered, UNTOLD_SECRET_ID),
        };
        self.add(verdict, whose, text);
    }
}

enum SecretIdState {
    Lasting,
    /// It is good for a limited number of logins.
    Counted,
    /// Vault does not know it any more.
    UsedUp,
    /// It is good for a limited time.
    Ending,
}

fn secret_id(looked: &[u8]) -> SecretIdState {
    let number = |field| match pick(looked, &["data", field]) {
        Some(PickedJson::Number(number)) => number,
        _ => 0,
    };
    match pick(looked, &["data"]) {
        None => SecretIdState::UsedUp,
        Some(_) if number("secret_id_num_uses") > 0 => SecretIdState::Counted,
        Some(_) if number("secret_id_ttl") > 0 => SecretIdState::Ending,
        Some(_) => SecretIdState::Lasting,
    }
}

/// Asks for a mount's settings, which Vault tells any token that has a right below the mount.
struct Mount<'a>(&'a str);

impl Endpoint for Mount<'_> {
    type Response = ();
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        format!("sys/internal/ui/mounts/auth/{}", self.0)
    }

    fn method(&self) -> RequestMethod {
        RequestMethod::GET
    }
}

const LOCKOUT_DISABLE: [&str; 4] =
    ["data", "config", "user_lockout_config", "user_lockout_disable"];

const GUESSABLE: &str = "its role_id can be guessed: write a random one, as `uuidgen` prints it, \
    and apply the plan again";

const LOCKABLE: &str = "whoever knows its role_id can lock it out with a few wrong SecretIDs: set \
    `vault auth tune -user-lockout-disable=true` on the mount";

const UNTOLD_MOUNT: &str = "Vault does not say whether wrong SecretIDs lock its role out: it needs \
    some right below the mount of the login";

const USED_UP: &str = "its SecretID was good for this login and is gone now: set \
    secret_id_num_uses=0 on the role and make a new one";

const COUNTED: &str = "its SecretID is good for a few more logins, of which each start and each \
    examination is one: set secret_id_num_uses=0 on the role and make a new one";

const ENDING: &str = "its SecretID ends at a time: set secret_id_ttl=0 on the role and make a new \
    one, or put a new one into secret_id_file before that";

const UNTOLD_SECRET_ID: &str = "Vault does not say how long its SecretID lasts: it needs update on \
    secret-id/lookup of its role";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_id_lasts_unless_uses_or_time_end_it() {
        let of = |uses: u64, ttl: u64| {
            let data = format!(
                r#"{{"data":{{"secret_id_num_uses":{uses},"secret_id_ttl":{ttl},"metadata":{{}}}}}}"#
            );
            secret_id(data.as_bytes())
        };
        assert!(matches!(of(0, 0), SecretIdState::Lasting));
        assert!(matches!(of(3, 60), SecretIdState::Counted));
        assert!(matches!(of(0, 60), SecretIdState::Ending));
        assert!(matches!(secret_id(b""), SecretIdState::UsedUp));
    }
}
