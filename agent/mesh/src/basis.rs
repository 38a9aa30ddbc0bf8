//! What every Node is judged by: this node, what a person configured, and the links beneath.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    Advertisement, BRIDGE_LINK_LOCAL, DesiredBridge, DesiredDevice, DesiredNext, DesiredPeer, DesiredRoute,
    DesiredState, EndpointSource, Firewall, IPV6_MINIMUM_MTU, KeepaliveSetting, Link, Local, LocalProblem,
    MtuSetting, NodeRecord, ObservedState, Pair, PublicKey, ROTATION_KEEPALIVE, Reason, Rotation, Settings,
    Underlay, annotation,
    claim::{Claim, Known, addresses, first_of_each_family},
    decide::underlay_link,
    first_host, next_port, next_socket, overlaps, overlay_mtu,
    prefix::{host_prefix, same_family},
    reach::Reach,
};

/// The seconds between keepalives towards a peer that may lie behind NAT: mappings live 30 s at the shortest
/// in the wild (wg(8), PersistentKeepalive).
const NAT_KEEPALIVE: u16 = 25;

/// What holds for every Node, kept to tell whether it still does.
#[derive(Debug)]
pub(crate) struct Basis {
    public_key: PublicKey,
    next_key: Option<PublicKey>,
    rotation: Option<Rotation>,
    /// How far that has come for its pairs.
    phase: Option<Rotation>,
    max_mtu: u32,
    settings: Settings,
    record: NodeRecord,
    underlay: Underlay,
    /// What this node claims itself.
    pub(crate) own: Claim,
    /// What this node says of itself.
    pub(crate) advertisement: Advertisement,
    /// The PodCIDRs of this node.
    pub(crate) pod_cidrs: Vec<IpNet>,
    mtu: u32,
    ipv6: bool,
}

impl Basis {
    pub(crate) fn new(
        local: &Local,
        record: &NodeRecord,
        observed: &ObservedState,
    ) -> Result<Self, LocalProblem> {
        let settings = &local.settings;
        if settings.cluster_cidrs.is_empty() {
            return Err(LocalProblem::NoClusterCidrs);
        }
        let mut pod_cidrs = Vec::new();
        let mut overlay_ips = BTreeSet::new();
        for text in &record.pod_cidrs {
            let unusable = || LocalProblem::UnusablePodCidr(text.clone());
            let net = text.parse::<IpNet>().map_err(|_| unusable())?.trunc();
            if !settings.cluster_cidrs.iter().any(|c| c.contains(&net)) {
                return Err(LocalProblem::PodCidrOutside(net));
            }
            overlay_ips.insert(first_host(&net).ok_or_else(unusable)?);
            pod_cidrs.push(net);
        }
        if pod_cidrs.is_empty() {
            return Err(LocalProblem::NoPodCidr);
        }
        let ipv6 = pod_cidrs.iter().any(|net| net.network().is_ipv6());
        let mtu = match settings.mtu {
            MtuSetting::Fixed(mtu) => mtu,
            MtuSetting::Auto => {
                let link = underlay_link(&observed.underlay, record).ok_or(LocalProblem::NoUnderlay)?;
                overlay_mtu(link.mtu, ipv6)
            }
        };
        let minimum = overlay_mtu(0, ipv6);
        let mtu = mtu.min(local.max_mtu).max(minimum);
        let advertisement = Advertisement {
            public_key: local.public_key,
            next_key: local.next_key,
            rotation: local.rotation,
            overlay_ips,
            listen_port: settings.listen_port,
            mtu: Some(mtu),
            endpoint: None,
            persistent_keepalive: None,
        };
        let node = Arc::from(local.node_name.as_str());
        Ok(Self {
            public_key: local.public_key,
            next_key: local.next_key,
            rotation: local.rotation,
            phase: phase(local.rotation, record),
            max_mtu: local.max_mtu,
            settings: settings.clone(),
            record: record.clone(),
            underlay: observed.underlay.clone(),
            own: Claim::new(node, record, advertisement.clone(), pod_cidrs.clone()),
            advertisement,
            pod_cidrs,
            mtu,
            ipv6,
        })
    }

    /// Whether it would be the same if it were made anew.
    pub(crate) fn holds(&self, local: &Local, record: &NodeRecord, observed: &ObservedState) -> bool {
        *self.own.node == *local.node_name
            && self.public_key == local.public_key
            && self.next_key == local.next_key
            && self.rotation == local.rotation
            && self.max_mtu == local.max_mtu
            && self.settings == local.settings
            && self.record == *record
            && self.underlay == observed.underlay
    }

