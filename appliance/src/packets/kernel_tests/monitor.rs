//! The notices of nf_tables about changes. Started by the tests of the same names in `mod.rs`.

use std::time::Duration;

use super::{example, load_base, only_in_a_namespace, sh};
use crate::packets::{Monitor, apply};

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn each_change_of_our_tables_is_told_and_no_other() {
    only_in_a_namespace();
    load_base();
    apply(&example()).unwrap();
    let others = "nft add table inet other; nft add chain inet other cloakroom; \
                  nft add rule inet other cloakroom accept; nft delete table inet other";
    let changes = [
        "nft add element inet cloakroom ports '{ 22 }'",
        "nft insert rule inet cloakroom prerouting accept",
        "nft flush chain inet cloakroom input",
        "nft add element inet cloakroom_base agent_interfaces '{ \"agents9\" }'",
        "nft delete chain inet cloakroom forward",
        "nft delete table inet cloakroom_base",
        "nft flush ruleset",
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut monitor = Monitor::open().unwrap();
        assert!(told(&mut monitor).await, "what was before");
        monitor.looked(Duration::ZERO);
        for change in changes {
            sh(others);
            assert!(!told(&mut monitor).await, "before {change}");
            sh(change);
            assert!(told(&mut monitor).await, "{change}");
            monitor.looked(Duration::ZERO);
        }
        monitor.look_again();
        assert!(told(&mut monitor).await);
    });
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn more_changes_than_there_is_room_for_are_a_change() {
    only_in_a_namespace();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut monitor = Monitor::open().unwrap();
        monitor.looked(Duration::ZERO);
        // All of these changes are in another table, so that only their loss can be a reason to
        // look.
        let many: String = (0..40_000).map(|number| format!("{},", 2 * number)).collect();
        let set = "add table inet other; add set inet other many { type mark; };";
        let elements = format!("{set} add element inet other many {{ {many} }}");
        let file = std::env::temp_dir().join(format!("cloakroom-many-{}.nft", std::process::id()));
        std::fs::write(&file, elements.replace(';', "\n")).unwrap();
        sh(&format!("nft -f {0}; rm {0}", file.display()));
        assert!(told(&mut monitor).await);
        while told(&mut monitor).await {
            monitor.looked(Duration::ZERO);
        }
        sh("nft delete table inet other");
        assert!(!told(&mut monitor).await, "what is told now is whole again");
    });
}

async fn told(monitor: &mut Monitor) -> bool {
    tokio::time::timeout(Duration::from_millis(300), monitor.changed()).await.is_ok()
}
