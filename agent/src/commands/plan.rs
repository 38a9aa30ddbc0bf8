//! `wg-overlay plan`.

use std::process::ExitCode;

use serde_json::json;
use wg_overlay_host::Scope;
use wg_overlay_mesh::{Advertisement, decide, plan};

use super::{
    Output,
    agent::{key_file, local, open_host},
};
use crate::{
    cluster::{cluster_networks, connect, list},
    config::Config,
    reconciler::{gateways_in_use, names},
    record::read_or_forget,
    resolver::resolve,
};

/// Reads the cluster and the kernel, and prints the difference. Changes nothing: where there is no device and no key
/// file yet, a key that is thrown away stands for the one that the agent would make.
pub(super) async fn run(config: Config, output: Output) -> anyhow::Result<ExitCode> {
    let mut host = open_host(&config)?;
    let client = connect(config.api_server.as_deref()).await?;
    host.observe(Scope::ALL).await?;
    host.set_addresses_in_use(gateways_in_use(&config.state_dir, host.observed()));
    let observed = host.observed().clone();
    let key = match observed.device.as_ref().and_then(|d| d.public_key) {
        Some(key) => key,
        None => wg_overlay_host::PrivateKey::generate().public_key(),
    };
    let mut local = local(&config, key).await?;
    if local.settings.cluster_cidrs.is_empty() {
        local.settings.cluster_cidrs = cluster_networks(&client).await?.unwrap_or_default().pods;
    }
    if let Some(file) = key_file(&config) {
        let record = read_or_forget(&file, |problem| eprintln!("wg-overlay: {problem}")).beside(&observed);
        (local.holders, local.key_holders) = (record.prefixes, record.keys);
    }
    let nodes = list(client).await?;
    let own = nodes.get(&config.node_name).and_then(|own| Advertisement::parse(&own.annotations).ok());
    local.next_key = own.as_ref().and_then(|own| own.next_key);
    local.rotation = own.and_then(|own| own.rotation);
    let resolved = resolve(names(&nodes)).await;
    let decision = match decide(&local, &nodes, &resolved, &observed) {
        Ok(decision) => decision,
        Err(problem) => anyhow::bail!("{problem}"),
    };
    let plan = plan(&decision.desired, &observed);
    match output {
        Output::Json => {
            let steps: Vec<_> = plan.steps.iter().map(ToString::to_string).collect();
            let refusals: serde_json::Map<_, _> = decision
                .refusals
                .iter()
                .map(|(node, r)| {
                    (node.clone(), json!({ "reason": r.reason.word(), "text": r.reason.to_string() }))
                })
                .collect();
            println!("{:#}", json!({ "steps": steps, "refusals": refusals }));
        }
        Output::Text => {
            if plan.steps.is_empty() {
                println!("The kernel is as it should be.");
            }
            print!("{plan}");
            for (node, refusal) in &decision.refusals {
                println!("# {node} is left out: {}", refusal.reason);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
