//! Address allocation beside host-local: a process a call for both, on ranges that are nearly full or hold much.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wg_overlay_e2e::lab::{helper, run};

use crate::process::{cost, feed, peer};
use crate::report::Findings;
use crate::{Options, each_round};

/// A range with what is held of it.
struct Case {
    row: &'static str,
    prefix: &'static str,
    /// The addresses that host-local is to find held, the first ones that it gives.
    address: fn(u32) -> String,
    held: u32,
    /// Calls for one figure: of 3 free addresses of a /24 each is given in turn, and once in 3 calls the walk is long.
    calls: u32,
}

const CASES: [Case; 2] = [
    Case {
        row: "ipam-24",
        prefix: "10.247.1.0/24",
        address: |n| format!("10.247.1.{}", n + 2),
        held: 250,
        calls: 12,
    },
    Case {
        row: "ipam-64",
        prefix: "fd00:247:0:1::/64",
        address: |n| format!("fd00:247:0:1::{:x}", n + 2),
        held: 10_000,
        calls: 3,
    },
];

/// Measures the rows of `Group::Ipam`.
pub fn measure(options: &Options, findings: &mut Findings) -> Result<()> {
    CASES.iter().try_for_each(|case| measure_case(case, options, findings))
}

fn measure_case(case: &Case, options: &Options, findings: &mut Findings) -> Result<()> {
    // In memory, as /run is: how a disk's file system takes new files is not what is asked.
    let folder = tempfile::tempdir_in("/dev/shm").context("make a folder in /dev/shm")?;
    let (own, theirs) = (folder.path().join("own"), folder.path().join("theirs"));
    let (reserve, host_local) = (helper("reserve")?, peer("host-local")?);
    run(Command::new(&reserve).arg(&own).args([case.prefix, "--fill", &case.held.to_string()]))?;
    fill_host_local(case, &theirs.join("bench"))?;
    let conf = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "host-local",
        "ipam": { "type": "host-local", "dataDir": theirs, "ranges": [[{ "subnet": case.prefix }]] },
    })
    .to_string();
    let call = |verb: &str| {
        let mut command = Command::new(&host_local);
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", "bench")
            .env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", "/run/netns/none").env("CNI_PATH", "/");
        feed(&mut command, conf.as_bytes()).map(drop)
    };
    let measured = each_round(options.rounds, [true, false], |is_ours, cpu: &mut Vec<f64>| {
        let mut total = 0.0;
        for _ in 0..case.calls {
            if is_ours {
                let mut command = Command::new(&reserve);
                command.env_clear().arg(&own).args([case.prefix, "bench"]);
                total += cost(|| feed(&mut command, b"").map(drop))?.cpu;
                release(&own)?;
            } else {
                total += cost(|| call("ADD"))?.cpu;
                call("DEL")?;
            }
        }
        cpu.push(total * 1e3 / f64::from(case.calls));
        Ok(())
    });
    let [ours, theirs] = measured?;
    findings.paired(case.row, &ours, "host-local", &theirs)
}

fn release(folder: &Path) -> Result<()> {
    let holder = "bench:eth0".parse()?;
    let released = wg_overlay_ipam::Store::new(folder).release(&holder)?;
    ensure!(released.is_some(), "nothing was reserved");
    Ok(())
}

/// The folder as host-local leaves it: a file for each address, the last one beside them.
fn fill_host_local(case: &Case, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for n in 0..case.held {
        fs::write(folder.join((case.address)(n)), format!("filled-{n}\r\neth0"))?;
    }
    fs::write(folder.join("last_reserved_ip.0"), (case.address)(case.held - 1))?;
    Ok(())
}
