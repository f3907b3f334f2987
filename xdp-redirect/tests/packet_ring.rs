//! The ring of a worker: what the tcx program puts there, and what its reader finds. Each test has a
//! network namespace of its own. They need root.

mod support;

use podway_xdp_redirect::{KEPT_BYTES, PacketRing, is_bell, port_tag};
use support::node::*;
use support::packets::*;
use support::{Action, in_netns};

/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: usize = 6;

/// A node whose worker has a ring of `size` bytes.
fn with_ring(size: u32) -> (Node, PacketRing) {
    let node = Node::new();
    let ring = PacketRing::new(size).unwrap();
    node.redirect.set_ring(Node::WORKER, &ring).unwrap();
    (node, ring)
}

/// What is in the ring now.
fn drain(ring: &mut PacketRing) -> Vec<(u16, Vec<u8>)> {
    let mut records = Vec::new();
    while let Some(record) = ring.next() {
        records.push((record.slot, record.bytes.to_vec()));
    }
    ring.release();
    records
}

#[test]
fn only_what_is_not_tcp_goes_to_the_ring() {
    in_netns(|| {
        let node = Node::new();
        let pod = |carried| packet(POD, REMOTE, 64, carried, &[7; 100]);
        let uplink = |carried| {
            let inner = packet(REMOTE, POD, 64, carried, &[7; 100]);
            tunnel(OTHER_NODE, NODE, VNI, &inner)
        };
        // A checksum of zero is none; all others here are finished.
        let without = with(pod(Udp(9)), |f| {
            f[L4 + UDP_CHECKSUM..][..2].fill(0);
        });
        let fragment = with(pod(Udp(9)), |f| f[IP + 6] = 0x20);
        #[rustfmt::skip]
        let cases = [
            ("TCP", Port::Pod, pod(Tcp), false),
            ("UDP", Port::Pod, pod(Udp(9)), true),
            ("UDP without a checksum", Port::Pod, without, true),
            ("a fragment", Port::Pod, fragment, true),
            ("echo", Port::Pod, pod(Echo), true),
            ("IPv6 UDP", Port::Pod, packet(POD_V6, REMOTE_V6, 64, Udp(9), b"x"), true),
            ("TCP in a tunnel", Port::Uplink, uplink(Tcp), false),
            ("UDP in a tunnel", Port::Uplink, uplink(Udp(9)), true),
            ("native UDP", Port::Uplink, packet(REMOTE, POD, 64, Udp(9), b"x"), true),
        ];
        let mut ring = PacketRing::new(1 << 16).unwrap();
        for has_ring in [false, true] {
            if has_ring {
                node.redirect.set_ring(Node::WORKER, &ring).unwrap();
            }
            for (what, port, packet, by_ring) in &cases {
                let slot = match port {
                    Port::Pod => Node::POD_SLOT,
                    Port::Uplink => Node::UPLINK_SLOT,
                };
                let slot = u16::try_from(slot).unwrap();
                let (action, left) = node.classify(*port, 0, packet);
                if has_ring && *by_ring {
                    assert_eq!(action, Action::Drop, "{what}: nobody else has it");
                    let [(from, bytes)] = &drain(&mut ring)[..] else {
                        panic!("{what}: one packet");
                    };
                    assert_eq!(*from, slot, "{what}");
                    // But for the destination MAC, on which unfinished checksums are tried.
                    assert_eq!(bytes[6..], packet[6..], "{what}");
                } else {
                    assert_eq!(action, Action::Redirect, "{what}");
                    assert_eq!(left[..6], port_tag(slot), "{what}");
                    assert_eq!(left[6..], packet[6..], "{what}: nothing else has changed");
                    assert!(ring.is_empty(), "{what}");
                }
            }
        }
    });
}

