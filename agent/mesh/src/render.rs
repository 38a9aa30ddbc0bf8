//! A plan in words: the one text of the log, of the dry run and of the golden files.

use std::{collections::BTreeSet, fmt};

use crate::{Link, PeerChange, Plan, Step};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetFirewall { endpoints, .. } => {
                write!(f, "set nftables table inet {}, guarding {} endpoints", crate::TABLE, endpoints.len())
            }
            Self::SetPortGuard => {
                write!(f, "set nftables table bridge {}, guarding pods' ports", crate::TABLE)
            }
            Self::GuardEndpoints { add, remove } => {
                f.write_str("guard endpoints")?;
                signed(f, '+', add)?;
                signed(f, '-', remove)
            }
            Self::AddUnreachable(net) => write!(f, "add unreachable route {net}"),
            Self::AllowInHostChain { chain, .. } => write!(f, "accept our traffic in {chain}"),
            Self::CreateLink(link) => write!(f, "create link {link}"),
            Self::MarkLink(link) => write!(f, "mark link {link} as ours"),
            Self::SetBridgeNetfilter => write!(f, "let bridged packets of {} pass netfilter", crate::BRIDGE),
            Self::SetMtu(link, mtu) => write!(f, "set MTU of {link} to {mtu}"),
            Self::SetKey(link, key) => write!(f, "set key of {link} to that of {}", key.short()),
            Self::SetListenPort(link, port) => write!(f, "set listen port of {link} to {port}"),
            Self::AddAddress(link, net) => write!(f, "add address {net} to {link}"),
            Self::SetUp(link) => write!(f, "set {link} up"),
            Self::SetPeer(change) => change.fmt(f),
            Self::SetRoute(net, route, link) => {
                write!(f, "route {net} into {link}")?;
                route.source.map_or(Ok(()), |ip| write!(f, " from {ip}"))?;
                route.mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
            }
            Self::RemoveRoute(net) => write!(f, "remove route {net}"),
            Self::RemovePeer(link, key) => {
                write!(f, "remove peer {}{}", key.short(), second(*link, "from"))
            }
            Self::RemoveAddress(link, net) => write!(f, "remove address {net} from {link}"),
            Self::DeleteLink(link) => write!(f, "delete link {link}"),
            Self::LeaveHostChain(chain) => write!(f, "take our rules out of {chain}"),
            Self::RemoveUnreachable(net) => write!(f, "remove unreachable route {net}"),
            Self::RemovePortGuard => write!(f, "remove nftables table bridge {}", crate::TABLE),
            Self::RemoveFirewall => write!(f, "remove nftables table inet {}", crate::TABLE),
        }
    }
}

impl fmt::Display for PeerChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, word) = match self.add {
            _ if self.renew => ("renew", "of"),
            true => ("add", "to"),
            false => ("change", "of"),
        };
        let device = second(self.device, word);
        write!(f, "{verb} peer {} ({}){device}", self.node, self.public_key.short())?;
        self.endpoint.map_or(Ok(()), |e| write!(f, ", endpoint {e}"))?;
        match &self.replace_allowed_ips {
            Some(all) => {
                f.write_str(", allowed IPs become")?;
                all.iter().try_for_each(|net| write!(f, " {net}"))?;
            }
            None if !self.add_allowed_ips.is_empty() => {
                f.write_str(", allowed IPs")?;
                signed(f, '+', &self.add_allowed_ips)?;
            }
            None => {}
        }
        self.keepalive.map_or(Ok(()), |seconds| write!(f, ", keepalive {seconds}s"))?;
        if self.clear_preshared_key { f.write_str(", no preshared key") } else { Ok(()) }
    }
}

/// The device, where it isn't the first.
fn second(link: Link, word: &str) -> String {
    if link == Link::Device { String::new() } else { format!(" {word} {link}") }
}

fn signed<T: fmt::Display>(f: &mut fmt::Formatter<'_>, sign: char, items: &BTreeSet<T>) -> fmt::Result {
    items.iter().try_for_each(|item| write!(f, " {sign}{item}"))
}
