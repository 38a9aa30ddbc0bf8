//! The three writes that the store is made of. Each is atomic; nothing else in this crate changes the folder's entries.
//!
//! Apart so that tests can stop the disk before any write: after a stop nothing is written any more, as when the
//! process was killed there, or from then on fails, as on a full or read-only disk.

use std::{fs, io, os::unix::fs::symlink, path::Path};

#[derive(Debug, Default)]
pub(crate) struct Disk {
    #[cfg(test)]
    pub(crate) writes_left: std::cell::Cell<Option<usize>>,
    /// Only one write fails, as on a disk that was full for a moment.
    #[cfg(test)]
    pub(crate) recovers: std::cell::Cell<bool>,
}

impl Disk {
    /// Makes `path` a symlink to `target`; `AlreadyExists` if there is anything.
    pub(crate) fn link(&self, target: &str, path: &Path) -> io::Result<()> {
        self.write()?;
        symlink(target, path)
    }

    /// Puts `temporary` in the place of `path`.
    pub(crate) fn rename(&self, temporary: &Path, path: &Path) -> io::Result<()> {
        self.write()?;
        fs::rename(temporary, path)
    }

    /// Removes `path`; one that is missing is no error.
    pub(crate) fn unlink(&self, path: &Path) -> io::Result<()> {
        self.write()?;
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)]
    fn write(&self) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn write(&self) -> io::Result<()> {
        match self.writes_left.get() {
            Some(0) => {
                self.writes_left.set(if self.recovers.get() { None } else { Some(0) });
                Err(io::ErrorKind::StorageFull.into())
            }
            Some(left) => {
                self.writes_left.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }
}
