//! From what the cluster says and the kernel holds to what the kernel should hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use crate::{
    Advertisement, BRIDGE_LINK_LOCAL, ClusterView, DesiredBridge, DesiredDevice, DesiredPeer, DesiredRoute,
    DesiredState, EndpointSource, Firewall, IPV6_MINIMUM_MTU, LocalProblem, NodeRecord, ObservedState,
    PublicKey, Reason, Refusal, Underlay, UnderlayLink,
    conflict::{Evidence, prefixes, settle},
    first_host, overlaps, overlay_mtu,
    prefix::{host_prefix, same_family},
    reach::{Reach, addresses},
    refusal::Claim,
};

/// The seconds between keepalives towards a peer that may lie behind NAT: mappings live 30 s at the shortest
/// in the wild (wg(8), PersistentKeepalive).
const NAT_KEEPALIVE: u16 = 25;

/// What a person configured, as far as decisions depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The pod networks of the whole cluster: nothing outside is believed.
    pub cluster_cidrs: BTreeSet<IpNet>,
    /// Further prefixes that overlay addresses may come from.
    pub overlay_cidrs: BTreeSet<IpNet>,
    /// Prefixes that no PodCIDR may overlap, and what each is: the service range, the API server.
    pub reserved: Vec<(IpNet, String)>,
    /// The port WireGuard listens on.
    pub listen_port: u16,
    /// The overlay's MTU.
    pub mtu: MtuSetting,
    /// The keepalive towards peers.
    pub keepalive: KeepaliveSetting,
    /// Whether pod traffic to the outside takes the node's address.
    pub masquerade: bool,
    /// Outside prefixes that see pod addresses.
    pub non_masquerade: BTreeSet<IpNet>,
    /// Whether pod packets outside the tunnel are dropped.
    pub fail_closed: bool,
}

/// The overlay's MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtuSetting {
    /// The underlay's less [`crate::WIREGUARD_OVERHEAD`].
    Auto,
    /// This many bytes.
    Fixed(u32),
}

/// The keepalive towards peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepaliveSetting {
    /// 25 s where the endpoint is annotated or external, else none.
    Auto,
    /// This many seconds; 0 is none.
    Fixed(u16),
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The name of its Node.
    pub node_name: String,
    /// The public half of its key.
    pub public_key: PublicKey,
    /// The largest MTU that its device can have, in bytes.
    pub max_mtu: u32,
    /// What a person configured.
    pub settings: Settings,
    /// Which Node held which prefix at the last decision; empty at the start.
    pub holders: BTreeMap<IpNet, String>,
}

/// The answers of this node's resolver: addresses by lower-case name, the last good answer where there is none now.
pub type Resolved = BTreeMap<String, Vec<IpAddr>>;

/// What is to be done, and what is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What the kernel should hold.
    pub desired: DesiredState,
    /// What this node says of itself.
    pub advertisement: Advertisement,
    /// The PodCIDRs of this node.
    pub pod_cidrs: Vec<IpNet>,
    /// The Nodes that are not believed, by name.
    pub refusals: BTreeMap<String, Refusal>,
    /// Nodes whose annotated endpoint is a name without an answer, or an address without a route.
    pub unresolved: BTreeMap<String, String>,
    /// Which Node holds which prefix, for the next decision.
    pub holders: BTreeMap<IpNet, String>,
}

