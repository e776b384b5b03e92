//! Turns one TOML file into checked settings and a policy.
//!
//! Either everything in the file is right, or nothing of it is used: unknown keys, wrong types, bad
//! values and rules that contradict each other are errors, all of them reported at once with their
//! lines. A text with two meanings is refused. Secrets are never in the file.
//! `image/cloakroom.toml` shows every key with its unit, default and meaning.

mod check;
mod clients;
mod credential;
mod edit;
mod error;
mod explain;
mod fields;
mod files;
mod gateway;
mod mint;
mod prefixes;
mod reference;
mod rules;
mod settings;
mod syntax;
mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod value;
mod vault;

pub use edit::{Edit, TableAt, edited};
pub(crate) use error::nearest;
pub use error::{Errors, Mistake};
pub use explain::explain;
pub use settings::{
    AgentServices, AuditFile, AuditTarget, NameServer, PkiSettings, SecretFile, Settings,
    VaultLogin, VaultSettings,
};
pub use vault::is_guessable;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::{Spanned, de::DeTable};

use crate::policy::{
    Api, AwsScope, Binding, BoundAgent, Carry, Constraints, Group, InterfaceName, Limits, Pass,
    Place, Policy, ResponseRules, Tcp,
};
use check::Draft;
use error::Report;
use fields::{inner, plain, transpose};
use files::Files;
use gateway::GatewaySection;
use mint::MintRule;
use rules::{AgentRule, ApiRule, AwsRule, BindingRule, GroupRule, PassRule, TcpRule};
use table::TomlTable;
use value::parsed;
pub use value::read_duration;

/// The content of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Settings of the daemon.
    pub settings: Settings,
    /// The rights of the agents.
    pub policy: Policy,
}

/// Reads and checks the file at `path`, and the certificates that it names. Neither may have more
/// than 4 MiB.
pub fn load(path: &Path) -> Result<Config, Errors> {
    load_by(path, &read_bounded)
}

/// Does the same, and reads each file with `read_file`.
pub fn load_by(
    path: &Path,
    read_file: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Config, Errors> {
    let name = path.display().to_string();
    let text = read_file(path).map_err(|error| Errors::whole_file(&name, error.to_string()))?;
    parse(&text, path.parent(), &name, read_file)
}

/// Returns the interfaces of the agent groups, and reads nothing else of a file: the guard is
/// loaded at boot whatever else is wrong in the file.
///
/// # Errors
///
/// The file cannot be read or is not TOML, it has no group, or a group has no interface.
pub fn interfaces(path: &Path) -> Result<Vec<InterfaceName>, Errors> {
    let name = path.display().to_string();
    let text = read_bounded(path).map_err(|error| Errors::whole_file(&name, error.to_string()))?;
    let report = Report::new(&text);
    let document = document(&text, &report);
    let interfaces = document.map(|document| interfaces_of(&document, &report)).unwrap_or_default();
    report.into_errors(&name).map_or(Ok(interfaces), Err)
}

/// Returns the control socket of the daemon with this configuration, and reads nothing else of the
/// file: orders reach the daemon whatever else is wrong in it. For a file that cannot be read,
/// returns the default.
pub fn control(path: &Path) -> PathBuf {
    let text = read_bounded(path).unwrap_or_default();
    let report = Report::new(&text);
    let document = document(&text, &report);
    let gateway = document
        .as_ref()
        .and_then(|document| TomlTable::root(document, &report).table("gateway", "[gateway]"));
    gateway::control(gateway, path.parent().unwrap_or(Path::new("")))
}

/// The path where every command looks for the configuration, unless another is given.
pub const DEFAULT_CONFIG: &str = "/etc/cloakroom/cloakroom.toml";

fn interfaces_of(document: &Spanned<DeTable<'_>>, report: &Report<'_>) -> Vec<InterfaceName> {
    let groups = TomlTable::root(document, report).tables("group", "[[group]]");
    if groups.is_empty() {
        report.add(&(0..0), "there is no [[group]], so no interface that agents are behind");
    }
    let interface = |mut group: TomlTable<'_>| {
        if !group.has("interface") {
            report.add(group.span(), "[[group]] has no interface");
        }
        group.optional("interface", parsed(InterfaceName::parse)).map(Spanned::into_inner)
    };
    groups.into_iter().filter_map(interface).collect()
}

