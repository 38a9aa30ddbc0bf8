//! Who held which prefix and key when this node last looked, in a file beside the key's: after a reboot the kernel has
//! forgotten it, and a claim to what another held must still move nothing.

use std::{collections::BTreeMap, fs, io, sync::Arc};

use ipnet::IpNet;
use wg_overlay_mesh::{Decision, ObservedState, PublicKey};

use crate::identity::{KeyFile, put};

/// Who held what.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// By prefix.
    pub prefixes: BTreeMap<IpNet, Arc<str>>,
    /// By key.
    pub keys: BTreeMap<PublicKey, Arc<str>>,
}

/// Why a record can't be used.
#[derive(Debug, thiserror::Error)]
enum RecordError {
    /// The file can't be read.
    #[error("{0}")]
    Read(io::Error),
    /// A line is not as this program writes it.
    #[error("line {0} is malformed")]
    Malformed(usize),
}

impl Record {
    /// Reads the record beside a key file. There is none where none was written for this node and machine.
    ///
    /// # Errors
    /// [`RecordError`]: it then counts for nothing, and the next one takes its place.
    fn read(file: &KeyFile) -> Result<Self, RecordError> {
        let text = match fs::read_to_string(file.record()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            text => text.map_err(RecordError::Read)?,
        };
        let Some(lines) = text.strip_prefix(&head(file)) else {
            let known = text.starts_with(TITLE);
            return if known { Ok(Self::default()) } else { Err(RecordError::Malformed(1)) };
        };
        let mut record = Self::default();
        let before = head(file).lines().count();
        for (at, line) in lines.lines().enumerate() {
            record.take(line).ok_or(RecordError::Malformed(before + at + 1))?;
        }
        Ok(record)
    }

    fn take(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ');
        let node: Arc<str> = words.next().filter(|name| !name.is_empty())?.into();
        let key = PublicKey::parse(words.next()?).ok()?;
        for word in words {
            self.prefixes.insert(word.parse().ok()?, node.clone());
        }
        self.keys.insert(key, node);
        Some(())
    }

    /// Leaves out the prefixes that the kernel has with a key which isn't the holder's as written down: the kernel is newer.
    pub fn beside(mut self, observed: &ObservedState) -> Self {
        for (key, peer) in &observed.peers {
            for net in peer.allowed_ips.iter() {
                if self.prefixes.get(net).is_some_and(|holder| self.keys.get(key) != Some(holder)) {
                    self.prefixes.remove(net);
                }
            }
        }
        self
    }
}

/// Reads the record beside a key file. One that can't be used counts for nothing, and `say` is told.
pub fn read_or_forget(file: &KeyFile, say: impl FnOnce(String)) -> Record {
    Record::read(file).unwrap_or_else(|error| {
        let path = file.record();
        let path = path.display();
        say(format!("who held what is forgotten: {path} is not used: {error}. It is written anew by and by"));
        Record::default()
    })
}

/// What a decision leaves for the next boot: a line for each Node with its key and its prefixes.
pub fn text(file: &KeyFile, decision: &Decision) -> String {
    let mut text = head(file);
    for (node, key, prefixes) in decision.titles() {
        text.push_str(node);
        text.push(' ');
        text.push_str(&key.to_string());
        for net in prefixes {
            text.push(' ');
            text.push_str(&net.to_string());
        }
        text.push('\n');
    }
    text
}

/// Writes it beside the key file, where it differs.
///
/// # Errors
/// What the file system answers; the record is then what it was.
pub fn write(file: &KeyFile, text: &str) -> io::Result<()> {
    let path = file.record();
    if fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(());
    }
    put(&path, text.as_bytes())
}

/// The first words of each record.
const TITLE: &str = "# Who held what, for this node's next boot.";

