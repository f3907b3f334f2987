//! The verdict of both programs, XDP and tcx, on packets, through `BPF_PROG_RUN`: tables of what a
//! packet is, its bytes, and the action and cause that are expected. Each test has a network
//! namespace of its own, so they may run in parallel. They need root.

mod support;

use PassCause::*;
use Want::{Pass, Redirect as Ours, Refuse};
use podway_xdp_redirect::{Oversize, PassCause, PortEntry, RefuseCause, Role};
use support::in_netns;
use support::node::*;
use support::packets::*;

const MULTICAST_MAC: [u8; 6] = [0x01, 0, 0x5e, 0, 0, 1];

#[test]
fn a_pod_port_takes_what_its_pod_sends_to_fast_path_prefixes() {
    in_netns(|| {
        #[rustfmt::skip]
        let cases = vec![
            ("TCP", packet(POD, REMOTE, 64, Tcp, b"x"), Ours),
            ("UDP", packet(POD, REMOTE, 64, Udp(53), b"x"), Ours),
            ("ICMP", packet(POD, REMOTE, 64, Echo, b"x"), Ours),
            ("to a pod of this node", packet(POD, POD2, 64, Tcp, b""), Ours),
            ("lowest TTL", packet(POD, REMOTE, 2, Tcp, b""), Ours),
            ("TTL used up", packet(POD, REMOTE, 1, Tcp, b""), Pass(HopLimit)),
            ("TTL 0", packet(POD, REMOTE, 0, Tcp, b""), Pass(HopLimit)),
            ("SCTP", packet(POD, REMOTE, 64, Other(132), &[0; 20]), Pass(Protocol)),
            ("ICMPv6 in IPv4", packet(POD, REMOTE, 64, Other(58), &[128; 8]), Pass(Protocol)),
            ("IGMP", packet(POD, REMOTE, 64, Other(2), &[0; 8]), Pass(Protocol)),
            ("no route", packet(POD, NOWHERE, 64, Tcp, b""), Pass(NoRoute)),
            ("unresolved", packet(POD, UNRESOLVED, 64, Tcp, b""), Pass(Unresolved)),
            ("to the node", packet(POD, NODE, 64, Tcp, b""), Pass(LocalAddress)),
            ("to the gateway", packet(POD, "10.0.0.1", 64, Tcp, b""), Pass(LocalAddress)),
            ("source of another pod", packet(POD2, REMOTE, 64, Tcp, b""), SPOOFED),
            ("unknown source", packet("10.0.0.9", REMOTE, 64, Tcp, b""), SPOOFED),
            ("multicast", packet(POD, "224.0.0.251", 64, Udp(5353), b""), Pass(Multicast)),
            ("broadcast", packet(POD, "255.255.255.255", 64, Udp(67), b""), Pass(Multicast)),
            ("reserved", packet(POD, "240.0.0.1", 64, Udp(67), b""), Pass(Multicast)),
            ("last unicast", packet(POD, "223.255.255.255", 64, Tcp, b""), Pass(NoRoute)),
            ("loopback", packet(POD, "127.0.0.1", 64, Tcp, b""), Pass(LinkLocal)),
            ("link-local", packet(POD, "169.254.169.254", 64, Tcp, b""), Pass(LinkLocal)),
            ("this network", packet(POD, "0.0.0.0", 64, Udp(68), b""), Pass(LinkLocal)),
        ];
        Node::new().check(Port::Pod, cases);
    });
}

