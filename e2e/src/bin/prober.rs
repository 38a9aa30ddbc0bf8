//! The traffic end of the lab's prober: runs in a pod, sends numbered UDP packets, returns those of
//! others, and answers orders (`report`, `reset`, `stop`) on stdin with one JSON line each.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};

/// Where every prober listens.
const PORT: u16 = 7007;
/// An answer that takes longer counts as lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// A packet: a mark, the target's place in the list, the number.
const MARK: [u8; 4] = *b"wgoP";
const ANSWER: [u8; 4] = *b"wgoA";

/// Sends and counts packets for the lab.
#[derive(Parser)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Probes the targets until stdin ends.
    Run {
        /// Milliseconds between two packets to one target.
        #[arg(long, default_value_t = 10)]
        interval: u64,
        /// UDP payload in bytes.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// Addresses of other probers.
        targets: Vec<IpAddr>,
    },
    /// Takes TCP connections of both families, says so, and ends each at once.
    Listen {
        /// The port.
        port: u16,
    },
    /// Advertises this machine as a router, once (RFC 4861, section 4.2).
    Advertise {
        /// The index of the link.
        link: u32,
    },
    /// Sends one packet.
    Once {
        /// Its source address.
        #[arg(long)]
        from: IpAddr,
        /// Its destination.
        #[arg(long)]
        to: SocketAddr,
    },
}

/// One target's packets. Numbers are never used twice, so an answer from before a reset is known.
struct Flow {
    target: IpAddr,
    next: u64,
    sent: u64,
    received: u64,
    open: BTreeMap<u64, Instant>,
    error: Option<String>,
}

#[derive(Clone)]
struct Probes {
    flows: Arc<Mutex<Vec<Flow>>>,
    sending: Arc<std::sync::atomic::AtomicBool>,
}

fn main() -> Result<()> {
    match Flags::parse().command {
        Command::Run { interval, size, targets } => run(Duration::from_millis(interval), size, &targets),
        Command::Listen { port } => {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("listen")?;
            println!("listening on {port}");
            listener.incoming().try_for_each(|connection| connection.map(drop)).context("accept")
        }
        Command::Advertise { link } => advertise(link),
        Command::Once { from, to } => {
            let socket = UdpSocket::bind((from, 0)).with_context(|| format!("bind to {from}"))?;
            socket.send_to(b"deliberate", to).with_context(|| format!("send to {to}")).map(drop)
        }
    }
}

fn advertise(link: u32) -> Result<()> {
    use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket, sockopt};
    // Type 134, code and checksum (the kernel's affair), hop limit 64, no flags, lifetime 1800 s, two timers unset.
    const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let socket =
        socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).context("open a socket")?;
    // A smaller hop limit came over a router, and is not believed.
    sockopt::set_ipv6_multicast_hops(&socket, 255).context("set the hop limit")?;
    let to = std::net::SocketAddrV6::new(ALL_NODES, 0, 0, link);
    sendto(&socket, &ADVERTISEMENT, SendFlags::empty(), &to).context("send").map(drop)
}

fn run(interval: Duration, size: usize, targets: &[IpAddr]) -> Result<()> {
    let flow = |target: &IpAddr| Flow {
        target: *target,
        next: 0,
        sent: 0,
        received: 0,
        open: BTreeMap::new(),
        error: None,
    };
    let probes = Probes {
        flows: Arc::new(Mutex::new(targets.iter().map(flow).collect())),
        sending: Arc::new(true.into()),
    };
    // One socket for both families: IPv4 goes by mapped addresses.
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).context("listen")?;
    let (receiving, receiver, sender) = (socket.try_clone()?, probes.clone(), probes.clone());
    std::thread::spawn(move || receiver.receive(&receiving));
    std::thread::spawn(move || sender.send(&socket, interval, size.max(16)));
    for order in std::io::stdin().lock().lines() {
        match order?.as_str() {
            "reset" => probes.reset(),
            "stop" => probes.stop(),
            _ => {}
        }
        println!("{}", probes.report());
        std::io::stdout().flush()?;
    }
    Ok(())
}

impl Probes {
    fn flows(&self) -> MutexGuard<'_, Vec<Flow>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, socket: &UdpSocket, interval: Duration, size: usize) {
        let mut due = Instant::now();
        loop {
            if self.sending.load(std::sync::atomic::Ordering::Relaxed) {
                for (place, flow) in self.flows().iter_mut().enumerate() {
                    let packet = packet(place, flow.next, size);
                    let target = match flow.target {
                        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                        IpAddr::V6(v6) => v6,
                    };
                    flow.open.insert(flow.next, Instant::now());
                    flow.next += 1;
                    flow.sent += 1;
                    if let Err(error) = socket.send_to(&packet, (target, PORT)) {
                        flow.error = Some(error.to_string());
                    }
                }
            }
            due = (due + interval).max(Instant::now());
            std::thread::sleep(due.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        }
    }

    fn receive(&self, socket: &UdpSocket) {
        let mut buffer = vec![0; 65536];
        loop {
            // An error is an ICMP message about an earlier packet, which counts as lost anyway.
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            let Some(packet) = buffer.get_mut(..length) else { continue };
            if packet.starts_with(&MARK) {
                packet.iter_mut().zip(ANSWER).for_each(|(byte, mark)| *byte = mark);
                let _lost = socket.send_to(packet, from);
            } else if let Some((place, number)) = parse(packet) {
                let mut flows = self.flows();
                if let Some(flow) = flows.get_mut(place)
                    && flow.open.remove(&number).is_some_and(|sent| sent.elapsed() < PATIENCE)
                {
                    flow.received += 1;
                }
            }
        }
    }

    fn reset(&self) {
        for flow in self.flows().iter_mut() {
            (flow.sent, flow.received, flow.error) = (0, 0, None);
            flow.open.clear();
        }
    }

    /// Stops sending and gives the packets under way their time.
    fn stop(&self) {
        self.sending.store(false, std::sync::atomic::Ordering::Relaxed);
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && self.flows().iter().any(|flow| !flow.open.is_empty()) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn report(&self) -> Value {
        let stopped = !self.sending.load(std::sync::atomic::Ordering::Relaxed);
        self.flows().iter().map(|flow| flow.report(stopped)).collect()
    }
}

impl Flow {
    fn report(&self, stopped: bool) -> Value {
        let lost: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, sent)| stopped || sent.elapsed() >= PATIENCE)
            .map(|(number, _)| *number)
            .collect();
        let (mut longest, mut run, mut before) = (0_u64, 0_u64, None);
        for number in &lost {
            run = if before.is_some_and(|before: u64| before + 1 == *number) { run + 1 } else { 1 };
            longest = longest.max(run);
            before = Some(*number);
        }
        json!({
            "target": self.target, "sent": self.sent, "received": self.received,
            "lost": lost.len(), "longestRun": longest, "error": self.error,
        })
    }
}

fn packet(place: usize, number: u64, size: usize) -> Vec<u8> {
    let place = u32::try_from(place).unwrap_or(u32::MAX);
    let mut packet = [&MARK[..], &place.to_be_bytes(), &number.to_be_bytes()].concat();
    packet.resize(size, 0);
    packet
}

fn parse(packet: &[u8]) -> Option<(usize, u64)> {
    let rest = packet.strip_prefix(&ANSWER)?;
    let (place, rest) = rest.split_first_chunk::<4>()?;
    let (number, _) = rest.split_first_chunk::<8>()?;
    Some((usize::try_from(u32::from_be_bytes(*place)).ok()?, u64::from_be_bytes(*number)))
}
