//! The operator's policy, as types that can hold nothing else.
//!
//! `config` makes a [`Policy`] out of text and checks it; from then on it is immutable, and a
//! flow keeps the one it began with.

mod agent;
mod anonymous;
mod aws;
mod body_place;
mod credential;
mod host;
mod key_shape;
mod limits;
mod listed;
mod method;
mod mint;
mod name;
mod narrowing;
pub(crate) mod nat64;
mod path;
mod path_slot;
mod rules;
mod scheme;
mod secret;
mod site;
pub(crate) mod special;
mod subprotocol;
mod text;

pub use agent::{BoundAgent, Mac, MacError};
pub use anonymous::{Anonymous, AnonymousError, AnonymousRequest};
pub use aws::{AwsName, AwsNameError, AwsScope, is_s3_control};
pub use body_place::{BodyPlace, BodyPlaceError, BodySpot, JsonPattern, JsonPointer};
pub use credential::{CredentialNames, is_credential_header, is_credential_query};
pub(crate) use credential::{fold_query, nested_name, queries_of, query_readings};
pub use host::{Host, HostError, HostPattern};
pub use key_shape::{KeyShape, KeyShapeError};
pub use limits::{Limits, Quota};
pub use method::{NeverAllowed, USUAL_METHODS, never_allowed};
pub(crate) use method::{is_method, names_method};
pub use mint::{AnswerSpot, MintPath, MintScheme, MintedAt, MintedAtError, TicketShape};
pub(crate) use name::{Folded, is_plain_name, only_value, query_pairs};
pub use narrowing::{
    NARROWING_KEYS, Narrowed, NarrowedRequest, Narrowing, ValuePlace, looks_narrowing,
};
pub(crate) use path::has_one_reading;
pub use path::{PathError, PathRule, permits, permits_path};
pub use path_slot::{PathSlot, PathSlotError};
pub use rules::{ListedName, MeantBy, Rule, Rules};
pub(crate) use scheme::after_word;
pub use scheme::{Scheme, SchemeError, SchemeWord};
pub(crate) use secret::is_plain_parameter_byte;
pub use secret::{
    FLOOR_VALUE_BYTES, IDENTITY_TOKEN, Location, MAX_VALUE_BYTES, MIN_VALUE_BYTES, Pick, PickPart,
    SecretRef, VaultLocation,
};
pub use site::Site;
pub use subprotocol::{SubprotocolError, SubprotocolPrefix};
pub(crate) use subprotocol::{is_credential_subprotocol, is_token};
pub use text::{
    GroupName, InterfaceError, InterfaceName, NameError, Placeholder, PlaceholderError, RuleName,
};

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderName, Method};
use ipnet::IpNet;

/// Everything that decides what agents may reach, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The agents, by the origin of their packets. No two groups overlap.
    pub groups: Vec<Arc<Group>>,
    /// The hosts where placeholders become secrets. No two share a host and port.
    pub apis: Rules<Api>,
    /// The hosts that are passed through, or terminated for inspection.
    pub passes: Rules<Pass>,
    /// The hosts that are reached by protocols which name no host. No port of theirs is one of an
    /// API or a pass.
    pub tcp: Rules<Tcp>,
    /// The TCP ports that are captured; every other one is reset by the kernel. Sorted.
    pub ports: Vec<u16>,
    /// The bounds that hold for every agent.
    pub limits: Limits,
    /// The special addresses of this site.
    pub site: Site,
}

impl Policy {
    /// Returns the group that a packet from `source` on `interface` belongs to.
    pub fn identify(&self, interface: &InterfaceName, source: IpAddr) -> Option<&Arc<Group>> {
        self.groups.iter().find(|group| group.interface == *interface && group.holds(source))
    }

    /// Whether connections to the port name no host.
    pub fn names_no_host(&self, port: u16) -> bool {
        self.tcp.iter().any(|tcp| tcp.ports.contains(&port))
    }

    /// Whether any rule of the group names the host, on any port.
    pub fn names(&self, group: &Group, host: &Host) -> bool {
        self.upstreams(group, host).next().is_some()
    }

    /// Returns the upstream settings of each rule of the group that names the host, on any port.
    pub fn upstreams<'p>(
        &'p self,
        group: &'p Group,
        host: &'p Host,
    ) -> impl Iterator<Item = &'p Upstream> {
        let apis = self.apis.of(&group.name, host, MeantBy::Name);
        let passes = self.passes.of(&group.name, host, MeantBy::NameOrPattern);
        let tcp = self.tcp.of(&group.name, host, MeantBy::Name);
        let passes = passes.map(|pass| &pass.upstream);
        apis.map(|api| &api.upstream).chain(passes).chain(tcp.map(|tcp| &tcp.upstream))
    }
}