#[test]
fn a_pod_port_takes_ipv6_likewise() {
    in_netns(|| {
        let to = |carried| packet(POD_V6, REMOTE_V6, 64, carried, &[0; 24]);
        let link = Pass(NeighborDiscovery);
        let extension = Pass(ExtensionHeader);
        #[rustfmt::skip]
        let cases = vec![
            ("TCP", to(Tcp), Ours),
            ("UDP", to(Udp(53)), Ours),
            ("echo", to(Echo), Ours),
            ("too big", to(Icmpv6(2)), Ours),
            ("to a pod of this node", packet(POD_V6, POD2_V6, 64, Tcp, b""), Ours),
            ("lowest hop limit", packet(POD_V6, REMOTE_V6, 2, Tcp, b""), Ours),
            ("hop limit used up", packet(POD_V6, REMOTE_V6, 1, Tcp, b""), Pass(HopLimit)),
            ("MLD query", to(Icmpv6(130)), link),
            ("MLD done", to(Icmpv6(132)), link),
            ("router solicitation", to(Icmpv6(133)), link),
            ("router advertisement", to(Icmpv6(134)), link),
            ("neighbour solicitation", to(Icmpv6(135)), link),
            ("neighbour advertisement", to(Icmpv6(136)), link),
            ("redirect", to(Icmpv6(137)), link),
            ("inverse ND", to(Icmpv6(141)), link),
            ("MLDv2 report", to(Icmpv6(143)), link),
            ("SEND", to(Icmpv6(148)), link),
            ("multicast router discovery", to(Icmpv6(151)), link),
            ("echo reply, just below MLD", to(Icmpv6(129)), Ours),
            ("hop by hop", to(Other(0)), extension),
            ("routing", to(Other(43)), extension),
            ("authentication", to(Other(51)), extension),
            ("destination options", to(Other(60)), extension),
            ("mobility", to(Other(135)), extension),
            ("HIP", to(Other(139)), extension),
            ("Shim6", to(Other(140)), extension),
            ("fragment", to(Other(44)), Pass(Fragment)),
            ("ESP", to(Other(50)), Pass(Protocol)),
            ("ICMP in IPv6", to(Other(1)), Pass(Protocol)),
            ("no next header", to(Other(59)), Pass(Protocol)),
            ("no route", packet(POD_V6, NOWHERE_V6, 64, Tcp, b""), Pass(NoRoute)),
            ("unresolved", packet(POD_V6, UNRESOLVED_V6, 64, Tcp, b""), Pass(Unresolved)),
            ("to the node", packet(POD_V6, NODE_V6, 64, Tcp, b""), Pass(LocalAddress)),
            ("foreign source", packet(POD2_V6, REMOTE_V6, 64, Tcp, b""), SPOOFED),
            ("link-local source", packet("fe80::2", REMOTE_V6, 64, Tcp, b""), SPOOFED),
            ("multicast", packet(POD_V6, "ff02::1", 64, Udp(5353), b""), Pass(Multicast)),
            ("link-local", packet(POD_V6, "fe80::1", 64, Tcp, b""), Pass(LinkLocal)),
            ("end of link-local", packet(POD_V6, "febf::1", 64, Tcp, b""), Pass(LinkLocal)),
            ("behind link-local", packet(POD_V6, "fec0::1", 64, Tcp, b""), Pass(NoRoute)),
            ("loopback", packet(POD_V6, "::1", 64, Tcp, b""), Pass(LinkLocal)),
            ("unspecified", packet(POD_V6, "::", 64, Tcp, b""), Pass(LinkLocal)),
            ("behind loopback", packet(POD_V6, "::2", 64, Tcp, b""), Pass(NoRoute)),
        ];
        Node::new().check(Port::Pod, cases);
    });
}