fn head(file: &KeyFile) -> String {
    format!(
        "{TITLE} Without this file it is forgotten.\nnode {}\nmachine-id {}\n",
        file.node, file.machine_id
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::{collection, prelude::*};
    use tempfile::TempDir;

    use super::*;

    fn place() -> (TempDir, KeyFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private-key");
        (folder, KeyFile { path, node: "worker-1".into(), machine_id: "abc".into() })
    }

    fn line(n: u8) -> String {
        let key = PublicKey::from_bytes([n + 9; 32]).unwrap();
        format!("worker-{n} {key} 10.244.{n}.0/24 fd00:244:0:{n:x}::/64\n")
    }

    #[test]
    fn what_is_written_is_read_by_the_same_node_of_the_same_machine_alone() {
        let (_folder, file) = place();
        assert_eq!(Record::read(&file).unwrap(), Record::default());
        write(&file, &(head(&file) + &line(2) + &line(3))).unwrap();
        let record = Record::read(&file).unwrap();
        assert_eq!((record.prefixes.len(), record.keys.len()), (4, 2));
        assert_eq!(&*record.prefixes[&"fd00:244:0:3::/64".parse().unwrap()], "worker-3");
        for other in [("worker-2", "abc"), ("worker-1", "abcd"), ("worker-1", "")] {
            let other = KeyFile { node: other.0.into(), machine_id: other.1.into(), ..file.clone() };
            assert_eq!(Record::read(&other).unwrap(), Record::default());
        }
        assert_eq!(fs::read_dir(file.path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_is_no_record_is_named_and_counts_for_nothing() {
        let (_folder, file) = place();
        let good = head(&file) + &line(2);
        for (text, problem) in [
            (String::new(), "line 1"),
            ("garbage".into(), "line 1"),
            (good.clone() + "worker-3\n", "line 5"),
            (good.clone() + "\n" + &line(3), "line 5"),
            (good.clone() + "worker-3 AAAA 10.244.3.0/24\n", "line 5"),
            (good.clone() + line(3).trim_end_matches("/64\n"), "line 5"),
            (good.clone() + "\u{0}", "line 5"),
        ] {
            fs::write(file.record(), &text).unwrap();
            let mut said = String::new();
            assert_eq!(read_or_forget(&file, |text| said = text), Record::default(), "{text}");
            assert!(said.contains(problem) && said.contains("private-key.peers"), "{said}");
        }
        fs::write(file.record(), [0xff]).unwrap();
        assert!(Record::read(&file).is_err());
    }

    #[test]
    fn what_the_kernel_holds_is_newer() {
        let (_folder, file) = place();
        write(&file, &(head(&file) + &line(2) + &line(3))).unwrap();
        let holds = |key: u8, nets: &[&str]| {
            let mut observed = ObservedState::default();
            let peer = observed.peers.entry(PublicKey::from_bytes([key; 32]).unwrap()).or_default();
            peer.allowed_ips = nets.iter().map(|net| net.parse().unwrap()).collect();
            Record::read(&file).unwrap().beside(&observed).prefixes.len()
        };
        assert_eq!(holds(77, &["10.244.2.0/24", "10.244.7.0/24"]), 3);
        assert_eq!(holds(2 + 9, &["10.244.2.0/24", "10.244.3.0/24"]), 3, "the other Node's alone");
        assert_eq!(holds(2 + 9, &["10.244.2.0/24"]), 4);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_an_error() {
        let path = PathBuf::from("/proc/nowhere/private-key");
        let file = KeyFile { path, node: "worker-1".into(), machine_id: "abc".into() };
        assert!(write(&file, &head(&file)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_make_reading_fail_otherwise(bytes in collection::vec(any::<u8>(), 0..200), cut in 0..400usize) {
            let (_folder, file) = place();
            let text = head(&file) + &line(2) + &line(3);
            let mut contents = text.as_bytes()[..cut.min(text.len())].to_vec();
            contents.extend(bytes);
            fs::write(file.record(), contents).unwrap();
            let _ = Record::read(&file);
        }
    }
}