    /// The addresses that this node lives at.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        first_of_each_family(addresses(&self.record.internal_ips)).collect()
    }

    /// Whether a link of this node has it.
    fn has_address(&self, ip: &IpAddr) -> bool {
        self.underlay.links.values().any(|link| link.addresses.iter().any(|net| net.addr() == *ip))
    }

    pub(crate) fn reach(&self) -> Reach<'_> {
        Reach { settings: &self.settings, underlay: &self.underlay }
    }

    /// What a Node says, and how much of it may be believed before it is compared with what others say.
    pub(crate) fn read(&self, node: &Arc<str>, record: &NodeRecord) -> Known {
        Known {
            created: record.created,
            addresses: first_of_each_family(addresses(&record.internal_ips)).collect(),
            claim: self.claim(node, record),
        }
    }

    /// What a Node claims, where each part of it may be believed.
    fn claim(&self, node: &Arc<str>, record: &NodeRecord) -> Result<Claim, Reason> {
        let mut advertisement = Advertisement::parse(&record.annotations).map_err(Reason::Annotation)?;
        if record.pod_cidrs.is_empty() {
            return Err(Reason::NoPodCidr);
        }
        let mut pod_cidrs = Vec::with_capacity(record.pod_cidrs.len());
        for text in &record.pod_cidrs {
            let net = text.parse::<IpNet>().map_err(|_| Reason::MalformedPodCidr(text.clone()))?.trunc();
            self.check_prefix(&net)?;
            if let Some(other) = pod_cidrs.iter().find(|other| overlaps(other, &net)) {
                return Err(Reason::PodCidrOverlaps(net, format!("its own {other}")));
            }
            pod_cidrs.push(net);
        }
        for ip in &advertisement.overlay_ips {
            let within = |nets: &BTreeSet<IpNet>| nets.iter().any(|net| net.contains(ip));
            // an address of the pod networks comes with the PodCIDR that holds it, never by word alone
            let reserved = self.settings.reserved.iter().any(|(net, _)| net.contains(ip));
            let extra =
                within(&self.settings.overlay_cidrs) && !within(&self.settings.cluster_cidrs) && !reserved;
            if !extra && !pod_cidrs.iter().any(|net| net.contains(ip)) {
                return Err(Reason::OverlayIpOutside(*ip));
            }
        }
        // a family that this node has no part in is never programmed: no conflict in it counts
        pod_cidrs.retain(|net| self.has_family(&net.network()));
        advertisement.overlay_ips.retain(|ip| self.has_family(ip));
        Ok(Claim::new(node.clone(), record, advertisement, pod_cidrs))
    }

    fn has_family(&self, ip: &IpAddr) -> bool {
        self.pod_cidrs.iter().any(|own| same_family(&own.network(), ip))
    }

    fn check_prefix(&self, net: &IpNet) -> Result<(), Reason> {
        if !self.settings.cluster_cidrs.iter().any(|c| c.contains(net)) {
            return Err(Reason::PodCidrOutside(*net));
        }
        // the control plane hands out prefixes of one length a family: this node's own says which
        let own = self.pod_cidrs.iter().find(|o| same_family(&o.network(), &net.network()));
        if let Some(own) = own.filter(|own| net.prefix_len() < own.prefix_len()) {
            return Err(Reason::PodCidrTooWide(*net, own.prefix_len()));
        }
        let reserved = self.settings.reserved.iter().find(|(other, _)| overlaps(other, net));
        if let Some((other, what)) = reserved {
            return Err(Reason::PodCidrOverlaps(*net, format!("{what} {other}")));
        }
        for link in self.underlay.links.values() {
            if let Some(subnet) = link.addresses.iter().map(IpNet::trunc).find(|s| overlaps(s, net)) {
                return Err(Reason::PodCidrOverlaps(*net, format!("{subnet} on link {}", link.name)));
            }
        }
        Ok(())
    }

    /// The state without peers.
    pub(crate) fn desired(&self, endpoints: BTreeSet<SocketAddr>) -> DesiredState {
        let settings = &self.settings;
        let overlay_ips = &self.advertisement.overlay_ips;
        let cluster: BTreeSet<IpNet> =
            settings.cluster_cidrs.iter().chain(&settings.overlay_cidrs).copied().collect();
        let gateways = self
            .pod_cidrs
            .iter()
            .filter_map(|net| first_host(net).and_then(|ip| IpNet::new(ip, net.prefix_len()).ok()));
        DesiredState {
            device: self.device(self.public_key, settings.listen_port),
            next: self.rotation.and(self.next_device()),
            bridge: DesiredBridge {
                mtu: self.mtu,
                addresses: gateways.chain(self.ipv6.then_some(BRIDGE_LINK_LOCAL)).collect(),
            },
            unreachable: if settings.fail_closed { cluster.clone() } else { BTreeSet::new() },
            peers: BTreeMap::new(),
            routes: BTreeMap::new(),
            firewall: Firewall {
                cluster,
                overlay_ips: overlay_ips.clone(),
                non_masquerade: settings.non_masquerade.clone(),
                masquerade: settings.masquerade,
                fail_closed: settings.fail_closed,
                listen_port: settings.listen_port,
                node_addresses: self.addresses().into_iter().filter(|ip| self.has_address(ip)).collect(),
                endpoints,
            },
        }
    }

    fn device(&self, public_key: PublicKey, listen_port: u16) -> DesiredDevice {
        DesiredDevice {
            public_key,
            listen_port,
            mtu: self.mtu,
            addresses: self.advertisement.overlay_ips.iter().map(|ip| host_prefix(*ip)).collect(),
        }
    }

    /// The second device, without peers.
    pub(crate) fn next_device(&self) -> Option<DesiredNext> {
        let device = self.device(self.next_key?, next_port(self.settings.listen_port));
        Some(DesiredNext { device, peers: BTreeMap::new(), pairs: BTreeMap::new() })
    }

    /// The second key of a Node that this one speaks with by the second device, and how far that has come.
    pub(crate) fn rotation(&self, claim: &Claim) -> Option<(PublicKey, Rotation)> {
        // a Node that says it has a key of ours is believed none
        let foreign = |key: &PublicKey| Some(*key) != self.next_key && *key != self.public_key;
        let key = claim.next_key.filter(foreign)?;
        self.next_key?;
        Some((key, self.phase.into_iter().chain(claim.rotation).min()?))
    }

    /// Whether this node's own key rotates.
    pub(crate) fn rotates(&self) -> bool {
        self.rotation.is_some()
    }

    /// Adds a peer and its routes. While a name has no answer, the kernel may still know the way: `found`.
    /// `next` is what [`Self::rotation`] gave, where no other Node claims that key.
    pub(crate) fn add_peer(
        &self,
        claim: &Claim,
        endpoint: Option<(SocketAddr, EndpointSource)>,
        found: Option<SocketAddr>,
        next: Option<(PublicKey, Rotation)>,
        desired: &mut DesiredState,
    ) {
        let path = self.path_mtu(claim, endpoint.map(|(e, _)| e).or(found).map(|e| e.ip()));
        for net in claim.prefixes() {
            let ip = net.network();
            let source = self.advertisement.overlay_ips.iter().find(|o| same_family(o, &ip));
            let path = if ip.is_ipv6() { path.max(IPV6_MINIMUM_MTU) } else { path };
            let mtu = (path < self.mtu).then_some(path);
            desired.routes.insert(net, DesiredRoute { source: source.copied(), mtu });
        }
        let keepalive = match (claim.keepalive, self.settings.keepalive) {
            (Some(seconds), _) | (None, KeepaliveSetting::Fixed(seconds)) => seconds,
            (None, KeepaliveSetting::Auto) => {
                let external = matches!(endpoint, Some((_, EndpointSource::External)));
                if claim.endpoint.is_some() || external { NAT_KEEPALIVE } else { 0 }
            }
        };
        let allowed_ips = claim.prefixes().collect();
        let mut peer = DesiredPeer { node: claim.node.clone(), endpoint, allowed_ips, keepalive };
        if let Some((key, rotation)) = next {
            let mut other = peer.clone();
            other.endpoint = endpoint.map(|(socket, source)| (next_socket(socket), source));
            let pair = Pair { home: claim.key, rotation, peer: claim.rotation };
            let goal = if pair.goal() == Link::Next { &mut other } else { &mut peer };
            goal.keepalive = ROTATION_KEEPALIVE;
            desired.next = desired.next.take().or_else(|| self.next_device());
            if let Some(next) = &mut desired.next {
                next.peers.insert(key, other);
                next.pairs.insert(key, pair);
            }
        }
        desired.peers.insert(claim.key, peer);
    }

    /// The smallest of this node's MTU, the peer's, and that of the link towards it.
    fn path_mtu(&self, claim: &Claim, endpoint: Option<IpAddr>) -> u32 {
        let link = endpoint.and_then(|ip| self.underlay.link_to(&ip)).map(|l| overlay_mtu(l.mtu, self.ipv6));
        [claim.mtu, link].into_iter().flatten().fold(self.mtu, u32::min)
    }
}

/// How far this node's own rotation has come for its pairs. They move home only once the view shows what this node says of
/// itself: it then shows all that was written before, and so each Node that moved away without knowing of that.
fn phase(rotation: Option<Rotation>, record: &NodeRecord) -> Option<Rotation> {
    let said = record.annotations.get(annotation::ROTATION).and_then(|word| Rotation::parse(word));
    match rotation {
        Some(Rotation::Back) if said != rotation => Some(Rotation::Away),
        rotation => rotation,
    }
}
