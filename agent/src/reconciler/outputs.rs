//! What a round tells others: the Node's annotations, this boot's mark, Events, and the report.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use tokio::{task::spawn_blocking, time::timeout};
use tracing::{debug, info, warn};
use wg_overlay_cni::{Network, Range, store};
use wg_overlay_host::Scope;
use wg_overlay_mesh::{
    Cluster, DEVICE, DesiredPeer, EndpointSource, ObservedPeer, PublicKey, Reason, Touched,
};

use super::Reconciler;
use crate::{
    cluster::{NOT_ENFORCED, chain},
    cni_install, record,
    server::{Health, Question, Report},
    status::{DeviceStatus, PeerState, PeerStatus, PodRange, State, Status},
};

/// A patch that takes longer is tried again later; the kernel's work doesn't wait for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was told once and need not be told again.
#[derive(Default)]
pub(super) struct Reported {
    /// Refusals by Node, as logged and sent as Events.
    refusals: BTreeMap<String, Reason>,
    user_space: bool,
}

impl Reconciler {
    /// Says once of each Node why it is refused, and once when it no longer is. Others than those touched are as before.
    pub(super) fn report_refusals(&mut self, touched: &Touched) {
        let Some(decision) = self.mesh.decision() else { return };
        let reported = &mut self.last.reported.refusals;
        let nodes: BTreeSet<String> = match touched {
            Touched::Everything => decision.refusals.keys().chain(reported.keys()).cloned().collect(),
            Touched::Only(part) => part.nodes.iter().map(ToString::to_string).collect(),
        };
        let mut faults = Vec::new();
        for node in nodes {
            let now = decision.refusals.get(&node).map(|refusal| &refusal.reason);
            let before = reported.get(&node);
            match now {
                Some(reason) if Some(reason) != before => {
                    if reason.is_fault() {
                        warn!(node, reason = reason.word(), "refused: {reason}");
                        faults.push((reason.word(), format!("Node {node} is refused: {reason}")));
                    } else {
                        debug!(node, "takes no part: {reason}");
                    }
                    reported.insert(node, reason.clone());
                }
                None => {
                    if reported.remove(&node).is_some_and(|reason| reason.is_fault()) {
                        info!(node, "no longer refused");
                    }
                }
                Some(_) => {}
            }
        }
        faults.into_iter().for_each(|(reason, note)| self.send_event(reason, note));
    }

    /// Checks what the kernel must do for our packets beside what is ours.
    pub(super) async fn check_host(&mut self) {
        let v4 = self.local_family(false);
        let v6 = self.local_family(true);
        let mut problems: Vec<String> = match self.host.ensure_forwarding(v4, v6).await {
            Ok(shortcomings) => shortcomings.iter().map(ToString::to_string).collect(),
            Err(error) => vec![chain(&error)],
        };
        problems.extend(self.host.warnings());
        let observed = self.host.observed();
        if observed.bridge.as_ref().is_some_and(|b| b.netfilter.is_none()) {
            problems.push(
                "the kernel has no br_netfilter, so a ClusterIP between two pods of one node fails: modprobe br_netfilter"
                    .into(),
            );
        }
        if let Some(rival) = cni_install::rival(&self.config) {
            problems.push(format!(
                "{} comes before {}: the runtime takes the first. Remove the other network's file",
                rival.display(),
                cni_install::CONFLIST
            ));
        }
        let user_space = observed
            .device
            .as_ref()
            .is_some_and(|d| d.implementation == wg_overlay_mesh::Implementation::UserSpace);
        self.note("host", problems);
        if user_space && !std::mem::replace(&mut self.last.reported.user_space, true) {
            let text = "this kernel has no WireGuard: the tunnel runs in user space. Its module is wireguard (Linux 5.6)";
            warn!("{text}");
            self.send_event("UserSpaceDevice", text.into());
        }
    }

