//! A call of the plugin up to where it touches the node, and the answer that it would give.

#![allow(clippy::indexing_slicing, reason = "JSON's index gives null for what is missing")]

use std::{ffi::OsString, net::IpAddr};

use wg_overlay_ipam::{Holder, Range};

use super::{
    call::Call,
    conf::{LATEST_VERSION, NetConf},
    error::CniError,
    result::{Interface, result},
};

/// Reads the environment and stdin, and makes ADD's result or the error's object of them. `ranges` are the node's.
pub fn call(variable: impl Fn(&'static str) -> Option<OsString>, stdin: &[u8], ranges: &[Range]) {
    let mut version = LATEST_VERSION.to_owned();
    if let Err(error) = read(variable, stdin, ranges, &mut version) {
        let object = error.to_json(&version);
        assert!(
            object["code"].as_u64().is_some_and(|code| code > 0) && object["msg"].is_string(),
            "{object}"
        );
    }
}

fn read(
    variable: impl Fn(&'static str) -> Option<OsString>,
    stdin: &[u8],
    ranges: &[Range],
    version: &mut String,
) -> Result<(), CniError> {
    let call = Call::read(variable)?;
    let conf = NetConf::parse(stdin)?;
    version.clone_from(&conf.cni_version);
    let previous = conf.prev_result()?.unwrap_or_default();
    for attachment in conf.valid_attachments.iter().flatten() {
        drop(Holder::new(&attachment.container_id, &attachment.ifname));
    }
    match call {
        Call::Gc | Call::Status => conf.at_least("1.1.0", "GC")?,
        Call::Check { .. } => conf.at_least("0.4.0", "CHECK")?,
        Call::Add { .. } => {
            let before = previous.ips.len();
            let networks: Vec<(Range, IpAddr)> =
                ranges.iter().map(|range| (*range, range.gateway())).collect();
            let pod = Interface { name: "eth0", mac: &[2, 0, 0, 0, 0, 1], mtu: 1420, sandbox: None };
            let interfaces = [pod];
            let answer = serde_json::to_value(result(&conf, previous, &interfaces, &networks));
            let answer = answer.map_err(CniError::Decode)?;
            assert_eq!(answer["ips"].as_array().map(Vec::len), Some(before + networks.len()));
        }
        _ => {}
    }
    Ok(())
}