#[test]
fn frames_that_are_not_plain_ip_to_the_port_pass() {
    in_netns(|| {
        let node = Node::new();
        for port in [Port::Pod, Port::Uplink] {
            let good = || match port {
                Port::Pod => packet(POD, REMOTE, 64, Tcp, b"x"),
                Port::Uplink => packet(REMOTE, POD, 64, Tcp, b"x"),
            };
            let good_v6 = || match port {
                Port::Pod => packet(POD_V6, REMOTE_V6, 64, Tcp, b"x"),
                Port::Uplink => packet(REMOTE_V6, POD_V6, 64, Tcp, b"x"),
            };
            let to_mac = |mac: [u8; 6]| with(good(), |f| f[..6].copy_from_slice(&mac));
            let ethertype = |value: u16| {
                with(good(), |f| {
                    f[ETHERTYPE..IP].copy_from_slice(&value.to_be_bytes());
                    // Of ARP, from nobody yet.
                    f[IP + 14..IP + 18].fill(0);
                })
            };
            #[rustfmt::skip]
            let cases = vec![
                ("good", good(), Ours),
                ("good IPv6", good_v6(), Ours),
                ("first half of another MAC", to_mac([3, 0, 0, 0, 0, 1]), Pass(NotForUs)),
                ("middle of another MAC", to_mac([2, 0, 0, 1, 0, 1]), Pass(NotForUs)),
                ("end of another MAC", to_mac([2, 0, 0, 0, 0, 9]), Pass(NotForUs)),
                ("broadcast MAC", to_mac([0xff; 6]), Pass(NotForUs)),
                ("multicast MAC", to_mac(MULTICAST_MAC), Pass(NotForUs)),
                ("ARP", ethertype(0x0806), Pass(NotIp)),
                ("VLAN", ethertype(0x8100), Pass(NotIp)),
                ("IEEE 802.3 length", ethertype(64), Pass(NotIp)),
                ("IPv6 EtherType on IPv4", ethertype(0x86dd), Pass(Malformed)),
                ("IPv4 of version 5", byte(good(), IP, 0x55), Pass(Malformed)),
                ("IPv4 EtherType on IPv6", byte(good_v6(), IP - 1, 0), Pass(NotIp)),
                ("IPv6 of version 4", byte(good_v6(), IP, 0x40), Pass(Malformed)),
                ("header length 4", byte(good(), IP, 0x44), Pass(Malformed)),
                ("header length 0", byte(good(), IP, 0x40), Pass(Malformed)),
                ("options", byte(good(), IP, 0x46), Pass(Options)),
                ("most options", byte(good(), IP, 0x4f), Pass(Options)),
            ];
            node.check(port, cases);
        }
    });
}

#[test]
fn what_is_ours_and_wrong_inside_goes_to_the_dataplane() {
    in_netns(|| {
        let good = || packet(POD, REMOTE, 64, Udp(9), &[0; 100]);
        let good_v6 = || packet(POD_V6, REMOTE_V6, 64, Udp(9), &[0; 100]);
        let no_type = packet(POD_V6, REMOTE_V6, 64, Other(58), b"");
        let length = |value: u16| {
            with(good(), |f| {
                f[IP + 2..IP + 4].copy_from_slice(&value.to_be_bytes())
            })
        };
        let length_v6 = |value: u16| {
            with(good_v6(), |f| {
                f[IP + 4..IP + 6].copy_from_slice(&value.to_be_bytes())
            })
        };
        #[rustfmt::skip]
        let cases = vec![
            ("bad header checksum", byte(good(), IP + 10, 0x5a), Ours),
            ("total length 0", length(0), Ours),
            ("total length below the header's", length(19), Ours),
            ("total length beyond the packet", length(129), Ours),
            ("largest total length", length(65535), Ours),
            ("payload length beyond the packet", length_v6(109), Ours),
            ("largest payload length", length_v6(65535), Ours),
            ("no L4 header", with(good(), |f| f.truncate(L4)), Ours),
            ("ICMPv6 without a type", no_type, Pass(Malformed)),
        ];
        Node::new().check(Port::Pod, cases);
    });
}