/// Agents that are one tenant: what one may do, all of them may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The name in audit records and on the other rules.
    pub name: GroupName,
    /// The interface their packets arrive on.
    pub interface: InterfaceName,
    /// The source addresses they may use.
    pub prefixes: Vec<IpNet>,
    /// The token role in Vault, which decides which secrets the group may have.
    pub vault_role: Arc<str>,
    /// The largest packet that passes on the way to them, where a hop there is narrower than the
    /// link.
    pub mtu: Option<u16>,
    /// The certificate in DER that these agents should trust, where the gateway's own address
    /// offers it to them.
    pub onboarding: Option<Arc<[u8]>>,
    /// The agents that are bound to their network cards. If there is one, the group has no other
    /// agents.
    pub agents: Vec<BoundAgent>,
    /// The programs that its agents run, by their names in the catalogue. They decide nothing.
    pub clients: Vec<&'static str>,
}

impl Group {
    /// The TCP port of the gateway's own address at which agents fetch their CA: that of HTTP.
    pub const ONBOARDING_PORT: u16 = 80;

    /// Whether its agents may have an address of the same family as this one.
    pub fn has_family_of(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.addr().is_ipv4() == address.is_ipv4())
    }

    /// Whether a packet from `source` on this group's interface belongs to it.
    pub fn holds(&self, source: IpAddr) -> bool {
        let listed = || self.agents.iter().any(|agent| agent.addresses.contains(&source));
        self.prefixes.iter().any(|prefix| prefix.contains(&source))
            && (self.agents.is_empty() || listed())
    }
}

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header {name}"),
            Self::Query(name) => write!(f, "query {name}"),
        }
    }
}

/// A service whose requests are intercepted, and the placeholders that mean something there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Api {
    /// The name in audit records.
    pub name: RuleName,
    /// The exact names it answers to.
    pub hosts: Vec<Host>,
    /// The one TCP port it is reached on.
    pub port: u16,
    /// The methods that may be used.
    pub methods: Vec<Method>,
    /// The paths that may be used; empty means every one.
    pub paths: Vec<PathRule>,
    /// Names that look like those of credentials, and are not here.
    pub plain: Vec<Plain>,
    /// The requests without any credential that are forwarded.
    pub anonymous: Anonymous,
    /// The way in which the upstream is reached and verified.
    pub upstream: Upstream,
    /// The parts of a response that are kept here, and removed by default.
    pub response: ResponseRules,
    /// Whether a request may become a WebSocket.
    pub websocket: bool,
    /// The services and regions that requests may be signed for, where its credentials are
    /// signatures of AWS.
    pub aws: Option<Arc<AwsScope>>,
    /// The way in which its issuing CA is limited to its names.
    pub constraints: Constraints,
    /// The placeholders, each for some groups. A group without one has no use of this API.
    pub bindings: Vec<Arc<Binding>>,
    /// The credentials that its answers hold.
    pub mints: Vec<Arc<Mint>>,
    /// The credentials that it takes back, of its own and of other APIs.
    pub redeems: Vec<Arc<Mint>>,
}

impl Api {
    /// Whether a group has a placeholder here, or may have a ticket.
    pub fn serves(&self, group: &GroupName) -> bool {
        let bound = self.bindings.iter().map(|binding| &binding.groups);
        let minted = self.redeems.iter().map(|mint| &mint.groups);
        bound.chain(minted).any(|groups| groups.contains(group))
    }

    /// Returns every place in which a credential may stand.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        let bound = self.bindings.iter().flat_map(|binding| &binding.places);
        bound.chain(self.redeems.iter().flat_map(|mint| &mint.places))
    }
}

/// The way in which an upstream is reached and verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upstream {
    /// PEM of the only CAs to trust for it; `None` means the system's.
    pub ca_pem: Option<Arc<str>>,
    /// The special-purpose prefixes it may live in; empty means public addresses only.
    pub private_prefixes: Vec<IpNet>,
}

/// The way in which an issuing CA states that it is good for its rule's names alone. The client
/// enforces this limit, either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Constraints {
    /// A client that does not know the limit refuses the CA.
    #[default]
    Critical,
    /// A client that does not know the limit ignores it, and accepts the CA for any name.
    Noted,
}

/// The parts of a response that an intercepted host may send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseRules {
    /// Keep Set-Cookie, which may carry a minted credential, and Cookie in requests.
    pub cookies: bool,
    /// Keep Accept-Ranges and digest fields, and allow 206.
    pub ranges: bool,
}

