//! The program on packets that are cut, spread over buffers, very large, or noise, through
//! `BPF_PROG_RUN`. Each test has a network namespace of its own. They need root.

mod support;

use PassCause::*;
use Want::{Pass, Redirect as Ours};
use podway_xdp_redirect::{Kind, PassCause, PortStats, RefuseCause};
use support::node::*;
use support::packets::*;
use support::{Action, in_netns};

/// One good packet of each kind, with the number of leading bytes that the program reads: a packet
/// that has them is ours, however much of the rest is cut.
fn good_packets() -> Vec<(&'static str, Port, Vec<u8>, usize)> {
    let v4 = packet(REMOTE, POD, 64, Tcp, b"payload");
    let v6 = packet(REMOTE_V6, POD_V6, 64, Tcp, b"payload");
    let echo = packet(REMOTE_V6, POD_V6, 64, Echo, b"payload");
    let from_pod = packet(POD, REMOTE, 64, Udp(9), b"payload");
    let from_pod_v6 = packet(POD_V6, REMOTE_V6, 64, Udp(9), b"payload");
    let over_v4 = |inner| tunnel(OTHER_NODE, NODE, VNI, inner);
    let over_v6 = |inner| tunnel(OTHER_NODE_V6, NODE_V6, VNI, inner);
    vec![
        ("v4 from the pod", Port::Pod, from_pod, L4),
        ("v6 from the pod", Port::Pod, from_pod_v6, L4_V6),
        ("v4 from the uplink", Port::Uplink, v4.clone(), L4),
        ("v6 from the uplink", Port::Uplink, v6.clone(), L4_V6),
        (
            "ICMPv6, whose type is read",
            Port::Uplink,
            echo.clone(),
            L4_V6 + 1,
        ),
        ("v4 in v4", Port::Uplink, over_v4(&v4), INNER + L4),
        ("v6 in v4", Port::Uplink, over_v4(&v6), INNER + L4_V6),
        (
            "ICMPv6 in v4",
            Port::Uplink,
            over_v4(&echo),
            INNER + L4_V6 + 1,
        ),
        ("v4 in v6", Port::Uplink, over_v6(&v4), INNER_V6 + L4),
        ("v6 in v6", Port::Uplink, over_v6(&v6), INNER_V6 + L4_V6),
    ]
}

#[test]
fn a_packet_cut_at_any_byte_passes_or_is_the_dataplanes_to_drop() {
    in_netns(|| {
        let node = Node::new();
        for (what, port, packet, needed) in good_packets() {
            // BPF_PROG_RUN takes no less than an Ethernet header.
            for length in 14..=packet.len() {
                let want = if length < needed {
                    Pass(Malformed)
                } else {
                    Ours
                };
                let what = format!("{what}, {length} of {} bytes", packet.len());
                node.expect(&what, port, want, || node.run(port, &packet[..length]));
                // And for an skb no less than an IP header.
                if length >= if packet[ETHERTYPE] == 8 { L4 } else { L4_V6 } {
                    node.check_tcx(port, &what, &packet[..length], 0, want);
                }
            }
        }
    });
}

/// The kernel runs a program on the bytes of the first buffer; what a driver puts into the next
/// ones cannot be classified by it.
#[test]
fn headers_beyond_the_first_buffer_pass() {
    in_netns(|| {
        let node = Node::new();
        for (what, port, packet, needed) in good_packets() {
            for linear in [14, needed - 1, needed, packet.len()] {
                let want = if linear < needed {
                    Pass(Malformed)
                } else {
                    Ours
                };
                let what = format!("{what}, {linear} of {} bytes first", packet.len());
                node.expect(&what, port, want, || node.run_on(port, 0, &packet, linear));
            }
        }
    });
}

