//! What the loader's updates do to the next packet, and when everything passes, through
//! `BPF_PROG_RUN`. Each test has a network namespace of its own. They need root.

mod support;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use PassCause::*;
use Want::{Pass, Redirect as Ours};
use podway_xdp_redirect::{Error, PassCause, PortEntry, PortStats, Role, UNKNOWN_PORT_SLOT};
use support::node::*;
use support::packets::*;
use support::{Action, in_netns, now_ns, run, xdp_socket};

fn good() -> Vec<u8> {
    packet(POD, REMOTE, 64, Tcp, b"x")
}

/// A good packet from the pod, by a queue, without a beat of the worker before it.
fn expect_on(node: &Node, queue: u32, what: &str, want: Want) {
    let packet = good();
    node.expect(what, Port::Pod, want, || {
        run(
            node.redirect.as_fd(),
            node.pod,
            queue,
            &packet,
            packet.len(),
        )
    });
}

fn expect(node: &Node, what: &str, want: Want) {
    node.heartbeat.beat(now_ns());
    expect_on(node, 0, what, want);
}

#[test]
fn a_closed_gate_passes_everything() {
    in_netns(|| {
        let node = Node::new();
        assert!(node.redirect.gate_is_open());
        expect(&node, "open", Ours);
        node.redirect.close_gate();
        assert!(!node.redirect.gate_is_open());
        expect(&node, "closed", Pass(GateClosed));
        let arp = with(good(), |f| f[ETHERTYPE..IP].copy_from_slice(&[8, 6]));
        node.check(
            Port::Uplink,
            vec![("closed, for the kernel anyway", arp, Pass(GateClosed))],
        );
        node.redirect.open_gate();
        expect(&node, "open again", Ours);
    });
}

/// However a thread ends: here without any of its destructors, as when the process is killed.
#[test]
fn a_worker_whose_thread_has_ended_gets_nothing_more() {
    in_netns(|| {
        let node = Node::new();
        let heartbeat = node.redirect.heartbeat(Node::WORKER).unwrap();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (ready, marked) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            heartbeat.mark_the_end_of_this_thread();
            ready.send(()).unwrap();
            wait.recv().unwrap();
            std::mem::forget(heartbeat);
        });
        marked.recv().unwrap();
        expect_on(&node, 0, "it lives", Ours);
        go.send(()).unwrap();
        thread.join().unwrap();
        // The thread is joined a moment before the kernel is done with it.
        std::thread::sleep(std::time::Duration::from_millis(50));
        expect_on(
            &node,
            0,
            "it beat lately, and has ended",
            Pass(WorkerStalled),
        );
    });
}

#[test]
fn a_worker_that_does_not_beat_gets_nothing() {
    in_netns(|| {
        let node = Node::new();
        const SECOND: u64 = 1_000_000_000;
        // A tick of the coarse clock is at most 10 ms (CONFIG_HZ=100).
        for (what, age, want) in [
            ("fresh", 0, Ours),
            ("half a second old", SECOND / 2, Ours),
            (
                "older than a second",
                SECOND + SECOND / 50,
                Pass(WorkerStalled),
            ),
            ("much older", 60 * SECOND, Pass(WorkerStalled)),
        ] {
            // Where the clock itself is younger, the beat is that of a worker never seen.
            node.heartbeat.beat(now_ns().saturating_sub(age));
            expect_on(&node, 0, what, want);
        }
        node.heartbeat.beat(now_ns() + SECOND / 100);
        expect_on(&node, 0, "ahead of the coarse clock", Ours);
        // What is not ours is not counted as the worker's fault.
        node.heartbeat.beat(0);
        let packet = packet(POD, NODE, 64, Tcp, b"");
        node.expect("to the node", Port::Pod, Pass(LocalAddress), || {
            run(node.redirect.as_fd(), node.pod, 0, &packet, packet.len())
        });
        expect_on(&node, 0, "never beaten", Pass(WorkerStalled));

        let other = node.redirect.heartbeat(Node::WORKER + 1).unwrap();
        other.beat(now_ns());
        expect_on(&node, 0, "only another worker lives", Pass(WorkerStalled));
        node.redirect
            .set_queue_worker(Node::POD_BASE, Node::WORKER + 1)
            .unwrap();
        expect_on(&node, 0, "the queue has moved to it", Ours);
        drop(other);
        expect_on(&node, 0, "it is gone", Pass(WorkerStalled));
    });
}

