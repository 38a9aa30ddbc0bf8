//! Carrying out the steps of a plan: one match, no policy.
//!
//! Runs of steps that one message can hold go together: peers, and routes. After a failed step the others go on, but
//! none after a failed guard.

use std::{collections::BTreeMap, io, sync::Arc};

use tokio::task::{JoinError, spawn_blocking};
use wg_overlay_mesh::{Implementation, Link, PublicKey, Step};

use crate::{
    Host, HostError, Scope, StepError,
    device::{self, DeviceError, DeviceMode},
    host::lock,
    links,
    netlink::Request,
    port, routes, wireguard,
};

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
        let mtu = steps
            .iter()
            .find_map(|step| if let Step::SetMtu(Link::Device, mtu) = step { Some(*mtu) } else { None });
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
                Some(Batch::SetPeers | Batch::RemovePeers) => self.apply_peers(run).await,
                Some(Batch::Routes) => self.apply_routes(run).await,
                None => self.apply_one(first, mtu).await.err().map(|error| (0, error)).into_iter().collect(),
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

    async fn apply_one(&mut self, step: &Step, mtu: Option<u32>) -> Result<(), StepError> {
        match step {
            Step::SetFirewall { .. }
            | Step::GuardEndpoints { .. }
            | Step::AllowInHostChain { .. }
            | Step::LeaveHostChain(_)
            | Step::RemoveFirewall => self.apply_rules(step).await,
            Step::CreateLink(Link::Device) => self.create_device(step, mtu).await,
            Step::CreateLink(Link::Bridge) => self.create_bridge(step).await,
            Step::MarkLink(link) => self.netlink(step, links::mark(*link)).await,
            Step::SetBridgeNetfilter => self.netlink(step, links::set_bridge_netfilter()).await,
            Step::SetMtu(link, mtu) => self.netlink(step, links::set_mtu(*link, *mtu)).await,
            Step::SetUp(link) => self.netlink(step, links::set_up(*link)).await,
            Step::AddAddress(link, net) => {
                match self.netlink(step, links::add_address(self.index(step, *link)?, net)).await {
                    // For IPv4 the same prefix length; for IPv6 it may be another one, which must go first.
                    Err(error)
                        if net.addr().is_ipv4()
                            && error_kind(&error) == Some(io::ErrorKind::AlreadyExists) =>
                    {
                        Ok(())
                    }
                    answer => answer,
                }
            }
            Step::RemoveAddress(link, net) => {
                gone(self.netlink(step, links::remove_address(self.index(step, *link)?, net)).await)
            }
            Step::DeleteLink(link) => gone(self.netlink(step, links::delete(*link)).await),
            Step::SetKey(key) => self.set_key(step, key).await,
            Step::SetListenPort(port) => {
                let port = *port;
                self.device_setting(step, move |device| wireguard::set_listen_port(device, port)).await
            }
            Step::AddUnreachable(_)
            | Step::RemoveUnreachable(_)
            | Step::SetRoute(..)
            | Step::RemoveRoute(_)
            | Step::SetPeer(_)
            | Step::RemovePeer(_) => Ok(()), // batches
        }
    }

    async fn apply_rules(&self, step: &Step) -> Result<(), StepError> {
        let (nft, own) = (self.nft.clone(), step.clone());
        match spawn_blocking(move || nft.apply(&own)).await {
            Ok(answer) => answer.map_err(|source| StepError::Firewall { step: step.to_string(), source }),
            Err(error) => Err(StepError::refused(step, io::Error::other(error))),
        }
    }

    async fn apply_routes(&self, run: &[Step]) -> Vec<(usize, StepError)> {
        let mut requests = Vec::with_capacity(run.len());
        for step in run {
            requests.extend(match step {
                Step::AddUnreachable(net) => Some(routes::set_unreachable(net)),
                Step::RemoveUnreachable(net) => Some(routes::remove_unreachable(net)),
                Step::RemoveRoute(net) => Some(routes::remove(net)),
                // Without a device the kernel answers ENODEV to index 0.
                Step::SetRoute(net, route) => {
                    let known = self.cache.state.routes.contains_key(net);
                    Some(routes::set(net, route, self.cache.device_index.unwrap_or(0), known))
                }
                _ => None,
            });
        }
        let errors = self.execute(requests).await.into_iter();
        let errors = errors.filter_map(|(at, error)| run.get(at).map(|step| (at, step, error)));
        let errors = errors.filter(|(_, step, error)| {
            let removes = matches!(step, Step::RemoveRoute(_) | Step::RemoveUnreachable(_));
            !(removes && error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()))
        });
        errors.map(|(at, step, error)| (at, StepError::refused(step, error))).collect()
    }

    async fn apply_peers(&self, run: &[Step]) -> Vec<(usize, StepError)> {
        let mut changes = Vec::new();
        let mut removals = Vec::new();
        for step in run {
            match step {
                Step::SetPeer(change) => changes.push(change.clone()),
                Step::RemovePeer(key) => removals.push(*key),
                _ => {}
            }
        }
        let Some(device) = self.implementation() else {
            let refused = |step| StepError::refused(step, io::Error::from(rustix::io::Errno::NODEV));
            return run.iter().enumerate().map(|(at, step)| (at, refused(step))).collect();
        };
        let work = move || match changes.is_empty() {
            true => wireguard::remove_peers(device, &removals),
            false => wireguard::set_peers(device, &changes),
        };
        let errors = spawn_blocking(work).await.unwrap_or_else(|error| all(run.len(), &error));
        let named =
            errors.into_iter().filter_map(|(at, error)| Some((at, StepError::refused(run.get(at)?, error))));
        named.collect()
    }

    async fn create_device(&mut self, step: &Step, mtu: Option<u32>) -> Result<(), StepError> {
        let by_kernel = match self.config.device_mode {
            DeviceMode::UserSpace => false,
            DeviceMode::Auto | DeviceMode::Kernel => {
                match self.execute_one(links::create(Link::Device)).await {
                    Ok(()) => true,
                    Err(error) if error.kind() != io::ErrorKind::Unsupported => {
                        return Err(StepError::refused(step, error));
                    }
                    Err(source) if self.config.device_mode == DeviceMode::Kernel => {
                        return Err(StepError::Device {
                            step: step.to_string(),
                            source: DeviceError::NoKernel(source),
                        });
                    }
                    Err(_) => false,
                }
            }
        };
        if !by_kernel {
            let program = &self.config.device_program;
            let started = device::start(program, &self.config.state_dir, mtu).await;
            started.map_err(|source| StepError::Device { step: step.to_string(), source })?;
        }
        self.netlink(step, links::mark(Link::Device)).await?;
        self.read_links(step).await?;
        let read = self.observe_wireguard().await;
        self.stale.wireguard = read.is_err();
        read.map_err(|error| StepError::refused(step, io::Error::other(error)))
    }

    async fn create_bridge(&mut self, step: &Step) -> Result<(), StepError> {
        self.execute_one(links::create(Link::Bridge))
            .await
            .map_err(|error| StepError::refused(step, error))?;
        self.netlink(step, links::mark(Link::Bridge)).await?;
        self.read_links(step).await
    }

    async fn read_links(&mut self, step: &Step) -> Result<(), StepError> {
        let read: Result<(), HostError> = self.observe_links().await;
        read.map_err(|error| StepError::refused(step, io::Error::other(error)))
    }

    async fn set_key(&self, step: &Step, wanted: &PublicKey) -> Result<(), StepError> {
        match self.private_key.clone().filter(|key| key.public_key() == *wanted) {
            Some(key) => self.device_setting(step, move |device| wireguard::set_key(device, &key)).await,
            None => Err(StepError::WrongKey {
                wanted: *wanted,
                held: self.private_key.as_ref().map(|k| k.public_key()),
            }),
        }
    }

    async fn device_setting(
        &self,
        step: &Step,
        set: impl FnOnce(Implementation) -> io::Result<()> + Send + 'static,
    ) -> Result<(), StepError> {
        let answer = match self.implementation() {
            Some(device) => {
                spawn_blocking(move || set(device)).await.unwrap_or_else(|e| Err(io::Error::other(e)))
            }
            None => Err(io::Error::from(rustix::io::Errno::NODEV)),
        };
        match answer {
            Ok(()) => Ok(()),
            Err(error) => Err(self.refused(step, error).await),
        }
    }

    async fn netlink(&self, step: &Step, request: Request) -> Result<(), StepError> {
        match self.execute_one(Ok(request)).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.refused(step, error).await),
        }
    }

    /// Names whoever holds the port, where that is the cause. A user-space device answers a taken port with a number
    /// that the library drops.
    async fn refused(&self, step: &Step, source: io::Error) -> StepError {
        let port = match step {
            Step::SetListenPort(port) => Some(*port),
            Step::SetUp(Link::Device) => self.cache.state.device.as_ref().map(|device| device.listen_port),
            _ => None,
        };
        let taken = matches!(source.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::InvalidInput);
        let holder = match port.filter(|_| taken) {
            Some(port) => {
                spawn_blocking(move || port::holder(port)).await.ok().flatten().map(|who| (port, who))
            }
            None => None,
        };
        match holder {
            Some((port, who)) => StepError::Refused {
                step: step.to_string(),
                hint: format!(" (UDP port {port} is held by {who})"),
                source,
            },
            None => StepError::refused(step, source),
        }
    }

    async fn execute_one(&self, request: io::Result<Request>) -> io::Result<()> {
        let errors = self.execute(vec![request?]).await;
        errors.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    async fn execute(&self, requests: Vec<Request>) -> Vec<(usize, io::Error)> {
        let netlink = Arc::clone(&self.netlink);
        let count = requests.len();
        let work = spawn_blocking(move || lock(&netlink).execute(&requests));
        work.await.unwrap_or_else(|error| all(count, &error))
    }

    fn implementation(&self) -> Option<Implementation> {
        self.cache.state.device.as_ref().map(|device| device.implementation)
    }

    fn index(&self, step: &Step, link: Link) -> Result<u32, StepError> {
        let missing = || StepError::refused(step, io::Error::from(rustix::io::Errno::NODEV));
        self.cache.index(link).ok_or_else(missing)
    }
}

