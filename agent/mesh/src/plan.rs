//! The difference between desired and observed, as an ordered list of steps.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use ipnet::IpNet;

use crate::{
    DesiredDevice, DesiredNext, DesiredPeer, DesiredState, HostChainState, Link, ObservedDevice,
    ObservedNext, ObservedPeer, ObservedState, PORT_RULESET, PeerChange, Plan, PublicKey, Step, Touched,
    ruleset,
};

/// The steps from observed to desired. Empty where nothing differs.
pub fn plan(desired: &DesiredState, observed: &ObservedState) -> Plan {
    plan_touched(desired, observed, &Touched::Everything)
}

/// The same, where peers, routes and the table are known to differ in what was touched at most.
pub fn plan_touched(desired: &DesiredState, observed: &ObservedState, touched: &Touched) -> Plan {
    let mut steps = Vec::new();
    guards(desired, observed, touched, &mut steps);
    links(desired, observed, &mut steps);
    peers(desired, observed, touched, &mut steps);
    if let Some(next) = &desired.next {
        second_device(next, observed.next.as_ref(), &mut steps);
    } else if observed.next.is_some() {
        steps.push(Step::DeleteLink(Link::Next));
    }
    routes(desired, observed, touched, &mut steps);
    steps.sort_by_key(Step::phase); // stable: within a phase the maps' order stays
    Plan { steps }
}

/// The steps that remove everything of ours: the tunnel first, the guards last.
pub fn cleanup(observed: &ObservedState) -> Plan {
    let mut steps = Vec::new();
    steps.extend(observed.routes.keys().map(|p| Step::RemoveRoute(*p)));
    steps.extend(observed.device.iter().map(|_| Step::DeleteLink(Link::Device)));
    steps.extend(observed.next.iter().map(|_| Step::DeleteLink(Link::Next)));
    steps.extend(observed.bridge.iter().map(|_| Step::DeleteLink(Link::Bridge)));
    // a chain that drops may still hold rules of ours, made for an earlier port
    steps.extend(observed.host_chains.keys().map(|c| Step::LeaveHostChain(c.clone())));
    steps.extend(observed.unreachable.iter().map(|p| Step::RemoveUnreachable(*p)));
    steps.extend(observed.port_guard.iter().map(|_| Step::RemovePortGuard));
    steps.extend(observed.firewall.iter().map(|_| Step::RemoveFirewall));
    steps.sort_by_key(Step::phase);
    Plan { steps }
}

fn guards(desired: &DesiredState, observed: &ObservedState, touched: &Touched, steps: &mut Vec<Step>) {
    let wanted = &desired.firewall.endpoints;
    let (add, remove): (BTreeSet<_>, BTreeSet<_>) = match (&observed.firewall, touched) {
        (Some(found), Touched::Only(part)) => {
            let differ = part.endpoints.iter().filter(|e| wanted.contains(e) != found.endpoints.contains(e));
            differ.partition(|e| wanted.contains(e))
        }
        (Some(found), Touched::Everything) if found.ruleset == ruleset(&desired.firewall) => {
            (wanted - &found.endpoints, &found.endpoints - wanted)
        }
        _ => {
            let ruleset = ruleset(&desired.firewall);
            steps.push(Step::SetFirewall { ruleset, endpoints: wanted.clone() });
            Default::default()
        }
    };
    if observed.port_guard.as_deref() != Some(PORT_RULESET) {
        steps.push(Step::SetPortGuard);
    }
    if !add.is_empty() || !remove.is_empty() {
        steps.push(Step::GuardEndpoints { add, remove });
    }
    steps.extend(desired.unreachable.difference(&observed.unreachable).map(|p| Step::AddUnreachable(*p)));
    steps.extend(observed.unreachable.difference(&desired.unreachable).map(|p| Step::RemoveUnreachable(*p)));
    for (chain, state) in &observed.host_chains {
        match state {
            HostChainState::Drops => steps.push(Step::AllowInHostChain {
                chain: chain.clone(),
                listen_port: desired.device.listen_port,
            }),
            HostChainState::Unneeded => steps.push(Step::LeaveHostChain(chain.clone())),
            HostChainState::Allowed => {}
        }
    }
}

fn links(desired: &DesiredState, observed: &ObservedState, steps: &mut Vec<Step>) {
    let bridge = observed.bridge.as_ref();
    device(Link::Device, &desired.device, observed.device.as_ref(), steps);
    let gateways = &desired.bridge.addresses | &observed.addresses_in_use;
    link(
        Link::Bridge,
        (desired.bridge.mtu, &gateways),
        bridge.map(|b| (b.marked, b.up, b.mtu, &b.addresses)),
        steps,
    );
    if bridge.is_none_or(|b| b.netfilter == Some(false)) {
        steps.push(Step::SetBridgeNetfilter);
    }
}

