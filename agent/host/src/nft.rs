//! The packets' rules in the kernel: our own nftables table, and our accept rules in the host's firewall chains.
//!
//! What the table says is decided in `wg_overlay_mesh::ruleset`; here it is applied and observed through the `nft`
//! program, whose answers are JSON (libnftables-json(5)). It stands apart from the netlink modules because rules are
//! text: a person reads the same words in `nft list table inet wg-overlay`.

mod host_chain;
mod legacy;
mod program;
mod table;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use thiserror::Error;
use wg_overlay_mesh::{HostChain, HostChainState, ObservedFirewall, Step};

pub use program::ProgramError;

/// The file in the state folder that holds the table as it was last applied.
const RECORD: &str = "nftables.json";

/// The way to the packets' rules of this network namespace.
#[derive(Debug, Clone)]
pub struct Nft {
    record: PathBuf,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedRules {
    /// Our table; `None` where it doesn't exist. Its text is empty where the kernel holds anything but what was applied.
    pub firewall: Option<ObservedFirewall>,
    /// The host's chains that would drop our traffic, or hold a rule of ours.
    pub host_chains: BTreeMap<HostChain, HostChainState>,
    /// What couldn't be seen, and the cure, for a person.
    pub warnings: Vec<String>,
}

/// Why the rules could not be read or changed.
#[derive(Debug, Error)]
pub enum NftError {
    /// A program is missing, or refused.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A program's answer isn't what its manual says.
    #[error("{program} {arguments}: expected {expected}")]
    Answer {
        /// The program.
        program: &'static str,
        /// What it was asked.
        arguments: String,
        /// What it should have answered.
        expected: &'static str,
        /// Where its answer is no JSON.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// The record of the applied table can't be written.
    #[error("can't write {}: it must be a file in a writable folder", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The step changes something else than rules.
    #[error("the step `{0}` changes no packet rules")]
    NotOurs(Box<Step>),
}

impl Nft {
    /// Finds the `nft` program.
    ///
    /// # Errors
    /// It isn't in the PATH, or doesn't run.
    pub fn open(state_dir: &Path) -> Result<Self, NftError> {
        program::run("nft", &["--version"], None)?;
        Ok(Self { record: state_dir.join(RECORD) })
    }

    /// Reads our table and the host's chains. Nothing is written.
    ///
    /// # Errors
    /// `nft` failed or answered what its manual doesn't say. Trouble with a single chain of the host is a warning.
    pub fn observe(&self, listen_port: u16) -> Result<ObservedRules, NftError> {
        let mut found = ObservedRules { firewall: table::observe(&self.record)?, ..ObservedRules::default() };
        host_chain::observe(listen_port, &mut found)?;
        legacy::observe(listen_port, &mut found);
        Ok(found)
    }

    /// Carries out one step.
    ///
    /// # Errors
    /// `nft` refused it, and then nothing has changed; or the record could not be written, and then the next
    /// observation asks for the table again. A step that isn't about rules is refused.
    pub fn apply(&self, step: &Step) -> Result<(), NftError> {
        match step {
            Step::SetFirewall { ruleset, endpoints } => table::set(&self.record, ruleset, endpoints),
            Step::GuardEndpoints { add, remove } => table::change_endpoints(add, remove),
            Step::RemoveFirewall => table::remove(&self.record),
            Step::AllowInHostChain { chain, listen_port } => allow(chain, Some(*listen_port)),
            Step::LeaveHostChain(chain) => allow(chain, None),
            other => Err(NftError::NotOurs(Box::new(other.clone()))),
        }
    }

    /// The table's counters as (packets, bytes), by name; empty where there is no table.
    ///
    /// # Errors
    /// `nft` failed or answered what its manual doesn't say.
    pub fn counters(&self) -> Result<BTreeMap<String, (u64, u64)>, NftError> {
        table::counters()
    }
}

/// Makes our rules of a chain those for this port, or none.
fn allow(chain: &HostChain, listen_port: Option<u16>) -> Result<(), NftError> {
    match chain {
        HostChain::Nft { .. } => host_chain::set(chain, listen_port),
        HostChain::Legacy { ipv6, input } => legacy::set(*ipv6, *input, listen_port),
    }
}

/// An error in one line, with its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