#[test]
fn an_ipv4_fragment_is_ours_by_addresses_when_it_fits() {
    in_netns(|| {
        let node = Node::new();
        let fragment = |from, to, carried, size: usize, field: u16| {
            with(packet(from, to, 64, carried, &vec![0; size]), |f| {
                f[IP + 6..L4 - 12].copy_from_slice(&field.to_be_bytes());
            })
        };
        let from_pod = |carried, size, field| fragment(POD, REMOTE, carried, size, field);
        let to_vtep = fragment(OTHER_NODE, NODE, Udp(VXLAN_PORT), 100, 0x2000);
        let route = usize::from(ROUTE_MTU);
        #[rustfmt::skip]
        let cases = vec![
            ("first", from_pod(Udp(9), 100, 0x2000), Ours),
            ("middle", from_pod(Other(17), 100, 0x2010), Ours),
            ("last", from_pod(Other(1), 100, 0x0010), Ours),
            ("don't fragment is none", from_pod(Tcp, route, 0x4000), Ours),
            ("of TCP that fits", from_pod(Other(6), route - 20, 0x2000), Ours),
            ("of TCP too large", from_pod(Other(6), route - 19, 0x2000), Pass(Oversize)),
            ("of SCTP", from_pod(Other(132), 100, 0x2000), Pass(Protocol)),
        ];
        node.check(Port::Pod, cases);
        #[rustfmt::skip]
        let cases = vec![
            ("to a pod", fragment(REMOTE, POD, Other(17), 100, 0x2010), Ours),
            // A tunnel's end would have to reassemble it; the kernel does.
            ("to the VTEP", to_vtep, Pass(NotVxlan)),
        ];
        node.check(Port::Uplink, cases);
    });
}

#[test]
fn what_is_too_large_is_kept_and_super_frames_are_not() {
    in_netns(|| {
        let node = Node::new();
        let last = || node.redirect.oversize(Node::POD_SLOT).unwrap();
        let of = |from, to, length: usize, headers| {
            packet(from, to, 64, Udp(9), &vec![0; length - headers])
        };
        let told = |source: &str, destination: &str, length| Oversize {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            length,
            mtu: ROUTE_MTU,
        };
        let fits = || of(POD, REMOTE, ROUTE_MTU.into(), 28);
        node.check(Port::Pod, vec![("fits", fits(), Ours)]);
        assert_eq!(last(), None);
        let large = vec![(
            "large",
            of(POD, REMOTE, 1451, 28),
            Pass(PassCause::Oversize),
        )];
        node.check(Port::Pod, large);
        assert_eq!(last(), Some(told(POD, REMOTE, 1451)));
        // The flow is the kernel's for a while.
        let stays = vec![("stays", fits(), Pass(PassCause::Oversize))];
        node.check(Port::Pod, stays);
        let batch = vec![(
            "batch",
            of(POD, REMOTE, 3000, 28),
            Pass(PassCause::Oversize),
        )];
        node.check(Port::Pod, batch);
        assert_eq!(last(), Some(told(POD, REMOTE, 1451)));
        let v6 = of(POD_V6, REMOTE_V6, 1500, 48);
        node.check(Port::Pod, vec![("IPv6", v6, Pass(PassCause::Oversize))]);
        assert_eq!(last(), Some(told(POD_V6, REMOTE_V6, 1500)));
        assert_eq!(node.redirect.oversize(Node::UPLINK_SLOT).unwrap(), None);
        node.redirect.forget_oversize(Node::POD_SLOT).unwrap();
        assert_eq!(last(), None);
    });
}

