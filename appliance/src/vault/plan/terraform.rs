//! The plan as resources of Terraform's provider `hashicorp/vault`.

use std::fmt::Write as _;

use super::{Bearers, GATEWAY, PERIOD_SECONDS, RoleRights, VaultPlan, entity};
use crate::{
    config::{PkiSettings, VaultLogin},
    policy::GroupName,
};

impl VaultPlan {
    /// Returns resources of the provider `hashicorp/vault`.
    pub fn terraform(&self) -> String {
        render(self)
    }
}

fn render(plan: &VaultPlan) -> String {
    let mut out = Out { text: HEAD.to_owned(), namespace: plan.namespace.as_deref() };
    for (name, hcl) in plan.policies() {
        let label = label(&name);
        let policy = format!("<<{END}\n{}{END}", escaped(&hcl));
        out.resource("vault_policy", &label, &[("name", text(&name)), ("policy", policy)]);
    }
    let bound = list(plan.bound());
    for role in &plan.rights.roles {
        let policy = format!("vault_policy.{}.name", label(&role.policy()));
        let fields = [
            ("role_name", text(&role.role)),
            ("allowed_policies", format!("[{policy}]")),
            ("allowed_policies_glob", "[]".to_owned()),
            ("disallowed_policies", "[]".to_owned()),
            ("disallowed_policies_glob", "[]".to_owned()),
            ("allowed_entity_aliases", list(role.entities().map(entity))),
            ("token_num_uses", "0".to_owned()),
            ("token_explicit_max_ttl", "0".to_owned()),
            ("orphan", "false".to_owned()),
            ("renewable", "true".to_owned()),
            ("token_type", text("service")),
            ("token_no_default_policy", "true".to_owned()),
            ("token_period", PERIOD_SECONDS.to_string()),
            ("token_bound_cidrs", bound.clone()),
        ];
        out.resource("vault_token_auth_backend_role", &label(&role.role), &fields);
    }
    let entities: Vec<_> = plan.rights.roles.iter().flat_map(RoleRights::entities).collect();
    if !entities.is_empty() {
        out.entities(&entities);
    }
    if let Some(pki) = &plan.pki {
        out.engine(pki);
    }
    out.login(&plan.login, &bound);
    out.text
}

struct Out<'a> {
    text: String,
    namespace: Option<&'a str>,
}

