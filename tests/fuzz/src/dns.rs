//! A query of an agent: the reply is an answer to it, of bounded size, and tells the addresses that
//! policy and the resolver give and no others.
//!
//! The product reads and writes messages with hickory-proto. So here both are read by hand (RFC
//! 1035, section 4), and the answer is also read by hickory-proto, as a client would.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
    time::{Duration, Instant},
};

use cloakroom::{
    dial::{Resolved, Unresolved},
    dns::{Asker, DnsQuestion, DnsReply, QueryVerdict, answer},
    policy::Policy,
};
use hickory_proto::op::Message;
use policy_builder::{Config, api, binding, splice};

use crate::{
    input::Input,
    world::{group, policy},
};

/// Takes a byte of settings, four bytes of the resolver's answer, and the query.
pub(crate) fn any_query(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let settings = input.byte();
    let resolver = Said::new(&mut input);
    let query = input.rest();
    let case = Case {
        ipv6: settings & 1 == 0,
        datagram: settings & 2 == 0,
        group: if settings & 4 == 0 { "red" } else { "blue" },
        query,
        asked: Asked::read(query),
    };
    let asker = Asker {
        policy: &POLICY,
        group: group(&POLICY, case.group),
        ipv6: case.ipv6,
        datagram: case.datagram,
    };
    match answer(asker, query) {
        QueryVerdict::Silence => assert!(query.len() < HEADER || query[2] & RESPONSE != 0),
        QueryVerdict::Answered(reply) => {
            assert!(reply.given.is_empty(), "an address of a name that nobody resolved");
            case.check(&reply, &[]);
        }
        QueryVerdict::Resolve(question) => case.resolve(&question, &resolver),
    }
}

/// One query, and the agent that asks it.
struct Case<'a> {
    ipv6: bool,
    datagram: bool,
    group: &'a str,
    query: &'a [u8],
    asked: Option<Asked>,
}

impl Case<'_> {
    fn resolve(&self, question: &DnsQuestion, resolver: &Said) {
        let asked = self.asked.as_ref().expect("what is resolved can be read");
        let name = asked.host().expect("a host name");
        assert_eq!(question.host().as_str(), name);
        assert!(lists(self.group, &name), "{name} is asked for {}", self.group);
        assert_eq!(asked.class, IN);
        assert!(asked.kind == A || asked.kind == AAAA && self.ipv6, "{}", asked.kind);

        let (now, outcome) = resolver.outcome();
        let reply = question.reply(&outcome, now, |address| resolver.usable(address));
        let of_kind = |address: &IpAddr| address.is_ipv4() == (asked.kind == A);
        let told: Vec<_> = resolver.addresses().into_iter().filter(of_kind).collect();
        let told: Vec<_> = told.into_iter().filter(|address| resolver.usable(*address)).collect();
        let told = if outcome.is_ok() { told } else { Vec::new() };
        assert_eq!(reply.given, told);
        self.check(&reply, &told);
    }

    /// Checks that the reply answers this query, and holds these addresses or is cut.
    fn check(&self, reply: &DnsReply, addresses: &[IpAddr]) {
        let bytes = &reply.bytes;
        Message::from_vec(bytes).expect("a client can read the answer");
        assert_eq!(bytes[..2], self.query[..2], "another number");
        assert_eq!(bytes[2] & 0xf9, self.query[2] & 0x79 | RESPONSE, "another opcode or wish");
        let cut = bytes[2] & CUT != 0;
        assert!(!cut || self.datagram, "cut on a stream");
        let most = self.asked.as_ref().and_then(|asked| asked.payload).unwrap_or(PLAIN);
        let most = if self.datagram { most.clamp(PLAIN, DATAGRAM) } else { u16::MAX };
        assert!(bytes.len() <= usize::from(most), "{} bytes of {most}", bytes.len());
        if bytes.len() == HEADER {
            assert!(
                [FORM_ERR, NOT_IMP].contains(&(bytes[3] & 0xf)),
                "an answer without a question"
            );
            assert_eq!(bytes[4..], [0; 8]);
            return;
        }
        let asked = self.asked.as_ref().expect("what is answered can be read");
        let answered = Asked::read_whole(bytes).expect("a message of our own");
        let (answered, records) = answered;
        assert_eq!(
            (&answered.name, answered.kind, answered.class),
            (&asked.name, asked.kind, asked.class)
        );
        assert_eq!(answered.payload.is_some(), asked.payload.is_some(), "EDNS for whom has it");
        let told: Vec<_> = records.iter().map(|record| record.address).collect();
        assert_eq!(told, if cut { &[] } else { addresses });
        for record in records {
            assert_eq!((&record.name, record.kind), (&asked.name, asked.kind));
            assert!((1..=300).contains(&record.ttl), "for {} seconds", record.ttl);
        }
    }
}

/// The resolver's answer, and the addresses of it that may be dialled.
struct Said {
    kind: u8,
    count: u8,
    mask: u8,
    seconds: u8,
}

impl Said {
    fn new(input: &mut Input<'_>) -> Self {
        let (kind, count) = (input.byte() % 6, input.byte() % 120);
        Self { kind, count, mask: input.byte(), seconds: input.byte() }
    }

