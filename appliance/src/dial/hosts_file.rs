//! The addresses of names in this machine's `/etc/hosts`.
//!
//! They are for the gateway alone, when it resolves its Vault: no agent is told of them. A file
//! that is missing or cannot be read gives none.

use std::{io, net::IpAddr};

use hickory_resolver::{
    Hosts,
    proto::{
        op::Query,
        rr::{Name, RecordType},
    },
};

/// Returns every address of the name in the file, IPv4 before IPv6.
pub(super) async fn addresses(name: &Name) -> Vec<IpAddr> {
    match tokio::fs::read(FILE).await {
        Ok(file) => addresses_in(&file, name),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, "{FILE} is passed over");
            }
            Vec::new()
        }
    }
}

fn addresses_in(file: &[u8], name: &Name) -> Vec<IpAddr> {
    let mut hosts = Hosts::default();
    // hickory reads as far as the first line that is not text.
    if let Err(error) = hosts.read_hosts_conf(file) {
        tracing::warn!(%error, "{FILE} is read in part");
    }
    let of = |kind| hosts.lookup_static_host(&Query::query(name.clone(), kind));
    let found = [RecordType::A, RecordType::AAAA].into_iter().filter_map(of);
    found
        .flat_map(|of| of.answers().iter().filter_map(|it| it.data.ip_addr()).collect::<Vec<_>>())
        .collect()
}

const FILE: &str = "/etc/hosts";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_its_addresses_of_the_hosts_file_alone() {
        let file = b"# ours\n127.0.0.1 localhost\n10.0.0.5 vault.example vault # primary\n\
                     2001:db8::5\tVault.Example\n10.0.0.6 vault.example\nnonsense vault.example\n";
        let of = |name: &str| addresses_in(file, &Name::from_ascii(name).unwrap());
        let all: [IpAddr; 3] =
            ["10.0.0.5", "10.0.0.6", "2001:db8::5"].map(|it| it.parse().unwrap());
        assert_eq!(of("vault.example."), all);
        assert_eq!(of("VAULT.example."), all);
        assert_eq!(of("vault."), all[..1]);
        assert!(of("other.example.").is_empty() && of("a.vault.example.").is_empty());
    }
}
