//! The node's private keys: in the device while it exists, in a file across a reboot.
//!
//! The file also says which node and machine they were made for, so that a cloned disk does not give two nodes one key;
//! and how far a change of the key has come, so that a restarted agent goes on with it.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use wg_overlay_host::PrivateKey;
use wg_overlay_mesh::Rotation;
use zeroize::Zeroizing;

/// The node's key, and what a person should hear about how it came to be.
pub struct Identity {
    /// The private keys.
    pub keys: Keys,
    /// Where they are kept; `None` where they can't be.
    pub file: Option<KeyFile>,
    /// Notes for the log.
    pub notes: Vec<String>,
    /// What keeps the key from surviving a reboot, if something does.
    pub problem: Option<String>,
}

/// What the key's file says.
#[derive(Clone)]
pub struct Keys {
    /// The device's private key.
    pub key: PrivateKey,
    /// The key that it changes to next; the same while a change to it ends. `None` where nothing would keep it.
    pub next: Option<PrivateKey>,
    /// How far the change has come.
    pub rotation: Option<Rotation>,
    /// When the device's key became its key.
    pub since: SystemTime,
}

impl Keys {
    /// A key of this moment.
    fn new(key: PrivateKey) -> Self {
        Self { key, next: None, rotation: None, since: SystemTime::now() }
    }
}

/// Where the keys are kept, and who they are made for.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// The file.
    pub path: PathBuf,
    /// The name of the Node.
    pub node: String,
    /// The contents of /etc/machine-id, or empty.
    pub machine_id: String,
}

/// Why a key file can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Unusable {
    #[error("it was made for node {0} on another machine or under another name")]
    OtherOwner(String),
    #[error("it is malformed")]
    Malformed,
}

/// Takes the keys from the file, where there are some for this owner, else makes new ones and writes them there.
/// Without a file the key of the running device is kept.
pub fn ensure(file: Option<KeyFile>, device: Option<PrivateKey>) -> Identity {
    let Some(file) = file else {
        let made = device.is_none();
        let notes = if made { vec!["made a new key, kept in the device only".into()] } else { vec![] };
        let keys = Keys::new(device.unwrap_or_else(PrivateKey::generate));
        return Identity { keys, file: None, notes, problem: None };
    };
    let path = file.path.display();
    let mut notes = Vec::new();
    let (found, kept) = match file.read() {
        Ok(Some(Ok(keys))) if keys.next.is_some() => {
            return Identity { keys, file: Some(file), notes, problem: None };
        }
        Ok(Some(Ok(keys))) => (Some(keys), true),
        Ok(Some(Err(reason))) => {
            notes.push(set_aside(&file.path, &reason));
            (None, false)
        }
        Ok(None) => {
            notes.push(format!("made a new key in {path}"));
            (None, false)
        }
        Err(error) => {
            let problem = Some(format!("can't read the key file {path}: {error}"));
            let keys = Keys::new(device.unwrap_or_else(PrivateKey::generate));
            return Identity { keys, file: None, notes, problem };
        }
    };
    let mut keys = found.unwrap_or_else(|| Keys::new(PrivateKey::generate()));
    keys.next = Some(PrivateKey::generate());
    let Err(error) = file.write(&keys) else {
        return Identity { keys, file: Some(file), notes, problem: None };
    };
    let problem = match kept {
        true => format!("can't write the key file {path}: {error}. The key can't be changed without loss"),
        false => {
            keys = Keys::new(device.unwrap_or(keys.key));
            format!("can't write the key file {path}: {error}. The key is lost at the next reboot")
        }
    };
    keys.next = None;
    Identity { keys, file: None, notes: vec![], problem: Some(problem) }
}

fn set_aside(file: &Path, reason: &Unusable) -> String {
    let aside = beside(file, "unusable");
    let kept = match fs::rename(file, &aside) {
        Ok(()) => format!("kept as {}", aside.display()),
        Err(error) => format!("replaced ({error})"),
    };
    format!(
        "the key in {} is not used, for {reason}; a new one is made, the old file is {kept}",
        file.display()
    )
}

impl KeyFile {
    fn read(&self) -> io::Result<Option<Result<Keys, Unusable>>> {
        let text = match fs::read(&self.path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600))?;
        Ok(Some(self.parse(&text)))
    }

    fn parse(&self, bytes: &[u8]) -> Result<Keys, Unusable> {
        let text = std::str::from_utf8(bytes).map_err(|_| Unusable::Malformed)?;
        let field = |name: &str| {
            let lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.filter(|(key, _)| *key == name).map(|(_, value)| value.trim()).next_back()
        };
        let (Some(node), Some(private_key)) = (field("node"), field("private-key")) else {
            return Err(Unusable::Malformed);
        };
        if node != self.node || field("machine-id").unwrap_or_default() != self.machine_id {
            return Err(Unusable::OtherOwner(node.chars().take(253).collect()));
        }
        let key = |text| PrivateKey::from_base64(text).map_err(|_| Unusable::Malformed);
        let rotation = |word| Rotation::parse(word).ok_or(Unusable::Malformed);
        let seconds = |text: &str| text.parse().map_err(|_| Unusable::Malformed);
        // a file of an earlier version doesn't say since when
        let since = field("since").map(seconds).transpose()?.map(Duration::from_secs);
        let since = since.map_or_else(|| Some(SystemTime::now()), |age| UNIX_EPOCH.checked_add(age));
        Ok(Keys {
            key: key(private_key)?,
            next: field("next-private-key").map(key).transpose()?,
            rotation: field("rotation").map(rotation).transpose()?,
            since: since.ok_or(Unusable::Malformed)?,
        })
    }

    /// Writes the keys in place of those before.
    ///
    /// # Errors
    /// What the file system answers; the file is then what it was.
    pub fn write(&self, keys: &Keys) -> io::Result<()> {
        let since = keys.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut text = Zeroizing::new(String::with_capacity(512));
        *text +=
            "# The WireGuard keys of one node. Remove this file and restart the agent to make new ones.\n";
        *text += &format!("node {}\nmachine-id {}\nsince {since}\n", self.node, self.machine_id);
        for (name, key) in [("private-key", Some(&keys.key)), ("next-private-key", keys.next.as_ref())] {
            let Some(key) = key else { continue };
            for part in [name, " ", key.to_base64().as_str(), "\n"] {
                *text += part;
            }
        }
        if let Some(rotation) = keys.rotation {
            *text += &format!("rotation {rotation}\n");
        }
        put(&self.path, text.as_bytes())
    }

    /// The file beside it that says who held what.
    pub fn record(&self) -> PathBuf {
        beside(&self.path, RECORD)
    }
}