#[test]
fn sizes_are_those_of_the_whole_packet() {
    in_netns(|| {
        let node = Node::new();
        let route = usize::from(ROUTE_MTU);
        // L4 headers of 8 bytes (UDP, ICMP) and 20 (TCP).
        let v4 = |carried, l3: usize, l4: usize| {
            packet(POD, REMOTE, 64, carried, &vec![0; l3 - 20 - l4])
        };
        let v6 = |carried, l3: usize, l4: usize| {
            packet(POD_V6, REMOTE_V6, 64, carried, &vec![0; l3 - 40 - l4])
        };
        let pad = |frame| with(frame, |f: &mut Vec<u8>| f.resize(f.len() + 50, 0));
        #[rustfmt::skip]
        let cases = vec![
            ("UDP that fits", v4(Udp(9), route, 8), Ours),
            ("UDP one too large", v4(Udp(9), route + 1, 8), Pass(Oversize)),
            ("ICMP that fits", v4(Echo, route, 8), Ours),
            ("ICMP one too large", v4(Echo, route + 1, 8), Pass(Oversize)),
            ("TCP one too large", v4(Tcp, route + 1, 20), Ours),
            ("TCP super-frame", v4(Tcp, 40_000, 20), Ours),
            ("largest TCP super-frame", v4(Tcp, 65_535, 20), Ours),
            ("UDP super-frame", v4(Udp(9), 40_000, 8), Pass(Oversize)),
            ("IPv6 UDP that fits", v6(Udp(9), route, 8), Ours),
            ("IPv6 UDP one too large", v6(Udp(9), route + 1, 8), Pass(Oversize)),
            ("IPv6 TCP super-frame", v6(Tcp, 65_535, 20), Ours),
            ("IPv6 echo one too large", v6(Echo, route + 1, 8), Pass(Oversize)),
            ("padding is not the packet", pad(v4(Udp(10), route, 8)), Ours),
            ("more than an IPv4 header can say", pad(v4(Tcp, 65_535, 20)), Pass(Oversize)),
        ];
        node.check(Port::Pod, cases);

        let super_frame = packet(REMOTE, POD, 64, Tcp, &[0; 30_000]);
        // Of another flow: this one is the kernel's for a while.
        let too_large = packet(REMOTE, POD, 64, Udp(11), &[0; 1_473]);
        let lying = with(packet(REMOTE, POD, 64, Udp(9), &[0; 1_462]), |f| {
            f[IP + 2..IP + 4].copy_from_slice(&1_510_u16.to_be_bytes());
        });
        let native = packet(REMOTE, POD, 64, Udp(9), &[0; 1_472]);
        #[rustfmt::skip]
        let cases = vec![
            ("native, up to the pod's MTU", native.clone(), Ours),
            ("native, over the pod's MTU", too_large.clone(), Pass(Oversize)),
            ("native super-frame", super_frame.clone(), Ours),
            ("inner up to the pod's MTU", tunnel(OTHER_NODE, NODE, VNI, &native), Ours),
            ("inner over the pod's MTU", tunnel(OTHER_NODE, NODE, VNI, &too_large), Pass(Oversize)),
            // Longer than the pod's MTU and than itself, shorter than the packet around it.
            ("inner length beyond its end", tunnel(OTHER_NODE, NODE, VNI, &lying), Ours),
            ("tunnel super-frame", tunnel(OTHER_NODE_V6, NODE_V6, VNI, &super_frame), Ours),
        ];
        node.check(Port::Uplink, cases);
    });
}

/// Noise: single changed bytes and random bytes behind a good MAC. Whatever they are, the packet
/// is counted once, the action fits the counter, and both programs and their rules in user space decide
/// alike.
#[test]
fn noise_is_counted_exactly_once() {
    in_netns(|| {
        let node = Node::new();
        let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
        let mut runs = 0;
        let (mut redirected, mut refused) = (0, 0);
        for (_, port, good, needed) in good_packets() {
            for round in 0..600 {
                let mut packet = good.clone();
                if round % 3 == 0 {
                    packet[14..].fill_with(|| random.byte());
                } else {
                    packet[random.below(needed)] = random.byte();
                }
                let (fate, walk) = node.walk(port, Kind::Xdp, 0, &packet, false);
                let before = node.stats(port);
                let action = node.run(port, &packet);
                assert_eq!(
                    counted(before, node.stats(port)),
                    fate,
                    "{packet:02x?} {walk:?}"
                );
                assert_eq!(node.classify(port, 0, &packet).0, action, "{packet:02x?}");
                redirected += 2 * u64::from(action == Action::Redirect);
                refused += 2 * u64::from(action == Action::Drop);
                runs += 2;
            }
        }
        let [pod, uplink] = [Port::Pod, Port::Uplink].map(|port| node.stats(port));
        assert_eq!(pod.redirected + uplink.redirected, redirected);
        let passed = |stats: PortStats| stats.passed.iter().sum::<u64>();
        let refusals = |stats: PortStats| stats.refused.iter().sum::<u64>();
        assert_eq!(refusals(pod) + refusals(uplink), refused);
        assert_eq!(passed(pod) + passed(uplink), runs - redirected - refused);
        assert!(
            redirected > 0 && refused > 0 && redirected + refused < runs,
            "{redirected} and {refused} of {runs}"
        );
    });
}

/// What was counted between two states.
fn counted(before: PortStats, after: PortStats) -> Want {
    if after.redirected > before.redirected {
        return Ours;
    }
    let mut passed = PassCause::ALL.iter();
    if let Some(cause) = passed.find(|c| after.passed_for(**c) > before.passed_for(**c)) {
        return Pass(*cause);
    }
    let mut refused = RefuseCause::ALL.iter();
    let cause = refused.find(|c| after.refused_for(**c) > before.refused_for(**c));
    Want::Refuse(*cause.expect("one of them is counted"))
}

/// A small generator, seeded the same for every run.
struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[4]
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}