#[test]
fn without_a_socket_packets_pass() {
    in_netns(|| {
        let node = Node::new();
        let worker_0 = node.redirect.heartbeat(0).unwrap();
        let expect_on_1 = |what, want| {
            worker_0.beat(now_ns());
            expect_on(&node, 1, what, want);
        };
        expect_on_1("queue 1 has a worker and no socket", Pass(NoSocket));
        let socket = xdp_socket();
        node.redirect
            .set_socket(Node::POD_BASE + 1, socket.as_fd())
            .unwrap();
        expect_on_1("now it has one", Ours);
        node.redirect.del_socket(Node::POD_BASE + 1).unwrap();
        node.redirect.del_socket(Node::POD_BASE + 1).unwrap();
        expect_on_1("no longer", Pass(NoSocket));
        node.redirect
            .set_socket(Node::POD_BASE + 1, socket.as_fd())
            .unwrap();
        drop(socket);
        // A child that a parallel test forks may hold a copy until it calls exec.
        let deadline = Instant::now() + Duration::from_secs(5);
        let redirects = || {
            worker_0.beat(now_ns());
            node.run_on(Port::Pod, 1, &good(), 14 + 40) == Action::Redirect
        };
        while redirects() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        expect_on_1("a closed socket leaves the map by itself", Pass(NoSocket));

        let mut port = PortEntry {
            role: Role::Pod,
            mac: PORT_MAC,
            slot: Node::POD_SLOT,
            xsk_base: Node::POD_BASE,
            queues: 0,
            mtu: 1500,
            any_source: false,
        };
        node.redirect.set_port(node.pod, &port).unwrap();
        expect(&node, "a queue beyond the port's", Pass(NoSocket));
        port.queues = 1;
        node.redirect.set_port(node.pod, &port).unwrap();
        expect(&node, "the port's only queue", Ours);
    });
}

#[test]
fn a_port_that_is_not_set_is_counted_apart() {
    in_netns(|| {
        let node = Node::new();
        node.redirect.del_port(node.pod).unwrap();
        node.redirect.del_port(node.pod).unwrap();
        expect(&node, "deleted port", Pass(UnknownPort));
        let stats = node.redirect.counters(UNKNOWN_PORT_SLOT).unwrap();
        assert_eq!(stats.passed_for(UnknownPort), 1);
    });
}

#[test]
fn the_longest_prefix_decides() {
    in_netns(|| {
        let node = Node::new();
        let redirect = &node.redirect;
        let prefix = |text: &str| text.parse().unwrap();
        let (net, host) = (prefix("10.0.1.0/24"), prefix("10.0.1.2/32"));
        redirect.add_prefix(host, 0).unwrap();
        expect(
            &node,
            "unresolved host under a resolved net",
            Pass(Unresolved),
        );
        redirect.add_prefix(net, 1400).unwrap();
        expect(&node, "a net in between changes nothing", Pass(Unresolved));
        redirect.add_prefix(host, 1300).unwrap();
        expect(&node, "resolved by replacement", Ours);
        redirect.del_prefix(host).unwrap();
        redirect.del_prefix(host).unwrap();
        redirect.add_prefix(net, 0).unwrap();
        expect(&node, "the net, unresolved", Pass(Unresolved));
        // Host bits name the same prefix.
        redirect.del_prefix(prefix("10.0.1.77/24")).unwrap();
        expect(&node, "back to the first prefix", Ours);
        redirect.del_prefix(prefix("10.0.0.0/16")).unwrap();
        expect(&node, "withdrawn", Pass(NoRoute));
        redirect.add_prefix(prefix("0.0.0.0/0"), 1500).unwrap();
        expect(&node, "the default prefix", Ours);
        let v6 = packet(POD_V6, NOWHERE_V6, 64, Tcp, b"");
        node.check(
            Port::Pod,
            vec![("IPv6 has prefixes of its own", v6.clone(), Pass(NoRoute))],
        );
        redirect.add_prefix(prefix("::/0"), 1500).unwrap();
        node.check(Port::Pod, vec![("the IPv6 default prefix", v6, Ours)]);
    });
}