#[test]
fn packets_of_all_sizes_go_round_the_ring_in_order() {
    in_netns(|| {
        let (node, mut ring) = with_ring(1 << 16);
        // Sizes of each kind of record and those beside its limits, many times round.
        let lengths = [0, 1, 200, 213, 214, 215, 216, 1000, 1300, 1390, 1400];
        let packets: Vec<_> = (0..300_u16)
            .map(|n| {
                let length = lengths[usize::from(n) % lengths.len()];
                let payload: Vec<_> = (0..length)
                    .map(|at: u16| (at ^ n).to_le_bytes()[0])
                    .collect();
                packet(POD, REMOTE, 64, Udp(n), &payload)
            })
            .collect();
        for burst in packets.chunks(7) {
            for packet in burst {
                let (action, _) = node.classify(Port::Pod, 0, packet);
                assert_eq!(action, Action::Drop);
            }
            let read = drain(&mut ring).into_iter();
            // But for the destination MAC, on which unfinished checksums are tried.
            let read: Vec<_> = read.map(|(_, bytes)| bytes[6..].to_vec()).collect();
            let burst: Vec<_> = burst.iter().map(|bytes| bytes[6..].to_vec()).collect();
            assert!(read == burst);
        }
        let stats = node.stats(Port::Pod);
        assert_eq!((stats.redirected, stats.ring_full), (300, 0));
    });
}

#[test]
fn what_finds_no_room_is_lost_and_counted() {
    in_netns(|| {
        let (node, mut ring) = with_ring(4096);
        let packet = packet(POD, REMOTE, 64, Udp(9), &[0; 100]);
        // The header of the kernel, ours, and the smallest record.
        let fit = 4096 / (8 + 8 + 256);
        for number in 0..20 {
            let (action, _) = node.classify(Port::Pod, 0, &packet);
            assert_eq!(action, Action::Drop, "packet {number}");
        }
        let stats = node.stats(Port::Pod);
        assert_eq!((stats.redirected, stats.ring_full), (20, 20 - fit));
        let last = node.redirect.last_ring_full().unwrap().unwrap();
        assert_eq!((last.ifindex, last.bytes), (node.pod, 142));
        assert_eq!(last.header, packet[..KEPT_BYTES]);
        assert_eq!(drain(&mut ring).len() as u64, fit);
        node.classify(Port::Pod, 0, &packet);
        assert_eq!(drain(&mut ring).len(), 1, "there is room again");
        let stats = node.stats(Port::Pod);
        assert_eq!((stats.redirected, stats.ring_full), (21, 20 - fit));
    });
}

#[test]
fn only_a_worker_that_asks_gets_a_bell_and_once() {
    in_netns(|| {
        let (node, mut ring) = with_ring(4096);
        let redirect = &node.redirect;
        let of = |carried| packet(POD, REMOTE, 64, carried, &[0; 100]);
        let (packet, segment) = (of(Udp(9)), of(Tcp));
        // Sends a packet; whether what is left of it is redirected to the TAP, as a bell.
        let rings = || {
            let (action, left) = node.classify(Port::Pod, 0, &packet);
            let bell = is_bell(left[..6].try_into().unwrap());
            assert_eq!(bell, action == Action::Redirect);
            assert!(bell || action == Action::Drop);
            assert_eq!(left[6..], packet[6..]);
            bell
        };
        assert!(!rings(), "it has not asked");
        node.heartbeat.fall_asleep();
        assert!(rings());
        assert!(!rings(), "it is awake");
        assert_eq!(drain(&mut ring).len(), 3, "every packet is in the ring");
        node.heartbeat.fall_asleep();
        node.heartbeat.wake_up();
        assert!(!rings(), "it has woken by itself");
        assert_eq!(redirect.bells(Node::WORKER).unwrap(), 1);

        while redirect.counters(Node::POD_SLOT).unwrap().ring_full == 0 {
            assert!(!rings());
        }
        node.heartbeat.fall_asleep();
        assert!(rings(), "a full ring wakes it as well");
        assert_eq!(redirect.bells(Node::WORKER).unwrap(), 2);
        assert_eq!(redirect.bells(Node::WORKER + 1).unwrap(), 0);
        assert!(redirect.bells(64).is_err());

        node.heartbeat.fall_asleep();
        let (action, left) = node.classify(Port::Pod, 0, &segment);
        let slot = u16::try_from(Node::POD_SLOT).unwrap();
        assert_eq!(
            (action, &left[..6]),
            (Action::Redirect, &port_tag(slot)[..])
        );
        assert_eq!(
            redirect.bells(Node::WORKER).unwrap(),
            2,
            "TCP wakes by itself"
        );
    });
}

#[test]
fn a_ring_has_a_power_of_two_of_bytes() {
    in_netns(|| {
        for size in [0, 100, 5000] {
            let error = PacketRing::new(size).unwrap_err().to_string();
            let name = format!("cannot make a packet ring of {size} bytes");
            assert!(error.starts_with(&name), "{error}");
        }
    });
}
