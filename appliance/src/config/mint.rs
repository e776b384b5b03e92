//! `[[api.mint]]`: the credentials that an API mints and wants back.

use std::{sync::Arc, time::Duration};

use toml::Spanned;

use super::{
    credential::{BasicHalves, basic_half, place},
    fields::{inner, plain},
    table::TomlTable,
    value::{exact_host, may_hold_a_credential, parsed, time, unquoted, value_bytes},
};
use crate::policy::{
    AnswerSpot, Api, GroupName, Host, MIN_VALUE_BYTES, Mint, MintedAt, Place, RuleName, TicketShape,
};

/// An `[[api.mint]]`. A field is `None`, and a list lacks an entry, where the file is wrong.
pub(super) struct MintRule {
    pub(super) name: Option<Spanned<RuleName>>,
    answers: Vec<Spanned<MintedAt>>,
    pub(super) hosts: Vec<Spanned<Host>>,
    pub(super) places: Vec<Spanned<Place>>,
    life: Option<Spanned<Duration>>,
    min_value_bytes: usize,
    shape: TicketShape,
}

impl MintRule {
    pub(super) fn read(mut table: TomlTable<'_>) -> Self {
        let user = table.optional("basic_user", parsed(basic_half));
        let password = table.optional("basic_password", unquoted(basic_half));
        let halves =
            BasicHalves { user: inner(user, "".into()), password: inner(password, "".into()) };
        let mint = Self {
            name: table.required("name", parsed(RuleName::parse)),
            answers: table.required_list("answers", parsed(minted_at)),
            hosts: table.required_list("hosts", exact_host("an API")),
            places: table.required_list("places", parsed(|text| place(text, &halves))),
            life: table.required("life", time(LIFE)),
            min_value_bytes: inner(table.optional("min_value_bytes", value_bytes), MIN_VALUE_BYTES),
            shape: inner(table.optional("ticket", parsed(shape)), TicketShape::Opaque),
        };
        table.finish();
        mint
    }

    /// Returns whether the API takes back its minted credentials.
    pub(super) fn is_redeemed_at(&self, hosts: &[Spanned<Host>]) -> bool {
        let is_listed =
            |host: &Spanned<Host>| hosts.iter().any(|it| it.get_ref() == host.get_ref());
        self.hosts.iter().any(is_listed)
    }

    pub(super) fn into_mint(self) -> Option<Mint> {
        let name = self.name?.into_inner();
        Some(Mint {
            label: Mint::label_of(&name),
            name,
            groups: vec![],
            answers: plain(self.answers),
            hosts: plain(self.hosts),
            places: plain(self.places),
            life: self.life?.into_inner(),
            min_value_bytes: self.min_value_bytes,
            shape: self.shape,
        })
    }
}

/// Links each API to the mints whose tickets it accepts, and each mint to the groups that use it. A
/// group that gets tickets from one API uses the APIs that accept them, and may get further ones
/// there.
pub(super) fn link(mut apis: Vec<Api>) -> Vec<Arc<Api>> {
    let mut groups: Vec<Vec<GroupName>> = apis.iter().map(bound_groups).collect();
    while spread(&apis, &mut groups) {}
    for (api, groups) in apis.iter_mut().zip(&groups) {
        let with_groups = |mint: &Arc<Mint>| Mint { groups: groups.clone(), ..Mint::clone(mint) };
        api.mints = api.mints.iter().map(|mint| Arc::new(with_groups(mint))).collect();
    }
    let all: Vec<_> = apis.iter().flat_map(|api| api.mints.clone()).collect();
    let linked = apis.into_iter().map(|mut api| {
        let wanted = all.iter().filter(|mint| api.hosts.iter().any(|host| mint.is_wanted_at(host)));
        api.redeems = wanted.cloned().collect();
        Arc::new(api)
    });
    linked.collect()
}

fn bound_groups(api: &Api) -> Vec<GroupName> {
    let mut groups: Vec<_> =
        api.bindings.iter().flat_map(|binding| binding.groups.iter().cloned()).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Adds the groups of each API to the APIs that accept its tickets. Returns whether any API got a
/// new group.
fn spread(apis: &[Api], groups: &mut [Vec<GroupName>]) -> bool {
    let mut is_new = false;
    for (from, api) in apis.iter().enumerate() {
        for mint in &api.mints {
            let takes = |api: &Api| api.hosts.iter().any(|host| mint.is_wanted_at(host));
            for (to, _) in apis.iter().enumerate().filter(|(_, api)| takes(api)) {
                let given = groups.get(from).cloned().unwrap_or_default();
                let Some(own) = groups.get_mut(to) else { continue };
                let before = own.len();
                own.extend(given);
                own.sort_unstable();
                own.dedup();
                is_new |= own.len() > before;
            }
        }
    }
    is_new
}

fn minted_at(text: &str) -> Result<MintedAt, String> {
    let words: Vec<&str> = text.split(' ').collect();
    let at = MintedAt::parse(&words).map_err(|error| error.to_string())?;
    match &at.spot {
        AnswerSpot::Header(name) if !may_hold_a_credential(name) => {
            Err(format!("{name} frames, routes or describes messages; no credential stands there"))
        }
        _ => Ok(at),
    }
}

fn shape(text: &str) -> Result<TicketShape, &'static str> {
    match text {
        "opaque" => Ok(TicketShape::Opaque),
        "jwt" => Ok(TicketShape::Jwt),
        _ => Err("write \"opaque\" or \"jwt\""),
    }
}

/// From a lifetime that any client can use to the longest that any client should need.
const LIFE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);
