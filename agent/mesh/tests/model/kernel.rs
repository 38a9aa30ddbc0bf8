//! A model of the kernel: what each step does to the state, and whether a packet would leave unencrypted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use wg_overlay_mesh::{
    DesiredDevice, DesiredPeer, DesiredState, HostChainState, IPV6_MINIMUM_MTU, Implementation, Link,
    ObservedBridge, ObservedDevice, ObservedFirewall, ObservedNext, ObservedPeer, ObservedRoute,
    ObservedState, PORT_RULESET, PeerChange, Plan, PublicKey, Step, plan, ruleset,
};

type Peers = BTreeMap<PublicKey, ObservedPeer>;

/// Carries a step out as the kernel would.
///
/// # Errors
/// What the kernel would answer with an error: the thing is missing, or there already.
pub fn apply(step: &Step, state: &mut ObservedState) -> Result<(), String> {
    let needs = |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("{step}: {what}")) };
    match step {
        Step::SetFirewall { ruleset, endpoints } => {
            state.firewall =
                Some(ObservedFirewall { ruleset: ruleset.clone(), endpoints: endpoints.clone() });
        }
        Step::GuardEndpoints { add, remove } => {
            let firewall = state.firewall.as_mut().ok_or("no table")?;
            needs(remove.is_subset(&firewall.endpoints), "no such element")?;
            firewall.endpoints = &(&firewall.endpoints - remove) | add;
        }
        Step::SetPortGuard => state.port_guard = Some(PORT_RULESET.to_owned()),
        Step::RemovePortGuard => needs(state.port_guard.take().is_some(), "no table")?,
        Step::AddUnreachable(net) => needs(state.unreachable.insert(*net), "EEXIST")?,
        Step::RemoveUnreachable(net) => needs(state.unreachable.remove(net), "ESRCH")?,
        Step::RemoveFirewall => needs(state.firewall.take().is_some(), "no table")?,
        Step::AllowInHostChain { chain, .. } => {
            state.host_chains.insert(chain.clone(), HostChainState::Allowed);
        }
        Step::LeaveHostChain(chain) => match state.host_chains.remove(chain) {
            Some(HostChainState::Unneeded) | None => {}
            Some(_) => drop(state.host_chains.insert(chain.clone(), HostChainState::Drops)),
        },
        Step::CreateLink(link) => create_link(*link, state).then_some(()).ok_or("EEXIST")?,
        Step::DeleteLink(link) => {
            needs(link_of(*link, state).is_some(), "ENODEV")?;
            delete_link(*link, state);
        }
        Step::MarkLink(link) => *link_of(*link, state).ok_or("ENODEV")?.marked = true,
        Step::SetUp(link) => *link_of(*link, state).ok_or("ENODEV")?.up = true,
        Step::SetMtu(link, mtu) => {
            let found = link_of(*link, state).ok_or("ENODEV")?;
            *found.mtu = *mtu;
            if *mtu < IPV6_MINIMUM_MTU {
                found.addresses.retain(|a| a.addr().is_ipv4());
            }
        }
        Step::AddAddress(link, net) => {
            let found = link_of(*link, state).ok_or("ENODEV")?;
            needs(net.addr().is_ipv4() || *found.mtu >= IPV6_MINIMUM_MTU, "no IPv6 on a link this small")?;
            needs(found.addresses.insert(*net), "EEXIST")?;
        }
        Step::RemoveAddress(link, net) => {
            let found = link_of(*link, state).ok_or("ENODEV")?;
            needs(found.addresses.remove(net), "EADDRNOTAVAIL")?;
            if !is_local(net.addr(), state) {
                state.routes.retain(|_, route| route.source != Some(net.addr())); // fib_sync_down_addr
            }
        }
        Step::SetBridgeNetfilter => {
            let bridge = state.bridge.as_mut().ok_or("ENODEV")?;
            bridge.netfilter = bridge.netfilter.map(|_| true);
        }
        Step::SetKey(link, key) => {
            let (device, peers) = wireguard(*link, state).ok_or("ENODEV")?;
            device.public_key = Some(*key);
            peers.clear();
        }
        Step::SetListenPort(link, port) => {
            wireguard(*link, state).ok_or("ENODEV")?.0.listen_port = *port;
        }
        Step::SetPeer(change) => set_peer(change, state)?,
        Step::RemovePeer(link, key) => {
            let (_, peers) = wireguard(*link, state).ok_or("ENODEV")?;
            peers.remove(key); // no error where there is none
        }
        Step::SetRoute(net, route, link) => {
            needs(wireguard(*link, state).is_some_and(|(d, _)| d.up), "ENETDOWN")?;
            needs(route.source.is_none_or(|ip| is_local(ip, state)), "EINVAL: the source is not local")?;
            let route = ObservedRoute { through: Some(*link), source: route.source, mtu: route.mtu };
            state.routes.insert(*net, route);
        }
        Step::RemoveRoute(net) => needs(state.routes.remove(net).is_some(), "ESRCH")?,
    }
    Ok(())
}

