//! The decisions alone: 5,000 nodes as decided and programmed, then one of them changes its address.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use wg_overlay_mesh::{
    ClusterView, Decision, DesiredState, Implementation, KeepaliveSetting, Local, MtuSetting, NodeRecord,
    ObservedBridge, ObservedDevice, ObservedFirewall, ObservedPeer, ObservedRoute, ObservedState, PublicKey,
    Resolved, Settings, Underlay, UnderlayLink, UnderlayRoute, decide, plan, ruleset,
};

use crate::nodes::{FIRST, MadeUp, POD_CIDRS, made_up};
use crate::report::Findings;
use crate::stats::median;
use crate::{Options, each_round};

/// Runs of one figure.
const RUNS: usize = 20;

/// A cluster whose kernel is as decided, but for one node's new address.
struct Changed {
    local: Local,
    view: ClusterView,
    observed: ObservedState,
    desired: DesiredState,
}

/// Measures the rows of `Group::Mesh`.
pub fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    let (large, small) = (Changed::new(5000)?, Changed::new(500)?);
    let mut plans = Vec::new();
    let [of_large, of_small] = each_round(options.rounds, [true, false], |is_large, took: &mut Vec<f64>| {
        let changed = if is_large { &large } else { &small };
        took.push(micros(|| changed.decide_and_plan())?);
        if is_large {
            plans.push(micros(|| {
                black_box(plan(&changed.desired, &changed.observed));
                Ok(())
            })?);
        }
        Ok(())
    })?;
    findings.single("plan-one-changed", median(&plans).context("no rounds")?);
    findings.paired("plan-delta", &of_large, "500 nodes", &of_small)
}

fn micros(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut took = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let began = Instant::now();
        work()?;
        took.push(began.elapsed().as_secs_f64() * 1e6);
    }
    median(&took).context("no runs")
}

impl Changed {
    fn new(nodes: u16) -> Result<Self> {
        let own = MadeUp::new(1);
        let mut view: ClusterView =
            made_up(nodes).chain([own]).map(|node| (node.name(), record(&node))).collect();
        let local = local(&own)?;
        let bare = ObservedState { underlay: underlay()?, ..ObservedState::default() };
        let decision = decided(&local, &view, &bare)?;
        ensure!(decision.desired.peers.len() == usize::from(nodes), "not all Nodes are believed");
        let observed = programmed(&decision.desired, bare);
        let local = Local { holders: decision.holders, ..local };
        ensure!(
            plan(&decision.desired, &observed).steps.is_empty(),
            "what is programmed is not what is desired"
        );
        let moved = MadeUp { net: 29, ..MadeUp::new(FIRST) };
        view.insert(moved.name(), record(&moved));
        let desired = decided(&local, &view, &observed)?.desired;
        let steps = plan(&desired, &observed).steps.len();
        ensure!((1..=2).contains(&steps), "one change of address makes {steps} steps");
        Ok(Self { local, view, observed, desired })
    }

    fn decide_and_plan(&self) -> Result<()> {
        let decision = decided(&self.local, &self.view, &self.observed)?;
        black_box(plan(&decision.desired, &self.observed));
        Ok(())
    }
}

fn decided(local: &Local, view: &ClusterView, observed: &ObservedState) -> Result<Decision> {
    decide(local, view, &Resolved::new(), observed).map_err(|problem| anyhow!("{problem}"))
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
        (*net, ObservedRoute { through_device: true, source: route.source, mtu: route.mtu })
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
        ..bare
    }
}
