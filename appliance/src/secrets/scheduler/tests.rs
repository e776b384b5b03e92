//! Leases from their first read to their end, against a simulated clock and a Vault in which each
//! read makes a lease, as a database engine does.

use std::{collections::HashMap, sync::Arc};

use zeroize::Zeroizing;

use super::{
    super::{
        SecretValue, SecretsHealth,
        lanes::{REQUESTS_AT_ONCE, REQUESTS_IN_ALL},
    },
    *,
};
use crate::{
    policy::{Pick, PickPart, VaultLocation},
    reason::SecretCause,
};

const REFRESH: Duration = Duration::from_secs(60);
const STALE: Duration = Duration::from_secs(300);
const DOWN: FetchError = FetchError::Outage(SecretCause::VaultUnreachable, "down");
const DENIED: FetchError = FetchError::Gone(SecretCause::VaultDenied, "denied");
const MISSING: FetchError = FetchError::Gone(SecretCause::ValueInvalid, "no such field");
const ENDED: FetchError = FetchError::Gone(SecretCause::LeaseEnded, "not renewed");

/// A Vault that gives leases, with a clock of its own.
struct Lender {
    now: Instant,
    /// The lives of leases: at first and after each renewal, and at most in all.
    life: u64,
    longest: u64,
    generation: u64,
    down: bool,
    denied: bool,
    /// Whether the only answer about a lease is `Doubtful`.
    doubtful: bool,
    /// Whether no field is where it is looked for.
    astray: bool,
    /// Whether the value is one that no header can hold.
    broken: bool,
    /// Leases that were made, with their beginning and their end.
    made: Vec<(Instant, Instant)>,
    revoked: HashMap<usize, Instant>,
    reads: usize,
    renewals: usize,
    checks: usize,
    scheduler: RefreshScheduler,
}

impl Lender {
    fn new(life: u64, longest: u64) -> Self {
        let mut lender = Self {
            now: Instant::now(),
            life,
            longest,
            generation: 1,
            down: false,
            denied: false,
            doubtful: false,
            astray: false,
            broken: false,
            made: vec![],
            revoked: HashMap::new(),
            reads: 0,
            renewals: 0,
            checks: 0,
            scheduler: RefreshScheduler::new(REFRESH, STALE),
        };
        lender.scheduler.want(&[user(), password()], lender.now);
        lender
    }

    /// Creates one with a long lease that has just been made.
    fn looking_each_second() -> Self {
        let mut lender = Self::new(3_600, 36_000);
        lender.scheduler = RefreshScheduler::new(Duration::from_secs(1), STALE);
        lender.scheduler.want(&[user(), password()], lender.now);
        lender.pass(0);
        assert_eq!(lender.in_use(), Some(0));
        lender
    }

