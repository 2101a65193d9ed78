//! "Download your node": the install script under a POSIX shell, against a hub on a real port.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Output};

use super::*;
use crate::api::{
    dist::{file_name, own_platform},
    listener::serve,
};

/// Stands in for the peer: notes how it was started, and with which configuration.
const PEER: &str = "#!/bin/sh\necho \"$@\" >\"$HOME/started\"\ncat \"$3\" >\"$HOME/configuration\"\n";

struct Site {
    lab: Lab,
    url: String,
    dist: tempfile::TempDir,
    home: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let dist = tempfile::tempdir().unwrap();
        std::fs::write(dist.path().join(file_name(&own_platform())), PEER).unwrap();
        let lab = Lab::with(ApiOptions { dist_folder: Some(dist.path().to_owned()), ..ApiOptions::default() }).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, lab.router.clone(), lab.api.lifecycle.clone()));
        Self { lab, url, dist, home: tempfile::tempdir().unwrap() }
    }

    fn program(&self) -> std::path::PathBuf {
        self.dist.path().join(file_name(&own_platform()))
    }

    async fn invite(&self) -> Value {
        let host = self.url.strip_prefix("http://").unwrap();
        let bearer = format!("Bearer {}", self.lab.ada);
        let headers = [("authorization", bearer.as_str()), ("host", host)];
        self.lab.send("POST", "/api/nodes/invite", &headers, Some(json!({"name": "b\"o\\x"}))).await.expect(StatusCode::CREATED)
    }

    /// Runs a command line under dash, as a fresh user would.
    async fn shell(&self, line: &str) -> Output {
        let mut command = tokio::process::Command::new("dash");
        command.args(["-c", line]).env_clear().env("HOME", self.home.path()).env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.output().await.expect("dash is missing; install it with: apt-get install dash curl")
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.home.path().join(name)).unwrap_or_default()
    }
}

