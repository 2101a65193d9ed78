//! Networks for tests: namespaces of this machine, joined by cables and routers, with faults that come and go.
//!
//! ```text
//!  hub 10.1.0.2 ── router (NAT) 203.0.113.2 ──┐
//!                                             ├── a switch: "the internet" ── relay 203.0.113.10
//! peer 10.2.0.2 ── router (NAT) 203.0.113.3 ──┘                    └── a machine elsewhere 203.0.113.20
//! ```
//! Both routers do what home routers do: what goes out is masqueraded, what nobody inside asked for is dropped. So hub and peer can
//! meet at the relay and nowhere else, unless both send first; [`Lab::build`] proves that with datagrams before it hands the laboratory out. Routers can be made to translate in other
//! ways ([`Nat`]), and stand behind another one of their provider.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsFd as _,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::{
    process::{Pid, Signal, geteuid, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tokio::sync::oneshot;

/// What a machine needs for this.
const NEEDS: &str = "this test builds networks of namespaces, for which it needs to be root and these packages: \
                     apt-get install -y --no-install-recommends iproute2 nftables conntrack";
/// Where `ip netns` keeps its namespaces.
const NAMESPACES: &str = "/run/netns";
/// How all of ours are called.
const PREFIX: &str = "cortex-test-";
/// The relay, on the internet.
pub const RELAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

const HUB: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const HUB_ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
const PEER_ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);
/// A machine on the internet that is not the relay.
pub const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
const PEER_ROUTER_LATER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 4);
/// Of the peer's second way to the internet.
const UPLINK_ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
const UPLINK_PEER: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 2);
/// Between the peer's router and its provider's, when there is one.
const CARRIER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);

/// What a router lets in (RFC 3489's names).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// Everything, to the one machine behind it.
    FullCone,
    /// What comes from an address that was spoken to.
    AddressRestricted,
    /// What comes from an address and port that was spoken to.
    PortRestricted,
    /// The same, and each of them sees another port.
    Symmetric,
}

impl Nat {
    /// As rules of nft for the router of `machine`.
    fn rules(self, machine: Ipv4Addr) -> String {
        let masquerade = if self == Self::Symmetric { "masquerade fully-random" } else { "masquerade" };
        let inward = match self {
            Self::FullCone => format!("iifname \"wan\" meta l4proto udp dnat to {machine}"),
            Self::AddressRestricted => format!("iifname \"wan\" ip saddr @spoken meta l4proto udp dnat to {machine}"),
            Self::PortRestricted | Self::Symmetric => String::new(),
        };
        format!(
            "table ip nat {{\n set spoken {{\n type ipv4_addr;\n flags dynamic,timeout;\n timeout 60s;\n }}\n \
             chain speak {{\n type filter hook forward priority -20;\n oifname \"wan\" update @spoken {{ ip daddr }}\n }}\n \
             chain inward {{\n type nat hook prerouting priority -100;\n {inward}\n }}\n \
             chain out {{\n type nat hook postrouting priority 100;\n oifname \"wan\" {masquerade}\n }}\n }}\n\
             table ip filter {{\n chain pass {{\n type filter hook forward priority 0; policy drop;\n ct state established,related accept\n \
             ct status dnat accept\n iifname \"lan\" accept\n }}\n \
             chain own {{\n type filter hook input priority 0;\n iifname \"wan\" ct state new drop\n }}\n }}\n"
        )
    }
}

/// Where in the network a program runs.
#[derive(Debug, Clone, Default)]
pub enum Place {
    /// In the network of the test itself.
    #[default]
    Here,
    /// In a namespace.
    Namespace(Arc<Namespace>),
}

impl Place {
    /// A command that runs `program` there.
    pub fn command(&self, program: &Path) -> Command {
        match self {
            Self::Here => Command::new(program),
            Self::Namespace(namespace) => {
                // `ip` becomes the program: its process id is the program's.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &namespace.name]).arg(program);
                command
            }
        }
    }

    /// An address in the network of the test that leads to a TCP port of the place's own loopback. It does so until the guard is dropped.
    ///
    /// # Errors
    /// When the door cannot be built.
    pub fn door(&self, port: u16) -> Result<(SocketAddr, Option<Door>)> {
        match self {
            Self::Here => Ok(((Ipv4Addr::LOCALHOST, port).into(), None)),
            Self::Namespace(namespace) => {
                let (address, door) = Door::build(namespace, port)?;
                Ok((address, Some(door)))
            }
        }
    }
}

