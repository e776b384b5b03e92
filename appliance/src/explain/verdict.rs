//! The gateway's decision on a question, step by step.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use super::ask::{Question, Who, filled};
use crate::{
    decide::{Permit, Route, decide},
    identity::{AgentAddr, Dialled, Flow, FlowId},
    intercept,
    policy::{DialledRule, Group, Placeholder, Policy},
    reason::Reason,
    substitute::Denial,
};

/// The step at which something is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The agent that sends the packets.
    Agent,
    /// The look-up of the name.
    Name,
    /// The connection, by its first bytes.
    Connection,
    /// The request.
    Request,
    /// The part after policy: the upstream, a secret, a limit.
    Later,
}

impl Step {
    /// Returns its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Name => "name",
            Self::Connection => "connection",
            Self::Request => "request",
            Self::Later => "beyond",
        }
    }
}

/// The decision on a question.
#[derive(Debug)]
pub struct Verdict {
    /// The way in which its connection is carried, if it is.
    pub route: Option<Route>,
    /// The refusal, if there is one.
    pub refused: Option<Refused>,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The step.
    pub step: Step,
    /// The reason.
    pub reason: Reason,
    /// The placeholder that is in a wrong place.
    pub placeholder: Option<Placeholder>,
    /// The place of the credential that is not good.
    pub credential: Option<String>,
    /// The way in which the connection is carried, if it is.
    pub route: Option<Route>,
}

impl Refused {
    /// Returns whether it is the same refusal, by whatever rule.
    pub(super) fn is_again(&self, other: &Self) -> bool {
        let told = |it: &Self| (it.step, it.reason, it.placeholder.clone(), it.credential.clone());
        told(self) == told(other)
    }
}

/// Returns the group of the agent, as the gateway identifies it.
pub(super) fn group_of<'p>(policy: &'p Policy, who: &Who) -> Option<&'p Arc<Group>> {
    match who {
        Who::Group(name) => policy.groups.iter().find(|group| group.name == *name),
        Who::At(interface, address) => policy.identify(interface, *address),
    }
}

/// Decides as the gateway would with this policy.
pub fn judge(policy: &Policy, question: &Question) -> Verdict {
    let refused = |step, reason: Reason| Verdict {
        route: None,
        refused: Some(refusal(step, reason.into(), None)),
    };
    let Some(group) = group_of(policy, &question.who) else {
        return refused(Step::Agent, Reason::NoGroup);
    };
    let named = |host| policy.names(group, host);
    if question.looks_up && !question.hosts().iter().all(named) {
        return refused(Step::Name, Reason::DnsDenied);
    }
    let Some(opening) = &question.opening else {
        return refused(Step::Later, question.later.unwrap_or(Reason::InternalError));
    };
    let permit = match decide(policy, &flow(question, group), opening) {
        Ok(permit) => permit,
        Err(reason) => return refused(Step::Connection, reason),
    };
    let denied = request_denied(policy, group, &permit, question)
        .map(|denial| (Step::Request, denial))
        .or_else(|| Some((Step::Later, later(question, &permit)?.into())));
    let route = permit.route().clone();
    let refused = denied.map(|(step, denial)| refusal(step, denial, Some(&route)));
    Verdict { route: Some(route), refused }
}

fn refusal(step: Step, denial: Denial, route: Option<&Route>) -> Refused {
    let Denial { reason, placeholder, credential } = denial;
    Refused { step, reason, placeholder, credential, route: route.cloned() }
}

fn flow(question: &Question, group: &Arc<Group>) -> Flow {
    let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    Flow {
        id: FlowId(0),
        group: Arc::clone(group),
        agent: AgentAddr(nobody),
        dialled: Dialled(question.to),
        reached: Arc::default(),
    }
}

fn request_denied(
    policy: &Policy,
    group: &Group,
    permit: &Permit,
    question: &Question,
) -> Option<Denial> {
    let head = question.request.as_ref()?;
    let admits = |head| intercept::admits(policy, &group.name, permit, head).err();
    match question.hosts().first().filter(|_| question.fills) {
        Some(host) => admits(&filled(policy, &group.name, (host, question.port()), head.clone())),
        None => admits(head),
    }
}

/// Returns the recorded reason from after policy, unless the present permit makes it irrelevant.
fn later(question: &Question, permit: &Permit) -> Option<Reason> {
    let listed = || {
        let prefixes = &permit.upstream().private_prefixes;
        prefixes.iter().any(|prefix| prefix.contains(&question.to.ip()))
    };
    match question.later? {
        Reason::DialledElsewhere if permit.dialled() == DialledRule::Any => None,
        Reason::PrivateAddress if listed() => None,
        reason => Some(reason),
    }
}
