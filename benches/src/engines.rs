//! The user-space devices, all up at once between the same two nodes; who isn't measured is idle.
//!
//! ```text
//!   n1  d0 198.18.0.1 ──veth── d0 198.18.0.2  n2      and for engine E, over it:
//!       engE 10.99.E.1 ── UDP 52000+E ── engE 10.99.E.2
//! ```

use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use wg_overlay_e2e::lab::{Lab, LabConfig, Namespace, Node, eventually, product, run, run_with_input};

use crate::process::peer;
use crate::report::Findings;
use crate::stats::median;
use crate::watched::{cpu_of, memory_of};

/// The overlay's MTU over an underlay of 1,500 bytes, for all.
const MTU: u16 = 1420;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `wg-overlay device`.
    Ours,
    /// wireguard-go at its newest commit.
    WireguardGo,
    /// Debian's wireguard-go, of 2022.
    WireguardGo2022,
    /// gotatun-cli.
    Gotatun,
    /// boringtun-cli.
    Boringtun,
    /// No tunnel at all.
    Veth,
}

impl Kind {
    /// All of them, ours first.
    pub const ALL: [Self; 6] =
        [Self::Ours, Self::WireguardGo, Self::WireguardGo2022, Self::Gotatun, Self::Boringtun, Self::Veth];

    /// As the report has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "wg-overlay device",
            Self::WireguardGo => "wireguard-go",
            Self::WireguardGo2022 => "wireguard-go 2022",
            Self::Gotatun => "gotatun-cli",
            Self::Boringtun => "boringtun-cli",
            Self::Veth => "plain veth",
        }
    }

    /// Whether it is another's tunnel.
    pub fn is_peer(self) -> bool {
        !matches!(self, Self::Ours | Self::Veth)
    }

    /// The program with its arguments; none where there is no tunnel.
    fn program(self, link: &str) -> Result<Option<(PathBuf, Vec<String>)>> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        Ok(Some(match self {
            Self::Veth => return Ok(None),
            Self::Ours => (product("wg-overlay")?, words(&["device", link, "--mtu", &MTU.to_string()])),
            Self::WireguardGo => (peer("wireguard")?, words(&["-f", link])),
            Self::WireguardGo2022 => (PathBuf::from("/usr/bin/wireguard-go"), words(&["-f", link])),
            Self::Gotatun => {
                (peer("gotatun")?, words(&["-f", "--disable-drop-privileges", "-v", "error", link]))
            }
            Self::Boringtun => (peer("boringtun-cli")?, words(&["-f", "--disable-drop-privileges", link])),
        }))
    }
}

/// One tunnel, both ends.
#[derive(Debug, Clone, Copy)]
pub struct Engine {
    /// Whose it is.
    pub kind: Kind,
    /// The processes of the two ends; 0 where there is no tunnel.
    pids: [u32; 2],
    number: usize,
}

/// The nodes with all tunnels up.
pub struct Engines {
    lab: Lab,
    /// In the order they were asked for.
    pub all: Vec<Engine>,
}

impl Engine {
    /// The far end's address.
    pub fn target(&self) -> String {
        match self.kind {
            Kind::Veth => "198.18.0.2".to_owned(),
            _ => format!("10.99.{}.2", self.number),
        }
    }

    /// The processor time of both ends so far, in seconds.
    pub fn cpu(&self) -> Result<f64> {
        self.pids.iter().filter(|pid| **pid != 0).map(|pid| cpu_of(*pid)).sum()
    }

    /// The larger end's peak memory in MiB.
    pub fn peak_memory(&self) -> Result<f64> {
        let ends = self.pids.iter().filter(|pid| **pid != 0).map(|pid| memory_of(*pid, "VmHWM"));
        ends.collect::<Result<Vec<f64>>>().map(|ends| ends.into_iter().fold(0.0, f64::max))
    }
}

impl Engines {
    /// Starts them and waits until each carries packets.
    pub fn start(kinds: &[Kind]) -> Result<Self> {
        let lab = Lab::new(LabConfig { nodes: 2, ..LabConfig::default() })?;
        join(lab.node(1)?.namespace(), lab.node(2)?.namespace())?;
        let mut all = Vec::new();
        for (number, kind) in kinds.iter().enumerate() {
            let engine = start(&lab, *kind, number).with_context(|| kind.name())?;
            eventually(Duration::from_secs(20), &format!("{} carries packets", kind.name()), || {
                lab.node(1)?.exec("ping", ["-n", "-c1", "-W1", &engine.target()]).map(drop)
            })?;
            all.push(engine);
        }
        let server = lab.node(2)?;
        let mut command = server.namespace().command("iperf3");
        server.namespace().spawn(command.args(["-s"]), &server.log("iperf3"))?;
        let engines = Self { lab, all };
        eventually(Duration::from_secs(10), "iperf3 listens", || {
            let listening = engines.lab.node(2)?.exec("ss", ["-Hltn", "sport = :5201"])?;
            ensure!(!listening.is_empty(), "not yet");
            Ok(())
        })?;
        Ok(engines)
    }

    /// The sending side.
    pub fn client(&self) -> Result<&Node> {
        self.lab.node(1)
    }

