//! What the tcx programs know and do beyond the XDP program, through `BPF_PROG_RUN`: the size of
//! segments, the TAP of a worker, and the way out. Each test has a network namespace of its own.
//! They need root.

mod support;

use PassCause::*;
use Want::{Pass, Redirect as Ours};
use podway_xdp_redirect::{PassCause, port_tag};
use support::node::*;
use support::packets::*;
use support::{Action, in_netns, ip, now_ns, run_tcx, sent};

#[test]
fn a_super_frame_is_ours_only_as_tcp_whatever_its_size() {
    in_netns(|| {
        let node = Node::new();
        let of = |from, to, carried, segment: u16| {
            packet(from, to, 64, carried, &vec![0; usize::from(segment) * 2])
        };
        let from_pod = |carried, segment| of(POD, REMOTE, carried, segment);
        let from_pod_v6 = |carried, segment| of(POD_V6, REMOTE_V6, carried, segment);
        let fragment = with(from_pod(Udp(9), 1400), |f| f[IP + 6] = 0x20);
        #[rustfmt::skip]
        let cases = vec![
            ("UDP", from_pod(Udp(9), 500), 500, Pass(Oversize)),
            ("IPv6 UDP", from_pod_v6(Udp(9), 500), 500, Pass(Oversize)),
            ("UDP that fits as a whole", from_pod(Udp(9), 100), 100, Pass(Oversize)),
            ("TCP that fits", from_pod(Tcp, 1400), 1400, Ours),
            ("TCP too large", from_pod(Tcp, 1460), 1460, Ours),
            ("IPv6 TCP too large", from_pod_v6(Tcp, 1440), 1440, Ours),
            ("a fragment", fragment, 1400, Pass(Oversize)),
            ("echo", from_pod(Echo, 1400), 1400, Pass(Oversize)),
        ];
        for (what, packet, segment, want) in cases {
            node.check_tcx(Port::Pod, what, &packet, segment, want);
        }

        // Pods have routes of 1500 bytes.
        let to_pod = |carried, segment| of(REMOTE, POD, carried, segment);
        let wrap = |inner: &[u8]| tunnel(OTHER_NODE, NODE, VNI, inner);
        let wrap_v6 = |inner: &[u8]| tunnel(OTHER_NODE_V6, NODE_V6, VNI, inner);
        let udp = to_pod(Udp(9), 700);
        // Two blocks, as one device cuts them and another joins them again.
        let block = wrap(&packet(REMOTE, POD, 64, Tcp, &[0; 1000]))[L4 + 8..].to_vec();
        let batch = packet(OTHER_NODE, NODE, 64, Udp(VXLAN_PORT), &block.repeat(2));
        let block = u16::try_from(block.len()).unwrap();
        #[rustfmt::skip]
        let cases = vec![
            ("native TCP", to_pod(Tcp, 1460), 1460, Ours),
            ("native UDP", udp.clone(), 700, Pass(Oversize)),
            ("TCP in a tunnel", wrap(&to_pod(Tcp, 1398)), 1398, Ours),
            ("TCP in a tunnel over IPv6", wrap_v6(&to_pod(Tcp, 1378)), 1378, Ours),
            ("UDP in a tunnel", wrap(&udp), 700, Pass(Oversize)),
            ("blocks that are segments", batch, block, Pass(Batch)),
        ];
        for (what, packet, segment, want) in cases {
            node.check_tcx(Port::Uplink, what, &packet, segment, want);
        }
    });
}

#[test]
fn without_a_tap_or_a_living_worker_packets_pass() {
    in_netns(|| {
        let node = Node::new();
        let (redirect, good) = (&node.redirect, packet(POD, REMOTE, 64, Tcp, b"x"));
        let check = |what, want| node.check_tcx(Port::Pod, what, &good, 0, want);
        check("a TAP", Ours);
        redirect.set_tap(Node::WORKER, 0).unwrap();
        check("none", Pass(NoSocket));
        redirect.set_tap(Node::WORKER + 1, node.uplink).unwrap();
        check("another worker's", Pass(NoSocket));
        let other = redirect.heartbeat(Node::WORKER + 1).unwrap();
        other.beat(now_ns());
        redirect
            .set_queue_worker(Node::POD_BASE, Node::WORKER + 1)
            .unwrap();
        check("the queue has moved there", Ours);
        redirect
            .set_queue_worker(Node::POD_BASE, Node::WORKER)
            .unwrap();
        redirect.set_tap(Node::WORKER, node.uplink).unwrap();
        check("a TAP again", Ours);

        // An AF_XDP socket is not asked for.
        redirect.del_socket(Node::POD_BASE).unwrap();
        check("a TAP and no socket", Ours);

        let stalled = || run_tcx(redirect.classifier(), node.pod, 0, &good);
        for (what, beat) in [
            (
                "older than a second",
                now_ns().saturating_sub(1_020_000_000),
            ),
            ("never beaten", 0),
        ] {
            node.heartbeat.beat(beat);
            node.expect(what, Port::Pod, Pass(WorkerStalled), || {
                let (action, left) = stalled();
                assert_eq!(left, good, "{what}");
                action
            });
        }
        check("alive again", Ours);
    });
}

