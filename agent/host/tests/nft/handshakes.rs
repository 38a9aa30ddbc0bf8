//! What the table makes of WireGuard's handshakes.

use std::net::UdpSocket;

use wg_overlay_mesh::ruleset;

use crate::{
    Test,
    lab::{FAMILIES, Lab, Side, firewall},
    netns::{Receiver, at, ip},
};

pub const TESTS: &[Test] = &[
    ("initiations_without_an_answer_are_bounded_and_counted", bounded),
    ("initiations_that_this_node_answers_not_are_told", told),
];

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 4;

/// Both ends of a tunnel: the node's and the outside's.
struct Ends<'a> {
    side: &'a Side,
    node: UdpSocket,
    outside: UdpSocket,
}

impl<'a> Ends<'a> {
    fn new(lab: &Lab, side: &'a Side) -> Self {
        let node = lab.node.udp(&at(side.node, 51820));
        Self { side, node, outside: lab.outside.udp(&at(side.outside, 51820)) }
    }

    /// Sends a message to the outside; false where a rule refuses it.
    fn out(&self, kind: u8) -> bool {
        self.node.send_to(&[kind, 0, 0, 0, 7, 7, 7, 7], at(self.side.outside, 51820)).is_ok()
    }

    /// Sends a message to the node, and waits until it is there.
    fn come(&self, kind: u8) {
        self.outside.send_to(&[kind, 0, 0, 0, 7, 7, 7, 7], at(self.side.node, 51820)).unwrap();
        assert!(self.node.source(crate::netns::PATIENCE).is_some(), "it doesn't arrive");
    }
}

fn bounded() {
    let lab = Lab::new();
    lab.set_firewall(&firewall());
    for side in &FAMILIES {
        let ends = Ends::new(&lab, side);
        let before = lab.counter("handshakes_over_limit");
        let passed = |of: usize| (0..of).filter(|_| ends.out(INITIATION)).count();
        // one in 15 s comes to the burst of 18, and the machine may be slow
        let (first, then) = (passed(18), passed(30));
        assert_eq!(first, 18);
        assert!(then < 30, "all pass");
        assert_eq!(lab.counter("handshakes_over_limit") - before, u64::try_from(30 - then).unwrap());
        assert!(ends.out(DATA) && ends.out(RESPONSE), "what is no initiation is held back");
        for answer in [RESPONSE, INITIATION] {
            ends.come(answer);
            assert_eq!(passed(18), 18, "it lives");
            assert!(passed(30) < 30, "all pass");
        }
        ends.come(DATA);
        assert!(passed(30) < 30, "data, which anybody may forge at no cost, is no answer");
    }
    assert_eq!(lab.observe().firewall.unwrap().ruleset, ruleset(&firewall()), "elements are no difference");
    lab.set_firewall_without(&firewall(), "update @initiations_out");
    let ends = Ends::new(&lab, &FAMILIES[0]);
    assert!((0..60).all(|_| ends.out(INITIATION)), "something else holds them back");
}

fn told() {
    let lab = Lab::new();
    assert!(lab.nft(|nft| nft.unanswered().unwrap()).is_empty(), "without a table there is nobody");
    lab.set_firewall(&firewall());
    let waiting = || lab.nft(|nft| nft.unanswered().unwrap());
    for side in &FAMILIES {
        let ends = Ends::new(&lab, side);
        ends.come(DATA);
        ends.come(RESPONSE);
        assert!(waiting().is_empty(), "{:?}", waiting());
        ends.come(INITIATION);
        let first = waiting();
        assert_eq!(first.keys().collect::<Vec<_>>(), [&ip(side.outside)]);
        let start = std::time::Instant::now();
        while waiting()[&ip(side.outside)] <= first[&ip(side.outside)] {
            // the next one doesn't begin it anew
            ends.come(INITIATION);
            assert!(start.elapsed() < crate::netns::PATIENCE, "it doesn't age");
        }
        assert_eq!(lab.observe().firewall.unwrap().ruleset, ruleset(&firewall()), "it is no difference");
        assert!(ends.out(RESPONSE));
        assert!(waiting().is_empty(), "{:?}", waiting());
    }
}
