//! Addresses that a rule of the node translates to a pod's, as kube-proxy does for a ClusterIP: three nftables rules
//! stand in for it.

use anyhow::{Context as _, Result, bail};
use wg_overlay_e2e::lab::{Pod, eventually};
use wg_overlay_e2e::suite::Case;

use crate::cluster::{PATIENCE, pods, with_agents};
use crate::witness::{Machine, arrives_as, connect, listen};

/// Addresses of no machine, as ClusterIPs are.
pub const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const PORT: u16 = 8080;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "a_nodes_connection_to_a_service_arrives_with_its_overlay_address",
            &["ping"],
            node_to_service,
        ),
        Case::new("a_pod_reaches_itself_through_a_service", &["timeout"], hairpin),
        Case::new(
            "a_service_between_pods_of_one_node_works_whatever_the_sysctls_say",
            &["timeout"],
            one_node,
        ),
        Case::new("a_service_leads_to_a_pod_of_another_node", &["ping", "timeout"], another_node),
    ]
}

fn node_to_service() -> Result<()> {
    with_agents(2, |lab| {
        let pod = lab.node(2)?.add_pod("p")?;
        serve(lab.node(1)?, &pod)?;
        for (service, source) in SERVICE.into_iter().zip(["10.244.1.1", "fd00:244:0:1::1"]) {
            arrives_as(lab.node(1)?, service, &pod, source, "eth0")?;
        }
        Ok(())
    })
}

fn hairpin() -> Result<()> {
    with_agents(1, |lab| {
        let pod = lab.node(1)?.add_pod("p")?;
        serve(lab.node(1)?, &pod)?;
        listen(lab, &pod, PORT)?;
        SERVICE.into_iter().try_for_each(|service| {
            eventually(PATIENCE, &format!("{pod} reaches itself by {service}"), || {
                connect(&pod, service, PORT)
            })
        })
    })
}

fn one_node() -> Result<()> {
    with_agents(1, |lab| {
        let node = lab.node(1)?;
        let (from, to) = (node.add_pod("from")?, node.add_pod("to")?);
        serve(node, &to)?;
        listen(lab, &to, PORT)?;
        for value in ["0", "1"] {
            for sysctl in ["iptables", "ip6tables"] {
                node.namespace().set_sysctl(&format!("net/bridge/bridge-nf-call-{sysctl}"), value)?;
            }
            for service in SERVICE {
                let what = format!("{from} reaches {to} by {service}, sysctls at {value}");
                eventually(PATIENCE, &what, || connect(&from, service, PORT))?;
            }
        }
        Ok(())
    })
}

fn another_node() -> Result<()> {
    with_agents(2, |lab| {
        let pods = pods(lab)?;
        let [from, to] = pods.as_slice() else { bail!("not two pods") };
        serve(lab.node(1)?, to)?;
        listen(lab, to, PORT)?;
        for (service, source) in SERVICE.into_iter().zip(from.ips()) {
            arrives_as(from, service, to, &source.to_string(), "eth0")?;
            eventually(PATIENCE, &format!("{from} reaches {to} by {service}"), || {
                connect(from, service, PORT)
            })?;
        }
        Ok(())
    })
}

/// What kube-proxy would write: translation for the node's own connections and for the pods', and masquerade for a
/// pod that reaches itself.
pub fn serve(node: &impl Machine, pod: &Pod) -> Result<()> {
    let [service4, service6] = SERVICE;
    let (ip4, ip6) = (pod.ipv4()?, pod.ipv6()?);
    let translate = format!("ip daddr {service4} dnat ip to {ip4}\n ip6 daddr {service6} dnat ip6 to {ip6}");
    node.nft(&format!(
        "add table inet service
        delete table inet service
        table inet service {{
            chain output {{ type nat hook output priority -100; policy accept;
                {translate}
            }}
            chain prerouting {{ type nat hook prerouting priority dstnat; policy accept;
                {translate}
            }}
            chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
                ip saddr {ip4} ip daddr {ip4} masquerade
                ip6 saddr {ip6} ip6 daddr {ip6} masquerade
            }}
        }}"
    ))
    .context("stand in for kube-proxy")
}
