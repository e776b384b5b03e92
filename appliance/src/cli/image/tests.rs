use super::*;

/// The report as the image's script writes it.
const WRITTEN: &str = r#"{"version":"0.2.0","slot":"B","others":[{"version":"0.1.0","state":"kept"},
    {"version":"0.3.0","state":"failed"},{"version":"0.4.0","state":"next"}],
    "state_partition":"encrypted","agents_ca":"0A:1B"}"#;

#[test]
fn each_version_has_a_line() {
    let image: ImageStatus = serde_json::from_str(WRITTEN).expect("understood");
    assert_eq!(
        image.words(),
        "image         version 0.2.0 in slot B; the state partition is encrypted\n\
         \x20             version 0.1.0 is kept beside it\n\
         \x20             version 0.3.0 FAILED to start, and is not tried again\n\
         \x20             version 0.4.0 is written, and starts next\n\
         agents' CA    0A:1B (SHA-256)\n"
    );
    let again = serde_json::to_value(&image).expect("JSON");
    assert_eq!(again, serde_json::from_str::<serde_json::Value>(WRITTEN).expect("JSON"));
}

#[test]
fn a_machine_without_the_image_has_no_report() {
    assert!(ImageStatus::read(Path::new("/nonexistent/image.json")).expect("no error").is_none());
    assert!(ImageStatus::read(Path::new("/")).is_err());
}
