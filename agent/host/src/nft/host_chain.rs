//! Base chains of the host's own nftables firewall: firewalld's, a person's, and iptables-nft's (ufw, Docker).
//!
//! An accept in our table can't override another table's drop, so our accept rules go where the drop is. Rulesets of a
//! cluster are huge: the chains' heads are listed, and then only the few base chains that count. In iptables-nft's
//! chains a rule may hold nothing but what iptables reads back: single matches, a counter, a verdict, a comment.

use serde_json::{Value, json};
use wg_overlay_mesh::{ALIAS, HostChain, HostChainState, TABLE, next_port};

use super::{
    LINKS, NftError, ObservedRules,
    program::{list, list_existing, run},
};

pub(super) fn observe(listen_port: u16, found: &mut ObservedRules) -> Result<(), NftError> {
    for head in list(&["chains"])?.iter().filter_map(|o| o.get("chain")) {
        let Some((chain, policy_drops)) = base_chain(head) else { continue };
        match rules(&chain) {
            Ok(rules) => {
                let state = judge(&chain, policy_drops, &rules, listen_port);
                found.host_chains.extend(state.map(|state| (chain, state)));
            }
            Err(e) => found.warnings.push(super::with_causes(&e)),
        }
    }
    Ok(())
}

/// What a chain with these rules means for our traffic.
pub(super) fn judge(
    chain: &HostChain,
    policy_drops: bool,
    rules: &[Value],
    listen_port: u16,
) -> Option<HostChainState> {
    let drops = policy_drops || rules.last().is_some_and(drops_everything);
    let exact = are_exactly(rules, &wanted(chain, listen_port));
    state(drops, rules.iter().any(is_ours), exact)
}

/// What a chain means for our traffic; `None` where it is no affair of ours.
pub(super) fn state(drops: bool, ours: bool, exact: bool) -> Option<HostChainState> {
    match (drops, ours) {
        (true, _) if exact => Some(HostChainState::Allowed),
        (true, _) => Some(HostChainState::Drops),
        (false, true) => Some(HostChainState::Unneeded),
        (false, false) => None,
    }
}

/// Makes our rules of this chain those for the port, or none, in one transaction.
pub(super) fn set(chain: &HostChain, listen_port: Option<u16>) -> Result<(), NftError> {
    let HostChain::Nft { family, table, chain: name, .. } = chain else { return Ok(()) };
    let rules = rules(chain)?;
    let wanted = listen_port.map(|port| wanted(chain, port)).unwrap_or_default();
    if are_exactly(&rules, &wanted) {
        return Ok(());
    }
    let handles = rules.iter().filter(|r| is_ours(r)).filter_map(|r| r.get("handle"));
    let delete = handles.map(|handle| {
        json!({"delete": {"rule": {"family": family, "table": table, "chain": name, "handle": handle}}})
    });
    let insert = wanted.iter().map(|matches| {
        let expressions = [matches.as_slice(), &[json!({"counter": null}), json!({"accept": null})]].concat();
        let rule = json!({
            "family": family, "table": table, "chain": name, "comment": ALIAS, "expr": expressions
        });
        json!({"insert": {"rule": rule}})
    });
    let commands: Vec<Value> = delete.chain(insert).collect();
    run("nft", &["-j", "-f", "-"], Some(&json!({"nftables": commands}).to_string()))?;
    Ok(())
}

/// A filter chain that hooks forward or input, and whether its policy is drop.
pub(super) fn base_chain(head: &Value) -> Option<(HostChain, bool)> {
    let text = |key: &str| head.get(key).and_then(Value::as_str);
    let (family, table, chain) = (text("family")?, text("table")?, text("name")?);
    let input = match text("hook")? {
        "input" => true,
        "forward" => false,
        _ => return None,
    };
    let counts = matches!(family, "ip" | "ip6" | "inet") && text("type") == Some("filter") && table != TABLE;
    let chain = HostChain::Nft { family: family.into(), table: table.into(), chain: chain.into(), input };
    counts.then(|| (chain, text("policy") == Some("drop")))
}

/// A chain's rules; none where the chain is gone.
fn rules(chain: &HostChain) -> Result<Vec<Value>, NftError> {
    let HostChain::Nft { family, table, chain, .. } = chain else { return Ok(Vec::new()) };
    let objects = list_existing(&["chain", family, table, chain])?.unwrap_or_default();
    Ok(rules_among(objects))
}

pub(super) fn rules_among(objects: Vec<Value>) -> Vec<Value> {
    objects.into_iter().filter_map(|mut o| o.get_mut("rule").map(Value::take)).collect()
}

/// The matches of our rules; each of them counts and accepts.
fn wanted(chain: &HostChain, listen_port: u16) -> Vec<Vec<Value>> {
    let is = |left: Value, right: Value| vec![json!({"match": {"op": "==", "left": left, "right": right}})];
    let link = |key: &str, name: &str| is(json!({"meta": {"key": key}}), json!(name));
    if matches!(chain, HostChain::Nft { input: true, .. }) {
        let port = |port: u16| is(json!({"payload": {"protocol": "udp", "field": "dport"}}), json!(port));
        let ports = [listen_port, next_port(listen_port)].map(port);
        ports.into_iter().chain(LINKS.map(|name| link("iifname", name))).collect()
    } else {
        LINKS.iter().flat_map(|name| [link("iifname", name), link("oifname", name)]).collect()
    }
}

fn is_ours(rule: &Value) -> bool {
    rule.get("comment").and_then(Value::as_str) == Some(ALIAS)
}

/// Whether our rules in a chain are these, in any order, and each once.
fn are_exactly(rules: &[Value], wanted: &[Vec<Value>]) -> bool {
    let mut found: Vec<String> =
        rules.iter().filter(|r| is_ours(r)).map(|r| json!(effects(r)).to_string()).collect();
    let accept =
        |matches: &Vec<Value>| json!([matches.as_slice(), &[json!({"accept": null})]].concat()).to_string();
    let mut wanted: Vec<String> = wanted.iter().map(accept).collect();
    found.sort();
    wanted.sort();
    found == wanted
}

/// A rule whose only effect is to drop or reject, whatever comes.
fn drops_everything(rule: &Value) -> bool {
    let is_drop = |effect: &Value| {
        let target = effect.get("xt").filter(|x| x.get("type").and_then(Value::as_str) == Some("target"));
        effect.get("drop").is_some()
            || effect.get("reject").is_some()
            || target.and_then(|x| x.get("name")).and_then(Value::as_str) == Some("REJECT")
    };
    matches!(effects(rule).as_slice(), [effect] if is_drop(effect))
}

/// A rule's expressions without those that only count, log or remark.
fn effects(rule: &Value) -> Vec<&Value> {
    let remarks = |e: &&Value| {
        let xt = |key: &str| e.get("xt").and_then(|x| x.get(key)).and_then(Value::as_str);
        e.get("counter").is_some()
            || e.get("log").is_some()
            || (xt("type") == Some("match") && xt("name") == Some("comment"))
    };
    let expressions = rule.get("expr").and_then(Value::as_array);
    expressions.map(|list| list.iter().filter(|e| !remarks(e)).collect()).unwrap_or_default()
}
