//! Properties of the parser, with etherparse as the oracle.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::{L4, frame, parse_all, with};
use super::*;
use crate::wire::checksum::Sum;

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let versions = prop_oneof![Just(IpVersion::V4), Just(IpVersion::V6)];
    let l4s = prop_oneof![
        Just(L4::Tcp),
        Just(L4::TcpWithOptions),
        Just(L4::Udp),
        Just(L4::Icmp)
    ];
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    (versions, l4s, payload).prop_map(|(version, l4, payload)| frame(version, l4, &payload))
}

/// Compares what was parsed with what etherparse makes of the same bytes.
fn agree(bytes: &[u8], headers: &Headers) -> Result<(), TestCaseError> {
    let l4 = usize::from(headers.l4);
    // etherparse wants an ICMPv4 timestamp message to have its exact size.
    if headers.protocol == 1 && !headers.fragment && matches!(bytes[l4], 13 | 14) {
        return Ok(());
    }
    let oracle = SlicedPacket::from_ethernet(bytes).unwrap();
    let at = |slice: &[u8]| slice.as_ptr() as usize - bytes.as_ptr() as usize;
    let payload = match oracle.net {
        Some(NetSlice::Ipv4(packet)) => {
            let ip = packet.header();
            prop_assert_eq!(headers.version, IpVersion::V4);
            prop_assert_eq!(headers.src, IpAddr::V4(ip.source_addr()));
            prop_assert_eq!(headers.dst, IpAddr::V4(ip.destination_addr()));
            prop_assert_eq!(headers.tos, ip.dcp().value() << 2 | ip.ecn().value());
            prop_assert_eq!(headers.hop_limit, ip.ttl());
            prop_assert_eq!(headers.l3_len, u32::from(ip.total_len()));
            prop_assert_eq!(headers.fragment, ip.is_fragmenting_payload());
            prop_assert_eq!(headers.l3, 14);
            prop_assert_eq!(Sum::of(ip.slice()).finish(), 0);
            packet.payload().clone()
        }
        Some(NetSlice::Ipv6(packet)) => {
            let ip = packet.header();
            prop_assert_eq!(headers.version, IpVersion::V6);
            prop_assert_eq!(headers.src, IpAddr::V6(ip.source_addr()));
            prop_assert_eq!(headers.dst, IpAddr::V6(ip.destination_addr()));
            prop_assert_eq!(headers.tos, ip.traffic_class());
            prop_assert_eq!(headers.hop_limit, ip.hop_limit());
            prop_assert_eq!(headers.l3_len, 40 + u32::from(ip.payload_length()));
            prop_assert!(!headers.fragment);
            packet.payload().clone()
        }
        other => panic!("{other:?}"),
    };
    prop_assert_eq!(headers.protocol, payload.ip_number.0);
    prop_assert_eq!(l4, at(payload.payload));
    prop_assert_eq!(headers.l4_len() as usize, payload.payload.len());
    let ports = (headers.sport, headers.dport);
    let l4_payload = usize::from(headers.payload);
    match oracle.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            prop_assert_eq!(ports, (tcp.source_port(), tcp.destination_port()));
            prop_assert_eq!(l4_payload, at(tcp.payload()));
            prop_assert_eq!(headers.payload_len() as usize, tcp.payload().len());
        }
        Some(TransportSlice::Udp(udp)) => {
            prop_assert_eq!(ports, (udp.source_port(), udp.destination_port()));
            prop_assert_eq!(l4_payload, at(udp.payload()));
            prop_assert!(headers.payload_len() as usize >= udp.payload().len());
        }
        Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_)) | None => {
            prop_assert_eq!(oracle.transport.is_none(), headers.fragment);
            prop_assert_eq!((ports, l4_payload), ((0, 0), l4));
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn good_packets_parse_as_etherparse_says(bytes in any_frame()) {
        agree(&bytes, &parse_all(&bytes).unwrap())?;
    }

    #[test]
    fn what_passes_of_changed_packets_is_as_etherparse_says(
        bytes in any_frame(),
        changes in prop::collection::vec((0_usize..70, any::<u8>()), 0..4),
        len: Index,
        cut in prop::bool::weighted(0.3),
    ) {
        let changes: Vec<_> =
            changes.into_iter().filter(|(at, _)| *at < bytes.len()).collect();
        let mut bytes = with(bytes, &changes);
        if cut {
            bytes.truncate(len.index(bytes.len() + 1));
        }
        if let Ok(headers) = parse_all(&bytes) {
            agree(&bytes, &headers)?;
        }
    }

    #[test]
    fn noise_never_panics(
        mut bytes in prop::collection::vec(any::<u8>(), 0..120), l3 in 0_usize..140,
        packet_len in 0_usize..70000, kind in 0..3,
    ) {
        // Two of three get as far as the IP header.
        if let Some(start) = bytes.get_mut(l3.saturating_sub(2)..).filter(|rest| rest.len() > 3) {
            match kind {
                0 => start[..3].copy_from_slice(&[0x08, 0x00, 0x45]),
                1 => start[..3].copy_from_slice(&[0x86, 0xdd, 0x60]),
                _ => {}
            }
        }
        if let Ok(headers) = parse(&bytes, l3, packet_len) {
            prop_assert!(usize::from(headers.payload) <= headers.end());
            prop_assert!(headers.end() <= packet_len);
            prop_assert!(usize::from(headers.payload) <= bytes.len());
        }
        let _ = parse_vxlan(&bytes, l3, packet_len);
    }
}