    /// Lets time pass in steps of a quarter of a second, and answers every question at once.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.serve();
            self.now += Duration::from_millis(250);
        }
        self.serve();
    }

    fn serve(&mut self) {
        let generation = self.generation;
        for request in self.scheduler.take_due(self.now, |_| generation).0 {
            let outcome = self.answer(&request);
            self.scheduler.enter(&request, outcome, self.now);
        }
        for returned in self.scheduler.revocations.take_due(self.now).0 {
            let answer = if self.down { Err(DOWN) } else { Ok(()) };
            if answer.is_ok() {
                self.revoke(&returned.lease);
            }
            self.scheduler.revocations.enter(&returned, answer, self.now);
        }
    }

    /// Lets time pass until a renewal is requested, which has no answer yet.
    fn pass_until_renewal(&mut self) -> SourceRequest {
        loop {
            let generation = self.generation;
            for request in self.scheduler.take_due(self.now, |_| generation).0 {
                if matches!(request.about, LaneTask::Renew(_)) {
                    return request;
                }
                let outcome = self.answer(&request);
                self.scheduler.enter(&request, outcome, self.now);
            }
            self.now += Duration::from_millis(250);
        }
    }

    fn answer(&mut self, request: &SourceRequest) -> SourceReply {
        self.checks += usize::from(matches!(request.about, LaneTask::Check(_)));
        match &request.about {
            LaneTask::Read => SourceReply::Read(self.lend(request.references.len())),
            LaneTask::Renew(lease) => SourceReply::Renewed(self.renew(lease)),
            LaneTask::Check(_) if self.down => SourceReply::Checked(Err(DOWN)),
            LaneTask::Check(_) if self.doubtful => SourceReply::Checked(Ok(Standing::Doubtful)),
            LaneTask::Check(_) if self.denied => SourceReply::Checked(Err(DENIED)),
            LaneTask::Check(lease) => SourceReply::Checked(Ok(match self.stands(number(lease)) {
                true => Standing::Good,
                false => Standing::Ended,
            })),
        }
    }

    fn lend(&mut self, picks: usize) -> Result<Fetched, FetchError> {
        self.reads += 1;
        if self.down {
            return Err(DOWN);
        }
        if self.denied {
            return Err(DENIED);
        }
        let number = self.made.len();
        self.made.push((self.now, self.now + Duration::from_secs(self.life)));
        let value = |pick| {
            if self.astray {
                return Err(MISSING);
            }
            let space = if self.broken { " " } else { "-" };
            let bytes = format!("lease-{number:04}{space}value-{pick}").into_bytes();
            Ok(Zeroizing::new(bytes).into())
        };
        let lease = Lease {
            id: Arc::new(Zeroizing::new(number.to_string())),
            life: Duration::from_secs(self.life),
            renewable: self.longest > self.life,
            generation: self.generation,
        };
        let values = (0..picks).map(value).collect();
        Ok(Fetched { values, lease: Some(lease), changes_in: None, narrowing: Arc::default() })
    }

    fn renew(&mut self, lease: &Lease) -> Result<Prolonged, FetchError> {
        self.renewals += 1;
        if self.down {
            return Err(DOWN);
        }
        let number = number(lease);
        if !self.stands(number) {
            return Err(ENDED);
        }
        let (began, ends) = &mut self.made[number];
        let longest = *began + Duration::from_secs(self.longest);
        *ends = longest.min(self.now + lease.life);
        Ok(Prolonged { life: *ends - self.now, renewable: true })
    }

    fn revoke(&mut self, lease: &Lease) {
        self.revoked.entry(number(lease)).or_insert(self.now);
    }

    fn stands(&self, number: usize) -> bool {
        !self.revoked.contains_key(&number) && self.now < self.made[number].1
    }

    fn text(&self, key: &GroupSecret) -> Result<String, SecretCause> {
        let text = |value: Arc<SecretValue>| String::from_utf8(value.expose().to_vec()).unwrap();
        self.scheduler.snapshot().current(&key.0, &key.1, 8, self.now).map(text)
    }

    /// Returns the lease whose values are in use now; both must be of one.
    #[track_caller]
    fn in_use(&self) -> Option<usize> {
        let of = |key| {
            let text = self.text(key).ok()?;
            Some(text.split('-').nth(1).unwrap().parse().unwrap())
        };
        let (user, password) = (of(&user()), of(&password()));
        assert_eq!(user, password, "a user of one lease and a password of another");
        user
    }

    fn known(&self) -> usize {
        let key = user();
        self.scheduler.snapshot().known(&key.0, &key.1, 16).count()
    }
}

fn number(lease: &Lease) -> usize {
    lease.id.parse().unwrap()
}

fn reference(field: &str) -> GroupSecret {
    let location = VaultLocation::Read { path: "database/creds/reader".into() };
    let pick = Pick([PickPart::Field(field.into())].into());
    (GroupName("agents".into()), SecretRef::Vault { location, pick })
}

fn user() -> GroupSecret {
    reference("username")
}

