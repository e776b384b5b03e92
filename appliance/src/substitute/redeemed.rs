//! Tickets that an API takes back: in their place at their host, and nowhere else.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, request::Parts};
use zeroize::Zeroizing;

use super::{testing::*, *};
use crate::{
    policy::{BodyPlace, Host, Mint, Place, RuleName, TicketShape},
    reason::Reason,
    secrets::SecretValue,
    tickets::{Minted, Tickets},
};

const MINTED: &str = "minted-0123456789abcdef";
const LIFE: Duration = Duration::from_secs(60);

struct Scene {
    rules: SubstitutionRules,
    tickets: Tickets,
    begin: Instant,
}

fn mint(places: Vec<Place>, host: &str) -> Arc<Mint> {
    let name = RuleName("session".into());
    Arc::new(Mint {
        label: Mint::label_of(&name),
        name,
        groups: vec![group("agents"), group("others")],
        answers: vec![],
        hosts: vec![Host::parse(host).unwrap()],
        places,
        life: LIFE,
        min_value_bytes: 16,
        shape: TicketShape::Opaque,
    })
}

fn places() -> Vec<Place> {
    let body = ["form", "refresh_token", "in", "POST", "/token"];
    vec![
        header("authorization", "scheme RemoteAuth"),
        header("x-session", "raw"),
        Place::BasicPassword { user: "".into() },
        Place::Query { name: "access_token".into() },
        Place::Body(BodyPlace::parse(&body).unwrap()),
    ]
}

impl Scene {
    /// Makes rules by which the first API takes back the minted credential.
    fn new() -> Self {
        let rules = rules_with(|api| api.redeems = vec![mint(places(), "first.example")]);
        Self { rules, tickets: Tickets::default(), begin: Instant::now() }
    }

    fn ticket(&self, of: &str, beside: Option<&str>) -> String {
        let value = SecretValue::load(Zeroizing::new(MINTED.into()), 16).unwrap();
        let beside = beside.map(Arc::from);
        let minted = Minted { mint: mint(places(), "first.example"), value, beside };
        let agent = IpAddr::from([192, 0, 2, 1]);
        self.tickets.issue(&group(of), agent, vec![minted], self.begin).unwrap()[0].to_string()
    }

    fn at(&self, host: &str, now: Instant, head: &Parts, body: &str) -> Result<Parts, Reason> {
        let host = Host::parse(host).unwrap();
        let against =
            CredentialLookup::new(&self.rules, TicketsAt { all: &self.tickets, host: &host, now });
        let body = Bytes::copy_from_slice(body.as_bytes());
        let examined = match self.rules.reads_body(head) {
            true => examine_whole(against, head, &body),
            false => examine(against, head),
        };
        let examined = examined.map_err(|denial| denial.reason)?;
        assert!(examined.placeholders().all(|label| label.as_str() == "ticket:session"));
        assert_eq!(examined.bindings().count(), 0, "no source is asked");
        let mut head = head.clone();
        let body = examined.apply(&mut head, lookup).unwrap();
        if let Some(body) = body.filter(|body| !body.is_empty()) {
            assert_eq!(body, format!("grant_type=x&refresh_token={MINTED}"));
        }
        Ok(head)
    }

    fn here(&self, fields: &[(&str, &str)]) -> Result<Parts, Reason> {
        self.at("first.example", self.begin, &head(fields), "")
    }
}

#[test]
fn a_ticket_in_its_places_becomes_its_credential() {
    let scene = Scene::new();
    let ticket = scene.ticket("agents", None);
    let auth = scene.here(&[("authorization", &format!("RemoteAuth {ticket}"))]).unwrap();
    assert_eq!(auth.headers["authorization"], format!("RemoteAuth {MINTED}"));
    assert!(auth.headers["authorization"].is_sensitive());
    assert_eq!(scene.here(&[("x-session", &ticket)]).unwrap().headers["x-session"], MINTED);
    let asked = head_to(Method::GET, &format!("/v1?access_token={ticket}"), &[]);
    let asked = scene.at("first.example", scene.begin, &asked, "").unwrap();
    assert_eq!(asked.uri.query(), Some(&*format!("access_token={MINTED}")));
    let kind = [("content-type", "application/x-www-form-urlencoded")];
    let renewed = head_to(Method::POST, "/token", &kind);
    let form = format!("grant_type=x&refresh_token={ticket}");
    scene.at("first.example", scene.begin, &renewed, &form).unwrap();
}

