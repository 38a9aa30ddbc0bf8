//! Names and marks of the kernel objects that the plugin makes or looks for.

use wg_overlay_ipam::Holder;

/// The bridge that pods hang on. The agent makes it.
pub const BRIDGE: &str = "wgobr0";

/// What every pod link's name on the host begins with.
pub const POD_LINK_PREFIX: &str = "wgp";

/// The nftables table, of family `bridge`, with what pods may send from. The agent makes it.
pub const TABLE: &str = "wg-overlay";

/// A MAC address.
pub type Mac = [u8; 6];

const ALIAS_PREFIX: &str = "wg-overlay:";

/// The host's end of a holder's link: the prefix and 12 hex digits, which with it fill a link's 15 bytes.
pub fn pod_link_name(holder: &Holder) -> String {
    let digits: String = hash(holder).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{POD_LINK_PREFIX}{digits}")
}

/// The MACs of both ends of a holder's link, the host's and the pod's: the link's 12 digits as unicast addresses of the
/// locally administered kind (IEEE 802, section 8), one bit apart. The host's, which no pod can change, tells the pod's.
pub fn pod_link_macs(holder: &Holder) -> (Mac, Mac) {
    let [first, rest @ ..] = hash(holder);
    let [a, b, c, d, e] = rest;
    let end = |bits| [first & 0b1111_1000 | bits, a, b, c, d, e];
    (end(0b110), end(0b010))
}

/// 48 bits of a hash.
fn hash(holder: &Holder) -> [u8; 6] {
    // FNV-1a, because its value is fixed: a later version must find the links of an earlier one.
    let hash = holder.to_string().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [_, _, low @ ..] = (hash ^ (hash >> 48)).to_be_bytes();
    low
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
        assert_eq!(
            pod_link_name(&Holder::new("pod", "eth0").unwrap()),
            "wgp185e35d5b656",
            "as every version names it"
        );
        let (host, pod) = pod_link_macs(&holder);
        assert_eq!((host[0] ^ pod[0], &host[1..]), (0b100, &pod[1..]));
        for foreign in ["", "wg-overlay", "wg-overlay:", "wg-overlay:a", "wg-overlay:/eth0", "other:a/eth0"] {
            assert_eq!(pod_link_owner(foreign), None, "{foreign}");
        }
    }
}
