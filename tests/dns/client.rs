//! A client that sends any query to any server.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use lab::{
    dns::Dns,
    net::{AGENT, ATTACKER, GATEWAY_V4, GATEWAY_V6, Ns, VAULT},
};

/// Returns resolvers that agents like to ask: the gateway, the one that it asks itself, and public
/// ones, one of which seems to be on the agent's own link.
pub(crate) fn resolvers() -> Vec<SocketAddr> {
    let foreign = ["8.8.8.8", "10.1.2.3", "169.254.169.254", "2001:4860:4860::8888", "fd00::53"];
    let foreign = foreign.map(|address| address.parse().expect("an address"));
    let known: [IpAddr; 7] = [
        GATEWAY_V4.into(),
        GATEWAY_V6.into(),
        Dns::address().ip(),
        ATTACKER.v4().into(),
        ATTACKER.v6().into(),
        VAULT.into(),
        [203, 0, 113, 2].into(),
    ];
    let on_link = [IpAddr::from([192, 0, 2, 53])];
    known
        .into_iter()
        .chain(foreign)
        .chain(on_link)
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

/// Returns a query as clients send it.
pub(crate) fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(rand(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).expect("a name");
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message
}

/// Returns a number that no two queries share by chance.
pub(crate) fn rand() -> u16 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u16
}

/// Returns a socket that accepts answers only from the address that was asked.
pub(crate) fn socket(from: Ns, server: SocketAddr) -> UdpSocket {
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    bound(from, any[usize::from(server.is_ipv6())], server)
}

fn bound(from: Ns, own: IpAddr, server: SocketAddr) -> UdpSocket {
    from.enter(|| {
        let socket = UdpSocket::bind((own, 0)).expect("a socket");
        socket.connect(server).expect("a route");
        socket.set_read_timeout(Some(Duration::from_secs(8))).expect("a timeout");
        socket
    })
}

/// Asks in a datagram; accepts an answer only from the address that was asked.
pub(crate) fn ask_udp(from: Ns, server: SocketAddr, message: &Message) -> io::Result<Message> {
    ask_over(&socket(from, server), message)
}

/// Does the same as [`ask_udp`] from this address, which must be one of the namespace's own.
pub(crate) fn ask_udp_of(
    from: Ns,
    own: IpAddr,
    server: SocketAddr,
    message: &Message,
) -> io::Result<Message> {
    ask_over(&bound(from, own, server), message)
}

fn ask_over(socket: &UdpSocket, message: &Message) -> io::Result<Message> {
    socket.send(&message.to_vec().expect("a message"))?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    read(message, &buffer[..length])
}

/// Asks in a stream.
pub(crate) fn ask_tcp(from: Ns, server: SocketAddr, message: &Message) -> io::Result<Message> {
    let mut stream = from.connect(server)?;
    stream.write_all(&framed(message))?;
    read(message, &unframed(&mut stream)?)
}

/// Returns a message behind its length.
pub(crate) fn framed(message: &Message) -> Vec<u8> {
    let bytes = message.to_vec().expect("a message");
    let length = u16::try_from(bytes.len()).expect("short");
    [length.to_be_bytes().as_slice(), &bytes].concat()
}

/// Reads the message behind the next length.
pub(crate) fn unframed(stream: &mut impl io::Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Reads the answer to this query.
pub(crate) fn read(asked: &Message, bytes: &[u8]) -> io::Result<Message> {
    let answer = Message::from_vec(bytes).map_err(io::Error::other)?;
    assert_eq!(answer.metadata.id, asked.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    Ok(answer)
}

/// Returns the answer that the first agent gets.
#[track_caller]
pub(crate) fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    ask_udp(AGENT, server, &query(name, kind)).unwrap_or_else(|error| {
        panic!("no answer from {server} to {name} {kind}: {error}");
    })
}

/// Returns the addresses in an answer.
pub(crate) fn addresses(answer: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(v4) => Some(IpAddr::from(v4.0)),
        RData::AAAA(v6) => Some(IpAddr::from(v6.0)),
        _ => None,
    };
    answer.answers.iter().filter_map(|record| address(&record.data)).collect()
}

/// Returns the code of an answer.
pub(crate) fn code(answer: &Message) -> ResponseCode {
    answer.metadata.response_code
}

/// Returns the resolver that most tests ask.
pub(crate) fn anywhere() -> SocketAddr {
    resolvers()[7]
}
