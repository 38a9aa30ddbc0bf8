//! The overview as a person reads it.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    super::{Says, render::columns},
    Condition, Overview,
};

/// How much of an overview is printed.
#[derive(Debug, Clone, Copy)]
pub struct Show<'a> {
    /// Every node and pair, however many.
    pub all: bool,
    /// The agents' namespace, for the cures.
    pub namespace: &'a str,
}

/// Converged nodes are listed up to this many lines; a larger cluster's reader wants the others.
const LINES: usize = 100;
/// Pairs that are listed: one node that is down makes a pair with every other.
const PAIRS: usize = 20;

/// The overview as text.
pub fn render_overview(overview: &Overview, show: Show<'_>) -> String {
    let mut out = String::new();
    // writing to a String can't fail
    let _ = head(overview, &mut out);
    let _ = table(overview, show, &mut out);
    let _ = pairs(overview, show, &mut out);
    let _ = cures(overview, show, &mut out);
    printable(&out)
}

fn head(o: &Overview, out: &mut String) -> std::fmt::Result {
    let mut states = BTreeMap::<_, usize>::new();
    let mut versions = BTreeMap::<_, usize>::new();
    for row in &o.nodes {
        *states.entry(row.state).or_default() += 1;
        if let Some(version) = &row.version {
            *versions.entry(version).or_default() += 1;
        }
    }
    let states: Vec<_> = states.iter().map(|(state, n)| format!("{n} {state:?}")).collect();
    write!(out, "{}: {}", plural(o.nodes.len(), "node"), states.join(", "))?;
    if !o.pairs.is_empty() {
        write!(out, "; {} not talking", plural(o.pairs.len(), "pair"))?;
    }
    if versions.len() > 1 {
        let versions: Vec<_> = versions.iter().map(|(version, n)| format!("{version} on {n}")).collect();
        write!(out, "; versions {}", versions.join(", "))?;
    }
    writeln!(out)
}

fn table(o: &Overview, show: Show<'_>, out: &mut String) -> std::fmt::Result {
    let short = !show.all && o.nodes.len() > LINES;
    let shown = o.nodes.iter().filter(|row| !short || row.state != Condition::Converged);
    let mut rows = vec![
        ["NODE", "STATE", "VERSION", "DEVICE", "UP", "IDLE", "DOWN", "REFUSED", "NOTE"].map(String::from),
    ];
    for row in shown {
        let heard = row.version.is_some();
        let count = |n: usize| if heard { n.to_string() } else { "-".into() };
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let note = match row.problems.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            [first, rest @ ..] => format!("{first} (+{} more)", rest.len()),
        };
        rows.push([
            row.node.clone(),
            format!("{:?}", row.state),
            or_dash(&row.version),
            or_dash(&row.device),
            count(row.up),
            count(row.idle),
            count(row.down),
            count(row.refused),
            note,
        ]);
    }
    if rows.len() > 1 {
        writeln!(out)?;
        columns(&rows, out)?;
    }
    let hidden = o.nodes.len() + 1 - rows.len();
    if hidden > 0 {
        writeln!(out, "\n{hidden} Converged nodes are not listed; --all lists them.")?;
    }
    Ok(())
}

fn pairs(o: &Overview, show: Show<'_>, out: &mut String) -> std::fmt::Result {
    if o.pairs.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nPairs that don't talk:")?;
    let shown = if show.all { o.pairs.len() } else { o.pairs.len().min(PAIRS) };
    for pair in o.pairs.iter().take(shown) {
        let [a, b] = &pair.nodes;
        let [of_b, of_a] = &pair.says;
        writeln!(out, "{a} - {b}   {a}: {}   {b}: {}", word(of_b), word(of_a))?;
    }
    if shown < o.pairs.len() {
        let mut counts = BTreeMap::<&str, usize>::new();
        for node in o.pairs.iter().flat_map(|pair| &pair.nodes) {
            *counts.entry(node).or_default() += 1;
        }
        let mut most: Vec<_> = counts.into_iter().collect();
        most.sort_by_key(|(node, n)| (std::cmp::Reverse(*n), *node));
        let most: Vec<_> = most.iter().take(5).map(|(node, n)| format!("{node} in {n}")).collect();
        let hidden = o.pairs.len() - shown;
        writeln!(
            out,
            "{hidden} more pairs are not listed; --all lists them. Most often: {}",
            most.join(", ")
        )?;
    }
    Ok(())
}

fn word(says: &Says) -> String {
    match says {
        Says::State { state, note: None } => format!("{state:?}"),
        Says::State { state, note: Some(note) } => format!("{state:?}, {note}"),
        Says::Nothing => "does not know it".into(),
        Says::Unheard => "not heard".into(),
    }
}

/// What a person does next, once for each kind of trouble.
fn cures(o: &Overview, show: Show<'_>, out: &mut String) -> std::fmt::Result {
    let namespace = show.namespace;
    let mut conditions: Vec<_> = o.nodes.iter().map(|row| row.state).collect();
    conditions.dedup();
    let mut first = true;
    for condition in conditions {
        let cure = match condition {
            Condition::NoPod => format!(
                "kubectl get daemonset -n {namespace} wg-overlay-agent; do its nodeSelector and tolerations leave the node out?"
            ),
            Condition::NotRunning => format!("kubectl describe pod -n {namespace} -l {AGENT_LABELS}"),
            Condition::NoAnswer => format!(
                "is the node up, and does its kubelet answer the API server (TCP 10250)? kubectl logs -n {namespace} -l {AGENT_LABELS}"
            ),
            Condition::Forbidden => {
                format!("you need the verbs create and get on pods/exec in namespace {namespace}")
            }
            Condition::Degraded => {
                format!("kubectl exec -n {namespace} POD -- wg-overlay doctor, POD being the node's agent")
            }
            _ => continue,
        };
        if std::mem::take(&mut first) {
            writeln!(out)?;
        }
        writeln!(out, "{condition:?}: {cure}")?;
    }
    Ok(())
}

/// The labels of the agents' pods.
pub const AGENT_LABELS: &str = "app.kubernetes.io/name=wg-overlay,app.kubernetes.io/component=agent";

fn plural(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Whatever a node says, it can't drive the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}