    /// Runs iperf3 to the far end and gives its JSON.
    pub fn iperf3(&self, engine: &Engine, arguments: &[&str]) -> Result<Value> {
        again(|| told(engine, &run(&mut self.iperf3_command(engine, arguments)?)?))
    }

    /// The command alone.
    pub fn iperf3_command(&self, engine: &Engine, arguments: &[&str]) -> Result<Command> {
        // A flood may starve iperf3's own connection.
        let mut command = self.client()?.namespace().command("timeout");
        command.args(["60", "iperf3", "-J", "-c", &engine.target()]).args(arguments);
        Ok(command)
    }
}

/// What iperf3 printed, which may be an error.
pub fn told(engine: &Engine, text: &str) -> Result<Value> {
    let report: Value = serde_json::from_str(text).context("parse iperf3's JSON")?;
    match report.get("error") {
        None => Ok(report),
        Some(error) => Err(anyhow!("iperf3 over {}: {error}", engine.kind.name())),
    }
}

/// Tries a transfer three times, and names what failed. iperf3's own connection passes the tunnel that it floods and may
/// starve, and its server may not have ended the test before.
pub fn again<T>(once: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 0..2 {
        match once() {
            Ok(found) => return Ok(found),
            Err(error) => eprintln!("bench: {error:#}; once more"),
        }
        sleep(Duration::from_secs(2));
    }
    once()
}

/// Whom a row compares us with.
#[derive(Debug, Clone, Copy)]
pub enum Rival {
    /// This one.
    Named(Kind),
    /// The peer with the highest median.
    Highest,
    /// The peer with the lowest.
    Lowest,
}

/// Puts a row: ours beside the rival's figures, round by round, and the medians of all others.
///
/// # Errors
/// We or the rival were not measured.
pub fn compare(
    findings: &mut Findings,
    row: &'static str,
    table: &[(Kind, Vec<f64>)],
    rival: Rival,
) -> Result<()> {
    let medians = || table.iter().filter_map(|(kind, figures)| Some((*kind, median(figures)?)));
    let peers = || medians().filter(|(kind, _)| kind.is_peer());
    let with = match rival {
        Rival::Named(kind) => Some(kind),
        Rival::Highest => peers().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(kind, _)| kind),
        Rival::Lowest => peers().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(kind, _)| kind),
    };
    let with = with.context("no peer was measured")?;
    let of = |wanted: Kind| {
        let found = table.iter().find(|(kind, _)| *kind == wanted).map(|(_, figures)| figures);
        found.with_context(|| format!("{} was not measured", wanted.name()))
    };
    let beside = medians().filter(|(kind, _)| *kind != Kind::Ours && *kind != with);
    let beside = beside.map(|(kind, figure)| (kind.name().to_owned(), figure)).collect();
    findings.paired_beside(row, of(Kind::Ours)?, with.name(), of(with)?, beside)
}

fn join(a: &Namespace, b: &Namespace) -> Result<()> {
    a.ip(&[format!("link add d0 mtu 1500 type veth peer name d0 mtu 1500 netns {}", b.pid())])?;
    for (node, host) in [(a, 1), (b, 2)] {
        node.ip(&[format!("addr add 198.18.0.{host}/24 dev d0"), "link set d0 up".to_owned()])?;
    }
    Ok(())
}

fn start(lab: &Lab, kind: Kind, number: usize) -> Result<Engine> {
    let link = format!("eng{number}");
    let Some((program, arguments)) = kind.program(&link)? else {
        return Ok(Engine { kind, pids: [0; 2], number });
    };
    let keys = [genkey()?, genkey()?];
    let mut pids = [0; 2];
    for (end, pid) in pids.iter_mut().enumerate() {
        let node = lab.node(end + 1)?;
        let mut command = node.namespace().command(&program);
        command.args(&arguments).env("LOG_LEVEL", "error").env("RUST_LOG", "error");
        *pid = node.namespace().spawn(&mut command, &node.log(&link))?;
        eventually(Duration::from_secs(20), "wg reads the device", || {
            node.exec("wg", ["show", &link]).map(drop)
        })?;
        let [(private, _), (_, public)] = if end == 0 { [&keys[0], &keys[1]] } else { [&keys[1], &keys[0]] };
        let (port, far, host) = (52000 + number, 2 - end, end + 1);
        std::fs::write(node.path(format!("/run/{link}.key")), private)?;
        let set = format!(
            "set {link} private-key /run/{link}.key listen-port {port} peer {public} endpoint 198.18.0.{far}:{port} \
             allowed-ips 10.99.{number}.0/24"
        );
        node.exec("wg", set.split(' '))?;
        node.namespace().ip(&[
            format!("addr add 10.99.{number}.{host}/24 dev {link}"),
            format!("link set {link} up mtu {MTU}"),
        ])?;
    }
    Ok(Engine { kind, pids, number })
}

/// A private and its public key.
pub fn genkey() -> Result<(String, String)> {
    let private = run(Command::new("wg").arg("genkey"))?;
    let public = run_with_input(Command::new("wg").arg("pubkey"), &private)?;
    Ok((private, public.trim().to_owned()))
}
