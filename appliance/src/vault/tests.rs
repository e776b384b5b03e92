//! Reads from a fake Vault: its answers, and the results for the source.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use super::{fake::*, *};

#[tokio::test]
async fn a_value_is_read_with_one_login() {
    let fake = Fake::start(healthy(value)).await;
    let source = fake.source();
    for _ in 0..3 {
        assert_eq!(fetch(&source).await.as_deref(), Ok(VALUE));
    }
    source.close().await;
    assert_eq!(fake.targets(), [LOGIN, CHILD, READ, READ, READ, REVOKE]);
    let received = fake.received.lock().unwrap();
    assert_eq!(received[0].token, None);
    assert_eq!(received[0].body, format!(r#"{{"role_id":"role-1","secret_id":"{SECRET_ID}"}}"#));
    for one in &received[1..] {
        let own = [CHILD, REVOKE].contains(&one.target.as_str());
        let token = if own { TOKEN } else { CHILD_TOKEN };
        assert_eq!(one.token.as_deref(), Some(token), "the gateway reads nothing: {one:?}");
    }
    let body = r#"{"display_name":"cloakroom-agents","meta":{"cloakroom_group":"agents"}}"#;
    assert_eq!(received[1].body, body, "no policy is asked for: the role says which");
}

#[tokio::test]
async fn a_hundred_questions_make_one_login_also_when_it_fails() {
    for status in [200, 500] {
        let fake = Fake::start(move |request| match (request.target.as_str(), status) {
            (LOGIN, 500) => FakeReply::Json(500, "{}".to_owned()),
            (LOGIN, _) => grant(TOKEN, 3600),
            (CHILD, _) => child(CHILD_TOKEN, 3600),
            _ => value(),
        })
        .await;
        let source = fake.source();
        let all = futures_util::future::join_all((0..100).map(|_| fetch(&source))).await;
        assert!(all.iter().all(|one| one.is_ok() == (status == 200)));
        assert_eq!(fake.count(LOGIN), 1);
    }
}

#[tokio::test]
async fn each_refusal_and_each_fault_has_its_cause() {
    use SecretCause::{ValueInvalid, VaultDenied, VaultQuota, VaultSealed, VaultUnreachable};
    type Case = (fn() -> FakeReply, SecretCause, bool);
    let cases: [Case; 14] = [
        (refused, VaultDenied, true),
        (|| FakeReply::Json(404, r#"{"errors":[]}"#.to_owned()), VaultDenied, true),
        (
            || FakeReply::Json(503, r#"{"errors":["Vault is sealed"]}"#.to_owned()),
            VaultSealed,
            false,
        ),
        (|| FakeReply::Json(503, "<html>busy</html>".to_owned()), VaultUnreachable, false),
        (|| FakeReply::Json(501, "{}".to_owned()), VaultSealed, false),
        (|| FakeReply::Json(473, "{}".to_owned()), VaultSealed, false),
        (|| FakeReply::Json(429, "{}".to_owned()), VaultQuota, false),
        (|| FakeReply::Json(500, r#"{"errors":["1 error"]}"#.to_owned()), VaultUnreachable, false),
        (|| FakeReply::Json(200, "<html>welcome</html>".to_owned()), VaultUnreachable, false),
        (|| FakeReply::Json(200, r#"{"data":{"data":{"ke"#.to_owned()), VaultUnreachable, false),
        (|| FakeReply::Cut, VaultUnreachable, false),
        (|| FakeReply::Bytes(2 * 1024 * 1024), VaultUnreachable, false),
        (
            || FakeReply::Json(200, r#"{"data":{"data":{"other":"v"}}}"#.to_owned()),
            ValueInvalid,
            true,
        ),
        (|| FakeReply::Json(200, r#"{"data":{"data":{"key":17}}}"#.to_owned()), ValueInvalid, true),
    ];
    for (index, (read, cause, gone)) in cases.into_iter().enumerate() {
        let fake = Fake::start(healthy(read)).await;
        let error = fetch(&fake.source()).await.unwrap_err();
        assert_eq!(error.cause(), cause, "case {index}: {error:?}");
        assert_eq!(matches!(error, FetchError::Gone(..)), gone, "case {index}: {error:?}");
    }
}

#[tokio::test]
async fn a_refused_login_differs_from_a_sealed_vault() {
    let cases = [
        (400, SecretCause::VaultDenied),
        (403, SecretCause::VaultDenied),
        (503, SecretCause::VaultSealed),
    ];
    for (status, cause) in cases {
        let body = r#"{"errors":["Vault is sealed"]}"#;
        let fake = Fake::start(move |_| FakeReply::Json(status, body.to_owned())).await;
        assert_eq!(fetch(&fake.source()).await.unwrap_err().cause(), cause);
        assert_eq!(fake.targets(), [LOGIN]);
    }
}

#[tokio::test]
async fn a_slow_vault_is_given_up_in_time() {
    let fake = Fake::start(healthy(|| FakeReply::Hang)).await;
    let (groups, resolver) = (groups(), resolver());
    let second = Duration::from_secs(1);
    let source = VaultSource::with_call_time(&fake.settings(), &groups, &resolver, second).unwrap();
    let started = std::time::Instant::now();
    let error = fetch(&source).await.unwrap_err();
    assert_eq!(error.cause(), SecretCause::VaultUnreachable);
    assert!(error.text().contains("did not answer in time: look at"), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn a_vault_that_cuts_answers_says_where_to_look() {
    let fake = Fake::start(healthy(|| FakeReply::Cut)).await;
    let error = fetch(&fake.source()).await.unwrap_err();
    assert!(error.text().contains("broke: look into its log"), "{error:?}");
}

#[tokio::test]
async fn a_redirect_is_not_followed_with_the_token() {
    for redirected in [LOGIN, READ] {
        let thief = Fake::start(|_| value()).await;
        let to = format!("{}{redirected}", thief.address);
        let fake = Fake::start(move |request| match request.target.as_str() {
            target if target == redirected => FakeReply::Redirect(to.clone()),
            LOGIN => grant(TOKEN, 3600),
            _ => child(CHILD_TOKEN, 3600),
        })
        .await;
        let error = fetch(&fake.source()).await.unwrap_err();
        assert_eq!(error.cause(), SecretCause::VaultUnreachable);
        assert!(thief.targets().is_empty());
        assert!(fetch(&thief.source()).await.is_err(), "the thief could have been reached");
        assert_eq!(thief.targets(), [LOGIN]);
    }
}

#[tokio::test]
async fn another_ca_is_not_trusted_and_sees_no_request() {
    let fake = Fake::start(healthy(value)).await;
    fake.folder.write("ca.pem", new_authority().0.as_bytes(), 0o644);
    let error = fetch(&fake.source()).await.unwrap_err();
    assert!(matches!(error, FetchError::Outage(SecretCause::VaultUnreachable, _)));
    assert!(error.text().contains("of another CA"), "{error:?}");
    assert!(fake.targets().is_empty());
}

#[tokio::test]
async fn each_way_not_to_reach_vault_has_its_advice() {
    let fake = Fake::start(healthy(value)).await;
    let port = fake.address.rsplit(':').next().unwrap();
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let spoken = plain.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400\r\n\r\n").await;
        }
    });
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (address, says) in [
        (format!("https://vault.invalid:{port}"), "name does not resolve"),
        (format!("https://localhost:{port}"), "is for another name"),
        (format!("https://{spoken}"), "does not speak TLS"),
        (format!("https://{nobody}"), "nothing listens"),
    ] {
        let settings = VaultSettings { address: address.as_str().into(), ..fake.settings() };
        let source = VaultSource::new(&settings, &groups(), &resolver()).unwrap();
        let error = fetch(&source).await.unwrap_err();
        assert!(matches!(error, FetchError::Outage(SecretCause::VaultUnreachable, _)));
        assert!(error.text().contains(says), "{address}: {error:?}");
    }
    assert!(fake.targets().is_empty());
}

#[tokio::test]
async fn a_refused_secret_id_is_not_shown_until_it_changes() {
    const OTHER: &str = "secret-id-of-tomorrow";
    let fake = Fake::start(|request| match request.target.as_str() {
        LOGIN if !request.body.contains(OTHER) => {
            let text = r#"{"errors":["invalid role or secret ID"]}"#;
            FakeReply::Json(400, text.to_owned())
        }
        _ => healthy(value)(request),
    })
    .await;
    let source = fake.source();
    let refused = || async {
        // A failure counts for a second.
        tokio::time::sleep(Duration::from_millis(1_050)).await;
        fetch(&source).await.unwrap_err().text().to_owned()
    };
    for _ in 0..3 {
        assert!(refused().await.contains("does not take the SecretID"));
    }
    assert_eq!(fake.targets(), [LOGIN]);
    source.try_again();
    refused().await;
    assert_eq!(fake.targets(), [LOGIN, LOGIN]);
    refused().await;
    assert_eq!(fake.count(LOGIN), 2);
    fake.folder.write("secret-id", OTHER.as_bytes(), 0o600);
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    assert_eq!(fetch(&source).await.as_deref(), Ok(VALUE));
    assert_eq!(fake.count(LOGIN), 3);
}

#[tokio::test]
async fn nobody_there_is_an_outage() {
    let fake = Fake::start(healthy(value)).await;
    let source = fake.source();
    fake.task.abort();
    while !fake.task.is_finished() {
        tokio::task::yield_now().await;
    }
    let error = fetch(&source).await.unwrap_err();
    assert!(matches!(error, FetchError::Outage(SecretCause::VaultUnreachable, _)));
    assert!(error.text().contains("nothing listens"), "{error:?}");
}

#[tokio::test]
async fn a_path_that_could_mean_another_is_never_sent() {
    let fake = Fake::start(healthy(value)).await;
    let source = fake.source();
    for path in ["a/../b", "..", "a//b", "/a", "a/", "a/./b", "a\nb", ""] {
        let asked = fetch_at(&source, path).await;
        assert_eq!(asked.unwrap_err().cause(), SecretCause::VaultDenied, "{path:?}");
    }
    assert!(fake.targets().is_empty());
}

#[tokio::test]
async fn marks_in_a_path_stay_in_the_path() {
    let fake = Fake::start(|request| match request.target.as_str() {
        LOGIN => grant(TOKEN, 3600),
        CHILD => child(CHILD_TOKEN, 3600),
        _ => value(),
    })
    .await;
    fetch_at(&fake.source(), "a?b#c%2e d").await.unwrap();
    assert_eq!(fake.targets()[2], "/v1/kv/data/a%3Fb%23c%252e%20d");
}

#[tokio::test]
async fn a_secret_id_that_others_can_read_stops_the_start() {
    let fake = Fake::start(healthy(value)).await;
    let path = fake.folder.write("secret-id", SECRET_ID.as_bytes(), 0o644);
    let none = resolver();
    let error = VaultSource::new(&fake.settings(), &groups(), &none).unwrap_err();
    assert!(matches!(error, VaultSourceError::LoginFile(..)));
    std::fs::remove_file(path).unwrap();
    fake.folder.write("secret-id", b"two\nlines", 0o600);
    let error = VaultSource::new(&fake.settings(), &groups(), &none).unwrap_err();
    assert!(matches!(error, VaultSourceError::LoginContent(..)));
    std::fs::remove_file(fake.folder.0.join("secret-id")).unwrap();
    let error = VaultSource::new(&fake.settings(), &groups(), &none).unwrap_err().to_string();
    assert!(error.starts_with("secret_id_file /") && error.contains("no such file; make one as"));
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The log of the whole process is read in a process of its own: beside other tests, which set no
/// log up, `tracing` may remember for a place in the code that nobody listens there.
#[test]
fn no_log_and_no_error_holds_a_secret() {
    let name = "vault::tests::logged_in_a_process_of_its_own";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", name])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "run by no_log_and_no_error_holds_a_secret"]
async fn logged_in_a_process_of_its_own() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let echo = |status| {
        move |request: &Received| {
            let said = format!("{:?} {:?} {VALUE}", request.token, request.body).replace('"', "'");
            FakeReply::Json(status, format!(r#"{{"errors":["{said}"],"warnings":["{said}"]}}"#))
        }
    };
    let mut errors = String::new();
    for status in [200, 307, 400, 403, 404, 500, 503] {
        let login = Fake::start(echo(status)).await;
        let read = echo(status);
        let read = Fake::start(move |request| match request.target.as_str() {
            LOGIN => grant(TOKEN, 3600),
            CHILD => child(CHILD_TOKEN, 3600),
            _ => read(request),
        })
        .await;
        let make = echo(status);
        let make = Fake::start(move |request| match request.target.as_str() {
            LOGIN => grant(TOKEN, 3600),
            _ => make(request),
        })
        .await;
        let wrapped = Fake::start(echo(status)).await;
        for (fake, wrapped) in [(login, false), (make, false), (read, false), (wrapped, true)] {
            let source =
                VaultSource::new(&fake.settings_with(wrapped), &groups(), &resolver()).unwrap();
            let error = fetch(&source).await.unwrap_err();
            errors += &format!("{error:?} {} {source:?}", error.text());
        }
    }
    let fake = Fake::start(healthy(value)).await;
    fetch(&fake.source()).await.unwrap();
    let log = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("logged in to Vault") && log.contains("TRACE"));
    let errors_of_vault = log.lines().filter(|line| line.contains("ERROR"));
    let others = errors_of_vault.filter(|line| !line.contains("somebody else may hold"));
    assert_eq!(others.count(), 0, "a refusal of Vault is no error of the gateway");
    for secret in [SECRET_ID, TOKEN, CHILD_TOKEN, VALUE] {
        assert!(!log.contains(secret), "{secret} in the log:\n{log}");
        assert!(!errors.contains(secret), "{secret} in {errors}");
    }
}
