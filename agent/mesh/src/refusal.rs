//! Why a Node is not programmed, or why this node itself can't do its work: one text for status, log and Event.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use crate::AdvertisementError;

/// A Node that is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
}

/// Why a Node is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Its annotations are missing or malformed.
    Annotation(AdvertisementError),
    /// Its key is held by another Node, or claimed by several and held by none.
    DuplicateKey {
        /// The Node that holds it.
        holder: Option<String>,
    },
    /// Its key is this node's own.
    OwnKey,
    /// It has no PodCIDR.
    NoPodCidr,
    /// A PodCIDR is no prefix.
    MalformedPodCidr(String),
    /// A PodCIDR lies outside the cluster's.
    PodCidrOutside(IpNet),
    /// A PodCIDR is shorter than the cluster's node mask.
    PodCidrTooWide(IpNet, u8),
    /// A PodCIDR overlaps something that must not move into a tunnel.
    PodCidrOverlaps(IpNet, String),
    /// A PodCIDR overlaps one that another Node holds.
    DuplicatePodCidr(IpNet, String),
    /// An overlay address lies outside its PodCIDRs and the overlay prefixes.
    OverlayIpOutside(IpAddr),
    /// An overlay address is held by another Node.
    DuplicateOverlayIp(IpAddr, String),
    /// No address in a family that this node can route to.
    NoEndpoint,
    /// The endpoint lies inside the tunnel.
    EndpointInTunnel(IpAddr),
    /// The endpoint is an address of this node.
    EndpointIsOwn(IpAddr),
}

impl Reason {
    /// The reason as one word, for metrics, Events and tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Annotation(AdvertisementError::NoPublicKey) => "NoPublicKey",
            Self::Annotation(AdvertisementError::PublicKey { .. }) => "MalformedKey",
            Self::Annotation(_) => "MalformedAnnotation",
            Self::DuplicateKey { .. } => "DuplicateKey",
            Self::OwnKey => "OwnKey",
            Self::NoPodCidr => "NoPodCidr",
            Self::MalformedPodCidr(_) => "MalformedPodCidr",
            Self::PodCidrOutside(_) => "PodCidrOutside",
            Self::PodCidrTooWide(..) => "PodCidrTooWide",
            Self::PodCidrOverlaps(..) => "PodCidrOverlaps",
            Self::DuplicatePodCidr(..) => "DuplicatePodCidr",
            Self::OverlayIpOutside(_) => "OverlayIpOutside",
            Self::DuplicateOverlayIp(..) => "DuplicateOverlayIp",
            Self::NoEndpoint => "NoEndpoint",
            Self::EndpointInTunnel(_) => "EndpointInTunnel",
            Self::EndpointIsOwn(_) => "EndpointIsOwn",
        }
    }

    /// Whether the Node does something wrong, or just takes no part (no agent there: Windows, virtual, not yet).
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::Annotation(AdvertisementError::NoPublicKey) | Self::NoPodCidr)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CLONED: &str = "Cloned disk? Remove its key file and restart its agent.";
        match self {
            Self::Annotation(error) => error.fmt(f),
            Self::DuplicateKey { holder: Some(node) } => write!(f, "its key is held by {node}. {CLONED}"),
            Self::DuplicateKey { holder: None } => write!(f, "another Node has the same key. {CLONED}"),
            Self::OwnKey => write!(f, "its key is this node's own. {CLONED}"),
            Self::NoPodCidr => f.write_str(
                "it has no spec.podCIDRs yet. Does kube-controller-manager run with --allocate-node-cidrs?",
            ),
            Self::MalformedPodCidr(text) => write!(f, "spec.podCIDRs: {} is no prefix", shorten(text)),
            Self::PodCidrOutside(net) => {
                write!(
                    f,
                    "PodCIDR {net} is outside the cluster's pod networks (podCIDRs in the configuration)"
                )
            }
            Self::PodCidrTooWide(net, len) => {
                write!(f, "PodCIDR {net} is wider than the cluster's node networks, /{len}")
            }
            Self::PodCidrOverlaps(net, what) => write!(f, "PodCIDR {net} overlaps {what}"),
            Self::DuplicatePodCidr(net, node) => write!(f, "PodCIDR {net} overlaps one held by {node}"),
            Self::OverlayIpOutside(ip) => {
                write!(f, "overlay address {ip} is outside its PodCIDRs and the configured overlayCIDRs")
            }
            Self::DuplicateOverlayIp(ip, node) => write!(f, "overlay address {ip} is held by {node}"),
            Self::NoEndpoint => write!(
                f,
                "no InternalIP or ExternalIP that this node has a route to. Annotate it with {}",
                crate::annotation::ENDPOINT
            ),
            Self::EndpointInTunnel(ip) => {
                write!(f, "endpoint {ip} is a pod or overlay address: a tunnel in itself")
            }
            Self::EndpointIsOwn(ip) => write!(f, "endpoint {ip} is an address of this node"),
        }
    }
}

/// Why this node can't do its own work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalProblem {
    /// Its own Node object isn't there.
    NoNode(String),
    /// It has no PodCIDR yet.
    NoPodCidr,
    /// Its own PodCIDR is no prefix, or too small for a pod.
    UnusablePodCidr(String),
    /// Its own PodCIDR lies outside the cluster's.
    PodCidrOutside(IpNet),
    /// The cluster's pod networks aren't known.
    NoClusterCidrs,
    /// No underlay link was found to take the MTU from.
    NoUnderlay,
}

impl fmt::Display for LocalProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNode(name) => write!(f, "Node {name} is not in the cluster. Is nodeName right?"),
            Self::NoPodCidr => f.write_str(
                "this Node has no spec.podCIDRs yet. Does kube-controller-manager run with --allocate-node-cidrs?",
            ),
            Self::UnusablePodCidr(text) => write!(f, "this Node's PodCIDR {} is unusable", shorten(text)),
            Self::PodCidrOutside(net) => {
                write!(f, "this Node's PodCIDR {net} is outside the cluster's pod networks: correct podCIDRs")
            }
            Self::NoClusterCidrs => f.write_str(
                "the cluster's pod networks are unknown: set podCIDRs in the configuration (kubeadm's would be read from ConfigMap kube-system/kubeadm-config)",
            ),
            Self::NoUnderlay => f.write_str("no underlay link with a route or the node's InternalIP is up"),
        }
    }
}

/// Outside text is shown up to 60 characters.
fn shorten(text: &str) -> String {
    let short: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
}
