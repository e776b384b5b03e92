//! A test in namespaces of its own.
//!
//! [`sandboxed`] starts the test binary again for this one test, inside new mount, network and
//! process namespaces (and a user namespace when not root). After a panic, a timeout or a killed
//! test runner, the kernel ends every process and removes every interface and mount with the
//! namespaces: there is no clean-up code to forget. A test that hangs fails after [`LIMIT`].

use std::{
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Longest time of one test.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Runs `body` in namespaces of its own. A `#[test]` function must call it first, with a closure
/// written in that function, because the closure's type names the test to start again.
///
/// # Panics
/// When the test fails inside. The panic shows all of its output.
pub fn sandboxed<F: FnOnce()>(body: F) {
    sandboxed_for(LIMIT, body);
}

/// Does the same as [`sandboxed`], with another limit on the time.
///
/// # Panics
/// As [`sandboxed`] does.
pub fn sandboxed_for<F: FnOnce()>(limit: Duration, body: F) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    let test = test_name(std::any::type_name::<F>());
    let mut runner = start(test);
    let stdout = drain(runner.stdout.take());
    let stderr = drain(runner.stderr.take());
    let ended = wait(&mut runner, limit);
    let output = [stdout, stderr].map(|reader| reader.join().unwrap_or_default()).concat();
    match ended {
        Some(status) if status.success() && output.contains("1 passed") => {}
        Some(status) => panic!("{test} failed in its sandbox ({}):\n{output}", describe(status)),
        None => panic!("{test} did not end within {limit:?}:\n{output}"),
    }
}

/// Returns a command that enters new namespaces and runs `program` there, for a program that is no
/// test: the demonstration.
pub fn command(program: &std::path::Path) -> Command {
    let mut command = Command::new("env");
    // A job that a shell starts with `&` ignores SIGINT and SIGQUIT, and so would every process
    // that it starts.
    command.args(["--default-signal", "setpriv"]);
    // The namespaces end with the process that made them, even when it is killed.
    command.args(["--pdeathsig", "KILL", "unshare"]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["--propagation", "private", "sh", "-c", ENTER])
        .arg(program)
        .env(INSIDE, "1");
    command
}

/// Returns whether this process already runs inside.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

fn start(test: &str) -> Child {
    let binary = std::env::current_exe().expect("the test binary knows where it is");
    command(&binary)
        .args(["--exact", test, "--nocapture", "--include-ignored", "--test-threads=1"])
        // The place of the first panic is enough, and another panic shows the output.
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("setpriv and unshare start; tests/prerequisites installs util-linux")
}

fn drain<R: Read + Send + 'static>(pipe: Option<R>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // Output before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(runner: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Some(status) = runner.try_wait().expect("the sandbox can be waited for") {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
    // `--kill-child` kills the first process of the namespace, and with it all others.
    runner.kill().expect("the sandbox can be killed");
    runner.wait().expect("the sandbox can be waited for");
    None
}

/// Returns the name of a test: `properties::accept::a_sentence::{{closure}}` names the test
/// `accept::a_sentence`.
fn test_name(closure: &str) -> &str {
    let path = closure.trim_end_matches("::{{closure}}");
    path.split_once("::").map_or(path, |(_binary, test)| test)
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("exit {}", status.code().unwrap_or(-1)),
    }
}

const INSIDE: &str = "CLOAKROOM_SANDBOX";

/// The script of the namespace's first process. The shell stays: it reaps orphans, and only a
/// program that is not the first process has the usual meaning of signals.
const ENTER: &str = r#"
set -e
# An ordinary user's PATH lacks nft and ip on Debian.
PATH=$PATH:/usr/sbin:/sbin
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/netns /run/lab/home
ip link set lo up
set +e
"$0" "$@"
exit $?
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closure_names_its_test() {
        assert_eq!(test_name("properties::packets::a_b::{{closure}}"), "packets::a_b");
        assert_eq!(test_name("properties::a_b::{{closure}}::{{closure}}"), "a_b");
    }
}
