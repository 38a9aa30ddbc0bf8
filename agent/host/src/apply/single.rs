//! Steps that go one by one: rules, links, addresses, and the device's own settings.

use std::io;

use rustix::io::Errno;
use tokio::task::spawn_blocking;
use wg_overlay_mesh::{Link, PublicKey, Step};

use super::batch::FEW;
use crate::{
    Host, HostError, PrivateKey, StepError,
    device::{self, DeviceError, DeviceMode},
    links::{self, Ipv4Setting},
    netlink::Request,
    port,
    wireguard::{self, Target},
};

impl Host {
    pub(super) async fn apply_one(&mut self, step: &Step, all: &[Step]) -> Result<(), StepError> {
        match step {
            Step::SetFirewall { .. }
            | Step::SetPortGuard
            | Step::GuardEndpoints { .. }
            | Step::AllowInHostChain { .. }
            | Step::LeaveHostChain(_)
            | Step::RemovePortGuard
            | Step::RemoveFirewall => self.apply_rules(step).await,
            Step::CreateLink(Link::Bridge) => self.create_bridge(step).await,
            Step::CreateLink(link) => self.create_device(step, *link, mtu(all, *link)).await,
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
            Step::SetKey(link, key) => self.set_key(step, *link, key).await,
            Step::SetListenPort(link, port) => {
                self.device_setting(step, *link, |target| wireguard::set_listen_port(target, *port)).await
            }
            Step::AddUnreachable(_)
            | Step::RemoveUnreachable(_)
            | Step::SetRoute(..)
            | Step::RemoveRoute(_)
            | Step::SetPeer(_)
            | Step::RemovePeer(..) => Ok(()), // batches
        }
    }

    async fn apply_rules(&self, step: &Step) -> Result<(), StepError> {
        let answer = match step {
            Step::GuardEndpoints { add, remove } if add.len() + remove.len() <= FEW => {
                Ok(self.nft.apply(step))
            }
            _ => {
                let (nft, own) = (self.nft.clone(), step.clone());
                spawn_blocking(move || nft.apply(&own)).await
            }
        };
        match answer {
            Ok(answer) => answer.map_err(|source| StepError::Firewall { step: step.to_string(), source }),
            Err(error) => Err(StepError::refused(step, io::Error::other(error))),
        }
    }

    async fn create_device(&mut self, step: &Step, link: Link, mtu: Option<u32>) -> Result<(), StepError> {
        let by_kernel = match self.config.device_mode {
            DeviceMode::UserSpace => false,
            DeviceMode::Auto | DeviceMode::Kernel => match self.execute_one(links::create(link)).await {
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
            },
        };
        if !by_kernel {
            let started = match &self.config.device_socket {
                Some(socket) => device::ask(socket, link, mtu).await,
                None => device::start(&self.config.device_program, &self.config.state_dir, link, mtu).await,
            };
            started.map_err(|source| StepError::Device { step: step.to_string(), source })?;
        }
        self.netlink(step, links::mark(link)).await?;
        // what it can't set now, `ensure_forwarding` sets or tells
        let _later = self.execute_one(Ok(links::set_ipv4(link, Ipv4Setting::LooseReversePath))).await;
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

    async fn set_key(&self, step: &Step, link: Link, wanted: &PublicKey) -> Result<(), StepError> {
        match self.private_keys.iter().find(|key| key.public_key() == *wanted) {
            Some(key) => self.device_setting(step, link, |target| wireguard::set_key(target, key)).await,
            None => Err(StepError::WrongKey {
                wanted: *wanted,
                held: self.private_keys.iter().map(PrivateKey::public_key).collect(),
            }),
        }
    }

    async fn device_setting(
        &self,
        step: &Step,
        link: Link,
        set: impl AsyncFnOnce(Target) -> io::Result<()>,
    ) -> Result<(), StepError> {
        let answer = match self.target(link) {
            Some(target) => set(target).await,
            None => Err(io::Error::from(Errno::NODEV)),
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

    /// Names whoever holds the port, where that is the cause.
    async fn refused(&self, step: &Step, source: io::Error) -> StepError {
        let port = match step {
            Step::SetListenPort(_, port) => Some(*port),
            Step::SetUp(link) => self.cache.device(*link).map(|device| device.listen_port),
            _ => None,
        };
        let holder = match port.filter(|_| source.kind() == io::ErrorKind::AddrInUse) {
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

    fn index(&self, step: &Step, link: Link) -> Result<u32, StepError> {
        let missing = || StepError::refused(step, io::Error::from(Errno::NODEV));
        self.cache.indexes.get(&link).copied().ok_or_else(missing)
    }
}

/// The MTU that a plan gives to a link.
fn mtu(steps: &[Step], link: Link) -> Option<u32> {
    steps.iter().find_map(|step| match step {
        Step::SetMtu(of, mtu) if *of == link => Some(*mtu),
        _ => None,
    })
}

fn error_kind(error: &StepError) -> Option<io::ErrorKind> {
    if let StepError::Refused { source, .. } = error { Some(source.kind()) } else { None }
}

/// What is gone already is removed.
fn gone(answer: Result<(), StepError>) -> Result<(), StepError> {
    let gone = [Errno::NODEV, Errno::ADDRNOTAVAIL].map(|errno| Some(errno.raw_os_error()));
    match answer {
        Err(StepError::Refused { source, .. }) if gone.contains(&source.raw_os_error()) => Ok(()),
        answer => answer,
    }
}
