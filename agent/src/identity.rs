//! The node's private key: in the device while it exists, in a file across a reboot.
//!
//! The file also says which node and machine it was made for, so that a cloned disk does not give two nodes one key.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use wg_overlay_host::PrivateKey;
use zeroize::Zeroizing;

/// The node's key, and what a person should hear about how it came to be.
pub struct Identity {
    /// The private key.
    pub key: PrivateKey,
    /// Notes for the log.
    pub notes: Vec<String>,
    /// What keeps the key from surviving a reboot, if something does.
    pub problem: Option<String>,
}

/// Who a key is made for.
pub struct Owner<'a> {
    /// The name of the Node.
    pub node: &'a str,
    /// The contents of /etc/machine-id, or empty.
    pub machine_id: &'a str,
}

/// Why a key file can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Unusable {
    #[error("it was made for node {0} on another machine or under another name")]
    OtherOwner(String),
    #[error("it is malformed")]
    Malformed,
}

/// Takes the key from the file, where there is one for this owner, else makes a new one and writes it there.
/// Without a file the key of the running device is kept.
pub fn ensure(file: Option<&Path>, device: Option<PrivateKey>, owner: &Owner<'_>) -> Identity {
    let Some(file) = file else {
        let made = device.is_none();
        let notes = if made { vec!["made a new key, kept in the device only".into()] } else { vec![] };
        return Identity { key: device.unwrap_or_else(PrivateKey::generate), notes, problem: None };
    };
    let mut notes = Vec::new();
    match read(file, owner) {
        Ok(Some(Ok(key))) => return Identity { key, notes, problem: None },
        Ok(Some(Err(reason))) => notes.push(set_aside(file, &reason)),
        Ok(None) => notes.push(format!("made a new key in {}", file.display())),
        Err(error) => {
            let problem = Some(format!("can't read the key file {}: {error}", file.display()));
            return Identity { key: device.unwrap_or_else(PrivateKey::generate), notes, problem };
        }
    }
    let key = PrivateKey::generate();
    match write(file, &key, owner) {
        Ok(()) => Identity { key, notes, problem: None },
        Err(error) => Identity {
            key: device.unwrap_or(key),
            notes: vec![],
            problem: Some(format!(
                "can't write the key file {}: {error}. The key is lost at the next reboot",
                file.display()
            )),
        },
    }
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

fn read(file: &Path, owner: &Owner<'_>) -> io::Result<Option<Result<PrivateKey, Unusable>>> {
    let text = match fs::read(file) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
    Ok(Some(parse(&text, owner)))
}

fn parse(bytes: &[u8], owner: &Owner<'_>) -> Result<PrivateKey, Unusable> {
    let text = std::str::from_utf8(bytes).map_err(|_| Unusable::Malformed)?;
    let field = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.filter(|(key, _)| *key == name).map(|(_, value)| value.trim()).next_back()
    };
    let (Some(node), Some(key)) = (field("node"), field("private-key")) else {
        return Err(Unusable::Malformed);
    };
    if node != owner.node || field("machine-id").unwrap_or_default() != owner.machine_id {
        return Err(Unusable::OtherOwner(node.chars().take(253).collect()));
    }
    PrivateKey::from_base64(key).map_err(|_| Unusable::Malformed)
}

fn write(file: &Path, key: &PrivateKey, owner: &Owner<'_>) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = beside(file, "new");
    let mut out =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    let secret = key.to_base64();
    let text = Zeroizing::new(format!(
        "# The WireGuard key of one node. Remove this file and restart the agent to make a new one.\nnode {}\nmachine-id {}\nprivate-key {}\n",
        owner.node,
        owner.machine_id,
        secret.as_str()
    ));
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    fs::rename(&temporary, file)
}

/// Every file that the key's may have left: itself, one that was set aside, one that was never put in its place.
pub fn files(file: &Path) -> [PathBuf; 3] {
    [file.to_owned(), beside(file, "unusable"), beside(file, "new")]
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

    const HERE: Owner<'_> = Owner { node: "worker-1", machine_id: "abc" };

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("wg-overlay-identity-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder.join("deep/private-key")
    }

    #[test]
    fn the_key_survives_in_a_file_only_root_reads() {
        let file = folder("survives");
        let first = ensure(Some(&file), None, &HERE).key.public_key();
        let second = ensure(Some(&file), None, &HERE);
        assert_eq!((second.key.public_key(), second.problem), (first, None));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_cloned_disk_makes_a_new_key_and_says_so() {
        let file = folder("cloned");
        let first = ensure(Some(&file), None, &HERE).key.public_key();
        for owner in
            [Owner { node: "worker-1", machine_id: "def" }, Owner { node: "worker-2", machine_id: "def" }]
        {
            let second = ensure(Some(&file), None, &owner);
            assert_ne!(second.key.public_key(), first);
            assert!(second.notes.concat().contains("worker-1"), "{:?}", second.notes);
        }
    }

    #[test]
    fn what_is_no_key_file_is_kept_aside() {
        for text in ["", "garbage", "node worker-1\nmachine-id abc\nprivate-key AAAA\n", "\u{0}\u{1}"] {
            let file = folder("garbage");
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, text).unwrap();
            let identity = ensure(Some(&file), None, &HERE);
            assert!(identity.problem.is_none());
            assert_eq!(fs::read_to_string(beside(&file, "unusable")).unwrap(), text);
            assert_eq!(ensure(Some(&file), None, &HERE).key.public_key(), identity.key.public_key());
        }
    }

    #[test]
    fn without_a_place_to_write_the_devices_key_stays_and_the_problem_is_named() {
        let device = PrivateKey::generate();
        let public = device.public_key();
        let identity = ensure(Some(Path::new("/proc/nowhere/private-key")), Some(device), &HERE);
        assert_eq!(identity.key.public_key(), public);
        assert!(identity.problem.unwrap().contains("/proc/nowhere/private-key"));
    }

    #[test]
    fn without_a_file_the_devices_key_is_kept() {
        let device = PrivateKey::generate();
        let public = device.public_key();
        assert_eq!(ensure(None, Some(device), &HERE).key.public_key(), public);
    }
}
