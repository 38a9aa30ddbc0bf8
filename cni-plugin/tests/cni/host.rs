//! What the plugin needs of the host, and what it sets there.

use std::{net::SocketAddrV6, os::fd::AsRawFd, path::Path};

use libtest_mimic::Failed;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sockopt,
};
use serde_json::json;

use crate::Test;
use crate::lab::{Lab, NETWORK, conf, with};

pub const TESTS: &[Test] = &[
    ("before_the_boot_mark_add_and_status_wait_and_del_does_not", mark),
    ("a_boot_mark_that_no_agent_wrote_is_an_error", malformed_mark),
    ("a_missing_bridge_is_code_11_and_status_50", bridge),
    ("another_state_folder", state_dir),
    ("forwarding_is_turned_on", forwarding),
    ("a_default_route_by_router_advertisement_outlives_forwarding", router_advertisement),
    ("a_read_only_proc_sys_hurts_only_where_something_changes", read_only),
    ("a_full_disk_is_an_error_that_leaves_nothing", full_disk),
    ("a_read_only_disk_keeps_what_is_reserved", read_only_disk),
];

fn mark() -> Result<(), Failed> {
    let lab = Lab::bare();
    lab.add_pod("pod");
    assert_eq!(lab.call("ADD", "pod").code(), 11);
    assert_eq!(lab.call("STATUS", "pod").code(), 50);
    lab.call("DEL", "pod").success();
    lab.call("GC", "pod").success();
    lab.assert_nothing_left();

    lab.write("network.json", NETWORK);
    lab.call("STATUS", "pod").success();
    lab.call("ADD", "pod").success();
    lab.run("rm /run/wg-overlay/network.json");
    lab.call("DEL", "pod").success();
    lab.assert_nothing_left();
    Ok(())
}

fn malformed_mark() -> Result<(), Failed> {
    let lab = Lab::bare();
    lab.add_pod("pod");
    for text in ["", "{", "[]", r#"{"podCIDRs":[],"mtu":1420}"#, r#"{"podCIDRs":["10.244.1.0/24"],"mtu":9}"#]
    {
        lab.write("network.json", text);
        let answer = lab.call("ADD", "pod");
        assert_eq!(answer.code(), 6, "{text}");
        assert!(answer.message().contains("/run/wg-overlay/network.json"), "{}", answer.message());
        assert_eq!(lab.call("STATUS", "pod").code(), 50, "{text}");
    }
    lab.run("rm /run/wg-overlay/network.json; mkdir /run/wg-overlay/network.json");
    assert_eq!(lab.call("ADD", "pod").code(), 5);
    lab.assert_nothing_left();
    Ok(())
}

fn bridge() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    lab.run("ip link del wgobr0");
    assert_eq!(lab.call("ADD", "pod").code(), 11);
    assert_eq!(lab.call("STATUS", "pod").code(), 50);
    lab.call("DEL", "pod").success();
    lab.assert_nothing_left();
    Ok(())
}

fn state_dir() -> Result<(), Failed> {
    let lab = Lab::bare();
    lab.add_pod("pod");
    lab.run(&format!("mkdir /run/other; echo '{NETWORK}' >/run/other/network.json"));
    let conf = with(conf("1.1.0"), "stateDir", json!("/run/other"));
    lab.call_with("ADD", "pod", &conf).success();
    assert_eq!(lab.run("ls /run/other/ipam/holders"), "pod:eth0\n");
    lab.call_with("DEL", "pod", &conf).success();
    assert_eq!(lab.run("ls /run/other/ipam/holders /run/wg-overlay").lines().count(), 3, "both are empty");
    Ok(())
}

fn forwarding() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    lab.run("echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding");
    lab.call("ADD", "pod").success();
    assert_eq!(lab.run("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"), "1\n1\n");
    Ok(())
}

