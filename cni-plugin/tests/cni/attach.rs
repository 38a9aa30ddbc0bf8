//! ADD: what the pod and the host have after it, and what is taken back when it fails.

use std::collections::BTreeSet;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::Test;
use crate::lab::{Lab, PLUGIN, conf, netns, with};

pub const TESTS: &[Test] = &[
    ("add_connects_a_pod_in_both_families", connects),
    ("add_answers_in_the_asked_version", versions),
    ("add_with_one_family_leaves_the_other_alone", one_family),
    ("add_turns_ipv6_on_where_the_runtime_turned_it_off", ipv6_disabled),
    ("add_appends_to_prev_result_and_passes_dns", prev_result),
    ("add_twice_fails_and_the_first_keeps_everything", twice),
    ("add_thirty_at_once", thirty),
    ("add_answers_when_the_bridge_forwards", forwards),
    ("add_on_a_full_range_is_code_11_and_takes_nothing", full),
    ("add_that_fails_half_way_takes_everything_back", rolls_back),
    ("add_whose_answer_nobody_reads_takes_everything_back", unread),
    ("a_pod_reaches_itself_through_the_bridge", hairpin),
];

fn connects() -> Result<(), Failed> {
    let lab = Lab::new();
    for pod in ["one", "two"] {
        lab.add_pod(pod);
    }
    let result = lab.call("ADD", "one").success();
    lab.call("ADD", "two").success();

    // At once, without waiting for duplicate detection.
    for target in ["10.244.1.1", "10.244.1.3", "fd00:244:0:1::1", "fd00:244:0:1::3"] {
        lab.run(&format!("ip netns exec one ping -c1 -W2 {target}"));
    }

    let interfaces = result["interfaces"].as_array().unwrap();
    let inside = &lab.ip("-d -n one link show eth0")[0];
    let host = &lab.ip(&format!("-d link show {}", interfaces[1]["name"].as_str().unwrap()))[0];
    assert_eq!(interfaces[0], json!({ "name": "wgobr0", "mac": "02:00:00:00:00:01", "mtu": 1420 }));
    assert_eq!(interfaces[1], json!({ "name": host["ifname"], "mac": host["address"], "mtu": 1420 }));
    assert_eq!(
        interfaces[2],
        json!({ "name": "eth0", "mac": inside["address"], "mtu": 1420, "sandbox": netns("one") })
    );
    assert!(result["ips"].as_array().unwrap().iter().all(|ip| ip["interface"] == 2), "{result}");

    assert_eq!((&inside["mtu"], &host["mtu"]), (&json!(1420), &json!(1420)));
    assert_eq!(host["ifalias"], "wg-overlay:one/eth0");
    assert_eq!(host["master"], "wgobr0");
    assert_eq!(host["linkinfo"]["info_slave_data"]["hairpin"], true);
    for mac in [&inside["address"], &host["address"]] {
        let first = u8::from_str_radix(&mac.as_str().unwrap()[..2], 16).unwrap();
        assert_eq!(first & 0b11, 0b10, "{mac} is not local and unicast");
    }
    for key in
        ["ipv6/conf/eth0/accept_ra", "ipv6/conf/eth0/accept_redirects", "ipv4/conf/eth0/accept_redirects"]
    {
        assert_eq!(lab.run(&format!("ip netns exec one cat /proc/sys/net/{key}")), "0\n", "{key}");
    }
    assert_eq!(lab.run("ip netns exec one ping -c1 -W2 127.0.0.1 >&2; echo $?"), "0\n", "loopback is up");
    Ok(())
}

fn versions() -> Result<(), Failed> {
    let lab = Lab::new();
    for (pod, version) in [("a", "0.3.1"), ("b", "0.4.0"), ("c", "1.0.0"), ("d", "1.1.0")] {
        lab.add_pod(pod);
        let result = lab.call_with("ADD", pod, &conf(version)).success();
        assert_eq!(result["cniVersion"], version);
        let has = |list: &str, key: &str| {
            result[list].as_array().unwrap().iter().all(|entry| entry[key] != Value::Null)
        };
        // "version" of an IP went with 1.0.0; the MTU of an interface came with 1.1.0.
        assert_eq!(has("ips", "version"), version < "1", "{result}");
        assert_eq!(has("interfaces", "mtu"), version == "1.1.0", "{result}");
        assert_eq!(
            result["routes"],
            json!([{ "dst": "0.0.0.0/0", "gw": "10.244.1.1" }, { "dst": "::/0", "gw": "fd00:244:0:1::1" }])
        );
    }
    Ok(())
}

