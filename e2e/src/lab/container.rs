//! The product's program in a container of a node, with no more than its pod has: CAP_NET_ADMIN alone, a read-only root,
//! a read-only /proc/sys, the node's network, and the node's folders as volumes. No runtime and no seccomp.

use std::process::Command;

use anyhow::Result;

use super::node::Node;
use super::product;

/// Makes the root and runs the program there; the process id stays.
const CONTAINER: &str = r#"
root=/run/.container-$$
mkdir $root
mount -t tmpfs tmpfs $root
mkdir -p $root/host/proc/sys/net
for entry in /*; do
    if [ -L $entry ]; then cp -a $entry $root; continue; fi
    [ -d $entry ] && [ $entry != /host ] || continue
    mkdir $root$entry
    if [ $entry = /run ]; then mount --bind /run $root/run; else mount --rbind $entry $root$entry; fi
    case $entry in /proc | /sys | /dev) ;; *) mount -o remount,bind,ro $root$entry ;; esac
done
mount -o remount,bind,ro $root/var/lib
for volume in /run/wg-overlay /run/wireguard /var/lib/wg-overlay /opt/cni/bin /etc/cni/net.d; do
    mkdir -p $volume
    mount --bind $volume $root$volume
done
mount --bind /proc/sys $root/proc/sys
mount -o remount,bind,ro $root/proc/sys
mount --bind /proc/sys/net $root/host/proc/sys/net
mount -o remount,bind,ro $root
exec chroot $root setpriv --no-new-privs --bounding-set=-all,+net_admin --inh-caps=-all,+net_admin "$@"
"#;

impl Node {
    /// `wg-overlay` in a container; arguments are to follow.
    ///
    /// # Errors
    /// There is no program.
    pub fn contained(&self) -> Result<Command> {
        let mut command = self.namespace().command("unshare");
        command.args(["--mount", "--", "sh", "-euc", CONTAINER, "container"]).arg(product("wg-overlay")?);
        command.env("KUBECONFIG", "/etc/wg-overlay/kubeconfig");
        Ok(command)
    }
}