    /// Makes the node ready for pods. Returns whether that worked.
    pub(super) async fn install_cni(&mut self, full: bool) -> bool {
        let Some(decision) = self.mesh.decision() else { return true };
        let network = Network { pod_cidrs: decision.pod_cidrs.clone(), mtu: decision.desired.bridge.mtu };
        if !full && self.last.installed.as_ref() == Some(&network) {
            return true;
        }
        let (config, wanted) = (self.config.clone(), network.clone());
        let installed = spawn_blocking(move || cni_install::install(&config, &wanted)).await;
        let problem = match installed {
            Ok(Ok(status)) => {
                if self.last.cni.is_none() {
                    info!("ready for pods");
                }
                self.last.cni = Some(status);
                None
            }
            Ok(Err(error)) => Some(chain(&error)),
            Err(error) => Some(error.to_string()),
        };
        let worked = problem.is_none();
        if worked {
            self.last.installed = Some(network);
        }
        self.note("cni", problem.into_iter().collect());
        worked
    }

    /// Writes down who holds what, if something was decided since the last time.
    pub(super) async fn write_record(&mut self) {
        let (Some(file), Some(decision)) = (self.file.clone(), self.mesh.decision()) else { return };
        if !std::mem::take(&mut self.last.unrecorded) {
            return;
        }
        let (path, text) = (file.record(), record::text(&file, decision));
        let written = spawn_blocking(move || record::write(&file, &text)).await.map_err(io::Error::from);
        let problem = written.flatten().err().map(|error| {
            self.last.unrecorded = true;
            format!(
                "can't write {}: {error}. Who holds which prefix is forgotten at a reboot",
                path.display()
            )
        });
        self.note("record", problem.into_iter().collect());
    }

    /// Lets new pods wait: a Node that is gone may come back with other PodCIDRs, and where these pods are nobody would know.
    pub(super) fn hold_pods(&mut self) {
        match Network::remove(&self.config.state_dir) {
            Ok(true) => info!("new pods wait until this node's PodCIDRs are known again"),
            Ok(false) => {}
            Err(error) => self.note("cni", vec![chain(&error)]),
        }
        self.last.cni = None;
        self.last.installed = None;
    }

    /// Whether this node's own device, guards and valid peers are programmed, and pods are attached.
    pub(super) fn is_ready(&self) -> bool {
        let broken = ["kernel", "node", "cni"]
            .iter()
            .any(|source| self.last.problems.get(source).is_some_and(|p| !p.is_empty()));
        self.last.cni.is_some() && self.mesh.decision().is_some() && !broken
    }

    /// Answers a question. Whoever asked may be gone.
    pub(super) async fn answer(&mut self, question: Question) {
        match question {
            Question::Report(asked) => drop(asked.send(self.report().await)),
            Question::Health(asked) => {
                let (state, problems) = (self.state(), self.problems());
                drop(asked.send(Health { ready: self.is_ready(), state, problems }));
            }
            Question::RotateKey(asked) => drop(asked.send(self.rotate().map_err(|error| chain(&error)))),
        }
    }

    async fn report(&mut self) -> Report {
        if let Err(error) = self.host.observe(Scope::WIREGUARD).await {
            warn!(error = %chain(&error), "can't read the peers");
        }
        self.tracker.observe(&self.host.observed().peers, Instant::now());
        Report { status: self.status(), counters: self.counters.clone() }
    }

    fn state(&self) -> State {
        self.last.state.unwrap_or(State::NotStarted)
    }

    fn problems(&self) -> Vec<String> {
        self.last.problems.values().flatten().cloned().chain(self.publisher.problem()).collect()
    }

    fn status(&self) -> Status {
        let mut status = Status::new(&self.config.node_name, self.config.fail_closed);
        status.state = self.state();
        status.problems = self.problems();
        status.ready = self.is_ready();
        status.rotation = self.rotator.status();
        if self.policies.load(Ordering::Relaxed) {
            status.notes.push(NOT_ENFORCED.to_owned());
        }
        if let Some(cni) = &self.last.cni {
            status.cni = cni.clone();
        }
        if let Ok(counters) = self.host.nft().counters() {
            status.guard.drops = counters.into_iter().map(|(name, (packets, _))| (name, packets)).collect();
        }
        let observed = self.host.observed();
        let Some(decision) = self.mesh.decision() else { return status };
        status.device = observed.device.as_ref().map(|device| DeviceStatus {
            name: DEVICE.into(),
            implementation: device.implementation.to_string(),
            listen_port: device.listen_port,
            mtu: device.mtu,
            underlay: self.underlay(),
            public_key: self.local.public_key.to_string(),
        });
        status.guard.prefixes = decision.desired.unreachable.iter().map(ToString::to_string).collect();
        status.pods = self.pod_ranges(&decision.pod_cidrs);
        status.pods_on_old_cidrs = self.pods_outside(&decision.pod_cidrs).into_keys().collect();
        status.peers = self.peers(decision);
        status
    }