/// A router beside the node advertises itself; the kernel forgets such a route when forwarding goes on, unless told not to.
fn router_advertisement() -> Result<(), Failed> {
    let lab = Lab::new();
    for pod in ["pod", "router"] {
        lab.add_pod(pod);
    }
    lab.run("ip link add up0 type veth peer name eth0 netns router");
    lab.run("echo 0 >/proc/sys/net/ipv6/conf/all/forwarding; echo 1 >/proc/sys/net/ipv6/conf/up0/accept_ra");
    lab.run("ip netns exec router sh -c 'echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad'; ip -n router link set eth0 up");
    lab.run("ip link set up0 up");
    let default_routes = || lab.ip("-6 route show default").as_array().unwrap().len();
    let router = lab.state("../netns/router");
    // Sent until it is taken: the links' own link-local addresses come a moment after the links.
    for _ in 0..200 {
        advertise(&router);
        if default_routes() == 1 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(default_routes(), 1, "the node took no router advertisement");
    lab.call("ADD", "pod").success();
    assert_eq!(
        lab.run("cat /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/net/ipv6/conf/up0/accept_ra"),
        "1\n2\n"
    );
    assert_eq!(default_routes(), 1, "the node lost its default route");
    // What has no advertised route is left as it was.
    assert_ne!(lab.run("cat /proc/sys/net/ipv6/conf/wgobr0/accept_ra"), "2\n");
    Ok(())
}

/// Sends one router advertisement (RFC 4861 4.2) to all nodes by `eth0` of a namespace.
fn advertise(namespace: &Path) {
    const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    let file = std::fs::File::open(namespace).unwrap();
    // A thread of its own, because it does not come back from there.
    let send = move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket =
            socket::socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6).unwrap();
        socket::setsockopt(&socket, sockopt::Ipv6MulticastHops, &255).unwrap();
        let all_nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
        // EADDRNOTAVAIL until the link has its address.
        let _ = socket::sendto(
            socket.as_raw_fd(),
            &ADVERTISEMENT,
            &SockaddrIn6::from(all_nodes),
            MsgFlags::empty(),
        );
    };
    std::thread::spawn(send).join().unwrap();
}

fn read_only() -> Result<(), Failed> {
    let lab = Lab::new();
    // Everything that the plugin sets is as it should be, in the host and in a new namespace.
    lab.run("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding");
    lab.add_pod("pod");
    lab.run(
        "ip netns exec pod sh -c 'for k in accept_ra accept_redirects; do
         echo 0 >/proc/sys/net/ipv6/conf/default/$k; done; echo 0 >/proc/sys/net/ipv4/conf/default/accept_redirects'",
    );
    lab.run("mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys");
    lab.call("ADD", "pod").success();
    lab.call("DEL", "pod").success();

    lab.add_pod("fresh");
    let answer = lab.call("ADD", "fresh");
    assert_eq!(answer.code(), 5);
    assert!(answer.message().contains("/proc/sys/net/"), "{}", answer.message());
    lab.assert_nothing_left();
    Ok(())
}

fn full_disk() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    lab.run("mkdir /run/wg-overlay/ipam");
    // Each entry of the store is an inode: from none of them to all.
    for inodes in 1.. {
        lab.run(&format!("mount -t tmpfs -o nr_inodes={inodes} disk /run/wg-overlay/ipam"));
        let answer = lab.call("ADD", "pod");
        if answer.ok {
            lab.call("DEL", "pod").success();
            assert!(inodes > 10, "{inodes} inodes were enough: was the disk full at all?");
        } else {
            assert!(answer.message().contains("/run/wg-overlay/ipam"), "{}", answer.message());
        }
        lab.assert_nothing_left();
        lab.run("umount /run/wg-overlay/ipam");
        if answer.ok {
            return Ok(());
        }
    }
    Ok(())
}

fn read_only_disk() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.run("mkdir /run/wg-overlay/ipam; mount -t tmpfs disk /run/wg-overlay/ipam");
    lab.add_pod("one");
    lab.add_pod("two");
    lab.call("ADD", "one").success();
    lab.run("mount -o remount,ro /run/wg-overlay/ipam");
    for (command, pod) in [("ADD", "two"), ("DEL", "one")] {
        let answer = lab.call(command, pod);
        assert!(answer.message().contains("/run/wg-overlay/ipam"), "{}", answer.message());
    }
    let (links, entries) = lab.leftovers();
    assert_eq!(
        (links.len(), entries.len()),
        (0, 3),
        "the link of one is gone, its addresses are not another's"
    );
    lab.run("mount -o remount,rw /run/wg-overlay/ipam");
    lab.call("DEL", "one").success();
    lab.call("ADD", "two").success();
    lab.call("DEL", "two").success();
    lab.assert_nothing_left();
    Ok(())
}