#[test]
fn addresses_and_tunnels_come_and_go() {
    in_netns(|| {
        let node = Node::new();
        let redirect = &node.redirect;
        let [pod, remote] = [POD, REMOTE].map(|text| text.parse().unwrap());
        for _ in 0..2 {
            redirect.del_pod(pod).unwrap();
        }
        expect(&node, "pod address deleted", SPOOFED);
        redirect.add_pod(pod, node.pod + 1).unwrap();
        expect(&node, "pod address on another port", SPOOFED);
        redirect.add_pod(pod, node.pod).unwrap();
        expect(&node, "pod address moved back", Ours);
        redirect.add_local(remote).unwrap();
        expect(&node, "destination became the node's", Pass(LocalAddress));
        for _ in 0..2 {
            redirect.del_local(remote).unwrap();
        }
        expect(&node, "and no longer is", Ours);

        let inner = packet(REMOTE, POD, 64, Tcp, b"");
        let outer = || tunnel(OTHER_NODE, NODE, VNI, &inner);
        let uplink = |what, want| node.check(Port::Uplink, vec![(what, outer(), want)]);
        uplink("tunnel", Ours);
        redirect.set_vxlan_port(8472);
        uplink("the port has changed", Pass(NotVxlan));
        redirect.set_vxlan_port(0);
        let to_port_0 = with(outer(), |f| f[L4 + 2..L4 + 4].fill(0));
        node.check(
            Port::Uplink,
            vec![("no tunnels, UDP port 0", to_port_0, Pass(NotVxlan))],
        );
        redirect.set_vxlan_port(VXLAN_PORT);
        for _ in 0..2 {
            redirect.del_vni(VNI).unwrap();
        }
        uplink("the VNI is gone", Pass(UnknownVni));
        redirect.add_vni(0).unwrap();
        let zero = tunnel(OTHER_NODE, NODE, 0, &inner);
        node.check(
            Port::Uplink,
            vec![("VNI 0 is one like any other", zero, Ours)],
        );
    });
}

#[test]
fn a_slot_is_cleared_alone() {
    in_netns(|| {
        let node = Node::new();
        for _ in 0..3 {
            expect(&node, "good", Ours);
        }
        let inward = packet(REMOTE, POD, 64, Tcp, b"");
        node.expect("good", Port::Uplink, Ours, || {
            node.run(Port::Uplink, &inward)
        });
        assert_eq!(node.stats(Port::Pod).redirected, 3);
        node.redirect.clear_slot(Node::POD_SLOT).unwrap();
        assert_eq!(node.stats(Port::Pod), PortStats::default());
        assert_eq!(node.stats(Port::Uplink).redirected, 1);
    });
}

#[test]
fn what_is_out_of_range_is_refused_by_name() {
    in_netns(|| {
        let node = Node::new();
        let redirect = &node.redirect;
        let socket = xdp_socket();
        let text = |result: Result<(), Error>| result.unwrap_err().to_string();
        assert!(text(redirect.add_vni(1 << 24)).starts_with("VNI 16777216 is out of range"));
        assert!(text(redirect.set_socket(4096, socket.as_fd())).starts_with("socket index 4096"));
        assert!(text(redirect.del_socket(4096)).starts_with("socket index 4096"));
        assert!(text(redirect.set_queue_worker(4096, 0)).starts_with("socket index 4096"));
        assert!(text(redirect.set_queue_worker(0, 64)).starts_with("worker 64"));
        assert!(text(redirect.set_tap(64, node.uplink)).starts_with("worker 64"));
        // Nor has the slot of unknown ports an exit, which is the last.
        for slot in [1023, 1024] {
            let refused = text(redirect.set_exit(slot, node.uplink, PORT_MAC));
            let start = format!("counter slot {slot} is out of range");
            assert!(refused.starts_with(&start), "{refused}");
        }
        assert!(text(redirect.add_pod(POD.parse().unwrap(), 0)).starts_with("interface index 0"));
        assert!(text(redirect.clear_slot(1024)).starts_with("counter slot 1024"));
        assert!(text(redirect.counters(1024).map(drop)).starts_with("counter slot 1024"));
        assert!(text(redirect.heartbeat(64).map(drop)).starts_with("worker 64"));
        let not_xdp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let refused = text(redirect.set_socket(0, not_xdp.as_fd()));
        assert!(
            refused.starts_with("cannot set entry 0 in the BPF map 'sockets'"),
            "{refused}"
        );
    });
}

#[test]
fn a_full_map_says_so() {
    in_netns(|| {
        let node = Node::new();
        // One VNI is there already.
        for vni in 1..4096 {
            node.redirect.add_vni(vni).unwrap();
        }
        let error = node.redirect.add_vni(5000).unwrap_err().to_string();
        assert_eq!(
            error,
            "the BPF map 'vnis' is full (4096 entries) and cannot take VNI 5000"
        );
        node.redirect.add_vni(VNI).unwrap();
    });
}
