//! Properties of the table of tickets.

use zeroize::Zeroizing;

use super::*;
use crate::policy::{Host, TicketShape};

const LIFE: Duration = Duration::from_secs(60);

fn mint() -> Arc<Mint> {
    mint_for(&[])
}

fn mint_for(hosts: &[&str]) -> Arc<Mint> {
    let name = RuleName("session".into());
    Arc::new(Mint {
        label: Mint::label_of(&name),
        name,
        groups: vec![],
        answers: vec![],
        hosts: hosts.iter().map(|host| Host::parse(host).unwrap()).collect(),
        places: vec![],
        life: LIFE,
        min_value_bytes: 16,
        shape: TicketShape::Opaque,
    })
}

fn group(name: &str) -> GroupName {
    GroupName(name.into())
}

fn agent(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn minted(number: usize) -> Minted {
    let bytes = Zeroizing::new(format!("minted-{number:016}").into_bytes());
    Minted { mint: mint(), value: SecretValue::load(bytes, 16).unwrap(), beside: None }
}

fn issue(
    tickets: &Tickets,
    of: u8,
    numbers: std::ops::Range<usize>,
    now: Instant,
) -> Result<Vec<Arc<str>>, NoTicket> {
    tickets.issue(&group("agents"), agent(of), numbers.map(minted).collect(), now)
}

fn known(tickets: &Tickets) -> usize {
    tickets.known(&group("agents")).since(0).len()
}

#[test]
fn a_ticket_is_for_its_group_until_its_end() {
    let (tickets, now) = (Tickets::default(), Instant::now());
    let issued = issue(&tickets, 1, 0..1, now).unwrap();
    let find = |name: &str, text: &str, now| tickets.find(&group(name), text.as_bytes(), now);
    let found = find("agents", &issued[0], now).unwrap();
    assert_eq!(found.value.expose(), b"minted-0000000000000000");
    assert_eq!(found.label.as_str(), "ticket:session");
    assert!(find("others", &issued[0], now).is_none());
    assert!(find("agents", &issued[0][1..], now).is_none());
    assert!(find("agents", &issued[0].to_uppercase(), now).is_none());
    assert!(find("agents", &issued[0], now + LIFE - Duration::from_millis(1)).is_some());
    assert!(find("agents", &issued[0], now + LIFE).is_none());
    assert!(Tickets::default().find(&group("agents"), issued[0].as_bytes(), now).is_none());
}

#[test]
fn equal_credentials_have_own_tickets_and_one_mask() {
    let (tickets, now) = (Tickets::default(), Instant::now());
    let one = issue(&tickets, 1, 7..8, now).unwrap();
    let before = tickets.generation();
    let other = issue(&tickets, 2, 7..8, now).unwrap();
    assert_ne!(one, other);
    assert_eq!((known(&tickets), tickets.good(&group("agents"), now)), (1, 2));
    assert!(tickets.generation() > before);
}

#[test]
fn what_lives_makes_no_room_and_what_has_ended_does() {
    let (tickets, now) = (Tickets::default(), Instant::now());
    for agent in 1..=2 {
        let from = usize::from(agent) * 1_000;
        issue(&tickets, agent, from..from + AGENT_VALUES, now).unwrap();
        assert_eq!(
            issue(&tickets, agent, 9_000..9_001, now),
            Err(NoTicket::Room),
            "an agent's bound"
        );
    }
    assert_eq!(issue(&tickets, 3, 3_000..3_001, now), Err(NoTicket::Room), "the group's bound");
    assert_eq!(known(&tickets), GROUP_VALUES);
    let later = now + LIFE;
    issue(&tickets, 3, 3_000..3_001, later).unwrap();
    assert_eq!(known(&tickets), GROUP_VALUES, "one that has ended made room");
    let since = tickets.known(&group("agents"));
    assert_eq!(since.since(since.seen() - 1).len(), 1);
    issue(&tickets, 3, 3_001..3_002, later + LIFE + MASKED_AFTER).unwrap();
    assert_eq!(known(&tickets), 1, "none is masked for ever");
}

#[test]
fn tickets_without_number_for_one_credential_are_refused() {
    let (tickets, now) = (Tickets::default(), Instant::now());
    let many = |count: usize| (0..count).map(|_| minted(1)).collect::<Vec<_>>();
    let take = |of, count| tickets.issue(&group("agents"), agent(of), many(count), now);
    take(1, AGENT_TICKETS).unwrap();
    assert_eq!(known(&tickets), 1);
    assert_eq!(take(1, 1), Err(NoTicket::Room));
    take(2, GROUP_TICKETS - AGENT_TICKETS).unwrap();
    assert_eq!(take(3, 1), Err(NoTicket::Room));
    assert_eq!(take(1, 0), Ok(vec![]));
}

#[test]
fn a_group_over_its_count_gets_no_tickets_but_masks() {
    let (tickets, now) = (Tickets::default(), Instant::now());
    let issued = issue(&tickets, 1, 0..1, now).unwrap();
    tickets.end(|group| group.as_str() == "agents");
    assert_eq!(tickets.good(&group("agents"), now), 1);
    tickets.end(|_| false);
    assert!(tickets.find(&group("agents"), issued[0].as_bytes(), now).is_none());
    assert_eq!(known(&tickets), 1);
}

#[test]
fn a_credential_that_lives_again_counts_as_a_new_one() {
    let (tickets, now) = (Tickets::default(), Instant::now());
    issue(&tickets, 1, 0..AGENT_VALUES, now).unwrap();
    issue(&tickets, 2, 1_000..1_000 + AGENT_VALUES, now).unwrap();
    let later = now + LIFE;
    assert_eq!(issue(&tickets, 3, 0..AGENT_VALUES + 1, later), Err(NoTicket::Room));
    issue(&tickets, 3, 0..AGENT_VALUES, later).unwrap();
    assert_eq!(issue(&tickets, 3, 9_000..9_001, later), Err(NoTicket::Room), "it has them now");
    assert_eq!(known(&tickets), GROUP_VALUES);
    issue(&tickets, 4, 9_000..9_000 + AGENT_VALUES, later).unwrap();
    assert_eq!(known(&tickets), GROUP_VALUES, "what was given again makes no room");
    assert_eq!(tickets.good(&group("agents"), later), 2 * AGENT_VALUES);
}

#[test]
fn a_credential_gets_no_ticket_for_further_hosts() {
    let (tickets, now) = (Tickets::default(), Instant::now());
    let of = |hosts: &[&str], now| {
        let minted = Minted { mint: mint_for(hosts), ..minted(1) };
        tickets.issue(&group("agents"), agent(1), vec![minted], now).map(|issued| issued.len())
    };
    assert_eq!(of(&["a.example", "b.example"], now), Ok(1));
    assert_eq!(of(&["b.example"], now), Ok(1));
    assert_eq!(of(&["b.example", "c.example"], now), Err(NoTicket::OtherHosts));
    assert_eq!(of(&["c.example"], now + LIFE), Err(NoTicket::OtherHosts));
    assert_eq!(of(&["c.example"], now + LIFE + MASKED_AFTER), Ok(1), "it is known no longer");
    let both = [&["a.example"], &["b.example"]]
        .map(|hosts: &[&str; 1]| Minted { mint: mint_for(hosts), ..minted(2) });
    let issued = tickets.issue(&group("agents"), agent(1), both.into(), now);
    assert_eq!(issued, Err(NoTicket::OtherHosts), "in one answer");
}
