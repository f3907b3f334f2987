//! [`super::forward`] against the reference router, over any facts and packets.
//!
//! A case is a node with a burst of packets.

use std::collections::HashSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::fib::NextHopKind;
use crate::testing::kernel::wire;
use crate::testing::node::{Forwarded, Node};
use crate::testing::packets::{Offsets, fix_ip, get16, hop_limit};
use crate::testing::plan::Facts;
use crate::testing::router::{Arrival, Departure, Router, Target, on_the_wire};
use crate::testing::worlds::{Mutation, Shape, facts, mutation, shape};
use crate::verdict::DropReason;

type Outcome = Result<Departure, DropReason>;

/// Packets of a case.
const BURST: std::ops::Range<usize> = 1..16;

/// What [`super::forward`] makes of a packet.
fn ours(node: &mut Node, arrival: &Arrival) -> Outcome {
    (node.chunk, node.offload) = (arrival.chunk, arrival.offload);
    node.forward(arrival.port, &arrival.frame).map(departure)
}

/// The answer to a packet that dies of `reason`, or that.
fn our_answer(node: &mut Node, arrival: &Arrival, reason: DropReason) -> Outcome {
    (node.chunk, node.offload) = (arrival.chunk, arrival.offload);
    let answer = node.answer(arrival.port, &arrival.frame);
    answer.map(departure).ok_or(reason)
}

fn departure(forwarded: Forwarded<'_>) -> Departure {
    let Forwarded { send, bytes } = forwarded;
    let target = match &send.next_hop.kind {
        NextHopKind::Pod => Target::Pod,
        NextHopKind::Native => Target::Native,
        NextHopKind::Tunnel(outer) => Target::Tunnel(outer.bytes().to_vec()),
        NextHopKind::Unresolved | NextHopKind::Group(_) => panic!("sent by no way"),
    };
    Departure {
        bytes,
        port: send.next_hop.port,
        target,
        max_l3_len: send.max_l3_len,
        partial_checksum: send.partial_checksum,
    }
}

/// Where the two disagree on a packet, or on the answer to one that both drop.
fn disagreement(node: &mut Node, router: &Router, arrival: &Arrival) -> Option<String> {
    let (ours, reference) = (ours(node, arrival), router.route(arrival));
    if let Some(text) = difference(&ours, &reference) {
        return Some(text);
    }
    let reason = ours.err()?;
    let ours = our_answer(node, arrival, reason);
    let reference = router.answer(arrival, reason).ok_or(reason);
    let text = difference(&ours, &reference)?;
    Some(format!("the answer to {}: {text}", reason.name()))
}

/// Where two outcomes differ, in few words: a packet may have 60,000 bytes.
fn difference(ours: &Outcome, reference: &Outcome) -> Option<String> {
    let (ours, reference) = match (ours, reference) {
        (Ok(ours), Ok(reference)) => (ours, reference),
        (Err(ours), Err(reference)) if ours == reference => return None,
        (ours, reference) => {
            let verdict = |outcome: &Outcome| match outcome {
                Ok(sent) => format!("sent by {:?}", sent.port),
                Err(reason) => reason.name().to_owned(),
            };
            return Some(format!("{}, not {}", verdict(ours), verdict(reference)));
        }
    };
    if let Some(text) = first_difference(&ours.bytes, &reference.bytes) {
        return Some(text);
    }
    let rest = |departure: &Departure| Departure {
        bytes: Vec::new(),
        ..departure.clone()
    };
    let (ours, reference) = (rest(ours), rest(reference));
    (ours != reference).then(|| format!("{ours:?}, not {reference:?}"))
}

fn first_difference(ours: &[u8], reference: &[u8]) -> Option<String> {
    let differ = |at: &usize| ours.get(*at) != reference.get(*at);
    let at = (0..ours.len().max(reference.len())).find(differ)?;
    let headers = |bytes: &[u8]| format!("{:02x?}", &bytes[..bytes.len().min(130)]);
    Some(format!(
        "byte {at} differs\n{}\n{}",
        headers(ours),
        headers(reference)
    ))
}

