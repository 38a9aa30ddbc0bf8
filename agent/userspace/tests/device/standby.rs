//! Two devices that sleep until they are asked for.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::{Child, ExitCode},
};

use tokio::{process::Command, signal::unix::SignalKind};
use wg_overlay_userspace::{Standby, standby};

use crate::lab::{LINK, Lab, Node, Outcome, Test, eventually, expect};

pub const TESTS: &[Test] = &[
    ("each_of_two_devices_is_asked_for_by_its_name", each_by_its_name),
    ("a_stop_ends_both_devices", a_stop_ends_both),
];

const SECOND: &str = "wgu1";
const SOCKET: &str = "device.sock";

/// Ends it, and its devices with it.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = crate::lab::sh(&format!("kill -TERM {}", self.0.id()));
        let _ = self.0.wait();
    }
}

fn start(node: &Node) -> Outcome<Sleeper> {
    let sleeper = node.this_program("standby", "")?.spawn().map_err(|error| error.to_string())?;
    let sleeper = Sleeper(sleeper);
    eventually("it listens", || ask(node, "what?"))?;
    Ok(sleeper)
}

fn ask(node: &Node, question: &str) -> Outcome<String> {
    let ask = || {
        let mut stream = UnixStream::connect(node.run(SOCKET))?;
        stream.write_all(format!("{question}\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().map_err(|error: std::io::Error| error.to_string())
}

fn links(node: &Node) -> Outcome<String> {
    let links = node.sh("ip -br link show type tun | cut -d' ' -f1 | sort")?;
    Ok(links.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The first goes unnamed with an agent of before.
fn each_by_its_name() -> Outcome {
    let lab = Lab::new(1500)?;
    let _sleeper = start(&lab.a)?;
    for (question, there) in [
        (format!("start mtu=1400 name={SECOND}"), SECOND.to_owned()),
        ("start mtu=1400".to_owned(), format!("{LINK} {SECOND}")),
        (format!("start mtu=1300 name={LINK}"), format!("{LINK} {SECOND}")),
    ] {
        let answer = ask(&lab.a, &question)?;
        expect(answer == "ok\n", &question, answer)?;
        let links = links(&lab.a)?;
        expect(links == there, &there, links)?;
    }
    let mtu = lab.a.sh(&format!("cat /sys/class/net/{LINK}/mtu"));
    expect(mtu.is_ok_and(|mtu| mtu.trim() == "1400"), "the first MTU", ())?;
    for question in ["start mtu=1400 name=eth0", "start name=", "start name=wgu1 mtu=1400"] {
        let answer = ask(&lab.a, question)?;
        expect(answer.starts_with("error: "), "a refusal", answer)?;
    }
    lab.a.sh(&format!("ip link del {SECOND}"))?;
    let again = ask(&lab.a, &format!("start mtu=1400 name={SECOND}"))?;
    expect(again == "ok\n", "another one", again)?;
    let links = links(&lab.a)?;
    expect(links == format!("{LINK} {SECOND}"), "the first beside it", links)
}

fn a_stop_ends_both() -> Outcome {
    let lab = Lab::new(1500)?;
    let sleeper = start(&lab.a)?;
    ask(&lab.a, "start")?;
    ask(&lab.a, &format!("start name={SECOND}"))?;
    drop(sleeper);
    let links = links(&lab.a)?;
    expect(links.is_empty(), "no link", links)
}

/// The role `standby`.
#[tokio::main(flavor = "current_thread")]
pub async fn sleeper() -> ExitCode {
    let run = async {
        let program = std::env::current_exe()?;
        let device = |name: &str, mtu: u16| {
            let mut command = Command::new(&program);
            command.args([name, &mtu.to_string()]).env("WGU_ROLE", "device");
            command
        };
        let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
        let config =
            Standby { names: [LINK, SECOND].map(String::from), socket: format!("/run/{SOCKET}").into() };
        let stopped = async {
            let _stop = terminate.recv().await;
        };
        Ok::<_, Box<dyn std::error::Error>>(standby(config, device, stopped).await?)
    };
    crate::packets::finish(run.await)
}
