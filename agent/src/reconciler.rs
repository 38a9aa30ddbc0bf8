//! The loop: something changed, observe, decide, plan, apply, report.
//!
//! Input: the Nodes, the kernel's events, names' answers, a timer. Output: the kernel, the Node's annotations, this
//! boot's mark, Events, and an answer for whoever asks. All state that decisions need is in here; the rest asks.

mod apply;
mod inputs;
mod keys;
mod outputs;
mod pace;
mod renewed;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::FutureExt;
use ipnet::IpNet;
use kube::Client;
use tokio::{
    net::UnixStream,
    sync::mpsc,
    time::{Instant as Deadline, MissedTickBehavior, interval, sleep, sleep_until},
};
use tracing::{error, info, warn};
use wg_overlay_cni::Network;
use wg_overlay_host::{Change, Host, Scope};
use wg_overlay_mesh::{Changes, Local, LocalProblem, Mesh, Step, Touched, plan_touched};

use crate::{
    cluster::{ClusterNetworks, Nodes, Publisher, Reporter, chain, learn_networks, look_for_policies},
    config::Config,
    identity::{Identity, KeyFile},
    metrics::Counters,
    record::{Record, read_or_forget},
    resolver::Resolver,
    rotation::Rotator,
    server::Question,
    status::{CniStatus, PeerTracker, State},
};

use apply::concerns_host;
pub use inputs::{gateways_in_use, names};
use pace::Pace;
use renewed::Renewed;

/// How long to wait for more of the same before acting: a link that goes down takes dozens of routes along.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// The first wait after a failed step; it doubles up to the resync interval.
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// After longer plans the decision is looked at again at once, since it depends on what the kernel holds: the next change
/// of a single Node then finds nothing else to look at.
const STEPS_FOLLOWED: usize = 64;

/// The reconciler and all it keeps between two rounds.
pub struct Reconciler {
    config: Config,
    nodes: Nodes,
    host: Host,
    resolver: Resolver,
    reporter: Arc<Reporter>,
    publisher: Publisher,
    networks: Arc<OnceLock<ClusterNetworks>>,
    policies: Arc<AtomicBool>,
    local: Local,
    rotator: Rotator,
    /// Where the key is kept, and beside it the record.
    file: Option<KeyFile>,
    /// What was written down before this agent's start, until the first decision.
    record: Option<Record>,
    mesh: Mesh,
    tracker: PeerTracker,
    counters: Counters,
    last: Last,
}

/// What the last round came to.
#[derive(Default)]
struct Last {
    state: Option<State>,
    /// Whether the kernel is as planned but for what changed since.
    carried_out: bool,
    /// Whether its plan was long.
    long: bool,
    /// Whether something was decided since who holds what was written down.
    unrecorded: bool,
    /// Problems by who found them, each replaced when it is looked at again.
    problems: BTreeMap<&'static str, Vec<String>>,
    cni: Option<CniStatus>,
    reported: outputs::Reported,
    renewed: Renewed,
    retry: Option<Retry>,
    /// When to look at the sessions of a rotation again.
    look_at: Option<Deadline>,
    /// Whether the user-space device was asked for in vain.
    lacks_device: bool,
    /// The node's own addresses on the underlay.
    addresses: BTreeSet<IpNet>,
    /// What the CNI files were written for.
    installed: Option<Network>,
}

/// When to try again, and how long that was to wait.
#[derive(Clone, Copy)]
struct Retry {
    wait: Duration,
    at: Deadline,
}

impl Retry {
    fn after(wait: Duration) -> Self {
        Self { wait, at: Deadline::now() + wait }
    }
}

/// What a reconciler is made of.
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// The way to the API server.
    pub client: Client,
    /// The Nodes.
    pub nodes: Nodes,
    /// The kernel.
    pub host: Host,
    /// Names' answers.
    pub resolver: Resolver,
    /// This node.
    pub local: Local,
    /// Its keys.
    pub identity: Identity,
}

