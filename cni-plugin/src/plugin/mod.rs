//! One call of the plugin: parameters and configuration in, a result or an error on stdout.
//!
//! Holds the protocol (the CNI specification 1.1.0 and its older versions); each command's work is below.

mod add;
mod call;
mod check;
mod conf;
mod error;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod link;
mod log;
mod netns;
mod port_guard;
mod result;
mod sysctl;

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use serde::Serialize;
use serde_json::{Value, json};
use wg_overlay_ipam::Holder;

use self::{
    call::Call,
    conf::{DEFAULT_STATE_DIR, LATEST_VERSION, NetConf, SUPPORTED_VERSIONS},
    error::CniError,
};
use crate::{
    BRIDGE, Collection, Network, collect,
    names::{pod_link_alias, pod_link_name},
    netlink::Netlink,
    store,
};

/// Runs the command that the environment names. An error goes to stdout as the specification has it, and into the log.
pub fn run() -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_none() {
        eprintln!(
            "wg-overlay-cni {}: a CNI plugin, run by a container runtime\nCNI protocol versions supported: {}",
            env!("CARGO_PKG_VERSION"),
            SUPPORTED_VERSIONS.join(", ")
        );
        return ExitCode::SUCCESS;
    }
    let mut conf = None;
    let Err(error) = call(&mut conf) else { return ExitCode::SUCCESS };
    let version = conf.as_ref().map_or(LATEST_VERSION, |conf| &conf.cni_version);
    let failure = error.to_json(version);
    log::append(conf.as_ref().map_or(Path::new(DEFAULT_STATE_DIR), |conf| &conf.state_dir), &failure);
    let _ = print(&failure);
    ExitCode::FAILURE
}

/// In the order of the CNI project's own skeleton: environment, stdin, then the version.
fn call(parsed: &mut Option<NetConf>) -> Result<(), CniError> {
    let call = Call::read(std::env::var_os)?;
    let stdin = conf::read_stdin()?;
    if call == Call::Version {
        return version(&stdin);
    }
    let conf = parsed.insert(NetConf::parse(&stdin)?);
    match call {
        Call::Add { holder, netns } => add::add(conf, &holder, &netns),
        Call::Del { holder } => del(conf, &holder),
        Call::Check { holder, netns } => {
            conf.at_least("0.4.0", "CHECK")?;
            check::check(conf, &holder, &netns)
        }
        Call::Gc => {
            conf.at_least("1.1.0", "GC")?;
            gc(conf)
        }
        Call::Status => {
            conf.at_least("1.1.0", "STATUS")?;
            status(conf).map_err(|error| CniError::Unavailable(Box::new(error)))
        }
        Call::Version => Ok(()),
    }
}

/// Never fails over what is missing: the namespace, the link, the reservation, the boot mark.
fn del(conf: &NetConf, holder: &Holder) -> Result<(), CniError> {
    let store = store(&conf.state_dir);
    let reserved = store.get(holder).map_err(CniError::Ipam)?.is_some();
    // The link first: its address must not be another's while it is still in use.
    link::delete(&mut Netlink::open()?, &pod_link_name(holder), &pod_link_alias(holder), reserved)?;
    store.release(holder).map(drop).map_err(CniError::Ipam)
}

/// Without a list, no attachment is valid: that is how runtimes ask for all to be removed.
fn gc(conf: &NetConf) -> Result<(), CniError> {
    let valid = conf.valid_attachments.iter().flatten();
    // A name that can't be ours names none of ours.
    let keep: BTreeSet<Holder> = valid
        .filter_map(|attachment| Holder::new(&attachment.container_id, &attachment.ifname).ok())
        .collect();
    match collect(&conf.state_dir, Some(&keep)).map_err(CniError::Collect)? {
        Collection::Busy => Err(CniError::CollectionBusy),
        Collection::Done(_) => Ok(()),
    }
}

fn status(conf: &NetConf) -> Result<(), CniError> {
    Network::read(&conf.state_dir)?;
    Netlink::open()?.link(BRIDGE)?.map(drop).ok_or(CniError::NoBridge)
}

/// Echoes the version on stdin as the specification says, and like the skeleton does without one.
fn version(stdin: &[u8]) -> Result<(), CniError> {
    let asked = serde_json::from_slice::<Value>(stdin).ok();
    let version =
        asked.as_ref().and_then(|object| object.get("cniVersion")?.as_str()).unwrap_or(LATEST_VERSION);
    print(&json!({ "cniVersion": version, "supportedVersions": SUPPORTED_VERSIONS }))
}

/// In one piece: stdout would look through each part for the end of a line.
fn print(answer: &impl Serialize) -> Result<(), CniError> {
    let failed = |source| CniError::Io { action: "write the answer to stdout".to_owned(), source };
    let mut text = serde_json::to_vec(answer).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&text).and_then(|()| stdout.flush()).map_err(failed)
}
