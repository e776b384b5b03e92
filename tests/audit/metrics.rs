//! Health and metrics: every place gives the same answer, to the gateway's operators and to no
//! agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
};

use lab::{
    Lab,
    gateway::{self, Gateway, usual_config},
    net::{AGENT, AGENT2, GATEWAY, OPENAI},
    sandboxed, tools, wait,
};

use crate::{
    lifecycle::control::tell,
    world::{TICKET, World, get, get_path},
};

/// An address of the uplink, to which agents have a route.
const MANAGEMENT: &str = "203.0.113.2:9464";

/// A query for `x.example`, which is not listed.
const QUERY: &str = "import socket; \
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes.fromhex('\
    000101000001000000000000 0178 076578616d706c65 00 00010001'), ('192.0.2.1', 53))";

#[test]
fn metrics_agree_with_the_audit_and_dashboards_with_metrics() {
    sandboxed(|| {
        let world = World::with(
            &usual_config().gateway("metrics", MANAGEMENT).gateway("assert_every", "1s"),
        );
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        assert_eq!(world.ask(&get(&[])).status, 403);
        assert_eq!(world.ask(&get_path("/not-listed", &[TICKET])).status, 403);
        let echoed = world.ask(&get_path("/reflect", &[TICKET]));
        assert_eq!(echoed.status, 200);
        world.h1_from(AGENT, OPENAI.port(443), "unlisted.example").map(drop).expect_err("refused");
        AGENT.connect(OPENAI.port(9_999)).expect_err("not captured");
        AGENT.shell(&format!("python3 -c \"{QUERY}\""));
        for agent in [AGENT, AGENT2] {
            for to in [MANAGEMENT, "192.0.2.1:9464", "192.0.2.129:9464", "127.0.0.1:9464"] {
                agent.connect(to.parse().expect("an address")).map(drop).expect_err(to);
            }
        }

        wait::expect("sums of packets and queries", || {
            let text = scrape("/metrics").1;
            text.contains("cloakroom_packets_refused_total{")
                && text.contains("cloakroom_dns_queries_total{")
        });
        wait::expect("every request is counted as it is recorded", || {
            let mut recorded: BTreeMap<[String; 4], u64> = BTreeMap::new();
            for record in world.gateway.audit.records() {
                if record.is("request") {
                    let word = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
                    let words = ["group", "rule", "decision", "reason"].map(word);
                    *recorded.entry(words).or_default() += 1;
                }
            }
            let text = scrape("/metrics").1;
            let counted: u64 =
                samples(&text, "cloakroom_requests_total").iter().map(|it| it.1).sum();
            let held = |(words, count): (&[String; 4], &u64)| {
                let [group, rule, decision, reason] = words;
                text.contains(&format!(
                    "cloakroom_requests_total{{group=\"{group}\",rule=\"{rule}\",\
                     decision=\"{decision}\",reason=\"{reason}\"}} {count}\n"
                ))
            };
            recorded.len() >= 3
                && recorded.iter().all(held)
                && recorded.values().sum::<u64>() == counted
        });
        let text = scrape("/metrics").1;
        assert!(!text.contains("not-listed") && !text.contains("192.0.2."), "{text}");
        for secret in gateway::SECRETS {
            assert!(!text.contains(secret));
        }
        let healthy = text;

        assert_eq!(scrape("/ready"), (200, "healthy\n".into()));
        assert!(healthy.contains("cloakroom_health{state=\"healthy\"} 1\n"), "{healthy}");
        GATEWAY.shell("nft delete table inet cloakroom_base");
        wait::expect("not ready", || scrape("/ready") == (503, "closed\n".into()));
        assert!(!world.lab.dir.join("ready").exists(), "nor by the file");
        let text = scrape("/metrics").1;
        assert!(text.contains("cloakroom_health{state=\"closed\"} 1\n"), "{text}");
        assert!(text.contains("cloakroom_health_cause{cause=\"packets_unsure\""), "{text}");
        asked_for_exists(&[healthy, text].concat());
        assert!(tell(&world, &["status"], 0).starts_with("closed: nothing new is carried\n  - "));
        gateway::guard();
        wait::expect("ready again", || scrape("/ready").0 == 200);
        wait::expect("by the file, too", || world.lab.dir.join("ready").exists());
    });
}

#[test]
fn metrics_on_the_agents_side_are_no_start() {
    sandboxed(|| {
        let lab = Lab::new();
        let config = usual_config().gateway("metrics", "192.0.2.1:9464");
        let failed = Gateway::try_start(&lab, &config).map(drop).expect_err("an agents' address");
        assert_eq!(failed.code(), Some(64), "{}", failed.stderr);
        assert!(failed.stderr.contains("is an agents' address"), "{}", failed.stderr);

        GATEWAY.shell("ip addr add 198.51.100.77/32 dev agents0");
        let config = usual_config().gateway("metrics", "198.51.100.77:9464");
        let failed = Gateway::try_start(&lab, &config).map(drop).expect_err("on their interface");
        assert_eq!(failed.code(), Some(1), "{}", failed.stderr);
        assert!(failed.stderr.contains("agents0, which agents are behind"), "{}", failed.stderr);
    });
}

/// Returns the status and the text of an answer at the management address.
fn scrape(path: &str) -> (u16, String) {
    let address: SocketAddr = MANAGEMENT.parse().expect("an address");
    let mut stream = GATEWAY.connect(address).expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), body.to_owned())
}

/// Returns the labels' names and the value of each sample of a metric.
fn samples(text: &str, metric: &str) -> Vec<(BTreeSet<String>, u64)> {
    let of_metric = |line: &&str| {
        line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
    };
    let sample = |line: &str| {
        let labels = line.split_once('{').map_or("", |(_, rest)| rest);
        let names = labels.split(',').filter_map(|label| label.split_once("=\"")).map(|it| it.0);
        let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        (names.map(str::to_owned).collect(), value.unwrap_or_default() as u64)
    };
    text.lines().filter(of_metric).map(sample).collect()
}

/// Checks that every metric and every label that the dashboard and the alerts ask for is in the
/// text.
fn asked_for_exists(text: &str) {
    let folder = tools::repository().join("docs/monitoring");
    let mut asked = 0;
    for name in ["alerts.yml", "dashboard.json", "README.md"] {
        let file = fs::read_to_string(folder.join(name)).expect("it is there");
        for (at, _) in file.match_indices("cloakroom_") {
            let rest = &file[at..];
            let end =
                rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
            let (metric, after) = rest.split_at(end);
            let plain = metric.strip_suffix("_seconds").filter(|it| it.ends_with("_stage"));
            let metric = plain.map_or(metric.to_owned(), |it| format!("{it}_seconds_bucket"));
            let samples = samples(text, &metric);
            assert!(!samples.is_empty(), "{name} asks for {metric}, which is not told:\n{text}");
            let labels = after.strip_prefix('{').and_then(|after| after.split_once('}'));
            let by_prometheus = ["instance", "job"];
            for label in labels.map_or("", |(labels, _)| labels).split(',') {
                let label = label.split(['=', '!']).next().unwrap_or_default();
                let known = label.is_empty()
                    || by_prometheus.contains(&label)
                    || samples.iter().all(|(names, _)| names.contains(label));
                assert!(known, "{name} asks for {label} of {metric}");
            }
            asked += 1;
        }
    }
    assert!(asked > 30, "{asked}");
}