/// Whether a packet leaves in one frame.
fn fits(arrival: &Arrival, departure: &Departure) -> bool {
    let l3_len = departure.bytes.len() - 14;
    let at = Offsets::of(&departure.bytes);
    let segment = arrival.offload.map_or(0, |told| told.segment).into();
    let payload = departure.bytes.len().saturating_sub(at.payload);
    l3_len <= departure.max_l3_len.into() && (segment == 0 || payload <= segment)
}

/// What gathering makes of a packet that leaves in one frame.
fn check_wire(
    node: &mut Node,
    arrival: &Arrival,
    reference: &Departure,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(node.receive(arrival.port, &arrival.frame), Ok(()));
    let out = node.flush();
    prop_assert_eq!(out.len(), 1);
    prop_assert_eq!(out[0].ifindex, 10 + u32::from(reference.port.0));
    let frames = wire(&out[0]);
    prop_assert_eq!(frames.len(), 1);
    let frame = &frames[0];
    // The flow's own affair, but in the range that RFC 7348, section 5, recommends.
    let source_port = get16(frame, Offsets::of(frame).l4);
    if let Target::Tunnel(_) = reference.target {
        prop_assert!(source_port >= 49_152, "source port {}", source_port);
    }
    let difference = first_difference(frame, &on_the_wire(reference, source_port));
    prop_assert!(difference.is_none(), "on the wire: {}", difference.unwrap());
    Ok(())
}

proptest! {
    // Eight times what proptest runs by itself, or what `PROPTEST_CASES` says.
    #![proptest_config(ProptestConfig::with_cases(8 * ProptestConfig::default().cases))]

    /// Verdict, bytes, way, MTU and checksum state, and what is on the wire then; and the answer to
    /// what is dropped.
    #[test]
    fn forward_agrees_with_the_reference_router(facts in facts(), burst in vec(shape(), BURST)) {
        let mut node = Node::new(facts.tables());
        let router = Router::new(facts.clone());
        for shape in &burst {
            let arrival = shape.arrival(&facts);
            let difference = disagreement(&mut node, &router, &arrival);
            prop_assert!(difference.is_none(), "{:?}: {}", shape, difference.unwrap());
            if let Ok(reference) = &router.route(&arrival)
                && fits(&arrival, reference)
            {
                check_wire(&mut node, &arrival, reference)?;
            }
        }
    }

    /// Packets that chance has changed, mended here and there so that they are not all refused by
    /// the first check.
    #[test]
    fn forward_agrees_with_the_reference_router_on_mutated_frames(
        facts in facts(),
        burst in vec((shape(), mutation()), BURST),
    ) {
        let mut node = Node::new(facts.tables());
        let router = Router::new(facts.clone());
        for (shape, mutation) in &burst {
            let mut arrival = shape.arrival(&facts);
            mutation.apply(&mut arrival);
            let difference = disagreement(&mut node, &router, &arrival);
            prop_assert!(
                difference.is_none(),
                "{:?} {:?}: {}", shape, mutation, difference.unwrap()
            );
        }
    }
}

/// Facts and packets, the same in each run.
fn samples(count: usize) -> impl Iterator<Item = (Facts, Vec<(Shape, Mutation)>)> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    let all = (facts(), vec((shape(), mutation()), BURST));
    (0..count).map(move |_| all.new_tree(&mut runner).unwrap().current())
}

