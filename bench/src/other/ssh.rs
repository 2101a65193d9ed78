//! ssh with a multiplexed connection (ControlMaster) to an sshd of our own on loopback, for a user whose shell is /bin/dash.
//!
//! As root the user is made and removed again. Otherwise it is whoever runs the benchmark, and their login shell has to be dash.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rustix::process::geteuid;

use super::mux::Mux;
use crate::{process::Process, report::Missing};

/// The tool's name, as `--against` and the figures know it.
pub const NAME: &str = "ssh";
/// How figures name it.
pub const LABEL: &str = "ssh ControlMaster, dash";

const SSHD: &str = "/usr/sbin/sshd";
const SHELL: &str = "/bin/dash";
const USER: &str = "cortex-bench";
/// Sessions at once on the one connection: many more than ever run, because sshd counts those that have just ended.
const SESSIONS: usize = 1000;

/// A connection that sessions can be opened on. Everything goes away with it, last field first to be needed.
#[derive(Debug)]
pub struct Ssh {
    config: PathBuf,
    socket: PathBuf,
    _master: Process,
    _server: Process,
    _user: Option<TestUser>,
}

impl Ssh {
    /// Starts server and connection in `folder`.
    ///
    /// # Errors
    /// The inner one says what has to be installed.
    pub fn start(folder: &Path) -> anyhow::Result<Result<Self, Missing>> {
        let missing = |install: String| Ok(Err(Missing { tool: NAME, install }));
        if !Path::new(SSHD).exists() || Command::new("ssh").arg("-V").stderr(Stdio::null()).status().is_err() {
            return missing("apt-get install -y --no-install-recommends openssh-server".into());
        }
        if !Path::new(SHELL).exists() {
            return missing("apt-get install -y dash".into());
        }
        let folder = folder.join("ssh");
        fs::create_dir(&folder)?;
        let user = if geteuid().is_root() { Some(TestUser::make(&folder)?) } else { None };
        let name = match &user {
            Some(_) => USER.to_owned(),
            None => match current_user() {
                (name, shell) if shell == SHELL => name,
                (_, shell) => return missing(format!("run as root, or as a user whose shell is {SHELL} (it is {shell})")),
            },
        };
        Self::connect(&folder, &name, user).map(Ok)
    }

    fn connect(folder: &Path, name: &str, user: Option<TestUser>) -> anyhow::Result<Self> {
        let keys = [("host_key", "host"), ("user_key", "user")];
        for (file, comment) in keys {
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"]).arg(folder.join(file)).status()?;
            ensure!(made.success(), "ssh-keygen ended with {made}");
        }
        let read = |file: &str| fs::read_to_string(folder.join(file));
        fs::write(folder.join("authorized_keys"), read("user_key.pub")?)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        fs::write(folder.join("known_hosts"), format!("[127.0.0.1]:{port} {}", read("host_key.pub")?))?;
        let at = folder.display();
        let server_config = folder.join("sshd_config");
        fs::write(
            &server_config,
            format!(
                "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host_key\nAuthorizedKeysFile {at}/authorized_keys\nPidFile none\n\
                 AuthenticationMethods publickey\nUsePAM no\nStrictModes no\nUseDNS no\nMaxSessions {SESSIONS}\nLogLevel ERROR\n"
            ),
        )?;
        let config = folder.join("ssh_config");
        fs::write(
            &config,
            format!(
                "Host bench\nHostName 127.0.0.1\nPort {port}\nUser {name}\nIdentityFile {at}/user_key\nIdentitiesOnly yes\n\
                 UserKnownHostsFile {at}/known_hosts\nStrictHostKeyChecking yes\nBatchMode yes\nLogLevel ERROR\n"
            ),
        )?;
        if geteuid().is_root() {
            // Where sshd locks its unprivileged half in; a service manager would have made it.
            fs::create_dir_all("/run/sshd")?;
        }
        let mut server = Process::start("sshd", Command::new(SSHD).args(["-D", "-e", "-f"]).arg(&server_config), folder)?;
        server.wait_for("listening", Duration::from_secs(10), |_| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())?;
        let socket = folder.join("mux");
        let mut command = Command::new("ssh");
        command.arg("-F").arg(&config).args(["-M", "-N", "-S"]).arg(&socket).arg("bench");
        let mut master = Process::start("ssh-master", &mut command, folder)?;
        master.wait_for("its connection", Duration::from_secs(10), |_| socket.exists().then_some(()))?;
        Ok(Self { config, socket, _master: master, _server: server, _user: user })
    }

    /// A new `ssh` process that runs a command over the connection: what a person or a script has.
    pub fn command(&self, command: &str) -> Command {
        let mut client = Command::new("ssh");
        client.arg("-F").arg(&self.config).arg("-S").arg(&self.socket).args(["bench", command]);
        client.stdin(Stdio::null()).stdout(Stdio::piped());
        client
    }

    /// What other programs call to get to the other side, as the host `bench`.
    pub fn remote_shell(&self) -> String {
        format!("ssh -F {} -S {}", self.config.display(), self.socket.display())
    }

    /// The connection without a client process: sessions are opened on it from here.
    pub fn mux(&self) -> anyhow::Result<Mux> {
        Mux::connect(&self.socket)
    }
}

fn current_user() -> (String, String) {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let id = geteuid().as_raw().to_string();
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields.len() == 7 && fields[2] == id);
    entry.map_or_else(|| ("?".into(), "?".into()), |fields| (fields[0].to_owned(), fields[6].to_owned()))
}

/// A user that exists as long as this value.
#[derive(Debug)]
struct TestUser;

impl TestUser {
    fn make(folder: &Path) -> anyhow::Result<Self> {
        Self::remove(); // left by a run that was killed
        let home = folder.join("home");
        fs::create_dir(&home)?;
        let mut command = Command::new("useradd");
        // "*" is no password at all, and unlike "!" it does not lock the account.
        command
            .args(["--system", "--user-group", "--password", "*", "--no-create-home", "--shell", SHELL, "--home-dir"])
            .arg(&home)
            .arg(USER);
        let made = command.status().context("cannot run useradd")?;
        ensure!(made.success(), "useradd ended with {made}");
        let user = Self;
        let passwd = fs::read_to_string("/etc/passwd")?;
        let entry = passwd.lines().find_map(|line| line.strip_prefix(USER)?.strip_prefix(':')).context("useradd made no user")?;
        let mut ids = entry.split(':').skip(1).map(str::parse);
        chown(&home, ids.next().transpose()?, ids.next().transpose()?)?;
        // The folders above are its maker's; the user has to come through to its home and its key.
        for above in [Some(folder), folder.parent()].into_iter().flatten() {
            fs::set_permissions(above, fs::Permissions::from_mode(0o711))?;
        }
        Ok(user)
    }

    fn remove() {
        let _ = Command::new("userdel").arg(USER).stderr(Stdio::null()).status();
    }
}

impl Drop for TestUser {
    fn drop(&mut self) {
        Self::remove();
    }
}
