//! Forwarding, and what IPv6 forwarding would take from a node.

use nix::mount::{MsFlags, mount};
use wg_overlay_host::Scope;

use crate::{
    Test,
    lab::{Node, run, sh},
};

pub const TESTS: &[Test] = &[
    ("forwarding_is_switched_on_where_it_is_off", on),
    ("a_link_with_an_advertised_route_goes_on_hearing_its_router", advertised),
    ("where_proc_is_read_only_netlink_sets_our_links_and_the_rest_is_reported", read_only),
    ("where_proc_is_read_only_the_hosts_own_is_written", pod),
];

fn forwarding(what: &str) -> String {
    sh(&format!("cat /proc/sys/net/{what}/forwarding")).trim().to_owned()
}

fn rp_filter() -> String {
    sh("cat /proc/sys/net/ipv4/conf/wgo0/rp_filter").trim().to_owned()
}

fn on() {
    run(async {
        let mut node = Node::new();
        sh(
            "echo 0 > /proc/sys/net/ipv4/conf/all/forwarding; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
        );
        node.converge(Scope::ALL).await;
        assert_eq!(node.host.ensure_forwarding(true, true).await.unwrap(), []);
        for what in ["ipv4/conf/all", "ipv4/conf/wgo0", "ipv4/conf/wgobr0", "ipv6/conf/all"] {
            assert_eq!(forwarding(what), "1", "{what}");
        }
        sh(
            "echo 0 > /proc/sys/net/ipv4/conf/wgobr0/forwarding; echo 1 > /proc/sys/net/ipv4/conf/wgo0/rp_filter",
        );
        assert_eq!(node.host.ensure_forwarding(true, true).await.unwrap(), []);
        assert_eq!(forwarding("ipv4/conf/wgobr0"), "1");
        assert_eq!(rp_filter(), "2", "loose, for what comes by the other device while a key rotates");
    });
}

fn advertised() {
    run(async {
        let mut node = Node::new();
        sh("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding; echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra;
            echo 1 > /proc/sys/net/ipv6/conf/eth1/accept_ra; ip -6 route add default via fe80::1 dev eth0 proto ra");
        node.converge(Scope::ALL).await;
        assert_eq!(node.host.ensure_forwarding(false, true).await.unwrap(), []);
        assert_eq!(sh("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "2");
        assert_eq!(
            sh("cat /proc/sys/net/ipv6/conf/eth1/accept_ra").trim(),
            "1",
            "it has no advertised route"
        );
        assert_eq!(forwarding("ipv6/conf/all"), "1");
    });
}

fn read_only() {
    run(async {
        let mut node = Node::new();
        sh("echo 0 > /proc/sys/net/ipv4/conf/all/forwarding; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding;
            echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra; ip -6 route add default via fe80::1 dev eth0 proto ra");
        node.converge(Scope::ALL).await;
        sh(
            "echo 0 > /proc/sys/net/ipv4/conf/wgo0/forwarding; echo 0 > /proc/sys/net/ipv4/conf/wgobr0/forwarding
            echo 1 > /proc/sys/net/ipv4/conf/wgo0/rp_filter",
        );
        protect_proc_sys();
        let wrong = node.host.ensure_forwarding(true, true).await.unwrap();
        let sysctls: Vec<&str> = wrong.iter().map(|wrong| wrong.sysctl.as_str()).collect();
        assert_eq!(sysctls, ["net.ipv4.conf.all.forwarding", "net.ipv6.conf.eth0.accept_ra"]);
        assert!(wrong[0].to_string().contains("sysctl -w net.ipv4.conf.all.forwarding=1"), "{}", wrong[0]);
        assert_eq!(forwarding("ipv4/conf/wgo0"), "1");
        assert_eq!(forwarding("ipv4/conf/wgobr0"), "1");
        assert_eq!(rp_filter(), "2");
        assert_eq!(forwarding("ipv6/conf/all"), "0", "a node keeps its default route");
    });
}

fn protect_proc_sys() {
    let none: Option<&str> = None;
    mount(Some("/proc/sys"), "/proc/sys", none, MsFlags::MS_BIND, none).unwrap();
    mount(none, "/proc/sys", none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none)
        .unwrap();
}

/// As in a pod: /proc/sys is read-only, and /host/proc/sys/net is the host's.
fn pod() {
    // A root with a /host: this machine's own may have none.
    sh("mkdir /run/root; mount -t tmpfs tmpfs /run/root; mkdir -p /run/root/host/proc/sys/net
        for entry in /*; do
            if [ -L $entry ]; then cp -a $entry /run/root; continue; fi
            [ -d $entry ] && [ $entry != /host ] || continue
            mkdir /run/root$entry
            if [ $entry = /run ]; then mount --bind /run /run/root/run; else mount --rbind $entry /run/root$entry; fi
        done
        mount --bind /proc/sys/net /run/root/host/proc/sys/net");
    rustix::process::chroot("/run/root").unwrap();
    run(async {
        let mut node = Node::new();
        sh("echo 0 > /proc/sys/net/ipv4/conf/all/forwarding; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding;
            echo 1 > /proc/sys/net/ipv6/conf/eth0/accept_ra; ip -6 route add default via fe80::1 dev eth0 proto ra");
        node.converge(Scope::ALL).await;
        protect_proc_sys();
        assert_eq!(node.host.ensure_forwarding(true, true).await.unwrap(), []);
        for what in ["ipv4/conf/all", "ipv4/conf/wgo0", "ipv6/conf/all"] {
            assert_eq!(forwarding(what), "1", "{what}");
        }
        assert_eq!(sh("cat /proc/sys/net/ipv6/conf/eth0/accept_ra").trim(), "2");
    });
}
