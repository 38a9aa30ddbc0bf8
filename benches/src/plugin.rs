//! The plugin beside the reference plugins bridge + host-local, and beside `ip -batch` of the same links: the floor of
//! a program that is started. Each has its own bridge on one node; both families; 32 pods.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};
use serde_json::json;
use wg_overlay_e2e::lab::{Lab, LabConfig, Namespace, helper, product};

use crate::process::{Cost, cost, feed, inside, peer};
use crate::report::Findings;
use crate::{Options, each_round};

const PODS: usize = 32;
/// ADD and DEL so often one after another for one figure: a single one is too short for a shared machine.
const SERIAL: usize = 30;
const NETWORK: &str = r#"{"podCIDRs":["10.244.1.0/24","fd00:244:0:1::/64"],"mtu":1420}"#;

/// Who attaches a pod.
trait Attacher: Sync {
    fn add(&self, pod: usize) -> Result<()>;
    fn del(&self, pod: usize) -> Result<()>;
}

/// A CNI plugin, called as a runtime does.
struct Cni {
    program: PathBuf,
    conf: String,
}

impl Cni {
    fn command(&self, program: &Path, verb: &str, pod: usize) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("CNI_COMMAND", verb).env("CNI_CONTAINERID", format!("bench{pod}"));
        command.env("CNI_NETNS", format!("/run/netns/p{pod}")).env("CNI_IFNAME", "eth0");
        command.env("CNI_PATH", self.program.parent().unwrap_or(Path::new("/")));
        command
    }

    /// The peak memory of an ADD in MiB.
    fn peak(&self) -> Result<f64> {
        let mut command = self.command(&helper("peak-rss")?, "ADD", 0);
        let kib = feed(command.arg(&self.program), self.conf.as_bytes())?;
        self.del(0)?;
        Ok(kib.parse::<f64>().with_context(|| format!("peak-rss said {kib:?}"))? / 1024.0)
    }
}

impl Attacher for Cni {
    fn add(&self, pod: usize) -> Result<()> {
        feed(&mut self.command(&self.program, "ADD", pod), self.conf.as_bytes()).map(drop)
    }

    fn del(&self, pod: usize) -> Result<()> {
        feed(&mut self.command(&self.program, "DEL", pod), self.conf.as_bytes()).map(drop)
    }
}

/// The same links and addresses by `ip -batch`: one for the node, one for the pod, one for the end.
struct Batch;

impl Attacher for Batch {
    fn add(&self, pod: usize) -> Result<()> {
        let host = pod + 2;
        let node = format!(
            "link add bench{pod} mtu 1420 type veth peer name eth0 mtu 1420 netns p{pod}\n\
             link set bench{pod} master floor0 up\n"
        );
        let inner = format!(
            "link set eth0 up\naddr add 10.246.1.{host}/24 dev eth0\n\
             addr add fd00:246:0:1::{host:x}/64 dev eth0 nodad\nroute add default via 10.246.1.1\n\
             route add default via fd00:246:0:1::1\n"
        );
        feed(Command::new("ip").args(["-batch", "-"]), node.as_bytes())?;
        feed(Command::new("ip").args(["-n", &format!("p{pod}"), "-batch", "-"]), inner.as_bytes()).map(drop)
    }

    fn del(&self, pod: usize) -> Result<()> {
        feed(Command::new("ip").args(["-batch", "-"]), format!("link del bench{pod}\n").as_bytes()).map(drop)
    }
}

/// What one round of one attacher gave, in milliseconds.
#[derive(Default)]
struct Series {
    cpu: Vec<f64>,
    serial: Vec<f64>,
    at_once: Vec<f64>,
}