#[test]
fn halves_of_basic_go_as_they_were_minted() {
    let scene = Scene::new();
    let ticket = scene.ticket("agents", Some("storage-user"));
    let sent = |user: &str| scene.here(&[("authorization", &basic(&format!("{user}:{ticket}")))]);
    let good = sent("storage-user").unwrap();
    assert_eq!(good.headers["authorization"], basic(&format!("storage-user:{MINTED}")));
    assert_eq!(sent("mine").err(), Some(Reason::ForeignCredential));
}

#[test]
fn a_ticket_anywhere_else_is_refused() {
    use Reason::{
        DuplicateCredential, ForeignCredential, PlaceholderWrongHost, PlaceholderWrongPlace,
        TicketEnded,
    };
    let scene = Scene::new();
    let (ticket, theirs) = (scene.ticket("agents", None), scene.ticket("others", None));
    let made_up = format!("ticket_1{}", "A".repeat(43));
    let bearer = |text: &str| format!("Bearer {text}");
    let other_place = bearer(&ticket);
    let ended = format!("RemoteAuth {made_up}");
    let of_theirs = format!("RemoteAuth {theirs}");
    let embedded = format!("RemoteAuth {ticket}x");
    for (field, value, reason) in [
        ("authorization", &*other_place, PlaceholderWrongPlace),
        ("x-api-key", &ticket, PlaceholderWrongPlace),
        ("authorization", &ended, TicketEnded),
        ("authorization", &of_theirs, TicketEnded),
        ("x-session", &theirs, TicketEnded),
        ("authorization", &embedded, ForeignCredential),
        ("x-session", MINTED, ForeignCredential),
        ("x-session", "ticket_short", ForeignCredential),
    ] {
        assert_eq!(scene.here(&[(field, value)]).err(), Some(reason), "{field}: {value}");
    }
    let fields = [("authorization", &*format!("RemoteAuth {ticket}")), ("x-api-key", "mine")];
    assert_eq!(scene.here(&fields).err(), Some(DuplicateCredential));
    let good = head(&[("x-session", &ticket)]);
    let at = |host, now| scene.at(host, now, &good, "").err();
    assert_eq!(at("second.example", scene.begin), Some(PlaceholderWrongHost));
    assert_eq!(at("first.example", scene.begin + LIFE), Some(TicketEnded));
    assert_eq!(at("second.example", scene.begin + LIFE), Some(TicketEnded));
}

#[test]
fn a_rule_that_is_gone_takes_nothing_back() {
    let mut scene = Scene::new();
    let ticket = scene.ticket("agents", None);
    scene.rules = rules_with(|api| api.redeems = vec![mint(places(), "other.example")]);
    let refused = scene.here(&[("x-session", &ticket)]).err();
    assert_eq!(refused, Some(Reason::PlaceholderWrongHost));
    scene.rules = rules_with(|_| ());
    let refused = scene.here(&[("authorization", &format!("Bearer {ticket}"))]).err();
    assert_eq!(refused, Some(Reason::PlaceholderWrongHost));
}

#[test]
fn a_path_that_resembles_one_that_mints_is_refused() {
    let rules = rules_with(|api| {
        let own = mint(places(), "first.example");
        let at = |words: [&str; 4]| crate::policy::MintedAt::parse(&words).unwrap();
        let named = |answers| Arc::new(Mint { answers, ..Mint::clone(&own) });
        // A rule for any path hides no resemblance to another rule's path, in its own mint or
        // beside it.
        let any = at(["json", "/other", "in", "/v1/*"]);
        let token = at(["json", "/token", "in", "/v1/token"]);
        let session = at(["json", "/session", "in", "/v1/session"]);
        api.mints = vec![named(vec![any, token]), named(vec![session])];
    });
    let to = |path: &str| {
        examine(&rules, &head_to(Method::POST, path, &[("x-special-key", RAW)]))
            .map(|_| ())
            .map_err(|denial| denial.reason)
    };
    assert_eq!(to("/v1/token"), Ok(()));
    assert_eq!(rules.mints("/v1/token").count(), 1);
    for path in [
        "/v1/Token",
        "/v1//token",
        "/v1/token/",
        "/v1/%74oken",
        "/v1/token.json",
        "/v1/Session",
        "/v1/%73ession",
        "/v1/%2574oken",
        "/v1/%252574oken",
        "/v1/token%00",
        "/v1/token%2500",
    ] {
        assert_eq!(to(path), Err(Reason::PathAmbiguous), "{path}");
    }
    assert_eq!(to("/v1/tokens"), Ok(()));
}
