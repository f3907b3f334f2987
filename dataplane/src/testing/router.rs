//! A router as slow and plain as the RFCs: what [`crate::forward`] must decide, and the bytes that
//! must leave.
//!
//! It shares no code with the packet path. Headers are judged by checks of its own, in the order in
//! which a packet has them; where a sound header's fields and payload are, etherparse says; the
//! longest prefix is prefix-trie's; checksums are computed anew, never updated.

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    EtherType, Ethernet2Header, IpDscp, IpEcn, IpNumber, Ipv4Header, Ipv6Header, LaxNetSlice,
    LaxSlicedPacket, TransportSlice, UdpHeader,
};
use ipnet::IpNet;
use podway_proto::types::{LocalNode, MacAddr, Mode, PortRole, Via, Vni};
use prefix_trie::joint::map::JointPrefixMap;

use super::harness::combined;
use super::packets::{Offsets, get16, narrow, put16, tos};
use super::plan::Facts;
use crate::fib::{MIN_MTU, PortFacts, PortId};
use crate::packet::Offload;
use crate::verdict::DropReason;

mod answer;

const ETHERNET: usize = Ethernet2Header::LEN;
const VXLAN: usize = 8;
const TCP: u8 = IpNumber::TCP.0;
const UDP: u8 = IpNumber::UDP.0;

/// A packet as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) port: PortId,
    pub(crate) frame: Vec<u8>,
    /// Bytes of it in each chunk; all headers must be in the first one.
    pub(crate) chunk: usize,
    /// What the kernel told of offloads.
    pub(crate) offload: Option<Offload>,
}

/// A packet as it leaves, before whatever depends on how it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Departure {
    pub(crate) bytes: Vec<u8>,
    pub(crate) port: PortId,
    pub(crate) target: Target,
    /// The largest L3 packet in bytes that may leave.
    pub(crate) max_l3_len: u16,
    pub(crate) partial_checksum: bool,
}

/// What is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Pod,
    Native,
    /// The outer headers, VXLAN's included, zero where each packet has its own.
    Tunnel(Vec<u8>),
}

/// Who gets the packets of a prefix.
#[derive(Debug)]
enum Way {
    /// The pod behind this interface.
    Pod(String),
    Route(Via),
}

/// A way with all that is known of it.
struct Hop {
    port: PortId,
    /// Destination and source.
    macs: [MacAddr; 2],
    mtu: u16,
    target: Target,
}

/// A node, by its facts.
#[derive(Debug)]
pub(crate) struct Router {
    facts: Facts,
    ways: JointPrefixMap<IpNet, Way>,
}

impl Router {
    pub(crate) fn new(facts: Facts) -> Self {
        let mut ways = JointPrefixMap::new();
        for route in &facts.routes {
            ways.insert(route.prefix, Way::Route(route.via.clone()));
        }
        // A pod that is here comes before any route to its address.
        for port in &facts.ports {
            if let PortRole::Pod { addresses, .. } = &port.role {
                for address in addresses {
                    ways.insert((*address).into(), Way::Pod(port.interface.clone()));
                }
            }
        }
        Self { facts, ways }
    }

    /// What becomes of a packet.
    pub(crate) fn route(&self, arrival: &Arrival) -> Result<Departure, DropReason> {
        let ingress = self.ingress(arrival).ok_or(DropReason::PortGone)?;
        let (uplink, accept_partial) = match ingress.role {
            PortRole::Pod { .. } => (false, true),
            PortRole::Uplink {
                accept_partial_checksums,
            } => (true, accept_partial_checksums),
        };
        let mut packet = Packet::of(arrival);
        let (mut mtu, mut congestion) = (ingress.mtu, None);
        if uplink && let Some(outer) = self.decap(&mut packet)? {
            mtu -= outer.overhead;
            congestion = Some(outer.ecn);
        }
        let fields = read(&packet)?;
        // RFC 6040, section 4.2.
        let mark = match congestion {
            Some(outer) => combined(fields.ecn, outer).ok_or(DropReason::EcnNotCapable)?,
            None => fields.ecn,
        };
        packet.truncate(fields.end);
        // RFC 1812, section 5.3.1; RFC 8200, section 3.
        if fields.hop_limit <= 1 {
            return Err(DropReason::TtlExpired);
        }
        let partial_checksum = packet.settle_checksum(&fields, accept_partial)?;
        let hop = self.next_hop(fields.destination)?;
        // A packet from another node ends here.
        if uplink && hop.target != Target::Pod {
            return Err(DropReason::NotLocal);
        }
        let max_l3_len = mtu.min(hop.mtu);
        packet.check_size(&fields, max_l3_len, partial_checksum)?;
        packet.rewrite(&fields, hop.macs, mark);
        Ok(Departure {
            bytes: packet.bytes,
            port: hop.port,
            target: hop.target,
            max_l3_len,
            partial_checksum,
        })
    }

