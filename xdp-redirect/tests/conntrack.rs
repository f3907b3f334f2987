//! Connections that rules of the node translate (NAT), against the kernel's own conntrack. The
//! entries are made as the kernel makes them: by packets that go through rules of nftables. Each test
//! has a network namespace of its own. They need root.

mod support;

use std::io::Write as _;
use std::net::UdpSocket;
use std::process::{Command, Stdio};

use PassCause::*;
use Want::{Pass, Redirect as Ours};
use podway_xdp_redirect::PassCause;
use support::node::*;
use support::packets::*;
use support::{in_netns, ip};

/// An address that is nobody's, as that of a service.
const SERVICE: &str = "10.96.0.10";
const SERVICE_V6: &str = "fd00:96::10";

/// Hands a file of rules to nft(8).
fn nft(rules: &str) {
    let child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn();
    let mut child = child.expect("nftables");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(rules.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "{rules}");
}

/// Sends a datagram from one address and port to others, through the rules of the node.
fn send(from: &str, port: u16, to: &str, to_port: u16) {
    let from: std::net::IpAddr = from.parse().unwrap();
    let to: std::net::IpAddr = to.parse().unwrap();
    let socket = UdpSocket::bind((from, port)).unwrap();
    socket.send_to(b"x", (to, to_port)).unwrap();
}

/// Makes the node one that has a pod's addresses as well, since here it is its own pod: what it sends
/// goes out by the uplink, where nobody is.
fn is_its_own_pod() {
    for (address, length) in [(POD, 32), (POD_V6, 128)] {
        ip(&format!("address add {address}/{length} dev lo"));
    }
    ip("link set lo up");
    ip("route add default dev eth0");
    ip("-6 route add default dev eth0");
}

#[test]
fn what_conntrack_translates_is_left_to_the_kernel_both_ways() {
    in_netns(|| {
        let node = Node::new();
        is_its_own_pod();
        nft(&format!(
            "table ip nat {{\n\
             chain output {{ type nat hook output priority -100;\n\
             ip daddr {SERVICE} udp dport 53 dnat to {REMOTE}:5353\n}}\n}}\n\
             table ip6 nat {{\n\
             chain output {{ type nat hook output priority -100;\n\
             ip6 daddr {SERVICE_V6} udp dport 53 dnat to [{REMOTE_V6}]:5353\n}}\n}}\n"
        ));
        // The ports of `packet` are 40000 and what is told.
        send(POD, 40000, SERVICE, 53);
        send(POD_V6, 40000, SERVICE_V6, 53);
        send(POD, 40000, REMOTE, 7);
        send(POD_V6, 40000, REMOTE_V6, 7);

        let answer = |from: &str, to: &str, port: u16| {
            with(packet(from, to, 64, Udp(40000), b"x"), |frame| {
                let at = if from.contains(':') { L4_V6 } else { L4 };
                frame[at..at + 2].copy_from_slice(&port.to_be_bytes());
            })
        };
        let wrap = |inner: Vec<u8>| tunnel(OTHER_NODE, NODE, VNI, &inner);
        let rows = |translated| -> Vec<Case> {
            vec![
                (
                    "answer of a service",
                    wrap(answer(REMOTE, POD, 5353)),
                    translated,
                ),
                ("the same, natively", answer(REMOTE, POD, 5353), translated),
                ("IPv6", wrap(answer(REMOTE_V6, POD_V6, 5353)), translated),
                (
                    "IPv6, natively",
                    answer(REMOTE_V6, POD_V6, 5353),
                    translated,
                ),
                ("another port", wrap(answer(REMOTE, POD, 5354)), Ours),
                (
                    "known and not translated",
                    wrap(answer(REMOTE, POD, 7)),
                    Ours,
                ),
                ("the same of IPv6", wrap(answer(REMOTE_V6, POD_V6, 7)), Ours),
                (
                    "nobody's connection",
                    wrap(packet(REMOTE, POD, 64, Tcp, b"x")),
                    Ours,
                ),
                ("echo", wrap(packet(REMOTE, POD, 64, Echo, b"x")), Ours),
                (
                    "IPv6 echo",
                    wrap(packet(REMOTE_V6, POD_V6, 64, Echo, b"x")),
                    Ours,
                ),
            ]
        };
        node.check(Port::Uplink, rows(Ours));
        node.redirect.set_translates(true);
        node.check(Port::Uplink, rows(Pass(Translated)));

        // From the pod itself, which here may send as the service's backend.
        let sent = |to, port| packet(POD, to, 64, Udp(port), b"x");
        node.check(
            Port::Pod,
            vec![
                ("known and not translated", sent(REMOTE, 7), Ours),
                ("unknown", sent(REMOTE, 8), Ours),
                ("IPv6", packet(POD_V6, REMOTE_V6, 64, Udp(7), b"x"), Ours),
            ],
        );
        node.redirect.set_translates(false);
        node.check(Port::Uplink, rows(Ours));
    });
}

#[test]
fn where_connections_are_translated_fragments_and_icmp_errors_are_the_kernels() {
    in_netns(|| {
        let node = Node::new();
        let fragment = with(packet(POD, REMOTE, 64, Udp(9), &[0; 64]), |f| {
            f[IP + 6] = 0x20
        });
        let error = |kind| {
            with(packet(POD, REMOTE, 64, Echo, b"x"), |frame| {
                frame[L4] = kind
            })
        };
        let of_v6 = |kind| packet(POD_V6, REMOTE_V6, 64, Icmpv6(kind), &[0; 8]);
        let cut = |length| packet(POD, REMOTE, 64, Tcp, b"")[..length].to_vec();
        let rows = |fragments, errors| -> Vec<Case> {
            vec![
                ("a fragment", fragment.clone(), fragments),
                ("unreachable", error(3), errors),
                ("time exceeded", error(11), errors),
                ("echo", error(8), Ours),
                ("echo reply", error(0), Ours),
                ("IPv6 packet too big", of_v6(2), errors),
                ("IPv6 echo", of_v6(128), Ours),
                ("IPv6 echo reply", of_v6(129), Ours),
                ("TCP without ports", cut(L4 + 3), Ours),
                ("TCP with ports alone", cut(L4 + 4), Ours),
            ]
        };
        node.check(Port::Pod, rows(Ours, Ours));
        node.redirect.set_translates(true);
        node.check(Port::Pod, rows(Pass(Fragment), Pass(Translated)));
    });
}