#[test]
fn where_the_kernel_reassembles_fragments_are_the_kernels() {
    in_netns(|| {
        let node = Node::new();
        let fragment = |from, to, carried, field: u16| {
            with(packet(from, to, 64, carried, &[0; 100]), |f| {
                f[IP + 6..IP + 8].copy_from_slice(&field.to_be_bytes());
            })
        };
        let tunnel_of = |inner: Vec<u8>| tunnel(OTHER_NODE, NODE, VNI, &inner);
        let tunnel_v6_of = |inner: Vec<u8>| tunnel(OTHER_NODE_V6, NODE_V6, VNI, &inner);
        #[rustfmt::skip]
        let from_pod = |fragments| -> Vec<Case> {
            vec![
                ("first", fragment(POD, REMOTE, Udp(9), 0x2000), fragments),
                ("middle", fragment(POD, REMOTE, Other(17), 0x2010), fragments),
                ("last", fragment(POD, REMOTE, Other(17), 0x0010), fragments),
                ("last of TCP", fragment(POD, REMOTE, Other(6), 0x0010), fragments),
                ("last of ICMP", fragment(POD, REMOTE, Other(1), 0x0010), fragments),
                ("to a pod of this node", fragment(POD, POD2, Other(17), 0x0010), fragments),
                ("of another pod's", fragment(POD2, REMOTE, Udp(9), 0x2000), SPOOFED),
                ("don't fragment is none", fragment(POD, REMOTE, Tcp, 0x4000), Ours),
                ("a whole one", packet(POD, REMOTE, 64, Udp(9), &[0; 100]), Ours),
            ]
        };
        let last = || fragment(REMOTE, POD, Other(17), 0x0010);
        let whole = || packet(REMOTE, POD, 64, Udp(9), &[0; 100]);
        #[rustfmt::skip]
        let from_uplink = |fragments| -> Vec<Case> {
            vec![
                ("natively", last(), fragments),
                ("in a tunnel", tunnel_of(last()), fragments),
                ("in a tunnel over IPv6", tunnel_v6_of(last()), fragments),
                ("a whole one, natively", whole(), Ours),
                ("a whole one in a tunnel", tunnel_of(whole()), Ours),
                ("IPv6 in a tunnel", tunnel_of(packet(REMOTE_V6, POD_V6, 64, Tcp, b"")), Ours),
            ]
        };
        for (defragments, fragments) in [(false, Ours), (true, Pass(Fragment)), (false, Ours)] {
            node.redirect.set_defragments(defragments);
            node.check(Port::Pod, from_pod(fragments));
            node.check(Port::Uplink, from_uplink(fragments));
        }
        // The flags do not touch each other.
        node.redirect.set_defragments(true);
        node.redirect.set_translates(true);
        node.redirect.set_translates(false);
        node.check(Port::Pod, from_pod(Pass(Fragment)));
    });
}

#[test]
fn a_super_frame_is_ours_only_as_tcp_also_where_the_route_carries_more() {
    in_netns(|| {
        let node = Node::new();
        // Jumbo frames on the path, an ordinary MTU of 1500 on the ports.
        node.redirect
            .add_prefix("10.0.1.0/24".parse().unwrap(), 9000)
            .unwrap();
        let of = |carried, size: usize| packet(POD, REMOTE, 64, carried, &vec![0; size]);
        #[rustfmt::skip]
        let cases = vec![
            ("UDP that fits the port", of(Udp(9), 1500 - 28), Ours),
            ("UDP that only the route carries", of(Udp(9), 1501 - 28), Pass(Oversize)),
            ("TCP likewise", of(Tcp, 1501 - 40), Ours),
        ];
        node.check(Port::Pod, cases);
    });
}

#[test]
fn a_tunnel_holds_one_packet_and_the_padding_of_a_short_frame() {
    in_netns(|| {
        let udp = |size: usize| packet(REMOTE, POD, 64, Udp(9), &vec![0; size]);
        let then = |size: usize, more: usize| {
            let inner = with(udp(size), |frame| frame.extend(vec![0; more]));
            tunnel(OTHER_NODE, NODE, VNI, &inner)
        };
        #[rustfmt::skip]
        let cases = vec![
            ("nothing behind", then(100, 0), Ours),
            ("padded to 60 bytes", then(1, 60 - 43), Ours),
            ("one byte more", then(1, 61 - 43), Pass(Batch)),
            ("a byte behind a long one", then(100, 1), Pass(Batch)),
            ("a second block", then(100, 8 + 142), Pass(Batch)),
        ];
        Node::new().check(Port::Uplink, cases);
    });
}

