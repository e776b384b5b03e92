//! Namespaces, links, addresses and names.
//!
//! They are made by `ip`, within the sandbox's own `/run/netns`. The gateway forwards, and
//! everybody has the routes to get past it, in IPv4 and in IPv6.

use std::{
    fmt::Write as _,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

pub use crate::capture::Capture;
use crate::{pki::Authority, sandbox};

/// A network namespace of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ns(&'static str);

/// The agent of the first group, behind the gateway's `agents0`.
pub const AGENT: Ns = Ns("agent");
/// The agent of the second group, behind the gateway's `agents1`.
pub const AGENT2: Ns = Ns("agent2");
/// The gateway: `agents0`, `agents1` and `wan0`.
pub const GATEWAY: Ns = Ns("gateway");
/// All hosts outside: origins, DNS, Vault, the attacker.
pub const INTERNET: Ns = Ns("internet");

/// A host on the internet and its two addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: &'static str,
    last: u8,
}

impl Host {
    const fn new(name: &'static str, last: u8) -> Self {
        Self { name, last }
    }

    /// Returns its IPv4 address.
    pub const fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, self.last)
    }

    /// Returns its IPv6 address, whose last two digits look like those of the IPv4 address.
    pub const fn v6(self) -> Ipv6Addr {
        let last = (self.last / 10 * 16 + self.last % 10) as u16;
        Ipv6Addr::new(0x2001, 0xdb8, 0xe, 0, 0, 0, 0, last)
    }

    /// Returns its IPv4 address with this port.
    pub fn port(self, port: u16) -> SocketAddr {
        SocketAddr::from((self.v4(), port))
    }

    /// Returns its IPv6 address with this port.
    pub fn port6(self, port: u16) -> SocketAddr {
        SocketAddr::from((self.v6(), port))
    }
}

/// An API whose key goes into `Authorization: Bearer`.
pub const OPENAI: Host = Host::new("api.openai.example", 10);
/// An API whose key goes into `X-Api-Key`.
pub const ANTHROPIC: Host = Host::new("api.anthropic.example", 11);
/// A git server that asks for Basic.
pub const GIT: Host = Host::new("git.example", 12);
/// A database with an HTTP API, on another port than the rest: [`crate::influx`].
pub const INFLUX: Host = Host::new("influx.example", 13);
/// A host that no policy of the lab mentions.
pub const OTHER: Host = Host::new("other.example", 20);
/// A host whose connections are spliced.
pub const PYPI: Host = Host::new("pypi.example", 30);
/// A host that is spliced by a suffix.
pub const CDN: Host = Host::new("files.cdn.example", 31);
/// The attacker's own server, with a valid certificate.
pub const ATTACKER: Host = Host::new("attacker.example", 66);
/// All hosts.
pub const HOSTS: [Host; 8] = [OPENAI, ANTHROPIC, GIT, INFLUX, OTHER, PYPI, CDN, ATTACKER];

/// The resolver that the gateway asks.
pub const DNS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 53);
/// The address on which Vault listens.
pub const VAULT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 200);
/// The gateway's address towards the first group.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The same in IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 1);
/// The first agent's address.
pub const AGENT_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The same in IPv6.
pub const AGENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0x10);

/// The network of one test.
pub struct Lab {
    /// The folder of this test's files; it is in memory and gone with the sandbox.
    pub dir: PathBuf,
    /// The public CA that everybody trusts, agents and gateway alike.
    pub public: Authority,
}

impl Lab {
    /// Makes the namespaces, links, addresses, routes and names. Takes about 0.1 s.
    ///
    /// # Panics
    /// Outside of [`crate::sandboxed`], and when `ip` fails.
    pub fn new() -> Self {
        assert!(sandbox::inside(), "call lab::sandboxed(|| ...) around the test");
        // A second call does no harm: one process may make several objects that need it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        ip("", &["netns add agent", "netns add agent2", "netns add gateway", "netns add internet"]);
        for ns in [AGENT, AGENT2, GATEWAY, INTERNET] {
            ns.enter(|| sysctls(ns));
        }
        links();
        let lab = Self { dir: PathBuf::from(DIR), public: Authority::new("Lab public root") };
        fs::write(lab.dir.join("resolv.conf"), "").expect("the lab's folder is writable");
        lab.write("public-ca.pem", lab.public.pem());
        lab.names(&HOSTS.map(|host| (host.name, vec![host.v4().into(), host.v6().into()])));
        lab
    }