impl Reconciler {
    /// Puts the parts together and starts the tasks that wait for the API server. Nothing is changed yet.
    pub fn new(parts: Parts) -> Self {
        let reporter = Arc::new(Reporter::new(parts.client.clone(), &parts.config.node_name));
        let (client, node) = (parts.client.clone(), parts.config.node_name.clone());
        let publisher = Publisher::start(client, parts.nodes.clone(), node, parts.config.legacy_annotations);
        let mut last = Last::default();
        last.problems.insert("key", parts.identity.problem.iter().cloned().collect());
        let file = parts.identity.file.clone();
        let mut reconciler = Self {
            record: file.as_ref().map(|file| read_or_forget(file, |problem| warn!("{problem}"))),
            file,
            publisher,
            policies: look_for_policies(parts.client.clone(), reporter.clone()),
            reporter,
            networks: learn_networks(parts.client, parts.nodes.clone()),
            rotator: Rotator::new(parts.identity, parts.config.key_rotation_interval),
            config: parts.config,
            nodes: parts.nodes,
            host: parts.host,
            resolver: parts.resolver,
            local: parts.local,
            mesh: Mesh::default(),
            tracker: PeerTracker::default(),
            counters: Counters::default(),
            last,
        };
        reconciler.take_keys();
        reconciler
    }

    /// Reconciles until `stop` is done. The kernel then stays as it is.
    ///
    /// # Errors
    /// Where the kernel's events can't be followed.
    pub async fn run(
        mut self,
        mut asked: mpsc::Receiver<Question>,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let mut events = self.host.events()?;
        let mut resync = interval(self.config.resync_interval);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = std::pin::pin!(stop);
        let mut pace = Pace::new(Deadline::now());
        loop {
            // a moment, not a wait: who asks for the status must not put it off
            let retry_at = self.last.retry.map(|retry| retry.at);
            let mut full = false;
            let device = self.config.device_socket.clone().filter(|_| self.last.lacks_device);
            let look_at = self.last.look_at;
            let turn = pace.next(Deadline::now());

            // every arm is safe to cancel: what is not taken now is still there in the next round
            let mut scope = tokio::select! {
                () = &mut stop => return Ok(()),
                Some(question) = asked.recv() => {
                    self.answer(question).await;
                    continue;
                }
                () = async { sleep_until(turn).await; self.nodes.changed().await } => {
                    pace.note(Deadline::now());
                    Scope::NONE
                }
                () = self.resolver.changed() => Scope::NONE,
                change = events.next() => scope_of(change),
                _ = resync.tick() => { full = true; Scope::ALL }
                () = listening(device.as_deref()), if device.is_some() => Scope::NONE,
                () = sleep_until(retry_at.unwrap_or_else(Deadline::now)), if retry_at.is_some() => Scope::NONE,
                () = sleep_until(look_at.unwrap_or_else(Deadline::now)), if look_at.is_some() => Scope::WIREGUARD,
            };
            sleep(DEBOUNCE).await;
            while let Some(change) = events.next().now_or_never() {
                scope = scope.union(scope_of(change));
            }
            self.round(scope, full).await;
        }
    }

    async fn round(&mut self, scope: Scope, full: bool) {
        let started = Instant::now();
        let outcome = self.reconcile(scope, full).await;
        let result = match outcome {
            Ok(()) => {
                self.last.retry = None;
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.counters.last_success_timestamp_seconds = now.as_secs_f64();
                "ok"
            }
            Err(Unfinished::Waiting) => "waiting",
            Err(Unfinished::Again) => {
                self.last.retry = Some(Retry::after(DEBOUNCE));
                "ok"
            }
            Err(Unfinished::Failed) => {
                let doubled = self.last.retry.map_or(FIRST_RETRY, |retry| retry.wait.saturating_mul(2));
                self.last.retry = Some(Retry::after(doubled.min(self.config.resync_interval)));
                "error"
            }
        };
        *self.counters.reconciles.entry(result).or_default() += 1;
        self.counters.durations.0.observe(started.elapsed().as_secs_f64());
    }

