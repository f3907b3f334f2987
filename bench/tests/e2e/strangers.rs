//! Tunnels from an address that no node was told to have: neither the dataplane nor the kernel takes
//! them, unless the configuration says so.

use etherparse::{PacketBuilder, UdpHeader};
use podway_bench::frames::send_raw;
use podway_bench::podway::Options;
use podway_bench::topology::{Node, UPLINK};
use podway_proto::control::derived_vtep_mac;
use podway_proto::types::Mode;

use crate::malformed::{finish_ipv4, mac_of, put};
use crate::support::{Delta, Network, counted, options, ping_all, spec};

/// Frames of each kind.
const COUNT: u64 = 10;
/// Offset of the IP header behind an Ethernet header.
const IP: usize = 14;

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn tunnels_over_ipv4_are_taken_from_nodes_only() {
    tunnels(false, false);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn tunnels_over_ipv6_are_taken_from_nodes_only() {
    tunnels(true, false);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn tunnels_over_ipv4_are_taken_from_anybody_if_allowed() {
    tunnels(false, true);
}

fn tunnels(v6: bool, allowed: bool) {
    let base = options(Mode::Vxlan);
    let options = Options {
        config: format!("{}allow-unknown-vteps = {allowed}\n", base.config),
        underlay6: v6,
        ..base
    };
    let mut network = Network::up(spec(), &options);
    let (here, there) = (network.node(0).clone(), network.node(1).clone());
    let (pod, peer) = (network.pod(0, 0).clone(), network.pod(1, 0).clone());
    ping_all(&pod.netns, peer.ipv4.into(), 56, 1);

    let (to, from) = (mac_of(&here.netns, UPLINK), mac_of(&there.netns, UPLINK));
    // An address of the underlay that nobody has.
    let outer = |payload: &[u8]| {
        let ethernet = PacketBuilder::ethernet2(from.0, to.0);
        let step = if v6 {
            let mut stranger = there.underlay6.octets();
            stranger[15] = 77;
            ethernet.ipv6(stranger, here.underlay6.octets(), 64)
        } else {
            let mut stranger = there.underlay.octets();
            stranger[3] = 77;
            ethernet.ipv4(stranger, here.underlay.octets(), 64)
        };
        let mut frame = Vec::new();
        step.udp(50_000, 4789).write(&mut frame, payload).unwrap();
        frame
    };
    let vxlan = |inner: &[u8]| [&[0x08, 0, 0, 0, 0, 0, 1, 0], inner].concat();
    let vtep_mac = |node| derived_vtep_mac(options.underlay_of(node)).0;
    let mut inner = Vec::new();
    PacketBuilder::ethernet2(vtep_mac(&there), vtep_mac(&here))
        .ipv4(peer.ipv4.octets(), pod.ipv4.octets(), 64)
        .udp(40_000, 9)
        .write(&mut inner, &[0xa5; 64])
        .unwrap();
    let plain = outer(&vxlan(&inner));

    // Nobody listens at port 9.
    let arrived = || counted(&pod.netns, "Udp", "NoPorts");
    let send = |frame: &[u8]| send_raw(&there.netns, UPLINK, frame).unwrap();
    let (sent_before, before) = (arrived(), network.counters());
    (0..COUNT).for_each(|_| send(&plain));
    let after = network.counters();
    let delta = Delta {
        before: &before[0],
        after: &after[0],
    };
    let dropped = delta.drops().get("unknown_vtep").copied().unwrap_or(0);
    let taken = if allowed { COUNT } else { 0 };
    assert_eq!(delta.packets(UPLINK).0, COUNT);
    assert_eq!((dropped, arrived() - sent_before), (COUNT - taken, taken));

    // What the program leaves to the kernel, and all while no dataplane runs.
    let kernel_sent = arrived();
    let before = after;
    for _ in 0..COUNT {
        send(&outer(&vxlan(&with_options(&inner))));
    }
    for number in 0..COUNT {
        for cut in [8, 48] {
            let [first, second] = fragments(&plain, v6, cut, 2 * number + cut as u64 / 48);
            send(&first);
            send(&second);
        }
    }
    let after = network.counters();
    let delta = Delta {
        before: &before[0],
        after: &after[0],
    };
    let passed = delta.passed(UPLINK);
    assert_eq!(passed.get("options"), Some(&COUNT), "{passed:?}");
    assert_eq!(passed.get("not_vxlan"), Some(&(4 * COUNT)), "{passed:?}");
    assert_eq!(delta.packets(UPLINK).0, 0);
    network.podway.agent_mut(0).stop_dataplane().unwrap();
    (0..COUNT).for_each(|_| send(&plain));
    let expected = if allowed { 4 * COUNT } else { 0 };
    assert_eq!(arrived() - kernel_sent, expected);
    let listing = here.netns.run("nft", &["list", "table", "inet", "podway"]);
    if allowed {
        assert!(listing.is_err(), "{listing:?}");
    } else {
        // Of a packet in fragments over IPv6 that is the first one, which may end before the VNI.
        let expected = if v6 {
            [0, 3 * COUNT, COUNT, 0, 0]
        } else {
            [4 * COUNT, 0, 0, 0, 0]
        };
        assert_eq!(dropped_by_rules(&here), expected);
        // Nor may a pod be masqueraded as a node.
        if !v6 {
            let tunnel = format!(
                "for i in $(seq {COUNT}); do printf '\\x08\\0\\0\\0\\0\\0\\1\\0' >/dev/udp/{}/4789; done",
                here.underlay
            );
            peer.netns.run("bash", &["-c", &tunnel]).unwrap();
            assert_eq!(dropped_by_rules(&there), [0, 0, 0, COUNT, 0]);
        }
    }
    network.podway.agent_mut(0).start_dataplane().unwrap();
    network.podway.wait_ready().unwrap();
    // The nodes themselves are heard all the time.
    ping_all(&pod.netns, peer.ipv4.into(), 56, 10);
    network.finish();
}

/// What each rule of the node's nftables table has dropped.
fn dropped_by_rules(node: &Node) -> Vec<u64> {
    let listing = node.netns.run("nft", &["list", "table", "inet", "podway"]);
    let listing = listing.unwrap();
    let counters = listing.split("counter packets ").skip(1);
    let packets = counters.map(|rest| rest.split(' ').next().unwrap().parse().unwrap());
    packets.collect()
}

/// With IP options that say nothing.
fn with_options(inner: &[u8]) -> Vec<u8> {
    let mut frame = inner.to_vec();
    frame.splice(IP + 20..IP + 20, [1, 1, 1, 0]);
    frame[IP] = 0x46;
    let length = u16::try_from(frame.len() - IP).unwrap();
    put(&mut frame, IP + 2, length);
    finish_ipv4(&mut frame, IP);
    frame
}

/// The packet in two fragments, the first of which has `cut` bytes behind the IP header.
fn fragments(frame: &[u8], v6: bool, cut: usize, number: u64) -> [Vec<u8>; 2] {
    let l4 = IP + if v6 { 40 } else { 20 };
    let id = u16::try_from(number).unwrap();
    let (first, second) = frame[l4..].split_at(cut);
    assert!(cut >= UdpHeader::LEN && cut.is_multiple_of(8));
    [(0, true, first), (cut / 8, false, second)].map(|(offset, more, part)| {
        let mut header = frame[..l4].to_vec();
        let offset = u16::try_from(offset).unwrap();
        if v6 {
            header[IP + 6] = 44;
            put(&mut header, IP + 4, u16::try_from(8 + part.len()).unwrap());
            header.extend([17, 0]);
            header.extend((offset << 3 | u16::from(more)).to_be_bytes());
            header.extend([0, 0]);
            header.extend(id.to_be_bytes());
        } else {
            put(&mut header, IP + 2, u16::try_from(20 + part.len()).unwrap());
            put(&mut header, IP + 4, id);
            put(&mut header, IP + 6, offset | u16::from(more) << 13);
            finish_ipv4(&mut header, IP);
        }
        [&*header, part].concat()
    })
}