fn password() -> GroupSecret {
    reference("password")
}

#[test]
fn two_fields_of_one_location_share_read_and_lease() {
    let mut lender = Lender::new(3_600, 36_000);
    lender.pass(600);
    assert_eq!((lender.reads, lender.made.len()), (1, 1), "a lent value is not read each refresh");
    assert_eq!(lender.in_use(), Some(0));
}

#[test]
fn a_lease_is_renewed_and_replaced_without_a_gap() {
    let mut lender = Lender::new(30, 100);
    for second in 0..1_000 {
        lender.pass(1);
        let used = lender.in_use().unwrap_or_else(|| panic!("no value at {second} s"));
        assert!(lender.stands(used), "at {second} s the value in use is of an ended lease");
    }
    assert!(lender.renewals > 20, "{}", lender.renewals);
    assert!((10..=20).contains(&lender.made.len()), "{}", lender.made.len());
}

#[test]
fn an_unrenewable_lease_is_replaced_in_time_and_given_back() {
    let mut lender = Lender::new(600, 600);
    for _ in 0..1_000 {
        lender.pass(1);
        assert!(lender.in_use().is_some_and(|used| lender.stands(used)));
    }
    assert_eq!(lender.renewals, 0);
    let (replaced, _) = lender.made[1];
    let grace = lender.revoked[&0] - replaced;
    assert!(grace >= GRACE, "requests that began with the old value had {grace:?}");
    assert!(lender.revoked[&0] < lender.made[0].1);
    assert_eq!(lender.known(), lender.made.len(), "old values stay masked");
}

#[test]
fn an_outage_keeps_the_value_to_the_leases_end() {
    let mut lender = Lender::new(600, 6_000);
    lender.pass(10);
    lender.down = true;
    let ends = lender.made[0].1;
    while lender.now < ends - Duration::from_secs(1) {
        lender.pass(1);
        assert_eq!(lender.in_use(), Some(0), "max_stale does not end a lease");
    }
    lender.pass(2);
    assert_eq!(lender.text(&user()), Err(DOWN.cause()));
    assert!(lender.renewals + lender.reads < 60, "questions slow down in an outage");
    lender.down = false;
    lender.pass(35);
    assert_eq!(lender.in_use(), Some(1));
}

#[test]
fn a_refused_renewal_leads_to_another_lease_at_once() {
    let mut lender = Lender::new(600, 6_000);
    lender.pass(10);
    lender.revoked.insert(0, lender.now);
    lender.pass(60);
    assert_eq!(lender.in_use(), Some(1), "a lease that Vault ended is seen within refresh");
    assert_eq!(lender.made.len(), 2);
}

#[test]
fn a_right_taken_away_ends_value_and_lease_within_refresh() {
    let mut lender = Lender::new(3_600, 36_000);
    lender.pass(10);
    lender.denied = true;
    lender.pass(60);
    assert_eq!(lender.text(&user()), Err(SecretCause::VaultDenied));
    assert!(lender.revoked.contains_key(&0));
    assert_eq!(lender.known(), 1, "it is still masked");
    lender.denied = false;
    lender.pass(60);
    assert_eq!(lender.in_use(), Some(1));
}

/// A group whose policy was removed completely cannot ask about its lease any more.
#[test]
fn one_read_settles_a_doubt_about_even_a_young_lease() {
    let mut lender = Lender::looking_each_second();
    lender.doubtful = true;
    lender.pass(2);
    assert_eq!((lender.in_use(), lender.made.len()), (Some(1), 2));
    lender.pass(60);
    assert_eq!(lender.made.len(), 2, "a group that never might ask is lent one more, and no third");
    lender.generation += 1;
    lender.pass(60);
    assert_eq!(lender.made.len(), 4, "another token, another lease, and the same doubt");
}