#[test]
fn an_uplink_takes_native_packets_to_attached_pods() {
    in_netns(|| {
        let node = Node::new();
        for (pod, other, remote, absent, ttl) in [
            (POD, POD2, REMOTE, "10.0.0.77", IP + 8),
            (POD_V6, POD2_V6, REMOTE_V6, "fd00:0:0:a::77", IP + 7),
        ] {
            let tcp = packet(remote, pod, 64, Tcp, b"");
            #[rustfmt::skip]
            let cases = vec![
                ("TCP", tcp.clone(), Ours),
                ("UDP to the VXLAN port of a pod", packet(remote, pod, 64, Udp(4789), b""), Ours),
                ("echo", packet(remote, other, 64, Echo, b""), Ours),
                ("SCTP", packet(remote, pod, 64, Other(132), &[0; 20]), Pass(Protocol)),
                ("no such pod", packet(remote, absent, 64, Tcp, b""), Pass(NoSuchPod)),
                ("transit from a pod of ours", packet(pod, remote, 64, Tcp, b""), Pass(ForeignSource)),
                ("TTL used up", byte(tcp, ttl, 1), Pass(HopLimit)),
            ];
            node.check(Port::Uplink, cases);
        }
        let foreign = Pass(ForeignSource);
        let to_pod = |carried| packet(REMOTE_V6, POD_V6, 64, carried, &[0; 20]);
        #[rustfmt::skip]
        let cases = vec![
            ("ND to a pod", to_pod(Icmpv6(135)), Pass(NeighborDiscovery)),
            ("extension header", to_pod(Other(60)), Pass(ExtensionHeader)),
            ("fragment", to_pod(Other(44)), Pass(Fragment)),
            ("source 0.0.0.0", packet("0.0.0.0", POD, 64, Tcp, b""), foreign),
            ("loopback source", packet("127.0.0.1", POD, 64, Tcp, b""), foreign),
            ("link-local source", packet("169.254.0.1", POD, 64, Tcp, b""), foreign),
            ("broadcast source", packet("255.255.255.255", POD, 64, Tcp, b""), foreign),
            ("multicast source", packet("224.0.0.1", POD, 64, Tcp, b""), foreign),
            ("link-local IPv6 source", packet("fe80::1", POD_V6, 64, Tcp, b""), foreign),
            ("unspecified IPv6 source", packet("::", POD_V6, 64, Tcp, b""), foreign),
            ("multicast", packet(REMOTE, "224.0.0.5", 1, Other(89), &[0; 20]), Pass(Multicast)),
            ("link-local", packet("fe80::1", "fe80::2", 255, Echo, b""), Pass(LinkLocal)),
        ];
        node.check(Port::Uplink, cases);
    });
}