/// A placeholder, with its groups, its places and its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The groups it is good for.
    pub groups: Vec<GroupName>,
    /// The text that agents hold.
    pub placeholder: Placeholder,
    /// The texts in the shape of the provider's keys that stand for it as well.
    pub shaped: Option<ShapedTexts>,
    /// The places in a request where it is recognised. Never empty.
    pub places: Vec<Place>,
    /// The environment variables in which agents hold it. They decide nothing.
    pub variables: Vec<Arc<str>>,
    /// The source of the value.
    pub secret: SecretRef,
    /// Fewest bytes that the value may have: 16, or down to 8 where the operator says so.
    pub min_value_bytes: usize,
}

impl Binding {
    /// Whether its value is a pair of AWS keys.
    pub fn is_aws(&self) -> bool {
        self.places.contains(&Place::Aws)
    }

    /// Returns each text that stands for the placeholder where an agent of the group sends it: its
    /// name, and a text in the shape of the keys, where that is known.
    pub fn texts<'b>(&'b self, group: &GroupName) -> impl Iterator<Item = &'b str> + use<'b> {
        [self.placeholder.as_str()].into_iter().chain(self.shaped_text(group))
    }

    /// Returns the text in the shape of the provider's keys that stands for the placeholder.
    pub fn shaped_text(&self, group: &GroupName) -> Option<&str> {
        self.shaped.as_ref()?.of(group)
    }
}

/// The texts in the shape of a provider's keys that stand for one placeholder, one for each group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapedTexts {
    shape: KeyShape,
    texts: BTreeMap<GroupName, Arc<str>>,
}

impl ShapedTexts {
    /// Makes up a text for each of the groups.
    pub fn new(shape: KeyShape, placeholder: &Placeholder, groups: &[GroupName]) -> Self {
        let text = |group: &GroupName| (group.clone(), shape.made_up(group, placeholder));
        let texts = groups.iter().map(text).collect();
        Self { shape, texts }
    }

    /// The shape that all of them have.
    pub fn shape(&self) -> &KeyShape {
        &self.shape
    }

    fn of(&self, group: &GroupName) -> Option<&str> {
        self.texts.get(group).map(|text| &**text)
    }
}

/// A kind of credential that one API mints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mint {
    /// The name in status. No two are alike.
    pub name: RuleName,
    /// The audit's name for its tickets, in the place of a placeholder.
    pub label: Placeholder,
    /// The groups whose answers are searched: all that use the API.
    pub groups: Vec<GroupName>,
    /// The places in answers that hold it. Never empty.
    pub answers: Vec<MintedAt>,
    /// The names that take it back, each of some API.
    pub hosts: Vec<Host>,
    /// The places in requests to these names where its ticket may stand. Never empty.
    pub places: Vec<Place>,
    /// The time for which a ticket is good.
    pub life: Duration,
    /// The fewest bytes that it may have: shorter credentials cannot be masked well.
    pub min_value_bytes: usize,
    /// The look of its tickets.
    pub shape: TicketShape,
}

impl Mint {
    /// Returns the label of a mint's tickets. No placeholder has a `:`.
    pub fn label_of(name: &RuleName) -> Placeholder {
        Placeholder(format!("ticket:{name}").into())
    }

    /// Whether the host takes it back.
    pub fn is_wanted_at(&self, host: &Host) -> bool {
        self.hosts.contains(host)
    }

    /// Whether an answer to a request for this path may hold such a credential.
    pub fn is_of(&self, path: &str) -> bool {
        self.answers.iter().any(|answer| answer.path.matches(path))
    }

    /// Whether some server takes this path for one whose answers are searched for such a
    /// credential, though it is another path. Each of the mint's answers is compared by itself,
    /// also beside one that matches.
    pub fn is_resembled_by(&self, path: &str) -> bool {
        let mut paths = self.answers.iter().map(|answer| &answer.path);
        paths.any(|own| !own.matches(path) && own.is_resembled_by(path))
    }
}

/// A name that belongs to a credential elsewhere, and to a harmless value here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plain {
    /// A header field.
    Header(HeaderName),
    /// A name in the query, as [`fold_query`] writes it.
    Query(Arc<str>),
}