#[test]
fn a_settled_doubt_still_drops_what_vault_lends_no_longer() {
    let mut lender = Lender::looking_each_second();
    for round in 1..=3 {
        (lender.doubtful, lender.denied) = (true, true);
        lender.pass(2);
        assert_eq!(lender.text(&user()), Err(SecretCause::VaultDenied), "round {round}");
        assert!(lender.revoked.contains_key(&(round - 1)));
        (lender.doubtful, lender.denied) = (false, false);
        while lender.in_use().is_none() {
            lender.pass(1);
        }
        assert_eq!(lender.made.len(), round + 1);
    }
}

#[test]
fn a_lease_awaiting_replacement_is_checked_and_not_too_often() {
    let mut lender = Lender::looking_each_second();
    lender.generation += 1;
    lender.revoked.insert(0, lender.now);
    lender.pass(3);
    assert!((3..=4).contains(&lender.checks), "{} in 3 s", lender.checks);
    assert_eq!((lender.made.len(), lender.in_use()), (1, Some(0)), "two are 5 s apart");
    lender.denied = true;
    lender.pass(1);
    assert_eq!(lender.text(&user()), Err(SecretCause::VaultDenied));
    assert_eq!(lender.reads, 1, "it did not take a read to see that");
}

#[test]
fn a_new_token_means_a_new_lease_at_once() {
    let mut lender = Lender::new(3_600, 36_000);
    lender.pass(10);
    lender.generation += 1;
    lender.pass(1);
    assert_eq!(lender.in_use(), Some(1));
    lender.pass(100);
    assert_eq!(lender.made.len(), 2, "and no third one");
}

#[test]
fn a_secret_no_longer_demanded_is_given_back_at_once() {
    let mut lender = Lender::new(3_600, 36_000);
    lender.pass(10);
    let before = lender.scheduler.snapshot();
    let (group, reference) = user();
    lender.scheduler.want(&[], lender.now);
    assert_eq!(lender.in_use(), None);
    assert_eq!(lender.known(), 1, "what it had stays masked");
    assert!(
        before.current(&group, &reference, 8, lender.now).is_ok(),
        "a snapshot does not change"
    );
    lender.pass(100);
    assert!(lender.revoked.contains_key(&0));
    assert_eq!(lender.made.len(), 1);
    lender.scheduler.want(&[user(), password()], lender.now);
    lender.pass(1);
    assert_eq!(lender.in_use(), Some(1));
}

#[test]
fn a_late_answer_gives_its_lease_back() {
    let mut lender = Lender::new(3_600, 36_000);
    let (requests, _) = lender.scheduler.take_due(lender.now, |_| 1);
    lender.scheduler.want(&[], lender.now);
    let outcome = lender.answer(&requests[0]);
    assert!(lender.scheduler.enter(&requests[0], outcome, lender.now).is_empty());
    lender.pass(1);
    assert!(lender.revoked.contains_key(&0));
    assert_eq!(lender.scheduler.snapshot().health(lender.now), SecretsHealth::default());
}

#[test]
fn a_return_that_is_lost_is_tried_again() {
    let mut lender = Lender::new(3_600, 36_000);
    lender.pass(1);
    lender.down = true;
    lender.scheduler.want(&[], lender.now);
    lender.pass(20);
    assert!(lender.revoked.is_empty());
    lender.down = false;
    lender.pass(30);
    assert!(lender.revoked.contains_key(&0));
}

#[test]
fn shutdown_takes_every_lease_that_is_not_back_yet() {
    let mut lender = Lender::new(600, 600);
    while lender.made.len() < 2 {
        lender.pass(1);
    }
    let leases = lender.scheduler.take_leases();
    let mut numbers: Vec<usize> = leases.iter().map(|(_, lease)| number(lease)).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1]);
}

