//! The whole cluster: a line a node, worst first, and the pairs that don't talk. Pure.

mod text;

use serde::Serialize;

use super::{
    Pair, PeerState, State, Status,
    pairs::{Words, fold},
};

pub use text::{AGENT_LABELS, Show, render_overview};

/// How a node is, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Condition {
    /// The Node has no pod of the agent.
    NoPod,
    /// Its agent's container does not run.
    NotRunning,
    /// Its agent could not be asked, or did not answer in time.
    NoAnswer,
    /// Whoever asks may not.
    Forbidden,
    /// Its agent says that something is wrong.
    Degraded,
    /// [`State::NotStarted`].
    NotStarted,
    /// [`State::WaitingForNodes`].
    WaitingForNodes,
    /// [`State::WaitingForPodCidr`].
    WaitingForPodCidr,
    /// [`State::Reconciling`].
    Reconciling,
    /// [`State::Converged`], and no peer is wrong.
    Converged,
}

/// What came of asking a node.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Its agent's status.
    Status(Box<Status>),
    /// Why there is none, in short.
    None(Condition, String),
}

/// A node's line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The name of its Node.
    pub node: String,
    /// How it is.
    pub state: Condition,
    /// Its agent's version.
    pub version: Option<String>,
    /// Who implements its WireGuard device.
    pub device: Option<String>,
    /// Peers with a fresh handshake.
    pub up: usize,
    /// Peers that nothing was sent to for a while.
    pub idle: usize,
    /// Peers that don't answer, or whose endpoint has no address.
    pub down: usize,
    /// Peers that are not believed.
    pub refused: usize,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
}

/// The whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// Whether every node is converged and every pair talks.
    pub converged: bool,
    /// The nodes, worst first.
    pub nodes: Vec<Row>,
    /// The pairs that don't talk.
    pub pairs: Vec<Pair>,
}

/// Takes the answers as they come.
pub struct Collector {
    nodes: Vec<String>,
    heard: Vec<Option<Words>>,
    rows: Vec<Row>,
}

impl Collector {
    /// Begins with the names of all Nodes.
    pub fn new(mut nodes: Vec<String>) -> Self {
        nodes.sort();
        nodes.dedup();
        Self { heard: vec![None; nodes.len()], nodes, rows: Vec::new() }
    }

    /// Takes a node's answer; one of a node that isn't in the list is left out.
    pub fn take(&mut self, node: &str, answer: Answer) {
        let Ok(at) = self.nodes.binary_search_by(|name| name.as_str().cmp(node)) else { return };
        if let Answer::Status(status) = &answer
            && knows_nodes(status)
            && let Some(heard) = self.heard.get_mut(at)
        {
            *heard = Some(Words::new(&self.nodes, &status.peers));
        }
        self.rows.push(row(node, answer));
    }

    /// Ends with the overview.
    pub fn finish(mut self) -> Overview {
        self.rows.sort_by(|a, b| (a.state, &a.node).cmp(&(b.state, &b.node)));
        let pairs = fold(&self.nodes, &self.heard);
        let converged = pairs.is_empty() && self.rows.iter().all(|row| row.state == Condition::Converged);
        Overview { converged, nodes: self.rows, pairs }
    }
}

/// Before an agent has its first list of Nodes it knows nobody, and says so in its own line.
fn knows_nodes(status: &Status) -> bool {
    let early = matches!(status.state, State::NotStarted | State::WaitingForNodes | State::WaitingForPodCidr);
    !early && status.device.is_some()
}

