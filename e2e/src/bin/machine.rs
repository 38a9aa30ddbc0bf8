//! Makes a machine of the lab, and enters one: what unshare(1), mount(8) and nsenter(1) do, in one static program. A lab
//! runs hundreds of commands, and under emulation a dynamic program takes a tenth of a second to start.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Write as _, stdout};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::sethostname;

/// A network, mount and UTS namespace of the lab.
#[derive(Parser)]
enum Flags {
    /// Makes one, prints `ready` when everything is in place, and then only holds it.
    Hold {
        /// Its hostname.
        name: String,
    },
    /// Runs a program in one, under this process id.
    Enter {
        /// The process that holds its mounts and hostname; without it these stay.
        #[arg(long)]
        holder: Option<u32>,
        /// Its network; the holder's where none is given.
        #[arg(long, required_unless_present = "holder")]
        net: Option<PathBuf>,
        /// The program with its arguments.
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
}

fn main() -> Result<()> {
    match Flags::parse() {
        Flags::Hold { name } => hold(&name),
        Flags::Enter { holder, net, program } => enter(holder, net, &program),
    }
}

/// `/run`, `/opt` and `/var/lib` are empty and its own, `/etc` is a copy with a machine-id of its own.
fn hold(name: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .context("make namespaces: is this root?")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make the mounts private")?;
    for folder in ["/run", "/opt", "/var/lib"] {
        mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .with_context(|| format!("mount a tmpfs at {folder}"))?;
    }
    copy(Path::new("/etc"), Path::new("/run/.etc")).context("copy /etc")?;
    mount(Some("/run/.etc"), "/etc", none, MsFlags::MS_BIND, none).context("mount the copy of /etc")?;
    for folder in ["/run/netns", "/run/lock", "/opt/cni/bin"] {
        fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    }
    for folder in ["/etc/cni", "/etc/wg-overlay"] {
        let _absent = fs::remove_dir_all(folder);
    }
    fs::create_dir_all("/etc/cni/net.d")?;
    fs::create_dir_all("/etc/wg-overlay")?;
    let _absent = fs::remove_file("/etc/machine-id");
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?.replace('-', "");
    fs::write("/etc/machine-id", id).context("write the machine-id")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)
        .context("mount the sysfs of this network")?;
    sethostname(name).context("set the hostname")?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("start `ip`")?;
    ensure!(up.success(), "ip link set lo up: {up}");
    writeln!(stdout(), "ready")?;
    loop {
        std::thread::park();
    }
}

/// Copies a folder with its modes and symbolic links; sockets and devices stay behind.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, from, to) = (entry.file_type()?, entry.path(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&from, &to)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else if kind.is_file() {
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
    }
    Ok(())
}

fn enter(holder: Option<u32>, net: Option<PathBuf>, program: &[OsString]) -> Result<()> {
    let of = |holder: u32, kind| PathBuf::from(format!("/proc/{holder}/ns/{kind}"));
    let net = net.or_else(|| Some(of(holder?, "net")));
    let files = net.into_iter().map(|file| (file, CloneFlags::CLONE_NEWNET));
    let others = holder.into_iter().flat_map(|holder| {
        [(of(holder, "uts"), CloneFlags::CLONE_NEWUTS), (of(holder, "mnt"), CloneFlags::CLONE_NEWNS)]
    });
    // The paths are those of outside: all are opened before the first is entered.
    let opened = files.chain(others).map(|(path, kind)| {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok((path, file, kind))
    });
    for (path, file, kind) in opened.collect::<Result<Vec<_>>>()? {
        setns(file, kind).with_context(|| format!("enter {}", path.display()))?;
    }
    let (program, arguments) = program.split_first().context("no program")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("start {}", program.display()))
}
