//! Allowed IPs agree with a naive model: one list of who holds what.

use proptest::prelude::*;

use super::*;

/// Few peers and prefixes, so that they meet.
fn peer() -> impl Strategy<Value = PublicKey> {
    (0..4_u8).prop_map(|n| PublicKey::from([n; 32]))
}

fn change() -> impl Strategy<Value = AllowedIp> {
    let prefix = (0..6_u8).prop_map(|n| {
        let network = ipnetwork::Ipv4Network::new([10, n, 0, 0].into(), 16);
        IpNetwork::V4(network.expect("16 is a prefix length"))
    });
    (prefix, any::<bool>()).prop_map(
        |(prefix, add)| {
            if add { AllowedIp::Add(prefix) } else { AllowedIp::Remove(prefix) }
        },
    )
}

#[derive(Clone, Debug)]
enum Action {
    Assign(PublicKey, bool, Vec<AllowedIp>),
    Forget(PublicKey),
}

fn action() -> impl Strategy<Value = Action> {
    let changes = prop::collection::vec(change(), 0..5);
    prop_oneof![
        4 => (peer(), any::<bool>(), changes).prop_map(|(peer, replace, changes)| {
            Action::Assign(peer, replace, changes)
        }),
        1 => peer().prop_map(Action::Forget),
    ]
}

proptest! {
    #[test]
    fn allowed_ips_agree_with_a_list(actions in prop::collection::vec(action(), 1..30)) {
        let mut allowed = AllowedIps::default();
        let mut model: Vec<(IpNetwork, PublicKey)> = Vec::new();
        for action in actions {
            match action {
                Action::Forget(peer) => {
                    allowed.forget(&peer);
                    model.retain(|(_, holder)| *holder != peer);
                }
                Action::Assign(peer, replace, changes) => {
                    if replace {
                        model.retain(|(_, holder)| *holder != peer);
                    }
                    for change in &changes {
                        match *change {
                            AllowedIp::Add(prefix) => {
                                model.retain(|(held, _)| *held != prefix);
                                model.push((prefix, peer));
                            }
                            AllowedIp::Remove(prefix) => model.retain(|held| *held != (prefix, peer)),
                        }
                    }
                    allowed.assign(peer, replace, &changes);
                }
            }
            for (peer, held) in &allowed.of_peer {
                prop_assert_eq!(held, &of(&model, *peer));
            }
            let holders: BTreeSet<_> = allowed.holder.iter().map(|(p, k)| (*p, k.to_bytes())).collect();
            let modelled: BTreeSet<_> = model.iter().map(|(p, k)| (*p, k.to_bytes())).collect();
            prop_assert_eq!(holders, modelled);
        }
    }
}

fn of(model: &[(IpNetwork, PublicKey)], peer: PublicKey) -> BTreeSet<IpNetwork> {
    let held = model.iter().filter(|(_, holder)| *holder == peer);
    held.map(|(prefix, _)| *prefix).collect()
}
