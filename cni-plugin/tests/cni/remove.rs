//! DEL and GC: what is ours goes, and nothing that isn't.

use libtest_mimic::Failed;
use serde_json::{Value, json};
use wg_overlay_cni::{Holder, pod_link_name, store};

use crate::Test;
use crate::lab::{Lab, conf, environment, with};

pub const TESTS: &[Test] = &[
    ("del_twice_and_of_what_was_never_added", twice),
    ("del_works_without_the_namespace", without_namespace),
    ("del_from_before_a_reboot_frees_nothing_of_others", before_reboot),
    ("del_leaves_a_foreign_link_of_the_same_name", foreign_link),
    ("gc_keeps_the_list_and_removes_the_rest", gc),
    ("gc_frees_addresses_of_pods_that_are_gone", gone),
    ("gc_leaves_foreign_links_and_files", gc_foreign),
    ("gc_beside_an_add_is_code_11_and_does_nothing", busy),
    ("holders_outside_the_pod_cidrs_are_named", outside),
];

fn attachments(pods: &[&str]) -> Value {
    let list: Vec<Value> = pods.iter().map(|pod| json!({ "containerID": pod, "ifname": "eth0" })).collect();
    with(conf("1.1.0"), "cni.dev/valid-attachments", list.into())
}

fn twice() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    lab.call("DEL", "pod").success();
    lab.call("ADD", "pod").success();
    for _ in 0..2 {
        assert_eq!(lab.call("DEL", "pod").success(), Value::Null, "DEL has no output");
        lab.assert_nothing_left();
    }
    assert!(!lab.try_run("ip -n pod link show eth0").status.success());
    Ok(())
}

fn without_namespace() -> Result<(), Failed> {
    let lab = Lab::new();
    for (pod, damage) in [("a", "ip netns del a"), ("b", "true"), ("c", "ip -n c link del eth0")] {
        lab.add_pod(pod);
        lab.call("ADD", pod).success();
        lab.run(damage);
        let mut without = environment("DEL", pod);
        without.retain(|(key, _)| *key != "CNI_NETNS");
        // A prevResult that makes no sense is nothing that DEL needs.
        let conf = with(conf("1.1.0"), "prevResult", json!({ "ips": "none" }));
        lab.call_raw(&without, conf.to_string().as_bytes()).success();
        lab.assert_nothing_left();
    }
    Ok(())
}

/// A reboot clears /run; the runtime then deletes pods of before, when their addresses are others' already.
fn before_reboot() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("new");
    lab.call("ADD", "new").success();
    let before = lab.leftovers();
    let previous = json!({ "ips": [{ "address": "10.244.1.2/24" }] });
    lab.call_with("DEL", "old", &with(conf("1.1.0"), "prevResult", previous)).success();
    assert_eq!(lab.leftovers(), before);
    Ok(())
}

fn foreign_link() -> Result<(), Failed> {
    let lab = Lab::new();
    let name = pod_link_name(&Holder::new("pod", "eth0").unwrap());
    for alias in ["", "somebody else", "wg-overlay:other/eth0"] {
        lab.run(&format!("ip link add {name} type veth peer name peer; ip link set {name} alias '{alias}'"));
        lab.call("DEL", "pod").success();
        lab.run(&format!("ip link del {name}"));
    }
    Ok(())
}

fn gc() -> Result<(), Failed> {
    let lab = Lab::new();
    for pod in ["a", "b", "c"] {
        lab.add_pod(pod);
        lab.call("ADD", pod).success();
    }
    lab.call_with("GC", "", &attachments(&["a", "c", "../not/ours"])).success();
    let (links, entries) = lab.leftovers();
    assert_eq!(links.len(), 2);
    assert!(!entries.iter().any(|entry| entry.contains("10.244.1.3") || entry == "b:eth0"), "{entries:?}");
    lab.run("ip netns exec a ping -c1 -W2 10.244.1.4");
    // No list: nothing is valid.
    lab.call("GC", "").success();
    lab.assert_nothing_left();
    Ok(())
}

/// With every attachment still valid for the runtime: this is what the agent's own collection does.
fn gone() -> Result<(), Failed> {
    let lab = Lab::new();
    for pod in ["stays", "goes"] {
        lab.add_pod(pod);
        lab.call("ADD", pod).success();
    }
    lab.run("ip -n goes link del eth0");
    // A link of ours whose reservation is lost.
    lab.add_pod("lost");
    lab.call("ADD", "lost").success();
    lab.run("rm /run/wg-overlay/ipam/holders/lost:eth0");
    lab.call_with("GC", "", &attachments(&["stays", "goes", "lost"])).success();
    let (links, entries) = lab.leftovers();
    assert_eq!((links.len(), entries.len()), (1, 3), "{links:?} {entries:?}");
    lab.run("ip netns exec stays ping -c1 -W2 10.244.1.1");
    Ok(())
}

fn gc_foreign() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.run(
        "ip link add wgp000000000000 type veth peer name foreign; ip link set foreign alias other:x/eth0",
    );
    lab.run("mkdir -p /run/wg-overlay/ipam/addresses /run/wg-overlay/ipam/holders; touch /run/wg-overlay/ipam/addresses/notes /run/wg-overlay/ipam/holders/notes");
    lab.call("GC", "").success();
    let (links, entries) = lab.leftovers();
    assert_eq!((links.len(), entries.len()), (2, 2), "{links:?} {entries:?}");
    Ok(())
}

fn busy() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    lab.call("ADD", "pod").success();
    let before = lab.leftovers();
    let adding = store(&lab.state_dir()).begin_attach().unwrap();
    assert_eq!(lab.call("GC", "").code(), 11);
    assert_eq!(lab.leftovers(), before);
    // Another ADD goes on beside it.
    lab.add_pod("other");
    lab.call("ADD", "other").success();
    drop(adding);
    lab.call("GC", "").success();
    lab.assert_nothing_left();
    Ok(())
}

fn outside() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("old");
    lab.call("ADD", "old").success();
    lab.write("network.json", r#"{"podCIDRs":["10.244.9.0/24","fd00:244:0:1::/64"],"mtu":1420}"#);
    lab.add_pod("new");
    lab.call("ADD", "new").success();
    let now = wg_overlay_cni::Network::read(&lab.state_dir()).unwrap();
    let outside = wg_overlay_cni::holders_outside(&lab.state_dir(), &now.pod_cidrs).unwrap();
    let names: Vec<String> = outside.iter().map(|reservation| reservation.holder.to_string()).collect();
    assert_eq!(names, ["old:eth0"]);
    Ok(())
}
