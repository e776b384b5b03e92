//! A resolver whose answers may be cached for five minutes, as on the internet. The lab's own
//! forbids caching, which would charge every new connection with a query that the rivals,
//! configured with addresses, never send.

use std::net::{Ipv4Addr, UdpSocket};

use lab::net::{DNS, HOSTS, INTERNET};

/// Starts it where the lab's gateway looks for it.
pub fn start() {
    let socket = INTERNET.enter(|| UdpSocket::bind((DNS, 53)).expect("port 53"));
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            if let Some(reply) = buffer.get(..length).and_then(reply) {
                let _ = socket.send_to(&reply, from);
            }
        }
    });
}

/// Returns the query as an answer with one address (RFC 1035, section 4.1), or with none.
fn reply(query: &[u8]) -> Option<Vec<u8>> {
    let (header, rest) = query.split_at_checked(12)?;
    let (name, after) = name(rest)?;
    let question = rest.get(..after + 4)?;
    let is_a = question.ends_with(&[0, 1, 0, 1]);
    let known = HOSTS.iter().find(|host| host.name == name).map(|host| host.v4());
    let address: Option<Ipv4Addr> = known.filter(|_| is_a);
    let mut reply = header.get(..2)?.to_vec();
    reply.extend([0x81, if known.is_some() { 0x80 } else { 0x83 }]);
    reply.extend([0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    reply.extend(question);
    if let Some(address) = address {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0x01, 0x2c, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

fn name(mut rest: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = 1;
    while let Some((&length, tail)) = rest.split_first().filter(|(length, _)| **length != 0) {
        let (label, tail) = tail.split_at_checked(length.into())?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += usize::from(length) + 1;
        rest = tail;
    }
    Some((labels.join("."), at))
}