    /// Writes a file with mode 0600 into the lab's folder and returns its path.
    ///
    /// # Panics
    /// When it cannot.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.dir.join(name);
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&path).expect("the lab's folder is writable");
        io::Write::write_all(&mut file, content.as_ref()).expect("the lab's folder is writable");
        path
    }

    /// Returns the public CA's certificate as a file.
    pub fn public_ca(&self) -> PathBuf {
        self.dir.join("public-ca.pem")
    }

    /// Sets the names that agents resolve by themselves: their `/etc/hosts`. One line makes a lying
    /// agent.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn names(&self, names: &[(&str, Vec<IpAddr>)]) {
        let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost\n");
        for (name, addresses) in names {
            for address in addresses {
                writeln!(hosts, "{address} {name}").expect("a string grows");
            }
        }
        // Written in place, because running agents have this very file mounted.
        fs::write(self.dir.join("hosts"), hosts).expect("the lab's folder is writable");
    }

    /// Records every packet that `ns` sends or receives.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn capture(&self, ns: Ns) -> Capture {
        Capture::start(ns)
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Ns {
    /// Runs `body` on a thread inside this namespace; sockets that it returns stay inside.
    ///
    /// # Panics
    /// When `body` does.
    pub fn enter<T: Send>(self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                self.move_here();
                body()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `main` to its end on a thread with its own runtime inside this namespace. The sandbox
    /// ends it with everything else.
    pub fn spawn<F: Future<Output = ()>>(self, main: impl FnOnce() -> F + Send + 'static) {
        thread::spawn(move || {
            self.move_here();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime starts");
            runtime.block_on(main());
        });
    }

    /// Opens a TCP connection from inside this namespace, with a timeout of two seconds; reads and
    /// writes on it time out after ten. No earlier connection had its port: the audit names an
    /// agent by address and port, and the kernel gives one port to connections of two targets.
    ///
    /// # Errors
    /// Those of `bind` and `connect`.
    pub fn connect(self, to: SocketAddr) -> io::Result<TcpStream> {
        let any =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.enter(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            bind_to_a_fresh_port(&socket, any)?;
            socket.connect_timeout(&to.into(), TIMEOUT)?;
            patient(socket.into())
        })
    }

    /// Does the same as [`Ns::connect`] from this address, which must be one of the namespace's own
    /// and of the same family.
    ///
    /// # Errors
    /// Those of `bind` and `connect`.
    pub fn connect_from(self, from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
        self.enter(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(from, 0).into())?;
            socket.connect_timeout(&to.into(), TIMEOUT)?;
            patient(socket.into())
        })
    }

    /// Returns a command that will run inside this namespace, with the lab's `/etc/hosts`, no
    /// resolver, and an environment of only `PATH`, `HOME` and `LANG`.
    pub fn command(self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", self.0, "sh", "-c", WITH_NAMES])
            .arg(program.as_ref())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", format!("{DIR}/home"))
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    /// Runs a shell line inside this namespace and returns its output.
    ///
    /// # Panics
    /// When it fails.
    pub fn shell(self, line: &str) -> String {
        let output = self.command("sh").args(["-c", line]).output().expect("sh starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn move_here(self) {
        let path = format!("/run/netns/{}", self.0);
        let file = fs::File::open(&path).expect("the namespace is there");
        move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&file),
            Some(LinkNameSpaceType::Network),
        )
        .expect("the sandbox may enter its own namespaces");
    }
}

fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn links() {
    ip(
        "",
        &[
            "link add agents0 netns gateway type veth peer name eth0 netns agent",
            "link add agents1 netns gateway type veth peer name eth0 netns agent2",
            "link add wan0 netns gateway type veth peer name wan0 netns internet",
        ],
    );
    ip(
        "gateway",
        &[
            "link set lo up",
            "addr add 192.0.2.1/25 dev agents0",
            "addr add 2001:db8:a::1/64 dev agents0 nodad",
            "addr add 192.0.2.129/25 dev agents1",
            "addr add 2001:db8:b::1/64 dev agents1 nodad",
            "addr add 203.0.113.2/24 dev wan0",
            "addr add 2001:db8:f::2/64 dev wan0 nodad",
            "link set agents0 up",
            "link set agents1 up",
            "link set wan0 up",
            "route add default via 203.0.113.1",
            "route add ::/0 via 2001:db8:f::1",
        ],
    );
    agent("agent", "192.0.2.10/25", "192.0.2.1", "2001:db8:a::10/64", "2001:db8:a::1");
    // A resolver that seems to be on the agent's own link, but is not: its packets go through the
    // gateway, as root on an agent can arrange.
    ip("agent", &["route add 192.0.2.53 via 192.0.2.1"]);
    agent("agent2", "192.0.2.140/25", "192.0.2.129", "2001:db8:b::10/64", "2001:db8:b::1");
    internet();
}