fn device(which: Link, want: &DesiredDevice, found: Option<&ObservedDevice>, steps: &mut Vec<Step>) {
    let as_link = found.map(|d| (d.marked, d.up, d.mtu, &d.addresses));
    link(which, (want.mtu, &want.addresses), as_link, steps);
    if found.and_then(|d| d.public_key) != Some(want.public_key) {
        steps.push(Step::SetKey(which, want.public_key));
    }
    if found.map(|d| d.listen_port) != Some(want.listen_port) {
        steps.push(Step::SetListenPort(which, want.listen_port));
    }
}

fn second_device(next: &DesiredNext, found: Option<&ObservedNext>, steps: &mut Vec<Step>) {
    device(Link::Next, &next.device, found.map(|found| &found.device), steps);
    let kept = found.filter(|found| keeps_peers(&next.device, Some(&found.device)));
    let none = BTreeMap::new();
    let all = |net: &IpNet| next.peers.values().any(|peer| peer.allowed_ips.contains(net));
    compare_peers(Link::Next, &next.peers, kept.map_or(&none, |found| &found.peers), None, all, steps);
}

/// Whether the device's peers outlast this plan: a new key takes them along, a first one too.
fn keeps_peers(want: &DesiredDevice, found: Option<&ObservedDevice>) -> bool {
    found.and_then(|found| found.public_key) == Some(want.public_key)
}

type Wanted<'a> = (u32, &'a BTreeSet<IpNet>);
type Found<'a> = (bool, bool, u32, &'a BTreeSet<IpNet>);

fn link(which: Link, (mtu, wanted): Wanted<'_>, found: Option<Found<'_>>, steps: &mut Vec<Step>) {
    let none = BTreeSet::new();
    let (marked, up, found_mtu, addresses) = found.unwrap_or_else(|| {
        steps.push(Step::CreateLink(which));
        (true, false, 0, &none)
    });
    if !marked {
        steps.push(Step::MarkLink(which));
    }
    if found_mtu != mtu {
        steps.push(Step::SetMtu(which, mtu));
    }
    steps.extend(wanted.difference(addresses).map(|a| Step::AddAddress(which, *a)));
    steps.extend(addresses.difference(wanted).map(|a| Step::RemoveAddress(which, *a)));
    if !up {
        steps.push(Step::SetUp(which));
    }
}

fn peers(desired: &DesiredState, observed: &ObservedState, touched: &Touched, steps: &mut Vec<Step>) {
    // each allowed IP that is wanted has its route
    let wanted = |net: &IpNet| desired.routes.contains_key(net);
    if keeps_peers(&desired.device, observed.device.as_ref()) {
        let part = touched.part().map(|part| &part.peers);
        compare_peers(Link::Device, &desired.peers, &observed.peers, part, wanted, steps);
    } else {
        compare_peers(Link::Device, &desired.peers, &BTreeMap::new(), None, wanted, steps);
    }
}

/// The steps that make a device's peers as desired; `wanted` tells which allowed IPs any of them shall have.
fn compare_peers(
    device: Link,
    desired: &BTreeMap<PublicKey, DesiredPeer>,
    observed: &BTreeMap<PublicKey, ObservedPeer>,
    part: Option<&BTreeSet<PublicKey>>,
    wanted: impl Fn(&IpNet) -> bool,
    steps: &mut Vec<Step>,
) {
    let mut changed = Vec::new();
    let mut freed: BTreeSet<&IpNet> = BTreeSet::new();
    for pair in pairs(desired, observed, part) {
        match pair {
            (key, Some(peer), None) => changed.push((peer, new_peer(device, *key, peer), false)),
            (key, Some(peer), Some(found)) => {
                let gone = || found.allowed_ips.iter().filter(|net| !peer.allowed_ips.contains(net));
                let orphans = gone().any(|net| !wanted(net));
                let change = changed_peer(device, *key, peer, found);
                if orphans {
                    freed.extend(gone());
                }
                if orphans || change.is_some() {
                    changed.push((peer, change.unwrap_or_else(|| untouched(device, *key, peer)), orphans));
                }
            }
            (key, None, _) => steps.push(Step::RemovePeer(device, *key)),
        }
    }
    for (peer, change, orphans) in changed {
        let replace_allowed_ips = orphans.then(|| peer.allowed_ips.to_set());
        // what another peer is about to lose must be taken from it first
        let takes_first = change.add_allowed_ips.iter().any(|net| freed.contains(net));
        if orphans && takes_first {
            let rest = untouched(device, change.public_key, peer);
            steps.push(Step::SetPeer(change));
            steps.push(Step::SetPeer(PeerChange { replace_allowed_ips, ..rest }));
        } else if orphans {
            let add_allowed_ips = BTreeSet::new();
            steps.push(Step::SetPeer(PeerChange { replace_allowed_ips, add_allowed_ips, ..change }));
        } else {
            steps.push(Step::SetPeer(change));
        }
    }
}

