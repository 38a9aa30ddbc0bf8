//! What ADD answers, in the shape of the version that was asked.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
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

/// The result for this attachment, added to what plugins before this one had. The pod's interface is the last one.
pub(crate) fn result(
    conf: &NetConf,
    previous: PrevResult,
    interfaces: &[Interface],
    networks: &[(Range, IpAddr)],
) -> Value {
    let version = conf.cni_version.as_str();
    let pod_index = previous.interfaces.len() + interfaces.len() - 1;

    let mut all_interfaces = previous.interfaces;
    all_interfaces.extend(interfaces.iter().map(|interface| {
        let mut object = Map::new();
        object.insert("name".to_owned(), interface.name.into());
        object.insert("mac".to_owned(), mac_text(interface.mac).into());
        if version == "1.1.0" {
            object.insert("mtu".to_owned(), interface.mtu.into());
        }
        if let Some(sandbox) = &interface.sandbox {
            object.insert("sandbox".to_owned(), sandbox.as_str().into());
        }
        object
    }));

    let mut ips = previous.ips;
    ips.extend(networks.iter().map(|(range, address)| {
        let mut object = Map::new();
        if version.starts_with("0.") {
            object.insert("version".to_owned(), if address.is_ipv4() { "4" } else { "6" }.into());
        }
        object.insert("address".to_owned(), cidr(*range, *address).into());
        object.insert("gateway".to_owned(), range.gateway().to_string().into());
        object.insert("interface".to_owned(), pod_index.into());
        object
    }));

    let mut routes = previous.routes;
    routes.extend(networks.iter().map(|(range, _)| {
        let gateway = range.gateway();
        let mut object = Map::new();
        object.insert("dst".to_owned(), format!("{}/0", unspecified(gateway)).into());
        object.insert("gw".to_owned(), gateway.to_string().into());
        object
    }));

    let dns = conf.dns.clone().unwrap_or(previous.dns);
    json!({ "cniVersion": version, "interfaces": all_interfaces, "ips": ips, "routes": routes, "dns": dns })
}

pub(crate) fn cidr(range: Range, address: IpAddr) -> String {
    format!("{address}/{}", range.prefix().prefix_len())
}

pub(crate) fn mac_text(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}