/// Parses the file, if it is TOML. A broken document would only cause errors about keys that seem
/// to be missing.
fn document<'a>(text: &'a str, report: &Report<'_>) -> Option<Spanned<DeTable<'a>>> {
    let (document, mut mistakes) = DeTable::parse_recoverable(text);
    mistakes.sort_by_key(|error| error.span().map(|span| span.start));
    for error in &mistakes {
        let span = error.span().unwrap_or_default();
        let is_duplicate = error.message() == syntax::DUPLICATE;
        report.add(&span, syntax::in_words(text, &span, error.message()));
        // A mistake that follows another may come from a wrong starting point, so only the first is
        // kept.
        if !is_duplicate {
            break;
        }
    }
    mistakes.is_empty().then_some(document)
}

/// Checks `text`. Relative paths in it start from `base`, errors call the file `name`, and
/// `read_file` reads the certificates that it names.
pub fn parse(
    text: &str,
    base: Option<&Path>,
    name: &str,
    read_file: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Config, Errors> {
    let report = Report::new(text);
    let files = Files { base: base.unwrap_or(Path::new("")), read: read_file };
    let document = document(text, &report);
    let config = document.and_then(|document| read(&document, files, &report));
    match (report.into_errors(name), config) {
        (None, Some(config)) => Ok(config),
        (Some(errors), _) => Err(errors),
        (None, None) => Err(Errors::whole_file(name, "something needed is missing".into())),
    }
}

fn read(document: &Spanned<DeTable<'_>>, files: Files<'_>, report: &Report<'_>) -> Option<Config> {
    let mut root = TomlTable::root(document, report);
    root.require("gateway");
    root.require("group");
    let gateway =
        root.table("gateway", "[gateway]").map(|table| GatewaySection::read(table, files));
    let limits = root.table("limits", "[limits]").map_or_else(Limits::default, gateway::limits);
    let vault = root.table("vault", "[vault]");
    let secrets = root.table("secrets", "[secrets]");
    let groups = root.tables("group", "[[group]]");
    let apis = root.tables("api", "[[api]]");
    let splices = root.tables("splice", "[[splice]]").into_iter().map(PassRule::splice);
    let inspects = root.tables("inspect", "[[inspect]]").into_iter();
    let tcp = root.tables("tcp", "[[tcp]]");
    let (has_vault, has_secrets) = (root.has("vault"), root.has("secrets"));
    let misspelt = root.finish();
    let mut draft = Draft {
        gateway,
        groups: groups.into_iter().map(|table| GroupRule::read(table, files)).collect(),
        apis: apis.into_iter().map(|table| ApiRule::read(table, files)).collect(),
        passes: splices.chain(inspects.map(|table| PassRule::inspect(table, files))).collect(),
        tcp: tcp.into_iter().map(TcpRule::read).collect(),
        vault: has_vault || misspelt.has("vault"),
        secret_file: has_secrets || misspelt.has("secrets"),
    };
    clients::add(&mut draft, files, report);
    draft.check(report);
    let vault = vault.map(|table| vault::vault(table, files));
    let secrets = secrets.map(|table| gateway::secret_file(table, files.base));
    if let (Some(gateway), Some(Some(VaultSettings { pki: Some(_), .. }))) =
        (&draft.gateway, &vault)
    {
        gateway.refuse_ca_dir(report);
        draft.refuse_noted(report);
    }
    draft.into_config(limits, transpose(vault)?, transpose(secrets)?)
}

impl Draft {
    fn into_config(
        self,
        limits: Limits,
        vault: Option<VaultSettings>,
        secret_file: Option<SecretFile>,
    ) -> Option<Config> {
        let (ports, gateway) = (self.captured_ports(), self.gateway?);
        let policy = Policy {
            groups: all(self.groups, GroupRule::into_group)?,
            apis: mint::link(self.apis.into_iter().map(ApiRule::into_api).collect::<Option<_>>()?)
                .into(),
            passes: all(self.passes, PassRule::into_pass)?.into(),
            tcp: all(self.tcp, TcpRule::into_tcp)?.into(),
            ports,
            limits,
            site: gateway.site.clone(),
        };
        Some(Config { settings: gateway.into_settings(vault, secret_file), policy })
    }

    fn captured_ports(&self) -> Vec<u16> {
        let listed = self.gateway.as_ref().and_then(|gateway| gateway.ports.as_ref());
        let mut ports: Vec<u16> = match listed {
            Some(ports) => ports.iter().map(|port| *port.get_ref()).collect(),
            None => self.rule_ports().into_keys().chain(ALWAYS_CAPTURED).collect(),
        };
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

impl GroupRule {
    fn into_group(self) -> Option<Group> {
        let name = self.name?.into_inner();
        let own = || format!("cloakroom-{name}").into();
        Some(Group {
            vault_role: self.vault_role.map_or_else(own, Spanned::into_inner),
            name,
            interface: self.interface?.into_inner(),
            prefixes: plain(self.prefixes),
            mtu: self.mtu,
            onboarding: self.onboarding,
            agents: self.agents.into_iter().map(AgentRule::into_agent).collect::<Option<_>>()?,
            clients: self.clients.iter().map(|client| client.get_ref().name).collect(),
        })
    }
}

impl AgentRule {
    fn into_agent(self) -> Option<BoundAgent> {
        Some(BoundAgent { mac: self.mac?.into_inner(), addresses: plain(self.addresses) })
    }
}

impl ApiRule {
    fn into_api(self) -> Option<Api> {
        Some(Api {
            name: self.name?.into_inner(),
            hosts: plain(self.hosts),
            port: self.port.into_inner(),
            methods: self.requests.methods,
            paths: self.requests.paths,
            plain: plain(self.plain),
            anonymous: self.anonymous,
            upstream: self.upstream,
            response: ResponseRules { cookies: self.cookies, ranges: self.ranges },
            websocket: inner(self.websocket, false),
            aws: self.aws.map(AwsRule::into_scope).map(Arc::new),
            constraints: inner(self.constraints, Constraints::Critical),
            bindings: all(self.bindings, BindingRule::into_binding)?,
            mints: all(self.mints, MintRule::into_mint)?,
            redeems: vec![],
        })
    }
}

impl AwsRule {
    fn into_scope(self) -> AwsScope {
        AwsScope { services: plain(self.services), regions: plain(self.regions) }
    }
}

/// Variables in which SDKs of AWS look for their keys.
const AWS_VARIABLES: [&str; 2] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];

impl BindingRule {
    fn into_binding(self) -> Option<Binding> {
        let placeholder = self.placeholder?.into_inner();
        let own = Some(placeholder.as_str()).filter(|own| rules::is_variable(own)).map(Arc::from);
        let is_aws = self.places.iter().any(|place| *place.get_ref() == Place::Aws);
        let usual = || match is_aws {
            // SDKs accept neither key without the other.
            true => AWS_VARIABLES.map(Arc::from).to_vec(),
            false => own.into_iter().collect(),
        };
        Some(Binding {
            groups: plain(self.groups),
            placeholder,
            places: plain(self.places),
            variables: self.variables.unwrap_or_else(usual),
            secret: self.secret?.into_inner(),
            min_value_bytes: self.min_value_bytes,
        })
    }
}

impl PassRule {
    fn into_pass(self) -> Option<Pass> {
        Some(Pass {
            name: self.name?.into_inner(),
            carry: match self.inspect {
                None => Carry::Splice { ech: self.ech },
                Some(requests) => Carry::Inspect {
                    methods: requests.methods,
                    paths: requests.paths,
                    websocket: inner(self.websocket, false),
                    constraints: inner(self.constraints, Constraints::Critical),
                },
            },
            groups: plain(self.groups),
            hosts: plain(self.hosts),
            ports: plain(self.ports),
            upstream: self.upstream,
            dialled: self.dialled,
        })
    }
}

impl TcpRule {
    fn into_tcp(self) -> Option<Tcp> {
        Some(Tcp {
            name: self.name?.into_inner(),
            groups: plain(self.groups),
            hosts: plain(self.hosts),
            ports: plain(self.ports),
            upstream: self.upstream,
        })
    }
}

fn all<R, T>(rules: Vec<R>, into: fn(R) -> Option<T>) -> Option<Vec<Arc<T>>> {
    rules.into_iter().map(|rule| into(rule).map(Arc::new)).collect()
}

/// Reads a whole file of at most 4 MiB.
pub fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file has more than 4 MiB"));
    }
    Ok(text)
}

/// Most bytes of a file. A larger one was not written by hand.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Ports that are captured whatever the rules say, so that a plain or encrypted web request gets an
/// answer with a reason instead of a reset.
const ALWAYS_CAPTURED: [u16; 2] = [80, 443];
