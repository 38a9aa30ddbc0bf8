//! What can go wrong on the host, and the usual cause.

use std::io;

use rustix::io::Errno;
use wg_overlay_mesh::{PublicKey, Step};

use crate::{device::DeviceError, nft::NftError};

/// Why the kernel's state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A socket to the kernel did not open.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// A reading failed.
    #[error("cannot read {what} from the kernel{}", hint(.source))]
    Read {
        /// What was read.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A link has one of our names, and is something else.
    #[error("the link {name} is of kind {kind:?}, expected {expected}; rename it, or: ip link delete {name}")]
    ForeignLink {
        /// The link's name.
        name: &'static str,
        /// What it is; empty for hardware.
        kind: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The device is a TUN link without a WireGuard process.
    #[error(
        "the link {name} is a TUN device and nothing answers at {socket}; end its process, or: ip link delete {name}"
    )]
    DeadDevice {
        /// The link's name.
        name: &'static str,
        /// The socket that was tried.
        socket: String,
    },
    /// The firewall could not be read.
    #[error("cannot read the firewall")]
    Firewall(#[source] NftError),
}

impl HostError {
    /// Whether trying again may help without anybody's doing.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Open(source) | Self::Read { source, .. } => is_retryable(source),
            Self::ForeignLink { .. } => false,
            Self::DeadDevice { .. } | Self::Firewall(_) => true,
        }
    }
}

/// Why a step of a plan failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The kernel or the device refused it.
    #[error("cannot {step}{hint}")]
    Refused {
        /// The step in words.
        step: String,
        /// The usual cause of this answer.
        hint: String,
        /// The answer.
        #[source]
        source: io::Error,
    },
    /// No user-space device could be started, or the kernel has none.
    #[error("cannot {step}")]
    Device {
        /// The step in words.
        step: String,
        /// What failed.
        #[source]
        source: DeviceError,
    },
    /// The plan wants a key of which the private half is not here.
    #[error("cannot set the key of {wanted}: the private key here is {}", named(held))]
    WrongKey {
        /// The public key of the plan.
        wanted: PublicKey,
        /// The public halves of the private keys that the host was given.
        held: Vec<PublicKey>,
    },
    /// The firewall refused it.
    #[error("cannot {step}")]
    Firewall {
        /// The step in words.
        step: String,
        /// What failed.
        #[source]
        source: NftError,
    },
}

impl StepError {
    pub(crate) fn refused(step: &Step, source: io::Error) -> Self {
        Self::Refused { step: step.to_string(), hint: hint(&source), source }
    }

    /// Whether the user-space device was asked for and nobody was there.
    pub fn lacks_device(&self) -> bool {
        matches!(self, Self::Device { source: DeviceError::Absent { .. }, .. })
    }

    /// Whether trying again may help without anybody's doing.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { source, .. } => is_retryable(source),
            Self::Device { source, .. } => source.is_retryable(),
            Self::WrongKey { .. } => false,
            Self::Firewall { .. } => true,
        }
    }
}

fn named(held: &[PublicKey]) -> String {
    let held: Vec<String> = held.iter().map(|key| format!("that of {key}")).collect();
    if held.is_empty() { "none".to_owned() } else { held.join(", or ") }
}

fn is_retryable(error: &io::Error) -> bool {
    let lasting =
        [Errno::PERM, Errno::ACCESS, Errno::OPNOTSUPP, Errno::INVAL, Errno::AFNOSUPPORT, Errno::NOSYS];
    Errno::from_io_error(error).is_none_or(|errno| !lasting.contains(&errno))
}

/// The usual cause of an answer, to be appended; empty where none is known.
pub(crate) fn hint(error: &io::Error) -> String {
    let cause = match Errno::from_io_error(error) {
        Some(Errno::PERM) => "the agent needs CAP_NET_ADMIN",
        Some(Errno::ACCESS) => {
            "is IPv6 disabled (net.ipv6.conf.all.disable_ipv6), or the agent without CAP_NET_ADMIN?"
        }
        Some(Errno::OPNOTSUPP) => "this kernel does not have it",
        Some(Errno::EXIST) => "somebody else's is in its place",
        Some(Errno::NODEV) => "the link is gone",
        Some(Errno::NETDOWN) => "the link is down",
        Some(Errno::NOBUFS) => "the kernel's answer was lost",
        _ => return String::new(),
    };
    format!(" ({cause})")
}