/// The two properties would hold of packets that are all dropped for one reason, too.
#[test]
fn the_packets_take_every_way_and_die_of_every_reason() {
    let mut ways = HashSet::new();
    let mut reasons = HashSet::new();
    let mut answers = HashSet::new();
    for (facts, burst) in samples(2500) {
        let router = Router::new(facts.clone());
        for (shape, mutation) in burst {
            let mut arrival = shape.arrival(&facts);
            for mutated in [false, true] {
                if mutated {
                    mutation.apply(&mut arrival);
                }
                match router.route(&arrival) {
                    Ok(sent) => {
                        let outer = match &sent.target {
                            Target::Pod => "pod",
                            Target::Native => "native",
                            Target::Tunnel(outer) if outer.len() == 50 => "tunnel over IPv4",
                            Target::Tunnel(_) => "tunnel over IPv6",
                        };
                        ways.insert((outer, Offsets::of(&sent.bytes).v6, sent.partial_checksum));
                    }
                    Err(reason) => {
                        reasons.insert(reason);
                        answers.extend(router.answer(&arrival, reason).map(|answer| {
                            let v6 = Offsets::of(&answer.bytes).v6;
                            (reason, v6, answer.target == Target::Pod)
                        }));
                    }
                }
            }
        }
    }
    assert_eq!(ways.len(), 4 * 2 * 2, "{ways:?}");
    // Those are egress' own.
    let elsewhere = [DropReason::EgressFull, DropReason::EgressRefused];
    let missing: Vec<_> = DropReason::ALL
        .iter()
        .filter(|reason| !reasons.contains(reason) && !elsewhere.contains(reason))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    // Each of three errors over both IP versions, to a pod of this node and to another's.
    assert_eq!(answers.len(), 3 * 2 * 2, "{answers:?}");
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// One hop too many is taken off.
    HopLimit,
    /// The frame goes to another interface of the link.
    Mac,
    /// The congestion mark is another one.
    Ecn,
    /// One byte more is let through.
    Mtu,
}

impl Fault {
    /// Makes the departure that of a router with this fault, its IPv4 checksum right.
    fn plant(self, sent: &mut Departure) {
        let v6 = Offsets::of(&sent.bytes).v6;
        match self {
            Self::HopLimit => sent.bytes[if v6 { 21 } else { 22 }] -= 1,
            Self::Mac => sent.bytes[5] ^= 1,
            Self::Ecn => sent.bytes[15] ^= if v6 { 0x10 } else { 1 },
            Self::Mtu => sent.max_l3_len += 1,
        }
        fix_ip(&mut sent.bytes);
    }
}

#[test]
fn the_oracle_sees_a_planted_fault() {
    let faults = [Fault::HopLimit, Fault::Mac, Fault::Ecn, Fault::Mtu];
    let mut planted = 0;
    for (facts, burst) in samples(200) {
        let mut node = Node::new(facts.tables());
        let router = Router::new(facts.clone());
        for (shape, _) in burst {
            let arrival = shape.arrival(&facts);
            let reference = router.route(&arrival);
            let Ok(sent) = ours(&mut node, &arrival) else {
                continue;
            };
            assert_eq!(difference(&Ok(sent.clone()), &reference), None);
            assert!(hop_limit(&sent.bytes) > 0);
            for fault in faults {
                let mut faulty = sent.clone();
                fault.plant(&mut faulty);
                let seen = difference(&Ok(faulty), &reference);
                assert!(seen.is_some(), "{fault:?} of {shape:?}");
                planted += 1;
            }
        }
    }
    assert!(planted > 1000, "{planted}");
}

/// A limit that is one byte too high, in the product's tables only, is seen by what it lets through.
#[test]
fn the_oracle_sees_a_limit_that_is_one_too_high() {
    let mut let_through = 0;
    for (facts, burst) in samples(600) {
        let mut generous = facts.clone();
        for port in &mut generous.ports {
            port.mtu += 1;
        }
        for path in generous
            .nodes
            .iter_mut()
            .filter_map(|node| node.path.as_mut())
        {
            path.mtu += 1;
        }
        let mut node = Node::new(generous.tables());
        let router = Router::new(facts.clone());
        for (shape, _) in burst {
            let arrival = shape.arrival(&facts);
            let outcomes = (ours(&mut node, &arrival), router.route(&arrival));
            if let (Ok(_), Err(DropReason::TooBig)) = &outcomes {
                let seen = difference(&outcomes.0, &outcomes.1);
                assert!(seen.is_some_and(|text| text.ends_with("not too_big")));
                let_through += 1;
            }
        }
    }
    assert!(let_through > 0);
}
