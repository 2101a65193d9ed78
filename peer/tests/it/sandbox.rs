//! STRICT, behind real walls: what a task can do there, and some 160 ways out that have to be shut.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            net::{SocketAddr as UnixAddress, UnixDatagram, UnixListener},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use cortex_peer::{sandbox::Sandbox, task::Tasks};
use cortex_wire::schema::{EnvironmentVariable, SandboxMode, ShellTask, TaskRequest, task_response::Exit};

use crate::hub::{Hub, Over, argv, script};

const ESCAPES: &str = include_str!("escape.c");

/// Tricks that work outside on every Linux and for every user: if one did not, the corpus would prove nothing.
const CONTROL: [&str; 34] = [
    "read_secret",
    "list_outside",
    "stat_secret",
    "through_symlink",
    "through_outside_cwd",
    "hard_link",
    "write_secret",
    "append_new",
    "remove_outside",
    "rename_out",
    "chmod_secret",
    "touch_secret",
    "truncate_secret",
    "make_folder_outside",
    "state",
    "other_session",
    "list_sys",
    "hook",
    "settings",
    "settings_over",
    "repository_away",
    "absent_file",
    "absent_agent",
    "setuid_chmod",
    "setuid_open",
    "sees_outside",
    "tcp",
    "udp",
    "path_stream",
    "path_datagram",
    "abstract",
    "netlink",
    "signal_outside",
    "by_shell",
];

/// How many tricks have to work outside: for root, and for others.
const CONTROLS: [usize; 2] = [110, 55];

async fn run(hub: &Hub, tasks: &Tasks, shell: ShellTask, mode: SandboxMode) -> Over {
    hub.start(tasks, &TaskRequest { mode: mode.into(), ..hub.request(shell) }).await.finish().await
}

/// What there is to reach outside. Everything goes with the value.
struct Outside {
    folder: PathBuf,
    variables: Vec<EnvironmentVariable>,
    process: Child,
    _listeners: (UnixListener, UnixListener, UnixDatagram),
}

impl Outside {
    fn new(hub: &Hub) -> Self {
        let folder = hub.dir.path().join("outside");
        fs::create_dir(&folder).unwrap();
        let other = hub.dir.path().join("work/another-session");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("file"), "theirs").unwrap();
        let name = format!("cortex-escape-{}", folder.display());
        let by_name = UnixListener::bind_addr(&UnixAddress::from_abstract_name(&name).unwrap()).unwrap();
        let by_path = (UnixListener::bind(folder.join("stream")).unwrap(), UnixDatagram::bind(folder.join("datagram")).unwrap());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp6 = TcpListener::bind("[::1]:0").ok();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let process = Command::new("sleep").arg("600").current_dir(&folder).stdin(Stdio::null()).spawn().unwrap();
        let at = |path: &Path| path.display().to_string();
        let mut variables = vec![
            ("OUT", at(&folder)),
            ("STATE", at(&hub.dir.path().join("state"))),
            ("OTHER", at(&other)),
            ("NAME", name),
            ("TCP", tcp.local_addr().unwrap().port().to_string()),
            ("TCP6", tcp6.as_ref().map_or(1, |tcp| tcp.local_addr().unwrap().port()).to_string()),
            ("UDP", udp.local_addr().unwrap().port().to_string()),
            ("HOST4", "127.0.0.2".to_owned()),
            ("PID", process.id().to_string()),
        ];
        let variables = variables.drain(..).map(|(name, value)| EnvironmentVariable { name: name.into(), value }).collect();
        for tcp in [Some(tcp), tcp6].into_iter().flatten() {
            std::thread::spawn(move || answer(&tcp));
        }
        std::thread::spawn(move || {
            let mut bytes = [0; 8];
            while let Ok((count, from)) = udp.recv_from(&mut bytes) {
                let _ = udp.send_to(&bytes[..count], from);
            }
        });
        let this = Self { folder, variables, process, _listeners: (by_name, by_path.0, by_path.1) };
        this.lay();
        this
    }

    /// As it is before somebody gets out.
    fn lay(&self) {
        for name in ["secret", "victim"] {
            fs::write(self.folder.join(name), "secret").unwrap();
            fs::set_permissions(self.folder.join(name), fs::Permissions::from_mode(0o640)).unwrap();
        }
    }

    /// Names, modes, contents and times.
    fn look(&self) -> BTreeSet<(String, u32, i64, Option<String>)> {
        let entries = fs::read_dir(&self.folder).unwrap().map(Result::unwrap);
        let see = |entry: fs::DirEntry| {
            let meta = entry.metadata().unwrap();
            let content = meta.is_file().then(|| fs::read_to_string(entry.path()).unwrap());
            (entry.file_name().into_string().unwrap(), meta.mode(), meta.mtime_nsec(), content)
        };
        entries.map(see).collect()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn answer(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let mut bytes = [0; 8];
        if let Ok(count) = stream.read(&mut bytes) {
            let _ = stream.write_all(&bytes[..count]);
        }
    }
}

