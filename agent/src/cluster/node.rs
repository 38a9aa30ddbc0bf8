//! The few fields of a Node that are read. A full Node is about 19 KB of JSON and 64 KB of heap; this one is 2 KB:
//! labels, images and managed fields are skipped while parsing and never allocated.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    api::core::v1::Node,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::Deserialize;
use wg_overlay_mesh::{NodeRecord, annotation};

/// A Node, as far as it is read.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "Wire")]
pub struct SlimNode {
    metadata: ObjectMeta,
    /// What decisions need of it.
    pub record: NodeRecord,
    /// Its condition NetworkUnavailable.
    pub network: Option<NetworkCondition>,
}

/// The condition NetworkUnavailable of a Node, as far as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkCondition {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Who says so, in one word.
    pub reason: String,
}

#[derive(Deserialize)]
struct Wire {
    metadata: WireMetadata,
    #[serde(default)]
    spec: WireSpec,
    #[serde(default)]
    status: WireStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMetadata {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    #[serde(default)]
    annotations: RelevantAnnotations,
}

#[derive(Deserialize, Default)]
struct WireSpec {
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
}

#[derive(Deserialize, Default)]
struct WireStatus {
    #[serde(default)]
    addresses: Vec<WireAddress>,
    #[serde(default)]
    conditions: RelevantCondition,
}

#[derive(Default)]
struct RelevantCondition(Option<NetworkCondition>);

#[derive(Deserialize)]
struct WireCondition<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    status: Cow<'a, str>,
    #[serde(borrow, default)]
    reason: Cow<'a, str>,
}

impl<'de> Deserialize<'de> for RelevantCondition {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = RelevantCondition;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("conditions")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(RelevantCondition::default())
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut kept = RelevantCondition::default();
                while let Some(condition) = seq.next_element::<WireCondition<'de>>()? {
                    if condition.kind == NETWORK_UNAVAILABLE {
                        let (status, reason) = (condition.status.into_owned(), condition.reason.into_owned());
                        kept.0 = Some(NetworkCondition { status, reason });
                    }
                }
                Ok(kept)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The condition that keeps pods off a Node: the scheduler's taint `node.kubernetes.io/network-unavailable` follows it.
pub(super) const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

#[derive(Deserialize)]
struct WireAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Default)]
struct RelevantAnnotations(BTreeMap<String, String>, bool);

impl<'de> Deserialize<'de> for RelevantAnnotations {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = RelevantAnnotations;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("annotations")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(RelevantAnnotations::default())
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut kept = RelevantAnnotations::default();
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    kept.1 |= name.starts_with(INIT_MARK);
                    if annotation::is_relevant(&name) || name.starts_with(INIT_MARK) {
                        kept.0.insert(name.into_owned(), map.next_value()?);
                    } else {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    }
                }
                Ok(kept)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The API server marks the end of a streaming list with this annotation on a bookmark, and the watcher looks for it.
const INIT_MARK: &str = "k8s.io/initial-events-end";

impl From<Wire> for SlimNode {
    fn from(wire: Wire) -> Self {
        let (annotations, mark) = match wire.metadata.annotations {
            RelevantAnnotations(mark, true) => (BTreeMap::new(), Some(mark)),
            RelevantAnnotations(annotations, false) => (annotations, None),
        };
        let addresses = |kind: &str| {
            let of_kind = wire.status.addresses.iter().filter(|a| a.kind == kind);
            of_kind.map(|a| a.address.clone()).collect()
        };
        let pod_cidrs = match wire.spec.pod_cidrs {
            cidrs if cidrs.is_empty() => wire.spec.pod_cidr.filter(|c| !c.is_empty()).into_iter().collect(),
            cidrs => cidrs,
        };
        Self {
            network: wire.status.conditions.0,
            record: NodeRecord {
                created: wire.metadata.creation_timestamp.map_or(i64::MAX, |t| t.0.as_second()),
                internal_ips: addresses("InternalIP"),
                external_ips: addresses("ExternalIP"),
                annotations,
                pod_cidrs,
            },
            metadata: ObjectMeta {
                name: wire.metadata.name,
                uid: wire.metadata.uid,
                resource_version: wire.metadata.resource_version,
                annotations: mark,
                ..ObjectMeta::default()
            },
        }
    }
}

impl Resource for SlimNode {
    type DynamicType = ();
    type Scope = <Node as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        Node::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Node::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Node::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Node::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_read_is_kept() {
        let node: SlimNode = serde_json::from_str(
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"w","uid":"u","resourceVersion":"7",
              "creationTimestamp":"2026-01-02T03:04:05Z","labels":{"a":"b"},
              "annotations":{"wg-overlay.io/public-key":"k","wireguard-ip":"1","other":"x"}},
              "spec":{"podCIDR":"10.0.1.0/24","podCIDRs":["10.0.1.0/24"]},
              "status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"},{"type":"Hostname","address":"w"}],
              "conditions":[{"type":"Ready","status":"True","message":"m"},
              {"type":"NetworkUnavailable","status":"False","reason":"\u0057gOverlayIsUp","message":"m"}]}}"#,
        )
        .unwrap();
        assert_eq!(node.record.annotations.len(), 2);
        assert_eq!(node.record.internal_ips, ["192.0.2.1"]);
        assert_eq!(node.record.pod_cidrs, ["10.0.1.0/24"]);
        assert_eq!(node.record.created, 1_767_323_045);
        let network = NetworkCondition { status: "False".into(), reason: "WgOverlayIsUp".into() };
        assert_eq!(node.network, Some(network));
        assert_eq!(node.meta().resource_version.as_deref(), Some("7"));
    }

    #[test]
    fn a_node_that_says_nothing_is_read_too() {
        let text = r#"{"metadata":{"name":"w","annotations":null},"status":{"conditions":null}}"#;
        let node: SlimNode = serde_json::from_str(text).unwrap();
        assert_eq!(node.record, NodeRecord { created: i64::MAX, ..NodeRecord::default() });
        assert_eq!(node.network, None);
    }

    #[test]
    fn the_mark_of_a_streaming_lists_end_reaches_the_watcher() {
        let node: SlimNode = serde_json::from_str(
            r#"{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}"#,
        )
        .unwrap();
        assert!(node.meta().annotations.as_ref().is_some_and(|a| a.contains_key(INIT_MARK)));
    }
}
