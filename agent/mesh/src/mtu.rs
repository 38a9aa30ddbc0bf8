//! How large a packet fits into the tunnel.

/// What a tunnelled packet grows by: IPv6 header 40, UDP 8, WireGuard's data header 16 and tag 16
/// (<https://www.wireguard.com/papers/wireguard.pdf>, section 5.4.6). Over IPv4 it would be 60; 80 holds for both.
pub const WIREGUARD_OVERHEAD: u32 = 80;

/// The smallest MTU a link with IPv6 may have (RFC 8200, section 5).
pub const IPV6_MINIMUM_MTU: u32 = 1280;

/// The smallest MTU every IPv4 host must take (RFC 791, page 13).
const IPV4_MINIMUM_MTU: u32 = 576;

/// The overlay's MTU on an underlay of this MTU. Below the family's minimum the outer packets are fragmented instead.
pub fn overlay_mtu(underlay: u32, ipv6: bool) -> u32 {
    underlay.saturating_sub(WIREGUARD_OVERHEAD).max(if ipv6 { IPV6_MINIMUM_MTU } else { IPV4_MINIMUM_MTU })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_comes_off_and_ipv6_keeps_its_minimum() {
        assert_eq!(overlay_mtu(1500, true), 1420);
        assert_eq!(overlay_mtu(9001, true), 8921);
        assert_eq!(overlay_mtu(1300, true), 1280);
        assert_eq!(overlay_mtu(1300, false), 1220);
        assert_eq!(overlay_mtu(0, false), 576);
    }
}
