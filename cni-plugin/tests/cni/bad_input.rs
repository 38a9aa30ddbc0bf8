//! What a runtime can get wrong: each is an error with the specification's code, and leaves nothing behind.

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::Test;
use crate::lab::{Lab, conf, environment, netns, with};

pub const TESTS: &[Test] = &[
    ("bad_stdin", stdin),
    ("bad_environment", bad_environment),
    ("bad_namespace", namespace),
    ("an_interface_that_exists", interface_exists),
    ("versions_and_commands_that_do_not_fit", versions),
    ("version_echoes_and_lists", version),
    ("failures_are_logged", logged),
];

fn stdin() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    let full = conf("1.1.0");
    let huge = format!("{{\"name\":\"{}\"}}", "x".repeat(17 * 1024 * 1024));
    let cases: [(String, u64); 9] = [
        (String::new(), 6),
        ("\n".to_owned(), 6),
        ("{".to_owned(), 6),
        ("[]".to_owned(), 6),
        (with(full.clone(), "name", json!(7)).to_string(), 6),
        (with(full.clone(), "name", Value::Null).to_string(), 6),
        (with(full.clone(), "prevResult", json!({ "interfaces": 7 })).to_string(), 6),
        (with(full, "stateDir", json!("relative")).to_string(), 7),
        (huge, 7),
    ];
    for (text, code) in cases {
        let answer = lab.call_raw(&environment("ADD", "pod"), text.as_bytes());
        assert_eq!(answer.code(), code, "{}", &text[..text.len().min(100)]);
        lab.assert_nothing_left();
    }
    let unknown = with(with(conf("1.1.0"), "capabilities", json!({ "x": true })), "unknown", json!([{}]));
    lab.call_with("ADD", "pod", &unknown).success();
    Ok(())
}

fn bad_environment() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    let input = conf("1.1.0").to_string();
    for command in ["ADD", "CHECK", "DEL", "GC"] {
        let required: &[&str] = match command {
            "DEL" => &["CNI_CONTAINERID", "CNI_IFNAME"],
            "GC" => &["CNI_PATH"],
            _ => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
        };
        for name in required {
            let without: Vec<_> =
                environment(command, "pod").into_iter().filter(|(key, _)| key != name).collect();
            let answer = lab.call_raw(&without, input.as_bytes());
            assert_eq!(answer.code(), 4, "{command} without {name}");
            assert!(answer.message().contains(name), "{}", answer.message());
        }
    }
    let bad = [
        ("CNI_COMMAND", "REMOVE"),
        ("CNI_COMMAND", ""),
        ("CNI_CONTAINERID", "../etc"),
        ("CNI_CONTAINERID", "-x"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "sixteen_letters_"),
    ];
    for (name, value) in bad {
        let mut environment = environment("ADD", "pod");
        environment.iter_mut().filter(|(key, _)| *key == name).for_each(|(_, old)| *old = value);
        let answer = lab.call_raw(&environment, input.as_bytes());
        assert_eq!(answer.code(), 4, "{name}={value}");
        assert!(answer.message().contains(name), "{}", answer.message());
    }
    let long = "a".repeat(300);
    assert_eq!(lab.call("ADD", &long).code(), 4);
    lab.assert_nothing_left();

    // As the CNI project's skeleton: without a command it says what it is.
    let answer = lab.call_raw(&[], b"");
    assert!(answer.ok && answer.json == Value::Null, "{answer:?}");
    Ok(())
}

fn namespace() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.run("touch /run/netns/file; mkdir /run/netns/folder; mkfifo /run/netns/pipe; ln -s /proc/self/ns/uts /run/netns/uts");
    lab.run("ln -s /proc/self/ns/net /run/netns/own");
    let cases =
        [("gone", 3), ("file/below", 3), ("file", 8), ("folder", 8), ("pipe", 8), ("uts", 8), ("own", 8)];
    for (name, code) in cases {
        let path = netns(name);
        let mut environment = environment("ADD", "pod");
        environment.iter_mut().filter(|(key, _)| *key == "CNI_NETNS").for_each(|(_, value)| *value = &path);
        let answer = lab.call_raw(&environment, conf("1.1.0").to_string().as_bytes());
        assert_eq!(answer.code(), code, "{name}: {}", answer.message());
        assert!(answer.message().contains(&path), "{}", answer.message());
        lab.assert_nothing_left();
    }
    Ok(())
}

fn interface_exists() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    lab.run("ip -n pod link add eth0 type bridge");
    let answer = lab.call("ADD", "pod");
    assert_eq!(answer.code(), 4);
    assert!(answer.message().contains("eth0"), "{}", answer.message());
    lab.assert_nothing_left();
    assert_eq!(
        lab.ip("-d -n pod link show eth0")[0]["linkinfo"]["info_kind"],
        "bridge",
        "it is still the same link"
    );
    Ok(())
}

fn versions() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    for version in ["", "0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", "nonsense"] {
        for command in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            assert_eq!(lab.call_with(command, "pod", &conf(version)).code(), 1, "{command} {version}");
        }
    }
    for (command, version, fits) in [
        ("CHECK", "0.3.1", false),
        ("STATUS", "1.0.0", false),
        ("GC", "1.0.0", false),
        ("STATUS", "1.1.0", true),
        ("GC", "1.1.0", true),
    ] {
        let answer = lab.call_with(command, "pod", &conf(version));
        assert_eq!(answer.ok, fits, "{command} {version} {}", answer.json);
        assert!(fits || answer.code() == 1, "{command} {version}");
    }
    lab.assert_nothing_left();
    Ok(())
}

fn version() -> Result<(), Failed> {
    let lab = Lab::bare();
    for version in ["0.3.1", "1.0.0", "1.1.0"] {
        let answer = lab
            .call_raw(&[("CNI_COMMAND", "VERSION")], json!({ "cniVersion": version }).to_string().as_bytes());
        let expected =
            json!({ "cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] });
        assert_eq!(answer.success(), expected);
    }
    assert!(lab.call_raw(&[("CNI_COMMAND", "VERSION")], b"").ok);
    Ok(())
}

fn logged() -> Result<(), Failed> {
    let lab = Lab::new();
    assert_eq!(lab.call("ADD", "pod").code(), 3);
    lab.call_raw(&environment("ADD", "pod"), b"{");
    let log = lab.run("cat /run/wg-overlay/cni.log");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert_eq!((&lines[0]["code"], &lines[0]["containerID"]), (&json!(3), &json!("pod")));
    assert_eq!(lines[1]["code"], 6);
    assert_eq!(lab.run("stat -c %a /run/wg-overlay/cni.log"), "600\n");

    // A log that can't be written changes no answer.
    lab.run("rm /run/wg-overlay/cni.log; mkdir /run/wg-overlay/cni.log");
    assert_eq!(lab.call("ADD", "pod").code(), 3);
    Ok(())
}
