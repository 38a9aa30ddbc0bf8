//! Large transfers and large packets between pods of different nodes.

use anyhow::{Result, bail, ensure};
use wg_overlay_e2e::cluster::{Cluster, Pod};
use wg_overlay_e2e::suite::Case;

use crate::common::{cluster, workers};

/// The underlay's 1500 bytes less WireGuard's 80.
const MTU: u64 = 1420;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("a_gibibyte_arrives_as_it_was_sent", &[], transfer),
        Case::new("packets_of_the_overlays_mtu_pass_and_a_byte_more_does_not", &["ping"], edge),
    ]
}

fn two_pods(cluster: &Cluster, name: &str) -> Result<[Pod; 2]> {
    let workers = workers(cluster)?;
    let [one, two, ..] = workers.as_slice() else { bail!("fewer than two workers") };
    let start = |node: &str| Pod::start(cluster, &format!("{name}-{node}"), node, &["pause"]);
    Ok([start(one)?, start(two)?])
}

fn transfer() -> Result<()> {
    let cluster = cluster()?;
    let [one, two] = two_pods(&cluster, "transfer")?;
    // In MiB; in IPv4 one way, in IPv6 the other.
    for (from, to, target, size) in [(&one, &two, two.ips.first(), 1024), (&two, &one, one.ips.last(), 256)] {
        let target = target.cloned().unwrap_or_default();
        to.bash(&format!(
            "cd /tmp; rm -f sum; (nc -l {target} 5001 | sha256sum > new; mv new sum) < /dev/null > /dev/null 2>&1 &"
        ))?;
        cluster.eventually(30, &format!("{} listens", to.name), || to.bash("ss -ltn | grep -q ':5001 '"))?;
        let sent = from.bash(&format!(
            "cd /tmp; dd if=/dev/urandom bs=1M count={size} status=none | tee >(sha256sum > sent) | nc -N {target} 5001
            until [ -s sent ]; do sleep 0.1; done; cat sent"
        ))?;
        let arrived = cluster.eventually(300, "the last byte arrives", || to.bash("cat /tmp/sum"))?;
        ensure!(!sent.is_empty() && sent == arrived, "to {target}: sent {sent}arrived {arrived}");
    }
    Ok(())
}

fn edge() -> Result<()> {
    let cluster = cluster()?;
    let [one, two] = two_pods(&cluster, "edge")?;
    for (from, to) in [(&one, &two), (&two, &one)] {
        for ip in &to.ips {
            let headers = if ip.contains(':') { 48 } else { 28 };
            let probe = |size: u64| {
                from.bash_in_network(&format!("ping -n -c1 -W2 -M do -s {} {ip}", size - headers))
            };
            cluster.eventually(30, &format!("{MTU} bytes from {} to {ip}", from.node), || probe(MTU))?;
            ensure!(probe(MTU + 1).is_err(), "{} bytes passed from {} to {ip}", MTU + 1, from.node);
        }
    }
    Ok(())
}
