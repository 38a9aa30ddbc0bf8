//! What ADD answers, in the shape of the version that was asked.

use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Map, Value};
use wg_overlay_ipam::Range;

use super::{
    conf::{NetConf, PrevResult},
    link::unspecified,
};

/// One interface of the result; without a sandbox it is the host's.
pub(crate) struct Interface<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: &'a [u8],
    pub(crate) mtu: u32,
    pub(crate) sandbox: Option<String>,
}

/// The specification's "Success" (section 5).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AddResult<'a> {
    cni_version: &'a str,
    interfaces: Vec<Entry<'a>>,
    ips: Vec<Entry<'a>>,
    routes: Vec<Entry<'a>>,
    dns: Map<String, Value>,
}

/// One of a list: as a plugin before this one had it, or this one's.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Previous(Map<String, Value>),
    Interface {
        name: &'a str,
        mac: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        mtu: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        sandbox: Option<&'a str>,
    },
    Ip {
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<&'a str>,
        address: String,
        gateway: IpAddr,
        interface: usize,
    },
    Route {
        dst: String,
        gw: IpAddr,
    },
}

/// The result for this attachment, added to what plugins before this one had. The pod's interface is the last one.
pub(crate) fn result<'a>(
    conf: &'a NetConf,
    previous: PrevResult,
    interfaces: &'a [Interface],
    networks: &[(Range, IpAddr)],
) -> AddResult<'a> {
    let version = conf.cni_version.as_str();
    let pod_index = previous.interfaces.len() + interfaces.len() - 1;
    let own_interfaces = interfaces.iter().map(|interface| Entry::Interface {
        name: interface.name,
        mac: mac_text(interface.mac),
        mtu: (version == "1.1.0").then_some(interface.mtu),
        sandbox: interface.sandbox.as_deref(),
    });
    let own_ips = networks.iter().map(|(range, address)| Entry::Ip {
        version: version.starts_with("0.").then_some(if address.is_ipv4() { "4" } else { "6" }),
        address: format!("{address}/{}", range.prefix().prefix_len()),
        gateway: range.gateway(),
        interface: pod_index,
    });
    let own_routes = networks.iter().map(|(range, _)| Entry::Route {
        dst: format!("{}/0", unspecified(range.gateway())),
        gw: range.gateway(),
    });
    AddResult {
        cni_version: version,
        interfaces: after(previous.interfaces, own_interfaces),
        ips: after(previous.ips, own_ips),
        routes: after(previous.routes, own_routes),
        dns: conf.dns.clone().unwrap_or(previous.dns),
    }
}

fn after<'a>(previous: Vec<Map<String, Value>>, own: impl Iterator<Item = Entry<'a>>) -> Vec<Entry<'a>> {
    previous.into_iter().map(Entry::Previous).chain(own).collect()
}

pub(crate) fn mac_text(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}
