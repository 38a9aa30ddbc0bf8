//! The CNI project's own client against our plugin: built from its Go module into the cache folder.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::Test;
use crate::lab::{Lab, NETWORK, PLUGIN};

const MODULE: &str = "github.com/containernetworking/cni/cnitool@v1.3.0";

pub const TEST: Test = ("cnitool_drives_every_command", drives_every_command);

pub fn lacks() -> Option<String> {
    let go = Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    (!go.is_ok_and(|status| status.success())).then(|| "go is missing".to_owned())
}

fn drives_every_command() -> Result<(), Failed> {
    let cnitool = build()?;
    let lab = Lab::bare();
    lab.add_pod("pod");
    let list = json!({
        "cniVersion": "1.1.0",
        "name": "wg-overlay",
        "plugins": [{ "type": "wg-overlay-cni", "stateDir": "/run/wg-overlay" }],
    });
    lab.run(&format!(
        "mkdir /run/net.d /run/bin; cp {PLUGIN} /run/bin; echo '{list}' >/run/net.d/10-wg-overlay.conflist"
    ));
    // libcni keeps results under /var/lib/cni.
    lab.run("mount -t tmpfs tmpfs /var/lib");
    let run = |verb: &str| -> (bool, String) {
        let mut command = lab.command(cnitool.to_str().unwrap());
        command
            .args([verb, "wg-overlay", "/run/netns/pod"])
            .env("NETCONFPATH", "/run/net.d")
            .env("CNI_PATH", "/run/bin");
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };

    let (ok, text) = run("status");
    assert!(!ok && text.contains("not ready"), "status before the boot mark: {text}");
    lab.write("network.json", NETWORK);
    assert!(run("status").0);

    let (ok, text) = run("add");
    assert!(ok, "{text}");
    let result: Value = serde_json::from_str(&text)?;
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/24");
    lab.run("ip netns exec pod ping -c1 -W2 10.244.1.1");
    let (ok, text) = run("check");
    assert!(ok, "{text}");
    lab.run("ip -n pod addr del 10.244.1.2/24 dev eth0");
    assert!(!run("check").0, "check must see a missing address");
    for _ in 0..2 {
        let (ok, text) = run("del");
        assert!(ok, "{text}");
        lab.assert_nothing_left();
    }

    assert!(run("add").0);
    let (ok, text) = run("gc");
    assert!(ok, "{text}");
    lab.assert_nothing_left();
    Ok(())
}

fn build() -> Result<PathBuf, Failed> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let cache = std::env::var_os("WG_OVERLAY_CACHE").map_or_else(|| root.join(".cache"), PathBuf::from);
    let folder = std::path::absolute(cache)?.join("cnitool-v1.3.0");
    let binary = folder.join("cnitool");
    if !binary.exists() {
        let output = Command::new("go")
            .args(["install", MODULE])
            .env("GOBIN", &folder)
            .env("CGO_ENABLED", "0")
            .output()?;
        if !output.status.success() {
            return Err(format!("go install {MODULE}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
    }
    Ok(binary)
}
