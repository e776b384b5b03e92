//! The plan as a shell script. Each text of the configuration stands in single quotes, or in a
//! here-document in which the shell expands nothing.

use std::{fmt::Write as _, path::Path};

use super::{Bearers, GATEWAY, PERIOD, RoleRights, VaultPlan, entity};
use crate::{
    config::{PkiSettings, VaultLogin},
    policy::GroupName,
};

impl VaultPlan {
    /// Returns a script for a shell in which `vault` is logged in. Running it again changes
    /// nothing.
    pub fn shell(&self) -> String {
        render(self)
    }
}

fn render(plan: &VaultPlan) -> String {
    let mut text = HEAD.to_owned();
    if let Some(namespace) = &plan.namespace {
        push(&mut text, format_args!("export VAULT_NAMESPACE={}", quoted(namespace)));
    }
    for (name, hcl) in plan.policies() {
        let name = quoted(&name);
        let _ = write!(text, "\nvault policy write {name} - <<'{END}'\n{hcl}{END}\n");
    }
    let bound = quoted(&plan.bound().collect::<Vec<_>>().join(","));
    for role in &plan.rights.roles {
        let path = quoted(&format!("auth/token/roles/{}", role.role));
        let policy = quoted(&role.policy());
        let aliases = role.entities().map(entity).collect::<Vec<_>>().join(",");
        let aliases = if aliases.is_empty() { aliases } else { quoted(&aliases) };
        push(
            &mut text,
            format_args!(
                "\nvault write {path} allowed_policies={policy} orphan=false renewable=true \\\n    \
                 allowed_policies_glob= disallowed_policies= disallowed_policies_glob= \\\n    \
                 allowed_entity_aliases={aliases} token_num_uses=0 token_explicit_max_ttl=0 \\\n    \
                 token_type=service token_no_default_policy=true token_period={PERIOD} \\\n    \
                 token_bound_cidrs={bound}"
            ),
        );
    }
    for group in plan.rights.roles.iter().flat_map(RoleRights::entities) {
        entity_of(&mut text, group);
    }
    if let Some(pki) = &plan.pki {
        engine(&mut text, pki);
    }
    login(&mut text, &plan.login, &bound);
    text
}

/// Writes the entity of a group, which is `sub` in the tokens that Vault signs about the group.
fn entity_of(text: &mut String, group: &GroupName) {
    let (entity, path) = (entity(group), format!("identity/entity/name/{}", entity(group)));
    push(
        text,
        format_args!(
            "\n# The `sub` of the tokens of group {group}: vault read -field=id {path}\n\
             vault write {path} policies= metadata=cloakroom_group={group} >/dev/null\n\
             vault write identity/entity-alias name={entity} \\\n    \
             canonical_id=\"$(vault read -field=id {path})\" \\\n    \
             mount_accessor=\"$(vault read -field=accessor sys/auth/token)\" >/dev/null"
        ),
    );
}

fn engine(text: &mut String, pki: &PkiSettings) {
    let mount = &*pki.mount;
    let [at, read] = ["", "sys/mounts/"].map(|before| quoted(&format!("{before}{mount}")));
    let issuers = quoted(&format!("{mount}/issuers"));
    let generate = quoted(&format!("{mount}/root/generate/internal"));
    let show = quoted(&format!("{mount}/cert/ca"));
    push(
        text,
        format_args!(
            "\nvault read {read} >/dev/null 2>&1 ||\n    \
             vault secrets enable -path={at} -max-lease-ttl=87600h pki\n\
             # Make a root only where the answer says that there is none; a failure is no such answer.\n\
             if [ \"$(vault list -format=json {issuers} 2>/dev/null || true)\" = '{{}}' ]; then\n    \
             vault write {generate} common_name='Cloakroom root' ttl=87600h \\\n        \
             key_type=ec key_bits=256 >/dev/null\nfi\n\
             # Read the root that agents trust here, then put it on the gateway:\n\
             # vault read -field=certificate {show} > agents-root.pem\n\
             # install -m 0644 agents-root.pem {}",
            file(&pki.root_file)
        ),
    );
}

fn login(text: &mut String, login: &VaultLogin, bound: &str) {
    let token = format!(
        "token_policies={GATEWAY} \\\n    token_no_default_policy=true token_period={PERIOD} \
         token_num_uses=0 \\\n    token_ttl=0 token_max_ttl=0 token_explicit_max_ttl=0 \\\n    \
         token_bound_cidrs={bound}"
    );
    match login {
        VaultLogin::AppRole { mount, role_id, secret_id_file, wrapped } => {
            enable(text, mount, "approle");
            let role = format!("auth/{mount}/role/{GATEWAY}");
            let (path, secret_id) = (quoted(&role), quoted(&format!("{role}/secret-id")));
            let role_id = quoted(role_id);
            push(
                text,
                format_args!(
                    "# Without this, five wrong SecretIDs from anywhere would lock the gateway out.\n\
                     vault auth tune -user-lockout-disable=true {mount}\n\
                     vault write {path} role_id={role_id} {token} \\\n    token_type=service \
                     bind_secret_id=true secret_id_num_uses=0 secret_id_ttl=0 \\\n    \
                     secret_id_bound_cidrs={bound}",
                    mount = quoted(mount),
                ),
            );
            let field = match wrapped {
                true => "-wrap-ttl=10m -field=wrapping_token",
                false => "-field=secret_id",
            };
            push(
                text,
                format_args!(
                    "# Make the SecretID here, then put it on the gateway, for its user alone:\n\
                     # (umask 077; vault write -f {field} {secret_id} > secret-id)\n\
                     # install -m 0600 -o cloakroom secret-id {}",
                    file(secret_id_file)
                ),
            );
        }
        VaultLogin::Cert { mount, role, certificate_file, .. } => {
            enable(text, mount, "cert");
            let path = quoted(&format!("auth/{mount}/certs/{role}"));
            push(
                text,
                format_args!(
                    "# Run this where the gateway's certificate is. Where a CA vouches for it, name \
                     that CA here\n# and add allowed_dns_sans or the like: all that it signed could \
                     log in.\n\
                     vault write {path} certificate=@{} {token}",
                    file(certificate_file)
                ),
            );
        }
        VaultLogin::Jwt { mount, role, .. } => {
            let bearers = Bearers::at(mount);
            enable(text, mount, bearers.engine);
            let path = quoted(&format!("auth/{mount}/role/{role}"));
            let fixed = bearers.fixed.iter().map(|(key, value)| format!("{key}={value} "));
            let asked = bearers.asked.iter().map(|(key, variable, _)| {
                format!("{key}=\"${{{variable}:?is not in the configuration}}\" ")
            });
            let fields: String = fixed.chain(asked).collect();
            push(
                text,
                format_args!(
                    "# The configuration does not say who issues these tokens: set up auth/{mount}/config, \
                     and the\n# variables here.\nvault write {path} {fields}\\\n    {token}"
                ),
            );
        }
    }
}

fn enable(text: &mut String, mount: &str, kind: &str) {
    let [at, read] = ["", "sys/auth/"].map(|before| quoted(&format!("{before}{mount}")));
    push(
        text,
        format_args!("\nvault read {read} >/dev/null 2>&1 || vault auth enable -path={at} {kind}"),
    );
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

fn file(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// Returns one word of a shell that stands for this text.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

const HEAD: &str = "#!/bin/sh
# Sets up Vault for Cloakroom, from its configuration. Run this where `vault` is logged in and may
# write policies and roles; running it again changes nothing.
set -eu
";

/// The line that ends a policy. No policy has such a line.
const END: &str = "CLOAKROOM_POLICY";
