//! Routes: many at once, repaired, and never somebody else's.

use std::time::Instant;

use nix::sched::{CloneFlags, unshare};
use wg_overlay_host::{Scope, StepError};
use wg_overlay_mesh::{DesiredRoute, Link, Step, plan};

use crate::{
    Test,
    lab::{Node, net, prefix4, route, run, sh, words},
};

pub const TESTS: &[Test] = &[
    ("five_thousand_peers_and_ten_thousand_routes_and_none_is_lost", many),
    ("a_refused_route_is_named_and_the_others_go_on", refused),
    ("a_batch_in_which_each_route_is_refused_names_each", all_refused),
    ("somebody_elses_route_of_the_same_prefix_stays", conflict),
    ("an_unreachable_route_below_a_route_of_the_same_prefix_stays", same_prefix),
    ("a_route_left_from_a_device_of_before_is_replaced", leftover),
    ("a_changed_mtu_and_source_replace_the_route", changed),
    ("removing_what_is_gone_succeeds", gone),
    ("a_host_without_any_route_is_read", empty),
    ("what_failed_is_read_again_before_the_next_plan", reread),
];

fn many() {
    run(async {
        let mut node = Node::new();
        for n in 0..5000 {
            node.add_peer(n);
        }
        let plan = plan(&node.desired, node.host.observe(Scope::ALL).await.unwrap());
        let start = Instant::now();
        let failed = node.host.apply_all(&plan.steps).await;
        eprintln!("{} steps in {:?}", plan.steps.len(), start.elapsed());
        assert!(failed.is_empty(), "{}", words(&failed));
        let start = Instant::now();
        node.host.observe(Scope::ALL).await.unwrap();
        eprintln!("read again in {:?}", start.elapsed());
        node.assert_converged().await;
        assert_eq!(
            sh("ip -4 route show proto 87 dev wgo0 | wc -l; ip -6 route show proto 87 dev wgo0 | wc -l")
                .trim(),
            "5000\n5000"
        );
        // One that goes takes its own with it, and no other.
        let gone = *node.desired.peers.keys().next().unwrap();
        for net in &node.desired.peers.remove(&gone).unwrap().allowed_ips {
            node.desired.routes.remove(net);
        }
        assert_eq!(node.converge(Scope::NONE).await.steps.len(), 3);
        node.assert_converged().await;
    });
}

fn refused() {
    run(async {
        let mut node = Node::new();
        node.converge(Scope::ALL).await;
        let mut steps: Vec<Step> =
            (0..500).map(|n| Step::SetRoute(prefix4(n), route(&prefix4(n)), Link::Device)).collect();
        let bad = DesiredRoute { source: Some("192.0.2.77".parse().unwrap()), mtu: None }; // no address of this host
        steps[250] = Step::SetRoute(prefix4(250), bad, Link::Device);
        let failed = node.host.apply_all(&steps).await;
        assert_eq!(failed.len(), 1, "{}", words(&failed));
        assert_eq!(failed[0].0, steps[250]);
        assert!(failed[0].1.to_string().contains(&prefix4(250).to_string()), "{}", failed[0].1);
        assert_eq!(sh("ip route show proto 87 dev wgo0 | wc -l").trim(), "499");
        assert_eq!(node.host.observe(Scope::NONE).await.unwrap().routes.len(), 499);
    });
}

fn all_refused() {
    run(async {
        let mut node = Node::new();
        node.converge(Scope::ALL).await;
        let bad = DesiredRoute { source: Some("192.0.2.77".parse().unwrap()), mtu: None };
        let steps: Vec<Step> = (0..2000).map(|n| Step::SetRoute(prefix4(n), bad, Link::Device)).collect();
        let failed = node.host.apply_all(&steps).await;
        assert_eq!(failed.len(), 2000);
        let invalid = |error: &StepError| matches!(error, StepError::Refused { source, .. } if source.kind() == std::io::ErrorKind::InvalidInput);
        assert!(failed.iter().all(|(_, error)| invalid(error)), "no answer was lost: {}", words(&failed));
        node.assert_converged().await;
    });
}

