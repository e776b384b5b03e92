//! The three gateways, each with one worker on one CPU of its own.
//!
//! HAProxy and nginx have a namespace of their own beside Cloakroom's, with the same hops to both
//! sides. They listen on addresses instead of capturing packets, so only Cloakroom pays the cost of
//! transparency. They write no access log, while Cloakroom writes its audit.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use lab::{
    Lab,
    gateway::{BEARER, Gateway as Daemon, OPENAI_SECRET, PUBLIC_CA, usual_config},
    net::{AGENT, CDN, GATEWAY, INTERNET, OPENAI, sysctl},
    wait,
};
use policy_builder::{Config, api, binding, group, splice};

use crate::{dns::Server, measure::Meter};

/// The addresses of one gateway for each kind of work.
#[derive(Clone, Copy)]
pub struct Gateway {
    /// The meter of its cost; nothing for the way without any gateway.
    pub meter: Option<Meter>,
    /// HTTP/1.1, with connections to the upstream that are kept and, if it can, shared.
    pub h1: SocketAddr,
    /// HTTP/1.1, with an upstream connection for each agent's connection.
    pub own: SocketAddr,
    /// HTTP/2.
    pub h2: SocketAddr,
    /// Connections that are spliced by server name.
    pub splice: SocketAddr,
}

/// All gateways.
pub struct Gateways {
    /// The program under test.
    pub cloakroom: Gateway,
    /// HAProxy.
    pub haproxy: Gateway,
    /// nginx.
    pub nginx: Gateway,
    /// One more hop, and no gateway.
    pub direct: Gateway,
    daemon: Daemon,
    rivals: [Child; 2],
}

impl Gateways {
    /// Starts all of them. `lab` has its origins and names already.
    pub fn start(lab: &Lab, cpu: usize) -> Self {
        let daemon = Daemon::start(lab, &config());
        lab.write("haproxy.cfg", haproxy(&lab.dir));
        lab.write("nginx.conf", nginx(&lab.dir));
        let rivals = [
            rival(lab, "haproxy", &["-db", "-f", "/run/lab/haproxy.cfg"]),
            rival(lab, "nginx", &["-c", "/run/lab/nginx.conf"]),
        ];
        for (name, port) in [("haproxy", HAPROXY), ("nginx", NGINX)] {
            let ready = || AGENT.enter(|| TcpStream::connect(at(RIVALS, port))).is_ok();
            assert!(
                wait::until(wait::SOON, || ready().then_some(())).is_some(),
                "{name} did not start: {}",
                fs::read_to_string(lab.dir.join(name).with_extension("log")).unwrap_or_default()
            );
        }
        let cloakroom = Meter::new(daemon.pid());
        let gateways = Self {
            cloakroom: Gateway {
                meter: Some(cloakroom),
                h1: OPENAI.port(443),
                own: OPENAI.port(443),
                h2: OPENAI.port(443),
                splice: CDN.port(443),
            },
            haproxy: Gateway {
                meter: Some(Meter::new(rivals[0].id())),
                h1: at(RIVALS, HAPROXY),
                own: at(RIVALS, HAPROXY + 1),
                h2: at(RIVALS, HAPROXY + 2),
                splice: at(RIVALS, HAPROXY + 3),
            },
            nginx: Gateway {
                meter: Some(Meter::new(rivals[1].id())),
                h1: at(RIVALS, NGINX),
                own: at(RIVALS, NGINX + 1),
                h2: at(RIVALS, NGINX),
                splice: at(RIVALS, NGINX + 3),
            },
            direct: Gateway {
                meter: None,
                h1: at(DIRECT, 443),
                own: at(DIRECT, 443),
                h2: at(DIRECT, 443),
                splice: at(DIRECT, 444),
            },
            daemon,
            rivals,
        };
        for gateway in [&gateways.cloakroom, &gateways.haproxy, &gateways.nginx] {
            gateway.meter.into_iter().for_each(|meter| meter.pin(cpu));
        }
        gateways
    }

    /// Returns the agents' resolver and a rival, which has to be ended.
    ///
    /// # Panics
    /// When dnsmasq does not start; `benches/prerequisites` installs it.
    pub fn resolvers(&self, lab: &Lab, cpu: usize) -> (Child, [Server; 2]) {
        let rival = rival(lab, "dnsmasq", &DNSMASQ);
        let meter = Meter::new(rival.id());
        let ready = || AGENT.enter(|| TcpStream::connect(at(RIVALS, 53))).is_ok();
        wait::expect("dnsmasq listens", ready);
        meter.pin(cpu);
        let cloakroom = self.cloakroom.meter.expect("it is a process");
        let servers = [
            Server { name: "Cloakroom", address: at(ANYWHERE, 53), meter: cloakroom },
            Server { name: "dnsmasq", address: at(RIVALS, 53), meter },
        ];
        (rival, servers)
    }