    fn outcome(&self) -> (Instant, Result<Resolved, Unresolved>) {
        let now = Instant::now();
        let until = now + Duration::from_secs(u64::from(self.seconds) * 2);
        (
            now,
            match self.kind {
                0 => Err(Unresolved::NoName),
                1 => Err(Unresolved::NoAddress),
                2 => Err(Unresolved::Failed),
                _ => Ok(Resolved { addresses: self.addresses().into(), until }),
            },
        )
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let address = |number: u8| match number % 2 {
            0 => IpAddr::from(Ipv4Addr::new(198, 51, 100, number)),
            _ => IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into())),
        };
        (0..self.count).map(address).collect()
    }

    fn usable(&self, address: IpAddr) -> bool {
        let last = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        self.mask >> (last / 2 % 8) & 1 == 0
    }
}

/// Returns whether the policy lists a name. The list is written here a second time.
fn lists(group: &str, name: &str) -> bool {
    let below = |zone: &str| name.strip_suffix(zone).is_some_and(|rest| rest.ends_with('.'));
    group == "red"
        && (name == "pypi.example" || name == "api.openai.example" || below("cdn.example"))
}

/// The question of a message.
struct Asked {
    name: Vec<Vec<u8>>,
    kind: u16,
    class: u16,
    /// The size of datagrams that an EDNS record announces.
    payload: Option<u16>,
}

/// An address in an answer.
struct Told {
    name: Vec<Vec<u8>>,
    kind: u16,
    ttl: u32,
    address: IpAddr,
}

impl Asked {
    fn read(message: &[u8]) -> Option<Self> {
        Self::read_whole(message).map(|(asked, _)| asked)
    }

    /// Reads the question and the addresses of a message that holds nothing else but an EDNS
    /// record.
    fn read_whole(message: &[u8]) -> Option<(Self, Vec<Told>)> {
        let mut reader = Reader { message, at: HEADER };
        let counts =
            message.get(4..HEADER)?.chunks(2).map(|two| u16::from_be_bytes([two[0], two[1]]));
        let [1, answers, 0, additional] = counts.collect::<Vec<_>>()[..] else { return None };
        let mut asked =
            Self { name: reader.name()?, kind: reader.u16()?, class: reader.u16()?, payload: None };
        let told = (0..answers).map(|_| reader.told()).collect::<Option<Vec<_>>>()?;
        for _ in 0..additional {
            reader.name()?;
            let (kind, class) = (reader.u16()?, reader.u16()?);
            reader.take(4)?;
            let length = reader.u16()?;
            reader.take(length.into())?;
            if kind == OPT {
                asked.payload = Some(class);
            }
        }
        (reader.at == message.len()).then_some((asked, told))
    }

    /// Returns the name in policy's form.
    fn host(&self) -> Option<String> {
        let labels = self.name.iter().map(|label| String::from_utf8(label.to_ascii_lowercase()));
        let labels = labels.collect::<Result<Vec<_>, _>>().ok()?;
        labels.iter().all(|label| !label.contains('.')).then(|| labels.join("."))
    }
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.message.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Reads the labels of a name; one may point to others that stand before it.
    fn name(&mut self) -> Option<Vec<Vec<u8>>> {
        let (mut labels, mut behind) = (Vec::new(), None);
        let mut least = self.at;
        loop {
            let length = self.take(1)?[0];
            match length {
                0 => break,
                1..=63 => labels.push(self.take(length.into())?.to_vec()),
                192.. => {
                    let low = self.take(1)?[0];
                    let target = usize::from(length & 0x3f) << 8 | usize::from(low);
                    behind.get_or_insert(self.at);
                    if target >= least {
                        return None;
                    }
                    (least, self.at) = (target, target);
                }
                _ => return None,
            }
        }
        self.at = behind.unwrap_or(self.at);
        Some(labels)
    }

    fn told(&mut self) -> Option<Told> {
        let (name, kind) = (self.name()?, self.u16()?);
        let class = self.u16()?;
        let ttl = u32::from_be_bytes(self.take(4)?.try_into().ok()?);
        let length = self.u16()?;
        let data = self.take(length.into())?;
        let address = match (kind, class) {
            (A, IN) => IpAddr::from(<[u8; 4]>::try_from(data).ok()?),
            (AAAA, IN) => IpAddr::from(<[u8; 16]>::try_from(data).ok()?),
            _ => return None,
        };
        Some(Told { name, kind, ttl, address })
    }
}

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let key = binding("red", "OPENAI_API_KEY", &["header authorization bearer"], "file:openai");
    let file = Config::of_rules()
        .with(policy_builder::group("red", "a0", &["192.0.2.0/25"]))
        .with(policy_builder::group("blue", "b0", &["192.0.2.128/25"]))
        .with(api("openai", &["api.openai.example"]).with(key))
        .with(splice("pypi", &["red"], &["pypi.example", "*.cdn.example"]));
    policy(&file)
});

const HEADER: usize = 12;
const RESPONSE: u8 = 0x80;
const CUT: u8 = 2;
const FORM_ERR: u8 = 1;
const NOT_IMP: u8 = 4;
const A: u16 = 1;
const AAAA: u16 = 28;
const OPT: u16 = 41;
const IN: u16 = 1;
/// The longest datagram to a client that says nothing about its size, and the longest of all.
const PLAIN: u16 = 512;
const DATAGRAM: u16 = 1_232;
