//! From text to values: one parser a kind, each error naming the key, what was expected and where it was written.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde_json::Value;
use wg_overlay_host::DeviceMode;
use wg_overlay_mesh::{KeepaliveSetting, MtuSetting};

use super::{Config, KEYS, Raw};

/// Reads a YAML file into values by key; what is wrong goes into `errors`.
pub(super) fn yaml(text: &str, file: &Path, errors: &mut Vec<String>) -> BTreeMap<&'static str, Raw> {
    let mut values = BTreeMap::new();
    match serde_saphyr::from_str::<Value>(text) {
        Ok(Value::Object(map)) => {
            for (name, value) in map {
                match value {
                    Value::Object(inner) => {
                        for (leaf, value) in inner {
                            insert(&format!("{name}.{leaf}"), value, file, &mut values, errors);
                        }
                    }
                    value => insert(&name, value, file, &mut values, errors),
                }
            }
        }
        Ok(Value::Null) => {}
        Ok(_) => errors.push(format!("{}: expected a mapping of keys to values", file.display())),
        Err(error) => errors.push(format!("{}: {error}", file.display())),
    }
    values
}

fn insert(
    name: &str,
    value: Value,
    file: &Path,
    values: &mut BTreeMap<&'static str, Raw>,
    errors: &mut Vec<String>,
) {
    let origin = file.display().to_string();
    let Some(key) = KEYS.iter().find(|k| k.name == name) else {
        let known: Vec<_> = KEYS.iter().map(|k| k.name).collect();
        let name: String = name.chars().take(60).collect();
        errors.push(format!("{origin}: unknown key {name}; the keys are {}", known.join(", ")));
        return;
    };
    match scalar(&value) {
        Some(text) => {
            values.insert(key.name, Raw { text, origin });
        }
        None if value.is_null() => {}
        None => errors.push(format!("{origin}: {name}: expected a value or a list of values")),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(items) => {
            let items: Option<Vec<_>> =
                items.iter().map(|i| if i.is_array() { None } else { scalar(i) }).collect();
            items.map(|i| i.join(","))
        }
        _ => None,
    }
}

