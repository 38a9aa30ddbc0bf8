//! The two locks of the folder. Both are `flock`s: the kernel frees them when their holder dies.

use std::{fs::File, path::Path};

/// Held while an attachment is being made (shared) or while leftovers are collected (alone).
///
/// Between reserving an address and making its link, an attachment looks like one whose link is gone. This lock keeps
/// the collection from taking that address.
#[derive(Debug)]
pub struct AttachLock(
    #[allow(dead_code, reason = "held for its drop, which closes the file and frees the lock")] File,
);

impl AttachLock {
    pub(crate) fn new(file: File) -> Self {
        Self(file)
    }
}

/// Opens a lock file, made with mode 0600 where it is missing.
pub(crate) fn open(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}