/// The end of the name of the record that lies beside the key.
const RECORD: &str = "peers";

/// Every file that the key's may have left: itself, one that was set aside, the record beside it, and what was never put in
/// its place.
pub fn files(file: &Path) -> [PathBuf; 5] {
    let record = beside(file, RECORD);
    [file.to_owned(), beside(file, "unusable"), beside(file, "new"), beside(&record, "new"), record]
}

/// Writes a file that only root reads, in place of the one before, so that it survives a crash as a whole.
///
/// # Errors
/// What the file system answers; the file is then what it was.
pub fn put(path: &Path, contents: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = beside(path, "new");
    let mut out =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    out.write_all(contents)?;
    out.sync_all()?;
    fs::rename(&temporary, path)
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &Path, node: &str, machine_id: &str) -> Option<KeyFile> {
        Some(KeyFile { path: path.to_owned(), node: node.into(), machine_id: machine_id.into() })
    }

    fn here(path: &Path) -> Option<KeyFile> {
        of(path, "worker-1", "abc")
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("wg-overlay-identity-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder.join("deep/private-key")
    }

    #[test]
    fn the_key_survives_in_a_file_only_root_reads() {
        let file = folder("survives");
        let first = ensure(here(&file), None).keys;
        let second = ensure(here(&file), None);
        assert_eq!((second.keys.key.public_key(), second.problem), (first.key.public_key(), None));
        let next = |keys: &Keys| keys.next.as_ref().map(PrivateKey::public_key);
        assert_eq!(next(&second.keys), next(&first));
        assert_ne!(next(&first), Some(first.key.public_key()));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_cloned_disk_makes_a_new_key_and_says_so() {
        let file = folder("cloned");
        let first = ensure(here(&file), None).keys.key.public_key();
        for node in ["worker-1", "worker-2"] {
            let second = ensure(of(&file, node, "def"), None);
            assert_ne!(second.keys.key.public_key(), first);
            assert!(second.notes.concat().contains("worker-1"), "{:?}", second.notes);
        }
    }

    #[test]
    fn what_is_no_key_file_is_kept_aside() {
        for text in ["", "garbage", "node worker-1\nmachine-id abc\nprivate-key AAAA\n", "\u{0}\u{1}"] {
            let file = folder("garbage");
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, text).unwrap();
            let identity = ensure(here(&file), None);
            assert!(identity.problem.is_none());
            assert_eq!(fs::read_to_string(beside(&file, "unusable")).unwrap(), text);
            let again = ensure(here(&file), None);
            assert_eq!(again.keys.key.public_key(), identity.keys.key.public_key());
        }
    }

    #[test]
    fn without_a_place_to_write_the_devices_key_stays_and_the_problem_is_named() {
        let device = PrivateKey::generate();
        let public = device.public_key();
        let identity = ensure(here(Path::new("/proc/nowhere/private-key")), Some(device));
        assert_eq!(identity.keys.key.public_key(), public);
        assert!(identity.keys.next.is_none() && identity.file.is_none());
        assert!(identity.problem.unwrap().contains("/proc/nowhere/private-key"));
    }

    #[test]
    fn without_a_file_the_devices_key_is_kept() {
        let device = PrivateKey::generate();
        let public = device.public_key();
        assert_eq!(ensure(None, Some(device)).keys.key.public_key(), public);
    }

    #[test]
    fn what_an_earlier_version_wrote_is_kept_and_gets_a_next_key() {
        let file = folder("earlier");
        let key = PrivateKey::generate();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let text = format!("node worker-1\nmachine-id abc\nprivate-key {}\n", key.to_base64().as_str());
        fs::write(&file, text).unwrap();
        let identity = ensure(here(&file), None);
        assert_eq!(identity.keys.key.public_key(), key.public_key());
        assert!(identity.keys.next.is_some() && identity.file.is_some());
    }

    #[test]
    fn a_rotation_that_was_under_way_is_read_again() {
        let file = here(&folder("rotation")).unwrap();
        let mut keys = ensure(Some(file.clone()), None).keys;
        for rotation in [Some(Rotation::Away), Some(Rotation::Back), None] {
            keys.rotation = rotation;
            file.write(&keys).unwrap();
            assert_eq!(ensure(Some(file.clone()), None).keys.rotation, rotation);
        }
    }
}