/// A network namespace; removed when it is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// One that nobody else can reach, with loopback alone.
    ///
    /// # Errors
    /// When this machine cannot, with what it lacks.
    pub fn lone(role: &str) -> Result<Arc<Self>> {
        check_machine()?;
        Self::sweep();
        Self::add(role)
    }

    fn add(role: &str) -> Result<Arc<Self>> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        execute(Command::new("ip").args(["netns", "add", &name]), "")?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        Ok(Arc::new(namespace))
    }

    /// Removes what tests left behind that were killed themselves.
    fn sweep() {
        let Ok(entries) = fs::read_dir(NAMESPACES) else { return };
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                drop(Self { name });
            }
        }
    }

    /// Runs `ip` with these words in the namespace.
    ///
    /// # Errors
    /// What it complains about.
    pub fn ip(&self, words: &str) -> Result<()> {
        execute(Command::new("ip").args(["-n", &self.name]).args(words.split_whitespace()), "")
    }

    /// Loads rules of `nft` in the namespace.
    ///
    /// # Errors
    /// What it complains about.
    pub fn nft(&self, rules: &str) -> Result<()> {
        execute(Command::new("ip").args(["netns", "exec", &self.name, "nft", "-f", "-"]), rules)
    }

    fn forget_connections(&self) -> Result<()> {
        execute(Command::new("ip").args(["netns", "exec", &self.name, "conntrack", "-F"]), "")
    }

    fn forward(&self) -> Result<()> {
        execute(Command::new("ip").args(["netns", "exec", &self.name, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]), "")
    }

    /// What `ip netns` calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace: sockets that it opens are there.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<JoinHandle<Result<T>>> {
        let file = File::open(Path::new(NAMESPACES).join(&self.name))?;
        Ok(thread::spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        }))
    }

    /// Finds out whether a datagram from here to `address` is answered.
    fn ask(&self, address: Ipv4Addr) -> Result<JoinHandle<Result<bool>>> {
        self.within(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            for _ in 0..3 {
                let sent = socket.send_to(b"?", (address, Echo::PORT)).is_ok();
                if sent && socket.recv(&mut [0; 1]).is_ok() {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Where programs run that are in it.
    pub fn place(self: &Arc<Self>) -> Place {
        Place::Namespace(self.clone())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let inside = Command::new("ip").args(["netns", "pids", &self.name]).output();
        let inside = inside.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        for pid in inside.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if let Err(error) = execute(Command::new("ip").args(["netns", "del", &self.name]), "") {
            eprintln!("{error:#}");
        }
    }
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread in a namespace panicked"))?
}

fn execute(command: &mut Command, input: &str) -> Result<()> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot run {command:?}"))?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Joins two namespaces with a cable whose ends have these names.
fn cable(a: &Namespace, a_end: &str, b: &Namespace, b_end: &str) -> Result<()> {
    a.ip(&format!("link add {a_end} type veth peer name {b_end} netns {}", b.name))?;
    a.ip(&format!("link set {a_end} up"))?;
    b.ip(&format!("link set {b_end} up"))
}

/// See [`Place::door`].
#[derive(Debug)]
pub struct Door {
    _open: oneshot::Sender<()>,
}

impl Door {
    fn build(namespace: &Namespace, port: u16) -> Result<(SocketAddr, Self)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (open, shut) = oneshot::channel();
        namespace.within(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                tokio::select! {
                    _ = shut => Ok(()),
                    served = Self::serve(listener, port) => served,
                }
            })
        })?;
        Ok((address, Self { _open: open }))
    }

    /// Whoever comes in stands inside the namespace, because this thread does.
    async fn serve(listener: TcpListener, port: u16) -> Result<()> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut outside, _) = listener.accept().await?;
            tokio::spawn(async move {
                let mut inside = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                inside.set_nodelay(true)?;
                outside.set_nodelay(true)?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await
            });
        }
    }
}

/// Answers datagrams on a port, to be reached or not.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Echo {
    const PORT: u16 = 7;

    fn start(namespace: &Namespace) -> Result<Self> {
        let (stop, ready) = (Arc::new(AtomicBool::new(false)), oneshot::channel());
        let asked_to_stop = stop.clone();
        let thread = namespace.within(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, Self::PORT))?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            let _ = ready.0.send(());
            while !asked_to_stop.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut [0; 1]) {
                    let _ = socket.send_to(b"!", from);
                }
            }
            Ok(())
        })?;
        let echo = Self { stop, thread: Some(thread) };
        ready.1.blocking_recv().context("the echo does not start")?;
        Ok(echo)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(joined);
    }
}

