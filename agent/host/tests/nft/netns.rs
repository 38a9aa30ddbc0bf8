//! Network namespaces without names, which the kernel takes away with the process; and what arrives in them.

use std::{
    fs::File,
    io::{self, ErrorKind, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    panic::resume_unwind,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::{
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
            sockopt::SendTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};

/// How long anything may take that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing is waited for, where no counter tells that a packet was dropped.
pub const SILENCE: Duration = Duration::from_millis(300);

/// A network namespace.
pub struct Netns(File);

impl Netns {
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let netns = Self(made.join().unwrap());
        netns.sh("ip link set lo up");
        netns
    }

    /// Runs on a thread inside. Sockets and processes that are made there stay there.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                inside()
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs shell lines and gives their output; one that fails is a failure of the test.
    pub fn sh(&self, script: &str) -> String {
        self.run(|| {
            let mut shell = Command::new("sh");
            shell.args(["-e"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = shell.spawn().unwrap();
            child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        })
    }

    pub fn udp(&self, at: &str) -> UdpSocket {
        self.run(|| bound(at, UdpSocket::bind))
    }

    pub fn listen(&self, at: &str) -> TcpListener {
        self.run(|| bound(at, TcpListener::bind))
    }

    /// A TCP connection from this source address; a failure of the test where it isn't accepted in time.
    pub fn tcp(&self, from: &str, to: &str) -> TcpStream {
        let from = SocketAddr::new(ip(from), 0);
        let to: SocketAddr = to.parse().unwrap();
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        self.run(|| {
            let fd = socket(family, SockType::Stream, SockFlag::empty(), None).unwrap();
            setsockopt(&fd, SendTimeout, &TimeVal::seconds(i64::try_from(PATIENCE.as_secs()).unwrap()))
                .unwrap();
            bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
            connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
                .unwrap_or_else(|e| panic!("{from} to {to}: {e}"));
            TcpStream::from(fd)
        })
    }

    /// Sends one datagram from an address of this namespace; `0` ports are the kernel's choice.
    pub fn send(&self, from: &str, to: &str) {
        self.udp(from).send_to(b"probe", to).unwrap();
    }

    /// A name for `ip link … netns`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// A socket that was closed here lives on for a moment in the processes that another test is just starting.
fn bound<T>(at: &str, bind: impl Fn(String) -> io::Result<T>) -> T {
    let start = Instant::now();
    loop {
        match bind(at.to_owned()) {
            Ok(socket) => return socket,
            Err(e) if e.kind() == ErrorKind::AddrInUse && start.elapsed() < PATIENCE => thread::yield_now(),
            Err(e) => panic!("{at}: {e}"),
        }
    }
}

/// What packets arrive at.
pub trait Receiver {
    /// The next packet's source; `None` where none arrives for so long.
    fn source(&self, patience: Duration) -> Option<SocketAddr>;

    /// The source of a packet that must arrive.
    fn expect(&self) -> IpAddr {
        self.source(PATIENCE).expect("the packet arrives").ip()
    }
}

impl Receiver for UdpSocket {
    fn source(&self, patience: Duration) -> Option<SocketAddr> {
        self.set_read_timeout(Some(patience)).unwrap();
        loop {
            match self.recv_from(&mut [0; 64]) {
                Ok((_, from)) => return Some(from),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                Err(e) => panic!("{e}"),
            }
        }
    }
}

/// An address with a port.
pub fn at(ip: &str, port: u16) -> String {
    SocketAddr::new(ip.parse().unwrap(), port).to_string()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
