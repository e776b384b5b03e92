//! Unmodified boto3, with placeholders for keys.

use std::{
    net::IpAddr,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use lab::{
    Lab,
    audit::Record,
    client::{agent, python, succeed},
    dns::Dns,
    gateway::Gateway,
    net::{AGENT, INTERNET, OTHER},
    sandbox::sandboxed_for,
    sandboxed, wait,
    wire::Wire,
};
use policy_builder::{Config, binding};
use serde_json::json;

use super::{BEARER, ID, KEY, SECRET, TOKEN, amazon, key_of, only, script, secrets, with_keys};

/// Amazon's names, which lead to an address of the lab here.
const NAMES: [&str; 4] = [
    "coats.s3.eu-central-1.amazonaws.com",
    // The host of boto3's links.
    "coats.s3.amazonaws.com",
    "dynamodb.eu-central-1.amazonaws.com",
    "bedrock-runtime.eu-central-1.amazonaws.com",
];

/// Longest time for some 200 MiB through a debug build on a busy machine.
const LARGE: Duration = Duration::from_secs(300);

/// The lab with Amazon's services in it.
struct Amazon {
    lab: Lab,
    gateway: Gateway,
    log: PathBuf,
    _dns: Dns,
    _origin: Child,
}

/// A request as it arrived at the services.
struct Arrived {
    method: String,
    target: String,
    fields: Vec<(String, String)>,
    wrong: Option<String>,
}

impl Amazon {
    fn start() -> Self {
        Self::with(&policy())
    }

    fn with(policy: &Config) -> Self {
        let lab = Lab::new();
        let dns = Dns::start();
        let addresses: [IpAddr; 2] = [OTHER.v4().into(), OTHER.v6().into()];
        lab.names(&NAMES.map(|name| (name, addresses.to_vec())));
        NAMES.iter().for_each(|name| dns.set(name, &addresses));
        let (log, origin) = services(&lab, &addresses);
        lab.write("aws.secrets", secrets());
        let gateway = Gateway::start(&lab, policy);
        Self { lab, gateway, log, _dns: dns, _origin: origin }
    }

    /// Runs boto3 as an agent does.
    #[track_caller]
    fn client(&self, what: &str, wire: Option<&Wire>) {
        let mut command = agent(&self.lab, AGENT, &python().display().to_string());
        command.arg(script("client.py")).arg(&self.lab.dir).arg(what);
        command.env(KEY, KEY).env("AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY");
        command.env("AWS_DEFAULT_REGION", "eu-central-1").env("AWS_MAX_ATTEMPTS", "1");
        command.env("AWS_CA_BUNDLE", self.lab.dir.join("agents.pem"));
        if let Some(wire) = wire {
            command.env("SSLKEYLOGFILE", wire.keys());
        }
        succeed(&mut command);
    }

    /// Returns the requests that have arrived so far.
    fn arrived(&self) -> Vec<Arrived> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(Arrived::read).collect()
    }

    /// Requires that each request arrived signed with the real keys, and that no key is in the
    /// gateway's output.
    #[track_caller]
    fn assert_signed(&self) -> Vec<Arrived> {
        let arrived = self.arrived();
        assert!(!arrived.is_empty(), "nothing arrived");
        for Arrived { method, target, wrong, fields } in &arrived {
            assert_eq!(*wrong, None, "{method} {target} {fields:?}");
            let all = format!("{target} {fields:?}");
            assert!(!all.contains(KEY) && !all.contains(SECRET), "{all}");
        }
        let count = || self.requests().len() == arrived.len();
        wait::expect("a record of each request", count);
        for record in self.requests() {
            assert_eq!(record["placeholders"], json!([KEY]), "{record}");
        }
        let written = self.gateway.audit.text() + &self.gateway.stderr();
        for part in [ID, SECRET, TOKEN] {
            assert!(!written.contains(part), "a key is in {written}");
        }
        arrived
    }

    fn requests(&self) -> Vec<Record> {
        self.gateway.audit.of_kind("request")
    }
}

