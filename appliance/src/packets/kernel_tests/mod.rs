//! The rules against a real kernel, each test in a network namespace of its own.
//!
//! A test of this file starts this binary again under `unshare`, for one `#[ignore]`d test of the
//! same name in a file beside it. That one refuses to run in the namespace of the machine.
//! Where the kernel gives no namespace, the outer test fails and says so.

mod inside;
mod lab;
mod monitor;
mod own_addresses;
mod traffic;

use std::{
    fs,
    net::IpAddr,
    process::{Command, Stdio},
    sync::Arc,
};

use ipnet::IpNet;

use super::{Capture, CaptureInterface};
use crate::{
    config::AgentServices,
    policy::{BoundAgent, InterfaceName, Mac, Site},
};

macro_rules! in_a_namespace {
    ($($module:ident :: $name:ident,)+) => {$(
        #[test]
        fn $name() {
            run_inside(concat!(stringify!($module), "::", stringify!($name)));
        }
    )+};
}

in_a_namespace! {
    inside::the_kernel_lists_what_the_golden_file_says,
    inside::what_is_printed_is_what_is_installed,
    inside::applying_again_replaces_rules_and_keeps_chains,
    inside::a_policy_without_agents_or_ipv6_installs_too,
    inside::many_prefixes_take_several_messages,
    inside::a_rule_that_somebody_added_is_noticed,
    inside::a_constant_that_a_hand_has_changed_is_noticed,
    inside::a_hand_in_the_table_of_frames_is_noticed,
    inside::a_device_that_comes_back_is_bound_again,
    inside::what_another_version_left_behind_is_removed,
    inside::nothing_starts_without_the_guard,
    inside::nothing_starts_where_the_guard_leaves_a_service_open,
    inside::a_missing_interface_is_named,
    inside::preparing_twice_leaves_one_rule_and_one_route,
    inside::every_listener_is_transparent_and_workers_share_the_port,
    inside::a_second_daemon_and_a_sharing_stranger_are_found,
    inside::a_resolver_in_the_way_is_named,
    monitor::each_change_of_our_tables_is_told_and_no_other,
    monitor::more_changes_than_there_is_room_for_are_a_change,
    own_addresses::an_address_is_own_from_first_to_last,
    own_addresses::what_can_be_bound_is_own,
    own_addresses::more_new_addresses_than_there_is_room_for_are_own,
    inside::without_net_admin_each_step_says_so,
    traffic::an_agent_reaches_the_listener_and_nothing_else,
    traffic::a_dead_daemon_passes_nothing,
    traffic::the_guard_alone_passes_nothing,
    traffic::without_ipv6_no_ipv6_passes,
    traffic::a_spoofed_source_is_never_answered,
    traffic::neighbours_find_each_other_by_link_local_addresses,
    traffic::a_connection_outlives_the_listing_of_its_port,
    traffic::reloading_under_traffic_leaks_nothing,
}

/// Returns the example that `nft/golden.nft` and `nft/README.md` describe.
pub(super) fn example() -> Capture {
    Capture {
        interfaces: vec![
            interface("agents0", &["10.20.0.0/24", "2001:db8:20::/64"]),
            CaptureInterface {
                bound: vec![bound("02:00:00:00:00:01", &["10.23.0.5", "2001:db8:21::5"])],
                free: vec![net("10.21.0.0/16")],
                groups: [&["10.21.0.0/16"][..], &["10.23.0.0/24", "2001:db8:21::/64"]]
                    .map(|group| group.iter().map(|text| net(text)).collect())
                    .into(),
                narrow: vec![(1400, vec![net("10.21.0.0/16"), net("2001:db8:21::/64")])],
                onboarding: vec![net("10.23.0.0/24"), net("2001:db8:21::/64")],
                ..interface("agents1", &["10.21.0.0/16", "10.23.0.0/24", "2001:db8:21::/64"])
            },
        ],
        ports: vec![80, 443],
        special: Site::default().special(),
        homes: vec![net("10.99.0.0/24"), net("fd00:99::/64")],
        proxy_port: 8443,
        mark: 0xc10a,
        route_table: 4106,
        nflog_group: 49418,
        ipv6: true,
        services: AgentServices { ping: true, ntp: true, dhcp: true },
        dns_rate: 200,
    }
}

fn interface(name: &str, prefixes: &[&str]) -> CaptureInterface {
    let prefixes: Vec<IpNet> = prefixes.iter().map(|text| net(text)).collect();
    CaptureInterface {
        name: InterfaceName(Arc::from(name)),
        free: prefixes.clone(),
        groups: vec![prefixes.clone()],
        prefixes,
        bound: Vec::new(),
        narrow: Vec::new(),
        onboarding: Vec::new(),
    }
}

fn bound(mac: &str, addresses: &[&str]) -> BoundAgent {
    let addresses = addresses.iter().map(|text| address(text)).collect();
    BoundAgent { mac: Mac::parse(mac).unwrap(), addresses }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn run_inside(test: &str) {
    let unshare: &[&str] = match Command::new("unshare").args(["-n", "true"]).status() {
        Ok(status) if status.success() => &["-n"],
        _ => &["-Urn"],
    };
    let possible = Command::new("unshare").args(unshare).arg("true").stderr(Stdio::null()).status();
    let possible = possible.is_ok_and(|status| status.success());
    assert!(possible, "no network namespace to be had here; run as root, or allow user namespaces");
    let output = Command::new("unshare")
        .args(unshare)
        .arg("--")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("packets::kernel_tests::{test}")])
        .args(["--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.contains("1 passed"), "{test} did not run:\n{said}\n{complained}");
}

/// Stops a test of `inside` that was started by hand in the machine's own namespace.
fn only_in_a_namespace() {
    let (own, machine) = (fs::read_link("/proc/self/ns/net"), fs::read_link("/proc/1/ns/net"));
    if let (Ok(own), Ok(machine)) = (own, machine) {
        assert_ne!(own, machine, "run the test of the same name without --ignored");
    }
}

/// Runs a command line and returns its output; fails the test where it fails.
fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{complained}");
    String::from_utf8(output.stdout).unwrap()
}

/// Loads the guard with the interfaces of [`example`].
fn load_base() {
    sh(concat!("nft -f ", env!("CARGO_MANIFEST_DIR"), "/../nft/base.nft"));
    sh("nft add element inet cloakroom_base agent_interfaces '{ \"agents0\", \"agents1\" }'");
}

/// Returns the table as the kernel lists it, without the values of counters.
fn listing() -> String {
    sh("nft --stateless list table inet cloakroom
        nft --stateless list table netdev cloakroom 2>/dev/null || true")
}
