//! Who has a port that is in use: for the operator who has to do something about it.
//!
//! It is told as far as it can be seen. Without the right to look into the processes of others it is
//! the user whose socket it is (`proc_pid_fd(5)`, `proc_net_tcp`).

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
};

/// A socket on the port.
#[derive(Debug, PartialEq, Eq)]
struct Holding {
    inode: String,
    user: String,
}

/// The programs that have a socket on the port, over UDP or listening over TCP, other than this one.
pub(crate) fn of(port: u16) -> Vec<String> {
    let tables = ["udp", "udp6", "tcp", "tcp6"].map(|table| format!("/proc/net/{table}"));
    let sockets: Vec<Holding> =
        tables.iter().flat_map(|table| holdings(Path::new(table), port)).collect();
    let mut holders = processes(&sockets);
    if holders.is_empty() {
        let own = rustix::process::geteuid().as_raw().to_string();
        let others = sockets.into_iter().map(|socket| socket.user).filter(|user| *user != own);
        holders = others.map(|user| format!("a program of the user {user}")).collect();
    }
    holders.sort();
    holders.dedup();
    holders
}

fn holdings(table: &Path, port: u16) -> Vec<Holding> {
    let Ok(file) = File::open(table) else { return Vec::new() };
    let lines = BufReader::new(file).lines().skip(1).map_while(Result::ok);
    lines.filter_map(|line| holding(&line, port)).collect()
}

/// Local address and port, state, user and inode are the second, fourth, eighth and tenth field.
fn holding(line: &str, port: u16) -> Option<Holding> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, local, _, state, _, _, _, user, _, inode, ..] = fields[..] else { return None };
    let at = local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok())?;
    let open = matches!(state, LISTENING | UNCONNECTED);
    (at == port && open).then(|| Holding { inode: inode.into(), user: user.into() })
}

/// `NAME (process NUMBER)` of each process that has one of the sockets.
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

/// `TCP_LISTEN`, and `TCP_CLOSE` for a datagram socket that is connected to nobody, in hexadecimal.
const LISTENING: &str = "0A";
const UNCONNECTED: &str = "07";

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn a_socket_on_the_port_is_found_in_the_kernels_tables() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("[::1]:0").unwrap();
        let user = rustix::process::geteuid().as_raw().to_string();
        for (table, port) in [
            ("/proc/net/udp", udp.local_addr().unwrap().port()),
            ("/proc/net/tcp6", tcp.local_addr().unwrap().port()),
        ] {
            let found = holdings(Path::new(table), port);
            assert!(matches!(&found[..], [only] if only.user == user), "{table}: {found:?}");
            assert!(of(port).is_empty(), "this process is nobody else");
        }
    }
}
