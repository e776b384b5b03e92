//! The kernel's resources after flows have ended in every way.

use std::process::Command;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{LONG, Rig, SHORT, bounds};

/// Descriptors are counted for the whole process, so the test runs in a process of its own.
#[test]
fn no_descriptor_and_no_half_closed_socket_is_left() {
    let status = Command::new(std::env::current_exe().expect("a path"))
        .args([
            "--exact",
            "--ignored",
            "splice::tests::descriptors::counted_in_a_process_of_its_own",
        ])
        .output()
        .expect("run");
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
    assert!(String::from_utf8_lossy(&status.stdout).contains("1 passed"));
}

#[test]
#[ignore = "run by no_descriptor_and_no_half_closed_socket_is_left"]
fn counted_in_a_process_of_its_own() {
    let count = || std::fs::read_dir("/proc/self/fd").expect("proc").count();
    let runtime = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime")
    };
    drop(runtime()); // the first one of a process makes tokio's signal sockets, which stay
    let before = count();
    // The pool of pipes belongs to the thread and ends with it.
    let worker = std::thread::spawn(move || runtime().block_on(all_ends()));
    let ports = worker.join().expect("no panic");
    assert_eq!(count(), before);
    let sockets = std::fs::read_to_string("/proc/self/net/tcp").expect("proc");
    for line in sockets.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ours = ports.iter().any(|port| fields[1].ends_with(&format!(":{port:04X}")));
        assert!(!ours || fields[3] != "08", "CLOSE_WAIT: {line}");
    }
}

/// Ends flows in every way, with bytes on their way where that is possible, and returns the ports.
async fn all_ends() -> Vec<u16> {
    let mut ports = Vec::new();
    for way in 0..6 {
        let mut rig = Rig::new(b"x", bounds(SHORT, SHORT)).await;
        let port = |stream: &TcpStream| {
            [stream.local_addr(), stream.peer_addr()].map(|a| a.expect("bound").port())
        };
        ports.extend([port(&rig.agent), port(&rig.upstream)].concat());
        let piece = vec![7; 100_000];
        let mut room = vec![0; 100_000];
        rig.upstream.read_u8().await.expect("read");
        for _ in 0..30 {
            let (sent, read) =
                tokio::join!(rig.agent.write_all(&piece), rig.upstream.read_exact(&mut room));
            sent.expect("written");
            read.expect("read");
        }
        match way {
            0 => {
                rig.agent.shutdown().await.expect("ended");
                rig.upstream.shutdown().await.expect("ended");
            }
            1 => rig.agent.shutdown().await.expect("ended"),
            2 => rig.upstream.set_zero_linger().expect("set"),
            3 => while let Ok(Ok(_)) = timeout(SHORT / 3, rig.agent.write(&piece)).await {},
            4 => {
                while let Ok(Ok(_)) = timeout(SHORT / 3, rig.agent.write(&piece)).await {}
                rig.relay.abort();
            }
            _ => {}
        }
        let Rig { agent, upstream, relay, .. } = rig;
        if matches!(way, 0 | 2) {
            drop((agent, upstream));
            let _ = timeout(LONG, relay).await.expect("an end");
        } else {
            let _ = timeout(LONG, relay).await.expect("an end");
            drop((agent, upstream));
        }
    }
    ports
}
