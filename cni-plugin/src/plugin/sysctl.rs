//! Settings under /proc/sys/net, which are those of the namespace that the process is in. Read before they are written: a
//! read-only /proc/sys hurts only where something would have to change.

use std::{collections::BTreeSet, fs, io, path::Path};

use super::error::CniError;

const ALL_FORWARDING: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// Lets the host forward the families of its pods, as the bridge plugin does.
pub(crate) fn enable_forwarding(ipv4: bool, ipv6: bool) -> Result<(), CniError> {
    if ipv4 {
        set("/proc/sys/net/ipv4/ip_forward", "1")?;
    }
    if ipv6 && read(ALL_FORWARDING)? != "1" {
        keep_router_advertisements()?;
        set(ALL_FORWARDING, "1")?;
    }
    Ok(())
}

/// A pod's link, before it is set up and gets addresses.
pub(crate) fn prepare_pod_link(ifname: &str, ipv4: bool, ipv6: bool) -> Result<(), CniError> {
    if ipv4 {
        set(&format!("/proc/sys/net/ipv4/conf/{ifname}/accept_redirects"), "0")?;
    }
    if ipv6 {
        // Container runtimes disable IPv6 for a namespace by default.
        for key in ["disable_ipv6", "accept_ra", "accept_redirects"] {
            set(&format!("/proc/sys/net/ipv6/conf/{ifname}/{key}"), "0")?;
        }
        return Ok(());
    }
    // Pods without IPv6 addresses of ours: still nobody on the bridge gives them a route. A kernel without IPv6, or a link
    // with an MTU below 1280, has no such setting.
    let accept_ra = format!("/proc/sys/net/ipv6/conf/{ifname}/accept_ra");
    if Path::new(&accept_ra).exists() { set(&accept_ra, "0") } else { Ok(()) }
}

/// With forwarding on, the kernel drops routes that it learned from router advertisements, unless the link's accept_ra is
/// 2 (`rt6_purge_dflt_routers` of net/ipv6/route.c): the node would lose its default route.
fn keep_router_advertisements() -> Result<(), CniError> {
    let path = "/proc/self/net/ipv6_route";
    let routes =
        fs::read_to_string(path).map_err(|source| CniError::Io { action: format!("read {path}"), source })?;
    for link in advertised(&routes) {
        let accept_ra = format!("/proc/sys/net/ipv6/conf/{link}/accept_ra");
        if read(&accept_ra)? == "1" {
            set(&accept_ra, "2")?;
        }
    }
    Ok(())
}

/// The links that have a route with RTF_ADDRCONF (linux/ipv6_route.h). A line's last two columns are flags and link.
fn advertised(routes: &str) -> BTreeSet<&str> {
    const RTF_ADDRCONF: u32 = 0x0004_0000;
    routes
        .lines()
        .filter_map(|line| {
            let mut columns = line.split_ascii_whitespace().rev();
            let link = columns.next()?;
            let flags = u32::from_str_radix(columns.next()?, 16).ok()?;
            (flags & RTF_ADDRCONF != 0).then_some(link)
        })
        .collect()
}

fn set(path: &str, value: &str) -> Result<(), CniError> {
    if read(path)? == value {
        return Ok(());
    }
    fs::write(path, value)
        .map_err(|source| CniError::Io { action: format!("write {value} to {path}"), source })
}

fn read(path: &str) -> Result<String, CniError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end().to_owned()),
        Err(source) if source.kind() == io::ErrorKind::NotFound && path.contains("/ipv6/") => {
            Err(CniError::Io { action: format!("read {path} (does this kernel have IPv6?)"), source })
        }
        Err(source) => Err(CniError::Io { action: format!("read {path}"), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_with_a_route_from_an_advertisement_are_found() {
        // A node with one default route by advertisement (proto ra), its prefix, a link-local route and a static default.
        let zero = "0".repeat(32);
        let routes = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0\n\
             20010db8000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00440001     eth1\n\
             fe800000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth2\n\
             {zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth3\n\
             torn line\n"
        );
        assert_eq!(advertised(&routes), BTreeSet::from(["eth0", "eth1"]));
        assert_eq!(advertised(""), BTreeSet::new());
    }
}