fn all(count: usize, error: &JoinError) -> Vec<(usize, io::Error)> {
    (0..count).map(|at| (at, io::Error::other(error.to_string()))).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Batch {
    SetPeers,
    RemovePeers,
    Routes,
}

/// Which steps go together.
fn batch(step: &Step) -> Option<Batch> {
    match step {
        Step::SetPeer(_) => Some(Batch::SetPeers),
        Step::RemovePeer(_) => Some(Batch::RemovePeers),
        Step::AddUnreachable(_) | Step::RemoveUnreachable(_) | Step::SetRoute(..) | Step::RemoveRoute(_) => {
            Some(Batch::Routes)
        }
        _ => None,
    }
}

/// The link without which a step is in vain.
fn link(step: &Step) -> Option<Link> {
    match step {
        Step::MarkLink(link)
        | Step::SetMtu(link, _)
        | Step::AddAddress(link, _)
        | Step::SetUp(link)
        | Step::RemoveAddress(link, _) => Some(*link),
        Step::SetBridgeNetfilter => Some(Link::Bridge),
        Step::SetKey(_)
        | Step::SetListenPort(_)
        | Step::SetPeer(_)
        | Step::SetRoute(..)
        | Step::RemovePeer(_) => Some(Link::Device),
        _ => None,
    }
}

/// What a step that failed may have changed.
fn touched(step: &Step) -> Scope {
    match step {
        Step::SetFirewall { .. }
        | Step::GuardEndpoints { .. }
        | Step::AllowInHostChain { .. }
        | Step::LeaveHostChain(_)
        | Step::RemoveFirewall => Scope::FIREWALL,
        Step::SetKey(_) | Step::SetListenPort(_) | Step::SetPeer(_) | Step::RemovePeer(_) => {
            Scope { network: true, ..Scope::WIREGUARD }
        }
        _ => Scope::NETWORK,
    }
}

/// What a step that succeeded changes besides: an IPv6 address that goes takes the preferred source from every route
/// that has it, even where another link of this host carries the address too.
fn side_effect(step: &Step) -> Scope {
    match step {
        Step::RemoveAddress(_, net) if net.addr().is_ipv6() => Scope::NETWORK,
        _ => Scope::NONE,
    }
}

fn error_kind(error: &StepError) -> Option<io::ErrorKind> {
    if let StepError::Refused { source, .. } = error { Some(source.kind()) } else { None }
}

/// What is gone already is removed.
fn gone(answer: Result<(), StepError>) -> Result<(), StepError> {
    let gone =
        [rustix::io::Errno::NODEV, rustix::io::Errno::ADDRNOTAVAIL].map(|errno| Some(errno.raw_os_error()));
    match answer {
        Err(StepError::Refused { source, .. }) if gone.contains(&source.raw_os_error()) => Ok(()),
        answer => answer,
    }
}
