//! No agent and no group takes another's part, and everything is given back.

use std::{net::IpAddr, time::Duration};

use super::{super::MAX_AGENTS, *};

fn limits(agent_connections: usize) -> Limits {
    Limits { agent_connections, connections: 10, ..Limits::default() }
}

fn key(last: u8, group: &str) -> AgentKey {
    AgentKey::new(&GroupName(group.into()), IpAddr::from([192, 0, 2, last]))
}

/// Returns a time after everything that the test does, when every rate limiter is full again.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

#[test]
fn one_agent_cannot_take_anothers_places() {
    let capacity = Capacity::new(10);
    let share = |last| capacity.share(&key(last, "red"), &limits(3), 1);
    let held: Vec<_> = (0..3).map(|_| share(1).unwrap()).collect();
    assert_eq!(share(1).err(), Some(Reason::ConnectionLimit));
    assert!(share(2).is_ok());
    drop(held);
    assert!(share(1).is_ok());
    assert_eq!(capacity.over_rate(Instant::now()), []);
    assert!(capacity.groups.lock().unwrap().is_empty());
}

#[test]
fn one_groups_addresses_take_no_other_groups_connections() {
    let capacity = Capacity::new(10);
    let share = |last, group| capacity.share(&key(last, group), &limits(3), 2);
    let _held: Vec<_> = (0..5).map(|last| share(last, "red").unwrap()).collect();
    assert_eq!(share(9, "red").err(), Some(Reason::ConnectionLimit));
    assert!(share(9, "blue").is_ok());
}

#[test]
fn all_groups_but_one_leave_the_last_its_places() {
    let capacity = Capacity::new(10);
    let share = |last, group| capacity.share(&key(last, group), &limits(3), 3);
    let taken = |group| (0..20).filter_map(|last| share(last, group).ok()).collect::<Vec<_>>();
    let held = [taken("red"), taken("green")];
    assert_eq!(held.each_ref().map(Vec::len), [3, 3]);
    assert_eq!(taken("blue").len(), 3);
}

#[test]
fn a_connection_keeps_the_limits_that_it_began_under() {
    let capacity = Capacity::new(10);
    let share = |limits: &Limits, groups| capacity.share(&key(1, "red"), limits, groups).unwrap();
    let wide = Limits { agent_requests: 5, agent_buffers: 100, agent_peeks: 1, ..limits(9) };
    let narrow = Limits { agent_requests: 3, agent_buffers: 50, ..wide.clone() };
    let hold = |share: &AgentShare, bytes: usize| {
        share.taken().try_hold(Way::Out, Bytes::from(vec![7; bytes])).is_ok()
    };
    let old = share(&wide, 1);
    let _held: Vec<_> = (0..4).map(|_| old.taken().request().unwrap()).collect();
    let new = share(&narrow, 1);
    assert_eq!(new.taken().request().err(), Some(Reason::RateLimit), "the old one's count, too");
    assert!(old.taken().request().is_ok());
    let _kept = new.taken().try_hold(Way::Out, Bytes::from_static(&[7; 10])).unwrap();
    assert!(!hold(&new, 50) && hold(&old, 100));
    let last = Limits { connections: 4, ..narrow };
    assert_eq!(capacity.share(&key(1, "red"), &last, 1).err(), Some(Reason::ConnectionLimit));
    drop(old);
    assert!(capacity.share(&key(1, "red"), &last, 1).is_ok());
    assert!(capacity.share(&key(2, "red"), &last, 4).is_err(), "more groups, smaller parts");
}

#[test]
fn one_agents_requests_are_bounded_over_all_its_connections() {
    let capacity = Capacity::new(10);
    let few = Limits { agent_requests: 5, ..limits(3) };
    let [one, two, other] =
        [1, 1, 2].map(|last| capacity.share(&key(last, "red"), &few, 2).unwrap());
    let held: Vec<_> = (0..5).map(|_| one.taken().request().unwrap()).collect();
    for _ in 0..10 {
        assert_eq!(two.taken().request().err(), Some(Reason::RateLimit));
    }
    assert!(other.taken().request().is_ok());
    drop(held);
    assert!(two.taken().request().is_ok());
}

