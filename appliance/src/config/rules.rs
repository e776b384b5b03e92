//! The rules as they stand in the file, each value with its place: `[[group]]`, `[[api]]`,
//! `[[splice]]`, `[[inspect]]` and `[[tcp]]`. A value that is wrong by itself is reported here; one
//! that is wrong only beside another rule is found by `check`.

use std::{net::IpAddr, ops::RangeInclusive, sync::Arc};

use http::Method;
use ipnet::IpNet;
use toml::{Spanned, de::DeTable};

use super::{
    credential::{BasicHalves, basic_half, place, plain_name},
    error::{Span, nearest},
    fields::{inner, plain},
    files::{Files, ca_file, one_ca},
    mint::MintRule,
    reference::{secret_ref, token_role},
    table::TomlTable,
    value::{
        anonymous, exact_host, flag, host_pattern, method, number, parsed, port, prefix, unquoted,
        value_bytes,
    },
};
use crate::{
    catalogue::{self, Client, Provider},
    policy::{
        Anonymous, AwsName, Constraints, DialledRule, Ech, GroupName, Host, HostPattern,
        InterfaceName, MIN_VALUE_BYTES, Mac, PathRule, Place, Placeholder, Plain, RuleName,
        SecretRef, USUAL_METHODS, Upstream,
    },
};

/// A `[[group]]`. A field is `None`, and a list lacks an entry, where the file is wrong.
pub(super) struct GroupRule {
    /// The name as it was written, even if it is not valid.
    pub(super) written: Option<String>,
    pub(super) name: Option<Spanned<GroupName>>,
    pub(super) interface: Option<Spanned<InterfaceName>>,
    pub(super) prefixes: Vec<Spanned<IpNet>>,
    pub(super) vault_role: Option<Spanned<Arc<str>>>,
    pub(super) mtu: Option<u16>,
    pub(super) onboarding: Option<Arc<[u8]>>,
    pub(super) agents: Vec<AgentRule>,
    pub(super) clients: Vec<Spanned<&'static Client>>,
}

/// A `[[group.agent]]`.
pub(super) struct AgentRule {
    pub(super) mac: Option<Spanned<Mac>>,
    pub(super) addresses: Vec<Spanned<IpAddr>>,
}

/// An `[[api]]`.
pub(super) struct ApiRule {
    pub(super) name: Option<Spanned<RuleName>>,
    pub(super) hosts: Vec<Spanned<Host>>,
    pub(super) port: Spanned<u16>,
    pub(super) requests: Requests,
    pub(super) plain: Vec<Spanned<Plain>>,
    pub(super) anonymous: Anonymous,
    /// Whether the file has that key.
    pub(super) says_anonymous: bool,
    pub(super) upstream: Upstream,
    pub(super) cookies: bool,
    pub(super) ranges: bool,
    pub(super) websocket: Option<Spanned<bool>>,
    pub(super) aws: Option<AwsRule>,
    pub(super) constraints: Option<Spanned<Constraints>>,
    pub(super) bindings: Vec<BindingRule>,
    pub(super) mints: Vec<MintRule>,
    /// The place of the API in the file, if it has no binding.
    pub(super) unbound: Option<Span>,
}

/// The `aws` of an API.
pub(super) struct AwsRule {
    pub(super) span: Span,
    pub(super) services: Vec<Spanned<AwsName>>,
    pub(super) regions: Vec<Spanned<AwsName>>,
}

/// An `[[api.binding]]`.
pub(super) struct BindingRule {
    pub(super) groups: Vec<Spanned<GroupName>>,
    pub(super) placeholder: Option<Spanned<Placeholder>>,
    pub(super) places: Vec<Spanned<Place>>,
    pub(super) variables: Option<Vec<Arc<str>>>,
    pub(super) secret: Option<Spanned<SecretRef>>,
    pub(super) min_value_bytes: usize,
}

/// A `[[splice]]` or an `[[inspect]]`.
pub(super) struct PassRule {
    pub(super) name: Option<Spanned<RuleName>>,
    pub(super) groups: Vec<Spanned<GroupName>>,
    pub(super) hosts: Vec<Spanned<HostPattern>>,
    pub(super) ports: Vec<Spanned<u16>>,
    pub(super) upstream: Upstream,
    pub(super) dialled: DialledRule,
    pub(super) ech: Ech,
    /// The requests that are allowed, where the connection is inspected.
    pub(super) inspect: Option<Requests>,
    /// Whether one of its requests may become a WebSocket.
    pub(super) websocket: Option<Spanned<bool>>,
    pub(super) constraints: Option<Spanned<Constraints>>,
}