#[test]
fn one_more_lent_field_makes_one_lease_for_all() {
    let mut lender = Lender::new(3_600, 36_000);
    lender.scheduler.want(&[user()], lender.now);
    lender.pass(10);
    assert_eq!(lender.made.len(), 1);
    lender.scheduler.want(&[user(), password()], lender.now);
    lender.pass(1);
    assert_eq!(lender.in_use(), Some(1));
    lender.pass(100);
    assert!(lender.revoked.contains_key(&0));
    assert_eq!(lender.made.len(), 2);
}

#[test]
fn a_replacement_does_not_wait_for_a_renewal_under_way() {
    type Meanwhile = fn(&mut Lender);
    let another_field: Meanwhile =
        |lender| lender.scheduler.want(&[user(), password()], lender.now);
    let another_token: Meanwhile = |lender| lender.generation += 1;
    for meanwhile in [another_field, another_token] {
        let mut lender = Lender::new(30, 36_000);
        lender.scheduler.want(&[user()], lender.now);
        let request = lender.pass_until_renewal();
        meanwhile(&mut lender);
        lender.pass(1);
        let outcome = lender.answer(&request);
        lender.scheduler.enter(&request, outcome, lender.now);
        lender.pass(10);
        assert_eq!(lender.made.len(), 2);
        assert!(lender.text(&user()).unwrap().starts_with("lease-0001"));
    }
}

#[test]
fn a_renewal_after_its_leases_end_gives_it_back() {
    let mut lender = Lender::new(30, 36_000);
    let request = lender.pass_until_renewal();
    let outcome = lender.answer(&request);
    lender.pass(30);
    assert_eq!(lender.text(&user()), Err(SecretCause::LeaseEnded));
    lender.scheduler.enter(&request, outcome, lender.now);
    lender.pass(5);
    assert_eq!(lender.in_use(), Some(1));
    assert!(lender.revoked.contains_key(&0), "Vault let it live on");
}

#[test]
fn an_unanswered_renewal_gives_the_lease_back_at_its_end() {
    let mut lender = Lender::new(30, 36_000);
    let request = lender.pass_until_renewal();
    // Vault renews it, and the answer is lost.
    lender.answer(&request);
    lender.scheduler.enter(&request, SourceReply::Renewed(Err(DOWN)), lender.now);
    lender.down = true;
    lender.pass(15);
    assert_eq!(lender.text(&user()), Err(SecretCause::VaultUnreachable));
    assert!(lender.revoked.is_empty() && lender.stands(0), "Vault let it live on");
    lender.down = false;
    lender.pass(40);
    assert!(lender.revoked.contains_key(&0), "nobody uses it any more");
}

#[test]
fn a_lease_that_ended_during_sleep_is_replaced_unused() {
    let mut lender = Lender::new(3_600, 36_000);
    lender.pass(10);
    lender.scheduler.slept(Duration::from_secs(3_000), lender.now);
    assert_eq!(lender.in_use(), Some(0), "it has some time left");
    lender.scheduler.slept(Duration::from_secs(600), lender.now);
    assert_eq!(lender.text(&user()), Err(SecretCause::LeaseEnded));
    lender.pass(1);
    assert_eq!(lender.in_use(), Some(1));
}

#[test]
fn an_answer_asked_before_sleep_is_older_by_the_sleep() {
    let mut lender = Lender::new(30, 36_000);
    let request = lender.pass_until_renewal();
    let outcome = lender.answer(&request);
    lender.scheduler.slept(Duration::from_secs(31), lender.now);
    lender.scheduler.enter(&request, outcome, lender.now);
    assert_eq!(lender.text(&user()), Err(SecretCause::LeaseEnded));
    lender.pass(1);
    assert_eq!(lender.in_use(), Some(1));
}

#[test]
fn lease_checks_slow_down_in_an_outage() {
    let mut lender = Lender::new(36_000, 360_000);
    lender.pass(10);
    lender.down = true;
    lender.pass(600);
    assert!(lender.checks < 40, "{} looks in ten minutes", lender.checks);
    lender.down = false;
    lender.pass(60);
    lender.denied = true;
    lender.pass(60);
    assert_eq!(lender.text(&user()), Err(SecretCause::VaultDenied), "and then as before");
}

