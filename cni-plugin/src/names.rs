//! Names and marks of the kernel objects that the plugin makes or looks for.

use wg_overlay_ipam::Holder;

/// The bridge that pods hang on. The agent makes it.
pub const BRIDGE: &str = "wgobr0";

/// What every pod link's name on the host begins with.
pub const POD_LINK_PREFIX: &str = "wgp";

const ALIAS_PREFIX: &str = "wg-overlay:";

/// The host's end of a holder's link: the prefix and 12 hex digits, which with it fill a link's 15 bytes.
pub fn pod_link_name(holder: &Holder) -> String {
    // FNV-1a, because its value is fixed: a later version must find the links of an earlier one.
    let hash = holder.to_string().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{POD_LINK_PREFIX}{:012x}", (hash ^ (hash >> 48)) & 0xffff_ffff_ffff)
}

/// The mark on the host's end of a link that is complete: whose it is.
pub fn pod_link_alias(holder: &Holder) -> String {
    format!("{ALIAS_PREFIX}{}/{}", holder.container_id(), holder.ifname())
}

/// Whose link it is by its mark; `None` if the mark isn't ours.
pub fn pod_link_owner(alias: &str) -> Option<Holder> {
    let (container_id, ifname) = alias.strip_prefix(ALIAS_PREFIX)?.split_once('/')?;
    Holder::new(container_id, ifname).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_its_holder_and_fits_the_kernel() {
        let holder = Holder::new(&"a".repeat(220), "eth0.net1-abcde").unwrap();
        let alias = pod_link_alias(&holder);
        assert_eq!(pod_link_owner(&alias), Some(holder.clone()));
        assert!(alias.len() < 256, "IFALIASZ of linux/if.h");
        assert_eq!(pod_link_name(&holder).len(), 15, "IFNAMSIZ less the NUL");
        for foreign in ["", "wg-overlay", "wg-overlay:", "wg-overlay:a", "wg-overlay:/eth0", "other:a/eth0"] {
            assert_eq!(pod_link_owner(foreign), None, "{foreign}");
        }
    }
}