/// Parses every value, defaults included; `None` where one is unusable.
pub(super) fn config(values: &BTreeMap<&'static str, Raw>, errors: &mut Vec<String>) -> Option<Config> {
    let mut p = Parser { values, errors };
    let node_name = p.get("nodeName", "the name of this node's Node", |t| {
        (!t.is_empty() && t.len() <= 253).then(|| t.to_owned())
    });
    let cidrs = "networks such as 10.244.0.0/16, separated by commas";
    let duration = "a duration such as 60s, 5m or 1h, at least 1s";
    let mtu = "auto, or bytes from 576 to 65535";
    let keepalive = "auto, or seconds from 0 to 65535";
    let pod_cidrs = p.get("podCIDRs", cidrs, networks);
    let device = p.get("device", "auto, kernel or userspace", |t| match t {
        "auto" => Some(DeviceMode::Auto),
        "kernel" => Some(DeviceMode::Kernel),
        "userspace" => Some(DeviceMode::UserSpace),
        _ => None,
    });
    let device_socket = p.get("deviceSocket", "an absolute path, or empty", optional_path);
    let overlay_cidrs = p.get("overlayCIDRs", cidrs, networks);
    let listen_port = p.get("listenPort", "a port from 1 to 65535", |t| t.parse().ok().filter(|n| *n != 0));
    let mtu = p.get("mtu", mtu, |t| match t {
        "auto" => Some(MtuSetting::Auto),
        _ => t.parse().ok().filter(|n| (576..=65535).contains(n)).map(MtuSetting::Fixed),
    });
    let keepalive = p.get("persistentKeepalive", keepalive, |t| match t {
        "auto" => Some(KeepaliveSetting::Auto),
        _ => t.parse().ok().map(KeepaliveSetting::Fixed),
    });
    let masquerade = p.get("masquerade", "true or false", |t| t.parse().ok());
    let non_masquerade = p.get("nonMasqueradeCIDRs", cidrs, networks);
    let fail_closed = p.get("failClosed", "true or false", |t| t.parse().ok());
    let folder = "an absolute path";
    let cni_bin_dir = p.get("cni.binDir", folder, path);
    let cni_conf_dir = p.get("cni.confDir", folder, path);
    let cni_chain = p.get("cni.chain", "auto, or names of plugins separated by commas", |t| match t {
        "auto" => Some(None),
        _ => Some(Some(t.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect())),
    });
    let state_dir = p.get("stateDir", folder, path);
    let key_file = p.get("keyFile", "an absolute path, or empty", optional_path);
    let api_server = p.get("apiServer", "a URL such as https://192.0.2.1:6443", |t| match t {
        "" => Some(None),
        _ => (t.starts_with("https://") || t.starts_with("http://")).then(|| Some(t.to_owned())),
    });
    let metrics_address = p.get("metricsAddress", "ADDRESS:PORT or :PORT", address);
    let health_address = p.get("healthAddress", "ADDRESS:PORT or :PORT", address);
    let peer_metrics = p.get("peerMetrics", "auto, true or false", |t| match t {
        "auto" => Some(None),
        _ => t.parse().ok().map(Some),
    });
    let resync_interval = p.get("resyncInterval", duration, seconds);
    let key_rotation_interval =
        p.get("keyRotationInterval", "a number of minutes or hours, as 720h, or empty", |t| {
            if t.is_empty() { Some(None) } else { time(t).filter(|t| *t >= SHORTEST_KEY).map(Some) }
        });
    let legacy_annotations = p.get("legacyAnnotations", "true or false", |t| t.parse().ok());
    Some(Config {
        node_name: node_name?,
        pod_cidrs: pod_cidrs?,
        device: device?,
        device_socket: device_socket?,
        overlay_cidrs: overlay_cidrs?,
        listen_port: listen_port?,
        mtu: mtu?,
        keepalive: keepalive?,
        masquerade: masquerade?,
        non_masquerade: non_masquerade?,
        fail_closed: fail_closed?,
        cni_bin_dir: cni_bin_dir?,
        cni_conf_dir: cni_conf_dir?,
        cni_chain: cni_chain?,
        state_dir: state_dir?,
        key_file: key_file?,
        api_server: api_server?,
        metrics_address: metrics_address?,
        health_address: health_address?,
        peer_metrics: peer_metrics?,
        resync_interval: resync_interval?,
        key_rotation_interval: key_rotation_interval?,
        legacy_annotations: legacy_annotations?,
    })
}

struct Parser<'a> {
    values: &'a BTreeMap<&'static str, Raw>,
    errors: &'a mut Vec<String>,
}

impl Parser<'_> {
    fn get<T>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        match self.values.get(name) {
            Some(raw) => {
                let parsed = parse(raw.text.trim());
                if parsed.is_none() {
                    let text: String = raw.text.chars().take(60).collect();
                    self.errors.push(format!("{name}: expected {expected}, got {text:?} ({})", raw.origin));
                }
                parsed
            }
            None => {
                let default = KEYS.iter().find(|k| k.name == name).map(|k| k.default).unwrap_or_default();
                let parsed = parse(default);
                if parsed.is_none() {
                    self.errors.push(format!("{name}: missing, expected {expected}"));
                }
                parsed
            }
        }
    }
}

fn networks(text: &str) -> Option<BTreeSet<IpNet>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.parse::<IpNet>().ok().map(|net| net.trunc())).collect()
}

fn path(text: &str) -> Option<PathBuf> {
    text.starts_with('/').then(|| PathBuf::from(text))
}

fn optional_path(text: &str) -> Option<Option<PathBuf>> {
    if text.is_empty() { Some(None) } else { path(text).map(Some) }
}

fn address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix(':') {
        Some(port) => format!("[::]:{port}").parse().ok(),
        None => text.parse().ok(),
    }
}

/// Up to a day.
fn seconds(text: &str) -> Option<Duration> {
    time(text).filter(|time| (1..=86_400).contains(&time.as_secs()))
}

fn time(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    Some(Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(factor)?))
}

/// A rotation takes seconds, and minutes where a node is down.
const SHORTEST_KEY: Duration = Duration::from_secs(60);