    /// Empties the audit, which is in memory here.
    pub fn forget_audit(&self, lab: &Lab) {
        let file = fs::OpenOptions::new().write(true).open(lab.dir.join("audit.jsonl"));
        file.and_then(|file| file.set_len(0)).expect("the audit can be cut");
    }

    /// Ends all of them.
    pub fn stop(mut self) {
        self.daemon.kill();
        for rival in &mut self.rivals {
            // nginx ends its worker only when it is asked to end itself.
            lab::tools::signal(rival, rustix::process::Signal::TERM);
            rival.wait().expect("a rival ends");
        }
    }
}

/// Makes the rivals' namespace, before anything listens in it.
pub fn network() {
    for line in LINKS.lines().filter(|line| !line.is_empty()) {
        run("ip", &line.split_whitespace().collect::<Vec<_>>());
    }
    // Closed connections must not use up the ports of those that follow.
    for ns in [AGENT, GATEWAY, INTERNET] {
        ns.enter(ports);
    }
    let line = "sysctl -q net.ipv4.tcp_tw_reuse=1 net.ipv4.ip_forward=1 \
        net.ipv4.ip_local_port_range='10000 65000'";
    run("ip", &["netns", "exec", "rivals", "sh", "-c", line]);
}

/// Returns the addresses of client and server without a gateway.
pub fn direct() -> (SocketAddr, SocketAddr) {
    (at(DIRECT, 443), at(DIRECT, 444))
}

fn ports() {
    sysctl("ipv4/tcp_tw_reuse", "1");
    sysctl("ipv4/ip_local_port_range", "10000 65000");
}

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().expect("it starts");
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

fn rival(lab: &Lab, program: &str, arguments: &[&str]) -> Child {
    let identity = lab.public.issue(OPENAI.name);
    lab.write("rival.pem", [identity.certificate_pem(), &identity.key_pem()].concat());
    let log = fs::File::create(lab.dir.join(program).with_extension("log")).expect("a log");
    Command::new("ip")
        .args(["netns", "exec", "rivals", program])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("ip starts")
}

fn haproxy(dir: &Path) -> String {
    HAPROXY_CONFIG
        .replace("{dir}", &dir.display().to_string())
        .replace("{secret}", OPENAI_SECRET)
        .replace("{api}", &OPENAI.port(443).to_string())
        .replace("{cdn}", &CDN.port(443).to_string())
}

fn nginx(dir: &Path) -> String {
    NGINX_CONFIG
        .replace("{dir}", &dir.display().to_string())
        .replace("{secret}", OPENAI_SECRET)
        .replace("{api}", &OPENAI.port(443).to_string())
        .replace("{cdn}", &CDN.port(443).to_string())
}

// Parts of a documentation network (RFC 5737) that the lab does not use: agent and rivals, rivals and internet.
const RIVALS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 65);
const DIRECT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 81);
/// An address without a resolver: the gateway answers in its place.
const ANYWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 99);
const HAPROXY: u16 = 9440;
const NGINX: u16 = 8440;

const LINKS: &str = "
netns add rivals
link add rivals0 netns rivals type veth peer name rivals0 netns agent
link add wan0 netns rivals type veth peer name rivals0 netns internet
-n rivals link set lo up
-n rivals addr add 203.0.113.65/28 dev rivals0
-n rivals addr add 203.0.113.82/28 dev wan0
-n rivals link set rivals0 up
-n rivals link set wan0 up
-n rivals route add 198.51.100.0/24 via 203.0.113.81
-n rivals route add 203.0.113.53/32 via 203.0.113.81
-n agent addr add 203.0.113.66/28 dev rivals0
-n agent link set rivals0 up
-n agent route add 203.0.113.80/28 via 203.0.113.65
-n internet addr add 203.0.113.81/28 dev rivals0
-n internet link set rivals0 up
-n internet route add 203.0.113.64/28 via 203.0.113.82
";

/// The names of [`CONFIG`], and no others.
const DNSMASQ: [&str; 13] = [
    "--keep-in-foreground",
    "--conf-file=/dev/null",
    "--pid-file",
    "--user=root",
    "--no-resolv",
    "--no-hosts",
    "--bind-interfaces",
    "--listen-address=203.0.113.65",
    "--cache-size=4096",
    "--local=/example/",
    "--server=/api.openai.example/203.0.113.53",
    "--server=/cdn.example/203.0.113.53",
    "--log-facility=-",
];

