//! A node for one test: namespaces that end with it, whatever happens to the test.

use std::{
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use serde_json::{Value, json};

pub const PLUGIN: &str = env!("CARGO_BIN_EXE_wg-overlay-cni");
pub const STATE_DIR: &str = "/run/wg-overlay";
pub const NETWORK: &str = r#"{"podCIDRs":["10.244.1.0/24","fd00:244:0:1::/64"],"mtu":1420}"#;

/// The table that the agent makes.
pub const PORTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/mesh/src/firewall/ports.nft");

const SET_UP: &str = "set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/wg-overlay /run/netns
ip link set lo up
ip link add wgobr0 address 02:00:00:00:00:01 mtu 1420 type bridge mcast_snooping 0
ip link set wgobr0 up
ip addr add 10.244.1.1/24 dev wgobr0
ip addr add fd00:244:0:1::1/64 dev wgobr0 nodad
nft -f $PORTS
echo ready
exec cat";

pub struct Lab {
    /// Ends with its stdin, and the namespaces with it.
    holder: Child,
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Answer {
    pub ok: bool,
    pub json: Value,
}

impl Answer {
    /// Fails the test unless the call succeeded.
    pub fn success(self) -> Value {
        assert!(self.ok, "the plugin failed: {}", self.json);
        self.json
    }

    /// The code of an error, which must be what the specification calls one.
    pub fn code(&self) -> u64 {
        assert!(!self.ok, "the plugin succeeded: {}", self.json);
        assert!(self.json["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{}", self.json);
        assert!(self.json["cniVersion"].is_string(), "{}", self.json);
        self.json["code"].as_u64().unwrap()
    }

    pub fn message(&self) -> String {
        format!(
            "{} {}",
            self.json["msg"].as_str().unwrap(),
            self.json["details"].as_str().unwrap_or_default()
        )
    }
}

impl Lab {
    /// A node that the agent has made ready.
    pub fn new() -> Self {
        let lab = Self::bare();
        lab.write("network.json", NETWORK);
        lab
    }

    /// A node without the boot mark.
    pub fn bare() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c", SET_UP])
            .env("PORTS", PORTS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the node's namespaces could not be set up");
        Self { holder }
    }

    /// A command inside the node.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--wd=/", "--target", &self.holder.id().to_string(), program]);
        command
    }

    /// A command line inside the node: what it prints. It must succeed.
    pub fn run(&self, line: &str) -> String {
        let output = self.try_run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn try_run(&self, line: &str) -> Output {
        self.command("sh").args(["-c", line]).output().unwrap()
    }

    /// `ip -j`'s answer.
    pub fn ip(&self, arguments: &str) -> Value {
        let text = self.run(&format!("ip -j {arguments}"));
        serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
    }

    pub fn add_pod(&self, name: &str) {
        self.run(&format!("ip netns add {name}"));
    }

    /// The state folder, seen from outside.
    pub fn state(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{STATE_DIR}", self.holder.id())).join(path)
    }

    pub fn write(&self, path: &str, text: &str) {
        std::fs::write(self.state(path), text).unwrap();
    }

    pub fn state_dir(&self) -> PathBuf {
        self.state("")
    }

    /// A call for the pod's `eth0`; the container's ID is the pod's name.
    pub fn call(&self, command: &str, pod: &str) -> Answer {
        self.call_with(command, pod, &conf("1.1.0"))
    }

    pub fn call_with(&self, command: &str, pod: &str, conf: &Value) -> Answer {
        self.call_raw(&environment(command, pod), conf.to_string().as_bytes())
    }

    pub fn call_raw(&self, environment: &[(&str, &str)], stdin: &[u8]) -> Answer {
        // A call that hangs is a failure, of which the runtime would say nothing.
        let mut command = self.command("timeout");
        command.args(["20", PLUGIN]).envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A plugin that ends before it has read everything is no failure of the test.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        let output = child.wait_with_output().unwrap();
        let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.is_empty(), "{error} in the answer {text}");
            Value::Null
        });
        Answer { ok: output.status.success(), json }
    }

    /// What pods have left on the node: links and addresses.
    pub fn leftovers(&self) -> (Vec<String>, Vec<String>) {
        let names = |value: Value| {
            value.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
        };
        let list =
            self.run("ls /run/wg-overlay/ipam/addresses /run/wg-overlay/ipam/holders 2>/dev/null || true");
        let entries =
            list.lines().filter(|line| !line.is_empty() && !line.ends_with(':') || line.contains("eth0"));
        (names(self.ip("link show type veth")), entries.map(str::to_owned).collect())
    }

    pub fn assert_nothing_left(&self) {
        assert_eq!(self.leftovers(), (vec![], vec![]));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// The plugin's configuration as a runtime passes it, in a version of the specification.
pub fn conf(version: &str) -> Value {
    json!({ "cniVersion": version, "name": "wg-overlay", "type": "wg-overlay-cni" })
}

/// `conf` with a key set.
pub fn with(mut conf: Value, key: &str, value: Value) -> Value {
    conf[key] = value;
    conf
}

pub fn netns(pod: &str) -> String {
    format!("/run/netns/{pod}")
}

pub fn environment<'a>(command: &'a str, pod: &'a str) -> Vec<(&'a str, &'a str)> {
    // Leaked on purpose: a few bytes a call, in a test.
    let netns: &'static str = netns(pod).leak();
    vec![
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", pod),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
}
