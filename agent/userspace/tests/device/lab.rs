//! Two nodes joined by an underlay link, each with a device that runs as a process of its own.
//!
//! ```text
//!   wgu-N-a                                   wgu-N-b
//!   wgu0 10.9.1.1/32 fd09:1::1/128            wgu0 10.9.2.1/32 fd09:2::1/128
//!   u0   192.0.2.1/24 2001:db8::1/64 ──veth── u0   192.0.2.2/24 2001:db8::2/64
//! ```
//! A node is a network namespace, and a mount namespace with a /run of its own that outlives the
//! device in it. All of it goes when the lab is dropped.

use std::{
    io::Read,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What a test answers: `Err` says what was expected and what came.
pub type Outcome<T = ()> = Result<T, String>;

/// A test and its name.
pub type Test = (&'static str, fn() -> Outcome);

/// The link that all devices here have.
pub const LINK: &str = "wgu0";

/// How long a condition may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

static LABS: AtomicU32 = AtomicU32::new(0);

pub struct Lab {
    pub a: Node,
    pub b: Node,
}

pub struct Node {
    pub number: u8,
    pub namespace: String,
    /// Keeps the node's mount namespace, and the sockets in it, while no device runs.
    holder: Child,
    pub device: Option<Device>,
    pub private_key: String,
    pub public_key: String,
}

pub struct Device {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Lab {
    /// Both nodes and the link between them, `underlay_mtu` bytes; no device runs yet.
    pub fn new(underlay_mtu: u16) -> Outcome<Self> {
        let lab = LABS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("wgu-{}-{lab}", std::process::id());
        let lab = Self { a: Node::new(1, format!("{prefix}-a"))?, b: Node::new(2, format!("{prefix}-b"))? };
        let (a, b) = (&lab.a.namespace, &lab.b.namespace);
        sh(&format!(
            "ip -n {a} link add u0 mtu {underlay_mtu} type veth peer name u0 mtu {underlay_mtu} netns {b}"
        ))?;
        for node in [&lab.a, &lab.b] {
            let (ns, n) = (&node.namespace, node.number);
            sh(&format!(
                "ip -n {ns} link set lo up && ip -n {ns} addr add 192.0.2.{n}/24 dev u0 && \
                 ip -n {ns} addr add 2001:db8::{n}/64 dev u0 nodad && ip -n {ns} link set u0 up"
            ))?;
        }
        Ok(lab)
    }

    /// A lab whose devices run and know each other, over IPv4.
    pub fn joined(underlay_mtu: u16, mtu: u16) -> Outcome<Self> {
        let mut lab = Self::new(underlay_mtu)?;
        lab.a.start(mtu)?;
        lab.b.start(mtu)?;
        lab.a.know(&lab.b, "192.0.2.2:51820")?;
        lab.b.know(&lab.a, "192.0.2.1:51820")?;
        lab.a.address(mtu)?;
        lab.b.address(mtu)?;
        Ok(lab)
    }
}

impl Node {
    fn new(number: u8, namespace: String) -> Outcome<Self> {
        sh(&format!("ip netns add {namespace}"))?;
        let holder = Command::new("ip")
            .args(["netns", "exec", &namespace, "sh", "-c"])
            .arg("mount -t tmpfs none /run && echo && exec sleep 86400")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("ip netns exec: {error}"));
        let mut node = Self {
            number,
            namespace,
            holder: holder?,
            device: None,
            private_key: String::new(),
            public_key: String::new(),
        };
        // The blank line says that the mount is there.
        let mut ready = [0];
        let stdout = node.holder.stdout.as_mut().ok_or("no stdout of the holder")?;
        stdout.read_exact(&mut ready).map_err(|error| format!("/run of its own: {error}"))?;
        node.private_key = sh("wg genkey")?.trim().to_owned();
        node.public_key = sh(&format!("echo {} | wg pubkey", node.private_key))?.trim().to_owned();
        Ok(node)
    }

    /// `command` by a shell, in both namespaces of the node.
    pub fn command(&self, command: &str) -> Command {
        let mut enter = Command::new("nsenter");
        enter.args(["-t", &self.holder.id().to_string(), "-m", "-n", "sh", "-c", command]);
        enter
    }

    /// Runs `command` here: its stdout, or what it said when it failed.
    pub fn sh(&self, command: &str) -> Outcome<String> {
        answer(self.command(command).output(), command)
    }

    /// This program itself, in the part `role` (see main.rs), in the node's namespaces.
    pub fn this_program(&self, role: &str, arguments: &str) -> Outcome<Command> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = self.command(&format!("exec {} {arguments}", program.display()));
        command.env("WGU_ROLE", role);
        Ok(command)
    }

    /// A device process, whether it comes up or not. `log` is the filter of its log.
    pub fn spawn(&self, mtu: u16, log: &str) -> Outcome<Device> {
        let mut child = self
            .this_program("device", &format!("{LINK} {mtu}"))?
            .env("RUST_LOG", log)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("start the device: {error}"))?;
        let mut stderr = child.stderr.take().ok_or("no stderr of the device")?;
        let log = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&log);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut bytes) {
                let text = String::from_utf8_lossy(bytes.get(..count).unwrap_or_default());
                if let Ok(mut log) = sink.lock() {
                    log.push_str(&text);
                }
            }
        });
        Ok(Device { child, log })
    }

    /// Starts the node's device and waits until `wg` can read it.
    pub fn start(&mut self, mtu: u16) -> Outcome {
        self.start_logging(mtu, "info,wg_overlay_userspace=debug")
    }

    pub fn start_logging(&mut self, mtu: u16, log: &str) -> Outcome {
        self.device = Some(self.spawn(mtu, log)?);
        eventually("`wg show` reads the device", || self.sh(&format!("wg show {LINK}")))?;
        Ok(())
    }

    /// Sets this node's key, port 51820, and `peer` at `endpoint`.
    pub fn know(&self, peer: &Self, endpoint: &str) -> Outcome {
        let n = peer.number;
        self.set(&format!(
            "private-key /run/key listen-port 51820 peer {} endpoint {endpoint} \
             allowed-ips 10.9.{n}.0/24,fd09:{n}::/64",
            peer.public_key
        ))
    }

    /// `wg set`, with the node's key in /run/key.
    pub fn set(&self, change: &str) -> Outcome {
        self.sh(&format!("echo {} > /run/key && wg set {LINK} {change}", self.private_key))?;
        Ok(())
    }

    /// Gives the link its addresses, its MTU and the routes to the other node.
    pub fn address(&self, mtu: u16) -> Outcome {
        let (n, other) = (self.number, 3 - self.number);
        self.sh(&format!(
            "ip addr add 10.9.{n}.1/32 dev {LINK} && ip addr add fd09:{n}::1/128 dev {LINK} nodad && \
             ip link set {LINK} up mtu {mtu} && ip route add 10.9.{other}.0/24 dev {LINK} && \
             ip route add fd09:{other}::/64 dev {LINK} src fd09:{n}::1"
        ))?;
        Ok(())
    }

    /// The column of `peer` in `wg show LINK what`.
    pub fn show(&self, what: &str, peer: &str) -> Outcome<String> {
        let table = self.sh(&format!("wg show {LINK} {what}"))?;
        let row = table.lines().find_map(|row| row.strip_prefix(peer));
        row.map(|row| row.trim().to_owned())
            .ok_or_else(|| format!("wg show {LINK} {what}: no {peer} in {table:?}"))
    }

    /// Bytes received from and sent to `peer`.
    pub fn transfer(&self, peer: &str) -> Outcome<(u64, u64)> {
        let row = self.show("transfer", peer)?;
        let mut numbers = row.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(received)), Some(Ok(sent))) => Ok((received, sent)),
            _ => Err(format!("transfer: {row:?}")),
        }
    }

    /// Three pings in a row arrive, once the tunnel is there.
    pub fn ping(&self, options: &str) -> Outcome {
        eventually("pings arrive", || self.sh(&format!("ping -q -c 3 -i 0.1 -W 1 {options}")))?;
        Ok(())
    }

    /// Where the node's UAPI socket is, seen from outside of its mount namespace.
    pub fn socket(&self) -> PathBuf {
        self.run(&format!("wireguard/{LINK}.sock"))
    }

    /// A file of its /run, seen from outside.
    pub fn run(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/run/{file}", self.holder.id()))
    }

    pub fn device(&mut self) -> Outcome<&mut Device> {
        self.device.as_mut().ok_or_else(|| "no device runs".to_owned())
    }
}