/// A place in a request where a credential may stand. Nothing is implied.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// The whole value of one header field, after its scheme.
    Header {
        /// The field.
        name: HeaderName,
        /// The text before the credential.
        scheme: Scheme,
    },
    /// The user of `Authorization: Basic`; the password must then be empty, be this text, or be
    /// another binding's placeholder.
    BasicUser {
        /// The only text that may stand beside it as the password.
        password: Arc<str>,
    },
    /// The password of `Authorization: Basic`; the user must then be empty, be this text, or be
    /// another binding's placeholder.
    BasicPassword {
        /// The only text that may stand beside it as the user.
        user: Arc<str>,
    },
    /// The whole value under one name in the query, both decoded once.
    Query {
        /// The name, byte for byte.
        name: Arc<str>,
    },
    /// One whole segment of the path, decoded once, with fixed text around it.
    Path(PathSlot),
    /// The whole value of one cookie.
    Cookie {
        /// Its name, byte for byte.
        name: Arc<str>,
    },
    /// One whole value in the body of one request, decoded once.
    Body(BodyPlace),
    /// The text behind this prefix in one of the subprotocols that a WebSocket offers.
    Subprotocol(SubprotocolPrefix),
    /// The access key id in a signature of AWS, in the head or in the query. The value is a pair of
    /// keys, which is not sent: the gateway signs the request with it in place of that signature.
    Aws,
}

/// Writes the place as a configuration does; the fixed half beside a half of Basic has a key of its
/// own there.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header { name, scheme } => write!(f, "header {name} {}", scheme.as_written()),
            Self::BasicUser { .. } => f.write_str("basic user"),
            Self::BasicPassword { .. } => f.write_str("basic password"),
            Self::Query { name } => write!(f, "query {name}"),
            Self::Path(slot) => write!(f, "path {slot}"),
            Self::Cookie { name } => write!(f, "cookie {name}"),
            Self::Body(place) => place.fmt(f),
            Self::Subprotocol(prefix) => write!(f, "websocket subprotocol {prefix}"),
            Self::Aws => f.write_str("aws"),
        }
    }
}

/// Hosts that some groups may reach without any placeholder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pass {
    /// The name in audit records.
    pub name: RuleName,
    /// The client of the catalogue that it was added for. It decides nothing.
    pub client: Option<&'static str>,
    /// The way in which the connection is carried.
    pub carry: Carry,
    /// The groups that may use it.
    pub groups: Vec<GroupName>,
    /// The names it is good for.
    pub hosts: Vec<HostPattern>,
    /// The TCP ports it is good for. Never empty.
    pub ports: Vec<u16>,
    /// The way in which the upstream is reached and, for inspection, verified.
    pub upstream: Upstream,
    /// The addresses that an agent may dial for these names, where the connection is opaque.
    pub dialled: DialledRule,
}

/// The addresses that an agent may dial for a name that is spliced. The gateway's own target
/// is always its own resolution of the name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DialledRule {
    /// The addresses that the gateway gives for the name, now or in an answer that may still be in
    /// use.
    #[default]
    Answered,
    /// Any address.
    Any,
}

/// The treatment of a spliced connection with an encrypted ClientHello (RFC 9849), or with the
/// meaningless one that browsers always send and that cannot be told from a real one (GREASE).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ech {
    /// Refused: the server could be asked for a name that nobody has checked.
    #[default]
    Refuse,
    /// Carried to the server of the name in the clear: a server there that has the key may answer
    /// for any other name it serves.
    Allow,
}

/// The way in which a [`Pass`] carries a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carry {
    /// Opaque, byte for byte.
    Splice {
        /// The treatment of a connection whose name may not be the one it is for.
        ech: Ech,
    },
    /// TLS ends at the gateway; authority, method and path are checked.
    Inspect {
        /// The methods that may be used.
        methods: Vec<Method>,
        /// The paths that may be used; empty means every one.
        paths: Vec<PathRule>,
        /// Whether a request may become a WebSocket.
        websocket: bool,
        /// The way in which its issuing CA is limited to its names.
        constraints: Constraints,
    },
}

impl Carry {
    /// Whether the connection is opaque.
    pub fn is_splice(&self) -> bool {
        matches!(self, Self::Splice { .. })
    }

    /// Whether an encrypted ClientHello is carried.
    pub fn allows_ech(&self) -> bool {
        matches!(self, Self::Splice { ech: Ech::Allow })
    }
}

/// Hosts that some groups may reach by protocols which name no host, such as SSH. Only the address
/// tells which host is meant, so every name is exact: with a pattern, the owner of any name below
/// it could point that name at any address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    /// The name in audit records.
    pub name: RuleName,
    /// The groups that may use it.
    pub groups: Vec<GroupName>,
    /// The exact names it is good for.
    pub hosts: Vec<Host>,
    /// The TCP ports it is good for. Never empty.
    pub ports: Vec<u16>,
    /// The way in which the upstream is reached. No certificate is verified.
    pub upstream: Upstream,
}

impl Tcp {
    /// Whether a group may reach any host on the port by this rule.
    pub fn serves(&self, group: &GroupName, port: u16) -> bool {
        self.ports.contains(&port) && self.groups.contains(group)
    }
}
