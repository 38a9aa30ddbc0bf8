//! The subcommands, and what their help teaches.

mod agent;
mod cleanup;
mod device;
mod doctor;
mod plan;
mod rotate_key;
mod status;

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::{self, Config, ConfigErrors, KEYS};

/// wg-overlay: an encrypted pod network for Kubernetes, WireGuard between the nodes.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Run this node's agent: it keeps the WireGuard device, its peers and routes as the cluster says.
    ///
    /// Stopping it changes nothing in the kernel: the tunnel goes on. `wg-overlay cleanup` removes what it made.
    Agent(ConfigArgs),
    /// Run a WireGuard device in user space, for kernels that have none. The agent starts this by itself, or asks for it
    /// where one is on standby.
    Device(device::DeviceArgs),
    /// Show how this node and its peers are, or with --cluster every node.
    ///
    /// Exit status: 0 converged, 1 degraded, 2 the agent (with --cluster: the API server) does not answer.
    Status(status::StatusArgs),
    /// Check what this node needs and every known failure, with cause and cure. Changes nothing.
    ///
    /// Run it as root on the node, or by `kubectl exec -n wg-overlay POD -- wg-overlay doctor`: the pod does not see the
    /// host's NetworkManager and systemd. Exit status: 0 nothing fails, 1 something does.
    Doctor(doctor::DoctorArgs),
    /// Show what the agent would change in the kernel, and change nothing.
    Plan(PlanArgs),
    /// Change this node's WireGuard key without losing a packet, and wait until it has changed.
    ///
    /// It takes seconds, and a minute more where a node is down. The UDP port beside listenPort must be open between the
    /// nodes. Exit status: 0 it has changed, 1 it has not, 2 the agent does not answer.
    RotateKey(rotate_key::RotateKeyArgs),
    /// Remove everything from this node that wg-overlay made: links, routes, rules, CNI files, annotations.
    ///
    /// Stop the agent and drain the node first. The private key goes too: a node that comes back makes a new one.
    Cleanup(cleanup::CleanupArgs),
    /// Print the version.
    Version,
}

impl Cli {
    /// Runs the command and gives its exit status.
    ///
    /// # Errors
    /// What kept it from being done.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Subcommands::Agent(config) => agent::run(config.load()?).await,
            Subcommands::Device(args) => device::run(args).await,
            Subcommands::Status(args) => status::run(args).await,
            Subcommands::Doctor(args) => doctor::run(args).await,
            Subcommands::Plan(args) => plan::run(args.config.load()?, args.output).await,
            Subcommands::RotateKey(args) => rotate_key::run(args).await,
            Subcommands::Cleanup(args) => cleanup::run(args).await,
            Subcommands::Version => {
                println!("wg-overlay {}", env!("CARGO_PKG_VERSION"));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

#[derive(Args)]
struct PlanArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// How a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For a person.
    #[default]
    Text,
    /// For a machine.
    Json,
}

/// `--config` and a flag for each key of the configuration.
#[derive(Debug, Clone)]
pub struct ConfigArgs {
    file: Option<PathBuf>,
    flags: BTreeMap<&'static str, String>,
}

impl ConfigArgs {
    /// Reads the file, the variables and the flags.
    ///
    /// # Errors
    /// All that is wrong with them, at once.
    pub fn load(self) -> Result<Config, ConfigErrors> {
        let required = self.file.is_some();
        let file = self.file.unwrap_or_else(|| config::DEFAULT_FILE.into());
        config::load(&file, required, |name| std::env::var(name).ok(), self.flags)
    }
}

impl FromArgMatches for ConfigArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flag = |key: &config::Key| {
            let value: Option<&String> = matches.get_one(key.name);
            value.map(|text| (key.name, text.clone()))
        };
        Ok(Self {
            file: matches.get_one::<OsString>("config").map(PathBuf::from),
            flags: KEYS.iter().filter_map(flag).collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ConfigArgs {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(OsString))
            .help(format!("the configuration file [default: {}]", config::DEFAULT_FILE));
        let flags = KEYS.iter().map(|key| {
            let default = if key.default.is_empty() { "none" } else { key.default };
            let help = format!("{} [default: {default}] [env: {}]", key.help, key.variable());
            Arg::new(key.name).long(key.flag()).value_name("VALUE").help(help)
        });
        command.arg(file).args(flags).after_help("A flag wins over its variable, and that over the file.")
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
