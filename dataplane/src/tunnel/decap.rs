//! Decap: from the outer packet to the one inside.

use crate::fib::{LocalTable, Tables};
use crate::packet::Packet;
use crate::verdict::DropReason;
use crate::wire::parse::{Headers, parse_to, parse_vxlan};
use crate::wire::{EthernetFrame, UdpDatagram, ethernet, protocol};

/// Explicit congestion notification, the lower two bits of TOS and traffic class (RFC 3168).
const ECN: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// What the outer headers that were pulled leave to what was inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Decapped {
    /// How many bytes fewer an inner L3 packet may have than an outer one: 50, 70 over IPv6, or 0 for a
    /// packet that was in no tunnel.
    pub overhead: u16,
    /// What the tunnel's way has told.
    pub congestion: Congestion,
}

/// The congestion mark of an outer header; that of none tells nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Congestion(u8);

/// If `packet` is VXLAN for this node, pulls the outer headers, so that it starts at the inner
/// Ethernet header. One that is no VXLAN stays as it is.
///
/// The outer UDP checksum is not verified: RFC 7348 leaves that open, a virtual wire carries it
/// unfinished, and the inner packet has its own.
///
/// # Errors
/// The reason to drop it: a malformed outer header, a foreign VNI or MAC, a source that is no node
/// that we know (if that matters).
#[inline]
pub fn decap(packet: &mut Packet<'_>, tables: &Tables) -> Result<Decapped, DropReason> {
    let head = packet.head();
    let mut outer = Headers::UNREAD;
    parse_to(&mut outer, head, ethernet::HEADER_LEN, packet.len())?;
    let Some(local) = tables
        .local()
        .filter(|local| is_vxlan_for_us(&outer, local))
    else {
        return Ok(Decapped::default());
    };
    let end = end_of_datagram(head, &outer);
    let (vni, inner_l3) = parse_vxlan(head, usize::from(outer.payload), end)?;
    if !local.has_vni(vni) {
        return Err(DropReason::UnknownVni);
    }
    if !tables.is_vtep(outer.src) && !local.allow_unknown_vteps {
        return Err(DropReason::UnknownVtep);
    }
    let overhead = inner_l3 - usize::from(outer.l3);
    packet.truncate(end);
    if !packet.pull_front(inner_l3 - ethernet::HEADER_LEN) {
        return Err(DropReason::TruncatedVxlan);
    }
    if EthernetFrame::new_unchecked(packet.head()).dst_addr() != local.vtep_mac {
        return Err(DropReason::NotLocal);
    }
    Ok(Decapped {
        overhead: u16::try_from(overhead).unwrap_or(u16::MAX),
        congestion: Congestion(outer.tos & ECN),
    })
}

/// Whether these are the headers of a tunnel that ends here. A pod's own has the pod's address.
#[inline]
pub(crate) fn is_vxlan_for_us(outer: &Headers, local: &LocalTable) -> bool {
    outer.protocol == protocol::UDP
        && !outer.fragment
        && outer.dport == local.vxlan_port
        && local.is_local(outer.dst)
}

/// Where the datagram ends by its own length, which the parser has checked. What may lie behind it
/// in the packet (RFC 9868) is not inside of the tunnel; Linux cuts it off too (`__udp4_lib_rcv`).
#[inline]
fn end_of_datagram(head: &[u8], outer: &Headers) -> usize {
    let udp = head.get(outer.l4.into()..).map(UdpDatagram::new_checked);
    match udp {
        Some(Ok(udp)) => usize::from(outer.l4) + usize::from(udp.len()),
        _ => outer.end(),
    }
}