fn one_family() -> Result<(), Failed> {
    let lab = Lab::bare();
    let forwarding = |family: &str| lab.run(&format!("cat /proc/sys/net/{family}")).trim().to_owned();
    lab.write("network.json", r#"{"podCIDRs":["10.244.1.0/24"],"mtu":1400}"#);
    let ipv6_before = forwarding("ipv6/conf/all/forwarding");
    lab.add_pod("four");
    let result = lab.call("ADD", "four").success();
    assert_eq!(result["ips"].as_array().unwrap().len(), 1);
    assert_eq!(lab.run("ip netns exec four cat /proc/sys/net/ipv6/conf/eth0/accept_ra"), "0\n");
    assert_eq!(forwarding("ipv6/conf/all/forwarding"), ipv6_before);

    lab.write("network.json", r#"{"podCIDRs":["fd00:244:0:1::/64"],"mtu":1400}"#);
    lab.add_pod("six");
    let result = lab.call("ADD", "six").success();
    assert_eq!(result["ips"][0]["address"], "fd00:244:0:1::2/64");
    lab.run("ip netns exec six ping -c1 -W2 fd00:244:0:1::1");

    // Below IPv6's least MTU a link has no IPv6 settings at all.
    lab.write("network.json", r#"{"podCIDRs":["10.244.1.0/24"],"mtu":1000}"#);
    lab.add_pod("small");
    lab.call("ADD", "small").success();
    lab.run("ip netns exec small ping -c1 -W2 10.244.1.1");
    Ok(())
}

fn ipv6_disabled() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    lab.run("ip netns exec pod sh -c 'for k in all default; do echo 1 >/proc/sys/net/ipv6/conf/$k/disable_ipv6; done'");
    lab.call("ADD", "pod").success();
    lab.run("ip netns exec pod ping -c1 -W2 fd00:244:0:1::1");
    Ok(())
}

fn prev_result() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    let before = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "lo", "sandbox": netns("pod") }],
        "ips": [{ "address": "127.0.0.1/8", "interface": 0 }],
        "dns": { "search": ["before"] },
    });
    let result = lab.call_with("ADD", "pod", &with(conf("1.1.0"), "prevResult", before.clone())).success();
    assert_eq!(result["interfaces"][0], before["interfaces"][0]);
    assert_eq!(result["ips"][0], before["ips"][0]);
    assert_eq!(result["dns"], before["dns"]);
    let ours = result["ips"][1]["interface"].as_u64().unwrap();
    assert_eq!(result["interfaces"][usize::try_from(ours).unwrap()]["name"], "eth0");

    lab.call("DEL", "pod").success();
    let dns = json!({ "nameservers": ["10.96.0.10"], "options": ["ndots:5"] });
    let conf = with(with(conf("1.1.0"), "dns", dns.clone()), "runtimeConfig", json!({ "unknown": [1] }));
    assert_eq!(lab.call_with("ADD", "pod", &conf).success()["dns"], dns);
    Ok(())
}

fn twice() -> Result<(), Failed> {
    let lab = Lab::new();
    for pod in ["pod", "elsewhere"] {
        lab.add_pod(pod);
    }
    lab.call("ADD", "pod").success();
    let before = lab.leftovers();
    assert_eq!(lab.call("ADD", "pod").code(), 4);
    // The same attachment in another namespace: nothing is in its way but the reservation.
    let mut environment = crate::lab::environment("ADD", "pod");
    environment
        .iter_mut()
        .filter(|(name, _)| *name == "CNI_NETNS")
        .for_each(|(_, path)| *path = "/run/netns/elsewhere");
    let answer = lab.call_raw(&environment, conf("1.1.0").to_string().as_bytes());
    assert_eq!(answer.code(), 100);
    assert!(answer.message().contains("10.244.1.2"), "{}", answer.message());
    assert_eq!(lab.leftovers(), before);
    lab.run("ip netns exec pod ping -c1 -W2 10.244.1.1");
    Ok(())
}

