//! A node to classify packets on: one pod port and one uplink, in the network namespace of the
//! calling thread.
//!
//! ```text
//!   pod 10.0.0.2, fd00:0:0:a::2 --- [pod port]  node  [uplink] --- 192.0.2.0/24, fd00:ffff::/64
//!                                    192.0.2.1, fd00:ffff::1, 10.0.0.1
//! ```
//! The two ports are the ends of one veth pair: nothing is sent on it, `BPF_PROG_RUN` only wants
//! interfaces that exist. A second pod has addresses and no interface.

use std::os::fd::{AsFd, OwnedFd};

use podway_xdp_redirect::{
    Arrival, Fate, Heartbeat, Kind, PassCause, PortEntry, PortStats, Redirect, RefuseCause, Role,
    UNKNOWN_PORT_SLOT, Walk, port_tag,
};

use super::packets::{PORT_MAC, VNI, VXLAN_PORT};
use super::{Action, LONGEST_SKB, ifindex, now_ns, run, run_tcx, veth, xdp_socket};

pub(crate) const POD: &str = "10.0.0.2";
pub(crate) const POD_V6: &str = "fd00:0:0:a::2";
pub(crate) const POD2: &str = "10.0.0.3";
pub(crate) const POD2_V6: &str = "fd00:0:0:a::3";
/// Behind a prefix of MTU 1450.
pub(crate) const REMOTE: &str = "10.0.1.2";
pub(crate) const REMOTE_V6: &str = "fd00:0:0:b::2";
pub(crate) const ROUTE_MTU: u16 = 1450;
/// Under the same kind of prefix, in a longer one that is not resolved.
pub(crate) const UNRESOLVED: &str = "10.0.1.200";
pub(crate) const UNRESOLVED_V6: &str = "fd00:0:0:b:dead::2";
/// In no prefix.
pub(crate) const NOWHERE: &str = "198.51.100.1";
pub(crate) const NOWHERE_V6: &str = "2001:db8::1";
/// The node itself, and another node on the underlay.
pub(crate) const NODE: &str = "192.0.2.1";
pub(crate) const NODE_V6: &str = "fd00:ffff::1";
pub(crate) const OTHER_NODE: &str = "192.0.2.2";
pub(crate) const OTHER_NODE_V6: &str = "fd00:ffff::2";

/// Which of the two ports a packet comes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    Pod,
    Uplink,
}

/// What is expected of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Redirect,
    Pass(PassCause),
    Refuse(RefuseCause),
}

/// What becomes of whatever a pod sends from an address that it has not.
pub(crate) const SPOOFED: Want = Want::Refuse(RefuseCause::SpoofedSource);

