//! Neighbours that change their address, vanish and come back: the kernel finds out, the tables follow.

use std::time::Duration;

use podway_bench::netns::wait_until;
use podway_bench::ping::Ping;
use podway_bench::topology::UPLINK;
use podway_proto::types::Mode;

use crate::support::{Delta, Network, options, ping_all, spec, wait_for_answer};

/// How long anything may take to be followed, on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(10);
const PINGS: u16 = 20;

/// The other node has another network card: its kernel says so by gratuitous ARP, and both dataplanes
/// go on.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_new_mac_is_followed() {
    for mode in [Mode::Vxlan, Mode::Native] {
        let network = Network::up(spec(), &options(mode));
        let (from, to) = (&network.pod(0, 0).netns, network.pod(1, 0).ipv4.into());
        ping_all(from, to, 56, 3);
        let other = &network.node(1).netns;
        let notify = format!("net.ipv4.conf.{UPLINK}.arp_notify=1");
        other.sysctl(&[&notify]).unwrap();
        other
            .ip(&[format!("link set dev {UPLINK} address 02:00:00:00:99:02")])
            .unwrap();
        wait_for_answer(from, to, PATIENCE);
        is_fast(&network);
        network.finish();
    }
}

/// A neighbour that answers no longer costs packets, which are the kernel's and counted under a cause;
/// when it answers again nobody need help.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_lost_neighbour_is_passed_and_recovers() {
    let network = Network::up(spec(), &options(Mode::Native));
    let (from, to) = (&network.pod(0, 0).netns, network.pod(1, 0).ipv4.into());
    ping_all(from, to, 56, 3);
    let (node, other) = (&network.node(0).netns, &network.node(1).netns);
    let port = network.pod(0, 0).host_interface.clone();
    let underlay = network.node(1).underlay;
    let arp = |on: &str| {
        other
            .ip(&[format!("link set dev {UPLINK} arp {on}")])
            .unwrap();
    };
    let before = network.counters();
    arp("off");
    node.ip(&[format!("neigh del {underlay} dev {UPLINK}")])
        .unwrap();
    let one = Ping {
        count: 1,
        ..Ping::default()
    };
    wait_until("the loss is known", PATIENCE, || {
        let answered = one.run(from, to).is_ok_and(|replies| replies.received == 1);
        let after = network.counters();
        let delta = Delta {
            before: &before[0],
            after: &after[0],
        };
        match delta.passed(&port).get("unresolved") {
            Some(_) if !answered => Ok(()),
            passed => Err(format!("passed as unresolved: {passed:?}")),
        }
    })
    .unwrap();
    arp("on");
    wait_for_answer(from, to, PATIENCE);
    is_fast(&network);
    network.finish();
}

/// Pings are all on the fast path of both nodes.
pub(crate) fn is_fast(network: &Network) {
    let (from, to) = (&network.pod(0, 0).netns, network.pod(1, 0).ipv4.into());
    wait_until("pings take the fast path", PATIENCE, || {
        let before = network.counters();
        ping_all(from, to, 56, PINGS);
        let after = network.counters();
        let pings = u64::from(PINGS);
        let mut nodes = before.iter().zip(&after);
        let all =
            nodes.all(|(before, after)| Delta { before, after }.packets(UPLINK) == (pings, pings));
        if all {
            Ok(())
        } else {
            Err(format!("{after:?}"))
        }
    })
    .unwrap();
}
