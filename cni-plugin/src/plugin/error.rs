//! Everything that a call can answer instead of a result, and the CNI's code for it.

use std::{io, path::PathBuf};

use serde_json::json;
use thiserror::Error;
use wg_overlay_ipam::{HolderError, IpamError};

use super::conf::SUPPORTED_VERSIONS;
use crate::{BRIDGE, CollectError, NetlinkError, NetworkError, names::TABLE};

#[derive(Debug, Error)]
pub(crate) enum CniError {
    #[error("cniVersion {0:?} is not supported: this plugin speaks {list}", list = SUPPORTED_VERSIONS.join(", "))]
    Version(String),
    #[error("{command} needs cniVersion {least} or later, and the configuration says {asked}")]
    CommandVersion { command: &'static str, least: &'static str, asked: String },
    #[error("CNI_NETNS: {} does not exist", .0.display())]
    NetnsGone(PathBuf),
    #[error("{} missing from the environment", .0.join(", "))]
    EnvMissing(Vec<&'static str>),
    #[error("{name}: {reason}")]
    Env { name: &'static str, reason: String },
    #[error("CNI_CONTAINERID or CNI_IFNAME is no valid name")]
    Holder(#[from] HolderError),
    #[error("CNI_IFNAME: the link {ifname} exists already in {}", .netns.display())]
    InterfaceExists { ifname: String, netns: PathBuf },
    #[error("could not {action}")]
    Io {
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("the network configuration on stdin is empty")]
    StdinEmpty,
    #[error("the network configuration on stdin can't be decoded")]
    Decode(#[source] serde_json::Error),
    #[error("network configuration: {0}")]
    Config(String),
    #[error("CNI_NETNS: {} is not a network namespace", .0.display())]
    NotNetns(PathBuf),
    #[error("CNI_NETNS: {} is the host's own network namespace", .0.display())]
    OwnNetns(PathBuf),
    #[error("this node is not ready for pods")]
    NotReady(#[source] NetworkError),
    #[error(
        "this node is not ready for pods: the bridge {BRIDGE} is missing, which the wg-overlay agent makes"
    )]
    NoBridge,
    #[error(
        "this node is not ready for pods: the nftables table bridge {TABLE} is missing, which the wg-overlay agent makes"
    )]
    NoPortGuard,
    #[error("could not read what the agent says of this node")]
    Network(#[source] NetworkError),
    #[error("could not reserve addresses")]
    Reserve(#[source] IpamError),
    #[error("the state of addresses could not be used")]
    Ipam(#[source] IpamError),
    #[error("the kernel refused a request")]
    Netlink(#[from] NetlinkError),
    #[error("collection failed")]
    Collect(#[source] CollectError),
    #[error("an ADD or another collection is under way")]
    CollectionBusy,
    #[error("the plugin is not available")]
    Unavailable(#[source] Box<CniError>),
    #[error("attachment {holder} differs from what ADD made: {difference}")]
    Check { holder: String, difference: String },
}

impl CniError {
    /// Codes of the CNI specification 1.1.0, section "Error", of libcni (8), and from 100 on ours.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Version(_) | Self::CommandVersion { .. } => 1,
            Self::NetnsGone(_) => 3,
            Self::EnvMissing(_) | Self::Env { .. } | Self::Holder(_) | Self::InterfaceExists { .. } => 4,
            Self::Io { .. } | Self::Ipam(_) | Self::Netlink(_) | Self::Collect(_) => 5,
            Self::StdinEmpty | Self::Decode(_) => 6,
            Self::Config(_) => 7,
            Self::NotNetns(_) | Self::OwnNetns(_) => 8,
            Self::NotReady(_) | Self::NoBridge | Self::NoPortGuard | Self::CollectionBusy => 11,
            Self::Network(NetworkError::Io { .. }) => 5,
            Self::Network(_) => 6,
            Self::Reserve(IpamError::Full(_)) => 11,
            Self::Reserve(IpamError::AlreadyReserved { .. }) => 100,
            Self::Reserve(_) => 5,
            Self::Unavailable(_) => 50,
            Self::Check { .. } => 101,
        }
    }

    /// The object for stdout: the message, and in `details` what caused it, outermost first.
    pub(crate) fn to_json(&self, cni_version: &str) -> serde_json::Value {
        let causes = std::iter::successors(std::error::Error::source(self), |error| error.source());
        let details: Vec<String> = causes.map(ToString::to_string).collect();
        let mut json = json!({ "cniVersion": cni_version, "code": self.code(), "msg": self.to_string() });
        if let (false, Some(object)) = (details.is_empty(), json.as_object_mut()) {
            object.insert("details".to_owned(), details.join(": ").into());
        }
        json
    }
}

impl From<NetworkError> for CniError {
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::Missing(_) => Self::NotReady(error),
            error => Self::Network(error),
        }
    }
}
