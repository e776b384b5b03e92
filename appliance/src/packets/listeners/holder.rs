//! The process that holds a port which is in use, named for the operator.
//!
//! It is named as far as it can be seen. Without the right to look into other processes, as under
//! the unit, the name is that of the socket's user (`proc_pid_fd(5)`, `proc_net_tcp`): services
//! that answer DNS have users of their own.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
};

/// A socket on the port.
#[derive(Debug, PartialEq, Eq)]
struct Holding {
    inode: String,
    user: String,
}

/// Returns the programs, other than this one, whose sockets prevent binding this address: UDP
/// sockets, and TCP sockets that listen.
pub(crate) fn of(at: SocketAddr) -> Vec<String> {
    let tables = ["udp", "udp6", "tcp", "tcp6"].map(|table| format!("/proc/net/{table}"));
    let sockets: Vec<Holding> =
        tables.iter().flat_map(|table| holdings(Path::new(table), at)).collect();
    let mut holders = processes(&sockets);
    if holders.is_empty() {
        let own = rustix::process::geteuid().as_raw().to_string();
        let others = sockets.into_iter().map(|socket| socket.user).filter(|user| *user != own);
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let named =
            others.map(|user| user_name(&passwd, &user).map_or(user.clone(), str::to_owned));
        holders = named.map(|user| format!("a program of the user {user}")).collect();
    }
    holders.sort();
    holders.dedup();
    holders
}

/// Returns the name of the user with this number (`passwd(5)`).
fn user_name<'a>(passwd: &'a str, number: &str) -> Option<&'a str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then_some(name)
    })
}

fn holdings(table: &Path, at: SocketAddr) -> Vec<Holding> {
    let Ok(file) = File::open(table) else { return Vec::new() };
    let lines = BufReader::new(file).lines().skip(1).map_while(Result::ok);
    lines.filter_map(|line| holding(&line, at)).collect()
}

/// Reads a line. Local address and port, state, user and inode are the second, fourth, eighth and
/// tenth field. A socket at an address of its own prevents no other address.
fn holding(line: &str, at: SocketAddr) -> Option<Holding> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, _, state, _, _, _, user, _, inode, ..] = fields[..] else { return None };
    let (address, port) = local.rsplit_once(':')?;
    let anywhere = at.ip().is_unspecified() || address.bytes().all(|digit| digit == b'0');
    let same = u16::from_str_radix(port, 16).is_ok_and(|port| port == at.port());
    let open = matches!(state, LISTENING | UNCONNECTED);
    (same && anywhere && open).then(|| Holding { inode: inode.into(), user: user.into() })
}

/// Returns `NAME (process NUMBER)` of each process that has one of the sockets.
fn processes(sockets: &[Holding]) -> Vec<String> {
    let links: Vec<String> =
        sockets.iter().map(|socket| format!("socket:[{}]", socket.inode)).collect();
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id();
    let numbers = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let holders = numbers.filter(|number: &u32| *number != own && has_any(*number, &links));
    holders.map(|number| format!("{} (process {number})", name(number))).collect()
}

fn has_any(process: u32, links: &[String]) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    let targets = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    targets
        .filter_map(|target| target.into_os_string().into_string().ok())
        .any(|target| links.contains(&target))
}

fn name(process: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{process}/comm"));
    name.map_or_else(|_| "a program".to_owned(), |name| name.trim_end().to_owned())
}

/// `TCP_LISTEN`, and `TCP_CLOSE` for a datagram socket that is not connected, in hexadecimal.
const LISTENING: &str = "0A";
const UNCONNECTED: &str = "07";

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_ports_socket_is_found_in_the_kernels_tables() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("[::]:0").unwrap();
        let user = rustix::process::geteuid().as_raw().to_string();
        let user = &user;
        for (table, port, everywhere) in [
            ("/proc/net/udp", udp.local_addr().unwrap().port(), false),
            ("/proc/net/tcp6", tcp.local_addr().unwrap().port(), true),
        ] {
            let at = |address: [u8; 4]| SocketAddr::from((address, port));
            let found = holdings(Path::new(table), at([0; 4]));
            assert!(matches!(&found[..], [only] if only.user == *user), "{table}: {found:?}");
            let beside = holdings(Path::new(table), at([192, 0, 2, 1]));
            assert_eq!(!beside.is_empty(), everywhere, "{table}: {beside:?}");
            assert!(of(at([0; 4])).is_empty(), "this process is nobody else");
        }
    }

    #[test]
    fn a_users_number_has_the_machines_name_for_it() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nsystemd-resolve:x:996:996::/:/usr/sbin/nologin\n";
        assert_eq!(user_name(passwd, "996"), Some("systemd-resolve"));
        assert_eq!(user_name(passwd, "99"), None);
    }
}