/// Whatever else is wrong with it or would leave it to the kernel.
#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    in_netns(|| {
        let node = Node::new();
        let broadcast = |frame| with(frame, |f: &mut Vec<u8>| f[..6].fill(0xff));
        let arp = |sender: [u8; 4]| {
            broadcast(with(packet(POD, REMOTE, 64, Echo, &[0; 20]), |f| {
                f[ETHERTYPE..ETHERTYPE + 2].copy_from_slice(&[8, 6]);
                f[IP + 14..IP + 18].copy_from_slice(&sender);
            }))
        };
        let spoofed = || packet(POD2, REMOTE, 64, Udp(9), b"x");
        let spoofed_v6 = |carried| packet(POD2_V6, REMOTE_V6, 64, carried, &[0; 20]);
        #[rustfmt::skip]
        let cases = vec![
            ("options", byte(spoofed(), IP, 0x46), SPOOFED),
            ("fragment", byte(spoofed(), IP + 6, 0x20), SPOOFED),
            ("SCTP", packet(POD2, REMOTE, 64, Other(132), &[0; 20]), SPOOFED),
            ("TTL used up", packet(POD2, REMOTE, 1, Tcp, b""), SPOOFED),
            ("to multicast", packet(POD2, "224.0.0.251", 64, Udp(5353), b""), SPOOFED),
            ("to a broadcast MAC", broadcast(spoofed()), SPOOFED),
            ("to the node", packet(POD2, NODE, 64, Tcp, b""), SPOOFED),
            ("from no address", packet("0.0.0.0", REMOTE, 64, Udp(67), b""), SPOOFED),
            ("IPv6 extension header", spoofed_v6(Other(60)), SPOOFED),
            ("IPv6 fragment", spoofed_v6(Other(44)), SPOOFED),
            ("neighbour advertisement", packet(POD2_V6, "ff02::1", 255, Icmpv6(136), &[0; 20]), SPOOFED),
            ("off the link", packet("fe80::2", REMOTE_V6, 64, Tcp, b""), SPOOFED),
            ("from no IPv6 address", packet("::", REMOTE_V6, 64, Tcp, b""), SPOOFED),
            ("ARP of another", arp([10, 0, 0, 3]), SPOOFED),
            // What a pod says that has no address yet, and what stays on its link.
            ("DHCP", broadcast(packet("0.0.0.0", "255.255.255.255", 64, Udp(67), b"")), Pass(NotForUs)),
            ("duplicate address detection", packet("::", "ff02::1", 255, Icmpv6(135), &[0; 20]), Pass(Multicast)),
            ("router solicitation", packet("fe80::2", "ff02::2", 255, Icmpv6(133), &[0; 20]), Pass(Multicast)),
            ("to the gateway's link-local address", packet("fe80::2", "fe80::1", 255, Icmpv6(135), &[0; 20]), Pass(LinkLocal)),
            ("ARP", arp([10, 0, 0, 2]), Pass(NotForUs)),
            ("ARP probe", arp([0; 4]), Pass(NotForUs)),
        ];
        node.check(Port::Pod, cases);
        let port = PortEntry {
            role: Role::Pod,
            mac: PORT_MAC,
            slot: Node::POD_SLOT,
            xsk_base: Node::POD_BASE,
            queues: 2,
            mtu: 1500,
            any_source: true,
        };
        node.redirect.set_port(node.pod, &port).unwrap();
        #[rustfmt::skip]
        let cases = vec![
            ("any source", spoofed(), Ours),
            ("any source with options", byte(spoofed(), IP, 0x46), Pass(Options)),
        ];
        node.check(Port::Pod, cases);
    });
}

#[test]
fn an_uplink_refuses_what_this_node_would_have_sent() {
    in_netns(|| {
        let node = Node::new();
        let own = Refuse(RefuseCause::OwnSource);
        let to_pod = |from| packet(from, POD, 64, Tcp, b"");
        let inside = |from| tunnel(OTHER_NODE, NODE, VNI, &packet(from, POD, 64, Tcp, b""));
        #[rustfmt::skip]
        let cases = vec![
            ("the node's address", to_pod(NODE), own),
            ("a pod's address", to_pod(POD2), Pass(ForeignSource)),
            ("the node's address in a tunnel", inside("10.0.0.1"), own),
            ("a pod's address in a tunnel", inside(POD2), own),
            ("another node's", inside(OTHER_NODE), Ours),
        ];
        node.check(Port::Uplink, cases);
    });
}