#[test]
fn greedy_agents_leave_something_for_the_next_of_their_group() {
    let limits = Limits { connections: 64, requests: 64, ..Limits::default() };
    let capacity = Capacity::new(64);
    let all = [1, 2, 3, 4].map(|last| {
        let agent = || capacity.share(&key(last, "red"), &limits, 2);
        let connections: Vec<_> = (0..64).map_while(|_| agent().ok()).collect();
        let one = connections.first().unwrap();
        let requests: Vec<_> = (0..64).map_while(|_| one.taken().request().ok()).collect();
        let peeks: Vec<_> = (0..1_000).map_while(|_| one.peek(limits.peek_bytes)).collect();
        let large = |windows: &H2Windows| windows.large;
        let windows: Vec<_> = (0..64).map(|_| one.taken().windows()).take_while(large).collect();
        (connections, requests, peeks, windows)
    });
    let counts = all.each_ref().map(|(connections, requests, peeks, windows)| {
        [connections.len(), requests.len(), peeks.len(), windows.len()]
    });
    assert_eq!(counts[0], [16, 16, 64, 12], "half of the group's");
    assert_eq!(counts[1], [8, 8, 32, 6], "half of what is left");
    assert_eq!(counts[2], [4, 4, 16, 3]);
    assert!(counts[3].iter().all(|count| *count > 0), "{counts:?}");
    drop(all);
    let again = capacity.share(&key(4, "red"), &limits, 2).unwrap();
    let requests: Vec<_> = (0..64).map_while(|_| again.taken().request().ok()).collect();
    assert_eq!(requests.len(), 16, "all of it comes back");
}

#[test]
fn connections_over_the_rate_are_counted_once_and_others_connect() {
    let (capacity, now) = (Capacity::new(10), Instant::now());
    let slow = Limits { agent_new_connections: 5, ..Limits::default() };
    let greedy = key(1, "red");
    let allowed = (0..100).filter(|_| capacity.may_connect(&greedy, &slow, now)).count();
    assert_eq!(allowed, 10);
    assert!(capacity.may_connect(&key(2, "red"), &slow, now));
    let told = OverRate {
        group: greedy.group().clone(),
        agent: Some(greedy),
        rated: Rated::Connections,
        count: 90,
    };
    assert_eq!(capacity.over_rate(now), [told]);
    assert_eq!(capacity.over_rate(now), []);
    assert_eq!(capacity.over_rate(now + Duration::from_secs(9)), []);
    assert!(capacity.groups.lock().unwrap().is_empty());
}

#[test]
fn requests_over_the_rate_are_counted_once_across_connections() {
    let (capacity, now) = (Capacity::new(10), soon());
    let slow = Limits { agent_new_requests: 5, ..Limits::default() };
    let greedy = key(1, "red");
    let share = |key: &AgentKey| capacity.share(key, &slow, 2).unwrap().taken();
    let on_two = [share(&greedy), share(&greedy)];
    let asked = (0..100).filter(|number| on_two[number % 2].may_ask(now)).count();
    assert_eq!(asked, 10);
    assert!(share(&key(2, "red")).may_ask(now), "another agent");
    drop(on_two);
    let told = OverRate {
        group: greedy.group().clone(),
        agent: Some(greedy.clone()),
        rated: Rated::Requests,
        count: 90,
    };
    assert_eq!(capacity.over_rate(now), [told]);
    assert!(!share(&greedy).may_ask(now), "a new connection changes nothing");
    let told = capacity.over_rate(now);
    capacity.not_logged(&told[0]);
    assert_eq!(capacity.over_rate(now), told, "told the next time");
    capacity.over_rate(now + Duration::from_secs(20));
    assert!(capacity.groups.lock().unwrap().is_empty());
}

#[test]
fn a_groups_agents_together_have_a_rate_of_requests_too() {
    let (capacity, now) = (Capacity::new(1_000), soon());
    let slow = Limits { agent_new_requests: 5, connections: 4_000, ..Limits::default() };
    let asked = |group: &str, agents: u8| -> usize {
        let of_one = |number| {
            let taken = capacity.share(&key(number, group), &slow, 2).unwrap().taken();
            (0..100).filter(|_| taken.may_ask(now)).count()
        };
        (0..agents).map(of_one).sum()
    };
    assert_eq!(asked("red", 50), 10 * Quota::GROUP_RATE as usize);
    assert_eq!(asked("blue", 1), 10, "another group has its own");
}

#[test]
fn what_could_not_be_told_is_told_the_next_time() {
    let (capacity, now) = (Capacity::new(10), Instant::now());
    let slow = Limits { agent_new_connections: 1, ..Limits::default() };
    for _ in 0..5 {
        capacity.may_connect(&key(1, "red"), &slow, now);
    }
    let told = capacity.over_rate(now);
    capacity.not_logged(&told[0]);
    assert_eq!(capacity.over_rate(now), told);
}

#[test]
fn countless_agents_leave_memory_and_other_groups_alone() {
    let (capacity, now) = (Capacity::new(10), Instant::now());
    let red = GroupName("red".into());
    for number in 0..20_000u32 {
        let address = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
        capacity.may_connect(&AgentKey::new(&red, address), &Limits::default(), now);
    }
    assert_eq!(capacity.groups.lock().unwrap()[&red].agents.len(), MAX_AGENTS);
    assert!(capacity.may_connect(&key(1, "blue"), &Limits::default(), now));
    let nameless = 20_000 - MAX_AGENTS as u64;
    assert_eq!(
        capacity.over_rate(now),
        [OverRate { group: red.clone(), agent: None, rated: Rated::Connections, count: nameless }]
    );
    let later = now + Duration::from_secs(10);
    assert!(capacity.may_connect(&key(1, "red"), &Limits::default(), later), "the idle go");
}

