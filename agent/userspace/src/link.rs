//! The link as others change it: its MTU, and that it is deleted.
//!
//! Owns a netlink socket that hears of every link. Polling would find a deletion late, and the
//! TUN descriptor alone does not tell of an MTU.

use std::io;

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
    },
    sys::SocketAddr,
};
use tokio::{sync::watch, task::JoinHandle};

use crate::{device::MAX_MTU, error::DeviceError};

type Events = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Follows one link until it is deleted.
pub(crate) struct LinkWatch {
    name: String,
    index: u32,
    handle: Handle,
    events: Events,
    mtu: watch::Sender<u16>,
    connection: JoinHandle<()>,
}

impl Drop for LinkWatch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl LinkWatch {
    /// Subscribes, then reads the link `name`, so that no change is missed in between.
    pub(crate) async fn start(name: &str) -> Result<Self, DeviceError> {
        let failed = |source: io::Error| DeviceError::Watch { name: name.to_owned(), source };
        let (connection, handle, events) =
            new_multicast_connection(&[MulticastGroup::Link]).map_err(failed)?;
        let connection = tokio::spawn(connection);
        let mut watch =
            Self { name: name.to_owned(), index: 0, handle, events, mtu: watch::Sender::new(0), connection };
        let request = watch.handle.link().get().match_name(name.to_owned());
        let link = first(request).await.map_err(|e| failed(io::Error::other(e)))?;
        let link = link.ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))?;
        watch.index = link.header.index;
        watch.take_mtu(&link);
        Ok(watch)
    }

    /// The link's MTU, in bytes, as it changes.
    pub(crate) fn mtu(&self) -> watch::Receiver<u16> {
        self.mtu.subscribe()
    }

    /// Resolves once the link is deleted or moved to another network namespace.
    pub(crate) async fn deleted(&mut self) {
        while let Some((message, _)) = self.events.next().await {
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
                    if link.header.index == self.index =>
                {
                    self.take_mtu(&link);
                }
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
                    if link.header.index == self.index && is_whole(&link) =>
                {
                    return;
                }
                // Events were lost (ENOBUFS): read the link again.
                NetlinkPayload::Overrun(_) if !self.reread().await => return,
                _ => {}
            }
        }
        tracing::error!(device = self.name, "netlink connection lost; the device ends");
    }

    /// Reads the link again; false if it is gone.
    async fn reread(&mut self) -> bool {
        let request = self.handle.link().get().match_index(self.index);
        match first(request).await {
            Ok(Some(link)) => {
                self.take_mtu(&link);
                true
            }
            Ok(None) => false,
            Err(rtnetlink::Error::NetlinkError(error)) => {
                error.to_io().raw_os_error() != Some(rustix::io::Errno::NODEV.raw_os_error())
            }
            Err(error) => {
                tracing::warn!(device = self.name, %error, "link could not be read again");
                true
            }
        }
    }

    fn take_mtu(&self, link: &LinkMessage) {
        let Some(mtu) = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        }) else {
            return;
        };
        if mtu > u32::from(MAX_MTU) {
            tracing::warn!(
                device = self.name,
                mtu,
                limit = MAX_MTU,
                "MTU over the limit: larger packets are dropped"
            );
        }
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        let changed = self.mtu.send_if_modified(|old| std::mem::replace(old, mtu) != mtu);
        if changed {
            tracing::debug!(device = self.name, mtu, "MTU of the link");
        }
    }
}

/// A bridge port that leaves its bridge also says DelLink, with the address family of bridges.
fn is_whole(link: &LinkMessage) -> bool {
    link.header.interface_family == rtnetlink::packet_route::AddressFamily::Unspec
}

async fn first(request: rtnetlink::LinkGetRequest) -> Result<Option<LinkMessage>, rtnetlink::Error> {
    futures::TryStreamExt::try_next(&mut Box::pin(request.execute())).await
}