    fn ingress(&self, arrival: &Arrival) -> Option<&PortFacts> {
        let mut ports = self.facts.ports.iter();
        ports.find(|port| port.id == arrival.port)
    }

    /// Pulls the outer headers of a tunnel that ends here (RFC 7348, sections 4 and 5).
    fn decap(&self, packet: &mut Packet) -> Result<Option<Outer>, DropReason> {
        let outer = read(packet)?;
        let (Some(local), Some((port, len))) = (&self.facts.local, outer.udp) else {
            return Ok(None);
        };
        if port != local.vxlan_port || !local.addresses.contains(&outer.destination) {
            return Ok(None);
        }
        // The datagram is as long as it says, whatever lies behind it (RFC 768, RFC 9868).
        let end = outer.l4 + len;
        let inner = outer.payload + VXLAN;
        if end.min(packet.head) < inner + ETHERNET {
            return Err(DropReason::TruncatedVxlan);
        }
        let header = &packet.bytes[outer.payload..inner];
        if header[0] & 0x08 == 0 {
            return Err(DropReason::VxlanFlagClear);
        }
        let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
        if !vnis(local).contains(&vni) {
            return Err(DropReason::UnknownVni);
        }
        let mut nodes = self.facts.nodes.iter();
        let known = nodes.any(|node| node.underlay == outer.source);
        if !known && !local.allow_unknown_vteps {
            return Err(DropReason::UnknownVtep);
        }
        packet.truncate(end);
        packet.pull(inner);
        if packet.bytes[..6] != local.vtep_mac.0 {
            return Err(DropReason::NotLocal);
        }
        Ok(Some(Outer {
            overhead: narrow(inner),
            ecn: outer.ecn,
        }))
    }

    fn next_hop(&self, destination: IpAddr) -> Result<Hop, DropReason> {
        let found = self.ways.get_lpm(&IpNet::from(destination));
        let (_, way) = found.ok_or(DropReason::NoRoute)?;
        let hop = match way {
            Way::Pod(interface) => self.to_pod(interface),
            Way::Route(Via::Node { node, vni }) => self.to_node(node, *vni),
            Way::Route(Via::Gateway { address, interface }) => {
                self.to_neighbor(interface, *address)
            }
            // Which member a flow has is a matter of hashes, which are tested where they are made.
            Way::Route(Via::Multipath { .. }) => panic!("no world has several next hops"),
        };
        let of_use = hop.filter(|hop| hop.mtu >= MIN_MTU);
        of_use.ok_or(DropReason::NoNeighbor)
    }

    fn to_pod(&self, interface: &str) -> Option<Hop> {
        let port = self.port(interface)?;
        let PortRole::Pod { mac, .. } = port.role else {
            return None;
        };
        Some(Hop {
            port: port.id,
            macs: [mac, port.mac],
            mtu: port.mtu,
            target: Target::Pod,
        })
    }

    fn to_neighbor(&self, interface: &str, address: IpAddr) -> Option<Hop> {
        let port = self.port(interface)?;
        if !matches!(port.role, PortRole::Uplink { .. }) {
            return None;
        }
        let mut neighbors = self.facts.neighbors.iter();
        let neighbor = neighbors.find(|n| n.interface == interface && n.address == address)?;
        Some(Hop {
            port: port.id,
            macs: [neighbor.mac, port.mac],
            mtu: port.mtu,
            target: Target::Native,
        })
    }

    fn to_node(&self, name: &str, vni: Option<Vni>) -> Option<Hop> {
        let node = self.facts.nodes.iter().find(|node| node.name == name)?;
        let path = node.path.as_ref()?;
        let native = self.to_neighbor(&path.interface, path.next_hop)?;
        let native = Hop {
            mtu: native.mtu.min(path.mtu),
            ..native
        };
        if node.mode == Mode::Native {
            return Some(native);
        }
        let local = self.facts.local.as_ref()?;
        let vni = vni.unwrap_or(local.vni);
        if !vnis(local).contains(&vni.get()) {
            return None;
        }
        let outer = outer(native.macs, [path.source, node.underlay], local, vni);
        Some(Hop {
            macs: [node.vtep_mac, local.vtep_mac],
            // Less the outer headers but Ethernet's, and the inner Ethernet header.
            mtu: native.mtu.checked_sub(narrow(outer.len()))?,
            target: Target::Tunnel(outer),
            ..native
        })
    }

