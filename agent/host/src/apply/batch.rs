//! Steps that go together: routes in netlink batches, peers in few messages.

use std::{io, sync::Arc};

use rustix::io::Errno;
use tokio::task::{JoinError, spawn_blocking};
use wg_overlay_mesh::{Link, Step};

use crate::{Host, StepError, host::lock, netlink::Request, routes, wireguard};

impl Host {
    pub(super) async fn apply_routes(&self, run: &[Step]) -> Vec<(usize, StepError)> {
        let mut requests = Vec::with_capacity(run.len());
        for step in run {
            requests.extend(match step {
                Step::AddUnreachable(net) => Some(routes::set_unreachable(net)),
                Step::RemoveUnreachable(net) => Some(routes::remove_unreachable(net)),
                Step::RemoveRoute(net) => Some(routes::remove(net)),
                // Without a device the kernel answers ENODEV to index 0.
                Step::SetRoute(net, route, link) => {
                    let known = self.cache.state.routes.contains_key(net);
                    let index = self.cache.indexes.get(link).copied().unwrap_or(0);
                    Some(routes::set(net, route, index, known))
                }
                _ => None,
            });
        }
        let errors = self.execute(requests).await.into_iter();
        let errors = errors.filter_map(|(at, error)| run.get(at).map(|step| (at, step, error)));
        let errors = errors.filter(|(_, step, error)| {
            let removes = matches!(step, Step::RemoveRoute(_) | Step::RemoveUnreachable(_));
            !(removes && error.raw_os_error() == Some(Errno::SRCH.raw_os_error()))
        });
        errors.map(|(at, step, error)| (at, StepError::refused(step, error))).collect()
    }

    pub(super) async fn apply_peers(&self, run: &[Step], device: Option<Link>) -> Vec<(usize, StepError)> {
        let mut changes = Vec::new();
        let mut removals = Vec::new();
        for step in run {
            match step {
                Step::SetPeer(change) => changes.push(change.clone()),
                Step::RemovePeer(_, key) => removals.push(*key),
                _ => {}
            }
        }
        let Some(target) = device.and_then(|link| self.target(link)) else {
            let refused = |step| StepError::refused(step, io::Error::from(Errno::NODEV));
            return run.iter().enumerate().map(|(at, step)| (at, refused(step))).collect();
        };
        let errors = match changes.is_empty() {
            true => wireguard::remove_peers(target, &removals).await,
            false => wireguard::set_peers(target, &changes).await,
        };
        let named =
            errors.into_iter().filter_map(|(at, error)| Some((at, StepError::refused(run.get(at)?, error))));
        named.collect()
    }

    /// A few requests are no matter of a thread: the kernel answers them while they are being sent.
    pub(super) async fn execute(&self, requests: Vec<Request>) -> Vec<(usize, io::Error)> {
        if requests.len() <= FEW {
            return lock(&self.netlink).execute(&requests);
        }
        let netlink = Arc::clone(&self.netlink);
        let count = requests.len();
        let work = spawn_blocking(move || lock(&netlink).execute(&requests));
        let all =
            |error: &JoinError| (0..count).map(|at| (at, io::Error::other(error.to_string()))).collect();
        work.await.unwrap_or_else(|error| all(&error))
    }
}

/// So many requests take the kernel less time than it takes to wake a thread.
pub(super) const FEW: usize = 16;