fn thirty() -> Result<(), Failed> {
    let lab = Lab::new();
    let pods: Vec<String> = (0..30).map(|n| format!("pod{n}")).collect();
    for pod in &pods {
        lab.add_pod(pod);
    }
    let addresses: Vec<String> = std::thread::scope(|scope| {
        let calls: Vec<_> = pods.iter().map(|pod| scope.spawn(|| lab.call("ADD", pod).success())).collect();
        let results = calls.into_iter().map(|call| call.join().unwrap());
        results
            .flat_map(|result| {
                result["ips"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|ip| ip["address"].to_string())
                    .collect::<Vec<_>>()
            })
            .collect()
    });
    assert_eq!(addresses.len(), 60);
    assert_eq!(
        addresses.iter().collect::<BTreeSet<_>>().len(),
        60,
        "an address was given twice: {addresses:?}"
    );
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| lab.call("DEL", pod).success());
        }
    });
    lab.assert_nothing_left();
    Ok(())
}

/// A port forwards once the kernel has told of its carrier. It does so at once for a veth, but where both ends happen to
/// have one index, at most once a second (linkwatch_urgent_event, net/core/link_watch.c).
fn forwards() -> Result<(), Failed> {
    let lab = Lab::new();
    // The index that a namespace gave last, by a link that is gone again.
    const LAST: &str = "link add last type bridge; $IP -o link show last | cut -d: -f1; $IP link del last";
    let last = |ip: &str| lab.run(&format!("IP='{ip}'; $IP {LAST}")).trim().parse::<u32>().unwrap();
    for pod in ["first", "second", "third"] {
        lab.add_pod(pod);
        let next = last("ip") + 1;
        while last(&format!("ip -n {pod}")) + 1 < next {}
        let result = lab.call("ADD", pod).success();
        let port = &lab.ip(&format!("-d link show {}", result["interfaces"][1]["name"].as_str().unwrap()))[0];
        assert_eq!(port["linkinfo"]["info_slave_data"]["state"], "forwarding", "{pod}");
        assert_eq!(port["ifindex"], port["link_index"], "{pod}");
    }
    // A bridge that somebody set down forwards nothing, which is no fault of the pod.
    lab.run("ip link set wgobr0 down");
    lab.add_pod("patient");
    lab.call("ADD", "patient").success();
    Ok(())
}

fn full() -> Result<(), Failed> {
    let lab = Lab::bare();
    lab.write("network.json", r#"{"podCIDRs":["fd00:244:0:1::/64","10.244.1.0/30"],"mtu":1420}"#);
    for pod in ["one", "two"] {
        lab.add_pod(pod);
    }
    lab.call("ADD", "one").success();
    let before = lab.leftovers();
    let answer = lab.call("ADD", "two");
    assert_eq!(answer.code(), 11);
    assert!(answer.message().contains("no address is free in 10.244.1.0/30"), "{}", answer.message());
    assert_eq!(lab.leftovers(), before);
    lab.call("DEL", "one").success();
    lab.call("ADD", "two").success();
    Ok(())
}

/// A default route that is there already makes the last request but one fail.
fn rolls_back() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    lab.run("ip -n pod link add other type veth peer name other2");
    lab.run("ip -n pod addr add 192.0.2.1/24 dev other; ip -n pod link set other up; ip -n pod link set other2 up");
    lab.run("ip -n pod route add default via 192.0.2.9");
    let answer = lab.call("ADD", "pod");
    assert_eq!(answer.code(), 5);
    assert!(answer.message().contains("default route via 10.244.1.1"), "{}", answer.message());
    lab.assert_nothing_left();
    assert!(!lab.try_run("ip -n pod link show eth0").status.success());
    lab.run("ip -n pod route del default");
    lab.call("ADD", "pod").success();
    Ok(())
}

fn unread() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    let line = format!("echo '{}' | {PLUGIN} >/dev/full", conf("1.1.0"));
    let status =
        lab.command("sh").args(["-c", &line]).envs(crate::lab::environment("ADD", "pod")).status()?;
    assert!(!status.success());
    lab.assert_nothing_left();
    Ok(())
}

fn hairpin() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    lab.call("ADD", "pod").success();
    // A neighbour entry with the pod's own MAC for another address of the pod's network: it leaves by eth0, and only a
    // hairpin port sends it back.
    let mac = lab.ip("-n pod link show eth0")[0]["address"].as_str().unwrap().to_owned();
    lab.run(&format!("ip -n pod neigh add 10.244.1.200 lladdr {mac} dev eth0"));
    let received = || lab.ip("-s -n pod link show eth0")[0]["stats64"]["rx"]["packets"].as_u64().unwrap();
    let before = received();
    let _ = lab.try_run("ip netns exec pod ping -c3 -i0.2 -W1 10.244.1.200");
    assert!(received() >= before + 3, "the bridge did not send the pod's own packets back");
    Ok(())
}