fn both(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_liner_installs_checks_configures_and_starts() {
    let site = Site::new().await;
    let invite = site.invite().await;
    let line = invite["one_liner"].as_str().unwrap();
    assert!(line.starts_with(&format!("curl -fsSL {}/install.sh | sh -s -- --invite cxi1_", site.url)), "{line}");
    let dir = site.home.path().join("my bin");
    let output = site.shell(&format!("{} --allow-root --dir '{}'", line.replace("| sh", "| dash"), dir.display())).await;
    assert!(output.status.success(), "{}", both(&output));
    let config = site.home.path().join(".config/cortex-peer/peer.yaml");
    assert_eq!(site.read("started").trim(), format!("run --config {} --allow-root", config.display()));
    assert_eq!(mode(&config), 0o600);
    assert_eq!(mode(&dir.join("cortex-peer")), 0o755);
    let yaml = site.read("configuration");
    assert!(yaml.contains(&format!("invite: \"{}\"", invite["invite"].as_str().unwrap())), "{yaml}");
    assert!(both(&output).contains("checksum is right"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_with_another_checksum_installs_nothing() {
    let site = Site::new().await;
    let invite = site.invite().await;
    let text = invite["invite"].as_str().unwrap();
    // The sum is remembered by size and time: a program of the same size and time is served with the sum of the old one.
    let altered = PEER.replace("started", "altered");
    let modified = std::fs::metadata(site.program()).unwrap().modified().unwrap();
    site.shell(&format!("curl -fsS {}/dist/SHA256SUMS", site.url)).await;
    std::fs::write(site.program(), &altered).unwrap();
    std::fs::File::options().write(true).open(site.program()).unwrap().set_modified(modified).unwrap();
    let output =
        site.shell(&format!("curl -fsSL {}/install.sh | dash -s -- --allow-root --dir \"$HOME/bin\" --invite {text}", site.url)).await;
    assert_eq!(output.status.code(), Some(1), "{}", both(&output));
    assert!(both(&output).contains("nothing was installed"), "{}", both(&output));
    assert!(!site.home.path().join("bin").exists() && !site.home.path().join(".config").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_refuses_what_is_no_invite_and_cut_downloads_run_nothing() {
    let site = Site::new().await;
    for bad in ["", "cxi2_abc", "cxi1_$(touch\\ x)", "cxi1_a;b", "cxi1_"] {
        let output = site.shell(&format!("curl -fsSL {}/install.sh | dash -s -- --no-start --invite '{bad}'", site.url)).await;
        assert_eq!(output.status.code(), Some(1), "{bad}: {}", both(&output));
        assert!(both(&output).contains("invite"), "{bad}: {}", both(&output));
    }
    let output = site.shell(&format!("curl -fsSL {}/install.sh | dash -s -- --bogus", site.url)).await;
    assert!(both(&output).contains("unknown option: --bogus"));
    let script = site.lab.send("GET", "/install.sh", &[], None).await.text().to_owned();
    for cut in (0..script.len() - 10).step_by(331) {
        std::fs::write(site.home.path().join("cut.sh"), &script[..cut]).unwrap();
        site.shell(&format!("cd \"$HOME\" && dash cut.sh --invite cxi1_abc --dir \"$HOME/bin\" --hub {}", site.url)).await;
    }
    assert!(!site.home.path().join("bin").exists() && !site.home.path().join(".config").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_configuration_is_kept_aside_and_a_hostile_name_stays_a_name() {
    let site = Site::new().await;
    let text = site.invite().await["invite"].as_str().unwrap().to_owned();
    let config = site.home.path().join(".config/cortex-peer/peer.yaml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    std::fs::write(&config, "name: old\n").unwrap();
    let name = r#"x"; invite: evil \n $(id) `id`"#;
    let output = site
        .shell(&format!("curl -fsSL {}/install.sh | dash -s -- --no-start --dir \"$HOME/bin\" --invite {text} --name '{name}'", site.url))
        .await;
    assert!(output.status.success(), "{}", both(&output));
    assert_eq!(site.read(".config/cortex-peer/peer.yaml.old"), "name: old\n");
    let yaml = site.read(".config/cortex-peer/peer.yaml");
    #[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Written {
        name: String,
        invite: String,
    }
    let written: Written = cortex_runtime::config::parse(&yaml, "peer.yaml").unwrap();
    assert_eq!((written.name.as_str(), written.invite), (name, text));
    assert!(!site.home.path().join("started").exists());
}

#[tokio::test]
async fn a_bundle_is_made_for_whoever_shows_an_invite_and_may_invite() {
    let dist = tempfile::tempdir().unwrap();
    std::fs::write(dist.path().join(file_name(&own_platform())), PEER).unwrap();
    let lab = Lab::with(ApiOptions { dist_folder: Some(dist.path().to_owned()), ..ApiOptions::default() }).await;
    let invite = lab.post(&lab.ada, "/api/nodes/invite", json!({})).await.expect(StatusCode::CREATED);
    let reply = lab.post(&lab.ada, "/api/nodes/bundle", json!({"invite": invite["invite"], "name": "box"})).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers["content-type"], "application/gzip");
    assert!(reply.headers["content-disposition"].to_str().unwrap().contains("cortex-peer-"));
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&reply.body[..]));
    assert_eq!(archive.entries().unwrap().count(), 4);
    lab.post(&lab.ada, "/api/nodes/bundle", json!({"invite": "cxi1_nonsense"})).await.problem(StatusCode::BAD_REQUEST);
    let elsewhere = lab.post(&lab.ada, "/api/nodes/bundle", json!({"invite": invite["invite"], "platform": "../../etc/passwd"})).await;
    elsewhere.problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_missing_and_never_linked() {
    let dist = tempfile::tempdir().unwrap();
    let lab = Lab::with(ApiOptions { dist_folder: Some(dist.path().to_owned()), ..ApiOptions::default() }).await;
    let programs = lab.send("GET", "/api/dist", &[], None).await.expect(StatusCode::OK);
    let windows = programs.as_array().unwrap().iter().find(|program| program["platform"] == "windows-x86_64").unwrap().clone();
    assert_eq!((&windows["available"], windows.get("path")), (&json!(false), None));
    lab.send("GET", "/dist/cortex-peer-windows-x86_64.exe", &[], None).await.problem(StatusCode::NOT_FOUND);
    lab.send("GET", "/dist/..%2f..%2fetc%2fpasswd", &[], None).await.problem(StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn for_windows_there_are_a_script_and_a_zip_once_the_hub_has_its_program() {
    let dist = tempfile::tempdir().unwrap();
    let lab = Lab::with(ApiOptions { dist_folder: Some(dist.path().to_owned()), ..ApiOptions::default() }).await;
    let invite = lab.post(&lab.ada, "/api/nodes/invite", json!({"name": "win"})).await.expect(StatusCode::CREATED);
    let (text, line) = (invite["invite"].as_str().unwrap(), invite["one_liner_windows"].as_str().unwrap());
    let asked = json!({"invite": text, "platform": "windows-x86_64"});
    lab.post(&lab.ada, "/api/nodes/bundle", asked.clone()).await.problem(StatusCode::NOT_FOUND);

    std::fs::write(dist.path().join(file_name("windows-x86_64")), "MZ program").unwrap();
    let reply = lab.post(&lab.ada, "/api/nodes/bundle", asked).await;
    assert_eq!((reply.status, &reply.headers["content-type"]), (StatusCode::OK, &"application/zip".parse().unwrap()));
    assert!(reply.headers["content-disposition"].to_str().unwrap().contains("cortex-peer-windows-x86_64.zip"));
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(&reply.body[..])).unwrap();
    let yaml = std::io::read_to_string(archive.by_name("cortex-peer/peer.yaml").unwrap()).unwrap();
    assert!(yaml.contains(text), "{yaml}");

    // No PowerShell here: what can be said of the text is said.
    let address = line.split('\'').nth(1).unwrap();
    assert_eq!(line, format!("& ([scriptblock]::Create((irm '{address}'))) -Invite '{text}'"));
    let script = lab.send("GET", "/install.ps1", &[], None).await.text().to_owned();
    let base = address.strip_suffix("/install.ps1").unwrap();
    assert!(script.contains(&format!("[string]$Hub = '{base}'")) && !script.contains("@HUB@"), "{script}");
    assert!(
        script.contains(&file_name("windows-x86_64"))
            && script.contains("/dist/SHA256SUMS")
            && script.contains("Get-FileHash -Algorithm SHA256")
    );
    // The program gets its place behind the comparison, and only there.
    let compared = script.find("if ($Got -cne $Wanted) { throw").unwrap();
    assert!(script.find("-Destination $Program").unwrap() > compared && script.matches("-Destination $Program").count() == 1);
    let code: String = script.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
        assert_eq!(code.matches(open).count(), code.matches(close).count(), "{open}{close}");
    }
    assert!(code.is_ascii() && code.matches('\'').count().is_multiple_of(2));
}