/// What jumbo frames carry, in bytes.
const JUMBO: u32 = 9_000;

/// A laboratory: see the module's drawing. All of it is removed when it is dropped, with everything that still runs in it.
#[derive(Debug)]
pub struct Lab {
    hub: Arc<Namespace>,
    hub_router: Arc<Namespace>,
    internet: Arc<Namespace>,
    relay: Arc<Namespace>,
    elsewhere: Arc<Namespace>,
    peer_router: Arc<Namespace>,
    peer: Arc<Namespace>,
    /// What was added to the drawing later.
    further: Mutex<Vec<Arc<Namespace>>>,
}

impl Lab {
    /// Builds it, and makes sure that hub and peer do not reach each other.
    ///
    /// # Errors
    /// When this machine cannot, with what it lacks; or when the network is not what it should be.
    pub async fn build() -> Result<Self> {
        tokio::task::spawn_blocking(Self::build_now).await?
    }

    fn build_now() -> Result<Self> {
        check_machine()?;
        Namespace::sweep();
        let lab = Self {
            hub: Namespace::add("hub")?,
            hub_router: Namespace::add("hub-router")?,
            internet: Namespace::add("internet")?,
            relay: Namespace::add("relay")?,
            elsewhere: Namespace::add("elsewhere")?,
            peer_router: Namespace::add("peer-router")?,
            peer: Namespace::add("peer")?,
            further: Mutex::default(),
        };
        lab.internet.ip("link add switch type bridge")?;
        lab.internet.ip("link set switch up")?;
        lab.plug(&lab.relay, "relay", RELAY)?;
        lab.plug(&lab.elsewhere, "elsewhere", ELSEWHERE)?;
        lab.plug(&lab.hub_router, "hub", HUB_ROUTER)?;
        lab.plug(&lab.peer_router, "peer", PEER_ROUTER)?;
        home(&lab.hub, HUB, &lab.hub_router)?;
        home(&lab.peer, PEER, &lab.peer_router)?;
        lab.prove()?;
        Ok(lab)
    }

    /// Connects a namespace to the internet.
    fn plug(&self, namespace: &Namespace, end: &str, address: Ipv4Addr) -> Result<()> {
        cable(namespace, "wan", &self.internet, end)?;
        self.internet.ip(&format!("link set {end} master switch"))?;
        namespace.ip(&format!("addr add {address}/24 dev wan"))
    }

    fn prove(&self) -> Result<()> {
        let _echoes = [&self.hub, &self.relay, &self.peer].into_iter().map(|at| Echo::start(at)).collect::<Result<Vec<_>>>()?;
        let Self { hub, relay, peer, .. } = self;
        let open = [(hub, RELAY), (peer, RELAY)].map(|way| (way, true));
        let shut = [(peer, HUB), (peer, HUB_ROUTER), (hub, PEER), (hub, PEER_ROUTER), (relay, HUB_ROUTER), (relay, PEER_ROUTER)];
        let ways = open.into_iter().chain(shut.map(|way| (way, false)));
        let asked = ways.map(|((from, to), expected)| Ok((from, to, expected, from.ask(to)?))).collect::<Result<Vec<_>>>()?;
        for (from, to, expected, asked) in asked {
            let reached = joined(asked)?;
            ensure!(reached == expected, "{} {} {to}", from.name, if reached { "reaches" } else { "does not reach" });
        }
        Ok(())
    }

    /// Behind the first router.
    pub fn hub(&self) -> Place {
        self.hub.place()
    }

    /// On the internet, at [`RELAY`].
    pub fn relay(&self) -> Place {
        self.relay.place()
    }

    /// On the internet, at [`ELSEWHERE`].
    pub fn elsewhere(&self) -> Place {
        self.elsewhere.place()
    }

    /// Behind the second router.
    pub fn peer(&self) -> Place {
        self.peer.place()
    }

    /// The peer's router translates in this way from now on, as after a restart.
    ///
    /// # Errors
    /// When the rules cannot be changed.
    pub fn peer_nat(&self, nat: Nat) -> Result<()> {
        self.peer_router.nft(&format!("flush ruleset\n{}", nat.rules(PEER)))?;
        self.peer_router.forget_connections()
    }

    /// The hub's router translates in this way from now on, as after a restart.
    ///
    /// # Errors
    /// When the rules cannot be changed.
    pub fn hub_nat(&self, nat: Nat) -> Result<()> {
        self.hub_router.nft(&format!("flush ruleset\n{}", nat.rules(HUB)))?;
        self.hub_router.forget_connections()
    }