impl Device {
    /// Its end, awaited.
    pub fn ended(&mut self) -> Outcome<ExitStatus> {
        eventually("the device process ends", || {
            let status = self.child.try_wait().map_err(|error| error.to_string())?;
            status.ok_or_else(|| "it runs".to_owned())
        })
    }

    /// How often the thread of this name has gone to sleep.
    pub fn sleeps(&self, thread: &str) -> Outcome<u64> {
        let files = format!("/proc/{}/task/*", self.child.id());
        let status = sh(&format!("cat $(grep -lx {thread} {files}/comm | sed s/comm/status/)"))?;
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.and_then(|count| count.trim().parse().ok()).ok_or_else(|| format!("no count in {status:?}"))
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn signal(&mut self, signal: &str) -> Outcome {
        sh(&format!("kill -{signal} {}", self.child.id()))?;
        Ok(())
    }

    /// All that it logged so far.
    pub fn log(&self) -> String {
        self.log.lock().map(|log| log.clone()).unwrap_or_default()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.device = None;
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = sh(&format!("ip netns del {}", self.namespace));
    }
}

/// Tries until `attempt` succeeds, and gives up with its last answer.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Outcome<T>) -> Outcome<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > end => return Err(format!("{what}: {error}")),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Runs `command` by a shell in the namespaces of the test itself.
pub fn sh(command: &str) -> Outcome<String> {
    answer(Command::new("sh").args(["-c", command]).output(), command)
}

fn answer(output: std::io::Result<Output>, command: &str) -> Outcome<String> {
    let output = output.map_err(|error| format!("{command}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    Err(format!("{command}: {}: {out}{err}", output.status))
}

/// The claim `holds`, or what was seen instead.
pub fn expect(holds: bool, claim: &str, seen: impl std::fmt::Debug) -> Outcome {
    holds.then_some(()).ok_or_else(|| format!("expected {claim}, saw {seen:?}"))
}