/// A `[[tcp]]`.
pub(super) struct TcpRule {
    pub(super) name: Option<Spanned<RuleName>>,
    pub(super) groups: Vec<Spanned<GroupName>>,
    pub(super) hosts: Vec<Spanned<Host>>,
    pub(super) ports: Vec<Spanned<u16>>,
    pub(super) upstream: Upstream,
}

/// Methods and paths. Without methods the usual ones are meant, without paths all paths.
pub(super) struct Requests {
    pub(super) methods: Vec<Method>,
    pub(super) paths: Vec<PathRule>,
}

impl GroupRule {
    pub(super) fn read(mut table: TomlTable<'_>, files: Files<'_>) -> Self {
        let agents = table.tables("agent", "[[group.agent]]");
        let group = Self {
            written: table.as_written("name").map(str::to_owned),
            name: table.required("name", parsed(GroupName::parse)),
            interface: table.required("interface", parsed(InterfaceName::parse)),
            prefixes: table.required_list("prefixes", agent_prefix),
            vault_role: table.optional("vault_role", parsed(token_role)),
            mtu: table.optional("mtu", number(MTU)).map(Spanned::into_inner),
            onboarding: table.optional("onboarding", one_ca(files)).map(Spanned::into_inner),
            agents: agents.into_iter().map(AgentRule::read).collect(),
            clients: table.list_or_none("client", parsed(client)),
        };
        table.finish();
        group
    }
}

impl AgentRule {
    fn read(mut table: TomlTable<'_>) -> Self {
        let agent = Self {
            mac: table.required("mac", parsed(Mac::parse)),
            addresses: table.required_list("addresses", parsed(agent_address)),
        };
        table.finish();
        agent
    }
}

impl ApiRule {
    pub(super) fn read(mut table: TomlTable<'_>, files: Files<'_>) -> Self {
        let provider = NamedProvider::read(&mut table);
        provider.default_to(&mut table, Provider::api);
        let bindings = table.tables("binding", "[[api.binding]]").into_iter();
        let mints = table.tables("mint", "[[api.mint]]");
        let unbound = (!table.has("binding")).then(|| table.span().clone());
        let mut api = Self {
            name: table.required("name", parsed(RuleName::parse)),
            hosts: table.required_list("hosts", exact_host("an API")),
            port: table.optional("port", port).unwrap_or_else(|| default_port(&table)),
            requests: Requests::read(&mut table),
            plain: table.list_or_none("plain", parsed(plain_name)),
            anonymous: inner(table.optional("anonymous", anonymous), Anonymous::Never),
            says_anonymous: table.has("anonymous"),
            upstream: upstream(&mut table, files),
            cookies: inner(table.optional("keep_cookies", flag), false),
            ranges: inner(table.optional("keep_ranges", flag), false),
            websocket: table.optional("websocket", flag),
            aws: table.table("aws", "[api.aws]").map(AwsRule::read),
            constraints: table.optional("constraints", parsed(constraints)),
            bindings: bindings.map(|table| BindingRule::read(table, &provider)).collect(),
            mints: mints.into_iter().map(MintRule::read).collect(),
            unbound,
        };
        if table.finish().has("binding") {
            api.unbound = None;
        }
        api
    }
}

impl AwsRule {
    fn read(mut table: TomlTable<'_>) -> Self {
        let aws = Self {
            span: table.span().clone(),
            services: table.required_list("services", parsed(AwsName::parse)),
            regions: table.required_list("regions", parsed(AwsName::parse)),
        };
        table.finish();
        aws
    }
}

/// The result of reading `provider` in an `[[api]]`.
enum NamedProvider {
    Nothing,
    Known(Spanned<&'static Provider>),
    Unknown,
}

impl NamedProvider {
    fn read(table: &mut TomlTable<'_>) -> Self {
        match table.optional("provider", parsed(provider)) {
            Some(provider) => Self::Known(provider),
            None if table.has("provider") => Self::Unknown,
            None => Self::Nothing,
        }
    }