    /// The peer's router forgets every connection, and goes on with the same addresses and ports.
    ///
    /// # Errors
    /// When it cannot.
    pub fn flush_connections(&self) -> Result<()> {
        self.peer_router.forget_connections()
    }

    /// The peer's provider translates once more, between the peer's router and the internet.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn put_carrier(&self) -> Result<()> {
        let carrier = Namespace::add("carrier")?;
        self.peer_router.ip("link del wan")?;
        self.plug(&carrier, "peer", PEER_ROUTER)?;
        let [a, b, c, _] = CARRIER.octets();
        cable(&carrier, "lan", &self.peer_router, "wan")?;
        carrier.ip(&format!("addr add {CARRIER}/24 dev lan"))?;
        self.peer_router.ip(&format!("addr add {a}.{b}.{c}.2/24 dev wan"))?;
        self.peer_router.ip(&format!("route add default via {CARRIER}"))?;
        carrier.forward()?;
        carrier.nft(&Nat::PortRestricted.rules(Ipv4Addr::new(a, b, c, 2)))?;
        self.keep(carrier);
        Ok(())
    }

    /// The peer is carried to another network: another interface, another router, another address outside. The one before is gone.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn switch_uplink(&self) -> Result<()> {
        let router = Namespace::add("uplink")?;
        self.plug(&router, "uplink", UPLINK_ROUTER)?;
        self.peer.ip("link del lan")?;
        home(&self.peer, UPLINK_PEER, &router)?;
        self.keep(router);
        Ok(())
    }

    fn keep(&self, namespace: Arc<Namespace>) {
        self.further.lock().unwrap_or_else(PoisonError::into_inner).push(namespace);
    }

    /// So many in a hundred packets of UDP are lost on the peer's way to the internet, and as many on the way back.
    ///
    /// # Errors
    /// When the rules cannot be changed.
    pub fn lose(&self, percent: u32) -> Result<()> {
        self.peer_router.nft(&format!(
            "table ip fault {{\n chain pass {{\n type filter hook forward priority -10;\n \
             meta l4proto udp numgen random mod 100 < {percent} counter drop\n }}\n }}\n"
        ))
    }

    /// UDP between the peer and this address is dropped from now on, until [`Lab::heal_udp`].
    ///
    /// # Errors
    /// When the rules cannot be changed.
    pub fn cut_between_peer_and(&self, address: Ipv4Addr) -> Result<()> {
        self.peer_router.nft(&format!(
            "table ip fault {{\n chain pass {{\n type filter hook forward priority -10;\n \
             meta l4proto udp ip daddr {address} counter drop\n meta l4proto udp ip saddr {address} counter drop\n }}\n }}\n"
        ))
    }

    /// Begins to count packets between the peer and this address, those that are dropped among them; [`Lab::counted`] says how many there were.
    ///
    /// # Errors
    /// When the rules cannot be changed.
    pub fn count_between_peer_and(&self, address: Ipv4Addr) -> Result<()> {
        self.peer_router.nft(&format!(
            "table ip count {{\n counter seen {{ }}\n chain pass {{\n type filter hook forward priority -15;\n \
             ip daddr {address} counter name seen\n ip saddr {address} counter name seen\n }}\n }}\n"
        ))
    }

    /// See [`Lab::count_between_peer_and`].
    ///
    /// # Errors
    /// When nothing is counted.
    pub fn counted(&self) -> Result<u64> {
        let mut list = Command::new("ip");
        list.args(["netns", "exec", &self.peer_router.name, "nft", "list", "counter", "ip", "count", "seen"]);
        let said = String::from_utf8(list.output()?.stdout)?;
        let packets = said.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        packets.and_then(|count| count.parse().ok()).with_context(|| format!("no count in {said:?}"))
    }

    /// The peer's router forgets every connection, and gives them other ports when they go on: what a router does that was restarted, or
    /// whose patience with a silent connection is over.
    ///
    /// # Errors
    /// When the rules cannot be changed.
    pub fn rebind_ports(&self) -> Result<()> {
        self.peer_router
            .nft("flush chain ip nat out\nadd rule ip nat out oifname \"wan\" meta l4proto udp masquerade to :20000-29999\n")?;
        self.readdress(PEER_ROUTER, PEER_ROUTER)
    }

    /// The peer's router gets another address from its provider.
    ///
    /// # Errors
    /// When the address cannot be changed.
    pub fn rebind_address(&self) -> Result<()> {
        self.readdress(PEER_ROUTER, PEER_ROUTER_LATER)
    }

    /// The kernel forgets what it masqueraded behind an address when that is taken away.
    fn readdress(&self, from: Ipv4Addr, to: Ipv4Addr) -> Result<()> {
        self.peer_router.ip(&format!("addr del {from}/24 dev wan"))?;
        self.peer_router.ip(&format!("addr add {to}/24 dev wan"))
    }

    /// The peer's router drops all UDP from now on.
    ///
    /// # Errors
    /// When the rules cannot be changed.
    pub fn cut_udp(&self) -> Result<()> {
        self.peer_router
            .nft("table ip fault {\n chain pass {\n type filter hook forward priority -10;\n meta l4proto udp counter drop\n }\n }\n")
    }

    /// The peer's router drops everything from now on, until [`Lab::heal_udp`].
    ///
    /// # Errors
    /// When the rules cannot be changed.
    pub fn cut_all(&self) -> Result<()> {
        self.peer_router.nft("table ip fault {\n chain pass {\n type filter hook forward priority -10;\n counter drop\n }\n }\n")
    }

    /// The peer's router passes nothing but TCP to this port of [`ELSEWHERE`].
    ///
    /// # Errors
    /// When the rules cannot be changed.
    pub fn only_proxy(&self, port: u16) -> Result<()> {
        let rules = format!(
            "table ip fault {{\n chain pass {{\n type filter hook forward priority -10;\n ct state established accept\n \
             ip daddr {ELSEWHERE} tcp dport {port} accept\n counter drop\n }}\n }}\n"
        );
        self.peer_router.nft(&rules)
    }

    /// Jumbo frames pass everywhere.
    ///
    /// # Errors
    /// When it cannot be changed.
    pub fn widen(&self) -> Result<()> {
        let Self { hub, hub_router, internet, relay, elsewhere, peer_router, peer, .. } = self;
        let inside = [(hub, "lan"), (hub_router, "lan"), (peer, "lan"), (peer_router, "lan")];
        let outside = [(hub_router, "wan"), (peer_router, "wan"), (relay, "wan"), (elsewhere, "wan")];
        let ports = ["relay", "elsewhere", "hub", "peer", "switch"].map(|port| (internet, port));
        let mut all = inside.into_iter().chain(outside).chain(ports);
        all.try_for_each(|(at, device)| at.ip(&format!("link set {device} mtu {JUMBO}")))
    }

    /// Nothing larger than this passes the peer's router and its provider, in either direction.
    ///
    /// # Errors
    /// When it cannot be changed.
    pub fn narrow(&self, mtu: u32) -> Result<()> {
        self.peer_router.ip(&format!("link set wan mtu {mtu}"))?;
        self.internet.ip(&format!("link set peer mtu {mtu}"))
    }

    /// And passes it again.
    ///
    /// # Errors
    /// When the rules cannot be changed.
    pub fn heal_udp(&self) -> Result<()> {
        self.peer_router.nft("delete table ip fault\n")
    }
}

