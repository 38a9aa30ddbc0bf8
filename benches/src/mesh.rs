//! The decisions alone: 5,000 nodes as decided and programmed, then one of them changes its address, time and again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use wg_overlay_mesh::{
    Changes, ClusterView, DesiredState, Implementation, KeepaliveSetting, Link, Local, Mesh, MtuSetting,
    NodeRecord, ObservedBridge, ObservedDevice, ObservedFirewall, ObservedPeer, ObservedRoute, ObservedState,
    PORT_RULESET, PublicKey, Resolved, Settings, Step, Touched, Underlay, UnderlayLink, UnderlayRoute, plan,
    plan_touched, ruleset,
};

use crate::nodes::{FIRST, MadeUp, POD_CIDRS, made_up};
use crate::report::Findings;
use crate::stats::median;
use crate::{Options, each_round};

/// Runs of one figure: few would all fall into one pause of a shared machine.
const RUNS: usize = 500;

/// A cluster whose kernel is as decided, and one node that moves from one address to another.
struct Cluster {
    local: Local,
    view: ClusterView,
    observed: ObservedState,
    mesh: Mesh,
    mover: MadeUp,
}

/// What one move took, in microseconds.
#[derive(Default)]
struct Took {
    both: Vec<f64>,
    plan: Vec<f64>,
}

/// Measures the rows of `Group::Mesh`.
pub fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    let (mut large, mut small) = (Cluster::new(5000)?, Cluster::new(500)?);
    let [of_large, of_small] = each_round(options.rounds, [true, false], |is_large, took: &mut Took| {
        let cluster = if is_large { &mut large } else { &mut small };
        let runs = (0..RUNS).map(|_| cluster.move_one()).collect::<Result<Vec<_>>>()?;
        let (both, plans): (Vec<f64>, Vec<f64>) = runs.into_iter().unzip();
        took.both.push(median(&both).context("no runs")?);
        took.plan.push(median(&plans).context("no runs")?);
        Ok(())
    })?;
    findings.single("plan-one-changed", median(&of_large.plan).context("no rounds")?);
    findings.paired("plan-delta", &of_large.both, "500 nodes", &of_small.both)
}

impl Cluster {
    fn new(nodes: u16) -> Result<Self> {
        let own = MadeUp::new(1);
        let view: ClusterView =
            made_up(nodes).chain([own]).map(|node| (node.name(), record(&node))).collect();
        let local = local(&own)?;
        let observed = ObservedState { underlay: underlay()?, ..ObservedState::default() };
        let mut cluster = Self { local, view, observed, mesh: Mesh::default(), mover: MadeUp::new(FIRST) };
        cluster.update(Changes::default())?;
        let desired = cluster.desired()?;
        ensure!(desired.peers.len() == usize::from(nodes), "not all Nodes are believed");
        cluster.observed = programmed(desired, cluster.observed.clone());
        // What the first decision gave away is decided on again with the next one.
        cluster.update(Changes::default())?;
        let left = plan(cluster.desired()?, &cluster.observed).steps.len();
        ensure!(left == 0, "what is programmed is not what is desired: {left} steps");
        Ok(cluster)
    }

    /// Gives one node its other address; what decision and plan took together, and the plan alone.
    fn move_one(&mut self) -> Result<(f64, f64)> {
        self.mover.net = if self.mover.net == 29 { 31 } else { 29 };
        self.view.insert(self.mover.name(), record(&self.mover));
        let nodes = BTreeSet::from([self.mover.name()]);
        let began = Instant::now();
        let touched = self.update(Changes { nodes, ..Changes::default() })?;
        let decided = began.elapsed();
        let steps = plan_touched(self.desired()?, &self.observed, &touched).steps;
        let both = began.elapsed();
        ensure!(steps.len() == 2, "one change of address makes {} steps", steps.len());
        steps.into_iter().for_each(|step| self.carry_out(step));
        Ok((both.as_secs_f64() * 1e6, (both - decided).as_secs_f64() * 1e6))
    }

    fn update(&mut self, changes: Changes) -> Result<Touched> {
        let Self { local, view, observed, mesh, .. } = self;
        mesh.update(local, view, &Resolved::new(), observed, changes).map_err(|problem| anyhow!("{problem}"))
    }

