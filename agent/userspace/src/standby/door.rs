//! The socket at which a device is asked for.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

use super::Standby;
use crate::{DeviceError, uapi::claim};

/// The listening socket. Its file goes when this is dropped, if it is still this one's.
pub(super) struct Door {
    path: PathBuf,
    pub(super) listener: UnixListener,
    file: Option<(u64, u64)>,
}

impl Door {
    pub(super) fn open(config: &Standby) -> Result<Self, DeviceError> {
        let path = config.socket.clone();
        match claim(&path) {
            Ok(listener) => Ok(Self { file: identity(&path), path, listener }),
            Err(source) if source.kind() == io::ErrorKind::AddrInUse => Err(DeviceError::AlreadyRunning {
                name: config.names.join(" and "),
                holder: path.display().to_string(),
            }),
            Err(source) => Err(DeviceError::Socket { path, source }),
        }
    }

    pub(super) fn is_ours(&self) -> bool {
        self.file.is_some() && identity(&self.path) == self.file
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// File system and inode: one file for as long as it is open.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}
