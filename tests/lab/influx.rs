//! A real InfluxDB 1.x on the lab's internet, with HTTPS and users: an API whose credentials Vault
//! can lease, and that answers 401 by itself once a lease has ended.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Output, Stdio},
};

use crate::{
    net::{INFLUX, INTERNET, Lab},
    tools,
    vault::Vault,
    wait,
};

/// A running InfluxDB. It ends with the sandbox.
pub struct Influx {
    dir: PathBuf,
    _process: Child,
}

impl Influx {
    /// The port on which it listens.
    pub const PORT: u16 = 8086;
    /// The password of its administrator, `root`.
    pub const ROOT: &'static str = "lab-influx-root-7d1c";

    /// Starts one with an administrator, the database `lab` and one point in it.
    ///
    /// # Panics
    /// When there is none, or it does not do as it is told.
    pub fn start(lab: &Lab) -> Self {
        let dir = lab.dir.join("influx");
        fs::create_dir_all(&dir).expect("the lab's folder is writable");
        let identity = lab.public.issue(INFLUX.name);
        lab.write("influx/cert.pem", identity.certificate_pem());
        lab.write("influx/key.pem", identity.key_pem());
        let config = CONFIG.replace("{dir}", &dir.display().to_string());
        let config = lab.write("influx/config.toml", config);
        let process = INTERNET
            .command(program())
            .arg("-config")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("influxd starts");
        let influx = Self { dir: lab.dir.clone(), _process: process };
        wait::expect("InfluxDB listens", || INTERNET.connect(INFLUX.port(Self::PORT)).is_ok());
        // While there is no user, this one statement needs no login.
        influx
            .told(&format!("CREATE USER root WITH PASSWORD '{}' WITH ALL PRIVILEGES", Self::ROOT));
        influx.told("CREATE DATABASE lab");
        influx
    }

    /// Lets Vault lease its users: `database/creds/influx`, for `ttl`, renewable up to `max_ttl`.
    pub fn leased_by(&self, vault: &Vault, ttl: &str, max_ttl: &str) {
        self.administered_by(vault);
        vault.cli(&[
            "write",
            "database/roles/influx",
            "db_name=influx",
            r#"creation_statements=CREATE USER "{{username}}" WITH PASSWORD '{{password}}'; GRANT ALL ON "lab" TO "{{username}}";"#,
            &format!("default_ttl={ttl}"),
            &format!("max_ttl={max_ttl}"),
        ]);
    }

    /// Makes Vault replace the password of the user `agents-application` each `period`:
    /// `database/static-creds/influx`.
    pub fn rotated_by(&self, vault: &Vault, period: &str) {
        self.told("CREATE USER \"agents-application\" WITH PASSWORD 'until-vault-rotates-it' WITH ALL PRIVILEGES");
        self.administered_by(vault);
        vault.cli(&[
            "write",
            "database/static-roles/influx",
            "db_name=influx",
            "username=agents-application",
            r#"rotation_statements=SET PASSWORD FOR "{{username}}" = '{{password}}';"#,
            &format!("rotation_period={period}"),
        ]);
    }

    fn administered_by(&self, vault: &Vault) {
        vault.enable_databases();
        vault.cli(&[
            "write",
            "database/config/influx",
            "plugin_name=influxdb-database-plugin",
            "allowed_roles=*",
            &format!("host={}", INFLUX.name),
            &format!("port={}", Self::PORT),
            "username=root",
            &format!("password={}", Self::ROOT),
            "tls=true",
        ]);
    }

    /// Returns the status of its answer to these credentials, without the gateway.
    pub fn status(&self, user: &str, password: &str) -> String {
        let output = self.curl(user, password, "SHOW MEASUREMENTS");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Returns the names of its users.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn users(&self) -> String {
        self.told("SHOW USERS")
    }

    fn told(&self, query: &str) -> String {
        let url = format!("https://{}:{}/query", INFLUX.name, Self::PORT);
        let output = INTERNET
            .command("curl")
            .args(["-sS", "--fail", "--cacert"])
            .arg(self.dir.join("public-ca.pem"))
            .args(["-u", &format!("root:{}", Self::ROOT), "--data-urlencode"])
            .args([&format!("q={query}"), &url])
            .output()
            .expect("curl starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{query}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn curl(&self, user: &str, password: &str, query: &str) -> Output {
        let url = format!("https://{}:{}/query?db=lab", INFLUX.name, Self::PORT);
        INTERNET
            .command("curl")
            .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"])
            .arg(self.dir.join("public-ca.pem"))
            .args(["-u", &format!("{user}:{password}"), "--data-urlencode"])
            .args([&format!("q={query}"), &url])
            .output()
            .expect("curl starts")
    }
}

/// Returns `influxd` on `PATH`, or the one that `tests/influxdb/get` put into the cache.
fn program() -> PathBuf {
    let cached = tools::cache().join("influxdb/usr/bin/influxd");
    let found = if cached.is_file() { Some(cached) } else { tools::on_path(&["influxd"]) };
    found.expect("no influxd on PATH nor in the cache: run tests/influxdb/get")
}

const CONFIG: &str = r#"
reporting-disabled = true
bind-address = "127.0.0.1:8088"
[meta]
dir = "{dir}/meta"
[data]
dir = "{dir}/data"
wal-dir = "{dir}/wal"
query-log-enabled = false
[monitor]
store-enabled = false
[http]
bind-address = "198.51.100.13:8086"
auth-enabled = true
https-enabled = true
https-certificate = "{dir}/cert.pem"
https-private-key = "{dir}/key.pem"
log-enabled = false
"#;