    fn underlay(&self) -> Option<(String, u32)> {
        let record = self.nodes.read(|view| Some(view?.record(&self.local.node_name)?.into_owned()))?;
        let link = wg_overlay_mesh::underlay_link(&self.host.observed().underlay, &record)?;
        Some((link.name.clone(), link.mtu))
    }

    fn pod_ranges(&self, pod_cidrs: &[ipnet::IpNet]) -> Vec<PodRange> {
        let held = store(&self.config.state_dir).list().unwrap_or_default();
        let ips: Vec<_> = held.into_iter().flat_map(|r| r.addresses).collect();
        let range = |net: &ipnet::IpNet| {
            let used = ips.iter().filter(|ip| net.contains(*ip)).count();
            let capacity = Range::new(*net).ok().map(|r| r.capacity());
            PodRange {
                cidr: net.to_string(),
                used: u64::try_from(used).unwrap_or(u64::MAX),
                // a /64 is never counted to its end
                capacity: capacity.and_then(|c| u32::try_from(c).ok()).map(u64::from),
            }
        };
        pod_cidrs.iter().map(range).collect()
    }

    fn peers(&self, decision: &wg_overlay_mesh::Decision) -> Vec<PeerStatus> {
        let observed = &self.host.observed().peers;
        let desired = decision.desired.peers.iter();
        let programmed = desired.filter_map(|(key, peer)| observed.get(key).map(|found| (key, peer, found)));
        let mut peers: Vec<_> = programmed.map(|(key, peer, found)| self.peer(key, peer, found)).collect();
        for peer in &mut peers {
            if let Some(name) = decision.unresolved.get(&peer.node) {
                peer.state = PeerState::Unresolved;
                peer.note = Some(format!("its endpoint {name} has no answer from this node's resolver yet"));
            }
        }
        peers.extend(decision.refusals.iter().map(|(node, refusal)| refused(node, &refusal.reason)));
        peers.sort_by(|a, b| {
            (a.state == PeerState::Refused, &a.node).cmp(&(b.state == PeerState::Refused, &b.node))
        });
        peers
    }

    fn peer(&self, key: &PublicKey, desired: &DesiredPeer, found: &ObservedPeer) -> PeerStatus {
        let (state, silent) = self.tracker.state(key, found, Instant::now());
        let port = found.endpoint.map_or(self.config.listen_port, |e| e.port());
        let note = silent.map(|time| {
            let time = crate::status::duration(time.as_secs());
            format!("sent for {time}, nothing back: is UDP {port} open towards it?")
        });
        PeerStatus {
            node: desired.node.to_string(),
            state,
            public_key: Some(key.to_string()),
            endpoint: found.endpoint.map(|e| e.to_string()),
            annotated: matches!(desired.endpoint, Some((_, EndpointSource::Annotated))),
            allowed_ips: found.allowed_ips.iter().map(ToString::to_string).collect(),
            handshake_age_seconds: found.handshake_age.map(|age| age.as_secs()),
            received_bytes: found.received,
            sent_bytes: found.sent,
            note,
            reason: None,
        }
    }

    fn local_family(&self, ipv6: bool) -> bool {
        let decision = self.mesh.decision();
        decision.is_some_and(|d| d.pod_cidrs.iter().any(|net| net.network().is_ipv6() == ipv6))
    }

    fn send_event(&self, reason: &'static str, note: String) {
        let reporter = self.reporter.clone();
        // an Event is a courtesy: nothing waits for it
        tokio::spawn(async move { timeout(PATIENCE, reporter.warn(reason, note)).await });
    }
}

fn refused(node: &str, reason: &Reason) -> PeerStatus {
    let state = if reason.is_fault() { PeerState::Refused } else { PeerState::NoAgent };
    PeerStatus {
        note: reason.is_fault().then(|| reason.to_string()),
        reason: Some(reason.word().to_owned()),
        ..PeerStatus::new(node, state)
    }
}
