//! The log of calls that failed: a runtime often shows no more of a failure than its message.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::SystemTime,
};

use serde_json::Value;

const LOG_FILE: &str = "cni.log";
const LOG_FILE_BEFORE: &str = "cni.log.1";
/// Bytes; there are two such files at most.
const LOG_MAX: u64 = 1024 * 1024;

/// Appends one line of JSON. A log that can't be written changes nothing for the call.
pub(crate) fn append(state_dir: &Path, failure: &Value) {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let mut line = serde_json::json!({
        "time": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        "command": variable("CNI_COMMAND"),
        "containerID": variable("CNI_CONTAINERID"),
        "ifname": variable("CNI_IFNAME"),
    });
    if let (Some(line), Some(failure)) = (line.as_object_mut(), failure.as_object()) {
        line.extend(
            failure.iter().filter(|(key, _)| *key != "cniVersion").map(|(k, v)| (k.clone(), v.clone())),
        );
    }
    let _ = fs::create_dir_all(state_dir).and_then(|()| write(state_dir, &format!("{line}\n")));
}

fn write(state_dir: &Path, line: &str) -> io::Result<()> {
    let path = state_dir.join(LOG_FILE);
    let mut file = open(&path)?;
    if file.metadata()?.len() + line.len() as u64 > LOG_MAX {
        // Two calls may get here at once: the lock lets one turn the file over, and the other then finds the new one.
        file.lock()?;
        let is_current =
            fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|m| m.ino() == now.ino()));
        if is_current {
            fs::rename(&path, state_dir.join(LOG_FILE_BEFORE))?;
        }
        file = open(&path)?;
    }
    file.write_all(line.as_bytes())
}

fn open(path: &Path) -> io::Result<File> {
    // A pipe of that name would otherwise hang the call.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    File::options().append(true).create(true).mode(0o600).custom_flags(nonblocking).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_line_each_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let long = serde_json::json!({ "msg": format!("two\nlines {}", "x".repeat(10_000)), "code": 7 });
        for _ in 0..300 {
            append(folder.path(), &long);
        }
        let log = fs::read_to_string(folder.path().join(LOG_FILE)).unwrap();
        assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["code"] == 7));
        let before = fs::metadata(folder.path().join(LOG_FILE_BEFORE)).unwrap();
        assert!(log.len() as u64 <= LOG_MAX && before.len() <= LOG_MAX);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        assert_eq!(before.mode() & 0o777, 0o600);
    }

    #[test]
    fn where_it_cannot_be_written_nothing_happens() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        append(&folder.path().join("file"), &serde_json::json!({}));
    }
}
