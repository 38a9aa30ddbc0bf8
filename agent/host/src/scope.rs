//! Which parts of the kernel's state to read.

/// What to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scope {
    /// Links, addresses and routes.
    pub network: bool,
    /// The nftables table, and the host's own chains.
    pub firewall: bool,
    /// The device's key, port and peers.
    pub wireguard: bool,
}

impl Scope {
    /// Everything.
    pub const ALL: Self = Self { network: true, firewall: true, wireguard: true };
    /// Nothing but what must be read after a failed step.
    pub const NONE: Self = Self { network: false, firewall: false, wireguard: false };
    /// Links, addresses and routes.
    pub const NETWORK: Self = Self { network: true, ..Self::NONE };
    /// The nftables table, and the host's own chains.
    pub const FIREWALL: Self = Self { firewall: true, ..Self::NONE };
    /// The device's key, port and peers.
    pub const WIREGUARD: Self = Self { wireguard: true, ..Self::NONE };

    /// What either reads.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            network: self.network || other.network,
            firewall: self.firewall || other.firewall,
            wireguard: self.wireguard || other.wireguard,
        }
    }
}
