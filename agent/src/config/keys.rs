//! The table of keys: help, documentation and parsing all read it.

/// A key of the configuration.
pub struct Key {
    /// Its name in the file; a dot stands for nesting.
    pub name: &'static str,
    /// The default as it would be written; empty where there is none.
    pub default: &'static str,
    /// What it is, in one line.
    pub help: &'static str,
}

impl Key {
    /// The name of the flag, without the dashes: `listenPort` is `listen-port`.
    pub fn flag(&self) -> String {
        words(self.name).join("-")
    }

    /// The name of the variable: `listenPort` is `WG_OVERLAY_LISTEN_PORT`.
    pub fn variable(&self) -> String {
        format!("WG_OVERLAY_{}", words(self.name).join("_").to_ascii_uppercase())
    }
}

/// Splits `podCIDRs` into pod, cidrs and `cni.binDir` into cni, bin, dir.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut previous_lower = false;
    for c in name.chars() {
        if c == '.' || (c.is_ascii_uppercase() && previous_lower) {
            words.push(String::new());
        }
        if c != '.'
            && let Some(word) = words.last_mut()
        {
            word.push(c.to_ascii_lowercase());
        }
        previous_lower = c.is_ascii_lowercase();
    }
    words
}

/// Every key, in the order of docs/configuration.md.
pub const KEYS: &[Key] = &[
    Key {
        name: "nodeName",
        default: "",
        help: "the name of this node's Node object; in a pod: spec.nodeName",
    },
    Key {
        name: "podCIDRs",
        default: "",
        help: "the pod networks of the whole cluster; empty: kubeadm's podSubnet is read. Nothing outside them is believed",
    },
    Key {
        name: "device",
        default: "auto",
        help: "who implements WireGuard: kernel, userspace, or auto: the kernel where it can",
    },
    Key {
        name: "deviceSocket",
        default: "",
        help: "where a sleeping `wg-overlay device --standby` is asked for a user-space device; empty: the agent starts a process",
    },
    Key {
        name: "overlayCIDRs",
        default: "",
        help: "further networks that overlay addresses may come from: the Go wg-overlay's (100.64.0.0/16) in a migration",
    },
    Key { name: "listenPort", default: "51820", help: "the UDP port WireGuard listens on" },
    Key { name: "mtu", default: "auto", help: "the overlay's MTU in bytes; auto: the underlay's less 80" },
    Key {
        name: "persistentKeepalive",
        default: "auto",
        help: "seconds between keepalives to peers, 0 for none; auto: 25 where the endpoint is annotated or external, else 0",
    },
    Key {
        name: "masquerade",
        default: "true",
        help: "whether pod traffic that leaves the pod networks takes the node's address",
    },
    Key {
        name: "nonMasqueradeCIDRs",
        default: "",
        help: "outside networks that see pod addresses and may open connections to pods, unencrypted; not the nodes' own",
    },
    Key {
        name: "failClosed",
        default: "true",
        help: "drop pod packets that would travel outside the tunnel; false only for migrations",
    },
    Key { name: "cni.binDir", default: "/opt/cni/bin", help: "where the CNI plugin is installed" },
    Key { name: "cni.confDir", default: "/etc/cni/net.d", help: "where the CNI configuration is written" },
    Key {
        name: "cni.chain",
        default: "auto",
        help: "plugins chained after ours; auto: portmap and bandwidth where binDir has them",
    },
    Key {
        name: "stateDir",
        default: "/run/wg-overlay",
        help: "the state of this boot: addresses, sockets, the CNI plugin's log",
    },
    Key {
        name: "keyFile",
        default: "/var/lib/wg-overlay/private-key",
        help: "where the private key survives a reboot; empty: it lives in the device only",
    },
    Key {
        name: "apiServer",
        default: "",
        help: "the API server's URL, for nodes where the kubernetes Service can't be reached before this agent runs",
    },
    Key {
        name: "metricsAddress",
        default: ":9820",
        help: "where /metrics is served; without an address: on every one",
    },
    Key { name: "healthAddress", default: "127.0.0.1:9821", help: "where /healthz and /readyz are served" },
    Key {
        name: "peerMetrics",
        default: "auto",
        help: "series for each peer: true, false, or auto: up to 250 peers",
    },
    Key {
        name: "resyncInterval",
        default: "60s",
        help: "how often everything is compared, whatever was reported",
    },
    Key {
        name: "keyRotationInterval",
        default: "",
        help: "how long the WireGuard key is used at most before it changes without loss, as 720h; empty: until `wg-overlay rotate-key`",
    },
    Key {
        name: "legacyAnnotations",
        default: "false",
        help: "also write the Go wg-overlay's annotations, so that its nodes see this one",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_flags_and_variables() {
        let key = |name| KEYS.iter().find(|k| k.name == name).unwrap();
        assert_eq!(key("podCIDRs").flag(), "pod-cidrs");
        assert_eq!(key("cni.binDir").flag(), "cni-bin-dir");
        assert_eq!(key("nonMasqueradeCIDRs").variable(), "WG_OVERLAY_NON_MASQUERADE_CIDRS");
    }

    #[test]
    fn each_key_is_documented_with_its_default() {
        let doc = include_str!("../../../docs/configuration.md");
        for key in KEYS {
            let default = if key.default.is_empty() { "" } else { key.default };
            let row = format!(
                "| `{}` | {} |",
                key.name,
                if default.is_empty() { String::new() } else { format!("`{default}`") }
            );
            assert!(doc.contains(&row), "docs/configuration.md lacks: {row}");
        }
    }
}
