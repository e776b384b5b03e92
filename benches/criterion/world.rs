//! Helpers that several benches share: a policy, a flow, and a client's ClientHello.

use std::{path::Path, sync::Arc};

use cloakroom::{
    config,
    identity::{AgentAddr, Dialled, Flow, FlowId},
    policy::Policy,
};
use policy_builder::{Config, api, binding, group, splice};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::ServerName;

/// Returns a policy of one API and `hosts` spliced names, half of them suffixes.
pub fn policy(hosts: usize) -> Policy {
    let names: Vec<_> = (0..hosts)
        .map(|number| {
            let wild = if number % 2 == 0 { "" } else { "*." };
            format!("{wild}host{number}.example")
        })
        .collect();
    parsed(&one_api().with(splice("many", &["research"], &[]).set("hosts", names)).to_string())
}

/// Returns a configuration of one group and one API.
pub fn one_api() -> Config {
    let key =
        binding("research", "OPENAI_API_KEY", &["header authorization bearer"], "file:openai");
    let openai = api("openai", &["api.openai.example"]).set("paths", ["/v1/*"]).with(key);
    Config::of_rules().with(group("research", "agents0", &["192.0.2.0/25"])).with(openai)
}

/// Returns the policy of a configuration.
pub fn parsed(text: &str) -> Policy {
    let none = |_: &Path| Err(std::io::ErrorKind::NotFound.into());
    config::parse(text, Some(Path::new("/")), "bench.toml", &none)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .policy
}

/// Returns a flow of the policy's group to port 443.
pub fn flow(policy: &Policy) -> Flow {
    Flow {
        id: FlowId(1),
        group: Arc::clone(&policy.groups[0]),
        agent: AgentAddr(([192, 0, 2, 10], 40_000).into()),
        dialled: Dialled(([198, 51, 100, 10], 443).into()),
        reached: Arc::default(),
    }
}

/// Returns the first flight of a client, with or without a hybrid post-quantum share.
pub fn client_hello(name: &'static str, post_quantum: bool) -> Vec<u8> {
    let mut provider = aws_lc_rs::default_provider();
    if !post_quantum {
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from(name).expect("a name");
    let mut connection = ClientConnection::new(Arc::new(config), name).expect("TLS");
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).expect("memory");
    hello
}
