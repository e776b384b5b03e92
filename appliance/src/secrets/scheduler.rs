//! What is asked of the sources and when, and what their answers mean. Pure: the time is an
//! argument.
//!
//! Secrets of one location are read together: one question, one lease, and values that change
//! together. A value that is not lent is read each `refresh`; a lent one only when its lease has
//! to be replaced, for each read of it makes another user somewhere. A lease with no value in it
//! that can be used is given back, and read again each `refresh`. Every lease that is known is
//! either held by a plan or about to be given back: no path drops one in between.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    FetchError, SecretSnapshot, Uses,
    fit::GroupSecret,
    lanes::{Lane, SOURCE_KINDS, SourceKind, kind, lane},
    lease::{LeaseSchedule, NextStep},
    ledger::{Fresh, Ledger, LedgerChange},
    refresh_rate::RefreshRate,
    revocation::RevocationQueue,
    sleep::moved_back,
    source::{Fetched, Lease, PickedValue, Prolonged, Standing},
    timing::{back_off, jittered, spread},
};
use crate::policy::{GroupName, Location, SecretRef};

/// Everything wanted, held and planned.
pub(super) struct RefreshScheduler {
    refresh: Duration,
    ledger: Ledger,
    plans: HashMap<ReadTarget, TargetPlan>,
    pub(super) revocations: RevocationQueue,
    tickets: u64,
    /// How long the machine was suspended, in all.
    slept: Duration,
}

/// Who reads, and what.
pub(super) type ReadTarget = (GroupName, Location);

/// A question to a source.
#[derive(Clone)]
pub(super) struct SourceRequest {
    pub(super) target: ReadTarget,
    pub(super) references: Vec<SecretRef>,
    pub(super) about: About,
    asked: Instant,
    /// How long the machine had been suspended by then.
    slept: Duration,
    ticket: u64,
}

/// What a question is about.
#[derive(Clone)]
pub(super) enum About {
    Read,
    Renew(Lease),
    Check(Lease),
}

/// What a source answered.
pub(super) enum SourceReply {
    Read(Result<Fetched, FetchError>),
    Renewed(Result<Prolonged, FetchError>),
    Checked(Result<Standing, FetchError>),
}

/// What changed, for the log.
pub(super) type Changes = Vec<(SecretRef, LedgerChange)>;

/// What is planned for a target.
struct TargetPlan {
    /// Tells this plan from an earlier one for the same target, whose answers may still come.
    ticket: u64,
    references: Vec<SecretRef>,
    /// When it is read next, where nothing is lent.
    due: Instant,
    outages: u32,
    asking: bool,
    schedule: Option<LeaseSchedule>,
    /// When a lease was last asked for.
    lent: Option<Instant>,
    doubt: Doubt,
    rate: RefreshRate,
}

/// Whether the group may still have what it was lent, where the source does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    No,
    /// A read has to tell.
    Open,
    /// A read with the token of this generation succeeded, which may have it and may not ask.
    Settled(u64),
}

impl RefreshScheduler {
    pub(super) fn new(refresh: Duration, max_stale: Duration) -> Self {
        Self {
            refresh,
            ledger: Ledger::new(max_stale),
            plans: HashMap::new(),
            revocations: RevocationQueue::default(),
            tickets: 0,
            slept: Duration::ZERO,
        }
    }

    /// Takes `wanted` in place of what was wanted before. Leases that nothing needs any more are
    /// given back at once.
    pub(super) fn want(&mut self, wanted: &[GroupSecret], now: Instant) {
        self.ledger.want(wanted, now);
        let mut targets: HashMap<ReadTarget, Vec<SecretRef>> = HashMap::new();
        for (group, reference) in wanted {
            let target = (group.clone(), reference.location());
            targets.entry(target).or_default().push(reference.clone());
        }
        for ((group, _), plan) in self.plans.extract_if(|target, _| !targets.contains_key(target)) {
            if let Some(schedule) = plan.schedule {
                self.revocations.add(&group, schedule.lease, now, schedule.ends);
            }
        }
        for (target, references) in targets {
            self.tickets += 1;
            let fresh = || TargetPlan::new(self.tickets, now);
            self.plans.entry(target).or_insert_with(fresh).take_references(references, now);
        }
    }