fn untouched(device: Link, public_key: PublicKey, peer: &DesiredPeer) -> PeerChange {
    PeerChange {
        device,
        public_key,
        node: peer.node.clone(),
        add: false,
        renew: false,
        endpoint: None,
        add_allowed_ips: BTreeSet::new(),
        replace_allowed_ips: None,
        keepalive: None,
        clear_preshared_key: false,
    }
}

pub(crate) fn new_peer(device: Link, public_key: PublicKey, peer: &DesiredPeer) -> PeerChange {
    PeerChange {
        add: true,
        endpoint: peer.endpoint.map(|(e, _)| e),
        add_allowed_ips: peer.allowed_ips.to_set(),
        keepalive: (peer.keepalive != 0).then_some(peer.keepalive),
        ..untouched(device, public_key, peer)
    }
}

fn changed_peer(
    device: Link,
    public_key: PublicKey,
    peer: &DesiredPeer,
    found: &ObservedPeer,
) -> Option<PeerChange> {
    let endpoint = peer.endpoint.map(|(e, _)| e).filter(|e| endpoint_differs(*e, found));
    let keepalive = (peer.keepalive != found.keepalive).then_some(peer.keepalive);
    let same = endpoint.is_none() && keepalive.is_none() && !found.preshared_key;
    if same && peer.allowed_ips.is_subset(&found.allowed_ips) {
        return None;
    }
    Some(PeerChange {
        endpoint,
        add_allowed_ips: peer.allowed_ips.difference(&found.allowed_ips).copied().collect(),
        keepalive,
        clear_preshared_key: found.preshared_key,
        ..untouched(device, public_key, peer)
    })
}

/// WireGuard roams: what a fresh handshake taught the kernel stays until the advertised endpoint itself changes.
fn endpoint_differs(advertised: SocketAddr, found: &ObservedPeer) -> bool {
    let readvertised = found.written_endpoint.is_some_and(|written| written != advertised);
    found.endpoint != Some(advertised) && (readvertised || !found.has_session())
}

fn routes(desired: &DesiredState, observed: &ObservedState, touched: &Touched, steps: &mut Vec<Step>) {
    let second = second_routes(desired, observed);
    // what a second device carries moves with its sessions
    let part = touched.part().map(|part| &part.prefixes).filter(|_| second.is_none());
    let link = |net: &IpNet| second.as_ref().and_then(|nets| nets.get(net)).copied().unwrap_or(Link::Device);
    for pair in pairs(&desired.routes, &observed.routes, part) {
        match pair {
            (prefix, Some(route), Some(found))
                if found.through == Some(link(prefix))
                    && found.source == route.source
                    && found.mtu == route.mtu => {}
            (prefix, Some(route), _) => steps.push(Step::SetRoute(*prefix, *route, link(prefix))),
            (prefix, None, _) => steps.push(Step::RemoveRoute(*prefix)),
        }
    }
}

/// Which routes lead where, while there is a second device.
fn second_routes(desired: &DesiredState, observed: &ObservedState) -> Option<BTreeMap<IpNet, Link>> {
    let Some(next) = &desired.next else { return observed.next.as_ref().map(|_| BTreeMap::new()) };
    let links = next.pairs.iter().map(|(key, pair)| (key, pair.link(key, desired, observed)));
    let peers = links.filter_map(|(key, link)| Some((next.peers.get(key)?, link)));
    Some(peers.flat_map(|(peer, link)| peer.allowed_ips.iter().map(move |net| (*net, link))).collect())
}

type Compared<'a, K, D, O> = (&'a K, Option<&'a D>, Option<&'a O>);

/// What is desired beside what is observed, by key, where there is either; `part` are the keys to look at.
fn pairs<'a, K: Ord, D, O>(
    desired: &'a BTreeMap<K, D>,
    observed: &'a BTreeMap<K, O>,
    part: Option<&'a BTreeSet<K>>,
) -> Box<dyn Iterator<Item = Compared<'a, K, D, O>> + 'a> {
    if let Some(keys) = part {
        let both = keys.iter().map(|key| (key, desired.get(key), observed.get(key)));
        return Box::new(both.filter(|(_, desired, observed)| desired.is_some() || observed.is_some()));
    }
    let (mut desired, mut observed) = (desired.iter().peekable(), observed.iter().peekable());
    Box::new(std::iter::from_fn(move || {
        let order = match (desired.peek(), observed.peek()) {
            (Some((d, _)), Some((o, _))) => d.cmp(o),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let wanted = if order.is_le() { desired.next() } else { None };
        let found = if order.is_ge() { observed.next() } else { None };
        let key = wanted.map(|(key, _)| key).or(found.map(|(key, _)| key))?;
        Some((key, wanted.map(|(_, d)| d), found.map(|(_, o)| o)))
    }))
}