#[test]
fn bytes_wait_for_room_that_the_last_handle_frees() {
    let capacity = Capacity::new(10);
    let tight = Limits { agent_buffers: 100, ..Limits::default() };
    let share = capacity.share(&key(1, "red"), &tight, 2).unwrap();
    let hold = |way, bytes: &'static [u8]| {
        let held = share.taken().hold(way, Bytes::from_static(bytes));
        futures_util::FutureExt::now_or_never(held)
    };
    let first = hold(Way::Back, &[7; 80]).unwrap();
    assert_eq!(first, [7; 80].as_slice());
    assert!(hold(Way::Back, &[7; 80]).is_none());
    assert!(hold(Way::Out, &[7; 80]).is_some(), "the other way has its own");
    let part = first.slice(..1);
    drop(first);
    assert!(hold(Way::Back, &[7; 80]).is_none());
    drop(part);
    assert!(hold(Way::Back, &[7; 80]).is_some());
}

#[test]
fn leaves_large_peeks_and_large_windows_are_an_agents_own() {
    let capacity = Capacity::new(10);
    let few = Limits { agent_leaves: 2, agent_peeks: 100, ..Limits::default() };
    let [one, other] = [1, 2].map(|last| capacity.share(&key(last, "red"), &few, 2).unwrap());
    assert_eq!((0..100).filter(|_| one.may_mint(&few)).count(), 4);
    assert!(other.may_mint(&few));
    let held = one.peek(90);
    assert!(held.is_some() && one.peek(20).is_none() && other.peek(90).is_some());
    drop(held);
    assert!(one.peek(20).is_some());
    let windows: Vec<_> = (0..20).map(|_| one.taken().windows()).collect();
    assert_eq!(windows.iter().filter(|it| it.large).count(), Limits::LARGE_WINDOWS / 4);
    assert!(other.taken().windows().large);
    drop(windows);
    assert!(one.taken().windows().large);
    let pipes: Vec<_> = std::iter::from_fn(|| one.taken().pipe()).take(1_000).collect();
    assert_eq!(pipes.len(), Limits::PIPES / 4);
    assert!(other.taken().pipe().is_some());
    drop(pipes);
    assert!(one.taken().pipe().is_some());
}

#[test]
fn one_groups_addresses_take_no_other_groups_requests() {
    let capacity = Capacity::new(1_000);
    let few = Limits { requests: 200, ..Limits::default() };
    let share = |last, group| capacity.share(&key(last, group), &few, 2).unwrap();
    let red: Vec<_> = (0..100).map(|last| share(last, "red")).collect();
    let requests = red.iter().cycle().take(1_000).map(|share| share.taken().request());
    let (held, refused): (Vec<_>, Vec<_>) = requests.partition(Result::is_ok);
    assert_eq!((held.len(), refused.len()), (100, 900));
    assert!(share(1, "blue").taken().request().is_ok());
    drop(held);
    assert!(red[0].taken().request().is_ok());
}

#[test]
fn a_groups_agents_hold_no_more_than_the_groups_part() {
    let capacity = Capacity::new(1_000);
    let few = Limits { buffers: 8 * Limits::LEAST_BODIES, peeks: 4 * 65_536, ..Limits::default() };
    let piece = Bytes::from(vec![7; 65_536]);
    let share = |last, group| capacity.share(&key(last, group), &few, 2).unwrap();
    let red: Vec<_> = (0..100).map(|last| share(last, "red")).collect();
    let mut held = Vec::new();
    for share in red.iter().cycle().take(1_000) {
        held.extend(share.taken().try_hold(Way::Out, piece.clone()));
    }
    assert_eq!(held.len() * piece.len(), 4 * Limits::LEAST_BODIES);
    let peeks: Vec<_> = red.iter().filter_map(|share| share.peek(65_536)).collect();
    assert_eq!(peeks.len(), 2);
    let windows: Vec<_> = red.iter().map(|share| share.taken().windows()).collect();
    assert_eq!(windows.iter().filter(|it| it.large).count(), Limits::LARGE_WINDOWS / 2);
    let blue = share(1, "blue");
    assert!(blue.taken().try_hold(Way::Out, piece.clone()).is_ok());
    assert!(blue.peek(65_536).is_some() && blue.taken().windows().large);
    let mut waits = Box::pin(red[99].taken().hold(Way::Out, piece.clone()));
    assert!(futures_util::FutureExt::now_or_never(&mut waits).is_none());
    drop((held, peeks, windows));
    assert_eq!(futures_util::FutureExt::now_or_never(&mut waits), Some(piece.clone()));
    assert!(red[0].peek(65_536).is_some() && red[0].taken().windows().large);
}