    /// Takes where values are wanted. Tells of those held that could not be used there.
    pub(super) fn take_uses(&mut self, uses: Uses) -> Vec<(GroupSecret, LedgerChange)> {
        self.ledger.take_uses(uses)
    }

    /// Makes every read that no lease has made due, due.
    pub(super) fn ask_again(&mut self, now: Instant) {
        for ((group, _), plan) in &mut self.plans {
            plan.due = now;
            let reads = plan.schedule.is_none().then_some(&plan.references).into_iter().flatten();
            reads.for_each(|one| self.ledger.await_answer(&(group.clone(), one.clone())));
        }
    }

    /// An API did not take this value. True where it is asked for at once.
    pub(super) fn reject(&mut self, (group, reference): &GroupSecret, now: Instant) -> bool {
        let plan = self.plans.get_mut(&(group.clone(), reference.location()));
        plan.is_some_and(|plan| plan.reject(self.refresh, now))
    }

    /// The machine was suspended for `slept`: everything that ends or is due, is so by that much
    /// earlier, and what is asked now was asked by that much earlier.
    pub(super) fn slept(&mut self, slept: Duration, now: Instant) {
        self.slept += slept;
        self.ledger.slept(slept, now);
        for plan in self.plans.values_mut() {
            plan.due = moved_back(plan.due, slept, now);
            plan.schedule.iter_mut().for_each(|schedule| schedule.slept(slept, now));
        }
    }

    /// Forgets what is too old to be masked.
    pub(super) fn forget_old(&mut self, now: Instant) {
        self.ledger.forget_old(now);
    }

    pub(super) fn snapshot(&self) -> SecretSnapshot {
        self.ledger.snapshot()
    }

    /// What is due now, as far as the bound on questions at once allows, and when to look again.
    ///
    /// A due read that has to wait for its turn is woken by an answer, and not by the clock.
    pub(super) fn take_due(
        &mut self,
        now: Instant,
        generation: impl Fn(&GroupName) -> u64,
    ) -> (Vec<SourceRequest>, Instant) {
        let mut asking: HashMap<Lane, usize> = HashMap::new();
        let mut in_all: HashMap<SourceKind, usize> = HashMap::new();
        for (target, plan) in &self.plans {
            *asking.entry(lane(target)).or_default() += usize::from(plan.asking);
            *in_all.entry(kind(&target.1)).or_default() += usize::from(plan.asking);
        }
        let lanes = |of: SourceKind| asking.keys().filter(|(kind, _)| *kind == of).count();
        let shares = SOURCE_KINDS.map(|of| (of, of.at_once(lanes(of))));
        let shares = HashMap::from(shares);
        for ((group, _), plan) in &mut self.plans {
            if let Some(lease) = plan.notice(generation(group), now) {
                let until = now + lease.life;
                self.revocations.add(group, lease, now, until);
            }
        }
        let due_until = HashMap::from(SOURCE_KINDS.map(|of| (of, self.due_until(of, now))));
        let mut look_again = now + IDLE;
        let mut due: Vec<(Instant, &ReadTarget, &mut TargetPlan)> = Vec::new();
        for (target, plan) in self.plans.iter_mut().filter(|(_, plan)| !plan.asking) {
            let at = plan.next().0;
            if due_until.get(&kind(&target.1)).is_some_and(|until| at <= *until) {
                due.push((at, target, plan));
            } else {
                look_again = look_again.min(at);
            }
        }
        due.sort_by_key(|(at, ..)| *at);
        let mut requests = Vec::new();
        for (_, target, plan) in due {
            let (share, most) = shares.get(&kind(&target.1)).copied().unwrap_or((1, 1));
            let asking = asking.entry(lane(target)).or_default();
            let in_all = in_all.entry(kind(&target.1)).or_default();
            if *asking < share && *in_all < most {
                *asking += 1;
                *in_all += 1;
                requests.push(SourceRequest { slept: self.slept, ..plan.ask(target, now) });
            }
        }
        if self.plans.values().any(|plan| plan.schedule.is_some()) {
            look_again = look_again.min(now + LOOK_EVERY);
        }
        (requests, look_again)
    }

