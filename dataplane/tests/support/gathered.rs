//! Our way out alone, without the decision before it: gathering and the GSO socket.

use std::sync::Arc;

use podway_dataplane::counters::Sheet;
use podway_dataplane::egress::{Egress, PacketGso, VnetHeader};
use podway_dataplane::fib::{Fib, L2Rewrite, NextHop, NextHopKind, PortFacts, PortId, Tables};
use podway_dataplane::packet::{Offload, Packet};
use podway_dataplane::tunnel::OuterHeader;
use podway_dataplane::verdict::Send;
use podway_dataplane::watch::Watches;
use podway_dataplane::wire::flow_hash::{self, SourcePorts};
use podway_dataplane::wire::parse;
use podway_dataplane::xsk::{Frame, Region};
use podway_proto::types::{MacAddr, PortRole};

const PORT: PortId = PortId(3);
const HEADROOM: usize = 256;

/// Sends packets to one next hop as a worker does.
pub(crate) struct Gathered {
    egress: Egress,
    watches: Watches,
    region: Arc<Region>,
    frames: Vec<Frame>,
    sheet: Sheet,
    tables: Tables,
    next_hop: NextHop,
}

impl Gathered {
    /// A way to a pod behind the interface `ifindex`.
    pub(crate) fn to_pod(ifindex: u32) -> Self {
        Self::to(ifindex, NextHopKind::Pod)
    }

    /// A way into a tunnel of VNI 42 by the interface `ifindex`, without a TAP: super-frames are
    /// cut here.
    pub(crate) fn to_tunnel(ifindex: u32, v6_underlay: bool) -> Self {
        let (here, there) = if v6_underlay {
            ("2001:db8::1", "2001:db8::2")
        } else {
            ("192.0.2.1", "192.0.2.2")
        };
        let outer = OuterHeader::new(
            (MacAddr([2, 0, 0, 0, 1, 1]), here.parse().unwrap()),
            (MacAddr([2, 0, 0, 0, 1, 2]), there.parse().unwrap()),
            4789,
            42.try_into().unwrap(),
        );
        Self::to(ifindex, NextHopKind::Tunnel(Box::new(outer.unwrap())))
    }

    fn to(ifindex: u32, kind: NextHopKind) -> Self {
        let (region, frames) = Region::new(1024).unwrap();
        let mut fib = Fib::new();
        fib.attach_port(PortFacts {
            id: PORT,
            interface: "port".into(),
            ifindex,
            mtu: 1500,
            mac: MacAddr([2, 0, 0, 0, 0, 9]),
            carries_runs: false,
            role: PortRole::Uplink {
                accept_partial_checksums: false,
            },
        })
        .unwrap();
        Self {
            egress: Egress::new(PacketGso::new().unwrap(), None, SourcePorts::ALL),
            watches: Watches::default(),
            region,
            frames,
            sheet: Sheet::default(),
            tables: fib.build().tables,
            next_hop: NextHop {
                port: PORT,
                l2: L2Rewrite([0; 12]),
                mtu: 1500,
                kind,
            },
        }
    }

    /// Sends `packets` in one burst, each in frames of at most `chunk` bytes; none of them longer
    /// than `max_l3_len`, unless it is a super-frame. All must leave.
    pub(crate) fn send(
        &mut self,
        packets: &[(Vec<u8>, VnetHeader)],
        max_l3_len: u16,
        chunk: usize,
    ) {
        let Self {
            egress,
            watches,
            region,
            frames,
            sheet,
            tables,
            next_hop,
        } = self;
        let sent = sheet.port(PORT).unwrap();
        let before = sent.tx_packets.get();
        let mut free = &mut frames[..];
        for (bytes, vnet) in packets {
            let (chain, rest) = free.split_at_mut(bytes.len().div_ceil(chunk));
            free = rest;
            for (frame, part) in chain.iter_mut().zip(bytes.chunks(chunk)) {
                assert!(frame.set_data(HEADROOM, part.len()));
                region.bytes_mut(frame).copy_from_slice(part);
            }
            let partial = vnet.flags == VnetHeader::NEEDS_CSUM;
            let offload = Offload {
                segment: vnet.gso_size,
                unfinished: partial.then_some(vnet.csum_start),
                checksum: vnet.csum_offset,
            };
            let packet = Packet::new(region, chain).unwrap();
            let mut packet = packet.with_offload(Some(offload));
            let headers = parse::parse(packet.head(), 14, packet.len()).unwrap();
            packet.truncate(headers.end());
            let send = Send {
                next_hop,
                headers,
                flow_hash: flow_hash::hash(&headers),
                partial_checksum: partial,
                max_l3_len,
            };
            egress
                .push(&mut packet, &send, tables, region, sheet, watches)
                .unwrap();
        }
        egress.flush(region, sheet, watches);
        assert_eq!(sent.tx_packets.get() - before, packets.len() as u64);
    }
}