    async fn reconcile(&mut self, scope: Scope, full: bool) -> Result<(), Unfinished> {
        if full {
            self.collect().await;
        }
        self.note_networks();
        let followed =
            std::mem::take(&mut self.last.carried_out) && scope == Scope::NONE && !self.host.is_stale();
        if let Err(error) = self.host.observe(scope).await {
            return Err(self.fail("kernel", vec![chain(&error)]));
        }
        if !followed {
            self.note_own_addresses();
            self.tracker.observe(&self.host.observed().peers, Instant::now());
        }
        let touched = match self.decide() {
            None => return Err(self.wait(State::WaitingForNodes)),
            Some(Err(problem)) => {
                if matches!(problem, LocalProblem::NoNode(_) | LocalProblem::NoPodCidr) {
                    self.hold_pods();
                }
                return Err(match problem {
                    LocalProblem::NoPodCidr => self.wait(State::WaitingForPodCidr),
                    other => self.fail("node", vec![other.to_string()]),
                });
            }
            Some(Ok(touched)) => touched,
        };
        self.clear("node");
        self.resolver.want(self.mesh.names());
        self.note_addresses_in_use();
        let Some(decision) = self.mesh.decision() else { return Err(self.wait(State::WaitingForNodes)) };
        let differs = if followed { &touched } else { &Touched::Everything };
        let mut plan = plan_touched(&decision.desired, self.host.observed(), differs);
        if full {
            plan.steps.extend(self.last.renewed.due(&self.host, &decision.desired, Instant::now()));
        }
        if !followed {
            self.host.adopt_endpoints(&decision.desired);
        }
        let failed = self.apply(&plan).await;
        let turned = self.turn_keys();
        self.last.carried_out = failed.is_empty() && !self.host.is_stale();
        let long = plan.steps.len() > STEPS_FOLLOWED;
        let again = !std::mem::replace(&mut self.last.long, long) && long;
        self.report_refusals(&touched);
        self.last.unrecorded |= touched.part().is_none_or(|part| !part.nodes.is_empty());
        if full || scope.firewall || plan.steps.contains(&Step::SetPortGuard) {
            self.fill_ports().await;
        }
        if full || plan.steps.iter().any(concerns_host) {
            self.check_host().await;
        }
        if !failed.is_empty() {
            return Err(self.fail("kernel", failed));
        }
        self.clear("kernel");
        let installed = self.install_cni(full).await;
        if let Some(decision) = self.mesh.decision() {
            self.publisher.want(&decision.advertisement, installed && self.is_ready());
        }
        if full {
            self.write_record().await;
        }
        self.set_state(if self.has_problems() { State::Degraded } else { State::Converged });
        match installed {
            true if self.host.is_stale() || again || turned => Err(Unfinished::Again),
            true => Ok(()),
            false => Err(Unfinished::Failed),
        }
    }

    /// Brings the decision up to date; `None` before the first full list of Nodes.
    fn decide(&mut self) -> Option<Result<Touched, LocalProblem>> {
        let resolved = self.resolver.answers();
        let (host, mesh, local, record) = (&mut self.host, &mut self.mesh, &self.local, &mut self.record);
        self.nodes.follow(|view, nodes| {
            if let Some(record) = record.take() {
                let record = record.beside(host.observed());
                *mesh = Mesh::new(record.prefixes, record.keys);
            }
            let changes = Changes { nodes, peers: host.take_changed_peers() };
            mesh.update(local, view, &resolved, host.observed(), changes)
        })
    }

    fn fail(&mut self, source: &'static str, problems: Vec<String>) -> Unfinished {
        if self.last.problems.get(source) != Some(&problems) {
            for problem in &problems {
                error!(problem, "not converged");
            }
        }
        self.last.problems.insert(source, problems);
        self.set_state(State::Degraded);
        Unfinished::Failed
    }

    fn wait(&mut self, state: State) -> Unfinished {
        if self.last.state != Some(state) {
            info!(?state, "waiting");
        }
        self.set_state(state);
        Unfinished::Waiting
    }

    fn note(&mut self, source: &'static str, problems: Vec<String>) {
        if self.last.problems.get(source) != Some(&problems) {
            for problem in &problems {
                warn!(problem, "degraded");
            }
        }
        self.last.problems.insert(source, problems);
    }

    fn clear(&mut self, source: &'static str) {
        self.last.problems.remove(source);
    }

    fn has_problems(&self) -> bool {
        self.last.problems.values().any(|p| !p.is_empty())
    }

    fn set_state(&mut self, state: State) {
        if self.last.state != Some(state) && matches!(state, State::Converged) {
            info!("converged");
        }
        self.last.state = Some(state);
    }
}

/// Waits until somebody listens at the socket: the user-space device's pod comes up in its own time.
async fn listening(socket: Option<&Path>) {
    loop {
        sleep(FIRST_RETRY).await;
        match socket {
            Some(socket) if UnixStream::connect(socket).await.is_err() => {}
            _ => return,
        }
    }
}

/// Why a round did not come to its end.
enum Unfinished {
    /// Something has to come first, and will wake the loop.
    Waiting,
    /// A step took something along that has to be read again, since the kernel drops routes with an address; or many
    /// steps are to be decided on again.
    Again,
    /// Something failed and is tried again.
    Failed,
}

/// What to read again after a change.
fn scope_of(change: Change) -> Scope {
    match change {
        Change::Network => Scope::NETWORK,
        Change::Firewall | Change::HostChains => Scope::FIREWALL,
    }
}
