//! A secret that is missing, broken or changed: the request is answered 503 and goes nowhere, and a
//! file that is wrong as a whole stops the start.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    time::Duration,
};

use lab::{
    Lab,
    client::Tls,
    dns::Dns,
    gateway::{ANTHROPIC_SECRET, Gateway, OPENAI_SECRET, usual_config, with_absent_vault},
    net::{AGENT, ANTHROPIC},
    origin::Origin,
    sandboxed, wait,
};
use policy_builder::Config;

use crate::faults::{CHAT, ask, assert_refused, connections, hello, records, refusal};

/// Returns the usual policy with a file of secrets of the test's own.
fn config_with(file: &str) -> Config {
    usual_config().secrets("file", format!("{{dir}}/{file}"))
}

/// Returns the same beside an absent Vault. Vault's `refresh` is also the interval at which the
/// file is read, so a change is visible within a second; and a Vault that hangs must not delay the
/// file.
fn without_vault(file: &str) -> Config {
    with_absent_vault(config_with(file)).vault("refresh", "1s").vault("max_stale", "2s")
}

#[test]
fn a_missing_or_broken_secret_is_503_until_there() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        lab.write("secret-id", "a-secret-id");
        // The form of an editor and a shell.
        let text =
            format!("\u{feff}anthropic = {ANTHROPIC_SECRET}\nexport openai = {OPENAI_SECRET}\n");
        lab.write("mine", text);
        let gateway = Gateway::start(&lab, &without_vault("mine"));

        let answer = ask(&lab, &gateway, CHAT);
        assert_refused(&answer, 503, "secret_unavailable");
        assert!(answer.headers.contains_key("retry-after"), "{:?}", answer.headers);
        assert!(!answer.text().contains("not_in_file"), "the cause is for the operator alone");
        origin.log().assert_no_request();
        let record = refusal(&gateway, 0, "secret_unavailable");
        assert_eq!(record["cause"], "not_in_file", "{record}");
        assert_eq!(record["placeholders"][0], "OPENAI_API_KEY", "{record}");
        let said = gateway.stderr();
        assert!(said.contains("no value yet"), "{said}");
        let line = said.lines().find(|line| line.contains("is passed over")).expect("it is told");
        assert!(line.contains("without `export`") && line.contains("line=2"), "{line}");
        assert_eq!(said.matches("is passed over").count(), 1, "{said}");
        assert!(!said.contains(OPENAI_SECRET), "{said}");
        connections(&gateway, 1);

        // The names that are there work beside it.
        let mut tls =
            Tls::open(AGENT, ANTHROPIC.port(443), &hello(&lab, ANTHROPIC)).expect("a handshake");
        let answer = tls
            .ask(
                "GET /v1/models HTTP/1.1\r\nHost: api.anthropic.example\r\n\
                 X-Api-Key: ANTHROPIC_API_KEY\r\n\r\n",
            )
            .expect("an answer");
        assert_eq!(answer.status, 200);
        drop(tls);
        origin.log().clear();

        let with = |value: &str| {
            lab.write("mine", format!("anthropic = {ANTHROPIC_SECRET}\nopenai = {value}\n"))
        };
        with(OPENAI_SECRET);
        wait::expect("the value is taken", || ask(&lab, &gateway, CHAT).status == 200);
        assert_eq!(
            origin.log().wait_requests(1)[0].header("authorization"),
            [format!("Bearer {OPENAI_SECRET}")]
        );

        // Another system's line end is trimmed; a rotation arrives.
        with("sk-lab-rotated-0123456789\r");
        wait::expect("the new value is at the origin", || {
            let _ = ask(&lab, &gateway, CHAT);
            origin.log().holds("Bearer sk-lab-rotated-0123456789")
        });

        // Values that are too short, or have a byte that no header field can carry, count as none.
        for (number, value) in ["sh0rt", "sk-lab with-a-space-0123", "sk-lab-\u{1}control-0123456"]
            .into_iter()
            .enumerate()
        {
            with(value);
            wait::expect("the bad value is refused", || ask(&lab, &gateway, CHAT).status == 503);
            wait::expect("the audit says why", || {
                let records = records(&gateway, "request");
                records.iter().filter(|record| record["cause"] == "value_invalid").count() > number
            });
            assert!(!origin.log().holds(value) && !gateway.stderr().contains(value));
        }
    });
}

#[test]
fn a_wrong_file_of_secrets_stops_the_start() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let secret = format!("openai = {OPENAI_SECRET}\n");
        let file = |name: &str, content: &str, mode: u32| {
            let path = lab.write(name, content);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
        };
        file("readable", &secret, 0o644);
        file("group", &secret, 0o640);
        file("whole", &secret, 0o600);
        symlink(lab.dir.join("whole"), lab.dir.join("link")).expect("a link");
        fs::create_dir(lab.dir.join("folder")).expect("a folder");
        for (name, says) in [
            ("nowhere", "there is no such file"),
            ("readable", "mode 0600"),
            ("group", "mode 0600"),
            ("link", "symbolic link"),
            ("folder", "not a regular file"),
        ] {
            let failed = Gateway::try_start(&lab, &config_with(name)).err().expect(name);
            crate::faults::assert_one_line(&failed, &[name, says]);
            assert!(!failed.stderr.contains("sk-lab"), "{}", failed.stderr);
            crate::faults::assert_closed(&origin);
        }
    });
}

#[test]
fn a_file_that_breaks_keeps_its_values_a_while() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        lab.write("secret-id", "a-secret-id");
        lab.write("mine", format!("openai = {OPENAI_SECRET}\n"));
        let gateway = Gateway::start(&lab, &without_vault("mine"));
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        lab.write("mine", "openai = ");
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200, "max_stale has not passed");
        wait::expect("max_stale ends the value", || ask(&lab, &gateway, CHAT).status == 503);
        let before = origin.log().requests().len();
        std::thread::sleep(Duration::from_millis(200));
        assert_refused(&ask(&lab, &gateway, CHAT), 503, "secret_unavailable");
        assert_eq!(origin.log().requests().len(), before);
        lab.write("mine", format!("openai = {OPENAI_SECRET}\n"));
        wait::expect("it recovers", || ask(&lab, &gateway, CHAT).status == 200);
    });
}