impl Arrived {
    fn read(line: &str) -> Self {
        let (method, target, _, fields, _, wrong): (_, _, String, _, u64, _) =
            serde_json::from_str(line).expect("the log is JSON");
        Self { method, target, fields, wrong }
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        fields.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Starts `origin.py` at these addresses.
fn services(lab: &Lab, addresses: &[IpAddr]) -> (PathBuf, Child) {
    let identity = lab.public.issue_all(&NAMES);
    let certificate = lab.write("amazon.pem", identity.certificate_pem());
    let key = lab.write("amazon.key", identity.key_pem());
    let log = lab.dir.join("amazon.log");
    let mut command = INTERNET.command(python());
    with_keys(&mut command, (ID, SECRET, Some(TOKEN))).arg(script("origin.py")).args([
        &certificate,
        &key,
        &log,
    ]);
    command.args(addresses.iter().map(ToString::to_string)).stdout(Stdio::null());
    let child = command.spawn().expect("python starts");
    wait::expect("the services listen", || {
        addresses.iter().all(|address| INTERNET.connect((*address, 443).into()).is_ok())
    });
    (log, child)
}

fn policy() -> Config {
    let amazon = amazon(&NAMES, &["s3", "dynamodb", "bedrock"]).set("keep_ranges", true);
    only(amazon.with(key_of("research", KEY, "file:aws"))).secrets("file", "{dir}/aws.secrets")
}

#[test]
fn boto3_works_with_placeholders_and_real_keys_sign() {
    sandboxed(|| {
        let amazon = Amazon::start();
        let wire = Wire::tap(&amazon.lab, AGENT);
        amazon.client("small", Some(&wire));
        let arrived = amazon.assert_signed();
        let payload =
            |of: &str| arrived.iter().any(|it| it.field("x-amz-content-sha256") == Some(of));
        assert!(payload("STREAMING-UNSIGNED-PAYLOAD-TRAILER"), "boto3 streams no more");
        assert!(arrived.iter().any(|it| it.target.contains("X-Amz-Signature=")), "no link");
        let sessions = wire.sessions();
        assert!(sessions.iter().any(|session| session.sends(KEY)), "the search is broken");
        wire.assert_never(&[ID, SECRET, TOKEN]);
    });
}

#[test]
fn boto3_moves_64_mib_in_parts_and_at_once() {
    sandboxed_for(LARGE, || {
        let amazon = Amazon::start();
        amazon.client("large", None);
        let arrived = amazon.assert_signed();
        let parts = |method| {
            let part = |it: &&Arrived| it.method == method && it.target.contains("partNumber=");
            arrived.iter().filter(part).count()
        };
        assert_eq!(parts("PUT"), 8, "64 MiB in parts of 8 MiB");
    });
}

/// Without `keep_ranges`, each part is cut out of the whole object, whose checksum does not fit the
/// part.
#[test]
fn boto3_gets_a_large_object_in_cut_parts() {
    sandboxed(|| {
        let amazon = Amazon::with(&policy().api("amazon", |it| it.without("keep_ranges")));
        amazon.client("cut", None);
        let arrived = amazon.assert_signed();
        assert!(arrived.iter().all(|it| it.field("range").is_none()));
    });
}

#[test]
fn bedrock_s_bearer_key_is_a_header_like_any_other() {
    sandboxed(|| {
        let places = ["header authorization bearer"];
        let bearer = binding("research", "AWS_BEARER_TOKEN_BEDROCK", &places, "file:bearer");
        let amazon = Amazon::with(&policy().api("amazon", |it| it.with(bearer)));
        amazon.client("bearer", None);
        let [arrived] = &amazon.arrived()[..] else { panic!("one request") };
        assert_eq!(arrived.field("authorization"), Some(&*format!("Bearer {BEARER}")));
    });
}
