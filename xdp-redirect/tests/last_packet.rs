//! What the programs keep of packets that they do not forward, through `BPF_PROG_RUN`. Each test has a
//! network namespace of its own. They need root.

mod support;

use podway_xdp_redirect::{KEPT_BYTES, LastPacket, PassCause, RefuseCause};
use support::node::*;
use support::packets::*;
use support::{Action, coarse_ns, in_netns, next_tick, now_ns};

/// How far the coarse clock may be behind, and the machine be busy.
const SLACK_NS: u64 = 10_000_000_000;

/// What is kept under the cause that is wanted.
fn last(node: &Node, want: Want) -> Option<LastPacket> {
    let redirect = &node.redirect;
    match want {
        Want::Pass(cause) => redirect.last_passed(cause).unwrap(),
        Want::Refuse(cause) => redirect.last_refused(cause).unwrap(),
        Want::Redirect => panic!("nothing is kept"),
    }
}

/// Whether nothing is kept under any cause.
fn is_empty(node: &Node) -> bool {
    let passed = PassCause::ALL.iter().map(|cause| Want::Pass(*cause));
    let refused = RefuseCause::ALL.iter().map(|cause| Want::Refuse(*cause));
    let mut all = passed.chain(refused);
    all.all(|want| last(node, want).is_none()) && node.redirect.last_ring_full().unwrap().is_none()
}

/// That a packet is kept as it came, by an interface.
fn is_told(what: &str, node: &Node, want: Want, ifindex: u32, packet: &[u8]) {
    let now = now_ns();
    let last = last(node, want).expect(what);
    let age = now.saturating_sub(last.at_ns);
    assert!(age < SLACK_NS && last.at_ns <= now, "{what}: {age} ns ago");
    let told = LastPacket {
        at_ns: last.at_ns,
        ifindex,
        bytes: u32::try_from(packet.len()).unwrap(),
        header: packet[..packet.len().min(KEPT_BYTES)].to_vec(),
    };
    assert_eq!(last, told, "{what}");
}

#[test]
fn of_each_cause_the_last_packet_is_kept_as_it_came() {
    in_netns(|| {
        let node = Node::new();
        let v4 = |from, to, carried| packet(from, to, 64, carried, b"payload");
        let arp = with(v4(POD2, REMOTE, Echo), |f| {
            f[ETHERTYPE..IP].copy_from_slice(&[8, 6]);
            f[IP + 14..IP + 18].copy_from_slice(&[203, 0, 113, 9]);
        });
        let large = packet(POD, REMOTE, 64, Udp(9), &[0x5a; 1600]);
        let inner = v4(REMOTE, POD, Tcp);
        let tunneled = |from, to, vni, inner: &[u8]| tunnel(from, to, vni, inner);
        let inner_v6 = packet(REMOTE_V6, "fd00:0:0:a::77", 64, Udp(9), &[0x5a; 100]);
        let own = tunneled(OTHER_NODE, NODE, VNI, &v4(POD2, POD, Tcp));
        let stalled = v4(POD, REMOTE, Udp(7));
        use Port::{Pod, Uplink};
        #[rustfmt::skip]
        let cases = [
            ("of another pod", Pod, v4(POD2, REMOTE, Udp(9)), SPOOFED),
            ("ARP of another", Pod, arp, SPOOFED),
            ("IPv6 of another", Pod, packet(POD2_V6, REMOTE_V6, 64, Tcp, b""), SPOOFED),
            ("from the node itself", Uplink, own, Want::Refuse(RefuseCause::OwnSource)),
            ("no route", Pod, v4(POD, NOWHERE, Tcp), Want::Pass(PassCause::NoRoute)),
            ("too large", Pod, large, Want::Pass(PassCause::Oversize)),
            ("unresolved", Pod, v4(POD, UNRESOLVED, Echo), Want::Pass(PassCause::Unresolved)),
            ("VNI", Uplink, tunneled(OTHER_NODE, NODE, 99, &inner), Want::Pass(PassCause::UnknownVni)),
            ("all headers", Uplink, tunneled(OTHER_NODE_V6, NODE_V6, VNI, &inner_v6), Want::Pass(PassCause::NoSuchPod)),
            ("VLAN", Uplink, byte(inner.clone(), ETHERTYPE, 0x81), Want::Pass(PassCause::NotIp)),
            ("a wrong version", Uplink, byte(inner.clone(), IP, 0x55), Want::Pass(PassCause::Malformed)),
            ("a broadcast", Uplink, with(inner, |f| f[..6].fill(0xff)), Want::Pass(PassCause::NotForUs)),
            ("a stalled worker's", Pod, stalled, Want::Pass(PassCause::WorkerStalled)),
        ];
        for (what, port, packet, want) in &cases {
            let ifindex = match port {
                Pod => node.pod,
                Uplink => node.uplink,
            };
            if *want == Want::Pass(PassCause::WorkerStalled) {
                let worker = Node::WORKER + 1;
                node.redirect
                    .set_queue_worker(Node::POD_BASE, worker)
                    .unwrap();
            }
            let answer = match want {
                Want::Refuse(_) => Action::Drop,
                _ => Action::Pass,
            };
            next_tick();
            assert_eq!(node.run(*port, packet), answer, "{what}");
            is_told(what, &node, *want, ifindex, packet);
            let mut packet = packet.clone();
            *packet.last_mut().unwrap() ^= 1;
            next_tick();
            assert_eq!(node.classify(*port, 0, &packet).0, answer, "{what}");
            is_told(&format!("{what}, at tcx"), &node, *want, ifindex, &packet);
        }
        // Of a super-frame the size is the whole one's.
        let batch = packet(POD, REMOTE, 64, Udp(8), &[1; 2000]);
        node.redirect
            .set_queue_worker(Node::POD_BASE, Node::WORKER)
            .unwrap();
        next_tick();
        assert_eq!(node.classify(Port::Pod, 1000, &batch).0, Action::Pass);
        let oversize = Want::Pass(PassCause::Oversize);
        is_told("a super-frame", &node, oversize, node.pod, &batch);
        let short = &batch[..14];
        next_tick();
        assert_eq!(node.run(Port::Pod, short), Action::Pass);
        let malformed = Want::Pass(PassCause::Malformed);
        is_told("an Ethernet header", &node, malformed, node.pod, short);
        assert!(node.redirect.last_ring_full().unwrap().is_none());
    });
}