    /// Until when what is due at this kind of source is asked for now.
    fn due_until(&self, of: SourceKind, now: Instant) -> Instant {
        let mut own = self.plans.iter().filter(|((_, location), _)| kind(location) == of);
        let asked = own.any(|(_, plan)| !plan.asking && plan.next().0 <= now);
        if asked { now + of.asked_together(self.refresh) } else { now }
    }

    /// Enters what a source answered to `request`.
    pub(super) fn enter(
        &mut self,
        request: &SourceRequest,
        outcome: SourceReply,
        now: Instant,
    ) -> Changes {
        let slept = self.slept.saturating_sub(request.slept);
        let request =
            &SourceRequest { asked: moved_back(request.asked, slept, now), ..request.clone() };
        let group = &request.target.0;
        let plan = self.plans.get_mut(&request.target);
        let Some(plan) = plan.filter(|plan| plan.ticket == request.ticket) else {
            if let SourceReply::Read(Ok(Fetched { lease: Some(lease), .. })) = outcome {
                self.revocations.add(group, lease, now, now);
            }
            return vec![];
        };
        plan.asking = false;
        match outcome {
            SourceReply::Read(Ok(answer)) => self.take(request, answer, now),
            SourceReply::Renewed(Ok(prolonged)) => {
                plan.outages = 0;
                let Some(schedule) = &mut plan.schedule else {
                    // It had ended by our clock, and lives on by Vault's.
                    if let About::Renew(lease) = &request.about {
                        self.revocations.add(group, lease.clone(), now, now + prolonged.life);
                    }
                    plan.due = now;
                    return vec![];
                };
                schedule.prolong(prolonged, request.asked);
                let ends = schedule.ends;
                self.each(request, |ledger, key| ledger.prolong(key, ends))
            }
            SourceReply::Renewed(Err(FetchError::Gone(..)))
            | SourceReply::Checked(Ok(Standing::Ended)) => {
                plan.replace_now(now);
                plan.look_later(now, self.refresh);
                vec![]
            }
            SourceReply::Checked(Ok(Standing::Doubtful)) => {
                plan.settle(now);
                plan.look_later(now, self.refresh);
                vec![]
            }
            SourceReply::Checked(Ok(Standing::Good)) => {
                plan.outages = 0;
                plan.doubt = Doubt::No;
                plan.look_later(now, self.refresh);
                vec![]
            }
            SourceReply::Read(Err(error @ FetchError::Gone(..)))
            | SourceReply::Checked(Err(error @ FetchError::Gone(..))) => {
                plan.outages = 0;
                plan.doubt = Doubt::No;
                plan.due = now + jittered(self.refresh);
                if let Some(schedule) = plan.schedule.take() {
                    self.revocations.add(group, schedule.lease, now, schedule.ends);
                }
                self.each(request, |ledger, key| ledger.record(key, Err(error), now))
            }
            SourceReply::Checked(Err(error)) => {
                plan.outages = plan.outages.saturating_add(1);
                let wait = back_off(plan.outages).min(self.refresh).max(error.asks_for());
                plan.look_later(now, wait);
                vec![]
            }
            SourceReply::Read(Err(error)) | SourceReply::Renewed(Err(error)) => {
                plan.put_off(self.refresh, error, now);
                self.each(request, |ledger, key| ledger.record(key, Err(error), now))
            }
        }
    }

    /// Every lease that is held or was not given back yet; they are forgotten here.
    pub(super) fn take_leases(&mut self) -> Vec<(GroupName, Lease)> {
        let held = self.plans.iter_mut().filter_map(|((group, _), plan)| {
            plan.schedule.take().map(|schedule| (group.clone(), schedule.lease))
        });
        let mut leases: Vec<_> = held.collect();
        leases.extend(self.revocations.take_all());
        leases
    }