fn row(node: &str, answer: Answer) -> Row {
    let mut row = Row {
        node: node.to_owned(),
        state: Condition::NoAnswer,
        version: None,
        device: None,
        up: 0,
        idle: 0,
        down: 0,
        refused: 0,
        problems: Vec::new(),
    };
    match answer {
        Answer::None(state, note) => {
            row.state = state;
            row.problems = vec![note];
        }
        Answer::Status(status) => {
            let count =
                |states: &[PeerState]| status.peers.iter().filter(|p| states.contains(&p.state)).count();
            row.up = count(&[PeerState::Up]);
            row.idle = count(&[PeerState::Idle]);
            row.down = count(&[PeerState::Down, PeerState::Unresolved]);
            row.refused = count(&[PeerState::Refused]);
            row.state = match status.state {
                State::NotStarted => Condition::NotStarted,
                State::WaitingForNodes => Condition::WaitingForNodes,
                State::WaitingForPodCidr => Condition::WaitingForPodCidr,
                State::Reconciling => Condition::Reconciling,
                State::Converged if row.down + row.refused + status.problems.len() == 0 => {
                    Condition::Converged
                }
                State::Converged | State::Degraded => Condition::Degraded,
            };
            row.version = Some(status.version);
            row.device = status.device.map(|d| d.implementation);
            row.problems = status.problems;
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{DeviceStatus, PeerStatus};

    fn status(node: &str, version: &str, peers: &[(&str, PeerState, Option<&str>)]) -> Answer {
        let mut status = Status::new(node, true);
        status.version = version.into();
        status.state = State::Converged;
        status.device = Some(DeviceStatus {
            name: "wgo0".into(),
            implementation: "kernel".into(),
            listen_port: 51820,
            mtu: 1420,
            underlay: None,
            public_key: String::new(),
        });
        let peer = |(node, state, note): &(&str, PeerState, Option<&str>)| PeerStatus {
            note: note.map(Into::into),
            ..PeerStatus::new(node, *state)
        };
        status.peers = peers.iter().map(peer).collect();
        Answer::Status(Box::new(status))
    }

    const SHOW: Show<'_> = Show { all: false, namespace: "wg-overlay" };

    fn small() -> Overview {
        use PeerState::{Down, Idle, NoAgent, Up};
        let silent = Some("sent for 9m, nothing back: is UDP 51820 open towards it?");
        let mut collector = Collector::new(["n1", "n2", "n3", "n4", "n5"].map(String::from).to_vec());
        collector.take(
            "n1",
            status(
                "n1",
                "0.1.0",
                &[("n2", Up, None), ("n3", Down, silent), ("n4", NoAgent, None), ("n5", Idle, None)],
            ),
        );
        collector.take(
            "n2",
            status(
                "n2",
                "0.1.0",
                &[("n1", Up, None), ("n3", Up, None), ("n4", NoAgent, None), ("n5", Up, None)],
            ),
        );
        collector.take(
            "n3",
            status("n3", "0.2.0", &[("n1", Idle, None), ("n4", NoAgent, None), ("n5", Up, None)]),
        );
        collector.take("n4", Answer::None(Condition::NoPod, "no pod of the agent".into()));
        collector.take("n5", Answer::None(Condition::NoAnswer, "no answer within 20 s".into()));
        collector.take("n9", Answer::None(Condition::NoPod, "came later".into()));
        collector.finish()
    }

    #[test]
    fn a_small_cluster_reads_as_the_documentation_shows_it() {
        let golden = "\
5 nodes: 1 NoPod, 1 NoAnswer, 1 Degraded, 2 Converged; 2 pairs not talking; versions 0.1.0 on 2, 0.2.0 on 1

NODE  STATE      VERSION  DEVICE  UP  IDLE  DOWN  REFUSED  NOTE
n4    NoPod      -        -       -   -     -     -        no pod of the agent
n5    NoAnswer   -        -       -   -     -     -        no answer within 20 s
n1    Degraded   0.1.0    kernel  1   1     1     0
n2    Converged  0.1.0    kernel  3   0     0     0
n3    Converged  0.2.0    kernel  1   1     0     0

Pairs that don't talk:
n1 - n3   n1: Down, sent for 9m, nothing back: is UDP 51820 open towards it?   n3: Idle
n2 - n3   n2: Up   n3: does not know it

NoPod: kubectl get daemonset -n wg-overlay wg-overlay-agent; do its nodeSelector and tolerations leave the node out?
NoAnswer: is the node up, and does its kubelet answer the API server (TCP 10250)? kubectl logs -n wg-overlay -l app.kubernetes.io/name=wg-overlay,app.kubernetes.io/component=agent
Degraded: kubectl exec -n wg-overlay POD -- wg-overlay doctor, POD being the node's agent
";
        assert_eq!(render_overview(&small(), SHOW), golden);
        assert!(!small().converged);
    }

    #[test]
    fn a_large_cluster_shows_what_is_wrong_and_says_what_it_leaves_out() {
        let nodes: Vec<String> = (0..300).map(|n| format!("n{n:03}")).collect();
        let mut collector = Collector::new(nodes.clone());
        for node in &nodes {
            let state =
                |other: &str| if node == "n007" || other == "n007" { PeerState::Down } else { PeerState::Up };
            let peers: Vec<_> =
                nodes.iter().filter(|n| *n != node).map(|n| (n.as_str(), state(n), None)).collect();
            let peers = if node == "n007" {
                peers
            } else {
                peers
                    .into_iter()
                    .filter(|p| node == "n008" || p.0 != "n007")
                    .chain((node != "n008").then_some(("n007", PeerState::Idle, None)))
                    .collect()
            };
            collector.take(node, status(node, "0.1.0", &peers));
        }
        let overview = collector.finish();
        let text = render_overview(&overview, SHOW);
        assert!(text.starts_with("300 nodes: 2 Degraded, 298 Converged; 299 pairs not talking\n"), "{text}");
        assert!(text.contains("298 Converged nodes are not listed"), "{text}");
        assert!(
            text.contains("279 more pairs are not listed; --all lists them. Most often: n007 in 299"),
            "{text}"
        );
        assert!(text.lines().count() < 40, "{text}");
        let all = render_overview(&overview, Show { all: true, ..SHOW });
        assert!(all.lines().count() > 598 && !all.contains("not listed"));
    }

    #[test]
    fn all_converged_is_said_so_and_needs_no_more() {
        let mut collector = Collector::new(vec!["b".into(), "a".into()]);
        collector.take("b", status("b", "1", &[("a", PeerState::Up, None)]));
        collector.take("a", status("a", "1", &[("b", PeerState::Idle, None)]));
        let overview = collector.finish();
        assert!(overview.converged);
        assert!(!render_overview(&overview, SHOW).contains("Pairs"));
    }

    #[test]
    fn a_node_that_starts_is_in_its_own_line_and_in_no_pair() {
        let mut collector = Collector::new(vec!["a".into(), "b".into()]);
        collector.take("a", status("a", "1", &[("b", PeerState::NoAgent, None)]));
        collector.take("b", Answer::Status(Box::new(Status::new("b", true))));
        let overview = collector.finish();
        assert!(overview.pairs.is_empty() && !overview.converged);
    }

    #[test]
    fn what_a_node_says_cannot_drive_the_terminal() {
        let mut collector = Collector::new(vec!["a".into()]);
        collector.take("a", Answer::None(Condition::NoAnswer, "\u{1b}[2J\rgone".into()));
        let text = render_overview(&collector.finish(), SHOW);
        assert!(!text.contains('\u{1b}') && !text.contains('\r'));
    }
}