#[test]
fn an_uplink_takes_tunnels_to_attached_pods() {
    in_netns(|| {
        let node = Node::new();
        for (from, to, inner_at) in [
            (OTHER_NODE, NODE, INNER),
            (OTHER_NODE_V6, NODE_V6, INNER_V6),
        ] {
            let vxlan_at = inner_at - 8;
            let udp_at = vxlan_at - 8;
            let wrap = |inner: Vec<u8>| tunnel(from, to, VNI, &inner);
            let good = || wrap(packet(REMOTE, POD, 64, Tcp, b"x"));
            let inner_ip = inner_at + IP;
            let inner = packet(REMOTE, POD, 64, Tcp, b"x");
            let inner_v4 = |from, to| wrap(packet(from, to, 64, Udp(9), b""));
            let inner_v6 = |carried| wrap(packet(REMOTE_V6, POD_V6, 255, carried, &[0; 20]));
            let range = |at: std::ops::Range<usize>| with(good(), |f| f[at].fill(0xff));
            #[rustfmt::skip]
            let cases = vec![
                ("IPv4 inside", good(), Ours),
                ("IPv6 inside", wrap(packet(REMOTE_V6, POD_V6, 64, Udp(9), b"x")), Ours),
                ("echo inside", wrap(packet(REMOTE, POD2, 64, Echo, b"")), Ours),
                ("largest VNI", tunnel(from, to, 0xff_ffff, &inner), Pass(UnknownVni)),
                ("reserved flags", byte(good(), vxlan_at, 0xff), Ours),
                ("reserved bytes", range(vxlan_at + 1..vxlan_at + 4), Ours),
                ("reserved last byte", byte(good(), vxlan_at + 7, 0xff), Ours),
                ("no I flag", byte(good(), vxlan_at, 0xf7), Pass(NotVxlan)),
                ("another VNI", byte(good(), vxlan_at + 6, 0), Pass(UnknownVni)),
                ("another UDP port", byte(good(), udp_at + 3, 0), Pass(NotVxlan)),
                ("TCP to the VXLAN port", packet(from, to, 64, Tcp, &[0; 60]), Pass(NotVxlan)),
                ("echo to the node", packet(from, to, 64, Echo, b""), Pass(NotVxlan)),
                ("inner unicast to another MAC", byte(good(), inner_at + 5, 9), Ours),
                ("inner broadcast MAC", range(inner_at..inner_at + 6), Pass(NotForUs)),
                ("inner ARP", byte(good(), inner_at + ETHERTYPE + 1, 6), Pass(NotIp)),
                ("inner VLAN", byte(good(), inner_at + ETHERTYPE, 0x81), Pass(NotIp)),
                ("inner version", byte(good(), inner_ip, 0x65), Pass(Malformed)),
                ("inner options", byte(good(), inner_ip, 0x46), Pass(Options)),
                ("inner TTL used up", byte(good(), inner_ip + 8, 1), Pass(HopLimit)),
                ("inner bad checksum", byte(good(), inner_ip + 10, 0x5a), Ours),
                ("inner length beyond", byte(good(), inner_ip + 2, 0x7f), Ours),
                ("inner SCTP", wrap(packet(REMOTE, POD, 64, Other(132), &[0; 20])), Pass(Protocol)),
                ("inner ND", inner_v6(Icmpv6(136)), Pass(NeighborDiscovery)),
                ("inner extension header", inner_v6(Other(0)), Pass(ExtensionHeader)),
                ("inner fragment", inner_v6(Other(44)), Pass(Fragment)),
                ("inner IPv4 fragment", byte(good(), inner_ip + 6, 0x20), Ours),
                ("no such pod", inner_v4(REMOTE, "10.0.0.77"), Pass(NoSuchPod)),
                ("the node inside", inner_v4(REMOTE, "10.0.0.1"), Pass(NoSuchPod)),
                ("inner multicast", inner_v4(REMOTE, "239.0.0.1"), Pass(Multicast)),
                ("inner martian", inner_v4("127.0.0.1", POD), Pass(ForeignSource)),
                ("a tunnel in a tunnel", wrap(good()), Pass(NoSuchPod)),
            ];
            node.check(Port::Uplink, cases);
        }
        // The tunnel's own TTL is not forwarded.
        let outer = tunnel(OTHER_NODE, NODE, VNI, &packet(REMOTE, POD, 64, Tcp, b""));
        #[rustfmt::skip]
        let cases = vec![
            ("outer TTL 1", byte(outer.clone(), IP + 8, 1), Ours),
            ("outer options", byte(outer.clone(), IP, 0x46), Pass(Options)),
            ("to another node", tunnel(REMOTE, OTHER_NODE, VNI, &outer), Pass(NoSuchPod)),
        ];
        node.check(Port::Uplink, cases);
        node.check(Port::Pod, vec![("from a pod", outer, SPOOFED)]);
    });
}