/// Carries all of a plan out.
pub fn apply_all(plan: &Plan, state: &mut ObservedState) {
    for step in &plan.steps {
        apply(step, state).unwrap_or_else(|e| panic!("{e}, in\n{plan}"));
    }
}

/// Plans and carries out.
pub fn converge(desired: &DesiredState, state: &mut ObservedState) {
    apply_all(&plan(desired, state), state);
}

/// The states between the steps, the first and the last among them.
pub fn states(plan: &Plan, start: &ObservedState) -> Vec<ObservedState> {
    let mut states = vec![start.clone()];
    for step in &plan.steps {
        let mut next = states[states.len() - 1].clone();
        apply(step, &mut next).unwrap_or_else(|e| panic!("{e}, in\n{plan}"));
        states.push(next);
    }
    states
}

/// Sets a link down, as a person may: its IPv6 addresses and all routes through it are gone.
pub fn link_down(link: Link, state: &mut ObservedState) {
    let found = link_of(link, state).unwrap();
    *found.up = false;
    found.addresses.retain(|a| a.addr().is_ipv4());
    state.routes.retain(|_, route| route.through != Some(link));
}

/// Deletes a link with all that goes along.
pub fn delete_link(link: Link, state: &mut ObservedState) {
    match link {
        Link::Device => {
            state.device = None;
            state.peers.clear();
        }
        Link::Next => state.next = None,
        Link::Bridge => state.bridge = None,
    }
    state.routes.retain(|_, route| route.through != Some(link));
}

/// A WireGuard device, if its link exists, and its peers.
pub fn wireguard(link: Link, state: &mut ObservedState) -> Option<(&mut ObservedDevice, &mut Peers)> {
    match link {
        Link::Device => state.device.as_mut().map(|device| (device, &mut state.peers)),
        Link::Next => state.next.as_mut().map(|next| (&mut next.device, &mut next.peers)),
        Link::Bridge => None,
    }
}

/// Whose packets are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// A pod: it needs the bridge, and nftables may drop what the routes let out.
    Pod,
    /// The node itself: only routes hold it back.
    Node,
}

/// Whether a packet to this address of the pod networks would leave by the underlay; `guard` are the rules that
/// fail closed.
pub fn leaks(sender: Sender, to: IpAddr, guard: &str, state: &ObservedState) -> bool {
    let guarded = state.firewall.as_ref().is_some_and(|f| f.ruleset == guard);
    if sender == Sender::Pod && (guarded || !state.bridge.as_ref().is_some_and(|b| b.up)) {
        return false;
    }
    let tunnel = state.routes.iter().map(|(net, route)| (*net, route.through.is_none()));
    let bridge = state.bridge.iter().filter(|b| b.up).flat_map(|b| &b.addresses).map(|a| (a.trunc(), false));
    let unreachable = state.unreachable.iter().map(|net| (*net, false));
    // the metric of an unreachable route is the largest: the first of equal length wins
    let mut best = (None, true);
    for (net, leaves) in bridge.chain(tunnel).chain(unreachable).filter(|(net, _)| net.contains(&to)) {
        if best.0.is_none_or(|len| net.prefix_len() > len) {
            best = (Some(net.prefix_len()), leaves);
        }
    }
    best.1
}

/// Asserts, without the help of `plan`, that the kernel holds what is desired.
pub fn assert_holds(state: &ObservedState, desired: &DesiredState, before: &ObservedState) {
    assert_device(state.device.as_ref().unwrap(), &desired.device);
    assert_peers(Link::Device, state, (&desired.peers, &desired.device), before);
    assert_eq!(state.next.is_some(), desired.next.is_some());
    if let (Some(found), Some(next)) = (&state.next, &desired.next) {
        assert_device(&found.device, &next.device);
        assert_peers(Link::Next, state, (&next.peers, &next.device), before);
    }
    let bridge = state.bridge.as_ref().unwrap();
    assert!(bridge.marked && bridge.up && bridge.netfilter != Some(false));
    assert_eq!(bridge.mtu, desired.bridge.mtu);
    assert_eq!(bridge.addresses, &desired.bridge.addresses | &before.addresses_in_use);
    assert_eq!(state.unreachable, desired.unreachable);
    let firewall = state.firewall.as_ref().unwrap();
    assert_eq!(firewall.ruleset, ruleset(&desired.firewall));
    assert_eq!(firewall.endpoints, desired.firewall.endpoints);
    assert_eq!(state.port_guard.as_deref(), Some(PORT_RULESET));
    assert!(state.host_chains.values().all(|s| *s == HostChainState::Allowed));
    for (net, route) in &state.routes {
        let moves = |(_, peer): &(&PublicKey, &DesiredPeer)| peer.allowed_ips.contains(net);
        let peer = desired.next.as_ref().and_then(|next| next.peers.iter().find(moves));
        assert!(route.through == Some(Link::Device) || (route.through == Some(Link::Next) && peer.is_some()));
    }
    let routes = state.routes.iter().map(|(net, r)| (*net, r.source, r.mtu)).collect::<Vec<_>>();
    let wanted = desired.routes.iter().map(|(net, r)| (*net, r.source, r.mtu)).collect::<Vec<_>>();
    assert_eq!(routes, wanted);
}