    fn take(&mut self, request: &SourceRequest, answer: Fetched, now: Instant) -> Changes {
        let (group, refresh) = (&request.target.0, self.refresh);
        let Some(plan) = self.plans.get_mut(&request.target) else { return vec![] };
        let recovered = std::mem::take(&mut plan.outages) > 0;
        plan.due = plan.rate.next_read(refresh, answer.changes_in, request.asked, now);
        plan.lent = answer.lease.is_some().then_some(request.asked);
        if let (Doubt::Open, Some(lease)) = (plan.doubt, &answer.lease) {
            plan.doubt = Doubt::Settled(lease.generation);
        }
        let mut schedule =
            answer.lease.map(|lease| LeaseSchedule::new(lease, request.asked, refresh));
        // Held, it would be prolonged to its longest life, and what repairs it seen only then.
        let usable =
            |value: &Result<PickedValue, _>| value.as_ref().is_ok_and(PickedValue::is_usable);
        if !answer.values.iter().any(usable)
            && let Some(useless) = schedule.take()
        {
            self.revocations.add(group, useless.lease, now, useless.ends);
        }
        let ends = schedule.as_ref().map(|schedule| schedule.ends);
        if let Some(old) = std::mem::replace(&mut plan.schedule, schedule) {
            // Requests that began with the old value may still be on their way.
            self.revocations.add(group, old.lease, now + GRACE, old.ends);
        }
        if plan.references.iter().any(|wanted| !request.references.contains(wanted)) {
            plan.replace_now(now);
        }
        if recovered {
            self.wake(kind(&request.target.1), now);
        }
        let narrowing = answer.narrowing;
        let mut values = answer.values.into_iter();
        let changes = self.each(request, |ledger, key| {
            let fresh = values.next().unwrap_or(Err(NO_ANSWER)).map(|picked| Fresh {
                picked,
                asked: request.asked,
                lease_ends: ends,
                narrowing: narrowing.clone(),
            });
            ledger.record(key, fresh, now)
        });
        if changes.iter().any(|(_, change)| matches!(change, LedgerChange::Rotated)) {
            self.plans.get_mut(&request.target).into_iter().for_each(|plan| plan.rate.changed());
        }
        changes
    }

    fn each(
        &mut self,
        request: &SourceRequest,
        mut edit: impl FnMut(&mut Ledger, &GroupSecret) -> LedgerChange,
    ) -> Changes {
        let group = &request.target.0;
        let mut changes = Vec::new();
        for reference in &request.references {
            let key = (group.clone(), reference.clone());
            changes.push((reference.clone(), edit(&mut self.ledger, &key)));
        }
        changes
    }

    fn wake(&mut self, of: SourceKind, now: Instant) {
        for (_, plan) in self.plans.iter_mut().filter(|((_, location), _)| kind(location) == of) {
            if plan.outages > 0 {
                // Not all at once: the source has only just come back.
                plan.due = plan.due.min(now + spread(WAKE_TIME));
            }
        }
    }
}

impl TargetPlan {
    fn new(ticket: u64, now: Instant) -> Self {
        Self {
            ticket,
            references: vec![],
            due: now,
            outages: 0,
            asking: false,
            schedule: None,
            lent: None,
            doubt: Doubt::No,
            rate: RefreshRate::default(),
        }
    }

    /// A field that no earlier read picked is read at once.
    fn take_references(&mut self, references: Vec<SecretRef>, now: Instant) {
        let more = references.iter().any(|one| !self.references.contains(one));
        self.references = references;
        if more {
            self.replace_now(now);
        }
    }

