//! The sets of pods' ports, brought up to the pods that are there.
//!
//! The plugin adds a pod's elements; what is here is for those that a replaced table has lost, and for what DEL leaves.

use std::collections::BTreeSet;

use wg_overlay_cni::{PodPort, PortsError, ports, store};

use super::{Nft, NftError, elements::Element};

impl Nft {
    /// Adds what the sets of pods' ports lack, and while no pod is being attached removes what no pod stands behind. Without
    /// the table nothing is done. To be called in the host's network namespace.
    ///
    /// # Errors
    /// The pods' addresses or links can't be read, or the kernel refused.
    pub fn fill_ports(&self) -> Result<(), NftError> {
        // What is there is read before who is there: an ADD reserves, then adds its elements.
        let present = self.kernel().tables.ports();
        let refused = |source| NftError::Kernel { what: "read the sets of pods' ports", source };
        let Some(present) = present.map_err(refused)? else { return Ok(()) };
        // While none is attached, none is attached again under a name that is about to be removed.
        let alone = store(&self.state_dir).try_begin_collection();
        let alone = alone.map_err(|error| NftError::Ports(PortsError::Ipam(error)))?;
        let ports = ports(&self.state_dir).map_err(NftError::Ports)?;
        let sets = ports.iter().flat_map(PodPort::elements);
        let elements = sets.flat_map(|(set, keys)| keys.into_iter().map(move |key| Element::port(set, key)));
        let wanted: BTreeSet<Element> = elements.collect();
        let left_over = if alone.is_some() { &present - &wanted } else { BTreeSet::new() };
        let lacking = &wanted - &present;
        if left_over.is_empty() && lacking.is_empty() {
            return Ok(());
        }
        self.kernel().change(&left_over, &lacking)
    }
}