/// A repository, and the program with the tricks.
fn furnish(hub: &Hub) {
    let workspace = hub.workspace();
    fs::create_dir_all(workspace.join(".git/hooks")).unwrap();
    fs::write(workspace.join(".git/config"), "[core]\n").unwrap();
    let source = hub.dir.path().join("escape.c");
    fs::write(&source, ESCAPES).unwrap();
    let compiled = Command::new("cc").args(["-O1", "-w", "-o"]).arg(workspace.join("escape")).arg(&source).status();
    assert!(compiled.expect("a C compiler: apt-get install gcc libc6-dev").success());
}

/// The names of what works, and of what does not.
fn sorted(over: &Over) -> [BTreeSet<String>; 2] {
    let text = over.text();
    ["open ", "shut "].map(|word| text.lines().filter_map(|line| line.strip_prefix(word)).map(str::to_owned).collect())
}

#[tokio::test]
async fn every_way_out_is_shut_in_strict_and_most_are_open_outside() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let outside = Outside::new(&hub);
    let tricks = || ShellTask { environment: outside.variables.clone(), ..argv(&["./escape"]) };
    furnish(&hub);
    let before = outside.look();
    let over = run(&hub, &tasks, tricks(), SandboxMode::Strict).await;
    let [open, shut] = sorted(&over);
    assert_eq!((&open, over.response.sandbox_level.as_str()), (&BTreeSet::new(), "strict"), "{}", String::from_utf8_lossy(&over.stderr));
    assert!(shut.len() >= 150, "{} tricks were tried", shut.len());
    // And by what there is to be seen outside.
    assert_eq!(outside.look(), before);
    assert_eq!(fs::read_to_string(hub.workspace().join(".git/config")).unwrap(), "[core]\n");
    assert_eq!(fs::read_dir(hub.workspace().join(".git/hooks")).unwrap().count(), 0);
    let mut names: Vec<_> = fs::read_dir(hub.workspace()).unwrap().map(|entry| entry.unwrap()).collect();
    names.retain(|entry| entry.file_name().to_string_lossy().starts_with('.') || entry.metadata().unwrap().mode() & 0o6000 != 0);
    assert_eq!(names.iter().map(fs::DirEntry::file_name).collect::<Vec<_>>(), [".git"], "no protected name stays, and nothing is setuid");

    // The control: the same program, the same user, no walls.
    let over = run(&hub, &tasks, tricks(), SandboxMode::Permissive).await;
    let [open, _] = sorted(&over);
    let shut_outside: Vec<_> = CONTROL.iter().filter(|name| !open.contains(**name)).collect();
    assert!(shut_outside.is_empty(), "not open outside: {shut_outside:?}");
    let needed = CONTROLS[usize::from(!rustix::process::geteuid().is_root())];
    assert!(open.len() >= needed, "{} of {} tricks work outside: {open:?}", open.len(), shut.len());
    assert_ne!(outside.look(), before);
}

