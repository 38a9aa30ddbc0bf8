//! `simulate`: what a cluster of up to 100,000 nodes would cost, from what `bench` has measured of one agent.

#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod handshakes;
mod measured;
mod model;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use model::{Cluster, Design, LIMITS, Size, largest};

const SIZES: [f64; 7] = [100.0, 1000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0, 100_000.0];

/// Prints what clusters of up to 100,000 nodes would cost, and what breaks first, as Markdown.
///
/// The cost of one Node, heartbeat, join and handshake is what `bench` has measured; how it grows is a model, held against
/// measured points that it was not made from. docs/scale.md says what is assumed.
#[derive(Parser)]
struct Flags {
    /// A report of `bench`, with all of its rows that this needs.
    #[arg(long, value_name = "FILE", default_value = "target/bench/report.json")]
    report: PathBuf,
    /// What all API servers send together, in Gbit/s.
    #[arg(long, value_name = "GBIT", default_value_t = 30.0)]
    api: f64,
    /// Writes of a Node while it joins.
    #[arg(long, value_name = "N", default_value_t = 10.0)]
    writes: f64,
    /// The part of all nodes that joins in a storm, within a minute.
    #[arg(long, value_name = "PART", default_value_t = 0.1)]
    storm: f64,
    /// MiB that an agent may take.
    #[arg(long, value_name = "MIB", default_value_t = 256.0)]
    memory: f64,
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let (measured, checks) = measured::read(&flags.report)?;
    let cluster = Cluster {
        api: flags.api * 1e9 / 8.0,
        writes: flags.writes,
        storm: flags.storm,
        memory: flags.memory,
    };
    let size = |nodes: f64, design| Size { nodes, design, measured: &measured, cluster: &cluster };

    println!("# Scale, simulated\n\nWritten by `make bench`; docs/scale.md says what it means.\n");
    println!("## The model beside measured points it was not made from\n");
    println!("| what | measured | model | model over measured |\n|---|---|---|---|");
    for check in checks {
        println!(
            "| {} | {:.3} | {:.3} | {:.2} |",
            check.what,
            check.measured,
            check.model,
            check.model / check.measured
        );
    }

    println!("\n## As built, all Nodes watched by each agent\n");
    table(&SIZES.map(|nodes| size(nodes, Design::Nodes)));

    println!(
        "\n## What breaks first\n\nThe largest cluster within each limit, by design; - is over a million nodes.\n"
    );
    println!("| beyond it | {} |", Design::ALL.map(Design::name).join(" | "));
    println!("|---|{}", "---|".repeat(Design::ALL.len()));
    let mut limits: Vec<_> = LIMITS
        .iter()
        .map(|limit| (limit.0, Design::ALL.map(|design| largest(|nodes| limit.1(&size(nodes, design))))))
        .collect();
    limits.sort_by_key(|(_, largest)| largest.first().copied().flatten().unwrap_or(u32::MAX));
    for (name, largest) in limits {
        let cells = largest.map(|nodes| nodes.map_or("-".to_owned(), |nodes| nodes.to_string()));
        println!("| {name} | {} |", cells.join(" | "));
    }
    Ok(())
}

/// A row of the table: what, and how it is told.
type Row = (&'static str, fn(&Size<'_>) -> String);

const ROWS: [Row; 13] = [
    ("peers of a node", |size| format!("{}", size.peers())),
    ("heartbeats heard a second", |size| format!("{:.1}", size.heartbeats())),
    ("API bytes for an agent, GiB an hour", |size| format!("{:.2}", size.agent_bytes() / 1024.0)),
    ("API servers' sending for heartbeats, Gbit/s", |size| format!("{:.3}", size.api_load())),
    ("agent: heartbeats, % of a core", |size| format!("{:.2}", size.agent_cpu() * 100.0)),
    ("agent: memory, MiB", |size| format!("{:.0}", size.memory())),
    ("agent: start to converged, s", |size| format!("{:.1}", size.start())),
    ("handshakes a second, if it talks with all", |size| format!("{:.1}", size.handshakes())),
    ("their cost, % of a core", |size| format!("{:.2}", size.handshake_cpu() * 100.0)),
    ("every agent lists anew, s", |size| format!("{:.1}", size.relist())),
    ("a storm of joins: the last agent is behind, s", |size| format!("{:.1}", size.storm_lag())),
    ("then a new node's first packet waits at most, s", |size| format!("{:.0}", size.first_packet())),
    ("a node is back: all sessions up, s (cookies, drops)", |size| {
        let outcome = size.return_storm();
        format!("{:.1} ({}, {})", outcome.seconds, outcome.cookies, outcome.dropped)
    }),
];

fn table(sizes: &[Size<'_>]) {
    let cells = |cell: &dyn Fn(&Size<'_>) -> String| sizes.iter().map(cell).collect::<Vec<_>>().join(" | ");
    println!("| nodes | {} |\n|---|{}", cells(&|size| format!("{}", size.nodes)), "---|".repeat(sizes.len()));
    for (what, cell) in ROWS {
        println!("| {what} | {} |", cells(&cell));
    }
}