    /// A lease that was lent to an older token ends with that one. Gives back the lease that has
    /// ended by our clock: a renewal whose answer was lost lets it live on by Vault's. Another is
    /// read at once, or when the source is asked again that did not answer.
    fn notice(&mut self, generation: u64, now: Instant) -> Option<Lease> {
        let ended = self.schedule.take_if(|schedule| schedule.has_ended(now));
        if ended.is_some() && self.outages == 0 {
            self.due = now;
        }
        if let Some(schedule) = &mut self.schedule
            && schedule.lease.generation != generation
        {
            schedule.lease.generation = generation;
            schedule.replace_now(now);
        }
        ended.map(|schedule| schedule.lease)
    }

    fn next(&self) -> (Instant, NextStep) {
        let (at, step) = match &self.schedule {
            Some(schedule) => schedule.next(),
            None => (self.due, NextStep::Read),
        };
        let (NextStep::Read, Some(lent)) = (step, self.lent) else { return (at, step) };
        let at = at.max(lent + BETWEEN_LEASES);
        // A right that is taken meanwhile is not to wait for that.
        let look_at =
            self.schedule.as_ref().map(LeaseSchedule::look_at).filter(|look_at| *look_at < at);
        look_at.map_or((at, step), |look_at| (look_at, NextStep::Check))
    }

    fn ask(&mut self, target: &ReadTarget, now: Instant) -> SourceRequest {
        self.asking = true;
        let about = match (self.next().1, &self.schedule) {
            (NextStep::Renew, Some(schedule)) => About::Renew(schedule.lease.clone()),
            (NextStep::Check, Some(schedule)) => About::Check(schedule.lease.clone()),
            _ => About::Read,
        };
        SourceRequest {
            target: target.clone(),
            references: self.references.clone(),
            about,
            asked: now,
            slept: Duration::ZERO,
            ticket: self.ticket,
        }
    }

    fn replace_now(&mut self, now: Instant) {
        self.due = now;
        self.schedule.iter_mut().for_each(|schedule| schedule.replace_now(now));
    }

    /// Reads again at once, however young the lease is; but once for each token where that
    /// succeeds, or each look would make another lease.
    fn settle(&mut self, now: Instant) {
        let generation = self.schedule.as_ref().map(|schedule| schedule.lease.generation);
        if generation.is_some_and(|it| self.doubt == Doubt::Settled(it)) {
            return;
        }
        self.doubt = Doubt::Open;
        self.lent = None;
        self.replace_now(now);
    }

    /// A lease is looked at, anything else is read, unless the source is away: that it is asked for
    /// as soon as it can be.
    fn reject(&mut self, refresh: Duration, now: Instant) -> bool {
        let now_is_news = self.outages == 0 && self.rate.reject(refresh, now);
        if now_is_news {
            self.due = self.due.min(now);
            self.schedule.iter_mut().for_each(|schedule| schedule.reject(now));
        }
        now_is_news
    }

    /// Its lease was looked at.
    fn look_later(&mut self, now: Instant, wait: Duration) {
        self.schedule.iter_mut().for_each(|schedule| schedule.look_later(now, wait));
    }

    fn put_off(&mut self, refresh: Duration, error: FetchError, now: Instant) {
        self.outages = self.outages.saturating_add(1);
        let wait = jittered(back_off(self.outages).min(refresh)).max(error.asks_for());
        self.due = now + wait;
        self.schedule.iter_mut().for_each(|schedule| schedule.put_off(now, wait));
    }
}

const NO_ANSWER: FetchError =
    FetchError::Outage(crate::reason::SecretCause::VaultUnreachable, "the answer lacks a value");

/// Within how long everything that waits for a source is asked, once it answers again.
const WAKE_TIME: Duration = Duration::from_secs(2);

/// What a request that began with an old value has to reach its service and be let in.
const GRACE: Duration = Duration::from_secs(60);

/// Least time between two leases of one location: a lease with hardly any life must not become a
/// user each moment.
const BETWEEN_LEASES: Duration = Duration::from_secs(5);

/// How often the token's generation is looked at while anything is lent.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Sleep of a scheduler with nothing to ask; any change wakes it sooner.
const IDLE: Duration = Duration::from_secs(3600);

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
