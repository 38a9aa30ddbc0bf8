//! A process that runs on while it is measured: its processor time, its memory, and when it has come to rest.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::time::TimeValLike as _;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// The processor time of a process so far, its ended threads included and its children not, in seconds.
///
/// # Errors
/// It has ended.
pub fn cpu_of(pid: u32) -> Result<f64> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?));
    let time = clock.and_then(|clock| clock.now()).with_context(|| format!("the clock of process {pid}"))?;
    Ok(time.num_nanoseconds() as f64 / 1e9)
}

/// That of the children it has waited for (proc_pid_stat(5): cutime and cstime, in ticks of 10 ms), in seconds.
///
/// # Errors
/// It has ended.
pub fn cpu_of_children(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, after_name) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let ticks = after_name.split_whitespace().skip(13).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

/// A field of /proc/PID/status in MiB: `VmRSS`, or `VmHWM`, the most it had since it began.
///
/// # Errors
/// It has ended.
pub fn memory_of(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|text| text.trim().strip_suffix(" kB")).with_context(|| format!("no {field}"))?;
    Ok(kib.parse::<f64>()? / 1024.0)
}

/// The time of both: of itself and of its children that have ended.
pub fn all_cpu_of(pid: u32) -> Result<f64> {
    Ok(cpu_of(pid)? + cpu_of_children(pid)?)
}

/// Waits until a process has used no processor time for so long, and gives what it has used by then.
///
/// # Errors
/// It never rests, or has ended.
pub fn at_rest(pid: u32, quiet: Duration) -> Result<f64> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let (mut last, mut since) = (cpu_of(pid)?, Instant::now());
    while since.elapsed() < quiet {
        ensure!(Instant::now() < deadline, "process {pid} does not come to rest");
        std::thread::sleep(Duration::from_millis(5));
        let now = cpu_of(pid)?;
        if now > last {
            (last, since) = (now, Instant::now());
        }
    }
    all_cpu_of(pid)
}
