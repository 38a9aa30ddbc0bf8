//! The plugin killed before and after each of its system calls: the next collection leaves nothing of it.

use std::{
    io::Write,
    process::{Child, Stdio},
};

use libtest_mimic::Failed;
use nix::{
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde_json::json;

use crate::Test;
use crate::lab::{Lab, PLUGIN, conf, environment, with};

pub const TESTS: &[Test] = &[
    ("add_killed_around_any_system_call_leaks_nothing", add),
    ("del_killed_around_any_system_call_leaks_nothing", || removal("DEL")),
    ("gc_killed_around_any_system_call_leaks_nothing", || removal("GC")),
    ("a_collection_at_any_moment_of_an_add_takes_nothing_of_it", collection),
];

fn add() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    let valid = json!([{ "containerID": "pod", "ifname": "eth0" }]);
    for stop in 1.. {
        let killed = killed_at(&lab, "ADD", stop);
        // While the runtime counts the attachment as valid, it is whole or not at all.
        lab.call_with("GC", "", &with(conf("1.1.0"), "cni.dev/valid-attachments", valid.clone())).success();
        match lab.leftovers() {
            (links, entries) if links.len() == 1 && entries.len() == 3 => {
                lab.run("ip netns exec pod ping -c1 -W2 10.244.1.1");
            }
            left => assert_eq!(left, (vec![], vec![]), "killed at stop {stop}"),
        }
        lab.call("GC", "").success();
        assert_eq!(lab.leftovers(), (vec![], vec![]), "killed at stop {stop}");
        if !killed {
            assert!(stop > 100, "only {stop} stops: was the plugin traced at all?");
            return Ok(());
        }
    }
    Ok(())
}

fn removal(command: &str) -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    for stop in 1.. {
        lab.call("ADD", "pod").success();
        let killed = killed_at(&lab, command, stop);
        let (links, entries) = lab.leftovers();
        assert!(
            links.is_empty() || entries.len() == 3,
            "stop {stop}: an address was freed before its link was gone"
        );
        if stop % 2 == 0 {
            lab.call("DEL", "pod").success();
        }
        lab.call("GC", "").success();
        assert_eq!(lab.leftovers(), (vec![], vec![]), "killed at stop {stop}");
        if !killed {
            assert!(stop > 50, "only {stop} stops: was the plugin traced at all?");
            return Ok(());
        }
    }
    Ok(())
}

fn collection() -> Result<(), Failed> {
    let lab = Lab::new();
    lab.add_pod("pod");
    // Not every stop: this is about a span of the call, and each run costs a few calls more.
    for stop in (1..).step_by(7) {
        let pid = spawn_stopped(&lab, "ADD");
        let ended = trace_to(pid, stop).is_some();
        let valid = json!([{ "containerID": "pod", "ifname": "eth0" }]);
        let answer = lab.call_with("GC", "", &with(conf("1.1.0"), "cni.dev/valid-attachments", valid));
        assert!(answer.ok || answer.code() == 11, "stop {stop}: {answer:?}");
        if !ended {
            ptrace::detach(pid, None).unwrap();
            assert_eq!(waitpid(pid, None).unwrap(), WaitStatus::Exited(pid, 0), "stop {stop}");
        }
        lab.run("ip netns exec pod ping -c1 -W2 10.244.1.1");
        assert_eq!(lab.leftovers().1.len(), 3, "stop {stop}: the reservation was taken away");
        lab.call("DEL", "pod").success();
        if ended {
            return Ok(());
        }
    }
    Ok(())
}

/// Runs a call and kills it at the `stop`-th entry into or return from a system call. False if it ended before that.
fn killed_at(lab: &Lab, command: &str, stop: usize) -> bool {
    let pid = spawn_stopped(lab, command);
    if let Some(code) = trace_to(pid, stop) {
        assert_eq!(code, 0, "the traced {command} failed");
        return false;
    }
    kill(pid, Signal::SIGKILL).unwrap();
    while !matches!(waitpid(pid, None).unwrap(), WaitStatus::Signaled(..)) {}
    true
}

/// Lets the plugin run to its `stop`-th stop; its exit code if it ended before.
fn trace_to(pid: Pid, stop: usize) -> Option<i32> {
    let options = Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACESYSGOOD;
    ptrace::seize(pid, options).unwrap();
    kill(pid, Signal::SIGCONT).unwrap();
    // Two programs are executed: nsenter, then the plugin.
    for _ in 0..2 {
        go_on_until(
            pid,
            |status| matches!(status, WaitStatus::PtraceEvent(_, _, event) if *event == ptrace::Event::PTRACE_EVENT_EXEC as i32),
        );
    }
    for _ in 0..stop {
        ptrace::syscall(pid, None).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::Exited(_, code) => return Some(code),
            WaitStatus::PtraceSyscall(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    None
}

fn go_on_until(pid: Pid, is_it: impl Fn(&WaitStatus) -> bool) {
    loop {
        match ptrace::cont(pid, None) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => panic!("PTRACE_CONT: {errno}"),
        }
        let status = waitpid(pid, None).unwrap();
        if is_it(&status) {
            return;
        }
        assert!(
            !matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)),
            "it ended early: {status:?}"
        );
    }
}

/// The plugin's process before its first program: a shell that has stopped itself.
#[allow(clippy::zombie_processes, reason = "the tracer waits by the process ID")]
fn spawn_stopped(lab: &Lab, command: &str) -> Pid {
    let nsenter = lab.command(PLUGIN);
    let mut shell = std::process::Command::new("sh");
    shell
        .args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""])
        .arg(nsenter.get_program())
        .args(nsenter.get_args());
    shell.envs(environment(command, "pod")).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child: Child = shell.spawn().unwrap();
    child.stdin.take().unwrap().write_all(conf("1.1.0").to_string().as_bytes()).unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
    pid
}
