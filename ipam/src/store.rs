//! The folder of reservations: reserve, release, list, gc.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use thiserror::Error;

use crate::{AttachLock, Holder, Range, disk::Disk, lock};

/// Listing a folder costs about as much as this many symlinks that can't be made.
const FAILURES_BEFORE_LIST: u32 = 8;

/// The reservations of one node, in one folder. Processes share it; a lock file orders their writes.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    disk: Disk,
}

/// The addresses that one holder has, one for each range that it asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// Who has them.
    pub holder: Holder,
    /// In the order of the ranges asked for.
    pub addresses: Vec<IpAddr>,
}

/// What went wrong in a [`Store`].
#[derive(Debug, Error)]
pub enum IpamError {
    /// The holder has a reservation, which is untouched.
    #[error("{holder} holds {} already: release it first", join(.addresses))]
    AlreadyReserved {
        /// Who asked twice.
        holder: Holder,
        /// What it holds since the first time.
        addresses: Vec<IpAddr>,
    },
    /// Nothing is free in a range; the holder got no address of any other range either.
    #[error("no address is free in {0}: all {n} are held", n = .0.capacity())]
    Full(Range),
    /// There is nothing to reserve from.
    #[error("{0} asked for addresses of no range")]
    NoRange(Holder),
    /// The folder could not be read or written.
    #[error("could not {action} {path}", path = .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
}

