//! The configuration: one YAML file, then `WG_OVERLAY_*` variables, then flags, each over the one before.
//!
//! Every value becomes text first and is parsed once, so that file, variable and flag mean the same and err alike.
//! All errors are reported at once.

mod keys;
mod parse;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use wg_overlay_host::DeviceMode;
use wg_overlay_mesh::{KeepaliveSetting, MtuSetting};

pub use keys::{KEYS, Key};

/// Where the configuration file is looked for when no flag says otherwise; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/wg-overlay/config.yaml";

/// The configuration of an agent; docs/configuration.md says what each key means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `nodeName`.
    pub node_name: String,
    /// `podCIDRs`; empty: kubeadm's are read.
    pub pod_cidrs: BTreeSet<IpNet>,
    /// `device`.
    pub device: DeviceMode,
    /// `deviceSocket`; `None` starts a process.
    pub device_socket: Option<PathBuf>,
    /// `overlayCIDRs`.
    pub overlay_cidrs: BTreeSet<IpNet>,
    /// `listenPort`.
    pub listen_port: u16,
    /// `mtu`.
    pub mtu: MtuSetting,
    /// `persistentKeepalive`.
    pub keepalive: KeepaliveSetting,
    /// `masquerade`.
    pub masquerade: bool,
    /// `nonMasqueradeCIDRs`.
    pub non_masquerade: BTreeSet<IpNet>,
    /// `failClosed`.
    pub fail_closed: bool,
    /// `cni.binDir`.
    pub cni_bin_dir: PathBuf,
    /// `cni.confDir`.
    pub cni_conf_dir: PathBuf,
    /// `cni.chain`; `None` is auto.
    pub cni_chain: Option<Vec<String>>,
    /// `stateDir`.
    pub state_dir: PathBuf,
    /// `keyFile`; `None` keeps the key in the device only.
    pub key_file: Option<PathBuf>,
    /// `apiServer`.
    pub api_server: Option<String>,
    /// `metricsAddress`.
    pub metrics_address: SocketAddr,
    /// `healthAddress`.
    pub health_address: SocketAddr,
    /// `peerMetrics`; `None` is auto.
    pub peer_metrics: Option<bool>,
    /// `resyncInterval`.
    pub resync_interval: Duration,
    /// `keyRotationInterval`; `None` is never.
    pub key_rotation_interval: Option<Duration>,
    /// `legacyAnnotations`.
    pub legacy_annotations: bool,
}

/// A value as text, and where it was written.
#[derive(Debug, Clone)]
pub struct Raw {
    /// The value's text; lists are joined by commas.
    pub text: String,
    /// The file, variable or flag.
    pub origin: String,
}

/// Every error of a configuration, one a line.
#[derive(Debug, thiserror::Error)]
#[error("the configuration is not usable:\n  {}", .0.join("\n  "))]
pub struct ConfigErrors(pub Vec<String>);

/// Reads the file, the variables and the flags into one configuration.
///
/// # Errors
/// [`ConfigErrors`] with every unknown key and every value that is out of its range.
pub fn load(
    file: &Path,
    file_required: bool,
    variables: impl Fn(&str) -> Option<String>,
    flags: BTreeMap<&'static str, String>,
) -> Result<Config, ConfigErrors> {
    let mut errors = Vec::new();
    let mut values = match std::fs::read_to_string(file) {
        Ok(text) => parse::yaml(&text, file, &mut errors),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !file_required => BTreeMap::new(),
        Err(e) => return Err(ConfigErrors(vec![format!("{}: {e}", file.display())])),
    };
    for key in KEYS {
        let variable = key.variable();
        if let Some(text) = variables(&variable) {
            values.insert(key.name, Raw { text, origin: variable });
        }
    }
    for (name, text) in flags {
        let origin =
            KEYS.iter().find(|k| k.name == name).map(|k| format!("--{}", k.flag())).unwrap_or_default();
        values.insert(name, Raw { text, origin });
    }
    let config = parse::config(&values, &mut errors);
    match config {
        Some(config) if errors.is_empty() => Ok(config),
        _ => Err(ConfigErrors(errors)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Config, ConfigErrors> {
        let file =
            std::env::temp_dir().join(format!("wg-overlay-config-{:?}.yaml", std::thread::current().id()));
        std::fs::write(&file, text).unwrap();
        load(&file, true, |_| None, BTreeMap::new())
    }

    #[test]
    fn a_name_is_enough_and_the_documented_defaults_hold() {
        let config = load_text("nodeName: worker-1\n").unwrap();
        assert_eq!(config.listen_port, 51820);
        assert_eq!(config.mtu, MtuSetting::Auto);
        assert_eq!(config.key_file.as_deref(), Some(Path::new("/var/lib/wg-overlay/private-key")));
        assert_eq!(config.metrics_address.to_string(), "[::]:9820");
        assert!(config.fail_closed && config.masquerade && !config.legacy_annotations);
    }

    #[test]
    fn nested_keys_lists_and_empty_values_are_read() {
        let config = load_text(
            "nodeName: w\npodCIDRs: [10.244.0.0/16, 'fd00:244::/56']\ncni:\n  binDir: /x\n  chain: [portmap]\nkeyFile: ''\nmtu: 1400\n",
        )
        .unwrap();
        assert_eq!(config.pod_cidrs.len(), 2);
        assert_eq!(config.cni_bin_dir, Path::new("/x"));
        assert_eq!(config.cni_chain, Some(vec!["portmap".to_owned()]));
        assert_eq!((config.key_file, config.mtu), (None, MtuSetting::Fixed(1400)));
    }

    #[test]
    fn an_unknown_key_lists_the_known_ones_and_all_errors_come_at_once() {
        let text = load_text(
            "listenport: 1\nlistenPort: 70000\nmtu: tiny\npodCIDRs: [10.0.0.0/33]\nfailClosed: perhaps\n",
        )
        .unwrap_err()
        .to_string();
        for part in
            ["listenport", "listenPort", "mtu", "podCIDRs", "failClosed", "nodeName", "resyncInterval"]
        {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }

    #[test]
    fn a_variable_wins_over_the_file_and_a_flag_over_both() {
        let file = std::env::temp_dir().join("wg-overlay-config-layers.yaml");
        std::fs::write(&file, "nodeName: file\nlistenPort: 1000\nmtu: 1400\n").unwrap();
        let variables = |name: &str| match name {
            "WG_OVERLAY_NODE_NAME" => Some("variable".to_owned()),
            "WG_OVERLAY_LISTEN_PORT" => Some("2000".to_owned()),
            _ => None,
        };
        let config = load(&file, true, variables, BTreeMap::from([("nodeName", "flag".to_owned())])).unwrap();
        assert_eq!((config.node_name.as_str(), config.listen_port), ("flag", 2000));
        assert_eq!(config.mtu, MtuSetting::Fixed(1400));
    }

    #[test]
    fn what_is_no_mapping_is_an_error_and_no_panic() {
        for text in
            ["- a\n", "nodeName: [", "\u{0}", "nodeName: {a: b}\n", "cni: 5\nnodeName: w\n", "cni: {dir: 5}"]
        {
            assert!(load_text(text).is_err(), "{text:?}");
        }
    }
}
