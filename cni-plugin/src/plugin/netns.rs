//! A pod's network namespace, by the path that the runtime gives.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    thread::LinkNameSpaceType,
};

use super::error::CniError;
use crate::netlink::{Link, Netlink};

#[derive(Debug)]
pub(crate) struct Netns {
    file: OwnedFd,
    path: PathBuf,
}

impl Netns {
    pub(crate) fn open(path: &Path) -> Result<Self, CniError> {
        // Without NONBLOCK a pipe of that name would hang the call.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(CniError::NetnsGone(path.to_owned())),
            other => other.map_err(|errno| CniError::Io {
                action: format!("open the network namespace {}", path.display()),
                source: errno.into(),
            })?,
        };
        Ok(Self { file, path: path.to_owned() })
    }

    /// Moves the process, which has one thread, into the namespace for good, and opens its links. Files stay where they are,
    /// except for /proc/sys/net, which follows. The node's own namespace, where `bridge` is, is an error: no pod lives there.
    pub(crate) fn enter(&self, bridge: &Link) -> Result<Netlink, CniError> {
        match rustix::thread::move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)) {
            Err(Errno::INVAL) => return Err(CniError::NotNetns(self.path.clone())),
            other => other.map_err(|errno| CniError::Io {
                action: format!("enter the network namespace {}", self.path.display()),
                source: errno.into(),
            })?,
        }
        let mut netlink = Netlink::open()?;
        // By what is in it: a look into /proc for the own namespace costs as much as several requests.
        match netlink.link(&bridge.name)? {
            Some(found) if (found.index, &found.mac) == (bridge.index, &bridge.mac) => {
                Err(CniError::OwnNetns(self.path.clone()))
            }
            _ => Ok(netlink),
        }
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
