//! The refresh scheduler: decides which requests go to the sources and when, and what their answers
//! mean. Pure: the time is an argument.
//!
//! Secrets of one location are read together: one request, one lease, and values that change
//! together. A value without a lease is read each `refresh`; a leased one only when its lease has
//! to be replaced, because each read of it makes another user somewhere. A lease without any usable
//! value is given back, and read again each `refresh`. Every known lease is either held by a plan
//! or about to be given back: no path drops one in between.

use std::{
    collections::HashMap,
    sync::Arc,
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
use crate::policy::{GroupName, Location, Narrowing, SecretRef};

/// Everything that is demanded, held and planned.
pub(super) struct RefreshScheduler {
    refresh: Duration,
    ledger: Ledger,
    plans: HashMap<ReadTarget, TargetPlan>,
    pub(super) revocations: RevocationQueue,
    tickets: u64,
    /// The time for which the machine was suspended, in all.
    slept: Duration,
}

/// The group that reads, and the location.
pub(super) type ReadTarget = (GroupName, Location);

/// A request to a source.
#[derive(Clone)]
pub(super) struct SourceRequest {
    pub(super) target: ReadTarget,
    pub(super) references: Vec<SecretRef>,
    pub(super) about: LaneTask,
    asked: Instant,
    /// The time for which the machine had been suspended by then.
    slept: Duration,
    ticket: u64,
}

/// The subject of a request.
#[derive(Clone)]
pub(super) enum LaneTask {
    Read,
    Renew(Lease),
    Check(Lease),
}

/// A source's answer.
pub(super) enum SourceReply {
    Read(Result<Fetched, FetchError>),
    Renewed(Result<Prolonged, FetchError>),
    Checked(Result<Standing, FetchError>),
}

/// The changes, for the log.
pub(super) type Changes = Vec<(SecretRef, LedgerChange)>;

/// The plan for a target.
struct TargetPlan {
    /// Tells this plan from an earlier one for the same target, whose answers may still arrive.
    ticket: u64,
    references: Vec<SecretRef>,
    /// The time of the next read, where there is no lease.
    due: Instant,
    outages: u32,
    asking: bool,
    schedule: Option<LeaseSchedule>,
    /// The time at which a lease was last requested.
    lent: Option<Instant>,
    doubt: Doubt,
    rate: RefreshRate,
}

/// Whether the group may still have its lease, where the source does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    No,
    /// A read has to decide it.
    Open,
    /// A read with the token of this generation succeeded: the group may have the lease, but may
    /// not ask about it.
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

    /// Takes `wanted` as the secrets that are demanded now. Leases that nothing needs any more are
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

    /// Takes the places where values are wanted. Returns the held values that could not be used
    /// there.
    pub(super) fn take_uses(&mut self, uses: Uses) -> Vec<(GroupSecret, LedgerChange)> {
        self.ledger.take_uses(uses)
    }

    /// Makes every read due that no lease has put off.
    pub(super) fn ask_again(&mut self, now: Instant) {
        for ((group, _), plan) in &mut self.plans {
            plan.due = now;
            let reads = plan.schedule.is_none().then_some(&plan.references).into_iter().flatten();
            reads.for_each(|one| self.ledger.await_answer(&(group.clone(), one.clone())));
        }
    }

    /// Notes that an API refused this value. Returns true where it is read again at once.
    pub(super) fn reject(&mut self, (group, reference): &GroupSecret, now: Instant) -> bool {
        let plan = self.plans.get_mut(&(group.clone(), reference.location()));
        plan.is_some_and(|plan| plan.reject(self.refresh, now))
    }

    /// Moves all times back: the machine was suspended for `slept`, so everything ends or is due
    /// that much earlier, and requests under way were sent that much earlier.
    pub(super) fn slept(&mut self, slept: Duration, now: Instant) {
        self.slept += slept;
        self.ledger.slept(slept, now);
        for plan in self.plans.values_mut() {
            plan.due = moved_back(plan.due, slept, now);
            plan.schedule.iter_mut().for_each(|schedule| schedule.slept(slept, now));
        }
    }

    /// Forgets versions that are too old to be masked.
    pub(super) fn forget_old(&mut self, now: Instant) {
        self.ledger.forget_old(now);
    }

    pub(super) fn snapshot(&self) -> SecretSnapshot {
        self.ledger.snapshot()
    }

    /// Returns the requests that are due now, as far as the bound on requests at once allows, and
    /// when to look again.
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

    /// Returns the time up to which due reads of this kind of source are sent now.
    fn due_until(&self, of: SourceKind, now: Instant) -> Instant {
        let mut own = self.plans.iter().filter(|((_, location), _)| kind(location) == of);
        let asked = own.any(|(_, plan)| !plan.asking && plan.next().0 <= now);
        if asked { now + of.asked_together(self.refresh) } else { now }
    }

    /// Notes a source's answer to `request`.
    pub(super) fn enter(
        &mut self,
        request: &SourceRequest,
        outcome: SourceReply,
        now: Instant,
    ) -> Changes {
        let request = &self.without_sleep(request, now);
        let refresh = self.refresh;
        let Some(plan) = self.plan_of(request) else {
            self.give_back_unplanned(request, outcome, now);
            return vec![];
        };
        plan.asking = false;
        match outcome {
            SourceReply::Read(Ok(answer)) => self.take_values(request, answer, now),
            SourceReply::Renewed(Ok(prolonged)) => self.take_renewal(request, prolonged, now),
            SourceReply::Renewed(Err(FetchError::Gone(..))) => {
                plan.take_standing(Standing::Ended, refresh, now);
                vec![]
            }
            SourceReply::Checked(Ok(standing)) => {
                plan.take_standing(standing, refresh, now);
                vec![]
            }
            SourceReply::Read(Err(error @ FetchError::Gone(..)))
            | SourceReply::Checked(Err(error @ FetchError::Gone(..))) => {
                self.take_withdrawal(request, error, now)
            }
            SourceReply::Checked(Err(error)) => {
                plan.put_off_check(refresh, error, now);
                vec![]
            }
            SourceReply::Read(Err(error)) | SourceReply::Renewed(Err(error)) => {
                plan.put_off(refresh, error, now);
                self.record_error(request, error, now)
            }
        }
    }

    /// Returns the request as if it had been sent that much earlier as the machine was suspended
    /// since.
    fn without_sleep(&self, request: &SourceRequest, now: Instant) -> SourceRequest {
        let slept = self.slept.saturating_sub(request.slept);
        SourceRequest { asked: moved_back(request.asked, slept, now), ..request.clone() }
    }

    /// Returns the plan that made the request; `None` where there is none any more.
    fn plan_of(&mut self, request: &SourceRequest) -> Option<&mut TargetPlan> {
        let plan = self.plans.get_mut(&request.target);
        plan.filter(|plan| plan.ticket == request.ticket)
    }

    /// Gives back the lease of an answer that no plan waits for.
    fn give_back_unplanned(&mut self, request: &SourceRequest, outcome: SourceReply, now: Instant) {
        if let SourceReply::Read(Ok(Fetched { lease: Some(lease), .. })) = outcome {
            self.revocations.add(&request.target.0, lease, now, now);
        }
    }

    fn take_renewal(
        &mut self,
        request: &SourceRequest,
        prolonged: Prolonged,
        now: Instant,
    ) -> Changes {
        let Some(plan) = self.plans.get_mut(&request.target) else { return vec![] };
        plan.outages = 0;
        let Some(schedule) = &mut plan.schedule else {
            // The lease had ended by our clock, and is still good by Vault's.
            if let LaneTask::Renew(lease) = &request.about {
                let until = now + prolonged.life;
                self.revocations.add(&request.target.0, lease.clone(), now, until);
            }
            plan.due = now;
            return vec![];
        };
        schedule.prolong(prolonged, request.asked);
        let ends = schedule.ends;
        self.each(request, |ledger, key| ledger.prolong(key, ends))
    }

    /// Notes that the group may not have the location any more, or that the location is gone: the
    /// lease is given back.
    fn take_withdrawal(
        &mut self,
        request: &SourceRequest,
        error: FetchError,
        now: Instant,
    ) -> Changes {
        let Some(plan) = self.plans.get_mut(&request.target) else { return vec![] };
        plan.outages = 0;
        plan.doubt = Doubt::No;
        plan.due = now + jittered(self.refresh);
        if let Some(schedule) = plan.schedule.take() {
            self.revocations.add(&request.target.0, schedule.lease, now, schedule.ends);
        }
        self.record_error(request, error, now)
    }

    fn record_error(
        &mut self,
        request: &SourceRequest,
        error: FetchError,
        now: Instant,
    ) -> Changes {
        self.each(request, |ledger, key| ledger.record(key, Err(error), now))
    }

    /// Returns every lease that is held or was not given back yet, and forgets it.
    pub(super) fn take_leases(&mut self) -> Vec<(GroupName, Lease)> {
        let held = self.plans.iter_mut().filter_map(|((group, _), plan)| {
            plan.schedule.take().map(|schedule| (group.clone(), schedule.lease))
        });
        let mut leases: Vec<_> = held.collect();
        leases.extend(self.revocations.take_all());
        leases
    }

    fn take_values(&mut self, request: &SourceRequest, answer: Fetched, now: Instant) -> Changes {
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
        // If the lease were held, it would be renewed to its longest life, and a repair would show
        // only then.
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
        self.record_values(request, (answer.values, answer.narrowing), ends, now)
    }

    fn record_values(
        &mut self,
        request: &SourceRequest,
        (values, narrowing): (Vec<Result<PickedValue, FetchError>>, Arc<Narrowing>),
        lease_ends: Option<Instant>,
        now: Instant,
    ) -> Changes {
        let mut values = values.into_iter();
        let changes = self.each(request, |ledger, key| {
            let fresh = values.next().unwrap_or(Err(NO_ANSWER)).map(|picked| Fresh {
                picked,
                asked: request.asked,
                lease_ends,
                narrowing: Arc::clone(&narrowing),
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
                // They do not all ask at once, because the source has only just come back.
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

    /// Reads a field at once that no earlier read picked.
    fn take_references(&mut self, references: Vec<SecretRef>, now: Instant) {
        let more = references.iter().any(|one| !self.references.contains(one));
        self.references = references;
        if more {
            self.replace_now(now);
        }
    }

    /// Acts on a new token: a lease of an older token ends with that one. Returns a lease that has
    /// ended by our clock, to be given back, because a renewal whose answer was lost keeps it alive
    /// in Vault. Another lease is read at once, or, if the source did not answer, when it is asked
    /// again.
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
        // A right that is withdrawn meanwhile must be noticed before that.
        let look_at =
            self.schedule.as_ref().map(LeaseSchedule::look_at).filter(|look_at| *look_at < at);
        look_at.map_or((at, step), |look_at| (look_at, NextStep::Check))
    }

    fn ask(&mut self, target: &ReadTarget, now: Instant) -> SourceRequest {
        self.asking = true;
        let about = match (self.next().1, &self.schedule) {
            (NextStep::Renew, Some(schedule)) => LaneTask::Renew(schedule.lease.clone()),
            (NextStep::Check, Some(schedule)) => LaneTask::Check(schedule.lease.clone()),
            _ => LaneTask::Read,
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

    /// Reads again at once, however young the lease is, but once for each token if that succeeds,
    /// because otherwise each check would make another lease.
    fn settle(&mut self, now: Instant) {
        let generation = self.schedule.as_ref().map(|schedule| schedule.lease.generation);
        if generation.is_some_and(|it| self.doubt == Doubt::Settled(it)) {
            return;
        }
        self.doubt = Doubt::Open;
        self.lent = None;
        self.replace_now(now);
    }

    /// Checks a lease, and reads any other value. Does neither while the source is away, because it
    /// will be asked as soon as possible anyway.
    fn reject(&mut self, refresh: Duration, now: Instant) -> bool {
        let now_is_news = self.outages == 0 && self.rate.reject(refresh, now);
        if now_is_news {
            self.due = self.due.min(now);
            self.schedule.iter_mut().for_each(|schedule| schedule.reject(now));
        }
        now_is_news
    }

    fn take_standing(&mut self, standing: Standing, refresh: Duration, now: Instant) {
        match standing {
            Standing::Good => {
                self.outages = 0;
                self.doubt = Doubt::No;
            }
            Standing::Doubtful => self.settle(now),
            Standing::Ended => self.replace_now(now),
        }
        self.look_later(now, refresh);
    }

    /// Notes that its lease was checked.
    fn look_later(&mut self, now: Instant, wait: Duration) {
        self.schedule.iter_mut().for_each(|schedule| schedule.look_later(now, wait));
    }

    fn put_off_check(&mut self, refresh: Duration, error: FetchError, now: Instant) {
        self.outages = self.outages.saturating_add(1);
        let wait = back_off(self.outages).min(refresh).max(error.asks_for());
        self.look_later(now, wait);
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

/// Time within which everything that waits for a source is asked, once it answers again.
const WAKE_TIME: Duration = Duration::from_secs(2);

/// Time that a request with an old value has to reach its service and be accepted.
const GRACE: Duration = Duration::from_secs(60);

/// Least time between two leases of one location: leases with hardly any life must not make a user
/// each moment.
const BETWEEN_LEASES: Duration = Duration::from_secs(5);

/// Interval at which the token's generation is checked while there are leases.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Sleep of a scheduler with nothing to ask; any change wakes it sooner.
const IDLE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