/// Decides what the kernel of this node should hold.
///
/// # Errors
/// [`LocalProblem`] where this node can't take part itself; the kernel is then left as it is.
pub fn decide(
    local: &Local,
    cluster: &ClusterView,
    resolved: &Resolved,
    observed: &ObservedState,
) -> Result<Decision, LocalProblem> {
    let own_record =
        cluster.get(&local.node_name).ok_or_else(|| LocalProblem::NoNode(local.node_name.clone()))?;
    let context = Context::new(local, own_record, observed)?;
    let mut refusals = BTreeMap::new();
    let mut claims = Vec::with_capacity(cluster.len());
    for (name, record) in cluster.iter().filter(|(name, _)| **name != local.node_name) {
        match context.claim(name, record) {
            Ok(claim) => claims.push(claim),
            Err(reason) => {
                refusals.insert(name.clone(), Refusal { reason });
            }
        }
    }
    let reach = Reach { settings: &local.settings, underlay: &observed.underlay };
    let records = claims.iter().filter_map(|c| Some((c, cluster.get(&c.node)?)));
    let guarded = records.flat_map(|(claim, record)| reach.guarded(claim, record)).collect();
    let evidence = Evidence { cluster, resolved, reach: &reach, observed, holders: &local.holders };
    let (believed, conflicts) = settle(&context.own, claims, &evidence);
    refusals.extend(conflicts);

    let mut decision = Decision {
        desired: context.desired(guarded),
        advertisement: context.own.advertisement.clone(),
        pod_cidrs: context.own.pod_cidrs.clone(),
        refusals,
        unresolved: BTreeMap::new(),
        holders: context.own.pod_cidrs.iter().map(|net| (*net, local.node_name.clone())).collect(),
    };
    for claim in believed {
        // a perfect copy may be taken for its original: that is no title for what it claims later
        let lasting = |net: &IpNet| !claim.contested || local.holders.get(net) == Some(&claim.node);
        decision.holders.extend(prefixes(&claim).filter(lasting).map(|net| (net, claim.node.clone())));
        let Some(record) = cluster.get(&claim.node) else { continue };
        match reach.endpoint(&claim, record, resolved) {
            Ok(endpoint) => {
                if let (None, Some(spec)) = (endpoint, &claim.advertisement.endpoint) {
                    decision.unresolved.insert(claim.node.clone(), spec.to_string());
                }
                // while a name has no answer, the kernel may still know the way
                let found = observed.peers.get(&claim.key()).and_then(|p| p.endpoint);
                let path = context.path_mtu(&claim, endpoint.map(|(e, _)| e).or(found).map(|e| e.ip()));
                context.add_peer(&claim, endpoint, path, &mut decision.desired);
            }
            Err(reason) => {
                decision.refusals.insert(claim.node, Refusal { reason });
            }
        }
    }
    Ok(decision)
}

/// What holds for every peer.
struct Context<'a> {
    local: &'a Local,
    underlay: &'a Underlay,
    own: Claim,
    mtu: u32,
    ipv6: bool,
}

