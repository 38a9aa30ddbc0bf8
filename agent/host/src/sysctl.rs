//! Forwarding: read, and switched on where /proc/sys can be written, as in the plugin or on a plain host.
//!
//! In a pod /proc/sys is read-only, and the host's /proc/sys/net may be mounted writable under [`HOST`]: CAP_NET_ADMIN is
//! enough to write there (net_ctl_permissions, net/sysctl_net.c). Without that, netlink can set a single link's forwarding
//! and reverse-path filtering for IPv4; the rest is reported.
//! Strict filtering would drop what comes by one device while the route back leads into the other, as when a key rotates:
//! both are loose. Whatever a peer may send has a route of ours back.

use std::{collections::BTreeSet, fmt, fs, io, path::Path};

use wg_overlay_mesh::Link;

use crate::{
    links::{self, Ipv4Setting},
    netlink::Netlink,
};

/// Where a pod has the host's /proc/sys/net, as /host/proc/sys/net.
const HOST: &str = "/host";

/// A setting of the kernel that stays wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortcoming {
    /// The setting, as sysctl(8) names it.
    pub sysctl: String,
    /// What it is; `None` where the kernel does not have it.
    pub found: Option<String>,
    /// What it should be.
    pub expected: &'static str,
    /// What does not work so.
    pub consequence: &'static str,
}

impl fmt::Display for Shortcoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sysctl, expected, consequence, .. } = self;
        match &self.found {
            Some(found) => {
                write!(f, "{sysctl} is {found}: {consequence}; on the host: sysctl -w {sysctl}={expected}")
            }
            None => write!(f, "the kernel has no {sysctl}: {consequence}"),
        }
    }
}

/// Whether the kernel has loaded br_netfilter, without which a bridge's own switch has no effect.
pub(crate) fn has_bridge_netfilter() -> bool {
    Path::new("/proc/sys/net/bridge").exists()
}

/// Switches forwarding on where it is off, and strict reverse-path filtering off on our devices. `next` says whether the
/// second one exists. `router_advertised` are the links with a default route from a router.
pub(crate) fn ensure_forwarding(
    netlink: &mut Netlink,
    ipv4: bool,
    ipv6: bool,
    next: bool,
    router_advertised: &BTreeSet<String>,
) -> Vec<Shortcoming> {
    let mut wrong = Vec::new();
    let devices = || std::iter::once(Link::Device).chain(next.then_some(Link::Next));
    if ipv4 {
        wrong.extend(ensure(
            "net.ipv4.conf.all.forwarding",
            "1",
            "answers from outside the cluster do not reach pods",
        ));
        let forwarding = devices().chain([Link::Bridge]);
        wrong.extend(forwarding.filter_map(|link| ensure_link(netlink, link, Ipv4Setting::Forwarding)));
        wrong.extend(devices().filter_map(|link| ensure_link(netlink, link, Ipv4Setting::LooseReversePath)));
    }
    if ipv6 {
        wrong.extend(ensure_ipv6(router_advertised));
    }
    wrong
}

fn ensure_link(netlink: &mut Netlink, link: Link, setting: Ipv4Setting) -> Option<Shortcoming> {
    let (name, expected, consequence) = match setting {
        Ipv4Setting::Forwarding => {
            ("forwarding", "1", "packets of pods that come in by this link are dropped")
        }
        Ipv4Setting::LooseReversePath => {
            ("rp_filter", "2", "packets that come in by this link may be dropped while a node's key rotates")
        }
    };
    let wrong = ensure(&format!("net.ipv4.conf.{link}.{name}"), expected, consequence)?;
    match netlink.execute_one(links::set_ipv4(link, setting)) {
        Ok(()) => None,
        Err(error) => {
            tracing::debug!(%link, %error, "{name} cannot be set by netlink either");
            Some(wrong)
        }
    }
}

/// With forwarding on, the kernel heeds router advertisements only where accept_ra is 2
/// (Documentation/networking/ip-sysctl.rst): a node would lose its default route.
fn ensure_ipv6(router_advertised: &BTreeSet<String>) -> Option<Shortcoming> {
    const ALL: &str = "net.ipv6.conf.all.forwarding";
    const CONSEQUENCE: &str = "no IPv6 packet reaches a pod from another node or leaves one";
    if read(ALL).is_ok_and(|value| value != "0") {
        return None;
    }
    for link in router_advertised {
        let sysctl = format!("net.ipv6.conf.{}.accept_ra", link.replace('.', "/"));
        let wrong = match read(&sysctl).as_deref() {
            Ok("1") => {
                ensure(&sysctl, "2", "forwarding stays off, or this link would lose its default route")
            }
            _ => None,
        };
        if wrong.is_some() {
            return wrong;
        }
    }
    ensure(ALL, "1", CONSEQUENCE)
}

fn ensure(sysctl: &str, expected: &'static str, consequence: &'static str) -> Option<Shortcoming> {
    let found = read(sysctl).ok();
    if found.as_deref() == Some(expected) || write(sysctl, expected).is_ok() {
        return None;
    }
    Some(Shortcoming { sysctl: sysctl.to_owned(), found, expected, consequence })
}

fn read(sysctl: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(sysctl))?.trim().to_owned())
}

fn write(sysctl: &str, value: &str) -> io::Result<()> {
    let path = path(sysctl);
    fs::write(&path, value).or_else(|_| fs::write(format!("{HOST}{path}"), value))
}

/// As sysctl(8) reads a name: dots part it, and a slash stands for a dot within a link's name.
fn path(sysctl: &str) -> String {
    let swapped: String = sysctl
        .chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect();
    format!("/proc/sys/{swapped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_in_a_links_name_is_no_part_of_the_path() {
        assert_eq!(path("net.ipv6.conf.eth0/7.accept_ra"), "/proc/sys/net/ipv6/conf/eth0.7/accept_ra");
    }
}
