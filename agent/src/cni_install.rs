//! Making the node ready for pods: the plugin, this boot's mark, and last the conflist that the runtime looks for.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Cursor, Read, Seek},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use wg_overlay_cni::{Network, NetworkError};

use crate::{config::Config, status::CniStatus};

/// The name of the plugin's program.
pub const PLUGIN: &str = "wg-overlay-cni";
/// The name of the conflist.
pub const CONFLIST: &str = "10-wg-overlay.conflist";

/// The plugins that are chained where binDir has them.
const CHAINED: [&str; 2] = ["portmap", "bandwidth"];

/// Why the node can't be made ready for pods.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file could not be read or written.
    #[error("can't write {}{}", path.display(), owner(path, source))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The plugin's program isn't where it should come from.
    #[error("can't read the plugin {}, which belongs beside the agent's program", path.display())]
    NoPlugin {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The mark could not be written.
    #[error("can't mark this boot ready")]
    Mark(#[source] NetworkError),
}

/// Root without CAP_DAC_OVERRIDE, as in the agent's pod, writes only what root owns; some packages leave binDir to another
/// user.
fn owner(path: &Path, error: &io::Error) -> String {
    let folder = path.parent().unwrap_or(path);
    match fs::metadata(folder) {
        Ok(found) if error.kind() == io::ErrorKind::PermissionDenied && found.uid() != 0 => {
            let folder = folder.display();
            format!(" ({folder} belongs to user {}; on the host: chown root:root {folder})", found.uid())
        }
        _ => String::new(),
    }
}

/// Installs the plugin, marks this boot ready and writes the conflist, each only where it differs.
///
/// # Errors
/// [`InstallError`] for the first file that can't be written; what comes after is then left alone.
pub fn install(config: &Config, network: &Network) -> Result<CniStatus, InstallError> {
    let source = std::env::current_exe()
        .map(|exe| exe.with_file_name(PLUGIN))
        .map_err(|source| InstallError::NoPlugin { path: PLUGIN.into(), source })?;
    let plugin = File::open(&source).map_err(|e| InstallError::NoPlugin { path: source, source: e })?;
    replace(&config.cni_bin_dir.join(PLUGIN), plugin, 0o755)?;

    fs::create_dir_all(&config.state_dir)
        .map_err(|source| InstallError::Write { path: config.state_dir.clone(), source })?;
    network.write(&config.state_dir).map_err(InstallError::Mark)?;

    let (chained, missing) = chain(config);
    let text = conflist(&config.state_dir, &chained);
    replace(&config.cni_conf_dir.join(CONFLIST), Cursor::new(text), 0o644)?;
    Ok(CniStatus { ready: true, chained, missing })
}

/// Another network's configuration that the runtime would take instead of ours: it takes the first by name.
pub fn rival(config: &Config) -> Option<PathBuf> {
    let entries = fs::read_dir(&config.cni_conf_dir).ok()?;
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let first = names.filter(|n| [".conf", ".conflist", ".json"].iter().any(|end| n.ends_with(end))).min()?;
    (first.as_str() < CONFLIST).then(|| config.cni_conf_dir.join(first))
}

/// Removes the conflist, then the plugin.
///
/// # Errors
/// Where a file is there and can't be removed; it names the file.
pub fn uninstall(config: &Config) -> io::Result<()> {
    for file in [config.cni_conf_dir.join(CONFLIST), config.cni_bin_dir.join(PLUGIN)] {
        for path in [temporary(&file), file] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn chain(config: &Config) -> (Vec<String>, Vec<String>) {
    let present = |name: &String| config.cni_bin_dir.join(name).exists();
    match &config.cni_chain {
        Some(names) => (names.clone(), names.iter().filter(|n| !present(n)).cloned().collect()),
        None => CHAINED.iter().map(|name| (*name).to_owned()).partition(present),
    }
}

/// The conflist: 1.0.0 for a runtime that knows no more (containerd 1.7), 1.1.0 with STATUS and GC for one that does
/// (CNI spec 1.1.0, section 1, `cniVersions`).
fn conflist(state_dir: &Path, chained: &[String]) -> String {
    let ours = json!({ "type": PLUGIN, "stateDir": state_dir });
    let plugins: Vec<Value> =
        std::iter::once(ours).chain(chained.iter().map(|name| chained_plugin(name))).collect();
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "wg-overlay",
        "plugins": plugins,
    });
    format!("{list:#}\n")
}

fn chained_plugin(name: &str) -> Value {
    match name {
        "portmap" => json!({ "type": name, "capabilities": { "portMappings": true }, "snat": true }),
        "bandwidth" => json!({ "type": name, "capabilities": { "bandwidth": true } }),
        _ => json!({ "type": name }),
    }
}

/// Writes a file where it differs, by a temporary file in the same folder and a rename: containerd notices nothing
/// else, and a program that runs can't be written over.
fn replace(path: &Path, mut content: impl Read + Seek, mode: u32) -> Result<(), InstallError> {
    if File::open(path).and_then(|found| is_same(&mut content, found)).unwrap_or(false) {
        return Ok(());
    }
    let mut write = || -> io::Result<()> {
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        let temporary = temporary(path);
        let mut file = File::create(&temporary)?;
        content.rewind()?;
        io::copy(&mut content, &mut file)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, path)
    };
    write().map_err(|source| InstallError::Write { path: path.to_owned(), source })
}

/// Whether both hold the same; a part of each is in memory at a time.
fn is_same(one: impl Read, other: impl Read) -> io::Result<bool> {
    let (mut one, mut other) = (BufReader::new(one), BufReader::new(other));
    loop {
        let (part, beside) = (one.fill_buf()?, other.fill_buf()?);
        let length = part.len().min(beside.len());
        if length == 0 {
            return Ok(part.len() == beside.len());
        }
        if part.get(..length) != beside.get(..length) {
            return Ok(false);
        }
        one.consume(length);
        other.consume(length);
    }
}

/// In the same folder, and of no name that a runtime reads.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    path.with_file_name(format!(".{name}.new"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn only_the_same_is_the_same(one in prop::collection::vec(0..2u8, 0..4), other in prop::collection::vec(0..2u8, 0..4)) {
            prop_assert_eq!(is_same(&*one, &*other).unwrap(), one == other);
            // beyond a reader's buffer, and in parts of other sizes
            let long = |end: &[u8]| [&[7; 10_000], end].concat();
            let (one_long, other_long) = (long(&one), long(&other));
            let in_parts = one_long.as_slice().take(10).chain(one_long.get(10..).unwrap());
            prop_assert_eq!(is_same(in_parts, &*other_long).unwrap(), one == other);
        }
    }

    #[test]
    fn the_conflist_is_one_that_old_and_new_runtimes_take() {
        let text = conflist(Path::new("/run/wg-overlay"), &["portmap".into(), "bandwidth".into()]);
        let list: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(list["cniVersion"], "1.0.0");
        assert_eq!(list["plugins"][0]["type"], "wg-overlay-cni");
        assert_eq!(list["plugins"][1]["capabilities"]["portMappings"], true);
    }
}
