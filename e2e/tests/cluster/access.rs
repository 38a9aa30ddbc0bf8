//! What the API server does with a pod of each node: exec, logs, port-forward.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use wg_overlay_e2e::cluster::{Cluster, NAMESPACE, Pod};
use wg_overlay_e2e::lab::run;
use wg_overlay_e2e::suite::Case;

use crate::common::{cluster, workers};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("exec_reaches_a_pod_on_every_node", &[], exec),
        Case::new("logs_come_from_a_pod_on_every_node", &[], logs),
        Case::new("port_forward_reaches_a_pod_on_every_node", &["timeout"], port_forward),
    ]
}

fn on_every_node(name: &str, body: impl Fn(&Cluster, &Pod) -> Result<()>) -> Result<()> {
    let cluster = cluster()?;
    for node in workers(&cluster)? {
        let pod = Pod::start(&cluster, &format!("{name}-{node}"), &node, &["netexec"])?;
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
    on_every_node("logs", |cluster, pod| {
        let said = cluster.kubectl(&["-n", NAMESPACE, "logs", &pod.name])?;
        ensure!(said.contains("Started HTTP server on port 8080"), "{said}");
        Ok(())
    })
}

fn port_forward() -> Result<()> {
    on_every_node("forward", |cluster, pod| {
        let words = ["-n", NAMESPACE, "port-forward", "--address=127.0.0.1", &pod.name, ":8080"];
        let mut forward = cluster.kubectl_command(&words).stdout(Stdio::piped()).spawn()?;
        let fetched = forward.stdout.take().context("no output").and_then(|output| {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line)?;
            let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split_whitespace().next());
            let port = port.with_context(|| format!("kubectl said {line}"))?;
            // kubectl resets the connection behind the answer.
            let script = format!(
                "exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3 || true"
            );
            run(cluster.network("cp").command("timeout").args(["30", "bash", "-c", &script]))
        });
        let _ended = forward.kill();
        forward.wait()?;
        let fetched = fetched?;
        ensure!(fetched.ends_with(&pod.name), "{fetched}");
        Ok(())
    })
}