    fn port(&self, interface: &str) -> Option<&PortFacts> {
        let mut ports = self.facts.ports.iter();
        ports.find(|port| port.interface == interface)
    }
}

/// The frame that a departure is on the wire, which must not need to be cut. `source_port` is that
/// of the outer header, if there is one.
pub(crate) fn on_the_wire(departure: &Departure, source_port: u16) -> Vec<u8> {
    let mut frame = departure.bytes.clone();
    if departure.partial_checksum {
        finish(&mut frame);
    }
    match &departure.target {
        Target::Tunnel(outer) => encap(outer, &frame, source_port),
        Target::Pod | Target::Native => frame,
    }
}

/// The identifiers that tunnels may have.
fn vnis(local: &LocalNode) -> Vec<u32> {
    let also = local.also_vnis.iter();
    also.chain([&local.vni]).map(|vni| vni.get()).collect()
}

/// The outer headers of a tunnel, with zeros where [`encap`] writes.
fn outer(macs: [MacAddr; 2], ends: [IpAddr; 2], local: &LocalNode, vni: Vni) -> Vec<u8> {
    let ether_type = match ends[0] {
        IpAddr::V4(_) => EtherType::IPV4,
        IpAddr::V6(_) => EtherType::IPV6,
    };
    let ethernet = Ethernet2Header {
        destination: macs[0].0,
        source: macs[1].0,
        ether_type,
    };
    let mut bytes = ethernet.to_bytes().to_vec();
    match ends {
        [IpAddr::V4(source), IpAddr::V4(destination)] => {
            let ip = Ipv4Header {
                total_len: 0,
                dont_fragment: true,
                time_to_live: 64,
                protocol: IpNumber::UDP,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv4Header::default()
            };
            bytes.extend_from_slice(&ip.to_bytes());
        }
        [IpAddr::V6(source), IpAddr::V6(destination)] => {
            let ip = Ipv6Header {
                next_header: IpNumber::UDP,
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv6Header::default()
            };
            bytes.extend_from_slice(&ip.to_bytes());
        }
        mixed => panic!("{mixed:?}"),
    }
    let udp = UdpHeader {
        destination_port: local.vxlan_port,
        ..UdpHeader::default()
    };
    bytes.extend(udp.to_bytes());
    bytes.extend((0x08_u64 << 56 | u64::from(vni.get()) << 8).to_be_bytes());
    bytes
}

/// `inner` behind these outer headers (RFC 7348, section 5; RFC 6040, section 4.1; RFC 2983).
fn encap(outer: &[u8], inner: &[u8], source_port: u16) -> Vec<u8> {
    let (ethernet, rest) = Ethernet2Header::from_slice(outer).unwrap();
    let mut bytes = ethernet.to_bytes().to_vec();
    let tos = tos(inner);
    let of_tunnel = |vxlan: &[u8]| [vxlan, inner].concat();
    let (udp, payload) = if ethernet.ether_type == EtherType::IPV4 {
        let (mut ip, rest) = Ipv4Header::from_slice(rest).unwrap();
        let (udp, vxlan) = UdpHeader::from_slice(rest).unwrap();
        let payload = of_tunnel(vxlan);
        ip.dscp = IpDscp::try_new(tos >> 2).unwrap();
        ip.ecn = IpEcn::try_new(tos & 3).unwrap();
        ip.set_payload_len(UdpHeader::LEN + payload.len()).unwrap();
        ip.header_checksum = ip.calc_header_checksum();
        bytes.extend_from_slice(&ip.to_bytes());
        let port = udp.destination_port;
        let udp = UdpHeader::with_ipv4_checksum(source_port, port, &ip, &payload);
        (udp.unwrap(), payload)
    } else {
        let (mut ip, rest) = Ipv6Header::from_slice(rest).unwrap();
        let (udp, vxlan) = UdpHeader::from_slice(rest).unwrap();
        let payload = of_tunnel(vxlan);
        ip.traffic_class = tos;
        ip.payload_length = narrow(UdpHeader::LEN + payload.len());
        bytes.extend_from_slice(&ip.to_bytes());
        let port = udp.destination_port;
        let udp = UdpHeader::with_ipv6_checksum(source_port, port, &ip, &payload);
        (udp.unwrap(), payload)
    };
    bytes.extend_from_slice(&udp.to_bytes());
    bytes.extend_from_slice(&payload);
    bytes
}

