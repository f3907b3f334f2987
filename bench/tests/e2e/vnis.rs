//! Routes by another VNI than the overlay's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use etherparse::PacketBuilder;
use podway_bench::capture::Capture;
use podway_bench::frames::send_raw;
use podway_bench::podway::Options;
use podway_bench::topology::{Node, UPLINK};
use podway_proto::types::Mode;

use crate::malformed::mac_of;
use crate::support::{Delta, Network, counted, options, ping_all, spec, wait_for_answer};

/// An address of a pod of node 2 to which node 1 has a route of its own, and the route.
const EXTRA: &str = "10.99.0.1";
const PREFIX: &str = "10.99.0.0/24";
const PINGS: u16 = 10;
const STRANGE: u64 = 10;

/// How many tunnels of each VNI leave the uplinks while `what` is done.
fn vnis(network: &Network, what: impl FnOnce()) -> BTreeMap<u32, usize> {
    let capture = Capture::on(&network.cluster).unwrap();
    what();
    let mut seen = BTreeMap::new();
    for frame in capture.finish().unwrap() {
        // Over IPv4: the UDP port, and the VNI behind it.
        if frame.bytes.len() > 50 && frame.bytes[36..38] == 4789_u16.to_be_bytes() {
            let [a, b, c] = [46, 47, 48].map(|at| frame.bytes[at]);
            *seen.entry(u32::from_be_bytes([0, a, b, c])).or_insert(0) += 1;
        }
    }
    seen
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_route_by_another_vni_is_the_same_with_and_without_a_dataplane() {
    let base = options(Mode::Vxlan);
    let options = Options {
        config: format!("{}also-vnis = [77]\n", base.config),
        ..base
    };
    let mut network = Network::up(spec(), &options);
    // As systemd sets it: the way back is by the other VNI's device.
    for node in [0, 1] {
        let loose = "net.ipv4.conf.all.rp_filter=2";
        network.node(node).netns.sysctl(&[loose]).unwrap();
    }
    let (pod, other) = (network.pod(0, 0).clone(), network.pod(1, 0).clone());
    let extra: IpAddr = EXTRA.parse().unwrap();
    let lines = [
        format!("addr add {EXTRA}/32 dev lo"),
        "link set dev lo up".to_owned(),
    ];
    other.netns.ip(&lines).unwrap();
    let second = network.agent(1);
    let port = &*other.host_interface;
    let address = other.ipv4.to_string();
    second.cli(&["port", "del", port]).unwrap();
    let args = ["port", "add", port, "--pod-ip", &address, "--pod-ip", EXTRA];
    second.cli(&args).unwrap();
    let first = network.agent(0);
    let refused = first.cli(&["route", "add", PREFIX, "via", "n2", "vni", "78"]);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("add it to also-vnis"), "{refused}");
    let add = ["route", "add", PREFIX, "via", "n2", "vni", "77"];
    first.cli(&add).unwrap();
    let shown = first.cli(&["route", "list"]).unwrap();
    assert!(
        shown.contains(&format!("{PREFIX} via n2 vni 77 origin added")),
        "{shown}"
    );
    let status = first.cli(&["status"]).unwrap();
    assert!(status.contains("vni 1, 77 port"), "{status}");
    network.podway.wait_ready().unwrap();
    wait_for_answer(&pod.netns, extra, std::time::Duration::from_secs(10));

    // There by 77, and back by the route of the pod's PodCIDR.
    let pings = usize::from(PINGS);
    let before = network.counters();
    let seen = vnis(&network, || {
        ping_all(&pod.netns, extra, 56, PINGS);
        ping_all(&pod.netns, other.ipv4.into(), 56, PINGS);
    });
    assert_eq!(seen, BTreeMap::from([(77, pings), (1, 3 * pings)]));
    for (before, after) in before.iter().zip(&network.counters()) {
        let delta = Delta { before, after };
        assert_eq!(delta.packets(UPLINK), (2 * pings as u64, 2 * pings as u64));
        assert_eq!(delta.drops().len(), 0, "{:?}", delta.drops());
    }

    a_vni_that_is_not_configured_is_nobodys(&network);

    for node in [0, 1] {
        network.podway.agent_mut(node).stop_dataplane().unwrap();
    }
    let seen = vnis(&network, || ping_all(&pod.netns, extra, 56, PINGS));
    assert_eq!(seen, BTreeMap::from([(77, pings), (1, pings)]));
    for node in [0, 1] {
        network.podway.agent_mut(node).start_dataplane().unwrap();
    }
    network.podway.wait_ready().unwrap();
    ping_all(&pod.netns, extra, 56, PINGS);
    network.finish();
}

fn a_vni_that_is_not_configured_is_nobodys(network: &Network) {
    let (here, there) = (network.node(0), network.node(1));
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let mut inner = Vec::new();
    PacketBuilder::ethernet2(there.vtep_mac().0, here.vtep_mac().0)
        .ipv4(peer.ipv4.octets(), pod.ipv4.octets(), 64)
        .udp(40_000, 9)
        .write(&mut inner, &[0xa5; 64])
        .unwrap();
    let tunnel = |from: &Node, to: &Node, vni: u8| {
        let payload = [&[0x08, 0, 0, 0, 0, 0, vni, 0], &*inner].concat();
        let (source, target) = (mac_of(&from.netns, UPLINK), mac_of(&to.netns, UPLINK));
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(source.0, target.0)
            .ipv4(from.underlay.octets(), to.underlay.octets(), 64)
            .udp(50_000, 4789)
            .write(&mut frame, &payload)
            .unwrap();
        frame
    };
    let arrived = || counted(&pod.netns, "Udp", "NoPorts");
    for (vni, taken) in [(1, STRANGE), (77, STRANGE), (78, 0)] {
        let (arrived_before, before) = (arrived(), network.counters());
        let frame = tunnel(there, here, vni);
        for _ in 0..STRANGE {
            send_raw(&there.netns, UPLINK, &frame).unwrap();
        }
        let after = network.counters();
        let delta = Delta {
            before: &before[0],
            after: &after[0],
        };
        let passed = delta.passed(UPLINK).get("unknown_vni").copied();
        let unknown = (taken == 0).then_some(STRANGE);
        assert_eq!((delta.packets(UPLINK).0, passed), (taken, unknown));
        assert_eq!(arrived() - arrived_before, taken, "of VNI {vni}");
    }
}
