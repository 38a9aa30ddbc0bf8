#![allow(unsafe_code)]
//! Starting a process in a session of its own, so that no signal to the agent's group or terminal reaches it.

use std::io;

use tokio::process::Command;

/// Makes the command call setsid(2) between fork and exec.
pub(crate) fn session_of_its_own(command: &mut Command) {
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; the closure makes one system call,
    // setsid(2), and on failure converts an errno, which allocates nothing.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from));
    }
}
