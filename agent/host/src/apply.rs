//! Carrying out the steps of a plan: one match, no policy.
//!
//! Runs of steps that one message can hold go together: peers, and routes. After a failed step the others go on, but
//! none after a failed guard.

mod batch;
mod single;

use std::collections::BTreeMap;

use wg_overlay_mesh::{Link, Step};

use crate::{Host, Scope, StepError};

impl Host {
    /// Carries out one step.
    ///
    /// # Errors
    /// [`StepError`]; what it may have changed is read at the next observation.
    pub async fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        self.apply_all(std::slice::from_ref(step))
            .await
            .into_iter()
            .next()
            .map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Carries out the steps in their order and gives those that failed. A failed guard (phase 0) ends the plan after
    /// the guards; a link that cannot be created leaves out its own steps.
    pub async fn apply_all(&mut self, steps: &[Step]) -> Vec<(Step, StepError)> {
        let mut failed: Vec<(Step, StepError)> = Vec::new();
        let mut missing: Vec<Link> = Vec::new();
        for run in steps.chunk_by(|a, b| batch(a).is_some() && batch(a) == batch(b) && a.phase() == b.phase())
        {
            let Some(first) = run.first() else { continue };
            if first.phase() > 0 && failed.iter().any(|(step, _)| step.phase() == 0) {
                break;
            }
            if link(first).is_some_and(|link| missing.contains(&link)) {
                continue;
            }
            let errors = match batch(first) {
                Some((Batch::SetPeers | Batch::RemovePeers, link)) => self.apply_peers(run, link).await,
                Some((Batch::Routes, _)) => self.apply_routes(run).await,
                None => {
                    self.apply_one(first, steps).await.err().map(|error| (0, error)).into_iter().collect()
                }
            };
            let mut errors: BTreeMap<usize, StepError> = errors.into_iter().collect();
            for (at, step) in run.iter().enumerate() {
                let Some(error) = errors.remove(&at) else {
                    self.cache.record(step);
                    self.stale = self.stale.union(side_effect(step));
                    continue;
                };
                self.stale = self.stale.union(touched(step));
                if let Step::CreateLink(link) = step {
                    missing.push(*link);
                }
                failed.push((step.clone(), error));
            }
        }
        failed
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Batch {
    SetPeers,
    RemovePeers,
    Routes,
}

/// Which steps go together: those of one kind and one link.
fn batch(step: &Step) -> Option<(Batch, Option<Link>)> {
    let kind = match step {
        Step::SetPeer(_) => Some(Batch::SetPeers),
        Step::RemovePeer(..) => Some(Batch::RemovePeers),
        Step::AddUnreachable(_) | Step::RemoveUnreachable(_) | Step::SetRoute(..) | Step::RemoveRoute(_) => {
            Some(Batch::Routes)
        }
        _ => None,
    };
    kind.map(|kind| (kind, link(step)))
}

/// The link without which a step is in vain.
fn link(step: &Step) -> Option<Link> {
    match step {
        Step::MarkLink(link)
        | Step::SetMtu(link, _)
        | Step::AddAddress(link, _)
        | Step::SetUp(link)
        | Step::RemoveAddress(link, _)
        | Step::SetKey(link, _)
        | Step::SetListenPort(link, _)
        | Step::SetRoute(.., link)
        | Step::RemovePeer(link, _) => Some(*link),
        Step::SetPeer(change) => Some(change.device),
        Step::SetBridgeNetfilter => Some(Link::Bridge),
        _ => None,
    }
}

/// What a step that failed may have changed.
fn touched(step: &Step) -> Scope {
    match step {
        Step::SetFirewall { .. }
        | Step::SetPortGuard
        | Step::GuardEndpoints { .. }
        | Step::AllowInHostChain { .. }
        | Step::LeaveHostChain(_)
        | Step::RemovePortGuard
        | Step::RemoveFirewall => Scope::FIREWALL,
        Step::SetKey(..) | Step::SetListenPort(..) | Step::SetPeer(_) | Step::RemovePeer(..) => {
            Scope { network: true, ..Scope::WIREGUARD }
        }
        _ => Scope::NETWORK,
    }
}

/// What a step that succeeded changes besides: an IPv6 address that goes takes the preferred source from every route
/// that has it, even where another link of this host carries the address too. The second device's go with its link.
fn side_effect(step: &Step) -> Scope {
    match step {
        Step::RemoveAddress(_, net) if net.addr().is_ipv6() => Scope::NETWORK,
        Step::DeleteLink(Link::Next) => Scope::NETWORK,
        _ => Scope::NONE,
    }
}
