//! The boot mark: what the agent tells the plugin about this node, once the node is ready for pods in this boot.
//!
//! It lies under `/run`, so that a reboot removes it: after a reboot the conflist is older than the fail-closed routes,
//! and no pod may start before them.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use wg_overlay_ipam::Range;

/// The mark's name in the state folder.
pub const NETWORK_FILE: &str = "network.json";

/// What new pods get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The node's own prefixes, at most one of a family; a pod gets one address of each.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// Bytes; the MTU of a pod's link.
    pub mtu: u32,
}

/// The mark could not be read or written.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The agent has not made this node ready since the last boot, or took that back: its Node is gone.
    #[error("{path} is missing: the wg-overlay agent has not made this node ready since it booted, or its Node is gone", path = .0.display())]
    Missing(PathBuf),
    /// The file is there and can't be read, or could not be written.
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
    /// The file does not hold what an agent writes.
    #[error("{path} is not what an agent writes; restart the agent, which writes it anew", path = .path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where it went wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The content makes no network.
    #[error("{path}: {reason}", path = .path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Network {
    /// Reads the mark in `state_dir`.
    pub fn read(state_dir: &Path) -> Result<Self, NetworkError> {
        let path = state_dir.join(NETWORK_FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NetworkError::Missing(path)),
            other => {
                other.map_err(|source| NetworkError::Io { action: "read", path: path.clone(), source })?
            }
        };
        let network =
            Self::parse(&text).map_err(|source| NetworkError::Malformed { path: path.clone(), source })?;
        network.ranges().map_err(|reason| NetworkError::Invalid { path, reason })?;
        Ok(network)
    }

    pub(crate) fn parse(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text)
    }

    /// Writes the mark into `state_dir`, which must exist, by a temporary file and a rename. False if it says so already.
    pub fn write(&self, state_dir: &Path) -> Result<bool, NetworkError> {
        let path = state_dir.join(NETWORK_FILE);
        self.ranges().map_err(|reason| NetworkError::Invalid { path: path.clone(), reason })?;
        if Self::read(state_dir).is_ok_and(|written| written == *self) {
            return Ok(false);
        }
        let text = serde_json::to_vec(self)
            .map_err(|source| NetworkError::Malformed { path: path.clone(), source })?;
        tempfile::NamedTempFile::new_in(state_dir)
            .and_then(|mut file| file.write_all(&text).map(|()| file))
            .and_then(|file| file.persist(&path).map_err(|error| error.error))
            .map_err(|source| NetworkError::Io { action: "write", path, source })?;
        Ok(true)
    }

    /// Takes the mark in `state_dir` away: new pods wait. False if there was none.
    pub fn remove(state_dir: &Path) -> Result<bool, NetworkError> {
        let path = state_dir.join(NETWORK_FILE);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(NetworkError::Io { action: "remove", path, source }),
        }
    }

    /// The ranges that pods get addresses of, in the order of the prefixes; or what is wrong with this network.
    pub(crate) fn ranges(&self) -> Result<Vec<Range>, String> {
        // RFC 791 and RFC 8200: what every IPv4 host takes, and the least a link may have that carries IPv6.
        let least = if self.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6()) { 1280 } else { 576 };
        if !(least..=65_535).contains(&self.mtu) {
            return Err(format!("mtu {} is not within {least} and 65535", self.mtu));
        }
        let families = |v6| self.pod_cidrs.iter().filter(|cidr| cidr.addr().is_ipv6() == v6).count();
        if self.pod_cidrs.is_empty() || families(false) > 1 || families(true) > 1 {
            return Err(format!("podCIDRs {:?} is not one prefix, or one of each family", self.pod_cidrs));
        }
        self.pod_cidrs.iter().map(|cidr| Range::new(*cidr).map_err(|error| error.to_string())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(cidrs: &[&str], mtu: u32) -> Network {
        Network { pod_cidrs: cidrs.iter().map(|text| text.parse().unwrap()).collect(), mtu }
    }

    #[test]
    fn written_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Network::read(folder.path()), Err(NetworkError::Missing(_))));
        let one = network(&["10.244.1.0/24", "fd00:244:0:1::/64"], 1420);
        assert!(one.write(folder.path()).unwrap());
        assert!(!one.write(folder.path()).unwrap(), "nothing differs, nothing is written");
        assert_eq!(Network::read(folder.path()).unwrap(), one);
        let text = fs::read_to_string(folder.path().join(NETWORK_FILE)).unwrap();
        assert_eq!(text, r#"{"podCIDRs":["10.244.1.0/24","fd00:244:0:1::/64"],"mtu":1420}"#);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
        assert!(Network::remove(folder.path()).unwrap());
        assert!(!Network::remove(folder.path()).unwrap(), "it is gone already");
        assert!(matches!(Network::read(folder.path()), Err(NetworkError::Missing(_))));
    }

    #[test]
    fn what_makes_no_network_is_neither_written_nor_read() {
        let folder = tempfile::tempdir().unwrap();
        let bad = [
            network(&[], 1420),
            network(&["10.0.0.0/24", "10.0.1.0/24"], 1420),
            network(&["10.0.0.0/31"], 1420),
            network(&["10.0.0.0/24"], 575),
            network(&["fd00::/64"], 1279),
            network(&["10.0.0.0/24"], 65_536),
        ];
        for network in bad {
            assert!(network.write(folder.path()).is_err(), "{network:?}");
            fs::write(folder.path().join(NETWORK_FILE), serde_json::to_vec(&network).unwrap()).unwrap();
            assert!(matches!(Network::read(folder.path()), Err(NetworkError::Invalid { .. })), "{network:?}");
            fs::remove_file(folder.path().join(NETWORK_FILE)).unwrap();
        }
        for text in
            ["", "{", "[]", "{}", r#"{"podCIDRs":"10.0.0.0/24","mtu":1420}"#, r#"{"podCIDRs":[],"mtu":-1}"#]
        {
            fs::write(folder.path().join(NETWORK_FILE), text).unwrap();
            assert!(matches!(Network::read(folder.path()), Err(NetworkError::Malformed { .. })), "{text}");
        }
    }
}
