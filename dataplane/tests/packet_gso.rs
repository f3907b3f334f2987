//! The GSO socket against a veth pair: what the kernel takes, what arrives. Each test has a
//! network namespace of its own; they need root.
#![allow(missing_docs, reason = "tests are described by their names")]

mod support;

use podway_dataplane::egress::{SendError, VnetHeader};

use support::frames::{
    UDP4_HEADERS, ipv4_checksum_is_valid, pattern, tcp_super_frame, udp, udp_checksum_is_valid,
    udp_super_frame, unfinish,
};
use support::namespace::{ip, run};
use support::{Capture, Pair, Sender, in_namespace};

#[test]
fn a_tcp_super_frame_passes_a_veth_whole() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let capture = Capture::new(pair.near);
        let mut sender = Sender::new();
        for ipv6 in [false, true] {
            for ecn in [0, VnetHeader::GSO_ECN] {
                let (packet, mut vnet) = tcp_super_frame(ipv6, 60_000, 1400);
                vnet.gso_type |= ecn;
                assert_eq!(sender.send(pair.far, &packet, vnet), Ok(()));
                let arrived = capture.next().unwrap();
                assert_eq!(arrived.bytes, packet);
                assert_eq!(arrived.vnet.gso_size, 1400);
                assert_eq!(arrived.vnet.gso_type, vnet.gso_type);
                assert_eq!(arrived.vnet.flags, VnetHeader::NEEDS_CSUM);
            }
        }
    });
}

#[test]
fn a_tcp_super_frame_may_have_a_finished_checksum() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let capture = Capture::new(pair.near);
        let (packet, vnet) = tcp_super_frame(false, 2800, 1400);
        let vnet = VnetHeader {
            flags: 0,
            csum_start: 0,
            csum_offset: 0,
            ..vnet
        };
        assert_eq!(Sender::new().send(pair.far, &packet, vnet), Ok(()));
        let arrived = capture.next().unwrap();
        assert_eq!(
            (arrived.bytes.len(), arrived.vnet.gso_size),
            (packet.len(), 1400)
        );
    });
}

#[test]
fn a_udp_super_frame_arrives_as_datagrams_with_valid_checksums() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let capture = Capture::new(pair.near);
        let mut sender = Sender::new();
        // A wire: nothing longer than the MTU, and no unfinished checksum.
        run("ethtool", "-K far tx-udp-segmentation off tx off");
        let (packet, vnet) = udp_super_frame(false, 40, 1400);
        assert_eq!(sender.send(pair.far, &packet, vnet), Ok(()));
        let arrived = capture.rest();
        assert_eq!(arrived.len(), 40);
        let payload = &packet[UDP4_HEADERS..];
        for (number, frame) in arrived.iter().enumerate() {
            assert_eq!(
                frame.bytes[UDP4_HEADERS..],
                payload[number * 1400..][..1400]
            );
            assert_eq!(frame.vnet, VnetHeader::default());
            assert!(udp_checksum_is_valid(&frame.bytes));
            assert!(ipv4_checksum_is_valid(&frame.bytes));
            // IPv4 ids count up from the super-frame's.
            assert_eq!(
                frame.bytes[18..20],
                u16::try_from(number).unwrap().to_be_bytes()
            );
        }

        // The last datagram may be shorter.
        let short = packet.len() - 1000;
        let mut packet = packet[..short].to_vec();
        let length = u16::try_from(short - 34).unwrap();
        packet[38..40].copy_from_slice(&length.to_be_bytes());
        unfinish(&mut packet, false, 40, 17);
        assert_eq!(sender.send(pair.far, &packet, vnet), Ok(()));
        let arrived = capture.rest();
        assert_eq!(arrived.len(), 40);
        assert_eq!(arrived[39].bytes.len(), UDP4_HEADERS + 400);
        assert!(
            arrived
                .iter()
                .all(|frame| udp_checksum_is_valid(&frame.bytes))
        );
    });
}

