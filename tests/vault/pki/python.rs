//! Python's ssl with VERIFY_X509_STRICT, which is the default from 3.13 on. Where the machine has
//! only an older Python, that one is told to be as strict, and [`announce`] says so.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Output},
};

use lab::{
    Lab,
    net::{AGENT, Host},
};

use super::engine::{Leaf, pem};

/// Returns the result of a handshake of an agent's Python with the host.
pub fn get(lab: &Lab, host: Host) -> String {
    let script = lab.write("get.py", format!("{STRICT}{GET}"));
    let mut command = AGENT.command(python().0);
    command.arg(script).arg(lab.dir.join("agents.pem")).arg(host.name).arg(host.v4().to_string());
    said(&command.output().expect("python starts"))
}

/// Returns the result of a handshake of Python with itself, where the server shows this leaf.
pub fn handshake(lab: &Lab, root: &str, name: &str, leaf: &Leaf) -> String {
    let script = lab.write("handshake.py", format!("{STRICT}{HANDSHAKE}"));
    let root = lab.write("p-root.pem", root);
    let chain = lab.write("p-chain.pem", pem(&leaf.chain));
    let key = lab.write("p-key.pem", &leaf.key);
    let mut command = Command::new(python().0);
    said(&command.arg(script).arg(root).arg(name).arg(chain).arg(key).output().expect("it starts"))
}

/// Prints on the terminal, whether or not tests pass, that the tested strictness is not Python
/// 3.13's own.
pub fn announce() {
    let (_, version) = python();
    if !version.starts_with("3.13.") {
        let note =
            format!("note: no Python 3.13 runs here; its strict checks are made by {version}\n");
        // Not printed by a macro, because the output of a test that passes is not shown.
        let _ = std::io::stderr().write_all(note.as_bytes());
    }
}

/// Returns the first Python that runs, 3.13 before any other, and its version. The one on `PATH`
/// may be a stand-in that ends with an error, or need its user's environment.
fn python() -> (PathBuf, String) {
    let of_pyenv = fs::read_dir(pyenv().join("versions")).into_iter().flatten();
    let of_pyenv = of_pyenv.filter_map(Result::ok).map(|version| version.path());
    let mut candidates: Vec<PathBuf> =
        of_pyenv.map(|version| version.join("bin/python3.13")).filter(|it| it.is_file()).collect();
    candidates.extend(["python3.13", "/usr/bin/python3", "python3"].map(PathBuf::from));
    candidates.iter().find_map(runs).expect("a Python with strict checks")
}

fn runs(name: &PathBuf) -> Option<(PathBuf, String)> {
    let output = Command::new(name).args(["-c", WHO]).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    let (path, version) = said.trim().split_once('\n').filter(|_| output.status.success())?;
    Some((path.into(), version.to_owned()))
}

fn pyenv() -> PathBuf {
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    root.unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".pyenv")
    })
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]]
        .iter()
        .map(|text| String::from_utf8_lossy(text))
        .collect()
}

const WHO: &str = "
import ssl, sys
ssl.VERIFY_X509_STRICT
print(sys.executable)
print(sys.version.split()[0])
";

const STRICT: &str = "
import ssl, sys, socket
client = ssl.create_default_context(cafile=sys.argv[1])
if sys.version_info < (3, 13):
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
assert client.verify_flags & ssl.VERIFY_X509_STRICT
name = sys.argv[2]
";

const GET: &str = "
with socket.create_connection((sys.argv[3], 443), timeout=10) as tcp:
    with client.wrap_socket(tcp, server_hostname=name) as tls:
        print('OK', sys.version.split()[0], tls.version(), tls.getpeercert()['subjectAltName'])
";

const HANDSHAKE: &str = "
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(sys.argv[3], sys.argv[4])
a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
ends = [client.wrap_bio(a, b, server_hostname=name), server.wrap_bio(b, a, server_side=True)]
done = [False, False]
for _ in range(20):
    for number, end in enumerate(ends):
        if not done[number]:
            try:
                end.do_handshake()
                done[number] = True
            except ssl.SSLWantReadError:
                pass
print('OK', sys.version.split()[0]) if all(done) else print('unfinished')
";