#[test]
fn what_a_worker_writes_leaves_by_the_exit_that_it_names() {
    const EXIT_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
    const LAST_MAC: [u8; 6] = [2, 0, 0, 0, 9, 8];
    in_netns(|| {
        let node = Node::new();
        let redirect = &node.redirect;
        redirect.set_exit(300, node.uplink, EXIT_MAC).unwrap();
        redirect.set_exit(1022, node.pod, LAST_MAC).unwrap();
        let inner = packet(POD, REMOTE, 64, Tcp, &[0; 1200]);
        let written = |source: [u8; 6]| {
            with(tunnel(NODE, OTHER_NODE, VNI, &inner), |f| {
                f[6..12].copy_from_slice(&source);
            })
        };
        // The program asks neither for the gate nor for a port: workers answer for what they write.
        redirect.close_gate();
        // Gives the interface that it leaves by, and its source MAC then.
        let transmit = |source| {
            let before = ["eth0", "pod0"].map(sent);
            let (action, left) = run_tcx(redirect.transmitter(), node.pod, 0, &written(source));
            assert_eq!(action, Action::Drop, "what leaves is a clone");
            let mac: [u8; 6] = left[6..12].try_into().unwrap();
            assert_eq!(left, written(mac), "nothing else has changed");
            let after = ["eth0", "pod0"].map(sent);
            match [after[0] - before[0], after[1] - before[1]] {
                [1, 0] => Some((node.uplink, mac)),
                [0, 1] => Some((node.pod, mac)),
                [0, 0] => None,
                more => panic!("{more:?} packets left"),
            }
        };
        let mut unsent = redirect.unsent(Node::WORKER).unwrap();
        let mut others = redirect.unsent(Node::WORKER + 1).unwrap();
        let tag = unsent.tag(300);
        assert_eq!(transmit(tag), Some((node.uplink, EXIT_MAC)));
        assert_eq!(transmit(unsent.tag(1022)), Some((node.pod, LAST_MAC)));
        assert_eq!(transmit(port_tag(300)), Some((node.uplink, EXIT_MAC)));
        // Nor a slot beyond the map.
        for slot in [0, 44, 299, 301, 1023, 1024, 1024 + 300, u16::MAX] {
            assert_eq!(unsent.take(), None);
            let tag = unsent.tag(slot);
            assert_eq!(transmit(tag), None, "slot {slot} has no exit");
            assert_eq!(unsent.take(), Some(libc::ENXIO), "slot {slot}");
        }
        for at in 0..3 {
            let mut source = tag;
            source[at] ^= 4;
            assert_eq!(transmit(source), None, "{source:02x?} is no tag");
        }
        assert_eq!(transmit(PEER_MAC), None);
        redirect.set_exit(300, node.pod, LAST_MAC).unwrap();
        assert_eq!(transmit(tag), Some((node.pod, LAST_MAC)), "moved");
        assert_eq!(unsent.take(), None);
        redirect.set_exit(300, 0, [0; 6]).unwrap();
        assert_eq!(transmit(tag), None, "taken away");
        assert_eq!(unsent.take(), Some(libc::ENXIO));
        redirect.set_exit(300, node.uplink, EXIT_MAC).unwrap();
        ip("link set dev eth0 down");
        assert_eq!(transmit(tag), None, "down");
        assert_eq!(transmit(tag), None, "down");
        assert_eq!(unsent.take(), Some(libc::ENOBUFS));
        assert_eq!(unsent.take(), None, "told once");
        redirect.set_exit(300, node.uplink + 99, EXIT_MAC).unwrap();
        assert_eq!(transmit(tag), None, "gone");
        assert_eq!(unsent.take(), Some(libc::EINVAL));
        assert_eq!(others.take(), None);
        assert_eq!(redirect.unsent(Node::WORKER).unwrap().take(), None, "anew");
    });
}

#[test]
fn a_udp_flow_stays_the_kernels_for_a_second_after_a_super_frame() {
    in_netns(|| {
        let node = Node::new();
        let batch = packet(POD, REMOTE, 64, Udp(9), &[0; 200]);
        let single = packet(POD, REMOTE, 64, Udp(9), &[0; 100]);
        let other = packet(POD, REMOTE, 64, Udp(10), &[0; 100]);
        let check = |what, packet: &[u8], segment, want| {
            node.check_tcx(Port::Pod, what, packet, segment, want);
        };
        check("before", &single, 0, Ours);
        check("the super-frame", &batch, 100, Pass(Oversize));
        check("after it", &single, 0, Pass(Oversize));
        check("another flow", &other, 0, Ours);
        std::thread::sleep(std::time::Duration::from_millis(1100));
        check("a second later", &single, 0, Ours);
    });
}
