//! CHECK: every difference is found, and what others added is none.

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::Test;
use crate::lab::{Lab, conf, with};

pub const TESTS: &[Test] =
    &[("check_passes_after_add_and_chained_changes", passes), ("check_finds_each_difference", finds)];

fn check_conf(result: &Value) -> Value {
    with(conf("1.1.0"), "prevResult", result.clone())
}

fn passes() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let result = lab.call_with("ADD", "pod", &conf(version)).success();
        let mut later = result.clone();
        later["interfaces"].as_array_mut().unwrap().push(json!({ "name": "ifb0" }));
        lab.run("ip -n pod route add 192.0.2.0/24 via 10.244.1.9; ip -n pod addr add 192.0.2.77/32 dev eth0");
        lab.call_with("CHECK", "pod", &with(conf(version), "prevResult", later)).success();
        lab.call("DEL", "pod").success();
    }
    Ok(())
}

fn finds() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    let damages = [
        "ip -n pod addr del 10.244.1.2/24 dev eth0",
        "ip -n pod addr del fd00:244:0:1::2/64 dev eth0",
        "ip -n pod route del default",
        "ip -n pod -6 route del default",
        "ip -n pod link set eth0 down",
        "ip -n pod link set eth0 address 02:00:00:00:00:99",
        "ip -n pod link set eth0 down; ip -n pod link set eth0 name eth9",
        "ip -n pod link del eth0",
        "ip link set wgp* nomaster",
        "ip link set wgp* down",
        "ip link set wgp* alias other",
        "rm /run/wg-overlay/ipam/holders/pod:eth0",
    ];
    for damage in damages {
        lab.run("rm -rf /run/wg-overlay/ipam");
        let result = lab.call("ADD", "pod").success();
        lab.call_with("CHECK", "pod", &check_conf(&result)).success();
        let host = result["interfaces"][1]["name"].as_str().unwrap();
        lab.run(&damage.replace("wgp*", host));
        assert_eq!(lab.call_with("CHECK", "pod", &check_conf(&result)).code(), 101, "{damage}");
        let _ = lab.try_run("ip -n pod link del eth0; ip -n pod link del eth9");
        lab.call("DEL", "pod").success();
    }

    let result = lab.call("ADD", "pod").success();
    for (pointer, value) in [("/ips/0/address", "10.244.1.99/24"), ("/interfaces/2/mac", "02:00:00:00:00:99")]
    {
        let mut other = result.clone();
        *other.pointer_mut(pointer).unwrap() = json!(value);
        assert_eq!(lab.call_with("CHECK", "pod", &check_conf(&other)).code(), 101, "{pointer}");
    }
    assert_eq!(lab.call("CHECK", "pod").code(), 7, "prevResult is missing");
    Ok(())
}
