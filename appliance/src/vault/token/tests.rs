//! The life of the gateway's token and of those of its groups, against the fake.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    time::Instant,
};

use super::super::{
    fake::*,
    session::{MAX_RETIRED, RetiredToken},
    *,
};
use crate::locks::lock;

/// A Vault that numbers its tokens. `dead` says which ones it no longer takes.
fn numbering(
    life: u64,
    dead: impl Fn(&str) -> bool + Send + Sync + 'static,
    unknown: &'static str,
) -> impl Fn(&Received) -> FakeReply + Send + Sync {
    let made = AtomicUsize::new(0);
    move |request| {
        if request.token.as_deref().is_some_and(&dead) {
            return FakeReply::Json(403, format!(r#"{{"errors":["permission denied{unknown}"]}}"#));
        }
        match request.target.as_str() {
            LOGIN => grant(&format!("{TOKEN}-{}", made.fetch_add(1, SeqCst)), life),
            CHILD => child(&format!("{CHILD_TOKEN}-{}", made.fetch_add(1, SeqCst)), life),
            LOOKUP | REVOKE => FakeReply::Json(200, "{}".to_owned()),
            RENEW => refused(),
            _ => value(),
        }
    }
}

#[tokio::test]
async fn a_groups_dead_token_is_replaced_and_the_read_succeeds() {
    for (unknown, asked) in [("", &[READ, LOOKUP][..]), ("; invalid token", &[READ])] {
        let fake = Fake::start(numbering(3600, |token| token.ends_with("-1"), unknown)).await;
        assert_eq!(fetch(&fake.source()).await.as_deref(), Ok(VALUE));
        assert_eq!(fake.targets(), [&[LOGIN, CHILD], asked, &[CHILD, READ]].concat());
    }
}

#[tokio::test]
async fn the_gateways_dead_token_costs_one_login_and_reads_succeed() {
    let revoked = Arc::new(AtomicBool::new(false));
    let dead = Arc::clone(&revoked);
    let dies =
        move |token: &str| dead.load(SeqCst) && ["-0", "-1"].contains(&&token[token.len() - 2..]);
    let fake = Fake::start(numbering(3600, dies, "; invalid token")).await;
    let source = fake.source();
    fetch(&source).await.unwrap();
    let before = source.session().generation(&GroupName("agents".into()));
    revoked.store(true, SeqCst);
    assert_eq!(fetch(&source).await.as_deref(), Ok(VALUE));
    let again = [READ, CHILD, LOGIN, CHILD, READ];
    assert_eq!(fake.targets(), [&[LOGIN, CHILD, READ], &again[..]].concat());
    assert!(source.session().generation(&GroupName("agents".into())) > before);
}

/// Where a token is revoked, Vault ends the tokens below it one by one, and may end another that
/// was just made in their place.
#[tokio::test]
async fn tokens_that_die_in_a_row_are_an_outage() {
    let deaths = Arc::new(AtomicBool::new(true));
    let dying = Arc::clone(&deaths);
    let dies = move |token: &str| dying.load(SeqCst) && !token.ends_with("-0");
    let fake = Fake::start(numbering(3600, dies, "; invalid token")).await;
    let source = fake.source();
    let error = fetch(&source).await.unwrap_err();
    assert!(matches!(error, FetchError::Outage(..)), "{error:?}");
    deaths.store(false, SeqCst);
    assert_eq!(fetch(&source).await.as_deref(), Ok(VALUE));
}

#[tokio::test]
async fn a_refused_secret_costs_no_token() {
    let fake = Fake::start(healthy(refused)).await;
    let source = fake.source();
    for _ in 0..3 {
        assert_eq!(fetch(&source).await.unwrap_err().cause(), SecretCause::VaultDenied);
    }
    assert_eq!((fake.count(LOGIN), fake.count(CHILD)), (1, 1), "{:?}", fake.targets());
}

#[tokio::test]
async fn a_group_whose_role_is_refused_is_refused_alone() {
    for status in [400, 403, 404] {
        let fake = Fake::start(move |request| match request.target.as_str() {
            LOGIN => grant(TOKEN, 3600),
            CHILD => FakeReply::Json(status, "{}".to_owned()),
            LOOKUP => FakeReply::Json(200, "{}".to_owned()),
            target if target.starts_with("/v1/auth/token/create/") => child(CHILD_TOKEN, 3600),
            _ => value(),
        })
        .await;
        let groups = [group("agents"), group("others")];
        let source = VaultSource::new(&fake.settings(), &groups, &resolver()).unwrap();
        let error = fetch(&source).await.unwrap_err();
        assert!(matches!(error, FetchError::Gone(SecretCause::VaultDenied, _)), "{error:?}");
        source.fetch(&GroupName("others".into()), &location("team/openai"), &[]).await.unwrap();
        assert!(
            source
                .fetch(&GroupName("unheard".into()), &location("team/openai"), &[])
                .await
                .is_err()
        );
    }
}

#[tokio::test]
async fn a_token_wider_than_planned_is_not_used() {
    let cases = [
        r#""policies":["agents","root"],"orphan":false,"token_type":"service""#,
        r#""policies":["agents"],"identity_policies":["root"],"orphan":false,"token_type":"service""#,
        r#""policies":["agents","gateway"],"orphan":false,"token_type":"service""#,
        r#""policies":["agents"],"orphan":true,"token_type":"service""#,
        r#""policies":["agents"],"token_type":"service""#,
        r#""policies":["agents"],"orphan":false,"token_type":"batch""#,
        r#""policies":"agents","orphan":false,"token_type":"service""#,
    ];
    for rest in cases {
        let fake = Fake::start(move |request| match request.target.as_str() {
            LOGIN => grant(TOKEN, 3600),
            CHILD => granted(CHILD_TOKEN, 3600, rest),
            _ => value(),
        })
        .await;
        fetch(&fake.source()).await.unwrap_err();
        assert_eq!(fake.targets(), [LOGIN, CHILD], "{rest}");
    }
    let fake = Fake::start(|_| granted(TOKEN, 3600, r#""policies":["root"],"orphan":true"#)).await;
    fetch(&fake.source()).await.unwrap_err();
    assert_eq!(fake.targets(), [LOGIN], "nor the gateway's own");
}

#[tokio::test]
async fn a_token_widened_since_its_renewal_is_given_back() {
    let root = r#""policies":["root"],"orphan":true"#;
    let later = r#""policies":["agents"],"identity_policies":["gateway"],"orphan":false"#;
    let same = r#""policies":["agents"],"identity_policies":["default"]"#;
    for (token, rest, unfit) in
        [(TOKEN, root, true), (CHILD_TOKEN, later, true), (CHILD_TOKEN, same, false)]
    {
        let fake = Fake::start(move |request| match request.target.as_str() {
            LOGIN => grant(TOKEN, 3600),
            CHILD => child(CHILD_TOKEN, 3600),
            RENEW => granted(token, 3600, rest),
            REVOKE => FakeReply::Json(204, String::new()),
            _ => value(),
        })
        .await;
        let source = fake.source();
        fetch(&source).await.unwrap();
        let session = source.session();
        let group = session.holders().remove(0);
        let holder = if token == TOKEN { &session.gateway } else { &*group };
        session.renew(holder).await;
        assert_eq!(holder.slot.lock().await.live.is_none(), unfit, "{rest}");
        let _ = tokio::time::timeout(Duration::from_millis(500), source.tend()).await;
        let received = fake.received.lock().unwrap();
        let revoked = received.iter().filter(|one| one.target == REVOKE);
        let revoked: Vec<_> = revoked.filter_map(|one| one.token.as_deref()).collect();
        assert_eq!(revoked, [token].repeat(usize::from(unfit)), "{rest}");
    }
}

#[tokio::test]
async fn a_token_past_its_life_is_not_used() {
    let fake = Fake::start(numbering(1, |_| false, "")).await;
    let source = fake.source();
    fetch(&source).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    fetch(&source).await.unwrap();
    assert_eq!(fake.targets(), [LOGIN, CHILD, READ, LOGIN, CHILD, READ]);
}

#[tokio::test]
async fn tokens_are_renewed_at_two_thirds() {
    let fake = Fake::start(|request| match (request.target.as_str(), request.token.as_deref()) {
        (LOGIN, _) | (RENEW, Some(TOKEN)) => grant(TOKEN, 3),
        (CHILD | RENEW, _) => child(CHILD_TOKEN, 3),
        _ => value(),
    })
    .await;
    let source = fake.source();
    fetch(&source).await.unwrap();
    let generation = source.session().generation(&GroupName("agents".into()));
    let _ = tokio::time::timeout(Duration::from_millis(5_000), source.tend()).await;
    fetch(&source).await.unwrap();
    assert!(fake.count(RENEW) >= 4, "{:?}", fake.targets());
    assert_eq!((fake.count(LOGIN), fake.count(CHILD)), (1, 1), "{:?}", fake.targets());
    assert_eq!(source.session().generation(&GroupName("agents".into())), generation);
}

#[tokio::test]
async fn every_group_has_a_token_before_a_login_takes_over() {
    let fake = Fake::start(numbering(30, |_| false, "")).await;
    let source = fake.source();
    fetch(&source).await.unwrap();
    let session = source.session();
    let before = session.generation(&agents());
    session.log_in_anew().await;
    assert!(session.generation(&agents()) > before);
    fetch(&source).await.unwrap();
    assert_eq!(fake.targets(), [LOGIN, CHILD, READ, LOGIN, CHILD, READ]);
    let tokens: Vec<_> =
        fake.received.lock().unwrap().iter().filter_map(|one| one.token.clone()).collect();
    let made_with = |number: usize, token: &str| assert_eq!(tokens[number], token);
    made_with(2, &format!("{TOKEN}-2"));
    made_with(3, &format!("{CHILD_TOKEN}-3"));
    source.close().await;
    assert_eq!(fake.count(REVOKE), 3, "old and new: {:?}", fake.targets());
}

#[tokio::test]
async fn a_new_login_leases_again_before_the_old_token_goes() {
    for planned in [true, false] {
        let children = AtomicUsize::new(0);
        let fake = Fake::start(move |request| match request.target.as_str() {
            LOGIN => grant(TOKEN, 3600),
            CHILD if children.fetch_add(1, SeqCst) == 1 => FakeReply::Json(500, "{}".to_owned()),
            CHILD => child(CHILD_TOKEN, 3600),
            LOOKUP => refused(),
            _ => value(),
        })
        .await;
        let source = fake.source();
        fetch(&source).await.unwrap();
        let session = source.session();
        let before = session.generation(&agents());
        if planned {
            session.log_in_anew().await;
        } else {
            // Another task finds the gateway's token dead, and asks nothing for the group.
            let own = session.gateway().await.unwrap();
            session.replace_if_dead(&own).await.unwrap();
        }
        assert_eq!(fake.count(LOGIN), 2);
        assert_eq!(session.generation(&agents()), 0, "nothing leased under it is good for long");
        while fetch(&source).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(session.generation(&agents()) > before);
    }
}

#[tokio::test]
async fn a_new_login_that_shutdown_interrupts_leaves_no_token() {
    let (logins, children) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let fake = Fake::start(move |request| match request.target.as_str() {
        LOGIN => grant(&format!("{TOKEN}-{}", logins.fetch_add(1, SeqCst)), 3600),
        CHILD if children.fetch_add(1, SeqCst) > 0 => FakeReply::Hang,
        CHILD => child(CHILD_TOKEN, 3600),
        REVOKE => FakeReply::Json(204, String::new()),
        _ => value(),
    })
    .await;
    let source = fake.source();
    fetch(&source).await.unwrap();
    let session = source.session();
    let _ = tokio::time::timeout(Duration::from_millis(500), session.log_in_anew()).await;
    assert_eq!(fake.count(LOGIN), 2);
    source.close().await;
    let received = fake.received.lock().unwrap();
    let revoked = received.iter().filter(|one| one.target == REVOKE);
    let mut revoked: Vec<_> = revoked.filter_map(|one| one.token.clone()).collect();
    revoked.sort_unstable();
    assert_eq!(revoked, [format!("{TOKEN}-0"), format!("{TOKEN}-1")]);
}

#[tokio::test]
async fn a_departed_groups_token_alone_is_revoked() {
    let fake = Fake::start(|request| match request.target.as_str() {
        LOGIN => grant(TOKEN, 3600),
        CHILD => child(CHILD_TOKEN, 3600),
        target if target.starts_with("/v1/auth/token/create/") => child("hvs.other", 3600),
        REVOKE => FakeReply::Json(204, String::new()),
        _ => value(),
    })
    .await;
    let groups = [group("agents"), group("others")];
    let source = VaultSource::new(&fake.settings(), &groups, &resolver()).unwrap();
    fetch(&source).await.unwrap();
    let other = GroupName("others".into());
    source.fetch(&other, &location("team/openai"), &[]).await.unwrap();
    source.session().set_groups(&groups[..1], &[]);
    let _ = tokio::time::timeout(Duration::from_millis(500), source.tend()).await;
    assert!(source.fetch(&other, &location("team/openai"), &[]).await.is_err());
    fetch(&source).await.unwrap();
    let received = fake.received.lock().unwrap();
    let revoked: Vec<_> = received.iter().filter(|one| one.target == REVOKE).collect();
    assert_eq!(revoked.len(), 1);
    assert_eq!(revoked[0].token.as_deref(), Some("hvs.other"));
    assert_eq!(received.iter().filter(|one| one.target == CHILD).count(), 1);
}

#[tokio::test]
async fn a_wrapped_secret_id_alone_is_opened_and_once() {
    const LOOKUP_WRAP: &str = "/v1/sys/wrapping/lookup";
    const UNWRAP: &str = "/v1/sys/wrapping/unwrap";
    for (made_at, good) in
        [("auth/approle/role/gateway/secret-id", true), ("kv/data/agents/openai", false)]
    {
        let logins = AtomicUsize::new(0);
        let fake = Fake::start(move |request| match request.target.as_str() {
            LOOKUP_WRAP => {
                FakeReply::Json(200, format!(r#"{{"data":{{"creation_path":"{made_at}"}}}}"#))
            }
            UNWRAP => {
                FakeReply::Json(200, r#"{"data":{"secret_id":"inner-secret-id"}}"#.to_owned())
            }
            LOGIN => {
                logins.fetch_add(1, SeqCst);
                grant(TOKEN, 1)
            }
            CHILD => child(CHILD_TOKEN, 1),
            _ => value(),
        })
        .await;
        let settings = fake.settings_with(true);
        let source = VaultSource::new(&settings, &groups(), &resolver()).unwrap();
        assert_eq!(fetch(&source).await.is_ok(), good, "{made_at}");
        if !good {
            assert_eq!(fake.targets(), [LOOKUP_WRAP], "it is not even opened");
            continue;
        }
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        fetch(&source).await.unwrap();
        assert_eq!((fake.count(UNWRAP), fake.count(LOGIN)), (1, 2));
        let received = fake.received.lock().unwrap();
        assert_eq!(received[1].token.as_deref(), Some(SECRET_ID), "the file's token opens it");
        assert!(received[2].body.contains("inner-secret-id"), "{}", received[2].body);
    }
}

#[tokio::test]
async fn a_redirect_leads_to_peers_and_a_standby_is_skipped() {
    for standby in [307, 472, 473, 0] {
        let active = Fake::start(healthy(value)).await;
        let to = active.address.clone();
        let first = Fake::start(move |request| match standby {
            307 => FakeReply::Redirect(format!("{to}{}", request.target)),
            status => FakeReply::Json(status, "{}".to_owned()),
        })
        .await;
        if standby == 0 {
            first.task.abort();
            while !first.task.is_finished() {
                tokio::task::yield_now().await;
            }
        }
        let mut settings = first.settings();
        settings.peers = vec![active.address.as_str().into()];
        let source = VaultSource::new(&settings, &groups(), &resolver()).unwrap();
        assert_eq!(fetch(&source).await.as_deref(), Ok(VALUE), "{standby}");
        assert_eq!(active.targets(), [LOGIN, CHILD, READ]);
        assert!(first.targets().len() <= 1, "the node that answered is asked first from then on");
    }
}

#[tokio::test]
async fn circular_redirects_and_changed_questions_are_an_outage() {
    for path in [LOGIN, READ] {
        let redirect = Arc::new(std::sync::OnceLock::new());
        let to = Arc::clone(&redirect);
        let first =
            Fake::start(move |_| FakeReply::Redirect(String::clone(to.get().unwrap()))).await;
        let back = format!("{}{LOGIN}", first.address);
        let second = Fake::start(move |_| FakeReply::Redirect(back.clone())).await;
        redirect.set(format!("{}{path}", second.address)).unwrap();
        let mut settings = first.settings();
        settings.peers = vec![second.address.as_str().into()];
        let source = VaultSource::new(&settings, &groups(), &resolver()).unwrap();
        let error = fetch(&source).await.unwrap_err();
        assert_eq!(error.cause(), SecretCause::VaultUnreachable);
        let all = [first.targets(), second.targets()].concat();
        assert!(all.len() <= 6 && all.iter().all(|target| target == LOGIN), "{all:?}");
    }
}

#[tokio::test]
async fn a_departed_group_gets_no_token_from_a_waiting_question() {
    let fake = Fake::start(healthy(value)).await;
    let source = fake.source();
    fetch(&source).await.unwrap();
    let session = source.session();
    let holder = session.holders().remove(0);
    session.set_groups(&[], &[]);
    let _ = tokio::time::timeout(Duration::from_millis(500), source.tend()).await;
    let mut slot = holder.slot.lock().await;
    assert!(session.make_child(&holder, &mut slot).await.is_err());
    assert_eq!(fake.count(CHILD), 1);
}

#[tokio::test]
async fn no_earlier_token_of_a_group_that_left_stays() {
    let fake = Fake::start(numbering(30, |_| false, "")).await;
    let source = fake.source();
    fetch(&source).await.unwrap();
    let session = source.session();
    session.log_in_anew().await;
    session.set_groups(&[], &[]);
    let _ = tokio::time::timeout(Duration::from_millis(500), source.tend()).await;
    let received = fake.received.lock().unwrap();
    let revoked = received.iter().filter(|one| one.target == REVOKE);
    let mut revoked: Vec<_> = revoked.filter_map(|one| one.token.clone()).collect();
    revoked.sort_unstable();
    assert_eq!(revoked, [format!("{CHILD_TOKEN}-1"), format!("{CHILD_TOKEN}-3")]);
}

#[tokio::test]
async fn a_revocation_lost_to_an_outage_follows_it() {
    let outages = AtomicUsize::new(0);
    let fake = Fake::start(move |request| match request.target.as_str() {
        REVOKE if outages.fetch_add(1, SeqCst) < 1 => FakeReply::Json(503, "{}".to_owned()),
        LOGIN => grant(TOKEN, 3600),
        CHILD => child(CHILD_TOKEN, 3600),
        _ => value(),
    })
    .await;
    let source = fake.source();
    fetch(&source).await.unwrap();
    source.session().set_groups(&[], &[]);
    let _ = tokio::time::timeout(Duration::from_secs(3), source.tend()).await;
    assert_eq!(fake.count(REVOKE), 2, "{:?}", fake.targets());
}

/// Whether the token of a group that left still waits to be revoked after Vault answered `status`:
/// to every revocation, or only to that by the accessor.
async fn still_waits(status: u16, of_accessor: bool, ends: Option<Instant>) -> bool {
    let fake = Fake::start(move |request| match request.target.as_str() {
        REVOKE if of_accessor => refused(),
        REVOKE | REVOKE_ACCESSOR => FakeReply::Json(status, "{}".to_owned()),
        LOGIN => grant(TOKEN, 3600),
        CHILD => child(CHILD_TOKEN, 3600),
        _ => value(),
    })
    .await;
    let source = fake.source();
    fetch(&source).await.unwrap();
    let (session, now) = (source.session(), Instant::now());
    let client = session.group(&agents()).await.unwrap();
    // It was tried so often that a bound on tries would have been reached.
    session.push_retired(RetiredToken { client, revoke_at: now, ends, tries: 1_000 });
    let _ = tokio::time::timeout(Duration::from_millis(300), source.tend()).await;
    assert_eq!(fake.count(REVOKE), 1, "{:?}", fake.targets());
    let waits = lock(&session.retired).pop();
    let soon = Instant::now() + Duration::from_secs(30);
    waits.inspect(|one| assert!(one.revoke_at <= soon)).is_some()
}

#[tokio::test]
async fn a_revocation_is_retried_until_the_end_or_a_refusal() {
    let later = Instant::now() + Duration::from_secs(3600);
    for of_accessor in [false, true] {
        for status in [408, 412, 425, 429, 500, 502, 503] {
            assert!(still_waits(status, of_accessor, Some(later)).await, "{status}");
        }
        assert!(still_waits(503, of_accessor, None).await, "it never ends");
        assert!(!still_waits(503, of_accessor, Some(Instant::now())).await, "it has ended");
        assert!(!still_waits(400, of_accessor, Some(later)).await, "refused");
    }
}

#[tokio::test]
async fn a_new_token_joins_however_many_await_revocation() {
    let fake = Fake::start(healthy(value)).await;
    let source = fake.source();
    let (session, now) = (source.session(), Instant::now());
    let client = session.group(&agents()).await.unwrap();
    let at = |seconds: usize| now + Duration::from_secs(seconds as u64);
    for number in 0..MAX_RETIRED + 2 {
        let ends = (number > 0).then(|| at(number));
        let client = Arc::clone(&client);
        session.push_retired(RetiredToken { client, revoke_at: at(number), ends, tries: 0 });
    }
    let waiting: Vec<_> = lock(&session.retired).iter().map(|one| one.revoke_at).collect();
    assert_eq!(waiting.len(), MAX_RETIRED);
    assert!(waiting.contains(&at(0)) && waiting.contains(&at(MAX_RETIRED + 1)));
    assert!(!waiting.contains(&at(1)) && !waiting.contains(&at(2)), "these end first");
}

#[tokio::test]
async fn a_group_with_another_role_keeps_old_leases_a_while() {
    const OTHER: &str = "/v1/auth/token/create/cloakroom-other";
    let fake = Fake::start(|request| match request.target.as_str() {
        LOGIN => grant(TOKEN, 3600),
        CHILD => child(CHILD_TOKEN, 3600),
        OTHER => child("hvs.other", 3600),
        _ => value(),
    })
    .await;
    let source = fake.source();
    fetch(&source).await.unwrap();
    let session = source.session();
    let before = session.generation(&agents());
    let other = Group { vault_role: "cloakroom-other".into(), ..Group::clone(&group("agents")) };
    session.set_groups(&[Arc::new(other)], &[]);
    let tend = async || tokio::time::timeout(Duration::from_millis(500), source.tend()).await;
    tend().await.unwrap_err();
    assert_eq!(fake.count(REVOKE), 0, "{:?}", fake.targets());
    fetch(&source).await.unwrap();
    assert!(session.generation(&agents()) > before, "what was lent is leased again");
    assert_eq!(fake.received.lock().unwrap().last().unwrap().token.as_deref(), Some("hvs.other"));
    // The old token is revoked at once where the group leaves too.
    session.set_groups(&[], &[]);
    tend().await.unwrap_err();
    assert_eq!(fake.count(REVOKE), 2, "{:?}", fake.targets());
}