/// Measures the rows of `Group::Plugin`.
pub fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    let ours = Cni {
        program: product("wg-overlay-cni")?,
        conf: json!({ "cniVersion": "1.0.0", "name": "wg-overlay", "type": "wg-overlay-cni" }).to_string(),
    };
    let size = |path: &Path| -> Result<f64> { Ok(path.metadata()?.len() as f64 / 1e6) };
    findings.single("plugin-size", size(&ours.program)?);
    let reference = Cni { program: peer("bridge")?, conf: reference_conf() };
    let lab = Lab::new(LabConfig { nodes: 1, ..LabConfig::default() })?;
    let node = lab.node(1)?.namespace();
    set_up(node)?;
    let attachers: [&dyn Attacher; 3] = [&ours, &reference, &Batch];
    let [own, reference_series, batch] = inside(node.pid(), || {
        findings.single("plugin-rss", ours.peak()?);
        each_round(options.rounds, attachers, |attacher, series: &mut Series| {
            let Cost { cpu, wall } = cost(|| serial(attacher))?;
            series.cpu.push(cpu * 1e3 / SERIAL as f64);
            series.serial.push(wall * 1e3 / SERIAL as f64);
            series.at_once.push(cost(|| at_once(attacher))?.wall * 1e3);
            Ok(())
        })
    })?;
    let name = "bridge + host-local";
    findings.paired("plugin-cpu", &own.cpu, name, &reference_series.cpu)?;
    findings.paired("plugin-wall-serial", &own.serial, name, &reference_series.serial)?;
    findings.paired("plugin-wall-32", &own.at_once, name, &reference_series.at_once)?;
    findings.paired("plugin-wall-serial-ip", &own.serial, "ip -batch", &batch.serial)?;
    findings.paired("plugin-wall-32-ip", &own.at_once, "ip -batch", &batch.at_once)
}

fn serial(attacher: &dyn Attacher) -> Result<()> {
    (0..SERIAL).try_for_each(|_| attacher.add(0).and_then(|()| attacher.del(0)))
}

type Verb = fn(&dyn Attacher, usize) -> Result<()>;

fn at_once(attacher: &dyn Attacher) -> Result<()> {
    let verbs: [Verb; 2] = [|all, pod| all.add(pod), |all, pod| all.del(pod)];
    for verb in verbs {
        std::thread::scope(|scope| {
            let calls: Vec<_> = (0..PODS).map(|pod| scope.spawn(move || verb(attacher, pod))).collect();
            calls.into_iter().try_for_each(|call| call.join().map_err(|_| anyhow!("a call panicked"))?)
        })?;
    }
    Ok(())
}

/// The reference plugins doing what ours does: a gateway on a bridge, both families, no masquerade by rules.
fn reference_conf() -> String {
    json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "reference0", "isGateway": true, "mtu": 1420,
        "ipam": {
            "type": "host-local",
            "ranges": [[{ "subnet": "10.245.1.0/24" }], [{ "subnet": "fd00:245:0:1::/64" }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        },
    })
    .to_string()
}

/// The node as the agent leaves it, a bridge for `ip`, and the pods.
fn set_up(node: &Namespace) -> Result<()> {
    let bridge = |name: &str, v4: &str, v6: &str| {
        [
            format!("link add {name} mtu 1420 type bridge mcast_snooping 0"),
            format!("link set {name} up"),
            format!("addr add {v4} dev {name}"),
            format!("addr add {v6} dev {name} nodad"),
        ]
    };
    node.ip(&bridge("wgobr0", "10.244.1.1/24", "fd00:244:0:1::1/64"))?;
    node.ip(&bridge("floor0", "10.246.1.1/24", "fd00:246:0:1::1/64"))?;
    node.ip(&(0..PODS).map(|pod| format!("netns add p{pod}")).collect::<Vec<_>>())?;
    feed(node.command("nft").args(["-f", "-"]), wg_overlay_mesh::PORT_RULESET.as_bytes())?;
    std::fs::create_dir_all(node.path("/run/wg-overlay"))?;
    std::fs::write(node.path("/run/wg-overlay/network.json"), NETWORK).context("write the boot mark")
}
