//! The traffic end of the prober: runs in a pod, sends numbered UDP packets, returns those of others,
//! and answers orders (`report`, `reset`, `stop`, `targets ADDRESS…`) with one line of JSON each, on
//! stdin or on a TCP port.

mod initiation;
mod probes;

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use probes::Probes;

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
        /// Takes orders on this TCP port, one a connection, and lives on without a stdin.
        #[arg(long)]
        control: Option<u16>,
        /// Milliseconds after which an answer counts as lost.
        #[arg(long, default_value_t = 1000)]
        patience: u64,
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
        /// It looks like a WireGuard handshake initiation, and is none.
        #[arg(long)]
        initiation: bool,
    },
    /// Sends a WireGuard handshake initiation with a node's key, as if the clock were ahead, until it is answered.
    Initiate {
        /// The file of the node's private key.
        #[arg(long)]
        key: PathBuf,
        /// The public key of the peer.
        #[arg(long)]
        peer: String,
        /// The peer's endpoint.
        #[arg(long)]
        to: SocketAddr,
        /// Seconds.
        #[arg(long)]
        ahead: u64,
    },
}

fn main() -> Result<()> {
    match Flags::parse().command {
        Command::Run { control, patience, interval, size, targets } => {
            let patience = Duration::from_millis(patience);
            let probes = Probes::start(&targets, patience, Duration::from_millis(interval), size)?;
            match control {
                None => serve(&probes, std::io::stdin().lines(), std::io::stdout()),
                Some(port) => {
                    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("listen")?;
                    for connection in listener.incoming() {
                        let connection = connection.context("accept")?;
                        if let Err(error) = answer(&probes, &connection) {
                            eprintln!("prober: an order: {error:#}");
                        }
                    }
                    Ok(())
                }
            }
        }
        Command::Listen { port } => {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("listen")?;
            println!("listening on {port}");
            listener.incoming().try_for_each(|connection| connection.map(drop)).context("accept")
        }
        Command::Advertise { link } => advertise(link),
        Command::Once { from, to, initiation } => {
            let socket = UdpSocket::bind((from, 0)).with_context(|| format!("bind to {from}"))?;
            let mut packet = if initiation { vec![0; 148] } else { b"deliberate".to_vec() };
            if let Some(kind) = packet.first_mut().filter(|_| initiation) {
                *kind = 1;
            }
            socket.send_to(&packet, to).with_context(|| format!("send to {to}")).map(drop)
        }
        Command::Initiate { key, peer, to, ahead } => {
            let own = std::fs::read_to_string(&key).with_context(|| format!("read {}", key.display()))?;
            let own = own
                .lines()
                .find_map(|line| line.strip_prefix("private-key "))
                .context("no key in the file")?;
            let socket = UdpSocket::bind((IpAddr::from([0, 0, 0, 0]), 0)).context("open a socket")?;
            let (own, peer) = (initiation::key(own)?, initiation::key(&peer)?);
            initiation::send(&socket, to, own, peer, Duration::from_secs(ahead))
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

fn answer(probes: &Probes, connection: &TcpStream) -> Result<()> {
    // Somebody who connects and says nothing must not keep others waiting.
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    serve(probes, BufReader::new(connection).lines().take(1), connection)
}

fn serve(
    probes: &Probes,
    orders: impl Iterator<Item = std::io::Result<String>>,
    mut to: impl std::io::Write,
) -> Result<()> {
    for order in orders {
        writeln!(to, "{}", probes.obey(&order?)?)?;
        to.flush()?;
    }
    Ok(())
}
