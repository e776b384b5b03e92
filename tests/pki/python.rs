//! Python's ssl with VERIFY_X509_STRICT, which is the default from 3.13 on: the newest Python that
//! the machine has.

use std::process::{Command, Output};

use lab::{
    Lab,
    net::{AGENT, Host},
};

use super::engine::{Leaf, pem};

/// What happened when an agent's Python made a handshake with the host.
pub fn get(lab: &Lab, host: Host) -> String {
    let script = lab.write("get.py", format!("{STRICT}{GET}"));
    let mut command = AGENT.command(python());
    command.arg(script).arg(lab.dir.join("agents.pem")).arg(host.name).arg(host.v4().to_string());
    said(&command.output().expect("python starts"))
}

/// What happened when Python made a handshake with itself, where the server shows this leaf.
pub fn handshake(lab: &Lab, root: &str, name: &str, leaf: &Leaf) -> String {
    let script = lab.write("handshake.py", format!("{STRICT}{HANDSHAKE}"));
    let root = lab.write("p-root.pem", root);
    let chain = lab.write("p-chain.pem", pem(&leaf.chain));
    let key = lab.write("p-key.pem", &leaf.key);
    let mut command = Command::new(python());
    said(&command.arg(script).arg(root).arg(name).arg(chain).arg(key).output().expect("it starts"))
}

fn python() -> &'static str {
    let runs = |name: &&str| {
        let output = Command::new(name).args(["-c", "import ssl; ssl.VERIFY_X509_STRICT"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    ["python3.13", "python3"].into_iter().find(runs).expect("a Python with strict checks")
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr[..]]
        .iter()
        .map(|text| String::from_utf8_lossy(text))
        .collect()
}

const STRICT: &str = "
import ssl, sys, socket
client = ssl.create_default_context(cafile=sys.argv[1])
client.verify_flags |= ssl.VERIFY_X509_STRICT
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