/// Writes the L4 checksum of a TCP or UDP packet that ends where its frame ends.
fn finish(frame: &mut [u8]) {
    let packet = Packet {
        bytes: frame.to_vec(),
        head: frame.len(),
        offload: None,
    };
    let fields = read(&packet).unwrap();
    let field = Offsets::of(frame).checksum;
    put16(frame, field, 0);
    let sum = pseudo_header(&fields).add_slice(&frame[fields.l4..]);
    let checksum = match sum.ones_complement().to_be() {
        // RFC 768.
        0 if fields.protocol == UDP => 0xffff,
        checksum => checksum,
    };
    put16(frame, field, checksum);
}

/// What the outer headers leave to the inner packet.
struct Outer {
    /// Bytes that an inner L3 packet has less than an outer one.
    overhead: u16,
    /// Their congestion mark.
    ecn: u8,
}

/// A packet on its way through the router.
struct Packet {
    bytes: Vec<u8>,
    /// How many of them are in the first chunk.
    head: usize,
    offload: Option<Offload>,
}

impl Packet {
    fn of(arrival: &Arrival) -> Self {
        Self {
            bytes: arrival.frame.clone(),
            head: arrival.chunk.min(arrival.frame.len()),
            offload: arrival.offload,
        }
    }

    fn head(&self) -> &[u8] {
        &self.bytes[..self.head]
    }

    fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
        self.head = self.head.min(len);
    }

    /// Takes headers off, and with them the mark of a checksum among them.
    fn pull(&mut self, len: usize) {
        self.bytes.drain(..len);
        self.head -= len;
        if let Some(offload) = &mut self.offload {
            let start = offload.unfinished;
            offload.unfinished = start.and_then(|start| start.checked_sub(narrow(len)));
        }
    }

    /// Whether the L4 checksum is unfinished. One inside the packet, of a pod's own tunnel, is
    /// finished.
    fn settle_checksum(&mut self, fields: &Fields, accept: bool) -> Result<bool, DropReason> {
        match self.offload {
            Some(Offload {
                unfinished: Some(start),
                checksum,
                ..
            }) if usize::from(start) != fields.l4 => {
                self.finish_inside(start.into(), checksum.into());
                Ok(false)
            }
            Some(told) => Ok(told.unfinished.is_some()),
            None if !self.looks_unfinished(fields) => Ok(false),
            None if accept => Ok(true),
            None if self.checksum_is_right(fields) => Ok(false),
            None => Err(DropReason::PartialChecksum),
        }
    }

    /// Sums from `start` to the packet's end, the field included.
    fn finish_inside(&mut self, start: usize, offset: usize) {
        let field = start + offset;
        if field + 2 > self.bytes.len() {
            return;
        }
        let sum = Sum16BitWords::new().add_slice(&self.bytes[start..]);
        let checksum = match sum.ones_complement().to_be() {
            0 if offset == 6 => 0xffff,
            checksum => checksum,
        };
        put16(&mut self.bytes, field, checksum);
    }

    /// Whether the checksum field holds the pseudo-header's sum only.
    fn looks_unfinished(&self, fields: &Fields) -> bool {
        let field = match fields.protocol {
            _ if fields.fragment => return false,
            TCP => get16(&self.bytes, fields.l4 + 16),
            UDP => get16(&self.bytes, fields.l4 + 6),
            _ => return false,
        };
        let none = fields.protocol == UDP && field == 0;
        // Nobody leaves the checksum of a datagram unfinished that ends before its packet.
        let fills = fields.udp.is_none_or(|(_, len)| len == fields.l4_len());
        let sum = !pseudo_header(fields).ones_complement().to_be();
        !none && fills && field == sum
    }

    fn checksum_is_right(&self, fields: &Fields) -> bool {
        let sum = pseudo_header(fields).add_slice(&self.bytes[fields.l4..fields.end]);
        sum.ones_complement() == 0
    }

    /// Whether it fits, or may be cut so that it does. What is cut gets new checksums, which must
    /// not make a damaged packet good.
    fn check_size(&self, fields: &Fields, max: u16, partial: bool) -> Result<(), DropReason> {
        let segment = self.offload.map_or(0, |told| told.segment);
        let segment_len = fields.payload - ETHERNET + usize::from(segment);
        let l3_len = fields.end - ETHERNET;
        let longest = if segment == 0 {
            l3_len
        } else {
            l3_len.min(segment_len)
        };
        if longest <= usize::from(max) {
            return Ok(());
        }
        if fields.protocol != TCP || fields.fragment {
            return Err(DropReason::TooBig);
        }
        if segment == 0 && !partial && !self.checksum_is_right(fields) {
            return Err(DropReason::BadChecksum);
        }
        Ok(())
    }

    /// The link's addresses, one hop less, the congestion mark, and the IPv4 checksum anew.
    fn rewrite(&mut self, fields: &Fields, macs: [MacAddr; 2], mark: u8) {
        let bytes = &mut self.bytes;
        bytes[..6].copy_from_slice(&macs[0].0);
        bytes[6..12].copy_from_slice(&macs[1].0);
        bytes[if fields.destination.is_ipv6() { 21 } else { 22 }] -= 1;
        self.mark(mark);
    }

    /// Sets the congestion mark, and the IPv4 checksum anew.
    fn mark(&mut self, mark: u8) {
        let bytes = &mut self.bytes;
        if EtherType(get16(bytes, 12)) == EtherType::IPV6 {
            bytes[15] = bytes[15] & 0b1100_1111 | mark << 4;
            return;
        }
        bytes[15] = bytes[15] & 0b1111_1100 | mark;
        put16(bytes, 24, 0);
        let sum = Sum16BitWords::new().add_slice(&bytes[ETHERNET..34]);
        put16(bytes, 24, sum.ones_complement().to_be());
    }
}

