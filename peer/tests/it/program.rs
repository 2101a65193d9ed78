//! The program itself, as people start it.

use std::process::{Command, Output};

fn peer(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cortex-peer"));
    command.args(arguments).env_clear().env("HOME", "/nonexistent").env("PATH", "/usr/bin:/bin");
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn help_teaches_and_names_the_exit_codes() {
    let help = said(&peer(&["--help"]));
    for word in ["Examples:", "cortex-peer run --invite", "Exit codes:", "doctor"] {
        assert!(help.contains(word), "{word} in {help}");
    }
    assert!(said(&peer(&["--version"])).starts_with("cortex-peer "));
}

#[test]
fn a_wrong_setting_ends_with_two_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("peer.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "name: n\ninvit: x\n").unwrap();
    for arguments in [&["config", "check", "--config", path][..], &["run", "--config", path]] {
        let output = peer(arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains("unknown key `invit` in peer.yaml line 2; did you mean `invite`?"), "{}", said(&output));
    }
    assert_eq!(peer(&["run", "--no-such-flag"]).status.code(), Some(2));
}

#[test]
fn the_example_is_a_file_that_can_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("peer.yaml");
    std::fs::write(&file, peer(&["config", "example"]).stdout).unwrap();
    let checked = peer(&["config", "check", "--config", file.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
}

#[test]
fn without_an_invite_it_says_how_to_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let output = peer(&["run", "--allow-root", "--state-dir", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("Make an invite on the hub's page"), "{}", said(&output));
    let bad = peer(&["run", "--allow-root", "--state-dir", dir.path().to_str().unwrap(), "--invite", "cxi1_broken"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(said(&bad).contains("not a whole Cortex invite"), "{}", said(&bad));
}

#[test]
fn root_has_to_be_wanted() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let output = peer(&["run"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("--allow-root"), "{}", said(&output));
}

#[test]
fn status_and_doctor_speak_to_programs_too() {
    let dir = tempfile::tempdir().unwrap();
    let place = ["--state-dir", dir.path().to_str().unwrap()];
    let status = peer(&[&["status", "--json"], &place[..]].concat());
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&status["running"], &status["hub"]), (&false.into(), &serde_json::Value::Null));
    let doctor = peer(&[&["doctor", "--json", "--allow-root"], &place[..]].concat());
    assert_eq!(doctor.status.code(), Some(1), "it has joined no hub");
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    assert_eq!(report["ok"], false);
    assert!(report["findings"].as_array().unwrap().iter().any(|finding| finding["check"] == "hub" && finding["fix"].is_string()));
}