fn check_machine() -> Result<()> {
    let tools = [("ip", "-V"), ("nft", "-v"), ("conntrack", "-V")];
    let lacks = tools.into_iter().find(|(tool, version)| execute(Command::new(tool).arg(version), "").is_err());
    match lacks {
        Some((tool, _)) => bail!("there is no {tool} here; {NEEDS}"),
        None if !geteuid().is_root() => bail!("not root; {NEEDS}"),
        None => Ok(()),
    }
}

/// A machine behind a router of its own.
fn home(machine: &Namespace, address: Ipv4Addr, router: &Namespace) -> Result<()> {
    let [a, b, c, _] = address.octets();
    let gateway = Ipv4Addr::new(a, b, c, 1);
    cable(machine, "lan", router, "lan")?;
    machine.ip(&format!("addr add {address}/24 dev lan"))?;
    machine.ip(&format!("route add default via {gateway}"))?;
    router.ip(&format!("addr add {gateway}/24 dev lan"))?;
    router.forward()?;
    router.nft(&Nat::PortRestricted.rules(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_test_left_is_swept_up() {
        check_machine().unwrap();
        // No process has this number.
        let name = format!("{PREFIX}99999999-0-left");
        execute(Command::new("ip").args(["netns", "add", &name]), "").unwrap();
        Namespace::sweep();
        assert!(!Path::new(NAMESPACES).join(&name).exists());
    }
}