impl Store {
    /// The store in `folder`, which the first reservation makes (0700, with its parents).
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), disk: Disk::default() }
    }

    /// Takes one address of each of `ranges` for `holder`, or none.
    ///
    /// An address is not given out again before its range has been walked once. A holder that has a reservation is an
    /// error and keeps what it has.
    pub fn reserve(&self, holder: &Holder, ranges: &[Range]) -> Result<Reservation, IpamError> {
        if ranges.is_empty() {
            return Err(IpamError::NoRange(holder.clone()));
        }
        let _lock = self.lock()?;
        let entry = self.holder_path(holder);
        if let Some(target) = read_link(&entry)? {
            return Err(IpamError::AlreadyReserved { holder: holder.clone(), addresses: split(&target) });
        }
        let addresses = match self.claim_all(holder, ranges) {
            // A crash may have left addresses without a holder.
            Err(IpamError::Full(range)) if self.sweep()? == 0 => return Err(IpamError::Full(range)),
            Err(IpamError::Full(_)) => self.claim_all(holder, ranges)?,
            other => other?,
        };
        if let Err(source) = self.disk.link(&join(&addresses), &entry) {
            self.unclaim(&addresses);
            return Err(io_error("write", &entry, source));
        }
        Ok(Reservation { holder: holder.clone(), addresses })
    }

    /// Gives back what `holder` has; `None` if it has nothing.
    pub fn release(&self, holder: &Holder) -> Result<Option<Reservation>, IpamError> {
        if !self.exists() {
            return Ok(None);
        }
        let _lock = self.lock()?;
        self.release_locked(holder)
    }

    /// What `holder` has.
    pub fn get(&self, holder: &Holder) -> Result<Option<Reservation>, IpamError> {
        let target = read_link(&self.holder_path(holder))?;
        Ok(target.map(|target| Reservation { holder: holder.clone(), addresses: split(&target) }))
    }

    /// Every reservation, sorted by holder.
    pub fn list(&self) -> Result<Vec<Reservation>, IpamError> {
        let mut all: Vec<Reservation> = self
            .links("holders")?
            .into_iter()
            .filter_map(|(name, target)| {
                Some(Reservation { holder: name.parse().ok()?, addresses: split(&target) })
            })
            .collect();
        all.sort_by(|a, b| a.holder.cmp(&b.holder));
        Ok(all)
    }

    /// Releases every reservation that `keep` refuses, and frees addresses that a crash left without a holder.
    ///
    /// Hold [`Self::try_begin_collection`]'s lock where `keep` asks for something that an attachment makes later than
    /// its reservation.
    pub fn gc(&self, mut keep: impl FnMut(&Reservation) -> bool) -> Result<Vec<Reservation>, IpamError> {
        if !self.exists() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        let mut released = Vec::new();
        for reservation in self.list()? {
            if !keep(&reservation) {
                released.extend(self.release_locked(&reservation.holder)?);
            }
        }
        self.sweep()?;
        Ok(released)
    }

    /// To be held from before a reservation until its link is there. Waits while leftovers are collected.
    pub fn begin_attach(&self) -> Result<AttachLock, IpamError> {
        let (file, path) = self.open_lock("attach.lock")?;
        file.lock_shared().map_err(|source| io_error("lock", &path, source))?;
        Ok(AttachLock::new(file))
    }

    /// To be held while leftovers are collected. `None` while an attachment or another collection is under way.
    pub fn try_begin_collection(&self) -> Result<Option<AttachLock>, IpamError> {
        let (file, path) = self.open_lock("attach.lock")?;
        match file.try_lock() {
            Ok(()) => Ok(Some(AttachLock::new(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(source)) => Err(io_error("lock", &path, source)),
        }
    }

    fn exists(&self) -> bool {
        self.folder.join("holders").is_dir()
    }

    fn claim_all(&self, holder: &Holder, ranges: &[Range]) -> Result<Vec<IpAddr>, IpamError> {
        let mut claimed = Vec::with_capacity(ranges.len());
        for range in ranges {
            match self.claim(holder, range) {
                Ok(address) => claimed.push(address),
                Err(error) => {
                    self.unclaim(&claimed);
                    return Err(error);
                }
            }
        }
        Ok(claimed)
    }

    /// The kernel tells whether an address is free: making a symlink that exists fails. So nothing is listed first, and
    /// the cursor makes the first try succeed unless the range has been walked. A walk that goes on lists what is held
    /// once, and spares itself the tries that would fail.
    fn claim(&self, holder: &Holder, range: &Range) -> Result<IpAddr, IpamError> {
        let cursor = self.cursor_path(range.prefix());
        let left_off = read_link(&cursor)?.and_then(|target| target.parse().ok());
        let (mut held, mut failures) = (BTreeSet::<String>::new(), 0);
        for address in range.walk_after(left_off) {
            if held.contains(&address.to_string()) {
                continue;
            }
            let entry = self.address_path(address);
            match self.disk.link(&holder.to_string(), &entry) {
                Ok(()) => {
                    return self
                        .set_cursor(&cursor, address)
                        .map(|()| address)
                        .inspect_err(|_| self.unclaim(&[address]));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    failures += 1;
                    if failures == FAILURES_BEFORE_LIST {
                        held = self.names("addresses")?.into_iter().collect();
                    }
                }
                Err(source) => return Err(io_error("write", &entry, source)),
            }
        }
        Err(IpamError::Full(*range))
    }

    /// Written before the holder: an address that somebody was given is never the next one to be given.
    fn set_cursor(&self, cursor: &Path, address: IpAddr) -> Result<(), IpamError> {
        let temporary = cursor.with_file_name(".next");
        self.disk
            .unlink(&temporary)
            .and_then(|()| self.disk.link(&address.to_string(), &temporary))
            .and_then(|()| self.disk.rename(&temporary, cursor))
            .map_err(|source| io_error("write", cursor, source))
    }

    /// Best effort: what stays is an address without a holder, which `sweep` frees.
    fn unclaim(&self, addresses: &[IpAddr]) {
        for address in addresses {
            let _ = self.disk.unlink(&self.address_path(*address));
        }
    }

    fn release_locked(&self, holder: &Holder) -> Result<Option<Reservation>, IpamError> {
        let entry = self.holder_path(holder);
        let Some(target) = read_link(&entry)? else { return Ok(None) };
        self.disk.unlink(&entry).map_err(|source| io_error("remove", &entry, source))?;
        let addresses = split(&target);
        for address in &addresses {
            let path = self.address_path(*address);
            if read_link(&path)?.is_some_and(|target| target == holder.to_string()) {
                self.disk.unlink(&path).map_err(|source| io_error("remove", &path, source))?;
            }
        }
        Ok(Some(Reservation { holder: holder.clone(), addresses }))
    }

    /// Frees the addresses whose holder does not have them, and says how many.
    fn sweep(&self) -> Result<usize, IpamError> {
        let mut freed = 0;
        for (name, target) in self.links("addresses")? {
            let (Ok(address), Ok(holder)) = (name.parse::<IpAddr>(), target.parse::<Holder>()) else {
                continue;
            };
            // Another spelling of an address isn't ours, and the entry of that address may well be held.
            let foreign = address.to_string() != name;
            if foreign || self.get(&holder)?.is_some_and(|held| held.addresses.contains(&address)) {
                continue;
            }
            let path = self.address_path(address);
            self.disk.unlink(&path).map_err(|source| io_error("remove", &path, source))?;
            freed += 1;
        }
        Ok(freed)
    }

    /// Name and target of every symlink in a folder; anything else in it is not ours.
    fn links(&self, folder: &str) -> Result<Vec<(String, String)>, IpamError> {
        let path = self.folder.join(folder);
        let link = |name: String| {
            let target = fs::read_link(path.join(&name)).ok()?.into_os_string().into_string().ok()?;
            Some((name, target))
        };
        Ok(self.names(folder)?.into_iter().filter_map(link).collect())
    }

    /// The names in a folder that are text.
    fn names(&self, folder: &str) -> Result<Vec<String>, IpamError> {
        let folder = self.folder.join(folder);
        let failed = |source| io_error("list", &folder, source);
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(failed)?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn lock(&self) -> Result<File, IpamError> {
        let (file, path) = self.open_lock("lock")?;
        file.lock().map_err(|source| io_error("lock", &path, source))?;
        Ok(file)
    }

    /// Opens a lock file, and makes the folders where this is the first one.
    fn open_lock(&self, name: &str) -> Result<(File, PathBuf), IpamError> {
        let path = self.folder.join(name);
        let failed = |source| io_error("open", &path, source);
        if !self.exists() {
            for folder in ["addresses", "cursor", "holders"].map(|name| self.folder.join(name)) {
                let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
                made.map_err(|source| io_error("make", &folder, source))?;
            }
        }
        let file = lock::open(&path).map_err(failed)?;
        Ok((file, path))
    }

    fn holder_path(&self, holder: &Holder) -> PathBuf {
        self.folder.join("holders").join(holder.to_string())
    }

    fn address_path(&self, address: IpAddr) -> PathBuf {
        self.folder.join("addresses").join(address.to_string())
    }

    fn cursor_path(&self, prefix: IpNet) -> PathBuf {
        self.folder.join("cursor").join(prefix.to_string().replace('/', "_"))
    }
}

/// Where a symlink points; `None` if it is missing.
fn read_link(path: &Path) -> Result<Option<String>, IpamError> {
    match fs::read_link(path) {
        Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error("read the symlink", path, source)),
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> IpamError {
    IpamError::Io { action, path: path.to_owned(), source }
}

fn join(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

fn split(target: &str) -> Vec<IpAddr> {
    target.split(',').filter_map(|address| address.parse().ok()).collect()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
