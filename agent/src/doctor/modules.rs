//! What the kernel has: WireGuard, TUN, br_netfilter.

use wg_overlay_host::DeviceMode;
use wg_overlay_mesh::{BRIDGE, Implementation};

use super::{Facts, Found, fail, ok, skipped, warn};

fn runs_in(facts: &Facts) -> Option<Implementation> {
    Some(facts.kernel.as_ref().ok()?.device.as_ref()?.implementation)
}

pub(super) fn wireguard(facts: &Facts) -> Found {
    let cure =
        "modprobe wireguard, or a kernel from 5.6; then delete wgo0, and the agent makes it in the kernel";
    let has = facts.own.exists("/sys/module/wireguard");
    Ok(match runs_in(facts) {
        Some(Implementation::Kernel) => ok("the tunnel runs in the kernel"),
        Some(Implementation::UserSpace) if has && facts.config.device != DeviceMode::UserSpace => warn(
            "the tunnel runs in user space, though the kernel has WireGuard",
            "delete wgo0: ip link delete wgo0",
        ),
        Some(Implementation::UserSpace) if facts.config.device == DeviceMode::UserSpace => {
            ok("the tunnel runs in user space, as configured")
        }
        Some(Implementation::UserSpace) => warn("the tunnel runs in user space", cure),
        None if has => ok("the kernel has WireGuard"),
        None => match facts.config.device {
            DeviceMode::Kernel => fail("the module wireguard is not loaded, and device is kernel", cure),
            DeviceMode::UserSpace => ok("not needed: device is userspace"),
            DeviceMode::Auto => {
                warn("the module wireguard is not loaded; without it the tunnel runs in user space", cure)
            }
        },
    })
}

pub(super) fn tun(facts: &Facts) -> Found {
    if facts.config.device == DeviceMode::Kernel || runs_in(facts) == Some(Implementation::Kernel) {
        return Ok(ok("not needed"));
    }
    if runs_in(facts) == Some(Implementation::UserSpace) {
        return Ok(ok("a device runs"));
    }
    let path = facts.own.path("/dev/net/tun");
    Ok(match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => ok("/dev/net/tun opens"),
        Err(_) if facts.host_files.is_none() => skipped(
            "not visible from the agent's pod: only the pod of wg-overlay-device has /dev/net/tun. runc 1.2.0 to 1.2.3 denies it there; run on the host: runc --version",
        ),
        Err(error) => fail(
            format!("/dev/net/tun: {error}; a user-space device needs it"),
            "modprobe tun; where a container runtime denies it (runc 1.2.0 to 1.2.3), update runc",
        ),
    })
}

pub(super) fn br_netfilter(facts: &Facts) -> Found {
    let values = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"]
        .map(|path| facts.own.sysctl(path));
    Ok(match values {
        [None, _] => fail(
            "no br_netfilter: a ClusterIP between two pods of one node fails",
            "modprobe br_netfilter, and a line in /etc/modules-load.d",
        ),
        // our bridge has a switch of its own
        _ => match facts.kernel.as_ref().ok().and_then(|k| k.bridge.as_ref()) {
            Some(bridge) if bridge.netfilter == Some(false) => {
                warn(format!("{BRIDGE} does not pass netfilter"), "the agent switches it on, if it runs")
            }
            _ => ok("loaded"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        Outcome,
        facts::tests::{facts, put},
    };

    #[test]
    fn bridge_netfilter_is_known_by_its_settings() {
        let (facts, _folder) = facts();
        assert!(matches!(br_netfilter(&facts), Ok(Outcome::Fail { .. })));
        put(&facts, "/proc/sys/net/bridge/bridge-nf-call-iptables", "1\n");
        assert!(matches!(br_netfilter(&facts), Ok(Outcome::Ok { .. })));
    }
}
