//! What the cluster says of its nodes, as it says it: nothing in here is believed yet.

mod packed;

use std::{borrow::Cow, collections::BTreeMap};

pub use packed::PackedView;

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

/// Where the Nodes of the cluster are kept: as they are, or packed.
pub trait Cluster {
    /// What a Node says; `None` where there is no such Node.
    fn record(&self, name: &str) -> Option<Cow<'_, NodeRecord>>;

    /// All of them, by name.
    fn records(&self) -> impl Iterator<Item = (&str, Cow<'_, NodeRecord>)>;
}

impl Cluster for ClusterView {
    fn record(&self, name: &str) -> Option<Cow<'_, NodeRecord>> {
        self.get(name).map(Cow::Borrowed)
    }

    fn records(&self) -> impl Iterator<Item = (&str, Cow<'_, NodeRecord>)> {
        self.iter().map(|(name, record)| (name.as_str(), Cow::Borrowed(record)))
    }
}
