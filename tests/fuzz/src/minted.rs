//! An answer of an API that mints credentials, whatever it is: where another reader of JSON finds
//! the member that the rule names, in its first or its last occurrence, there is a ticket.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use cloakroom::{
    policy::{GroupName, Mint, MintedAt, RuleName, TicketShape},
    substitute::find_minted,
    tickets::{Tickets, looks_like_ticket},
};
use http::{HeaderMap, StatusCode};
use serde_json::Value;

/// Takes an answer: the first byte says whether it is a success, the others are its body.
pub(crate) fn any_answer(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    // `@` stands for a credential, which the fuzzer would not find by chance.
    let body = String::from_utf8_lossy(rest).replace('@', CREDENTIAL).into_bytes();
    let status = if kind % 2 == 0 { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
    let mut headers = HeaderMap::new();
    let mint = Arc::new(mint());
    let found = find_minted([&mint].into_iter(), "/token", (status, &headers, &body));
    let Ok((found, minted)) = found else { return };
    let (tickets, count) = (Tickets::default(), minted.len());
    let group = GroupName::parse("agents").expect("a name");
    let agent = IpAddr::from([192, 0, 2, 1]);
    let Ok(issued) = tickets.issue(&group, agent, minted, Instant::now()) else { return };
    let after = found.write(&issued, &mut headers, &body).expect("tickets for what was found");
    if count == 0 {
        assert!(after.is_empty() || *after == *body, "nothing was found, and it is another one");
    }
    let Ok(read) = serde_json::from_slice::<Value>(&after) else { return };
    is_ticket(read.pointer("/token"));
    for one in read["list"].as_array().into_iter().flatten() {
        is_ticket(one.pointer("/key"));
    }
    for (_, one) in read["list"].as_object().into_iter().flatten() {
        is_ticket(one.pointer("/key"));
    }
}

fn is_ticket(value: Option<&Value>) {
    let Some(value) = value else { return };
    let text = value.as_str().unwrap_or_default();
    let empty = value.is_null() || value.as_str() == Some("");
    assert!(empty || looks_like_ticket(text.as_bytes()), "{value}");
}

fn mint() -> Mint {
    let name = RuleName::parse("session").expect("a name");
    let at = |text: &str| {
        MintedAt::parse(&text.split(' ').collect::<Vec<_>>()).expect("a place in an answer")
    };
    Mint {
        label: Mint::label_of(&name),
        name,
        groups: vec![],
        answers: vec![at("json /token in /token"), at("json /list/*/key in /token")],
        hosts: vec![],
        places: vec![],
        life: Duration::from_secs(60),
        min_value_bytes: 16,
        shape: TicketShape::Opaque,
    }
}

const CREDENTIAL: &str = "minted-0123456789abcdef";
