//! A pod's port: let through what is the pod's before its link goes up, and nothing else from its first packet on.

use libtest_mimic::Failed;
use serde_json::Value;
use wg_overlay_cni::{Holder, ports};

use crate::Test;
use crate::lab::{Lab, PORTS, conf, with};

pub const TESTS: &[Test] = &[
    ("add_lets_the_pods_own_packets_through_its_port", elements),
    ("without_the_port_table_add_waits_and_del_does_not", no_table),
    ("check_finds_a_port_that_lets_nothing_through", check),
    ("a_pods_port_is_guarded_before_it_forwards", spoofed),
    ("the_ports_of_attached_pods_are_told", told),
];

fn element(lab: &Lab, set: &str) -> String {
    lab.run(&format!("nft list set bridge wg-overlay {set}"))
}

fn elements() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    for round in 0..2 {
        let result = lab.call("ADD", "pod").success();
        let (link, mac) = (&result["interfaces"][1]["name"], &result["interfaces"][2]["mac"]);
        let port = format!("{link} . {}", mac.as_str().unwrap());
        assert!(element(&lab, "pods").contains(&port), "{port}");
        assert!(element(&lab, "pods4").contains(&format!("{port} . 10.244.1.{}", 2 + round)));
        let v6 = element(&lab, "pods6");
        assert!(v6.contains(&format!("{port} . 0xfd00024400000001000000000000000{}", 2 + round)), "{v6}");
        let inside = lab.run("ip -n pod -6 -o addr show dev eth0 scope link");
        let inside = inside.split_whitespace().find_map(|word| word.strip_suffix("/64")).unwrap();
        let link_local: std::net::Ipv6Addr = inside.parse().unwrap();
        assert!(v6.contains(&format!("{port} . 0x{:032x}", link_local.to_bits())), "{v6}");
        // What DEL leaves is no hindrance for the same pod, and the agent's to remove.
        lab.call("DEL", "pod").success();
    }
    Ok(())
}

fn no_table() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    lab.run("nft delete table bridge wg-overlay");
    let answer = lab.call("ADD", "pod");
    assert_eq!(answer.code(), 11);
    assert!(answer.message().contains("nftables table bridge wg-overlay"), "{}", answer.message());
    lab.assert_nothing_left();
    lab.call("DEL", "pod").success();
    lab.run(&format!("nft -f {PORTS}"));
    lab.call("ADD", "pod").success();
    Ok(())
}

fn check() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    let result = lab.call("ADD", "pod").success();
    let conf = with(conf("1.1.0"), "prevResult", result);
    for damage in [
        "flush set bridge wg-overlay pods",
        "flush set bridge wg-overlay pods6",
        "delete table bridge wg-overlay",
    ] {
        lab.call_with("CHECK", "pod", &conf).success();
        lab.run(&format!("nft {damage}"));
        let answer = lab.call_with("CHECK", "pod", &conf);
        assert_eq!(answer.code(), 101, "{damage}");
        assert!(answer.message().contains("bridge wg-overlay"), "{}", answer.message());
        let port = &ports(&lab.state_dir()).unwrap()[0];
        lab.write("refill", &port.script("wg-overlay"));
        let _ = lab.try_run("nft -f /run/wg-overlay/refill");
    }
    Ok(())
}

fn spoofed() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    lab.call("ADD", "pod").success();
    let counted = |name: &str| {
        let text = lab.run(&format!("nft -j list counter bridge wg-overlay {name}"));
        let told: Value = serde_json::from_str(&text).unwrap();
        told["nftables"][1]["counter"]["packets"].as_u64().unwrap()
    };
    lab.run(
        "ip netns exec pod ping -n -c1 -W2 10.244.1.1; ip netns exec pod ping -n -c1 -W2 fd00:244:0:1::1",
    );
    let names = ["spoofed_mac", "spoofed_source", "spoofed_neighbour", "spoofed_router", "spoofed_protocol"];
    assert_eq!(names.map(counted), [0; 5], "what the pod sent of its own");
    lab.run(
        "ip -n pod addr add 10.244.1.77/32 dev eth0; ip -n pod addr add fd00:244:0:1::77/128 dev eth0 nodad",
    );
    for (from, to) in [("10.244.1.77", "10.244.1.1"), ("fd00:244:0:1::77", "fd00:244:0:1::1")] {
        let before = counted("spoofed_source");
        assert!(!lab.try_run(&format!("ip netns exec pod ping -n -c1 -W1 -I {from} {to}")).status.success());
        assert!(counted("spoofed_source") > before, "{from}");
        lab.run("nft delete table bridge wg-overlay");
        lab.run(&format!("ip netns exec pod ping -n -c1 -W2 -I {from} {to}"));
        let port = &ports(&lab.state_dir()).unwrap()[0];
        lab.write("refill", &port.script("wg-overlay"));
        lab.run(&format!("nft -f {PORTS}; nft -f /run/wg-overlay/refill"));
    }
    Ok(())
}

fn told() -> Result<(), Failed> {
    let lab = Lab::new();
    for pod in ["one", "two"] {
        lab.add_pod(pod);
        lab.call("ADD", pod).success();
    }
    let told = ports(&lab.state_dir()).unwrap();
    for (port, pod) in told.iter().zip(["one", "two"]) {
        let inside = &lab.ip(&format!("-n {pod} link show eth0"))[0]["address"];
        let mac = port.mac.map(|byte| format!("{byte:02x}")).join(":");
        assert_eq!(inside.as_str(), Some(mac.as_str()));
        assert_eq!(port.link, wg_overlay_cni::pod_link_name(&Holder::new(pod, "eth0").unwrap()));
    }
    assert_eq!(told.len(), 2);
    Ok(())
}