#[test]
fn a_lease_without_life_makes_no_user_each_moment() {
    let mut lender = Lender::new(0, 0);
    lender.pass(60);
    assert!(lender.made.len() <= 13, "{} leases in a minute", lender.made.len());
    assert_eq!(lender.in_use(), None);
    lender.pass(5);
    assert!(lender.revoked.len() + 1 >= lender.made.len(), "each is given back");
}

#[test]
fn a_lease_without_usable_value_is_returned_and_read_again() {
    for astray in [true, false] {
        let mut lender = Lender::new(3_600, 36_000);
        (lender.astray, lender.broken) = (astray, !astray);
        lender.pass(1);
        assert_eq!(lender.text(&user()), Err(SecretCause::ValueInvalid));
        assert!(lender.revoked.contains_key(&0), "it lends nothing that can be used");
        lender.pass(300);
        assert!((6..=8).contains(&lender.made.len()), "{} in five minutes", lender.made.len());
        assert_eq!(lender.renewals + lender.checks, 0);
        (lender.astray, lender.broken) = (false, false);
        lender.pass(60);
        let used = lender.in_use().unwrap();
        lender.pass(300);
        assert_eq!(lender.in_use(), Some(used), "a lease that is of use is kept");
        assert_eq!(lender.revoked.len(), lender.made.len() - 1);
    }
}

fn of(group: &str, number: usize) -> GroupSecret {
    let location = VaultLocation::Read { path: format!("kv1/{number}").into() };
    let pick = Pick([PickPart::Field("key".into())].into());
    (GroupName(group.into()), SecretRef::Vault { location, pick })
}

#[test]
fn all_names_of_a_file_are_asked_for_together() {
    let mut scheduler = RefreshScheduler::new(REFRESH, STALE);
    let mut now = Instant::now();
    let names = (0..1_000).map(|number| {
        let secret = SecretRef::File { name: format!("key-{number}").into() };
        (GroupName(format!("group-{}", number % 10).into()), secret)
    });
    scheduler.want(&names.collect::<Vec<_>>(), now);
    let begun = now;
    for _ in 0..5 {
        let (requests, _) = scheduler.take_due(now, |_| 0);
        assert_eq!(requests.len(), 1_000);
        for request in requests {
            let value = PickedValue::from(Zeroizing::new(b"a value of a file".to_vec()));
            let answer = Fetched {
                values: vec![Ok(value)],
                lease: None,
                changes_in: None,
                narrowing: Arc::default(),
            };
            scheduler.enter(&request, SourceReply::Read(Ok(answer)), now);
        }
        let (requests, next) = scheduler.take_due(now, |_| 0);
        assert!(requests.is_empty(), "none is due before the next round");
        now = next;
    }
    assert!(now - begun >= 5 * REFRESH * 4 / 5);
    assert!(now - begun <= 5 * REFRESH);
}

#[test]
fn one_group_does_not_wait_for_another_groups_questions() {
    let mut scheduler = RefreshScheduler::new(REFRESH, STALE);
    let now = Instant::now();
    let slow: Vec<GroupSecret> = (0..20).map(|number| of("slow", number)).collect();
    scheduler.want(&slow, now);
    assert_eq!(scheduler.take_due(now, |_| 0).0.len(), REQUESTS_AT_ONCE);
    scheduler.want(&[slow, vec![of("quick", 0)]].concat(), now);
    let requests = scheduler.take_due(now, |_| 0).0;
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].target.0.as_str(), "quick");
}

