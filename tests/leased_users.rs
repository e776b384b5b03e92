//! Users that Vault makes in a database for a while: a real InfluxDB and a real PostgreSQL say who
//! they let in.

use lab::{Lab, influx::Influx, postgres::Postgres, sandboxed, vault::Vault, wait};
use serde_json::Value;

#[test]
fn the_lab_s_vault_leases_users_that_end_with_their_lease() {
    sandboxed(|| {
        let lab = Lab::new();
        let vault = Vault::start(&lab);
        let influx = Influx::start(&lab);
        let postgres = Postgres::start(&lab);
        influx.leased_by(&vault, "30s", "60s");
        postgres.leased_by(&vault, "30s");
        let lease = |path: &str| -> (String, String, String) {
            let answer: Value = serde_json::from_str(&vault.cli(&["read", path])).expect("JSON");
            let text = |at: &Value| at.as_str().unwrap_or_default().to_owned();
            (
                text(&answer["lease_id"]),
                text(&answer["data"]["username"]),
                text(&answer["data"]["password"]),
            )
        };
        let (influx_lease, user, password) = lease("database/creds/influx");
        assert_eq!(influx.status(&user, &password), "200");
        assert_eq!(influx.status(&user, "wrong"), "401");
        let (postgres_lease, name, word) = lease("database/creds/postgres");
        assert!(postgres.admits(&name, &word));
        vault.cli(&["lease", "revoke", "-sync", &influx_lease]);
        vault.cli(&["lease", "revoke", "-sync", &postgres_lease]);
        wait::expect("401", || influx.status(&user, &password) == "401");
        assert!(!postgres.admits(&name, &word));
    });
}
