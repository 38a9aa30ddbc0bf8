//! Counts what became of numbered packets, target by target.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::net::sockopt;
use serde_json::{Value, json};

/// Where every prober listens.
const PORT: u16 = 7007;
/// Bytes; some ten seconds of all packets of a small cluster, as the kernel counts them.
const RECEIVE_BUFFER: usize = 16 << 20;
/// A packet: a mark, the target's place in the list, the number.
const MARK: [u8; 4] = *b"wgoP";
const ANSWER: [u8; 4] = *b"wgoA";

/// One target's packets. Numbers are never used twice, so an answer from before a reset is known.
#[derive(Default)]
struct Flow {
    /// None: no longer probed; its place stays, as packets under way name it.
    target: Option<IpAddr>,
    next: u64,
    sent: u64,
    received: u64,
    open: BTreeMap<u64, Instant>,
    error: Option<String>,
}

/// Packets to all targets, sent and received by threads.
#[derive(Clone)]
pub struct Probes {
    flows: Arc<Mutex<Vec<Flow>>>,
    sending: Arc<AtomicBool>,
    patience: Duration,
}

impl Probes {
    /// Starts to probe: `patience` is how long an answer may take, `size` the UDP payload in bytes.
    pub fn start(targets: &[IpAddr], patience: Duration, interval: Duration, size: usize) -> Result<Self> {
        let sending = Arc::new(AtomicBool::new(true));
        let probes = Self { flows: Arc::default(), sending, patience };
        probes.probe(targets);
        // One socket for both families: IPv4 goes by mapped addresses.
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).context("listen")?;
        // Beyond the host's limit with NET_ADMIN: a prober that waits for a processor must not be what loses.
        if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)
                .context("set the receive buffer")?;
        }
        let (receiving, receiver, sender) = (socket.try_clone()?, probes.clone(), probes.clone());
        std::thread::spawn(move || receiver.receive(&receiving));
        std::thread::spawn(move || sender.send(&socket, interval, size.max(16)));
        Ok(probes)
    }

    /// Carries out one order and reports.
    pub fn obey(&self, order: &str) -> Result<Value> {
        let mut words = order.split_whitespace();
        match words.next() {
            Some("reset") => self.reset(),
            Some("stop") => self.stop(),
            Some("targets") => {
                let targets: Result<Vec<IpAddr>, _> = words.map(str::parse).collect();
                self.probe(&targets.with_context(|| format!("not addresses: {order}"))?);
            }
            _ => {}
        }
        Ok(self.report())
    }

    /// Probes these from now on, and others no longer. What was counted of those that stay, stays.
    fn probe(&self, targets: &[IpAddr]) {
        let mut flows = self.flows();
        for flow in flows.iter_mut().filter(|flow| flow.target.is_some_and(|own| !targets.contains(&own))) {
            flow.target = None;
            flow.open.clear();
        }
        for target in targets {
            if !flows.iter().any(|flow| flow.target == Some(*target)) {
                flows.push(Flow { target: Some(*target), ..Flow::default() });
            }
        }
    }

    fn flows(&self) -> MutexGuard<'_, Vec<Flow>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, socket: &UdpSocket, interval: Duration, size: usize) {
        let mut due = Instant::now();
        loop {
            if self.sending.load(Ordering::Relaxed) {
                for (place, flow) in self.flows().iter_mut().enumerate() {
                    let target = match flow.target {
                        None => continue,
                        Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped(),
                        Some(IpAddr::V6(v6)) => v6,
                    };
                    let packet = packet(place, flow.next, size);
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
                    && flow.open.remove(&number).is_some_and(|sent| sent.elapsed() < self.patience)
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
        self.sending.store(false, Ordering::Relaxed);
        let end = Instant::now() + self.patience;
        while Instant::now() < end && self.flows().iter().any(|flow| !flow.open.is_empty()) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn report(&self) -> Value {
        let stopped = !self.sending.load(Ordering::Relaxed);
        let flows = self.flows();
        let probed = flows.iter().filter(|flow| flow.target.is_some());
        probed.map(|flow| flow.report(if stopped { Duration::ZERO } else { self.patience })).collect()
    }
}

impl Flow {
    /// Lost is what has been without an answer for `patience`.
    fn report(&self, patience: Duration) -> Value {
        let lost: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, sent)| sent.elapsed() >= patience)
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