fn agent(ns: &str, v4: &str, via4: &str, v6: &str, via6: &str) {
    ip(
        ns,
        &[
            "link set lo up",
            &format!("addr add {v4} dev eth0"),
            &format!("addr add {v6} dev eth0 nodad"),
            "link set eth0 up",
            &format!("route add default via {via4}"),
            &format!("route add ::/0 via {via6}"),
        ],
    );
}

fn internet() {
    let mut lines: Vec<String> = [
        "link set lo up",
        "addr add 203.0.113.1/24 dev wan0",
        "addr add 203.0.113.53/24 dev wan0",
        "addr add 203.0.113.200/24 dev wan0",
        "addr add 2001:db8:f::1/64 dev wan0 nodad",
        "addr add 2001:db8:f::53/64 dev wan0 nodad",
        "link set wan0 up",
        // Routes to agents that got past the gateway: a leak must be able to succeed.
        "route add 192.0.2.0/24 via 203.0.113.2",
        "route add 2001:db8:a::/64 via 2001:db8:f::2",
        "route add 2001:db8:b::/64 via 2001:db8:f::2",
    ]
    .map(str::to_owned)
    .to_vec();
    for host in HOSTS {
        lines.push(format!("addr add {}/32 dev lo", host.v4()));
        lines.push(format!("addr add {}/128 dev lo nodad", host.v6()));
    }
    ip("internet", &lines.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Runs `ip` once for all `lines`, inside the namespace `ns` unless that is empty.
fn ip(ns: &str, lines: &[&str]) {
    let mut command = Command::new("ip");
    if !ns.is_empty() {
        command.args(["-n", ns]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ip starts; tests/prerequisites installs iproute2");
    let mut stdin = child.stdin.take().expect("it was piped");
    io::Write::write_all(&mut stdin, lines.join("\n").as_bytes()).expect("ip reads");
    drop(stdin);
    let output = child.wait_with_output().expect("ip ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip in {ns:?}: {stderr}");
}

fn sysctls(ns: Ns) {
    for (name, value) in EVERYWHERE {
        sysctl(name, value);
    }
    if ns == GATEWAY {
        for (name, value) in ON_THE_GATEWAY {
            sysctl(name, value);
        }
    }
}

/// Sets one kernel setting of the calling thread's network namespace.
///
/// # Panics
/// When the kernel refuses.
pub fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{name}"), value)
        .unwrap_or_else(|error| panic!("sysctl {name} = {value}: {error}"));
}

/// Binds to the next port that no socket of this test had before.
fn bind_to_a_fresh_port(socket: &Socket, address: IpAddr) -> io::Result<()> {
    loop {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        assert!(port < EPHEMERAL, "a test opens at most {} connections so", EPHEMERAL - FIRST_PORT);
        match socket.bind(&SocketAddr::new(address, port).into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
}

/// The ports of [`Ns::connect`] lie below those that the kernel gives out.
const FIRST_PORT: u16 = 12_000;
const EPHEMERAL: u16 = 32_768;
static NEXT_PORT: AtomicU16 = AtomicU16::new(FIRST_PORT);

/// Longest time for a connection to be established.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A folder inside the sandbox's own `/run`.
const DIR: &str = "/run/lab";

/// `ip netns exec` gives the command a mount namespace of its own, so no other process sees this.
const WITH_NAMES: &str = "mount --bind /run/lab/hosts /etc/hosts && \
    mount --bind /run/lab/resolv.conf /etc/resolv.conf && exec \"$0\" \"$@\"";

const EVERYWHERE: [(&str, &str); 3] = [
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
];

/// The settings of the router image, and forwarding, which the image turns off: a hole must show.
const ON_THE_GATEWAY: [(&str, &str); 20] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv4/conf/default/accept_source_route", "0"),
    ("ipv4/conf/all/route_localnet", "0"),
    ("ipv4/conf/default/route_localnet", "0"),
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/all/arp_announce", "2"),
    ("ipv4/icmp_ratemask", "6160"),
    ("ipv6/icmp/ratemask", "0,3-127"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/all/accept_source_route", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
];
