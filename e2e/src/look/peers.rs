//! A node's peers and routes beside what the Nodes of the API ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::node::{KEY, WgPeer, routes, wg_dump};
use crate::lab::{Lab, Node};

/// What a Node asks of the others.
#[derive(Debug)]
pub struct Wanted {
    key: String,
    allowed_ips: BTreeSet<String>,
    endpoint: String,
}

/// What every Node of the API asks for, by its name. For Nodes without endpoint annotations, whose first InternalIP is of
/// IPv4.
///
/// # Errors
/// A Node has not published its key yet.
pub fn wanted(lab: &Lab) -> Result<BTreeMap<String, Wanted>> {
    let list = lab.api().get("/api/v1/nodes")?;
    list["items"].as_array().into_iter().flatten().map(of_node).collect()
}

fn of_node(node: &Value) -> Result<(String, Wanted)> {
    let name = node["metadata"]["name"].as_str().context("a Node without a name")?;
    let annotations = &node["metadata"]["annotations"];
    let key = annotations[KEY].as_str().with_context(|| format!("Node {name} has no key"))?;
    let port = annotations["wg-overlay.io/listen-port"].as_str().context("no port")?;
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let mut internal = addresses.filter(|address| address["type"] == "InternalIP");
    let address = internal.next().and_then(|address| address["address"].as_str()).context("no InternalIP")?;
    let cidrs = node["spec"]["podCIDRs"].as_array().into_iter().flatten();
    let wanted = Wanted {
        key: key.to_owned(),
        allowed_ips: cidrs.filter_map(|cidr| cidr.as_str().map(str::to_owned)).collect(),
        endpoint: format!("{address}:{port}"),
    };
    Ok((name.to_owned(), wanted))
}

/// What a node has that no Node asks for, lacks, or has otherwise: peers, and routes into the tunnel.
#[derive(Debug, Default)]
pub struct Difference {
    /// There, and not wanted.
    pub stale: Vec<String>,
    /// Wanted, and not there.
    pub missing: Vec<String>,
    /// There with another endpoint or other allowed IPs.
    pub wrong: Vec<String>,
}

impl Difference {
    /// How many differences in all.
    #[must_use]
    pub fn count(&self) -> usize {
        self.stale.len() + self.missing.len() + self.wrong.len()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stale, missing, wrong } = self;
        write!(f, "stale {stale:?}, missing {missing:?}, wrong {wrong:?}")
    }
}

/// Compares a node, which the API knows by the name `own`, with what is wanted.
///
/// # Errors
/// There is no device.
pub fn difference(node: &Node, own: &str, wanted: &BTreeMap<String, Wanted>) -> Result<Difference> {
    let others = || wanted.iter().filter(|(name, _)| *name != own);
    let mut peers = wg_dump(node)?;
    let mut found = Difference::default();
    for (name, wanted) in others() {
        match peers.remove(&wanted.key) {
            None => found.missing.push(format!("peer {name}")),
            Some(peer) if !wanted.is_met_by(&peer) => found.wrong.push(format!("peer {name}: {peer:?}")),
            Some(_) => {}
        }
    }
    found.stale.extend(peers.into_keys().map(|key| format!("peer {key}")));
    let text = routes(node)?;
    let routed =
        text.lines().filter(|line| line.contains("dev wgo0")).filter_map(|line| line.split(' ').next());
    let routed: BTreeSet<&str> = routed.collect();
    let asked: BTreeSet<&str> =
        others().flat_map(|(_, to)| to.allowed_ips.iter().map(String::as_str)).collect();
    found.stale.extend(routed.difference(&asked).map(|net| format!("route {net}")));
    found.missing.extend(asked.difference(&routed).map(|net| format!("route {net}")));
    Ok(found)
}

impl Wanted {
    /// Its public key, in base64.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its pod prefixes.
    #[must_use]
    pub fn allowed_ips(&self) -> &BTreeSet<String> {
        &self.allowed_ips
    }

    fn is_met_by(&self, peer: &WgPeer) -> bool {
        let allowed: BTreeSet<String> = peer.allowed_ips.iter().cloned().collect();
        allowed == self.allowed_ips && peer.endpoint == self.endpoint
    }
}