    fn desired(&self) -> Result<&DesiredState> {
        self.mesh.decision().map(|decision| &decision.desired).context("nothing is decided")
    }

    /// What the kernel holds after a step of a move.
    fn carry_out(&mut self, step: Step) {
        match step {
            Step::SetPeer(change) => {
                let peer = self.observed.peers.entry(change.public_key).or_default();
                (peer.endpoint, peer.written_endpoint) = (change.endpoint, change.endpoint);
            }
            Step::GuardEndpoints { add, remove } => {
                // in place: a new set of all would put what is measured next out of the caches
                if let Some(firewall) = &mut self.observed.firewall {
                    for endpoint in &remove {
                        firewall.endpoints.remove(endpoint);
                    }
                    firewall.endpoints.extend(add);
                }
            }
            _ => {}
        }
    }
}

fn record(node: &MadeUp) -> NodeRecord {
    let annotations = node.annotations();
    let annotations = annotations.as_object().into_iter().flatten();
    NodeRecord {
        created: i64::from(node.number),
        annotations: annotations
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
        pod_cidrs: node.pod_cidrs().map(|net| net.to_string()).into(),
        internal_ips: vec![node.address().to_string()],
        external_ips: vec![],
    }
}

fn local(own: &MadeUp) -> Result<Local> {
    Ok(Local {
        node_name: own.name(),
        public_key: PublicKey::from_bytes(own.key_bytes())?,
        next_key: None,
        rotation: None,
        max_mtu: 65535,
        settings: Settings {
            cluster_cidrs: POD_CIDRS.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
            overlay_cidrs: BTreeSet::new(),
            reserved: Vec::new(),
            listen_port: 51820,
            mtu: MtuSetting::Auto,
            keepalive: KeepaliveSetting::Auto,
            masquerade: true,
            non_masquerade: BTreeSet::new(),
            fail_closed: true,
        },
        holders: BTreeMap::new(),
        key_holders: BTreeMap::new(),
    })
}

fn underlay() -> Result<Underlay> {
    let own = format!("{}/16", MadeUp::new(1).address()).parse()?;
    let link = UnderlayLink { name: "eth0".to_owned(), mtu: 1500, addresses: BTreeSet::from([own]) };
    let route = UnderlayRoute { destination: "0.0.0.0/0".parse()?, link: 2, metric: 0 };
    Ok(Underlay { links: BTreeMap::from([(2, link)]), routes: vec![route] })
}

/// The kernel once it holds what is desired.
fn programmed(desired: &DesiredState, bare: ObservedState) -> ObservedState {
    let peers = desired.peers.iter().map(|(key, peer)| {
        let endpoint = peer.endpoint.map(|(endpoint, _)| endpoint);
        let (allowed_ips, keepalive) = (peer.allowed_ips.clone(), peer.keepalive);
        let observed = ObservedPeer {
            endpoint,
            written_endpoint: endpoint,
            allowed_ips,
            keepalive,
            ..ObservedPeer::default()
        };
        (*key, observed)
    });
    let routes = desired.routes.iter().map(|(net, route)| {
        (*net, ObservedRoute { through: Some(Link::Device), source: route.source, mtu: route.mtu })
    });
    ObservedState {
        device: Some(ObservedDevice {
            implementation: Implementation::Kernel,
            marked: true,
            up: true,
            mtu: desired.device.mtu,
            addresses: desired.device.addresses.clone(),
            public_key: Some(desired.device.public_key),
            listen_port: desired.device.listen_port,
        }),
        bridge: Some(ObservedBridge {
            marked: true,
            up: true,
            mtu: desired.bridge.mtu,
            addresses: desired.bridge.addresses.clone(),
            netfilter: None,
        }),
        peers: peers.collect(),
        routes: routes.collect(),
        unreachable: desired.unreachable.clone(),
        firewall: Some(ObservedFirewall {
            ruleset: ruleset(&desired.firewall),
            endpoints: desired.firewall.endpoints.clone(),
        }),
        port_guard: Some(PORT_RULESET.to_owned()),
        ..bare
    }
}
