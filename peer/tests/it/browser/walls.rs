//! What stands between pages and this machine: addresses, and the way by which the browser is driven.

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::ffi::OsStrExt as _,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use cortex_peer::browser::BrowserOptions;
use rustix::process::Pid;
use serde_json::json;

use super::{Bench, hostile::processes, options, site::Site};
use crate::hub::Hub;

/// Every way of `ways` that goes over TCP.
const WAYS: [&str; 14] = [
    "beacon", "events", "fetch", "frame", "image", "prefetch", "redirect", "script", "service", "shared", "socket", "style", "video",
    "worker",
];

/// Somebody on an address to which no page is to come, who notes who came.
struct Forbidden {
    address: SocketAddr,
    came: Arc<Mutex<BTreeSet<String>>>,
    datagrams: UdpSocket,
}

impl Forbidden {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        let datagrams = UdpSocket::bind("127.0.0.2:0").unwrap();
        datagrams.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let (address, came) = (listener.local_addr().unwrap(), Arc::<Mutex<BTreeSet<String>>>::default());
        let noted = came.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let noted = noted.clone();
                thread::spawn(move || -> std::io::Result<()> {
                    use std::io::{Read as _, Write as _};
                    noted.lock().unwrap().insert("a connection".into());
                    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                    let mut head = [0; 2048];
                    let length = stream.read(&mut head)?;
                    let head = String::from_utf8_lossy(&head[..length]).into_owned();
                    let asked = head.split(' ').nth(1).and_then(|path| path.split_once('?')).map_or("?", |(_, name)| name);
                    noted.lock().unwrap().insert(asked.to_owned());
                    stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                });
            }
        });
        Self { address, came, datagrams }
    }

    fn came(&self) -> BTreeSet<String> {
        self.came.lock().unwrap().clone()
    }

    /// Whether a datagram has come.
    fn was_sent_to(&self) -> bool {
        self.datagrams.recv_from(&mut [0; 64]).is_ok()
    }
}

#[tokio::test]
async fn no_page_worker_or_service_worker_comes_to_an_address_that_is_not_allowed() {
    for is_allowed in [true, false] {
        let forbidden = Forbidden::start();
        let allow: &[&str] = if is_allowed { &["127.0.0.0/8"] } else { &["127.0.0.1"] };
        let bench = Bench::allowing(allow).await;
        bench.open("ways").await;
        let script = format!("ways('{}','{}')", forbidden.address, forbidden.datagrams.local_addr().unwrap());
        assert_eq!(bench.value(&script).await, "tried");
        let all: BTreeSet<String> = WAYS.iter().map(|way| (*way).to_owned()).collect();
        if is_allowed {
            // The control: these ways are ways.
            let began = Instant::now();
            while !forbidden.came().is_superset(&all) {
                let missing: Vec<_> = all.difference(&forbidden.came()).cloned().collect();
                assert!(began.elapsed() < Duration::from_secs(15), "never came: {missing:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        } else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(forbidden.came(), BTreeSet::new());
        }
        assert!(!forbidden.was_sent_to(), "no datagram leaves the browser, wherever it may connect to");
        bench.end().await;
    }
}

/// Sockets at which a process waits for connections: of TCP, and those in the file system or with a name.
fn doors(pid: Pid) -> Vec<String> {
    let proc = format!("/proc/{}", pid.as_raw_nonzero());
    let sockets: BTreeSet<String> = fs::read_dir(format!("{proc}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok()?.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
        .collect();
    let rows = |file: &str| -> Vec<Vec<String>> {
        let text = fs::read_to_string(format!("{proc}/net/{file}")).unwrap_or_default();
        text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    // The state of a TCP socket that listens is 0A; inodes are the tenth column.
    let tcp = ["tcp", "tcp6"].iter().flat_map(|file| rows(file)).filter(|row| row.len() > 9 && row[3] == "0A" && sockets.contains(&row[9]));
    tcp.map(|row| row[1].clone()).collect()
}

#[tokio::test]
async fn nobody_else_on_the_machine_can_drive_the_browser() {
    let bench = Bench::new().await;
    bench.open("form").await;
    let processes = processes(&bench, "");
    assert!(processes.len() > 2, "{processes:?}");
    for pid in &processes {
        assert_eq!(doors(*pid), Vec::<String>::new(), "{pid:?}");
        let command = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&command).contains("remote-debugging-port"));
    }
    // The control: here is somebody who listens.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(!doors(rustix::process::getpid()).is_empty(), "{listener:?}");
    let folder = bench.hub.path().join("state/browsers");
    let mut open = vec![folder];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            assert!(!entry.file_name().as_bytes().starts_with(b"DevToolsActivePort"), "{entry:?}");
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
    }
    bench.end().await;
}

#[tokio::test]
async fn a_browser_that_is_named_and_is_not_there_is_an_error_that_says_what_to_do() {
    let mut hub = Hub::new();
    hub.browser = Some(BrowserOptions { program: Some("/nowhere/chromium".into()), ..options(hub.path(), &[]) });
    let tasks = hub.tasks();
    let bench = Bench { hub, tasks, site: Site::start().await };
    let rejected = bench.begin(&json!({ "action": "tabs" })).await.rejected().await;
    assert_eq!(rejected.code, "cannot_start");
    assert!(rejected.message.contains("/nowhere/chromium") && rejected.message.contains("browser.program"), "{rejected:?}");
    bench.end().await;
}
