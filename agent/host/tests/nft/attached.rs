//! The lab's pods as the plugin attaches pods.

use std::{fs, os::unix::fs::symlink};

use wg_overlay_cni::{Holder, Mac, pod_link_macs, pod_link_name};

use crate::{
    lab::{FAMILIES, Lab},
    netns::Netns,
};

impl Lab {
    /// Makes the pods' links and reservations those that the plugin makes.
    pub fn attach_pods(&self) {
        let holders = self.state_dir.join("ipam/holders");
        fs::create_dir_all(&holders).unwrap();
        let [v4, v6] = &FAMILIES;
        self.node.sh("ip addr add fe80::1/64 dev wgobr0 nodad");
        for (pod, holder, addresses) in
            [(&self.pod_a, "pod_a", [v4.pod_a, v6.pod_a]), (&self.pod_b, "pod_b", [v4.pod_b, v6.pod_b])]
        {
            symlink(addresses.join(","), holders.join(format!("{holder}:eth0"))).unwrap();
            let of = Holder::new(holder, "eth0").unwrap();
            let (link, (host, inside)) = (pod_link_name(&of), pod_link_macs(&of));
            let [host, inside] = [host, inside].map(mac_text);
            self.node.sh(&format!(
                "ip link set {holder} down; ip link set {holder} name {link} address {host} up"
            ));
            // its link-local address follows
            pod.sh(&format!(
                "ip link set eth0 addrgenmode eui64 address {inside}
                ip -6 addr flush dev eth0 scope link
                ip link set eth0 down; ip link set eth0 up
                ip addr replace {0}/64 dev eth0 nodad
                ip route replace default via 10.244.1.1; ip route replace default via fd00:244:0:1::1",
                addresses[1]
            ));
        }
        self.await_neighbours();
    }

    /// The names of the links of both pods, after [`Lab::attach_pods`].
    pub fn pod_links(&self) -> [String; 2] {
        ["pod_a", "pod_b"].map(|holder| pod_link_name(&Holder::new(holder, "eth0").unwrap()))
    }

    /// The MACs of both pods.
    pub fn pod_macs(&self) -> [String; 2] {
        [&self.pod_a, &self.pod_b].map(|pod| mac_of(pod, "eth0"))
    }

    /// The MAC of the bridge.
    pub fn bridge_mac(&self) -> String {
        mac_of(&self.node, "wgobr0")
    }

    /// Pod a asks nobody for the MACs of its gateway and its sibling any more.
    pub fn keep_neighbours(&self) {
        let [_, sibling] = self.pod_macs();
        for side in &FAMILIES {
            for (address, mac) in [(side.gateway, self.bridge_mac()), (side.pod_b, sibling.clone())] {
                self.pod_a.sh(&format!("ip neigh replace {address} lladdr {mac} dev eth0 nud permanent"));
            }
        }
    }
}

fn mac_of(netns: &Netns, link: &str) -> String {
    let told = netns.sh(&format!("ip -o link show dev {link}"));
    let mac = told.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
    mac.unwrap().to_owned()
}

fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