#[test]
fn nine_groups_whose_questions_hang_leave_the_tenth_its_turn() {
    let mut scheduler = RefreshScheduler::new(REFRESH, STALE);
    let now = Instant::now();
    let groups: Vec<String> = (0..9).map(|number| format!("slow-{number}")).collect();
    let slow = groups.iter().flat_map(|group| (0..20).map(|number| of(group, number)));
    let slow: Vec<GroupSecret> = slow.collect();
    scheduler.want(&slow, now);
    assert!(scheduler.take_due(now, |_| 0).0.len() < REQUESTS_IN_ALL);
    scheduler.want(&[slow, vec![of("quick", 0)]].concat(), now);
    let requests = scheduler.take_due(now, |_| 0).0;
    assert_eq!(requests.iter().map(|it| it.target.0.as_str()).collect::<Vec<_>>(), ["quick"]);
}

#[test]
fn many_groups_share_the_source_and_do_not_flood_it() {
    let mut scheduler = RefreshScheduler::new(REFRESH, STALE);
    let mut now = Instant::now();
    let groups: Vec<String> = (0..50).map(|number| format!("group-{number}")).collect();
    let wanted = groups.iter().flat_map(|group| (0..10).map(|number| of(group, number)));
    scheduler.want(&wanted.collect::<Vec<_>>(), now);
    let mut asked = HashMap::new();
    for round in 0..10 {
        let requests = scheduler.take_due(now, |_| 0).0;
        assert!(requests.len() <= REQUESTS_IN_ALL, "{} in round {round}", requests.len());
        assert!(scheduler.take_due(now, |_| 0).0.is_empty(), "none is answered yet");
        now += Duration::from_millis(10);
        for request in requests {
            *asked.entry(request.target.clone()).or_insert(0) += 1;
            scheduler.enter(&request, SourceReply::Read(Err(DENIED)), now);
        }
    }
    assert_eq!(asked.len(), 500);
    assert!(asked.values().all(|times| *times == 1));
}

#[test]
fn waiting_reads_resume_soon_after_an_outage_and_not_together() {
    let mut scheduler = RefreshScheduler::new(REFRESH, STALE);
    let mut now = Instant::now();
    let key = |number: usize| of(&format!("group-{number}"), 0);
    scheduler.want(&(0..50).map(key).collect::<Vec<_>>(), now);
    for _ in 0..10 {
        for request in scheduler.take_due(now, |_| 0).0 {
            scheduler.enter(&request, SourceReply::Read(Err(DOWN)), now);
        }
        now += REFRESH;
    }
    let mut requests = scheduler.take_due(now, |_| 0).0;
    let first = requests.remove(0);
    for request in requests {
        scheduler.enter(&request, SourceReply::Read(Err(DOWN)), now);
    }
    let values = vec![Ok(Zeroizing::new(b"value-0123456789".to_vec()).into())];
    let answer = Fetched { values, lease: None, changes_in: None, narrowing: Arc::default() };
    scheduler.enter(&first, SourceReply::Read(Ok(answer)), now);
    let at_once = scheduler.take_due(now + Duration::from_millis(100), |_| 0).0.len();
    let after = scheduler.take_due(now + WAKE_TIME, |_| 0).0.len();
    assert!(at_once < 25 && at_once + after == 49, "{at_once} at once, {after} after");
}

#[test]
fn a_value_not_lent_is_as_old_as_the_question() {
    let (mut scheduler, now, second) =
        (RefreshScheduler::new(REFRESH, STALE), Instant::now(), Duration::from_secs(1));
    scheduler.want(&[user()], now);
    let request = scheduler.take_due(now, |_| 0).0.remove(0);
    let value = Zeroizing::new(b"sk-live-0123456789abcdef".to_vec());
    let answer = Fetched {
        values: vec![Ok(value.into())],
        lease: None,
        changes_in: None,
        narrowing: Arc::default(),
    };
    scheduler.enter(&request, SourceReply::Read(Ok(answer)), now + 10 * second);
    let (group, reference) = user();
    let usable = |at| scheduler.snapshot().current(&group, &reference, 8, at).is_ok();
    assert!(usable(now + STALE - second));
    assert!(!usable(now + STALE));
}