#[test]
fn every_way_out_is_shut_for_an_ordinary_user_too() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("this user is an ordinary one: the test above has shown it");
        return;
    }
    // Elsewhere, because nobody may look into the folder where these were built.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let copy = |from: &Path, name: &str| {
        let to = folder.path().join(name);
        fs::copy(from, &to).unwrap();
        to
    };
    let test = copy(&std::env::current_exe().unwrap(), "tests");
    let helper = copy(Path::new(env!("CARGO_BIN_EXE_cortex-peer")), "cortex-peer");
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(test);
    command.args(["--exact", "sandbox::every_way_out_is_shut_in_strict_and_most_are_open_outside", "--nocapture"]);
    let output = command.env("TMPDIR", folder.path()).env("HOME", folder.path()).env(crate::hub::HELPER, helper).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn a_strict_task_works_in_its_workspace_like_any_other() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    fs::create_dir_all(hub.workspace().join("a")).unwrap();
    let text = "pwd; echo $HOME $USER $TMPDIR; id -un; touch made; mkdir -p b && mv made b; echo x > /tmp/x && cat /tmp/x; echo y > ~/y; echo err >&2; exit 3";
    let over = run(&hub, &tasks, ShellTask { cwd: "a".into(), ..script(text) }, SandboxMode::Strict).await;
    let folder = fs::canonicalize(hub.workspace()).unwrap().join("a");
    assert_eq!(over.text(), format!("{}\n/home/task task\ntask\nx\n", folder.display()), "{}", String::from_utf8_lossy(&over.stderr));
    assert_eq!((over.stderr.as_slice(), over.response.exit), (b"err\n".as_slice(), Some(Exit::ExitCode(3))));
    assert_eq!((over.response.state.as_str(), over.response.sandbox_level.as_str()), ("failed", "strict"));
    let owner = |path: &Path| fs::metadata(path).unwrap().uid();
    assert_eq!(owner(&folder.join("b/made")), owner(&hub.workspace()), "what a task makes belongs to whom the workspace belongs");

    let over = hub.strict(&tasks, "kill -9 $$").await.finish().await;
    assert_eq!(over.response.exit, Some(Exit::Signal(9)));
    let burn = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; head -c 40000000 /dev/zero | tail -c 40000000 >/dev/null";
    let usage = hub.strict(&tasks, burn).await.finish().await.response.usage.unwrap();
    assert!(usage.cpu_user_ms > 20 && usage.peak_memory_bytes > 30 << 20, "{usage:?}");

    let missing = TaskRequest { mode: SandboxMode::Strict.into(), ..hub.request(argv(&["/bin/sh/no"])) };
    assert_eq!(hub.start(&tasks, &missing).await.rejected().await.code, "cannot_start");
    fs::write(hub.workspace().join("odd"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(hub.workspace().join("odd"), fs::Permissions::from_mode(0o755)).unwrap();
    let odd = TaskRequest { mode: SandboxMode::Strict.into(), ..hub.request(argv(&["./odd"])) };
    let refused = hub.start(&tasks, &odd).await.rejected().await;
    assert!(refused.code == "cannot_start" && refused.message.contains("interpreter"), "{refused:?}");
    let long = format!("echo begin; #{}\necho end", "x".repeat(200_000));
    assert_eq!(hub.strict(&tasks, &long).await.finish().await.text(), "begin\nend\n");
}

#[tokio::test]
async fn what_a_strict_task_leaves_running_ends_with_it() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let daemons = "setsid sleep 4242 >/dev/null 2>&1 & (setsid sh -c 'trap \"\" HUP INT TERM; sleep 4242; true' >/dev/null 2>&1 &)";
    let over = hub.strict(&tasks, &format!("{daemons}; echo done")).await.finish().await;
    assert_eq!((over.text().as_str(), over.response.exit), ("done\n", Some(Exit::ExitCode(0))));
    assert_eq!(sleepers(hub.dir.path()), 0);

    let mut talk = hub.strict(&tasks, &format!("{daemons}; trap 'echo bye; exit 5' INT; echo up; while :; do sleep 0.1; done")).await;
    talk.until_stdout(3).await;
    talk.cancel("enough").await;
    let over = talk.finish().await;
    assert_eq!(
        (over.text().as_str(), over.response.state.as_str(), over.response.exit),
        ("up\nbye\n", "cancelled", Some(Exit::ExitCode(5)))
    );
    assert_eq!(sleepers(hub.dir.path()), 0);
}

