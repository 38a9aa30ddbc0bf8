//! The kernel refuses requests for a while: what was left undone is named, and done as soon as they succeed again.

use anyhow::{Result, ensure};
use wg_overlay_e2e::lab::{Node, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::PATIENCE;
use crate::kernel::await_kernel;
use crate::repair::with_patient;

pub fn cases() -> Vec<Case> {
    vec![Case::new("requests_that_fail_are_made_again", &["strace", "wg"], refused)]
}

/// Each with its number, as an error's text ends.
const ERRORS: [(&str, &str); 3] =
    [("EBUSY", "os error 16"), ("ENOBUFS", "os error 105"), ("ENOMEM", "os error 12")];

/// What the agent has to do meanwhile: a device, links, routes, rules, a peer.
const BREAK: &str =
    "ip link del wgo0; ip route flush proto 87; ip -6 route flush proto 87; nft delete table inet wg-overlay";

fn refused() -> Result<()> {
    // No resync comes to help.
    with_patient("1h", |_, mut patient| {
        let node = patient.node;
        for (error, number) in ERRORS {
            let said = failures(node, number);
            let strace = node.fail_agents_requests(error)?;
            node.exec("bash", ["-c", BREAK])?;
            eventually(PATIENCE, &format!("the agent says that {error} keeps it from going on"), || {
                ensure!(failures(node, number) > said, "it has not said so");
                Ok(())
            })?;
            strace.end()?;
            await_kernel(node, &patient.healthy, &format!("{error} on every second request"))?;
            patient.prober.await_flow(PATIENCE)?;
        }
        Ok(())
    })
}

/// How often the log names a problem that ends in this.
fn failures(node: &Node, number: &str) -> usize {
    node.agent_log().lines().filter(|line| line.contains("not converged") && line.contains(number)).count()
}
