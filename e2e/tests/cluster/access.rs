//! What the API server does with a pod of each node: exec, logs, port-forward.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use wg_overlay_e2e::cluster::{Cluster, NAMESPACE, Pod};
use wg_overlay_e2e::lab::run;
use wg_overlay_e2e::suite::Case;

use crate::common::{cluster, workers};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("exec_reaches_a_pod_on_every_node", &[], exec),
        Case::new("logs_come_from_a_pod_on_every_node", &[], logs),
        Case::new("port_forward_reaches_a_pod_on_every_node", &["curl"], port_forward),
    ]
}

fn on_every_node(name: &str, body: impl Fn(&Cluster, &Pod) -> Result<()>) -> Result<()> {
    let cluster = cluster()?;
    for node in workers(&cluster)? {
        let pod = Pod::start(&cluster, &format!("{name}-{node}"), &node, &["netexec"])?;
        cluster.eventually(60, &format!("the server in {} says that it started", pod.name), || {
            let said = cluster.kubectl(&["-n", NAMESPACE, "logs", &pod.name])?;
            ensure!(said.contains("Started HTTP server on port 8080"), "{said}");
            Ok(())
        })?;
        body(&cluster, &pod).with_context(|| format!("on {node}"))?;
    }
    Ok(())
}

fn exec() -> Result<()> {
    on_every_node("exec", |_, pod| {
        let said = pod.bash("hostname")?;
        ensure!(said.trim() == pod.name, "{said}");
        Ok(())
    })
}

fn logs() -> Result<()> {
    // Every case here waits for a line of the pod's log.
    on_every_node("logs", |_, _| Ok(()))
}

fn port_forward() -> Result<()> {
    on_every_node("forward", |cluster, pod| {
        let words = ["-n", NAMESPACE, "port-forward", "--address=127.0.0.1", &pod.name, ":8080"];
        let mut command = cluster.kubectl_command(&words);
        // The harness starts kubectl as a child, which ends with the group.
        let mut forward = command.stdout(Stdio::piped()).process_group(0).spawn()?;
        let mut output = BufReader::new(forward.stdout.take().context("no output")?);
        let mut line = String::new();
        let fetched = output.read_line(&mut line).context("read kubectl's output").and_then(|_| {
            let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split_whitespace().next());
            let port = port.with_context(|| format!("kubectl said {line}"))?;
            let url = format!("http://127.0.0.1:{port}/hostname");
            run(cluster.network("cp").command("curl").args(["-sS", "--fail", "--max-time", "30", &url]))
        });
        let group = i32::try_from(forward.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        let _ended = kill_process_group(group, Signal::KILL);
        forward.wait()?;
        let fetched = fetched?;
        ensure!(fetched.trim() == pod.name, "{fetched}");
        Ok(())
    })
}
