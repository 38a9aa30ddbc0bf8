//! Carrying out a plan: its steps are logged and counted, and all go to the host at once.

use tracing::{debug, info};
use wg_overlay_mesh::{Plan, Step};

use super::Reconciler;
use crate::{cluster::chain, status::State};

/// Longer plans are logged by their number of steps only: five thousand nodes joining are no five thousand lines.
const STEPS_LOGGED: usize = 64;

impl Reconciler {
    /// Gives why steps failed, in words.
    pub(super) async fn apply(&mut self, plan: &Plan) -> Vec<String> {
        if plan.steps.is_empty() {
            return Vec::new();
        }
        if self.last.state != Some(State::Converged) {
            self.set_state(State::Reconciling);
        }
        if plan.steps.len() > STEPS_LOGGED {
            info!(count = plan.steps.len(), "applying a long plan; RUST_LOG=debug shows its steps");
            plan.steps.iter().for_each(|step| debug!(%step, "applying"));
        } else {
            let steps: Vec<String> = plan.steps.iter().map(Step::to_string).collect();
            info!(steps = steps.join("; "), "applying");
        }
        for step in &plan.steps {
            *self.counters.kernel_changes.entry(counted(step)).or_default() += 1;
            if let Step::SetPeer(change) = step
                && change.add
            {
                self.tracker.begin(change.public_key);
            }
        }
        let failed = self.host.apply_all(&plan.steps).await;
        self.last.lacks_device = failed.iter().any(|(_, error)| error.lacks_device());
        failed.into_iter().map(|(_, error)| chain(&error)).collect()
    }
}

/// Whether a step changes what the host's own settings depend on: links, addresses, rules.
pub(super) fn concerns_host(step: &Step) -> bool {
    !matches!(
        step,
        Step::GuardEndpoints { .. }
            | Step::SetPeer(_)
            | Step::RemovePeer(..)
            | Step::SetRoute(..)
            | Step::RemoveRoute(_)
    )
}

/// A step's object and operation, for the metric.
fn counted(step: &Step) -> (&'static str, &'static str) {
    match step {
        Step::SetFirewall { .. } => ("firewall", "set"),
        Step::GuardEndpoints { .. } => ("firewall", "change"),
        Step::RemoveFirewall => ("firewall", "remove"),
        Step::SetPortGuard => ("port_guard", "set"),
        Step::RemovePortGuard => ("port_guard", "remove"),
        Step::AllowInHostChain { .. } => ("host_chain", "set"),
        Step::LeaveHostChain(_) => ("host_chain", "remove"),
        Step::CreateLink(_) => ("link", "create"),
        Step::DeleteLink(_) => ("link", "remove"),
        Step::MarkLink(_) | Step::SetBridgeNetfilter | Step::SetMtu(..) | Step::SetUp(_) => {
            ("link", "change")
        }
        Step::SetKey(..) | Step::SetListenPort(..) => ("device", "change"),
        Step::AddAddress(..) => ("address", "set"),
        Step::RemoveAddress(..) => ("address", "remove"),
        Step::SetPeer(change) if change.renew => ("peer", "renew"),
        Step::SetPeer(change) if change.add => ("peer", "set"),
        Step::SetPeer(_) => ("peer", "change"),
        Step::RemovePeer(..) => ("peer", "remove"),
        Step::SetRoute(..) | Step::AddUnreachable(_) => ("route", "set"),
        Step::RemoveRoute(_) | Step::RemoveUnreachable(_) => ("route", "remove"),
    }
}
