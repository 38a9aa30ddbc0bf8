//! Which pairs of nodes don't talk, from what each node says of the others.
//!
//! Pure: whoever asks the nodes is elsewhere. A cluster of 5,000 has 12.5 million pairs, so a node's words are a byte a
//! peer, and notes are kept only where something is wrong.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{PeerState, PeerStatus};

/// What one node says of all the others, by their position in the list of nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    states: Vec<Option<PeerState>>,
    notes: BTreeMap<usize, String>,
}

impl Words {
    /// The words of a node's status. `nodes` are the names of all, sorted.
    pub fn new(nodes: &[String], peers: &[PeerStatus]) -> Self {
        let mut words = Self { states: vec![None; nodes.len()], notes: BTreeMap::new() };
        for peer in peers {
            // a peer that is no Node any more is about to go
            let Ok(at) = nodes.binary_search(&peer.node) else { continue };
            if let Some(state) = words.states.get_mut(at) {
                *state = Some(peer.state);
            }
            let note = peer.note.as_ref().or(peer.reason.as_ref()).filter(|_| is_fault(peer.state));
            words.notes.extend(note.map(|note| (at, note.clone())));
        }
        words
    }
}

/// What one node of a pair says of the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "says")]
pub enum Says {
    /// How the other is, and why.
    State {
        /// How it is.
        state: PeerState,
        /// Why.
        note: Option<String>,
    },
    /// It does not know the other.
    Nothing,
    /// It was not heard, or does not know the Nodes yet.
    Unheard,
}

/// Two nodes, in the order of their names, of which at least one says that they don't talk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Their names.
    pub nodes: [String; 2],
    /// What the first says of the second, and the second of the first.
    pub says: [Says; 2],
}

/// The pairs that don't talk, in the order of their names. `nodes` are the names of all, sorted, and `heard` what each
/// of them says; `None` for one that was not heard.
pub fn fold(nodes: &[String], heard: &[Option<Words>]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (i, a) in nodes.iter().enumerate() {
        for (j, b) in nodes.iter().enumerate().skip(i + 1) {
            if is_wrong(heard, i, j) || is_wrong(heard, j, i) {
                let says = [says(heard, i, j), says(heard, j, i)];
                pairs.push(Pair { nodes: [a.clone(), b.clone()], says });
            }
        }
    }
    pairs
}

fn words(heard: &[Option<Words>], node: usize) -> Option<&Words> {
    heard.get(node).and_then(Option::as_ref)
}

/// Whether what one says of the other means that they don't talk. That a node has published no key yet is its own
/// affair while it is not heard; once it answers, the others should know it.
fn is_wrong(heard: &[Option<Words>], from: usize, of: usize) -> bool {
    match words(heard, from).map(|w| w.states.get(of).copied().flatten()) {
        Some(None) => true,
        Some(Some(PeerState::NoAgent)) => words(heard, of).is_some(),
        Some(Some(state)) => is_fault(state),
        None => false,
    }
}

fn says(heard: &[Option<Words>], from: usize, of: usize) -> Says {
    match words(heard, from) {
        None => Says::Unheard,
        Some(words) => match words.states.get(of).copied().flatten() {
            None => Says::Nothing,
            Some(state) => Says::State { state, note: words.notes.get(&of).cloned() },
        },
    }
}

fn is_fault(state: PeerState) -> bool {
    matches!(state, PeerState::Down | PeerState::Refused | PeerState::Unresolved)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATES: [PeerState; 6] = [
        PeerState::Down,
        PeerState::Refused,
        PeerState::Unresolved,
        PeerState::Up,
        PeerState::Idle,
        PeerState::NoAgent,
    ];

    /// What each of a few nodes says, by name: not heard, or a state of some of the others.
    type Story = BTreeMap<String, Option<BTreeMap<String, PeerState>>>;

    fn peers(story: &BTreeMap<String, PeerState>) -> Vec<PeerStatus> {
        let peer = |(node, state): (&String, &PeerState)| PeerStatus {
            note: Some(format!("of {node}")),
            ..PeerStatus::new(node, *state)
        };
        story.iter().map(peer).collect()
    }

    fn fold_story(story: &Story, order: impl Fn(&mut Vec<PeerStatus>)) -> Vec<Pair> {
        let nodes: Vec<String> = story.keys().cloned().collect();
        let heard: Vec<_> = story
            .values()
            .map(|said| {
                said.as_ref().map(|said| {
                    let mut peers = peers(said);
                    order(&mut peers);
                    Words::new(&nodes, &peers)
                })
            })
            .collect();
        fold(&nodes, &heard)
    }

    prop_compose! {
        fn story()(
            said in prop::collection::vec(prop::option::of(prop::collection::vec(prop::option::of(0..6usize), 5)), 5)
        ) -> Story {
            let name = |at: usize| format!("n{at}");
            said.into_iter().enumerate().map(|(at, said)| {
                let said = said.map(|states| states.into_iter().enumerate()
                    .filter(|(of, _)| *of != at)
                    .filter_map(|(of, state)| Some((name(of), STATES[state?])))
                    .collect());
                (name(at), said)
            }).collect()
        }
    }

    /// Each name's mirror image: the last node is the first.
    fn mirror(name: &str) -> String {
        format!("n{}", 4 - name[1..].parse::<usize>().unwrap())
    }

    proptest! {
        #[test]
        fn the_order_of_a_nodes_words_does_not_matter(story in story()) {
            prop_assert_eq!(fold_story(&story, |_| ()), fold_story(&story, |peers| peers.reverse()));
        }

        #[test]
        fn both_directions_are_folded_alike(story in story()) {
            let mirrored: Story = story.iter().map(|(name, said)| {
                let said = said.as_ref().map(|s| s.iter().map(|(n, state)| (mirror(n), *state)).collect());
                (mirror(name), said)
            }).collect();
            let renote = |says: &Says| match says {
                Says::State { state, note } => {
                    Says::State { state: *state, note: note.as_ref().map(|n| format!("of {}", mirror(&n[3..]))) }
                }
                other => other.clone(),
            };
            let mut expected: Vec<Pair> = fold_story(&story, |_| ()).into_iter().map(|p| Pair {
                nodes: [mirror(&p.nodes[1]), mirror(&p.nodes[0])],
                says: [renote(&p.says[1]), renote(&p.says[0])],
            }).collect();
            expected.sort_by(|a, b| a.nodes.cmp(&b.nodes));
            prop_assert_eq!(fold_story(&mirrored, |_| ()), expected);
        }

        #[test]
        fn a_pair_is_there_once_and_exactly_where_a_side_says_so(story in story()) {
            let pairs = fold_story(&story, |_| ());
            let names: Vec<_> = story.keys().collect();
            for (i, a) in names.iter().enumerate() {
                for b in names.iter().skip(i + 1) {
                    let wrong = |from: &str, of: &str| story[from].as_ref().is_some_and(|s| match s.get(of) {
                        Some(PeerState::NoAgent) => story[of].is_some(),
                        Some(state) => !matches!(state, PeerState::Up | PeerState::Idle),
                        None => true,
                    });
                    let found = pairs.iter().filter(|p| p.nodes == [(*a).clone(), (*b).clone()]).count();
                    prop_assert_eq!(found, usize::from(wrong(a, b) || wrong(b, a)));
                }
            }
        }
    }
}
