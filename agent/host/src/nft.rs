//! The packets' rules in the kernel: our own nftables tables, and our accept rules in the host's firewall chains.
//!
//! What the tables say is decided in `wg_overlay_mesh::ruleset`; here it is applied and observed through the `nft`
//! program, whose answers are JSON (libnftables-json(5)). It stands apart from the netlink modules because rules are
//! text: a person reads the same words in `nft list table inet wg-overlay`.

mod answer;
mod elements;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod host_chain;
mod legacy;
mod nfnetlink;
mod ports;
mod program;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use thiserror::Error;
use wg_overlay_cni::PortsError;
use wg_overlay_mesh::{
    BRIDGE, DEVICE, HostChain, HostChainState, NEXT_DEVICE, ObservedFirewall, PORT_RULESET, Step, TABLE,
};

use self::{elements::Element, nfnetlink::Tables, table::Table};

pub use program::ProgramError;

/// The way to the packets' rules of this network namespace.
#[derive(Debug, Clone)]
pub struct Nft {
    state_dir: PathBuf,
    guards: Table,
    ports: Table,
    port: u32,
    kernel: Arc<Mutex<Kernel>>,
}

/// The kernel's tables, and their generation when they were read last, our own changes of elements counted in.
#[derive(Debug)]
struct Kernel {
    tables: Tables,
    read_at: Option<u32>,
}

/// The links that the host's own firewall must let packets pass by.
const LINKS: [&str; 3] = [BRIDGE, DEVICE, NEXT_DEVICE];

/// Packets and bytes that were counted, by the counter's name.
pub type Counters = BTreeMap<String, (u64, u64)>;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ObservedRules {
    /// Our table; `None` where it doesn't exist. Its text is empty where the kernel holds anything but what was applied.
    pub firewall: Option<ObservedFirewall>,
    /// The text of our table on the bridge's ports, in the same way.
    pub port_guard: Option<String>,
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
        source: io::Error,
    },
    /// The kernel can't be asked, or refused.
    #[error("can't {what}: it takes a kernel with nf_tables, and CAP_NET_ADMIN")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// What pods may send from can't be told.
    #[error("can't tell what pods may send from")]
    Ports(#[source] PortsError),
    /// The step changes something else than rules.
    #[error("the step `{0}` changes no packet rules")]
    NotOurs(Box<Step>),
}

impl Nft {
    /// Finds the `nft` program.
    ///
    /// # Errors
    /// It isn't in the PATH, or doesn't run; or the kernel has no nftables.
    pub fn open(state_dir: &Path) -> Result<Self, NftError> {
        program::run("nft", &["--version"], None)?;
        let tables =
            Tables::open().map_err(|source| NftError::Kernel { what: "open an nftables socket", source })?;
        let (guards, ports) = (Table::guards(state_dir), Table::ports(state_dir));
        let (state_dir, port) = (state_dir.to_owned(), tables.port());
        Ok(Self {
            state_dir,
            guards,
            ports,
            port,
            kernel: Arc::new(Mutex::new(Kernel { tables, read_at: None })),
        })
    }

    /// The port that the kernel names in the events of our own changes of elements.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Reads as [`Nft::observe`] does; `None` where everything is as it was read last, but for our own changes of
    /// elements. The kernel counts transactions of nftables; the legacy iptables are read each time.
    ///
    /// # Errors
    /// As there.
    pub fn observe_changed(&self, listen_port: u16) -> Result<Option<ObservedRules>, NftError> {
        let before = self.kernel().tables.generation().ok();
        if before.is_some() && before == self.kernel().read_at && !legacy::is_in_use() {
            return Ok(None);
        }
        let found = self.observe(listen_port)?;
        let mut kernel = self.kernel();
        let after = kernel.tables.generation().ok();
        kernel.read_at = after.filter(|_| before == after);
        Ok(Some(found))
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads our tables and the host's chains. Nothing is written.
    ///
    /// # Errors
    /// `nft` failed or answered what its manual doesn't say. Trouble with a single chain of the host is a warning.
    pub fn observe(&self, listen_port: u16) -> Result<ObservedRules, NftError> {
        let mut found = ObservedRules::default();
        if let Some(table) = self.guards.observe()? {
            let endpoints = elements::endpoints(&table.elements)?;
            found.firewall = Some(ObservedFirewall { ruleset: table.ruleset, endpoints });
        }
        found.port_guard = self.ports.observe()?.map(|table| table.ruleset);
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
        let generation = || self.kernel().tables.generation().ok();
        match step {
            Step::SetFirewall { ruleset, endpoints } => {
                let elements = elements::endpoint_script(endpoints);
                self.guards.set(ruleset, &elements, &self.counters()?, generation)
            }
            Step::SetPortGuard => {
                let ports = wg_overlay_cni::ports(&self.state_dir).map_err(NftError::Ports)?;
                let elements: String = ports.iter().map(|port| port.script(TABLE)).collect();
                self.ports.set(PORT_RULESET, &elements, &self.counters()?, generation)
            }
            Step::GuardEndpoints { add, remove } => {
                let elements = |of: &BTreeSet<SocketAddr>| of.iter().map(Element::endpoint).collect();
                self.kernel().change(&elements(remove), &elements(add))
            }
            Step::RemovePortGuard => self.ports.remove(),
            Step::RemoveFirewall => self.guards.remove(),
            Step::AllowInHostChain { chain, listen_port } => allow(chain, Some(*listen_port)),
            Step::LeaveHostChain(chain) => allow(chain, None),
            other => Err(NftError::NotOurs(Box::new(other.clone()))),
        }
    }

    /// The tables' counters; empty where there is no table.
    ///
    /// # Errors
    /// The kernel refused to tell.
    pub fn counters(&self) -> Result<Counters, NftError> {
        let found = self.kernel().tables.counters();
        found.map_err(|source| NftError::Kernel { what: "read the counters", source })
    }

    /// The addresses whose handshake initiations this node has not answered, and for how long; those of more than
    /// [`wg_overlay_mesh::UNANSWERED`] begin anew.
    ///
    /// # Errors
    /// The kernel refused to tell.
    pub fn unanswered(&self) -> Result<BTreeMap<IpAddr, Duration>, NftError> {
        let found = self.kernel().tables.unanswered();
        found.map_err(|source| NftError::Kernel { what: "read the sets of handshakes", source })
    }
}

impl Kernel {
    fn change(&mut self, remove: &BTreeSet<Element>, add: &BTreeSet<Element>) -> Result<(), NftError> {
        let before = self.read_at.take();
        let transactions = self
            .tables
            .change(remove, add)
            .map_err(|source| NftError::Kernel { what: "change the sets' elements", source })?;
        // somebody else's are not in it, and then the next look finds another generation
        self.read_at = before.map(|before| before.wrapping_add(transactions));
        Ok(())
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