fn assert_device(device: &ObservedDevice, want: &DesiredDevice) {
    assert!(device.marked && device.up);
    assert_eq!((device.mtu, device.listen_port), (want.mtu, want.listen_port));
    assert_eq!((&device.addresses, device.public_key), (&want.addresses, Some(want.public_key)));
}

fn assert_peers(
    link: Link,
    state: &ObservedState,
    (desired, device): (&BTreeMap<PublicKey, DesiredPeer>, &DesiredDevice),
    before: &ObservedState,
) {
    let (mut state, mut before) = (state.clone(), before.clone());
    let (_, peers) = wireguard(link, &mut state).unwrap();
    let same_key = |(found, _): &(&mut ObservedDevice, _)| found.public_key == Some(device.public_key);
    let kept = wireguard(link, &mut before).filter(same_key).map(|(_, peers)| &*peers);
    assert_eq!(peers.keys().collect::<Vec<_>>(), desired.keys().collect::<Vec<_>>());
    for (key, peer) in peers {
        let want = &desired[key];
        assert_eq!((&peer.allowed_ips, peer.keepalive), (&want.allowed_ips, want.keepalive));
        assert!(!peer.preshared_key);
        let roamed = kept.and_then(|kept| kept.get(key)).and_then(|found| {
            let fresh = found.handshake_age.is_some_and(|age| age.as_secs() < 180);
            let advertised = want.endpoint.map(|(e, _)| e);
            let told = found.written_endpoint.is_none() || found.written_endpoint == advertised;
            (advertised.is_none() || (fresh && told)).then_some(found.endpoint)
        });
        let advertised: Option<SocketAddr> = want.endpoint.map(|(e, _)| e);
        assert_eq!(peer.endpoint, roamed.unwrap_or(advertised), "endpoint of {}", want.node);
    }
}

struct FoundLink<'a> {
    marked: &'a mut bool,
    up: &'a mut bool,
    mtu: &'a mut u32,
    addresses: &'a mut BTreeSet<IpNet>,
}

fn link_of(link: Link, state: &mut ObservedState) -> Option<FoundLink<'_>> {
    match link {
        Link::Device | Link::Next => wireguard(link, state).map(|(d, _)| FoundLink {
            marked: &mut d.marked,
            up: &mut d.up,
            mtu: &mut d.mtu,
            addresses: &mut d.addresses,
        }),
        Link::Bridge => state.bridge.as_mut().map(|b| FoundLink {
            marked: &mut b.marked,
            up: &mut b.up,
            mtu: &mut b.mtu,
            addresses: &mut b.addresses,
        }),
    }
}

fn create_link(link: Link, state: &mut ObservedState) -> bool {
    let (marked, up, addresses) = (true, false, BTreeSet::new());
    let (implementation, mtu, public_key, listen_port) = (Implementation::Kernel, 1420, None, 0);
    let device =
        |addresses| ObservedDevice { implementation, marked, up, mtu, addresses, public_key, listen_port };
    match link {
        Link::Device if state.device.is_none() => state.device = Some(device(addresses)),
        Link::Next if state.next.is_none() => {
            state.next = Some(ObservedNext { device: device(addresses), peers: Peers::new() });
        }
        Link::Bridge if state.bridge.is_none() => {
            let netfilter = Some(false);
            state.bridge = Some(ObservedBridge { marked, up, mtu: 1500, addresses, netfilter });
        }
        _ => return false,
    }
    true
}

fn set_peer(change: &PeerChange, state: &mut ObservedState) -> Result<(), String> {
    let key = change.public_key;
    let (device, peers) = wireguard(change.device, state).ok_or("ENODEV")?;
    if device.public_key == Some(key) {
        return Err(format!("{change}: the device's own key"));
    }
    if change.renew {
        peers.remove(&key).ok_or_else(|| format!("{change}: there is none"))?;
    }
    if change.add == peers.contains_key(&key) {
        return Err(format!("{change}: add says otherwise than the kernel"));
    }
    let nets = change.replace_allowed_ips.as_ref().unwrap_or(&change.add_allowed_ips);
    for other in peers.values_mut() {
        other.allowed_ips = other.allowed_ips.iter().filter(|net| !nets.contains(net)).copied().collect();
    }
    let peer = peers.entry(key).or_default();
    match &change.replace_allowed_ips {
        Some(all) => peer.allowed_ips = all.iter().copied().collect(),
        None => peer.allowed_ips.extend(nets.iter().copied()),
    }
    if let Some(endpoint) = change.endpoint {
        (peer.endpoint, peer.written_endpoint) = (Some(endpoint), Some(endpoint));
    }
    peer.keepalive = change.keepalive.unwrap_or(peer.keepalive);
    peer.preshared_key &= !change.clear_preshared_key;
    Ok(())
}

fn is_local(ip: IpAddr, state: &ObservedState) -> bool {
    let next = state.next.iter().map(|next| &next.device);
    let devices = state.device.iter().chain(next).flat_map(|d| &d.addresses);
    let bridge = state.bridge.iter().flat_map(|b| &b.addresses);
    devices.chain(bridge).any(|a| a.addr() == ip)
}