impl<'a> Context<'a> {
    fn new(local: &'a Local, record: &NodeRecord, observed: &'a ObservedState) -> Result<Self, LocalProblem> {
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
            overlay_ips,
            listen_port: settings.listen_port,
            mtu: Some(mtu),
            endpoint: None,
            persistent_keepalive: None,
        };
        let own = Claim {
            node: local.node_name.clone(),
            created: record.created,
            advertisement,
            pod_cidrs,
            contested: false,
        };
        Ok(Self { local, underlay: &observed.underlay, own, mtu, ipv6 })
    }

    /// What a Node claims, where each part of it may be believed.
    fn claim(&self, name: &str, record: &NodeRecord) -> Result<Claim, Reason> {
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
        let settings = &self.local.settings;
        for ip in &advertisement.overlay_ips {
            let within = |nets: &BTreeSet<IpNet>| nets.iter().any(|net| net.contains(ip));
            // an address of the pod networks comes with the PodCIDR that holds it, never by word alone
            let reserved = settings.reserved.iter().any(|(net, _)| net.contains(ip));
            let extra = within(&settings.overlay_cidrs) && !within(&settings.cluster_cidrs) && !reserved;
            if !extra && !pod_cidrs.iter().any(|net| net.contains(ip)) {
                return Err(Reason::OverlayIpOutside(*ip));
            }
        }
        // a family that this node has no part in is never programmed: no conflict in it counts
        pod_cidrs.retain(|net| self.has_family(&net.network()));
        advertisement.overlay_ips.retain(|ip| self.has_family(ip));
        Ok(Claim {
            node: name.to_owned(),
            created: record.created,
            advertisement,
            pod_cidrs,
            contested: false,
        })
    }

    fn has_family(&self, ip: &IpAddr) -> bool {
        self.own.pod_cidrs.iter().any(|own| same_family(&own.network(), ip))
    }

    fn check_prefix(&self, net: &IpNet) -> Result<(), Reason> {
        let settings = &self.local.settings;
        if !settings.cluster_cidrs.iter().any(|c| c.contains(net)) {
            return Err(Reason::PodCidrOutside(*net));
        }
        // the control plane hands out prefixes of one length a family: this node's own says which
        let own = self.own.pod_cidrs.iter().find(|o| same_family(&o.network(), &net.network()));
        if let Some(own) = own.filter(|own| net.prefix_len() < own.prefix_len()) {
            return Err(Reason::PodCidrTooWide(*net, own.prefix_len()));
        }
        let reserved = settings.reserved.iter().find(|(other, _)| overlaps(other, net));
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
    fn desired(&self, endpoints: BTreeSet<SocketAddr>) -> DesiredState {
        let settings = &self.local.settings;
        let overlay_ips = &self.own.advertisement.overlay_ips;
        let cluster: BTreeSet<IpNet> =
            settings.cluster_cidrs.iter().chain(&settings.overlay_cidrs).copied().collect();
        let gateways = self
            .own
            .pod_cidrs
            .iter()
            .filter_map(|net| first_host(net).and_then(|ip| IpNet::new(ip, net.prefix_len()).ok()));
        DesiredState {
            device: DesiredDevice {
                public_key: self.local.public_key,
                listen_port: settings.listen_port,
                mtu: self.mtu,
                addresses: overlay_ips.iter().map(|ip| host_prefix(*ip)).collect(),
            },
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
                endpoints,
            },
        }
    }

    fn add_peer(
        &self,
        claim: &Claim,
        endpoint: Option<(SocketAddr, EndpointSource)>,
        path: u32,
        desired: &mut DesiredState,
    ) {
        let allowed_ips: BTreeSet<IpNet> = prefixes(claim).collect();
        for net in &allowed_ips {
            let ip = net.network();
            let source = self.own.advertisement.overlay_ips.iter().find(|o| same_family(o, &ip));
            let path = if ip.is_ipv6() { path.max(IPV6_MINIMUM_MTU) } else { path };
            let mtu = (path < self.mtu).then_some(path);
            desired.routes.insert(*net, DesiredRoute { source: source.copied(), mtu });
        }
        let keepalive = match (claim.advertisement.persistent_keepalive, self.local.settings.keepalive) {
            (Some(seconds), _) | (None, KeepaliveSetting::Fixed(seconds)) => seconds,
            (None, KeepaliveSetting::Auto) => {
                let annotated = claim.advertisement.endpoint.is_some();
                let external = matches!(endpoint, Some((_, EndpointSource::External)));
                if annotated || external { NAT_KEEPALIVE } else { 0 }
            }
        };
        let peer = DesiredPeer { node: claim.node.clone(), endpoint, allowed_ips, keepalive };
        desired.peers.insert(claim.key(), peer);
    }

    /// The smallest of this node's MTU, the peer's, and that of the link towards it.
    fn path_mtu(&self, claim: &Claim, endpoint: Option<IpAddr>) -> u32 {
        let link = endpoint.and_then(|ip| self.underlay.link_to(&ip)).map(|l| overlay_mtu(l.mtu, self.ipv6));
        [claim.advertisement.mtu, link].into_iter().flatten().fold(self.mtu, u32::min)
    }
}

/// The link with the node's own InternalIP, else the one of the default route.
pub fn underlay_link<'a>(underlay: &'a Underlay, record: &NodeRecord) -> Option<&'a UnderlayLink> {
    let own = addresses(&record.internal_ips).find_map(|ip| underlay.link_of(&ip));
    own.or_else(|| {
        let default = underlay.routes.iter().filter(|r| r.destination.prefix_len() == 0);
        default.min_by_key(|r| r.metric).and_then(|r| underlay.links.get(&r.link))
    })
}
