//! The product's programs on a node: the agent as a process, and the command line.

use std::fs;

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use super::authority::TLS_PORT;
use super::leftover::signal;
use super::node::Node;
use super::{product, run};

/// The kubeconfig of a node's agent.
const KUBECONFIG: &str = "/etc/wg-overlay/kubeconfig";

impl Node {
    /// Sets a key of the agent's configuration for its next start; null removes it.
    pub fn set_agent_config(&self, key: &str, value: Value) {
        let mut config = self.agent_config.borrow_mut();
        match value {
            Value::Null => config.remove(key),
            value => config.insert(key.to_owned(), value),
        };
    }

    /// Starts `wg-overlay agent` with the node's configuration file and KUBECONFIG; its output
    /// goes to the log `agent`.
    ///
    /// # Errors
    /// One runs already, or there is no program.
    pub fn start_agent(&self, flags: &[&str]) -> Result<()> {
        let mut agent = self.namespace().command(product("wg-overlay")?);
        agent.env("KUBECONFIG", KUBECONFIG);
        self.start_agent_by(agent, flags)
    }

    /// Likewise without a kubeconfig: it reaches node-api by TLS, with what `/var/run/secrets` has of a service account.
    ///
    /// # Errors
    /// As `start_agent`.
    pub fn start_agent_with_service_account(&self) -> Result<()> {
        let mut agent = self.namespace().command(product("wg-overlay")?);
        agent
            .env_remove("KUBECONFIG")
            .env("HOME", "/nonexistent")
            .env("KUBERNETES_SERVICE_HOST", "172.30.0.1");
        agent.env("KUBERNETES_SERVICE_PORT", TLS_PORT.to_string());
        self.start_agent_by(agent, &[])
    }

    /// Likewise in a container, with the rights that a pod of the agent has.
    ///
    /// # Errors
    /// As `start_agent`.
    pub fn start_contained_agent(&self) -> Result<()> {
        self.start_agent_by(self.contained()?, &[])
    }

    /// Likewise, and has strace kill it where its first thread enters this system call for so many times.
    ///
    /// # Errors
    /// As `start_agent`, or there is no strace.
    pub fn start_agent_killed_at(&self, call: &str, count: u32) -> Result<()> {
        let mut strace = self.namespace().command("strace");
        // -D: the agent is our child, and the tracer its grandchild
        strace.args(["-D", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"]);
        strace.arg(format!("inject={call}:signal=SIGKILL:when={count}")).arg(product("wg-overlay")?);
        strace.env("KUBECONFIG", KUBECONFIG);
        self.start_agent_by(strace, &[])
    }

    fn start_agent_by(&self, mut command: std::process::Command, flags: &[&str]) -> Result<()> {
        if self.agent_runs() {
            bail!("an agent runs on {} already", self.name());
        }
        // YAML holds JSON.
        let config = Value::Object(self.agent_config.borrow().clone());
        fs::write(self.path("/etc/wg-overlay/config.yaml"), format!("{config:#}\n"))?;
        command.args(["agent", "--config", "/etc/wg-overlay/config.yaml"]).args(flags);
        self.agent.set(Some(self.namespace().spawn(&mut command, &self.log("agent"))?));
        Ok(())
    }

    /// Whether the agent that was started still runs.
    #[must_use]
    pub fn agent_runs(&self) -> bool {
        self.agent.get().is_some_and(|pid| self.namespace().runs(pid))
    }

    /// The process id of the agent that was started.
    #[must_use]
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.get()
    }

    /// Ends the agent at once, as a crash does (SIGKILL).
    ///
    /// # Errors
    /// None was started.
    pub fn kill_agent(&self) -> Result<()> {
        self.end_agent(Signal::KILL).map(drop)
    }

    /// Asks the agent to end (SIGTERM) and gives its exit status.
    ///
    /// # Errors
    /// None was started.
    pub fn stop_agent(&self) -> Result<std::process::ExitStatus> {
        self.end_agent(Signal::TERM)
    }

    /// Runs `wg-overlay ARGS` on the node and gives its output.
    ///
    /// # Errors
    /// It fails.
    pub fn wg_overlay(&self, args: &[&str]) -> Result<String> {
        let mut command = self.namespace().command(product("wg-overlay")?);
        command.args(args).env("KUBECONFIG", KUBECONFIG);
        run(&mut command).with_context(|| format!("on {}", self.name()))
    }

    /// What the agent has said so far.
    #[must_use]
    pub fn agent_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log("agent")).unwrap_or_default()).into_owned()
    }

    fn end_agent(&self, with: Signal) -> Result<std::process::ExitStatus> {
        let pid = self.agent.take().with_context(|| format!("no agent was started on {}", self.name()))?;
        signal(pid, with);
        self.namespace().wait(pid)
    }
}