impl Out<'_> {
    fn resource(&mut self, kind: &str, label: &str, fields: &[(&str, String)]) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "\nresource \"{kind}\" \"{label}\" {{");
        self.fields(fields);
    }

    /// Writes the fields of a block, and its end.
    fn fields(&mut self, fields: &[(&str, String)]) {
        let namespace = self.namespace.map(|name| ("namespace", text(name)));
        let fields = namespace.iter().chain(fields);
        let width = fields.clone().map(|(key, _)| key.len()).max().unwrap_or_default();
        for (key, value) in fields {
            let _ = writeln!(self.text, "  {key:width$} = {value}");
        }
        self.text.push_str("}\n");
    }

    fn comment(&mut self, text: &str) {
        self.text.push('\n');
        for line in text.lines() {
            let _ = writeln!(self.text, "# {line}");
        }
    }

    /// Writes the entities of groups, which are `sub` in the tokens that Vault signs about them.
    fn entities(&mut self, groups: &[&GroupName]) {
        let _ = writeln!(self.text, "\ndata \"vault_auth_backend\" \"{TOKENS}\" {{");
        self.fields(&[("path", text("token"))]);
        for group in groups {
            let (name, label) = (entity(group), label(group.as_str()));
            let metadata = format!("{{ cloakroom_group = {} }}", text(group.as_str()));
            let fields =
                [("name", text(&name)), ("policies", "[]".to_owned()), ("metadata", metadata)];
            self.resource("vault_identity_entity", &label, &fields);
            let alias = [
                ("name", text(&name)),
                ("canonical_id", format!("vault_identity_entity.{label}.id")),
                ("mount_accessor", format!("data.vault_auth_backend.{TOKENS}.accessor")),
            ];
            self.resource("vault_identity_entity_alias", &label, &alias);
        }
    }

    fn engine(&mut self, pki: &PkiSettings) {
        self.comment(&format!(
            "Where the engine and its CA are there already, import the mount and leave the root \
             out. The\nroot's certificate goes to {}.",
            pki.root_file.display()
        ));
        let mount = [
            ("path", text(&pki.mount)),
            ("type", text("pki")),
            ("max_lease_ttl_seconds", TEN_YEARS.to_string()),
        ];
        self.resource("vault_mount", PKI, &mount);
        let root = [
            ("backend", format!("vault_mount.{PKI}.path")),
            ("type", text("internal")),
            ("common_name", text("Cloakroom root")),
            ("ttl", text(&TEN_YEARS.to_string())),
            ("key_type", text("ec")),
            ("key_bits", "256".to_owned()),
        ];
        self.resource("vault_pki_secret_backend_root_cert", PKI, &root);
    }

    fn login(&mut self, login: &VaultLogin, bound: &str) {
        let backend = ("backend", format!("vault_auth_backend.{LOGIN}.path"));
        let token = [
            ("token_policies", format!("[vault_policy.{}.name]", label(GATEWAY))),
            ("token_no_default_policy", "true".to_owned()),
            ("token_period", PERIOD_SECONDS.to_string()),
            ("token_num_uses", "0".to_owned()),
            ("token_ttl", "0".to_owned()),
            ("token_max_ttl", "0".to_owned()),
            ("token_explicit_max_ttl", "0".to_owned()),
            ("token_bound_cidrs", bound.to_owned()),
        ];
        match login {
            VaultLogin::AppRole { mount, role_id, .. } => {
                self.mount(mount, "approle");
                self.no_lockout(mount);
                let own = [
                    backend,
                    ("role_name", text(GATEWAY)),
                    ("role_id", text(role_id)),
                    ("token_type", text("service")),
                    ("bind_secret_id", "true".to_owned()),
                    ("secret_id_num_uses", "0".to_owned()),
                    ("secret_id_ttl", "0".to_owned()),
                    ("secret_id_bound_cidrs", bound.to_owned()),
                ];
                let fields = [&own[..], &token].concat();
                self.resource("vault_approle_auth_backend_role", LOGIN, &fields);
                self.comment(&format!(
                    "Make the SecretID by hand, so that it is in no state file:\nvault write -f \
                     auth/{mount}/role/{GATEWAY}/secret-id"
                ));
            }
            VaultLogin::Cert { mount, role, certificate_file, .. } => {
                self.mount(mount, "cert");
                let file = text(&certificate_file.to_string_lossy());
                let own = [backend, ("name", text(role)), ("certificate", format!("file({file})"))];
                let fields = [&own[..], &token].concat();
                self.resource("vault_cert_auth_backend_role", LOGIN, &fields);
            }
            VaultLogin::Jwt { mount, role, .. } => {
                let bearers = Bearers::at(mount);
                self.mount(mount, bearers.engine);
                let own = self.bearers(bearers);
                let fields = [&[backend, ("role_name", text(role))], &own[..], &token].concat();
                let kind = format!("vault_{}_auth_backend_role", bearers.engine);
                self.resource(&kind, LOGIN, &fields);
            }
        }
    }

    /// Declares a variable for each field that the operator is asked for.
    fn bearers(&mut self, bearers: &Bearers) -> Vec<(&'static str, String)> {
        self.comment("The configuration does not say who issues these tokens.");
        let mut fields: Vec<_> =
            bearers.fixed.iter().map(|(key, value)| (*key, text(value))).collect();
        for (key, variable, is_list) in bearers.asked {
            let name = format!("cloakroom_{}", variable.to_ascii_lowercase());
            let _ = writeln!(self.text, "variable \"{name}\" {{\n  type = string\n}}");
            let value = if *is_list { format!("[var.{name}]") } else { format!("var.{name}") };
            fields.push((*key, value));
        }
        fields
    }

    /// Turns lockout off. The provider's own resource of a mount does not have this setting.
    fn no_lockout(&mut self, mount: &str) {
        self.comment(
            "Without this, five wrong SecretIDs from anywhere would lock the gateway out.",
        );
        let tuned = r#"{"user_lockout_config":{"lockout_disable":true}}"#;
        let fields = [
            ("path", text(&format!("sys/auth/{mount}/tune"))),
            ("data_json", text(tuned)),
            ("disable_read", "true".to_owned()),
            ("disable_delete", "true".to_owned()),
            ("depends_on", format!("[vault_auth_backend.{LOGIN}]")),
        ];
        self.resource("vault_generic_endpoint", LOGIN, &fields);
    }

    fn mount(&mut self, mount: &str, kind: &str) {
        self.comment(&format!(
            "Where it is there already, run: terraform import vault_auth_backend.{LOGIN} {mount}"
        ));
        let fields = [("type", text(kind)), ("path", text(mount))];
        self.resource("vault_auth_backend", LOGIN, &fields);
    }
}

/// Returns a quoted text that stands for itself.
pub(super) fn text(text: &str) -> String {
    let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", escaped(&quoted))
}

/// Escapes braces after `$` and `%`, where Terraform would put in values.
fn escaped(text: &str) -> String {
    text.replace("${", "$${").replace("%{", "%%{")
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.map(|item| text(&item)).collect();
    format!("[{}]", items.join(", "))
}

/// Returns Terraform's name for something; two names of ours give two different ones.
pub(super) fn label(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut label = "p-".to_owned();
    for c in name.chars() {
        match plain(c) {
            true => label.push(c),
            false => drop(write!(label, "_{:x}_", u32::from(c))),
        }
    }
    label
}

const HEAD: &str = "# Sets up Vault for Cloakroom, from its configuration.
terraform {
  required_providers {
    vault = {
      source = \"hashicorp/vault\"
    }
  }
}
";

/// The line that ends a policy. No policy has such a line.
const END: &str = "CLOAKROOM_POLICY";
/// The resources' own names.
const LOGIN: &str = "cloakroom-login";
const PKI: &str = "cloakroom-pki";
const TOKENS: &str = "cloakroom-tokens";
const TEN_YEARS: u32 = 87_600 * 3_600;
