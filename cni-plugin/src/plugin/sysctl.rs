//! Settings under /proc/sys/net, which are those of the namespace that the process is in. Read before they are written: a
//! read-only /proc/sys hurts only where something would have to change.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
};

use super::error::CniError;
use crate::netlink::Link;

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
pub(crate) fn prepare_pod_link(link: &Link, ipv4: bool, ipv6: bool) -> Result<(), CniError> {
    let clear = |family: &str, key: &str, value: Option<u32>| match value {
        Some(0) => Ok(()),
        _ => write(&format!("/proc/sys/net/{family}/conf/{}/{key}", link.name), "0"),
    };
    let has = link.settings;
    if ipv4 {
        clear("ipv4", "accept_redirects", has.ipv4_accept_redirects)?;
    }
    if ipv6 {
        // Container runtimes disable IPv6 for a namespace by default.
        clear("ipv6", "disable_ipv6", has.disable_ipv6)?;
        clear("ipv6", "accept_redirects", has.accept_redirects)?;
    }
    // Pods without IPv6 addresses of ours: still nobody on the bridge gives them a route. A kernel without IPv6, or a link
    // with an MTU below 1280, has no such setting.
    if ipv6 || has.accept_ra.is_some() { clear("ipv6", "accept_ra", has.accept_ra) } else { Ok(()) }
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
    if read(path)? == value { Ok(()) } else { write(path, value) }
}

fn write(path: &str, value: &str) -> Result<(), CniError> {
    let file = fs::File::options().write(true).open(path); // to create is refused with another error than "missing"
    file.and_then(|mut file| file.write_all(value.as_bytes())).map_err(|source| failed("write", path, source))
}

fn read(path: &str) -> Result<String, CniError> {
    let text = fs::read_to_string(path).map_err(|source| failed("read", path, source))?;
    Ok(text.trim_end().to_owned())
}

fn failed(what: &str, path: &str, source: io::Error) -> CniError {
    let missing = source.kind() == io::ErrorKind::NotFound && path.contains("/ipv6/");
    let hint = if missing { " (does this kernel have IPv6?)" } else { "" };
    CniError::Io { action: format!("{what} {path}{hint}"), source }
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