impl Congestion {
    /// What DSCP and ECN `inner` become (RFC 6040, section 4.2, figure 4). Only CE and ECT(1) are news.
    ///
    /// # Errors
    /// A mark that the inner packet cannot carry.
    #[inline]
    pub fn combined(self, inner: u8) -> Result<u8, DropReason> {
        match (inner & ECN, self.0) {
            (_, NOT_ECT | ECT_0) => Ok(inner),
            (NOT_ECT, CE) => Err(DropReason::EcnNotCapable),
            (NOT_ECT | CE, _) => Ok(inner),
            (_, outer) => Ok(inner & !ECN | outer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::harness::combined;
    use crate::testing::node::Node;
    use crate::testing::packets::{
        Spec, fix_ip, fragment, get16, icmp, payload, put16, tos, vxlan,
    };
    use crate::testing::plan::{
        GATEWAY, LOST, Mtus, NATIVE, VNI, VXLAN_V4, VXLAN_V6, facts, pod, tables, tunnelled,
        underlay,
    };

    const ME: u8 = 1;

    fn decapped(frame: &[u8]) -> Result<(Decapped, Vec<u8>), DropReason> {
        Node::new(tables(ME, Mtus::default())).decap(frame)
    }

    /// What is left without so many bytes of outer headers, which tell nothing.
    fn without(overhead: u16, left: Vec<u8>) -> Result<(Decapped, Vec<u8>), DropReason> {
        let congestion = Congestion::default();
        Ok((
            Decapped {
                overhead,
                congestion,
            },
            left,
        ))
    }

    /// A segment to this node's pod, with the MACs of the VTEPs.
    fn inner(v6: bool, tos: u8) -> Vec<u8> {
        let spec = Spec {
            v6,
            tos,
            flow_label: 0,
            ..Spec::tcp(1, 2, &payload(100))
        };
        let frame = spec.between(pod(v6, VXLAN_V4, 1), pod(v6, ME, 1)).build();
        [&[2, 0, 0, 0, 2, ME, 2, 0, 0, 0, 2, VXLAN_V4], &frame[12..]].concat()
    }

    fn outer(node: u8) -> Spec {
        let v6 = node == VXLAN_V6;
        let spec = Spec {
            dport: 4789,
            flow_label: 0,
            ..Spec::udp(b"")
        };
        spec.between(underlay(v6, node), underlay(v6, ME))
    }

    #[test]
    fn what_is_inside_comes_out_byte_for_byte() {
        for v6 in [false, true] {
            let inner = inner(v6, 0xb8);
            let v4_tunnel = vxlan(&outer(VXLAN_V4), VNI, &inner);
            assert_eq!(decapped(&v4_tunnel), without(50, inner.clone()));
            let v6_tunnel = vxlan(&outer(VXLAN_V6), VNI, &inner);
            assert_eq!(decapped(&v6_tunnel), without(70, inner));
        }
    }

    #[test]
    fn padding_behind_the_outer_packet_is_not_inside() {
        let inner = inner(false, 0);
        let frame = [vxlan(&outer(VXLAN_V4), VNI, &inner), vec![0xee; 30]].concat();
        assert_eq!(decapped(&frame), without(50, inner));
    }

    /// Once the IP packet's end was taken for the datagram's: what lay behind it was forwarded to
    /// the pod, if the inner packet said that it was so long.
    #[test]
    fn what_lies_behind_the_datagram_is_not_inside() {
        for node in [VXLAN_V4, VXLAN_V6] {
            let inner = inner(false, 0);
            let mut frame = vxlan(&outer(node), VNI, &inner);
            let udp_len = if node == VXLAN_V6 { 58 } else { 38 };
            let len = get16(&frame, udp_len);
            // The UDP length stays as it is.
            frame.extend([0xee; 30]);
            fix_ip(&mut frame);
            assert_eq!(decapped(&frame).unwrap().1, inner);
            put16(&mut frame, udp_len, len - 1);
            assert_eq!(decapped(&frame).unwrap().1, inner[..inner.len() - 1]);
            // A VXLAN header and half an Ethernet header.
            put16(&mut frame, udp_len, 8 + 8 + 7);
            assert_eq!(decapped(&frame), Err(DropReason::TruncatedVxlan));
        }
    }

    /// RFC 7348, section 5: reserved fields are ignored on receipt; so are the other flags.
    #[test]
    fn reserved_bits_are_ignored() {
        let inner = inner(false, 0);
        let mut frame = vxlan(&outer(VXLAN_V4), VNI, &inner);
        frame[42..46].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
        frame[49] = 0xff;
        assert_eq!(decapped(&frame), without(50, inner));
    }

    /// RFC 7348, section 4.1: zero must be accepted; other values need not be verified, and one
    /// that is unfinished cannot be.
    #[test]
    fn the_outer_checksum_is_not_looked_at() {
        for node in [VXLAN_V4, VXLAN_V6] {
            let inner = inner(true, 0);
            let mut frame = vxlan(&outer(node), VNI, &inner);
            let at = if node == VXLAN_V6 { 60 } else { 40 };
            for checksum in [0, 1, 0xffff] {
                put16(&mut frame, at, checksum);
                assert_eq!(decapped(&frame).unwrap().1, inner);
            }
        }
    }

    #[test]
    fn any_source_port_and_any_known_node_will_do() {
        for node in [VXLAN_V4, NATIVE, LOST] {
            for sport in [0, 53, 4789, 49_152, 65_535] {
                let frame = vxlan(
                    &Spec {
                        sport,
                        ..outer(node)
                    },
                    VNI,
                    &inner(false, 0),
                );
                assert_eq!(decapped(&frame).unwrap().0.overhead, 50);
            }
        }
        let inner = inner(false, 0);
        let stranger = vxlan(&outer(GATEWAY), VNI, &inner);
        assert_eq!(decapped(&stranger), Err(DropReason::UnknownVtep));
        let mut facts = facts(ME, Mtus::default());
        facts.local.as_mut().unwrap().allow_unknown_vteps = true;
        let allowed = Node::new(facts.tables()).decap(&stranger);
        assert_eq!(allowed, without(50, inner));
    }

    #[test]
    fn each_vni_that_is_configured_will_do_and_no_other() {
        let mut facts = facts(ME, Mtus::default());
        let local = facts.local.as_mut().unwrap();
        local.also_vnis = [77, 0, 0xff_ffff]
            .map(|vni| vni.try_into().unwrap())
            .to_vec();
        let mut node = Node::new(facts.tables());
        let inner = inner(false, 0);
        for vni in [VNI, 0, 77, 0xff_ffff] {
            let frame = vxlan(&outer(VXLAN_V4), vni, &inner);
            assert_eq!(node.decap(&frame), without(50, inner.clone()), "{vni}");
        }
        for vni in [1, 76, 78, 0xff_fffe] {
            let frame = vxlan(&outer(VXLAN_V4), vni, &inner);
            assert_eq!(node.decap(&frame), Err(DropReason::UnknownVni), "{vni}");
        }
    }

    #[test]
    fn what_is_no_tunnel_of_ours_stays_as_it_is() {
        let tunnel = vxlan(&outer(VXLAN_V4), VNI, &inner(false, 0));
        let elsewhere = outer(VXLAN_V4).between(underlay(false, 2), underlay(false, 3));
        let cases = [
            ("plain", inner(false, 3)),
            (
                "ICMP",
                icmp(underlay(false, 2), underlay(false, ME), b"echo"),
            ),
            ("TCP to the port", {
                let tcp = Spec {
                    dport: 4789,
                    ..Spec::tcp(1, 1, &payload(99))
                };
                tcp.between(underlay(false, 2), underlay(false, ME)).build()
            }),
            (
                "other port",
                vxlan(
                    &Spec {
                        dport: 8472,
                        ..outer(2)
                    },
                    VNI,
                    &inner(false, 0),
                ),
            ),
            ("other node's", vxlan(&elsewhere, VNI, &inner(false, 0))),
            ("first fragment", fragment(tunnel.clone(), 0, true)),
            ("later fragment", fragment(tunnel.clone(), 8, false)),
            ("padded", [inner(true, 0), vec![0; 9]].concat()),
        ];
        for (name, frame) in cases {
            assert_eq!(decapped(&frame), without(0, frame), "{name}");
        }
        // Before control has told who this node is.
        let mut stranger = Node::new(Tables::default());
        assert_eq!(stranger.decap(&tunnel), without(0, tunnel));
    }

    #[test]
    fn each_combination_of_congestion_marks_is_as_figure_4_of_rfc_6040_says() {
        for (inner_ecn, outer_ecn) in (0..16).map(|both| (both / 4, both % 4)) {
            for (node, v6) in [(2, false), (2, true), (3, false), (3, true)] {
                // DSCP is the inner's own, whatever the outer has become (RFC 2983, 3.1).
                let spec = Spec {
                    tos: 0x28 | outer_ecn,
                    ..outer(node)
                };
                let inner = inner(v6, 0xb8 | inner_ecn);
                let (outer, left) = decapped(&vxlan(&spec, VNI, &inner)).unwrap();
                assert_eq!(left, inner);
                let expected = combined(inner_ecn, outer_ecn).map(|ecn| 0xb8 | ecn);
                assert_eq!(
                    outer.congestion.combined(tos(&left)),
                    expected.ok_or(DropReason::EcnNotCapable),
                    "inner {inner_ecn:02b}, outer {outer_ecn:02b}"
                );
            }
        }
        for tos in 0..=255 {
            assert_eq!(Congestion::default().combined(tos), Ok(tos));
        }
    }

    /// The parser names what is wrong with it.
    #[test]
    fn an_inner_packet_without_a_header_comes_out_as_any_other() {
        for rest in [&b""[..], &[0x45; 19], &[0x44; 40], &[0x4f; 59]] {
            let mut inside = inner(false, 0)[..14].to_vec();
            inside.extend(rest);
            let frame = vxlan(&outer(VXLAN_V4), VNI, &inside);
            assert_eq!(decapped(&frame), without(50, inside));
        }
        let mut arp = inner(false, 0);
        arp[12..14].copy_from_slice(&[8, 6]);
        let frame = tunnelled(VXLAN_V4, 0, &arp);
        assert_eq!(decapped(&frame), without(50, arp));
    }
}
