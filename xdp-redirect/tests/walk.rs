//! The rules in user space where the tables of packets do not reach (`Node::check` compares those): who
//! has a packet that is ours, and what is told of the way there. Each test has a network namespace of
//! its own. They need root.

mod support;

use std::os::fd::AsFd;

use podway_xdp_redirect::{Arrival, Fate, Kind, PacketRing, PassCause, Way};
use support::node::*;
use support::packets::*;
use support::{in_netns, now_ns, run};

#[test]
fn a_packet_of_ours_goes_where_the_programs_would_send_it() {
    in_netns(|| {
        let node = Node::new();
        let tcp = packet(POD, REMOTE, 64, Tcp, b"x");
        let udp = packet(POD, REMOTE, 64, Udp(9), b"x");
        let fate =
            |kind, queue, packet: &[u8]| node.walk(Port::Pod, kind, queue, packet, false).1.fate;
        let ours = |by| Fate::Redirect {
            worker: Node::WORKER,
            by,
        };
        assert_eq!(fate(Kind::Xdp, 0, &udp), ours(Way::Socket));
        // Queue 1 is worker 0's, which does not run; there is no queue 2.
        assert_eq!(
            fate(Kind::Xdp, 1, &udp),
            Fate::Pass(PassCause::WorkerStalled)
        );
        assert_eq!(fate(Kind::Xdp, 2, &udp), Fate::Pass(PassCause::NoSocket));
        node.redirect
            .set_queue_worker(Node::POD_BASE + 1, Node::WORKER)
            .unwrap();
        assert_eq!(fate(Kind::Xdp, 1, &udp), Fate::Pass(PassCause::NoSocket));
        for queue in [0, 1] {
            let want = match fate(Kind::Xdp, queue, &udp) {
                Fate::Redirect { .. } => Want::Redirect,
                Fate::Pass(cause) => Want::Pass(cause),
                Fate::Refuse(cause) => Want::Refuse(cause),
            };
            let what = format!("queue {queue}");
            node.expect(&what, Port::Pod, want, || {
                node.run_on(Port::Pod, queue, &udp, udp.len())
            });
        }

        // Without a ring, all goes by the TAP.
        assert_eq!(fate(Kind::Tcx, 0, &udp), ours(Way::Tap));
        let ring = PacketRing::new(1 << 16).unwrap();
        node.redirect.set_ring(Node::WORKER, &ring).unwrap();
        assert_eq!(fate(Kind::Tcx, 0, &udp), ours(Way::Ring));
        assert_eq!(fate(Kind::Tcx, 0, &tcp), ours(Way::Tap));
        node.redirect.set_tap(Node::WORKER, 0).unwrap();
        assert_eq!(fate(Kind::Tcx, 0, &udp), Fate::Pass(PassCause::NoSocket));
    });
}

#[test]
fn what_stands_still_is_named() {
    in_netns(|| {
        let node = Node::new();
        let tcp = packet(POD, REMOTE, 64, Tcp, b"x");
        let walk = || {
            let arrival = Arrival {
                ifindex: node.pod,
                queue: 0,
                program: Kind::Xdp,
                frame: &tcp,
                gso: false,
            };
            let walk = node.redirect.walk(&arrival).unwrap();
            let last = walk.findings.last().unwrap();
            (walk.fate, format!("{}: {}", last.rule, last.found))
        };
        let rules = node.walk(Port::Pod, Kind::Xdp, 0, &tcp, false).1.findings;
        let rules: Vec<_> = rules.iter().map(|finding| finding.rule).collect();
        assert_eq!(
            rules,
            [
                "port",
                "gate",
                "sender",
                "mac",
                "ip",
                "destination",
                "protocol",
                "hop limit",
                "route",
                "size",
                "conntrack",
                "worker",
                "socket"
            ]
        );
        let stalled = Fate::Pass(PassCause::WorkerStalled);
        node.heartbeat.beat(now_ns() - 3_500_000_000);
        let (fate, last) = walk();
        assert_eq!(fate, stalled);
        assert!(last.starts_with("worker: 3 has not beaten for 3"), "{last}");
        node.redirect.close_gate();
        let closed = (Fate::Pass(PassCause::GateClosed), "gate: closed".to_owned());
        assert_eq!(walk(), closed);
        node.redirect.del_port(node.pod).unwrap();
        assert_eq!(walk().0, Fate::Pass(PassCause::UnknownPort));
    });
}

/// Nothing is counted, nothing is kept: not even that a flow has sent what is too large.
#[test]
fn to_walk_leaves_no_trace() {
    in_netns(|| {
        let node = Node::new();
        let before = [Port::Pod, Port::Uplink].map(|port| node.stats(port));
        let large = packet(POD, REMOTE, 64, Udp(9), &[0; 1_423]);
        let fits = packet(POD, REMOTE, 64, Udp(9), b"x");
        let fate = |packet: &[u8]| node.walk(Port::Pod, Kind::Tcx, 0, packet, false).0;
        assert_eq!(fate(&large), Want::Pass(PassCause::Oversize));
        assert_eq!(fate(&fits), Want::Redirect);
        let foreign = packet(POD2, REMOTE, 64, Tcp, b"x");
        assert_eq!(fate(&foreign), SPOOFED);
        assert_eq!(
            [Port::Pod, Port::Uplink].map(|port| node.stats(port)),
            before
        );
        assert_eq!(node.redirect.oversize(Node::POD_SLOT).unwrap(), None);
        // But what the program keeps is read.
        node.run(Port::Pod, &large);
        assert_eq!(fate(&fits), Want::Pass(PassCause::Oversize));
        let program = node.redirect.as_fd();
        run(program, node.pod, 0, &fits, fits.len());
        assert_eq!(node.stats(Port::Pod).passed_for(PassCause::Oversize), 2);
    });
}