#[test]
fn a_udp_super_frame_over_ipv6_arrives_as_datagrams_too() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let capture = Capture::new(pair.near);
        run("ethtool", "-K far tx-udp-segmentation off tx off");
        let (packet, vnet) = udp_super_frame(true, 40, 1380);
        assert_eq!(Sender::new().send(pair.far, &packet, vnet), Ok(()));
        let arrived = capture.rest();
        assert_eq!(arrived.len(), 40);
        for (frame, block) in arrived.iter().zip(packet[62..].chunks(1380)) {
            assert_eq!(frame.bytes[62..], *block);
            assert!(udp_checksum_is_valid(&frame.bytes));
        }
    });
}

#[test]
fn a_udp_super_frame_passes_a_veth_with_the_offload_whole() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let capture = Capture::new(pair.near);
        let (packet, vnet) = udp_super_frame(false, 40, 1400);
        assert_eq!(Sender::new().send(pair.far, &packet, vnet), Ok(()));
        let arrived = capture.next().unwrap();
        assert_eq!(arrived.bytes, packet);
        assert_eq!((arrived.vnet.gso_type, arrived.vnet.gso_size), (5, 1400));
    });
}

#[test]
fn a_udp_super_frame_has_at_most_128_segments_and_an_unfinished_checksum() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let mut sender = Sender::new();
        let invalid = Err(SendError::Refused(libc::EINVAL));
        let (packet, vnet) = udp_super_frame(false, 128, 500);
        assert_eq!(sender.send(pair.far, &packet, vnet), Ok(()));
        let (packet, vnet) = udp_super_frame(false, 129, 500);
        assert_eq!(sender.send(pair.far, &packet, vnet), invalid);

        let (packet, vnet) = udp_super_frame(false, 4, 500);
        let finished = VnetHeader { flags: 0, ..vnet };
        assert_eq!(sender.send(pair.far, &packet, finished), invalid);
        let elsewhere = VnetHeader {
            csum_offset: 4,
            ..vnet
        };
        assert_eq!(sender.send(pair.far, &packet, elsewhere), invalid);
        let beyond = VnetHeader {
            csum_start: 3000,
            ..vnet
        };
        assert_eq!(sender.send(pair.far, &packet, beyond), invalid);
        let headers = VnetHeader {
            hdr_len: 3000,
            ..vnet
        };
        assert_eq!(sender.send(pair.far, &packet, headers), invalid);
        let no_size = VnetHeader {
            gso_size: 0,
            ..vnet
        };
        assert_eq!(sender.send(pair.far, &packet, no_size), invalid);
        // Nothing looks at hdr_len else: 0 means that all is linear.
        let linear = VnetHeader { hdr_len: 0, ..vnet };
        assert_eq!(sender.send(pair.far, &packet, linear), Ok(()));
    });
}

#[test]
fn a_segment_longer_than_the_mtu_is_taken_and_lost() {
    // Nobody looks at the size of segments but the other end of the veth, which takes 4 bytes more
    // than the MTU, for a VLAN tag: egress must know it.
    in_namespace(|| {
        let pair = Pair::new(1);
        let capture = Capture::new(pair.near);
        run("ethtool", "-K far tx-udp-segmentation off tx off");
        let mut sender = Sender::new();
        for (block, arriving) in [(1476, 4), (1477, 0)] {
            let (packet, vnet) = udp_super_frame(false, 4, block);
            assert_eq!(sender.send(pair.far, &packet, vnet), Ok(()));
            assert_eq!(capture.rest().len(), arriving);
        }
    });
}

#[test]
fn a_frame_of_64_kib_is_cut_although_the_interface_could_take_it_whole() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let capture = Capture::new(pair.near);
        let mut sender = Sender::new();
        for (bytes, arriving) in [(65535, vec![65535]), (65536, vec![1454; 46])] {
            let (packet, vnet) = tcp_super_frame(false, bytes - 54, 1400);
            assert_eq!(
                (packet.len(), sender.send(pair.far, &packet, vnet)),
                (bytes, Ok(()))
            );
            let mut lengths: Vec<_> = capture
                .rest()
                .iter()
                .map(|frame| frame.bytes.len())
                .collect();
            if lengths.len() > 1 {
                assert_eq!(lengths.pop(), Some((bytes - 54) % 1400 + 54));
            }
            assert_eq!(lengths, arriving);
        }
    });
}