/// A row of a test table.
pub(crate) type Case = (&'static str, Vec<u8>, Want);

pub(crate) struct Node {
    pub(crate) redirect: Redirect,
    pub(crate) pod: u32,
    pub(crate) uplink: u32,
    pub(crate) heartbeat: Heartbeat,
    /// The map holds no reference of its own: a socket that is closed leaves it.
    _sockets: Vec<OwnedFd>,
}

impl Node {
    pub(crate) const POD_SLOT: u32 = 0;
    pub(crate) const UPLINK_SLOT: u32 = 5;
    /// Both ports have two queues, of which queue 0 has a socket and belongs to this worker, which
    /// has a TAP.
    pub(crate) const WORKER: u32 = 3;
    pub(crate) const POD_BASE: u32 = 8;
    pub(crate) const UPLINK_BASE: u32 = 4094;

    pub(crate) fn new() -> Self {
        veth("pod0", "eth0", 2);
        let (pod, uplink) = (ifindex("pod0"), ifindex("eth0"));
        let redirect = Redirect::load().unwrap();
        let port = |role, slot, xsk_base| PortEntry {
            role,
            mac: PORT_MAC,
            slot,
            xsk_base,
            queues: 2,
            // An underlay that carries a full pod packet in a tunnel.
            mtu: if role == Role::Uplink { 1600 } else { 1500 },
            any_source: false,
        };
        redirect
            .set_port(pod, &port(Role::Pod, Self::POD_SLOT, Self::POD_BASE))
            .unwrap();
        redirect
            .set_port(
                uplink,
                &port(Role::Uplink, Self::UPLINK_SLOT, Self::UPLINK_BASE),
            )
            .unwrap();
        for address in [POD, POD_V6] {
            redirect.add_pod(address.parse().unwrap(), pod).unwrap();
        }
        for address in [POD2, POD2_V6] {
            redirect
                .add_pod(address.parse().unwrap(), pod + 1000)
                .unwrap();
        }
        for address in [NODE, NODE_V6, "10.0.0.1"] {
            redirect.add_local(address.parse().unwrap()).unwrap();
        }
        for (prefix, mtu) in [
            ("10.0.0.0/16", ROUTE_MTU),
            ("10.0.0.2/32", 1500),
            ("10.0.0.3/32", 1500),
            ("10.0.1.192/26", 0),
            ("fd00::/60", ROUTE_MTU),
            ("fd00:0:0:a::2/128", 1500),
            ("fd00:0:0:a::3/128", 1500),
            ("fd00:0:0:b:dead::/80", 0),
        ] {
            redirect.add_prefix(prefix.parse().unwrap(), mtu).unwrap();
        }
        redirect.set_vxlan_port(VXLAN_PORT);
        redirect.add_vni(VNI).unwrap();
        let mut sockets = Vec::new();
        for base in [Self::POD_BASE, Self::UPLINK_BASE] {
            let socket = xdp_socket();
            redirect.set_socket(base, socket.as_fd()).unwrap();
            redirect.set_queue_worker(base, Self::WORKER).unwrap();
            sockets.push(socket);
        }
        // Any interface will do: `BPF_PROG_RUN` stops before the redirect.
        redirect.set_tap(Self::WORKER, uplink).unwrap();
        let heartbeat = redirect.heartbeat(Self::WORKER).unwrap();
        heartbeat.beat(now_ns());
        redirect.open_gate();
        Self {
            redirect,
            pod,
            uplink,
            heartbeat,
            _sockets: sockets,
        }
    }

    pub(crate) fn stats(&self, port: Port) -> PortStats {
        self.redirect.counters(Self::at(port).1).unwrap()
    }

    /// Queue 0 of a port, all of the packet's headers in the first buffer.
    pub(crate) fn run(&self, port: Port, packet: &[u8]) -> Action {
        self.run_on(port, 0, packet, packet.len().min(2000))
    }

    pub(crate) fn run_on(&self, port: Port, queue: u32, packet: &[u8], linear: usize) -> Action {
        self.heartbeat.beat(now_ns());
        let program = self.redirect.as_fd();
        run(program, self.ifindex(port), queue, packet, linear)
    }

    /// The tcx program on a packet, or on a super-frame with segments of `segment` bytes; and the
    /// packet as the program leaves it.
    pub(crate) fn classify(&self, port: Port, segment: u16, packet: &[u8]) -> (Action, Vec<u8>) {
        self.heartbeat.beat(now_ns());
        let program = self.redirect.classifier();
        run_tcx(program, self.ifindex(port), segment, packet)
    }

    fn ifindex(&self, port: Port) -> u32 {
        match port {
            Port::Pod => self.pod,
            Port::Uplink => self.uplink,
        }
    }

    /// Runs `action` and asserts its answer and that exactly the expected counter moved, by one.
    pub(crate) fn expect(
        &self,
        what: &str,
        port: Port,
        want: Want,
        action: impl FnOnce() -> Action,
    ) {
        let slots = [Self::POD_SLOT, Self::UPLINK_SLOT, UNKNOWN_PORT_SLOT];
        let read = || slots.map(|slot| self.redirect.counters(slot).unwrap());
        let mut expected = read();
        let unknown = want == Want::Pass(PassCause::UnknownPort);
        let counted = &mut expected[if unknown { 2 } else { Self::at(port).0 }];
        let answer = match want {
            Want::Redirect => {
                counted.redirected += 1;
                Action::Redirect
            }
            Want::Pass(cause) => {
                counted.passed[cause as usize] += 1;
                Action::Pass
            }
            Want::Refuse(cause) => {
                counted.refused[cause as usize] += 1;
                Action::Drop
            }
        };
        let answered = action();
        assert_eq!(read(), expected, "{what}: wanted {want:?}");
        assert_eq!(answered, answer, "{what}");
    }

    /// What becomes of a packet by the rules in user space.
    pub(crate) fn walk(
        &self,
        port: Port,
        program: Kind,
        queue: u32,
        packet: &[u8],
        gso: bool,
    ) -> (Want, Walk) {
        self.heartbeat.beat(now_ns());
        let arrival = Arrival {
            ifindex: self.ifindex(port),
            queue,
            program,
            frame: packet,
            gso,
        };
        let walk = self.redirect.walk(&arrival).unwrap();
        let fate = match walk.fate {
            Fate::Redirect { .. } => Want::Redirect,
            Fate::Pass(cause) => Want::Pass(cause),
            Fate::Refuse(cause) => Want::Refuse(cause),
        };
        (fate, walk)
    }

    fn expect_walk(
        &self,
        what: &str,
        port: Port,
        packet: &[u8],
        program: Kind,
        want: Want,
        gso: bool,
    ) {
        let (fate, walk) = self.walk(port, program, 0, packet, gso);
        assert_eq!(fate, want, "{what}, by {program:?} in user space: {walk:?}");
    }

    /// Runs a table of packets on queue 0 of a port: both programs, and their rules in user space,
    /// decide alike.
    pub(crate) fn check(&self, port: Port, cases: Vec<Case>) {
        for (what, packet, want) in cases {
            self.expect_walk(what, port, &packet, Kind::Xdp, want, false);
            self.expect(what, port, want, || self.run(port, &packet));
            if packet.len() <= LONGEST_SKB {
                self.check_tcx(port, what, &packet, 0, want);
            }
        }
    }

    /// Runs the tcx program on a packet: if it is redirected, the port is where its own MAC was;
    /// nothing else changes, ever.
    pub(crate) fn check_tcx(
        &self,
        port: Port,
        what: &str,
        packet: &[u8],
        segment: u16,
        want: Want,
    ) {
        let what = format!("{what}, at tcx");
        self.expect_walk(&what, port, packet, Kind::Tcx, want, segment > 0);
        let mut left = Vec::new();
        self.expect(&what, port, want, || {
            let (action, after) = self.classify(port, segment, packet);
            left = after;
            action
        });
        let mut expected = packet.to_vec();
        if want == Want::Redirect {
            let slot = u16::try_from(Self::at(port).1).unwrap();
            expected[..6].copy_from_slice(&port_tag(slot));
        }
        assert_eq!(left, expected, "{what}");
    }

    /// Position in the slots of [`Self::expect`], and the slot.
    fn at(port: Port) -> (usize, u32) {
        match port {
            Port::Pod => (0, Self::POD_SLOT),
            Port::Uplink => (1, Self::UPLINK_SLOT),
        }
    }
}