/// Living processes of this test's tasks: their environment names its folder.
fn sleepers(dir: &Path) -> usize {
    let name = dir.display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let reads =
        |entry: &fs::DirEntry, file: &str| fs::read(entry.path().join(file)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    processes
        .filter(|entry| {
            reads(entry, "environ").is_ok_and(|text| text.contains(&name))
                && reads(entry, "cmdline").is_ok_and(|text| text.contains("4242"))
        })
        .count()
}

#[tokio::test]
async fn protected_names_are_there_only_while_a_task_runs_and_git_does_not_see_them() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    fs::create_dir_all(hub.workspace()).unwrap();
    let text = "git init -q . && git config user.email a@b && git config user.name n && echo 1 > f && git add -A && git commit -qm one && git status --short && git ls-files; echo no > .envrc";
    let over = hub.strict(&tasks, text).await.finish().await;
    assert_eq!(over.text(), "f\n", "{}", String::from_utf8_lossy(&over.stderr));
    assert!(String::from_utf8_lossy(&over.stderr).contains("Read-only file system") && !hub.workspace().join(".envrc").exists());
    // From now on there is a repository, and its settings stay as they are.
    let over = hub
        .strict(&tasks, "git config core.fsmonitor ./x; git commit -qm two --allow-empty && git log --oneline | wc -l")
        .await
        .finish()
        .await;
    assert_eq!(over.text().trim(), "2");
    assert!(!fs::read_to_string(hub.workspace().join(".git/config")).unwrap().contains("fsmonitor"));
}

#[tokio::test]
async fn a_node_whose_walls_cannot_be_built_says_so_and_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let helper = dir.path().join("helper");
    let program = env!("CARGO_BIN_EXE_cortex-peer");
    fs::write(
        &helper,
        format!("#!/bin/sh\nexec unshare -Ur sh -c 'echo 0 > /proc/sys/user/max_user_namespaces; exec {program} \"$@\"' sh \"$@\"\n"),
    )
    .unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let sandbox = Sandbox::new(helper, Vec::new());
    let level = sandbox.level().await;
    assert_eq!(level.level, "permissive");
    assert!(level.missing[0].contains("cannot make namespaces") && level.missing[0].contains("Fix: "), "{level:?}");
}

#[tokio::test]
async fn the_self_test_finds_this_machine_strict() {
    let hub = Hub::new();
    let tasks = hub.tasks();
    let sandbox = Sandbox::new(crate::hub::helper(), Vec::new());
    let level = sandbox.level().await;
    assert_eq!((level.level.as_str(), level.missing.as_slice()), ("strict", [].as_slice()));
    drop(tasks);
}

#[tokio::test]
async fn a_strict_task_reaches_granted_hosts_through_the_proxy_and_nothing_else() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || answer(&server));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut hub = Hub::new();
    hub.policy.network = vec![format!("127.0.0.1:{port}"), "localhost".into(), "not-in-the-file.example".into()];
    hub.ceiling.network = vec!["127.0.0.1".into(), "localhost".into()];
    let tasks = hub.tasks();
    let ask = |host: &str| {
        let text = format!(
            "exec 3<>/dev/tcp/127.0.0.1/${{HTTPS_PROXY##*:}}; printf 'CONNECT {host} HTTP/1.1\\r\\n\\r\\n' >&3; read -r a b c <&3; echo $b; [ $b = 200 ] && {{ read -r x <&3; printf ping >&3; head -c 4 <&3; }}; true"
        );
        ShellTask { shell: "bash".into(), ..script(&text) }
    };
    let said = async |host: &str| run(&hub, &tasks, ask(host), SandboxMode::Strict).await.text();
    assert_eq!(said(&format!("127.0.0.1:{port}")).await, "200\nping");
    // Another port, a name of this machine, a host that only the hub grants, one that nobody grants.
    let other = closed.local_addr().unwrap().port();
    for host in [format!("127.0.0.1:{other}"), format!("localhost:{other}"), "not-in-the-file.example:443".into(), "1.1.1.1:443".into()] {
        assert_eq!(said(&host).await, "403\n", "{host}");
    }
    let directly = format!("(exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && echo open || echo shut");
    assert_eq!(run(&hub, &tasks, ShellTask { shell: "bash".into(), ..script(&directly) }, SandboxMode::Strict).await.text(), "shut\n");

    let mut alone = Hub::new();
    alone.policy.network = vec!["127.0.0.1".into()];
    let tasks = alone.tasks();
    let over =
        run(&alone, &tasks, script("env | grep -ci proxy; ls /proc/net/tcp >/dev/null && wc -l < /proc/net/tcp"), SandboxMode::Strict)
            .await;
    assert_eq!(over.text(), "0\n1\n", "a node whose own file grants nothing has no proxy");
}
