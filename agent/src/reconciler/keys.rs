//! The node's keys between two rounds: what a rotation needs to know, and who is told that it went on.

use tokio::time::Instant as Deadline;
use wg_overlay_mesh::{Cluster, Decision, PackedView, Rotation, annotation};

use super::{DEBOUNCE, Reconciler, Retry};
use crate::{
    cluster::{Nodes, chain},
    rotation::{LOOK, RotationError},
};

impl Reconciler {
    /// Hands the keys of this moment to those who work with them.
    pub(super) fn take_keys(&mut self) {
        self.host.set_private_keys(self.rotator.private_keys());
        self.rotator.note(&mut self.local);
    }

    /// Goes on with a rotation. Returns whether there is something to act upon at once.
    pub(super) fn turn_keys(&mut self) -> bool {
        let Some(decision) = self.mesh.decision() else { return false };
        let observed = self.host.observed();
        let uses_second = decision.desired.next.is_some() || observed.next.is_some();
        let unready = || unready(&self.nodes, decision);
        let said = || {
            self.nodes.read(|view| {
                let own = view?.record(&self.local.node_name)?;
                Rotation::parse(own.annotations.get(annotation::ROTATION)?)
            })
        };
        let port = self.config.metrics_address.port();
        let turned = self.rotator.step(decision, observed, said, port, unready);
        self.last.look_at = uses_second.then(|| Deadline::now() + LOOK);
        let problem =
            turned.as_ref().err().map(|error| format!("can't write the key file: {}", chain(error)));
        self.note("rotation", problem.into_iter().collect());
        let turned = turned.unwrap_or_default();
        if turned {
            self.take_keys();
        }
        turned
    }

    /// Begins a rotation that a person asks for.
    pub(super) fn rotate(&mut self) -> Result<(), RotationError> {
        let decision = self.mesh.decision().ok_or(RotationError::Early)?;
        let unready = unready(&self.nodes, decision);
        let others = decision.desired.next.as_ref().map(|next| {
            let rotating = next.pairs.iter().filter(|(_, pair)| pair.peer.is_some());
            rotating.filter_map(|(key, _)| Some(next.peers.get(key)?.node.to_string())).collect()
        });
        let others = others.or_else(|| self.host.observed().next.as_ref().map(|_| Vec::new()));
        self.rotator.begin(unready, others)?;
        self.take_keys();
        self.last.retry = Some(Retry::after(DEBOUNCE));
        Ok(())
    }
}

/// The peers that publish no next key.
fn unready(nodes: &Nodes, decision: &Decision) -> Vec<String> {
    let lacks = |view: &PackedView, node: &str| {
        view.record(node).is_none_or(|record| !record.annotations.contains_key(annotation::NEXT_PUBLIC_KEY))
    };
    let peers = decision.desired.peers.values().map(|peer| peer.node.to_string());
    nodes.read(|view| peers.filter(|node| view.is_none_or(|view| lacks(view, node))).collect())
}
