//! A host without others: namespaces, a current-thread runtime, an underlay link, and what is wanted of it.
//!
//! ```text
//!   wgobr0 10.244.1.1/24 fd00:244:0:1::1/64     eth0 192.0.2.1/24 2001:db8::1/64 ── (eth1, up, no address)
//!   wgo0   10.244.1.1/32 fd00:244:0:1::1/128
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::Future,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use ipnet::IpNet;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use wg_overlay_host::{Change, DeviceMode, DeviceProgram, Events, Host, HostConfig, PrivateKey, Scope};
use wg_overlay_mesh::{
    DEVICE, DesiredBridge, DesiredDevice, DesiredPeer, DesiredRoute, DesiredState, EndpointSource, Firewall,
    IpNets, NEXT_DEVICE, ObservedPeer, Plan, PublicKey, plan,
};

/// How long anything may take that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(10);
pub const PORT: u16 = 51820;
const STATE: &str = "/run/wg-overlay";

/// Runs a test on a thread of its own network and mount namespaces, with an empty /run.
pub fn isolated(test: fn()) {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
        sh("ip link set lo up; ip link add eth0 type veth peer name eth1; ip link set eth0 up; ip link set eth1 up;
            ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad");
        let _end = Cleanup;
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A user-space device is a process, and ends when its link does.
struct Cleanup;

impl Drop for Cleanup {
    fn drop(&mut self) {
        for link in [DEVICE, NEXT_DEVICE] {
            let _ = Command::new("ip").args(["link", "delete", link]).output();
        }
    }
}

/// Runs shell lines and gives their output; one that fails is a failure of the test. A busybox `sh` has an `ip` of its own.
pub fn sh(script: &str) -> String {
    let output = Command::new("bash").args(["-e", "-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs to the end on a current-thread runtime, as the agent does.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

pub fn device_program() -> DeviceProgram {
    match std::env::var_os("WG_OVERLAY_TEST_DEVICE") {
        Some(program) => {
            DeviceProgram { program: program.into(), arguments: vec!["device".into()], takes_mtu: true }
        }
        None => DeviceProgram {
            program: "wireguard-go".into(),
            arguments: vec!["--foreground".into()],
            takes_mtu: false,
        },
    }
}

pub fn config() -> HostConfig {
    HostConfig {
        state_dir: PathBuf::from(STATE),
        listen_port: PORT,
        device_mode: DeviceMode::Auto,
        device_socket: None,
        device_program: device_program(),
    }
}

/// A host with its desired state: no peers yet.
pub struct Node {
    pub host: Host,
    pub desired: DesiredState,
}

impl Node {
    pub fn new() -> Self {
        fs::create_dir_all(STATE).unwrap();
        let key = PrivateKey::generate();
        let desired = desired(key.public_key());
        let mut host = Host::open(config()).unwrap();
        host.set_private_keys(vec![key]);
        Self { host, desired }
    }

    /// Observes, plans and applies; nothing may fail.
    pub async fn converge(&mut self, scope: Scope) -> Plan {
        let plan = plan(&self.desired, self.host.observe(scope).await.unwrap());
        let failed = self.host.apply_all(&plan.steps).await;
        assert!(failed.is_empty(), "{}", words(&failed));
        plan
    }

    /// What a plan still holds: as our own changes are remembered, and as another agent reads it anew.
    pub async fn assert_converged(&mut self) {
        assert_eq!(plan(&self.desired, self.host.observed()).to_string(), "", "by what is remembered");
        let mut other = Host::open(config()).unwrap();
        let read = other.observe(Scope::ALL).await.unwrap();
        assert_eq!(plan(&self.desired, read).to_string(), "", "by what is read");
        assert_eq!(read.device, self.host.observed().device);
        assert_eq!(read.bridge, self.host.observed().bridge);
        assert_eq!(read.routes, self.host.observed().routes);
        assert_eq!(read.underlay.links, self.host.observed().underlay.links);
        let nets = |peers: &BTreeMap<PublicKey, ObservedPeer>| -> BTreeMap<PublicKey, IpNets> {
            peers.iter().map(|(key, peer)| (*key, peer.allowed_ips.clone())).collect()
        };
        assert_eq!(nets(&other.observed().peers), nets(&self.host.observed().peers));
        let next =
            |host: &Host| host.observed().next.as_ref().map(|next| (next.device.clone(), nets(&next.peers)));
        assert_eq!(next(&other), next(&self.host));
    }

    /// Adds peer number `n` (up to 65,535), with a prefix and a route of each family.
    pub fn add_peer(&mut self, n: u16) -> PublicKey {
        let key = PrivateKey::generate().public_key();
        let nets = [prefix4(n), prefix6(n)];
        let endpoint = SocketAddr::from(([192, 0, 2, 2], 1024 + n % 60_000));
        let peer = DesiredPeer {
            node: format!("node-{n}").into(),
            endpoint: Some((endpoint, EndpointSource::Internal)),
            allowed_ips: nets.into(),
            keepalive: 0,
        };
        self.desired.peers.insert(key, peer);
        self.desired.firewall.endpoints.insert(endpoint);
        for net in nets {
            self.desired.routes.insert(net, route(&net));
        }
        key
    }
}

/// The error chains of failed steps.
pub fn words<T>(failed: &[(T, wg_overlay_host::StepError)]) -> String {
    let chain = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        text
    };
    failed.iter().take(5).map(|(_, error)| chain(error)).collect::<Vec<_>>().join("\n")
}

/// Waits for an event of this kind.
pub async fn expect(events: &mut Events, wanted: Change) {
    let found = async { while events.next().await != wanted {} };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no {wanted:?} came"));
}

pub fn prefix4(n: u16) -> IpNet {
    IpNet::new(Ipv4Addr::from_bits(0x0a80_0000 + (u32::from(n) << 6)).into(), 26).unwrap()
}

pub fn prefix6(n: u16) -> IpNet {
    IpNet::new(Ipv6Addr::from([0xfd00, 0x244, 1, n, 0, 0, 0, 0]).into(), 64).unwrap()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn route(to: &IpNet) -> DesiredRoute {
    let source = if to.addr().is_ipv4() { "10.244.1.1" } else { "fd00:244:0:1::1" };
    DesiredRoute { source: Some(source.parse().unwrap()), mtu: Some(1380) }
}

fn desired(public_key: PublicKey) -> DesiredState {
    let cluster: BTreeSet<IpNet> = [net("10.244.0.0/16"), net("10.128.0.0/10"), net("fd00:244::/32")].into();
    DesiredState {
        device: DesiredDevice {
            public_key,
            listen_port: PORT,
            mtu: 1400,
            addresses: [net("10.244.1.1/32"), net("fd00:244:0:1::1/128")].into(),
        },
        next: None,
        bridge: DesiredBridge {
            mtu: 1400,
            addresses: [net("10.244.1.1/24"), net("fd00:244:0:1::1/64")].into(),
        },
        unreachable: cluster.clone(),
        peers: BTreeMap::new(),
        routes: BTreeMap::new(),
        firewall: Firewall {
            cluster,
            overlay_ips: ["10.244.1.1".parse().unwrap(), "fd00:244:0:1::1".parse().unwrap()].into(),
            non_masquerade: BTreeSet::new(),
            masquerade: true,
            fail_closed: true,
            listen_port: PORT,
            node_addresses: BTreeSet::new(),
            endpoints: BTreeSet::new(),
        },
    }
}