/// What sound headers say. Offsets are from the packet's start.
struct Fields {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    fragment: bool,
    ecn: u8,
    hop_limit: u8,
    l4: usize,
    /// Behind the TCP or UDP header; `l4` for anything else.
    payload: usize,
    /// Behind the IP packet.
    end: usize,
    /// Destination port and length of a UDP datagram.
    udp: Option<(u16, usize)>,
}

impl Fields {
    fn l4_len(&self) -> usize {
        self.end - self.l4
    }
}

fn pseudo_header(fields: &Fields) -> Sum16BitWords {
    let addresses = match (fields.source, fields.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Sum16BitWords::new()
            .add_4bytes(source.octets())
            .add_4bytes(destination.octets()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => Sum16BitWords::new()
            .add_16bytes(source.octets())
            .add_16bytes(destination.octets()),
        mixed => panic!("{mixed:?}"),
    };
    let len = u32::try_from(fields.l4_len()).unwrap();
    addresses
        .add_2bytes([0, fields.protocol])
        .add_4bytes(len.to_be_bytes())
}

/// Checks the headers from Ethernet to L4 and reads them.
fn read(packet: &Packet) -> Result<Fields, DropReason> {
    let head = packet.head();
    if head.len() < ETHERNET {
        return Err(DropReason::TruncatedEthernet);
    }
    let (ip, room) = (&head[ETHERNET..], packet.bytes.len() - ETHERNET);
    match EtherType(get16(head, 12)) {
        EtherType::IPV4 => check_ipv4(ip, room)?,
        EtherType::IPV6 => check_ipv6(ip, room)?,
        _ => return Err(DropReason::UnknownEtherType),
    }
    let sliced = LaxSlicedPacket::from_ethernet(head).unwrap();
    let mut fields = match sliced.net.as_ref().unwrap() {
        LaxNetSlice::Ipv4(ip) => {
            let ip = ip.header();
            let l4 = ETHERNET + ip.slice().len();
            Fields {
                source: ip.source_addr().into(),
                destination: ip.destination_addr().into(),
                protocol: ip.protocol().0,
                fragment: ip.is_fragmenting_payload(),
                ecn: ip.ecn().value(),
                hop_limit: ip.ttl(),
                l4,
                payload: l4,
                end: ETHERNET + usize::from(ip.total_len()),
                udp: None,
            }
        }
        LaxNetSlice::Ipv6(ip) => {
            let ip = ip.header();
            let l4 = ETHERNET + ip.slice().len();
            Fields {
                source: ip.source_addr().into(),
                destination: ip.destination_addr().into(),
                protocol: ip.next_header().0,
                fragment: false,
                ecn: ip.traffic_class() & 3,
                hop_limit: ip.hop_limit(),
                l4,
                payload: l4,
                end: l4 + usize::from(ip.payload_length()),
                udp: None,
            }
        }
        LaxNetSlice::Arp(_) => panic!("an IP EtherType"),
    };
    if fields.fragment {
        return Ok(fields);
    }
    let l4 = &head[fields.l4..fields.end.min(head.len())];
    let whole = head.len() == packet.bytes.len();
    match fields.protocol {
        TCP => check_tcp(l4, fields.l4_len())?,
        UDP => check_udp(l4, fields.l4_len(), whole)?,
        // RFC 792, RFC 4443: type, code, checksum and four bytes more.
        _ if l4.len() < 8 => return Err(DropReason::TruncatedIcmp),
        _ => {}
    }
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => fields.payload += tcp.header_len(),
        Some(TransportSlice::Udp(udp)) => {
            fields.payload += UdpHeader::LEN;
            fields.udp = Some((udp.destination_port(), udp.length().into()));
        }
        _ => {}
    }
    Ok(fields)
}

