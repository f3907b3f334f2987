//! What is not true is refused: real networks that are broken on purpose, and what the suite
//! makes of them. They need root; `scripts/test` runs them.

use podway_bench::contender::{Contender, InCharge};
use podway_bench::netns::Netns;
use podway_bench::suite::{Measure, Metric, Outcome, Wire};
use podway_bench::topology::{Cluster, UPLINK};

/// First part of the names of these tests' networks.
const PREFIX: &str = "podway-honesty";
const CELL: Measure = Measure::TCP;

/// Measures a contender on a wire that something was done to.
fn measured(wire: Wire, contender: Contender, broken: impl Fn(&Netns)) -> Outcome {
    let cluster = Cluster::new(wire.spec(PREFIX)).unwrap();
    for node in cluster.nodes() {
        broken(&node.netns);
    }
    let in_charge = InCharge::put(contender, &cluster).unwrap_or_else(|error| panic!("{error}"));
    let outcome = CELL.run(&cluster, &in_charge, None, 1).unwrap();
    in_charge.take_away(&cluster).unwrap();
    assert_eq!(cluster.remove(), Vec::<String>::new());
    outcome
}

fn switch_on(feature: &str) -> impl Fn(&Netns) {
    move |node| {
        let args = ["-K", UPLINK, feature, "on"];
        node.run("ethtool", &args).unwrap();
    }
}

fn refused(outcome: Outcome) -> String {
    match outcome {
        Outcome::Refused(reason) => reason,
        Outcome::Values(values) => panic!("not refused: {values:?}"),
    }
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_wire_that_cuts_datagrams_is_refused() {
    // Whoever sends super-frames of datagrams would gain by it, so nobody is measured on it.
    let reason = refused(measured(
        Wire::True,
        Contender::KernelVxlan,
        switch_on("tx-udp-segmentation"),
    ));
    let part = "is not wire-true: tx-udp-segmentation is on";
    assert!(reason.contains(part), "{part} is missing in: {reason}");
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn super_frames_in_a_tunnel_are_refused() {
    let reason = refused(measured(Wire::True, Contender::KernelVxlan, |node| {
        for feature in [
            "tso",
            "tx-udp_tnl-segmentation",
            "tx-udp_tnl-csum-segmentation",
        ] {
            switch_on(feature)(node);
        }
    }));
    for part in [
        "(on average), over an MTU of 1500: the figure would be a lie",
        "(the longest seen), over an MTU of 1500",
        "tx-udp_tnl-segmentation, tx-udp_tnl-csum-segmentation",
    ] {
        assert!(reason.contains(part), "{part} is missing in: {reason}");
    }
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn super_frames_between_hosts_are_refused() {
    let reason = refused(measured(Wire::True, Contender::Hosts, |node| {
        switch_on("tso")(node);
        switch_on("gso")(node);
    }));
    assert!(reason.contains("the figure would be a lie"), "{reason}");
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn unfinished_checksums_are_refused_where_a_wire_cannot_carry_them() {
    let reason = refused(measured(
        Wire::TrueTxOff,
        Contender::KernelVxlan,
        switch_on("tx"),
    ));
    assert!(
        reason.contains("was never finished, or is wrong"),
        "{reason}"
    );
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_true_wire_has_figures() {
    for contender in [Contender::KernelVxlan, Contender::PodwayVxlan] {
        let outcome = measured(Wire::TrueTxOff, contender, |_| {});
        let frame = outcome.value(Metric::AverageFrame);
        assert!(frame.is_some_and(|frame| frame <= 1518.0), "{outcome:?}");
    }
}