#[test]
fn nothing_is_kept_of_what_is_forwarded() {
    in_netns(|| {
        let node = Node::new();
        for (port, good) in [
            (Port::Pod, packet(POD, REMOTE, 64, Tcp, b"x")),
            (Port::Pod, packet(POD_V6, REMOTE_V6, 64, Udp(9), b"x")),
            (Port::Uplink, packet(REMOTE, POD, 64, Tcp, b"x")),
        ] {
            assert_eq!(node.run(port, &good), Action::Redirect);
            assert_eq!(node.classify(port, 0, &good).0, Action::Redirect);
        }
        assert!(is_empty(&node));
        let unknown = |ifindex| {
            let program = node.redirect.classifier();
            support::run_tcx(program, ifindex, 0, &packet(POD, REMOTE, 64, Tcp, b"x")).0
        };
        node.redirect.del_port(node.pod).unwrap();
        assert_eq!(unknown(node.pod), Action::Pass);
        let port = node.redirect.last_passed(PassCause::UnknownPort).unwrap();
        assert_eq!(port.unwrap().ifindex, node.pod);
    });
}

#[test]
fn one_packet_in_a_tick_is_kept_on_a_cpu() {
    in_netns(|| {
        let node = Node::new();
        let cpus = core_affinity::get_core_ids().unwrap();
        assert!(core_affinity::set_for_current(cpus[0]));
        let spoofed = |port| packet(POD2, REMOTE, 64, Udp(port), b"x");
        // The machine may be busy, and a tick is short.
        for first in (1000..2000).step_by(2) {
            next_tick();
            let tick = coarse_ns();
            for port in [first, first + 1] {
                assert_eq!(node.run(Port::Pod, &spoofed(port)), Action::Drop);
            }
            if coarse_ns() == tick {
                is_told("the first", &node, SPOOFED, node.pod, &spoofed(first));
                next_tick();
                node.run(Port::Pod, &spoofed(first + 1));
                is_told("the next", &node, SPOOFED, node.pod, &spoofed(first + 1));
                return;
            }
        }
        panic!("no two packets in one tick");
    });
}

#[test]
fn of_all_cpus_the_newest_is_told() {
    in_netns(|| {
        let node = Node::new();
        let cpus = core_affinity::get_core_ids().unwrap();
        for (port, cpu) in (1..).zip(cpus.iter().chain(&cpus).chain(cpus.iter().rev())) {
            assert!(core_affinity::set_for_current(*cpu));
            let spoofed = packet(POD2, REMOTE, 64, Udp(port), b"x");
            next_tick();
            assert_eq!(node.run(Port::Pod, &spoofed), Action::Drop);
            is_told("the newest", &node, SPOOFED, node.pod, &spoofed);
        }
    });
}