    fn default_to(&self, table: &mut TomlTable<'_>, of: fn(&Provider) -> &DeTable<'static>) {
        match self {
            Self::Nothing => {}
            Self::Known(provider) => table.default_to(of(provider.get_ref()), provider.span()),
            Self::Unknown => table.excuse_missing(),
        }
    }
}

impl BindingRule {
    fn read(mut table: TomlTable<'_>, provider: &NamedProvider) -> Self {
        provider.default_to(&mut table, Provider::binding);
        let user = table.optional("basic_user", parsed(basic_half));
        let password = table.optional("basic_password", unquoted(basic_half));
        // The halves of a provider are no mistake where the binding's own places do not use them.
        let written = |half: &Option<Spanned<Arc<str>>>, key| {
            half.as_ref().filter(|_| table.has(key)).map(Spanned::span)
        };
        let written = (written(&user, "basic_user"), written(&password, "basic_password"));
        let halves =
            BasicHalves { user: inner(user, "".into()), password: inner(password, "".into()) };
        let binding = Self {
            groups: table.required_list("groups", parsed(GroupName::parse)),
            placeholder: table.required("placeholder", unquoted(Placeholder::parse)),
            places: table.required_list("places", parsed(|text| place(text, &halves))),
            variables: table.list("variables", parsed(variable)).map(plain),
            secret: table.required("secret", unquoted(secret_ref)),
            min_value_bytes: inner(table.optional("min_value_bytes", value_bytes), MIN_VALUE_BYTES),
        };
        binding.check_halves(&table, written);
        table.finish();
        binding
    }

    /// Refuses a fixed half that stands beside no placeholder: most often the two halves are
    /// confused.
    fn check_halves(&self, table: &TomlTable<'_>, (user, password): (Option<Span>, Option<Span>)) {
        if self.places.is_empty() {
            return; // The places themselves are wrong, which is said already.
        }
        let stands =
            |wanted: fn(&Place) -> bool| self.places.iter().any(|place| wanted(place.get_ref()));
        let is_user = |place: &Place| matches!(place, Place::BasicUser { .. });
        let is_password = |place: &Place| matches!(place, Place::BasicPassword { .. });
        if let Some(span) = user.filter(|_| !stands(is_password)) {
            table.report().add(
                &span,
                "basic_user: it stands beside the place \"basic password\", which is not listed",
            );
        }
        if let Some(span) = password.filter(|_| !stands(is_user)) {
            table.report().add(
                &span,
                "basic_password: it stands beside the place \"basic user\", which is not listed",
            );
        }
    }
}

impl PassRule {
    /// Reads a `[[splice]]`.
    pub(super) fn splice(mut table: TomlTable<'_>) -> Self {
        let mut pass = Self::common(&mut table);
        pass.upstream.private_prefixes = private_prefixes(&mut table);
        pass.dialled = inner(table.optional("dialled", parsed(dialled)), DialledRule::Answered);
        pass.ech = inner(table.optional("ech", parsed(ech)), Ech::Refuse);
        pass.finish(table)
    }

    /// Reads an `[[inspect]]`.
    pub(super) fn inspect(mut table: TomlTable<'_>, files: Files<'_>) -> Self {
        let mut pass = Self::common(&mut table);
        pass.upstream = upstream(&mut table, files);
        pass.inspect = Some(Requests::read(&mut table));
        pass.websocket = table.optional("websocket", flag);
        pass.constraints = table.optional("constraints", parsed(constraints));
        pass.finish(table)
    }

    fn common(table: &mut TomlTable<'_>) -> Self {
        Self {
            name: table.required("name", parsed(RuleName::parse)),
            groups: table.required_list("groups", parsed(GroupName::parse)),
            hosts: table.required_list("hosts", host_pattern),
            ports: table.list("ports", port).unwrap_or_else(|| vec![default_port(table)]),
            upstream: Upstream::default(),
            dialled: DialledRule::Answered,
            ech: Ech::Refuse,
            inspect: None,
            websocket: None,
            constraints: None,
        }
    }

    fn finish(self, mut table: TomlTable<'_>) -> Self {
        let report = table.report();
        let present = table.has("any_host");
        let word = table.optional("any_host", parsed(any_host));
        let misspelt = table.finish();
        self.check_any_host(word, present || misspelt.has("any_host"), report);
        self
    }

