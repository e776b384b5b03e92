//! Agents that are bound to a network card: the card's address, and the source addresses that it
//! may use.

use std::{fmt, net::IpAddr};

/// The hardware address of an Ethernet card: of one card, so neither multicast nor zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

/// A text is not the address of one Ethernet card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not the address of one Ethernet card; write it as in \"02:00:00:00:00:01\"")]
pub struct MacError;

/// An agent of a group whose frames must come from its own card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundAgent {
    /// The card. It is one agent's on an interface.
    pub mac: Mac,
    /// The source addresses it may use, inside the group's prefixes. Never empty, and none is
    /// another agent's on the interface.
    pub addresses: Vec<IpAddr>,
}

impl Mac {
    /// Reads six bytes in hexadecimal with colons between them.
    pub fn parse(text: &str) -> Result<Self, MacError> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(MacError)?;
            if part.len() != 2 || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(MacError);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| MacError)?;
        }
        let [first, ..] = octets;
        // The lowest bit of the first byte marks a group of cards (IEEE 802, clause 8.2).
        if parts.next().is_some() || first & 1 != 0 || octets == [0; 6] {
            return Err(MacError);
        }
        Ok(Self(octets))
    }

    /// The bytes in the order of the wire.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_reads_back_as_it_was_written() {
        for text in ["02:00:00:00:00:01", "fe:ff:ff:ff:ff:ff", "00:1a:2b:3c:4d:5e"] {
            assert_eq!(Mac::parse(text).map(|mac| mac.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(Mac::parse("02:AB:00:00:00:01"), Mac::parse("02:ab:00:00:00:01"));
    }

    #[test]
    fn what_is_not_one_card_is_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02:00:00:00:00:1",
            "02:00:00:00:00:+1",
            "2-0-0-0-0-1",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(Mac::parse(text), Err(MacError), "{text}");
        }
    }
}
