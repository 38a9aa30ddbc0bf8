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

#[derive(Debug)]
pub(crate) struct Netns {
    file: OwnedFd,
    path: PathBuf,
}

impl Netns {
    /// Opens the namespace, which must not be the plugin's own: pods don't live there.
    pub(crate) fn open(path: &Path) -> Result<Self, CniError> {
        let failed = |what: &Path, errno: Errno| CniError::Io {
            action: format!("open the network namespace {}", what.display()),
            source: errno.into(),
        };
        // Without NONBLOCK a pipe of that name would hang the call.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(CniError::NetnsGone(path.to_owned())),
            other => other.map_err(|errno| failed(path, errno))?,
        };
        let own = Path::new("/proc/thread-self/ns/net");
        let own_stat = rustix::fs::stat(own).map_err(|errno| failed(own, errno))?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| failed(path, errno))?;
        if (stat.st_dev, stat.st_ino) == (own_stat.st_dev, own_stat.st_ino) {
            return Err(CniError::OwnNetns(path.to_owned()));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Moves the process, which has one thread, into the namespace for good. Files stay where they are, except for
    /// /proc/sys/net, which follows.
    pub(crate) fn enter(&self) -> Result<(), CniError> {
        match rustix::thread::move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)) {
            Err(Errno::INVAL) => Err(CniError::NotNetns(self.path.clone())),
            other => other.map_err(|errno| CniError::Io {
                action: format!("enter the network namespace {}", self.path.display()),
                source: errno.into(),
            }),
        }
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