    fn check_any_host(
        &self,
        word: Option<Spanned<()>>,
        tried: bool,
        report: &super::error::Report<'_>,
    ) {
        let any = self.hosts.iter().find(|host| *host.get_ref() == HostPattern::Any);
        match (any, word) {
            (Some(any), None) if !tried => report.add(
                &any.span(),
                format!(
                    "hosts: \"*\" is every host there is; list the hosts, or write \
                     any_host = {ANY_HOST:?}"
                ),
            ),
            (None, Some(word)) => {
                report.add(&word.span(), "any_host: it has a meaning only where hosts has \"*\"");
            }
            _ => {}
        }
    }
}

impl TcpRule {
    pub(super) fn read(mut table: TomlTable<'_>) -> Self {
        let tcp = Self {
            name: table.required("name", parsed(RuleName::parse)),
            groups: table.required_list("groups", parsed(GroupName::parse)),
            hosts: table.required_list("hosts", exact_host("[[tcp]]")),
            ports: table.required_list("ports", port),
            upstream: Upstream {
                private_prefixes: private_prefixes(&mut table),
                ..Upstream::default()
            },
        };
        table.finish();
        tcp
    }
}

impl Requests {
    fn read(table: &mut TomlTable<'_>) -> Self {
        let methods = table.list("methods", method);
        let paths = table.list("paths", parsed(PathRule::parse)).unwrap_or_default();
        Self { methods: methods.map_or_else(|| USUAL_METHODS.to_vec(), plain), paths: plain(paths) }
    }
}

/// Reads an agent's prefix: unicast, not one that the kernel treats specially, and not too wide.
fn agent_prefix(value: &toml::de::DeValue<'_>) -> Result<IpNet, String> {
    let found = prefix(value)?;
    if found.prefix_len() < SHORTEST_AGENT_PREFIX {
        return Err(format!(
            "\"{found}\" is too wide; a group has at most a /{SHORTEST_AGENT_PREFIX}"
        ));
    }
    let special = NO_AGENTS.iter().filter_map(|text| text.parse::<IpNet>().ok());
    match special.into_iter().find(|special| overlap(special, &found)) {
        Some(special) => Err(format!("\"{found}\" touches {special}, where no agent can be")),
        None => Ok(found),
    }
}

fn agent_address(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().map_err(|_| "is not an address; write it without a length, as in \"192.0.2.5\"")
}

/// Returns whether two prefixes have an address in common.
pub(super) fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

fn upstream(table: &mut TomlTable<'_>, files: Files<'_>) -> Upstream {
    let ca_pem = table.optional("upstream_ca", ca_file(files));
    Upstream { ca_pem: ca_pem.map(Spanned::into_inner), private_prefixes: private_prefixes(table) }
}

fn private_prefixes(table: &mut TomlTable<'_>) -> Vec<IpNet> {
    plain(table.list_or_none("private_prefixes", prefix))
}

fn dialled(text: &str) -> Result<DialledRule, &'static str> {
    match text {
        "answered" => Ok(DialledRule::Answered),
        "any" => Ok(DialledRule::Any),
        _ => Err("write \"answered\" or \"any\""),
    }
}

fn ech(text: &str) -> Result<Ech, &'static str> {
    match text {
        "refuse" => Ok(Ech::Refuse),
        "allow" => Ok(Ech::Allow),
        _ => Err("write \"refuse\" or \"allow\""),
    }
}

fn constraints(text: &str) -> Result<Constraints, &'static str> {
    match text {
        "critical" => Ok(Constraints::Critical),
        "noted" => Ok(Constraints::Noted),
        _ => Err("write \"critical\" or \"noted\""),
    }
}

fn provider(text: &str) -> Result<&'static Provider, String> {
    let names = catalogue::providers().iter().map(|provider| provider.name);
    catalogue::provider(text).ok_or_else(|| unlisted(text, "provider", names))
}

fn client(text: &str) -> Result<&'static Client, String> {
    let names = catalogue::clients().iter().map(|client| client.name);
    catalogue::client(text).ok_or_else(|| unlisted(text, "client", names))
}

fn unlisted(text: &str, what: &str, names: impl Iterator<Item = &'static str>) -> String {
    let meant = nearest(text, names).map(|name| format!("did you mean {name:?}? "));
    let meant = meant.unwrap_or_default();
    format!("no {what} has this name; {meant}`cloakroom {what}s` lists them")
}

fn variable(text: &str) -> Result<Arc<str>, &'static str> {
    is_variable(text)
        .then(|| text.into())
        .ok_or("the name of a variable has 1 to 64 letters, digits and '_', and no digit first")
}

/// Returns whether this is the name of an environment variable that a shell can set (POSIX, 8.1).
pub(super) fn is_variable(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let begins = text.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
    begins && text.bytes().all(plain) && text.len() <= MAX_VARIABLE
}

fn any_host(text: &str) -> Result<(), String> {
    if text == ANY_HOST { Ok(()) } else { Err(format!("the word is {ANY_HOST:?}")) }
}

fn default_port(table: &TomlTable<'_>) -> Spanned<u16> {
    Spanned::new(table.span().clone(), 443)
}

/// The text that an operator must write to open a rule to every host.
pub(super) const ANY_HOST: &str = "i-know-that-agents-can-send-anything-anywhere";

/// From the least that IPv6 requires of a link (RFC 8200, section 5) to the most that Ethernet
/// carries.
const MTU: RangeInclusive<u64> = 1_280..=9_000;

const MAX_VARIABLE: usize = 64;

/// The shortest prefix of an agent. A wider group is a mistake.
const SHORTEST_AGENT_PREFIX: u8 = 8;

/// Sources that the kernel drops or that never name one host (RFC 6890).
const NO_AGENTS: [&str; 9] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/96",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];