#[test]
fn the_checksum_of_a_lone_frame_is_finished_on_request() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let capture = Capture::new(pair.near);
        let mut sender = Sender::new();
        let finished = udp(9, b"lone frame");
        let mut packet = finished.clone();
        unfinish(&mut packet, false, 40, 17);
        let vnet = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            csum_start: 34,
            csum_offset: 6,
            ..VnetHeader::default()
        };
        assert_eq!(sender.send(pair.far, &packet, vnet), Ok(()));
        let arrived = capture.next().unwrap();
        assert_eq!(arrived.bytes, packet);
        assert_eq!(arrived.vnet.flags, VnetHeader::NEEDS_CSUM);

        run("ethtool", "-K far tx off");
        assert_eq!(sender.send(pair.far, &packet, vnet), Ok(()));
        let arrived = capture.next().unwrap();
        assert_eq!(arrived.bytes, finished);
        assert_eq!(arrived.vnet.flags, 0);
    });
}

#[test]
fn a_message_that_fails_does_not_hold_back_the_others() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let capture = Capture::new(pair.near);
        let mut sender = Sender::new();
        let plain = |payload: Vec<u8>| (udp(1, &payload), VnetHeader::default());
        let packets = [
            plain(pattern(1472)),
            plain(pattern(1473)), // 1501 bytes of IPv4
            plain(pattern(20)),
            (
                udp(1, b"gso"),
                VnetHeader {
                    gso_type: 77,
                    ..VnetHeader::default()
                },
            ),
            (
                udp(1, b"gso"),
                VnetHeader {
                    gso_type: 77,
                    ..VnetHeader::default()
                },
            ),
            plain(pattern(30)),
        ];
        let (results, calls) = sender.send_all(pair.far, &packets);
        let invalid = Err(SendError::Refused(libc::EINVAL));
        let too_long = Err(SendError::Refused(libc::EMSGSIZE));
        assert_eq!(
            results,
            [Ok(()), too_long, Ok(()), invalid, invalid, Ok(())]
        );
        // One up to each failure, one for each failure, one for the rest.
        assert_eq!(calls, 6);
        let arrived: Vec<_> = capture
            .rest()
            .into_iter()
            .map(|frame| frame.bytes)
            .collect();
        assert_eq!(
            arrived,
            [&packets[0], &packets[2], &packets[5]].map(|(bytes, _)| bytes.clone())
        );
    });
}

#[test]
fn an_interface_that_is_down_or_gone_is_told() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let mut sender = Sender::new();
        let (packet, vnet) = (udp(1, b"down"), VnetHeader::default());
        ip("link set far down");
        assert_eq!(
            sender.send(pair.far, &packet, vnet),
            Err(SendError::Refused(libc::ENETDOWN))
        );
        ip("link del far");
        for ifindex in [pair.far, 0, u32::MAX] {
            assert_eq!(
                sender.send(ifindex, &packet, vnet),
                Err(SendError::Refused(libc::ENXIO))
            );
        }
    });
}

#[test]
fn a_full_buffer_is_told_and_ends() {
    in_namespace(|| {
        let pair = Pair::new(1);
        let mut sender = Sender::new();
        // A queue that lets next to nothing out holds what the socket has sent.
        run(
            "tc",
            "qdisc add dev far root tbf rate 8kbit burst 1600 limit 100000000",
        );
        let (packet, vnet) = tcp_super_frame(false, 60_000, 1400);
        let burst: Vec<_> = (0..16).map(|_| (packet.clone(), vnet)).collect();
        let mut taken = 0;
        for _ in 0..32 {
            let (results, calls) = sender.send_all(pair.far, &burst);
            assert!(calls <= 2 * 16, "{calls}");
            taken += results.iter().filter(|result| result.is_ok()).count();
            if results.iter().all(|result| *result == Err(SendError::Full)) {
                assert_eq!(calls, 16);
                // At least a burst of 64 super-frames fits.
                assert!(taken >= 64, "{taken}");
                return;
            }
        }
        panic!("never full: {taken} taken");
    });
}
