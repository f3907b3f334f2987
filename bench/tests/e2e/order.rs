//! The order within a flow holds, whatever queues and workers its packets cross.

use std::thread;
use std::time::Duration;

use podway_bench::frames::Numbered;
use podway_bench::topology::{ClusterSpec, UPLINK};
use podway_proto::types::Mode;

use crate::support::{Delta, Network, options, spec};

/// Datagrams of each flow.
const COUNT: u32 = 4000;

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn numbered_datagrams_arrive_in_order_by_vxlan() {
    keeps_order(Mode::Vxlan, true);
}

/// Uplinks that carry everything uncut, as veths do between nodes on one machine. What the other
/// node cannot take as it is its kernel would have, and deliver before what a worker still holds.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn numbered_datagrams_arrive_in_order_over_a_virtual_wire() {
    keeps_order(Mode::Vxlan, false);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn numbered_datagrams_arrive_in_order_natively() {
    keeps_order(Mode::Native, true);
}

/// A sender that hands the kernel 40 datagrams at once, then one, and so on. What it hands over at
/// once is the kernel's, and for a second all else of its flow with it: one by one they would
/// overtake each other.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn datagrams_alone_and_forty_at_once_arrive_in_order() {
    for mode in [Mode::Vxlan, Mode::Native] {
        let mut options = options(mode);
        options.workers = 2;
        let network = Network::up(
            ClusterSpec {
                queues: 2,
                ..spec()
            },
            &options,
        );
        let (from, to) = (network.pod(0, 0), network.pod(1, 0));
        let plan = Numbered {
            count: 4100,
            sizes: vec![1000],
            batches: vec![40, 1],
            burst: 41,
            pause: Duration::from_millis(5),
        };
        let before = network.counters();
        let arrived = plan.run(&from.netns, &to.netns, to.ipv4.into()).unwrap();
        assert_eq!((arrived.damaged, arrived.out_of_order()), (0, 0), "{mode}");
        let count = arrived.numbers.len();
        assert!(count >= 4100 / 10 * 9, "{count} of 4100 arrived");
        let after = network.counters();
        let delta = Delta {
            before: &before[0],
            after: &after[0],
        };
        let passed = delta.passed(&from.host_interface);
        // 100 of forty and 100 of one.
        assert_eq!(passed.get("oversize"), Some(&200), "{passed:?}");
        network.finish();
    }
}

fn keeps_order(mode: Mode, wire_true: bool) {
    let spec = ClusterSpec {
        queues: 2,
        wire_true,
        ..spec()
    };
    let mut options = options(mode);
    options.workers = 2;
    let network = Network::up(spec, &options);
    let engine = network.agent(0).engine(UPLINK).unwrap();
    assert_eq!(engine.contains("no runs"), !wire_true, "{engine}");
    // Sizes that gather into runs, end them, and fill the MTU.
    let plan = Numbered {
        count: COUNT,
        sizes: vec![1400, 1400, 1400, 300, 18, 18, 1422, 4],
        batches: Vec::new(),
        burst: 16,
        pause: Duration::from_millis(5),
    };
    // One that wakes a worker, and two that come together.
    let three = Numbered {
        sizes: vec![100],
        burst: 3,
        ..plan.clone()
    };
    // Both directions, several flows each: both queues and both workers have work.
    let flows = [
        (&plan, (0, 0, 1, 0)),
        (&plan, (1, 0, 0, 0)),
        (&plan, (0, 1, 1, 1)),
        (&plan, (1, 1, 0, 1)),
        (&plan, (0, 0, 0, 1)),
        (&three, (0, 0, 1, 1)),
    ];
    let before = network.counters();
    let arrived: u32 = thread::scope(|scope| {
        let flows = flows.map(|(plan, (from_node, from_pod, to_node, to_pod))| {
            let (from, to) = (
                network.pod(from_node, from_pod),
                network.pod(to_node, to_pod),
            );
            scope.spawn(move || {
                let arrived = plan.run(&from.netns, &to.netns, to.ipv4.into()).unwrap();
                let flow = format!("{} to {}", from.ipv4, to.ipv4);
                assert_eq!(arrived.damaged, 0, "{flow}: damaged");
                assert_eq!(arrived.out_of_order(), 0, "{flow}: out of order");
                u32::try_from(arrived.numbers.len()).unwrap()
            })
        });
        flows.into_iter().map(|flow| flow.join().unwrap()).sum()
    });
    // The pace is far below what even a slow machine forwards. Where a worker did not get its core
    // for a while, the rings overran, and each lost datagram is in the books.
    let lost = network.lost_since(&before);
    let sent = COUNT * 6;
    assert_eq!(
        u64::from(arrived) + lost,
        u64::from(sent),
        "arrived and lost"
    );
    assert!(arrived >= sent / 10 * 9, "{arrived} of {sent} arrived");
    for (before, after) in before.iter().zip(&network.counters()) {
        let passed = Delta { before, after }.passed(UPLINK);
        assert_eq!(passed.get("batch"), None, "{passed:?}");
    }
    network.finish();
}
