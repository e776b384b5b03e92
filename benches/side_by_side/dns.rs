//! The agents' resolver beside dnsmasq: answers a second, the cost of each, and lost queries.
//!
//! Both hold every listed name in their cache and answer for every other name that it does not
//! exist. Cloakroom answers from one thread, with the original destination as the source of each
//! answer, and counts each query against its agent's rate; dnsmasq has one thread, too.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use lab::net::{AGENT, OPENAI};

use crate::measure::Meter;

/// A server that is asked, and the meter of its cost.
#[derive(Clone, Copy)]
pub struct Server {
    /// The name of its column.
    pub name: &'static str,
    /// Any address for Cloakroom, which captures them all.
    pub address: SocketAddr,
    /// The process.
    pub meter: Meter,
}

/// The way in which queries are offered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// So many queries a second, whether or not they are answered.
    Offered(f64),
    /// Always so many queries on the way on each socket: the most that the server answers.
    Kept(usize),
}

/// The result of a row.
#[derive(Debug, Clone, Copy)]
pub struct Answers {
    /// Answers each second.
    pub rate: f64,
    /// CPU time of the server for each answer, in microseconds.
    pub cost: f64,
    /// Share of the queries that nobody answered.
    pub lost: f64,
}

/// The work of one row: names that are listed, or that are not.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// The name of the row.
    pub work: &'static str,
    /// Whether the name is on the list.
    pub listed: bool,
    /// The way in which it is asked.
    pub arrivals: Arrivals,
}

/// Asks from [`SOCKETS`] sockets for as long as `warm` and `span` say, and measures the latter.
///
/// # Panics
/// When an answer is wrong, or the server answers nothing at all.
pub fn ask(server: Server, question: Question, warm: Duration, span: Duration) -> Answers {
    let mut asker = AGENT.enter(|| Asker::new(server.address, question));
    asker.run(warm);
    asker.settle();
    asker.sent = 0;
    asker.answered = 0;
    let (begun, cpu) = (Instant::now(), server.meter.cpu());
    asker.run(span);
    let (took, answered) = (begun.elapsed(), asker.answered);
    let cpu = server.meter.cpu() - cpu;
    assert!(answered > 0, "{} answers nothing", server.name);
    asker.settle();
    Answers {
        rate: answered as f64 / took.as_secs_f64(),
        cost: cpu.as_secs_f64() * 1e6 / answered as f64,
        lost: 1.0 - asker.answered as f64 / asker.sent as f64,
    }
}

/// Prints rows with each server's results.
pub fn print(rows: &[(Question, Vec<(Server, Answers)>)]) {
    println!("| DNS | offered | server | answers/s | CPU µs for each | a CPU's worth | lost |");
    println!("|---|---|---|---|---|---|---|");
    for (question, servers) in rows {
        let offered = match question.arrivals {
            Arrivals::Offered(rate) => format!("{rate}/s"),
            Arrivals::Kept(window) => format!("{} on the way", window * SOCKETS),
        };
        for (server, Answers { rate, cost, lost }) in servers {
            let (work, name, lost) = (question.work, server.name, lost * 100.0);
            let whole = 1e6 / cost;
            println!(
                "| {work} | {offered} | {name} | {rate:.0} | {cost:.1} | {whole:.0}/s | {lost:.2} % |"
            );
        }
    }
}

struct Asker {
    sockets: Vec<(UdpSocket, usize)>,
    query: Vec<u8>,
    listed: bool,
    arrivals: Arrivals,
    sent: usize,
    answered: usize,
}

impl Asker {
    fn new(server: SocketAddr, question: Question) -> Self {
        let socket = |_| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
            socket.connect(server).expect("a route");
            socket.set_nonblocking(true).expect("a socket");
            (socket, 0)
        };
        Self {
            sockets: (0..SOCKETS).map(socket).collect(),
            query: query(if question.listed { OPENAI.name } else { "unlisted.attacker.example" }),
            listed: question.listed,
            arrivals: question.arrivals,
            sent: 0,
            answered: 0,
        }
    }

    fn run(&mut self, span: Duration) {
        let begun = Instant::now();
        let (mut offered, mut progress) = (0_usize, (begun, self.answered));
        while begun.elapsed() < span {
            match self.arrivals {
                Arrivals::Kept(window) => (0..SOCKETS).for_each(|index| self.fill(index, window)),
                Arrivals::Offered(rate) => {
                    let due = (begun.elapsed().as_secs_f64() * rate) as usize;
                    for number in offered..due {
                        self.send(number % SOCKETS);
                    }
                    offered = due;
                    std::thread::sleep(PAUSE);
                }
            }
            self.receive();
            if self.answered > progress.1 {
                progress = (Instant::now(), self.answered);
            } else if progress.0.elapsed() > LOST {
                // Queries that were on the way count as lost.
                self.sockets.iter_mut().for_each(|(_, on_the_way)| *on_the_way = 0);
                progress.0 = Instant::now();
            }
        }
    }

    fn settle(&mut self) {
        let end = Instant::now() + LOST;
        while Instant::now() < end {
            self.receive();
            std::thread::sleep(PAUSE);
        }
    }

    fn fill(&mut self, index: usize, window: usize) {
        while self.sockets[index].1 < window {
            if !self.send(index) {
                return;
            }
        }
    }

    fn send(&mut self, index: usize) -> bool {
        let (socket, on_the_way) = &mut self.sockets[index];
        let sent = socket.send(&self.query).is_ok();
        self.sent += usize::from(sent);
        *on_the_way += usize::from(sent);
        sent
    }

    fn receive(&mut self) {
        let mut buffer = [0; 1500];
        for (socket, on_the_way) in &mut self.sockets {
            loop {
                match socket.recv(&mut buffer) {
                    Ok(length) => {
                        assert!(is_right(&buffer[..length], self.listed), "a wrong answer");
                        self.answered += 1;
                        *on_the_way = on_the_way.saturating_sub(1);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // Nobody listens yet.
                    Err(_) => break,
                }
            }
        }
    }
}

/// Returns whether an answer is right: an address, or that there is no such name (RFC 1035, section
/// 4.1.1).
fn is_right(answer: &[u8], listed: bool) -> bool {
    let code = answer.get(3).map(|flags| flags & 0x0f);
    let answers = answer.get(6..8).map(|count| u16::from_be_bytes([count[0], count[1]]));
    (code, answers) == if listed { (Some(0), Some(1)) } else { (Some(3), Some(0)) }
}

/// Returns a query for an IPv4 address with EDNS, in the form that clients send.
fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0xbe, 0xef, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("a label"));
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    query
}

/// Number of sockets that ask.
const SOCKETS: usize = 8;
/// Time between two bursts of an offered load.
const PAUSE: Duration = Duration::from_millis(1);
/// Time after which an unanswered query counts as lost.
const LOST: Duration = Duration::from_millis(200);

/// The rows.
pub const QUESTIONS: [Question; 4] = [
    Question { work: "a listed name, cached", listed: true, arrivals: Arrivals::Offered(10_000.0) },
    Question {
        work: "a name that is not listed",
        listed: false,
        arrivals: Arrivals::Offered(10_000.0),
    },
    Question { work: "the most, listed", listed: true, arrivals: Arrivals::Kept(16) },
    Question { work: "the most, not listed", listed: false, arrivals: Arrivals::Kept(16) },
];
