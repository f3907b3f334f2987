//! A pod that sends from an address that it has not: nobody receives it, with the dataplane and without.

use std::collections::BTreeMap;

use etherparse::PacketBuilder;
use podway_bench::frames::send_raw;
use podway_bench::topology::{POD_INTERFACE, UPLINK};
use podway_proto::types::{MacAddr, Mode};

use crate::malformed::{finish_ipv4, mac_of};
use crate::support::{Delta, Network, counted, options, ping_all, spec, wait_for_answer};

/// Offset of the IP header behind an Ethernet header.
const IP: usize = 14;
/// Frames of each kind.
const FRAMES: u64 = 5;

/// IPv4 frames to `to`, with what only the kernel routes among them.
fn frames(from: MacAddr, gateway: MacAddr, source: [u8; 4], to: [u8; 4]) -> Vec<Vec<u8>> {
    let mut plain = Vec::new();
    PacketBuilder::ethernet2(from.0, gateway.0)
        .ipv4(source, to, 64)
        .udp(40_000, 9)
        .write(&mut plain, &[0xa5; 64])
        .unwrap();
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut frame = plain.clone();
        change(&mut frame);
        finish_ipv4(&mut frame, IP);
        frame
    };
    // The first 4 bytes of the UDP header become an option: no operation, four times.
    let options = changed(|f| {
        f[IP] = 0x46;
        f[IP + 20..IP + 24].fill(1);
    });
    let last_fragment = changed(|f| f[IP + 7] = 9);
    vec![plain, options, last_fragment]
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn nobody_receives_what_a_pod_sends_as_another() {
    for mode in [Mode::Vxlan, Mode::Native] {
        let mut network = Network::up(spec(), &options(mode));
        let (node, pod) = (network.node(0).clone(), network.pod(0, 0).clone());
        let peer = network.pod(1, 0).clone();
        let gateway = mac_of(&node.netns, &pod.host_interface);
        let own = frames(pod.mac, gateway, pod.ipv4.octets(), peer.ipv4.octets());
        let other = network.pod(0, 1).ipv4.octets();
        let spoofed = frames(pod.mac, gateway, other, peer.ipv4.octets());
        let send = |frames: &[Vec<u8>]| {
            let before = counted(&peer.netns, "Ip", "InReceives");
            for frame in frames {
                for _ in 0..FRAMES {
                    send_raw(&pod.netns, POD_INTERFACE, frame).unwrap();
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(300));
            counted(&peer.netns, "Ip", "InReceives") - before
        };
        let kinds = own.len() as u64;
        // So that nobody asks for addresses in between.
        ping_all(&pod.netns, peer.ipv4.into(), 56, 3);

        assert_eq!(send(&own), FRAMES * kinds, "{mode}: its own");
        let before = network.counters();
        assert_eq!(send(&spoofed), 0, "{mode}: another's, with the dataplane");
        let after = network.counters();
        let delta = Delta {
            before: &before[0],
            after: &after[0],
        };
        let all = BTreeMap::from([("spoofed_source".to_owned(), FRAMES * kinds)]);
        assert_eq!(delta.refused(&pod.host_interface), all);
        assert_eq!(delta.packets(UPLINK), (0, 0));

        network.podway.agent_mut(0).kill_dataplane().unwrap();
        wait_for_answer(
            &pod.netns,
            peer.ipv4.into(),
            std::time::Duration::from_secs(5),
        );
        assert_eq!(send(&own), FRAMES * kinds, "{mode}: its own, by the kernel");
        assert_eq!(send(&spoofed), 0, "{mode}: another's, by the kernel");
        network.podway.agent_mut(0).start_dataplane().unwrap();
        network.podway.wait_ready().unwrap();
        network.finish();
    }
}
