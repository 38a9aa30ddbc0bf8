//! What the cluster says of its nodes, as it says it: nothing in here is believed yet.

use std::collections::BTreeMap;

/// The Nodes of the cluster by name, this node's own among them.
pub type ClusterView = BTreeMap<String, NodeRecord>;

/// The part of a Node object that decisions need.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeRecord {
    /// `metadata.creationTimestamp`, seconds since the epoch: the older of two claims is the earlier one.
    pub created: i64,
    /// Those of `metadata.annotations` that are ours or the Go project's.
    pub annotations: BTreeMap<String, String>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<String>,
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<String>,
    /// `status.addresses` of type ExternalIP.
    pub external_ips: Vec<String>,
}