/// Returns a configuration of one group, one API and one rule of names that are spliced, with
/// limits that are not reached.
fn config() -> Config {
    let openai = api("openai", &[OPENAI.name])
        .set("methods", ["GET", "POST"])
        .set("paths", ["/v1/*"])
        .set("upstream_ca", PUBLIC_CA)
        .with(binding("research", "OPENAI_API_KEY", &[BEARER], "file:openai"));
    usual_config()
        .without("group")
        .without("api")
        .without("splice")
        .gateway("workers", 1)
        .limit("connections", 16_384)
        .limit("agent_connections", 8192)
        .limit("agent_new_connections", 1_000_000)
        .limit("agent_new_requests", 1_000_000)
        .limit("agent_requests", 8192)
        .limit("agent_buffers", "256MiB")
        .limit("dns_rate", 100_000)
        .with(group("research", "agents0", &["192.0.2.0/25", "2001:db8:a::/64"]))
        .with(openai)
        .with(splice("cdn", &["research"], &["*.cdn.example"]).set("ports", [443]))
}

const HAPROXY_CONFIG: &str = "
global
    nbthread 1
    maxconn 5000
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode http
    maxconn 5000
    timeout connect 10s
    timeout client 15m
    timeout server 15m
    http-reuse always
    retries 0
frontend shared
    bind 203.0.113.65:9440 ssl crt {dir}/rival.pem alpn http/1.1
    http-request set-header Authorization \"Bearer {secret}\"
    default_backend shared
backend shared
    server origin {api} ssl verify required ca-file {dir}/public-ca.pem \
sni str(api.openai.example) alpn http/1.1
frontend own
    bind 203.0.113.65:9441 ssl crt {dir}/rival.pem alpn http/1.1
    http-request set-header Authorization \"Bearer {secret}\"
    default_backend own
backend own
    http-reuse never
    server origin {api} ssl verify required ca-file {dir}/public-ca.pem \
sni str(api.openai.example) alpn http/1.1
frontend h2
    bind 203.0.113.65:9442 ssl crt {dir}/rival.pem alpn h2
    http-request set-header Authorization \"Bearer {secret}\"
    default_backend h2
backend h2
    server origin {api} ssl verify required ca-file {dir}/public-ca.pem \
sni str(api.openai.example) alpn h2
frontend splice
    mode tcp
    bind 203.0.113.65:9443
    option splice-auto
    option splice-request
    option splice-response
    tcp-request inspect-delay 5s
    tcp-request content accept if { req.ssl_sni -i -m end .cdn.example }
    tcp-request content reject
    default_backend splice
backend splice
    mode tcp
    option splice-auto
    option splice-request
    option splice-response
    server cdn {cdn}
";

const NGINX_CONFIG: &str = "
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
user root;
daemon off;
pid {dir}/nginx.pid;
error_log stderr warn;
worker_processes 1;

events { worker_connections 10000; }
http {
    access_log off;
    client_body_temp_path {dir}/nginx-body;
    proxy_temp_path {dir}/nginx-proxy;
    fastcgi_temp_path {dir}/nginx-fastcgi;
    uwsgi_temp_path {dir}/nginx-uwsgi;
    scgi_temp_path {dir}/nginx-scgi;
    ssl_certificate {dir}/rival.pem;
    ssl_certificate_key {dir}/rival.pem;
    ssl_protocols TLSv1.2 TLSv1.3;
    keepalive_requests 1000000000;
    keepalive_timeout 900;
    upstream shared {
        server {api};
        keepalive 2048;
        keepalive_requests 1000000000;
        keepalive_timeout 900;
    }
    proxy_http_version 1.1;
    proxy_set_header Host api.openai.example;
    proxy_set_header Authorization \"Bearer {secret}\";
    proxy_ssl_server_name on;
    proxy_ssl_name api.openai.example;
    proxy_ssl_protocols TLSv1.2 TLSv1.3;
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate {dir}/public-ca.pem;
    server {
        listen 203.0.113.65:8440 ssl http2;
        location / { proxy_set_header Connection \"\"; proxy_pass https://shared; \
proxy_set_header Host api.openai.example; proxy_set_header Authorization \"Bearer {secret}\"; }
    }
    server {
        listen 203.0.113.65:8441 ssl;
        location / { proxy_pass https://{api}; }
    }
}
stream {
    map $ssl_preread_server_name $cdn { ~\\.cdn\\.example$ {cdn}; }
    server {
        listen 203.0.113.65:8443;
        ssl_preread on;
        proxy_pass $cdn;
        proxy_timeout 15m;
    }
}
";