fn conflict() {
    run(async {
        let mut node = Node::new();
        node.converge(Scope::ALL).await;
        let (v4, v6) = (net("10.200.0.0/24"), net("fd00:200::/64"));
        sh("ip route add 10.200.0.0/24 via 192.0.2.2; ip -6 route add fd00:200::/64 via 2001:db8::2");
        let steps =
            [Step::SetRoute(v4, route(&v4), Link::Device), Step::SetRoute(v6, route(&v6), Link::Device)];
        let failed = node.host.apply_all(&steps).await;
        assert_eq!(failed.len(), 2, "{}", words(&failed));
        assert!(words(&failed).contains("somebody else's is in its place"), "{}", words(&failed));
        assert!(sh("ip route show 10.200.0.0/24").contains("via 192.0.2.2"));
        assert!(sh("ip -6 route show fd00:200::/64").contains("via 2001:db8::2"));
        let failed = node.host.apply_all(&[Step::RemoveRoute(v4), Step::RemoveRoute(v6)]).await;
        assert!(failed.is_empty());
        assert!(
            sh("ip route show 10.200.0.0/24").contains("via 192.0.2.2"),
            "what isn't ours is not removed"
        );
        assert!(sh("ip -6 route show fd00:200::/64").contains("via 2001:db8::2"));
    });
}

fn same_prefix() {
    run(async {
        let mut node = Node::new();
        node.converge(Scope::ALL).await;
        for prefix in [net("10.128.0.0/10"), net("fd00:244::/32")] {
            let steps = [
                Step::SetRoute(prefix, route(&prefix), Link::Device),
                Step::RemoveRoute(prefix),
                Step::RemoveRoute(prefix),
            ];
            for step in &steps {
                node.host.apply(step).await.unwrap();
            }
        }
        assert_eq!(sh("ip route show table all proto 87 | grep -c unreachable").trim(), "3");
        node.assert_converged().await;
    });
}

fn leftover() {
    run(async {
        let mut node = Node::new();
        node.add_peer(1);
        sh(
            "ip route add 10.128.0.64/26 dev eth0 proto 87; ip -6 route add fd00:244:1:1::/64 dev eth0 proto 87",
        );
        node.converge(Scope::ALL).await;
        node.assert_converged().await;
        assert_eq!(sh("ip route show table all proto 87 dev eth0").trim(), "");
    });
}

fn changed() {
    run(async {
        let mut node = Node::new();
        node.add_peer(1);
        node.converge(Scope::ALL).await;
        for route in node.desired.routes.values_mut() {
            *route = DesiredRoute { source: None, mtu: Some(1280) };
        }
        assert_eq!(node.converge(Scope::NONE).await.steps.len(), 2);
        node.assert_converged().await;
        assert_eq!(
            sh(
                "ip -o -4 route show proto 87 dev wgo0 | wc -l; ip -o -6 route show proto 87 dev wgo0 | wc -l"
            )
            .trim(),
            "1\n1"
        );
    });
}

fn gone() {
    run(async {
        let mut node = Node::new();
        node.add_peer(1);
        node.converge(Scope::ALL).await;
        sh(
            "ip route flush proto 87; ip -6 route flush proto 87; ip addr del 10.244.1.1/32 dev wgo0; ip link delete wgobr0",
        );
        let nets: Vec<_> = node.desired.routes.keys().copied().collect();
        let mut steps: Vec<Step> = nets.into_iter().map(Step::RemoveRoute).collect();
        steps.push(Step::RemoveAddress(Link::Device, net("10.244.1.1/32")));
        steps.push(Step::DeleteLink(Link::Bridge));
        steps.push(Step::RemoveUnreachable(net("10.244.0.0/16")));
        let failed = node.host.apply_all(&steps).await;
        assert!(failed.is_empty(), "{}", words(&failed));
        node.converge(Scope::NETWORK).await;
        node.assert_converged().await;
    });
}

/// The kernel makes its IPv4 table with the first route, and refuses to read it before.
fn empty() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    run(async {
        let mut node = Node::new();
        assert!(node.host.observe(Scope::ALL).await.unwrap().underlay.routes.is_empty());
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
    });
}

fn reread() {
    run(async {
        let mut node = Node::new();
        node.converge(Scope::ALL).await;
        assert!(!node.host.is_stale());
        node.add_peer(7);
        sh("ip route add 10.128.1.192/26 dev wgo0 proto 87"); // ours by its mark, and not known to us
        let steps = plan(&node.desired, node.host.observed()).steps;
        assert_eq!(node.host.apply_all(&steps).await.len(), 1);
        assert!(node.host.is_stale());
        node.converge(Scope::NONE).await;
        node.assert_converged().await;
    });
}