/// RFC 1812, section 5.2.2, the checksum last: nobody knows before how much it covers. `ip` is what
/// of the packet lies in the first chunk, `room` how long it is at most.
fn check_ipv4(ip: &[u8], room: usize) -> Result<(), DropReason> {
    if ip.len() < Ipv4Header::MIN_LEN {
        return Err(DropReason::TruncatedIpv4);
    }
    if ip[0] >> 4 != 4 {
        return Err(DropReason::Ipv4BadVersion);
    }
    let header_len = usize::from(ip[0] & 15) * 4;
    if !(Ipv4Header::MIN_LEN..=room).contains(&header_len) {
        return Err(DropReason::Ipv4BadHeaderLength);
    }
    let header = ip.get(..header_len).ok_or(DropReason::TruncatedIpv4)?;
    if !(header_len..=room).contains(&get16(header, 2).into()) {
        return Err(DropReason::Ipv4BadTotalLength);
    }
    if Sum16BitWords::new().add_slice(header).ones_complement() != 0 {
        return Err(DropReason::Ipv4BadChecksum);
    }
    // Options and other protocols are sound, but the kernel's.
    if header_len > Ipv4Header::MIN_LEN {
        return Err(DropReason::Ipv4Options);
    }
    match IpNumber(header[9]) {
        IpNumber::TCP | IpNumber::UDP | IpNumber::ICMP => Ok(()),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

/// RFC 8200, sections 3 and 4.
fn check_ipv6(ip: &[u8], room: usize) -> Result<(), DropReason> {
    if ip.len() < Ipv6Header::LEN {
        return Err(DropReason::TruncatedIpv6);
    }
    if ip[0] >> 4 != 6 {
        return Err(DropReason::Ipv6BadVersion);
    }
    if Ipv6Header::LEN + usize::from(get16(ip, 4)) > room {
        return Err(DropReason::Ipv6BadPayloadLength);
    }
    match IpNumber(ip[6]) {
        IpNumber::TCP | IpNumber::UDP | IpNumber::IPV6_ICMP => Ok(()),
        next if next.is_ipv6_ext_header_value() => Err(DropReason::Ipv6ExtensionHeader),
        _ => Err(DropReason::UnsupportedProtocol),
    }
}

/// RFC 9293, section 3.1. `l4` is what of the `len` bytes lies in the first chunk.
fn check_tcp(l4: &[u8], len: usize) -> Result<(), DropReason> {
    const LEAST: usize = 20;
    if l4.len() < LEAST {
        return Err(DropReason::TruncatedTcp);
    }
    let header_len = usize::from(l4[12] >> 4) * 4;
    if !(LEAST..=len).contains(&header_len) {
        return Err(DropReason::TcpBadDataOffset);
    }
    if l4.len() < header_len {
        return Err(DropReason::TruncatedTcp);
    }
    Ok(())
}

/// RFC 768. Behind a datagram there may be options (RFC 9868), but not of a super-frame or a jumbo
/// frame: such a packet is handed on by its IP length alone.
fn check_udp(l4: &[u8], len: usize, whole: bool) -> Result<(), DropReason> {
    if l4.len() < UdpHeader::LEN {
        return Err(DropReason::TruncatedUdp);
    }
    let says = usize::from(get16(l4, 4));
    if !(UdpHeader::LEN..=len).contains(&says) || !whole && says != len {
        return Err(DropReason::UdpBadLength);
    }
    Ok(())
}
