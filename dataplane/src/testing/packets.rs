//! Packets made by hand, and what is right about them. None of it uses [`crate::wire`].

use std::net::IpAddr;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;
pub(crate) const URG: u8 = 32;
pub(crate) const ECE: u8 = 64;
pub(crate) const CWR: u8 = 128;

/// A packet to be made.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) v6: bool,
    pub(crate) udp: bool,
    /// Last byte of the source address; tells flows apart with the ports.
    pub(crate) host: u8,
    pub(crate) sport: u16,
    pub(crate) dport: u16,
    /// Source and destination, which then decide `v6` as well; else 10.0.0.host to 10.0.1.254, or
    /// fd00::host to fd00::fe.
    pub(crate) addresses: Option<(IpAddr, IpAddr)>,
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    pub(crate) df: bool,
    pub(crate) flow_label: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    pub(crate) partial: bool,
}

impl Spec {
    /// A TCP segment over IPv4 with timestamps, as bulk data is.
    pub(crate) fn tcp(seq: u32, id: u16, payload: &[u8]) -> Self {
        Self {
            v6: false,
            udp: false,
            host: 1,
            sport: 40000,
            dport: 5201,
            addresses: None,
            tos: 0,
            ttl: 63,
            id,
            df: true,
            flow_label: 0x1234,
            seq,
            ack: 777,
            flags: ACK,
            window: 501,
            options: vec![1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8],
            payload: payload.to_vec(),
            partial: false,
        }
    }

    /// A UDP datagram over IPv4.
    pub(crate) fn udp(payload: &[u8]) -> Self {
        Self {
            udp: true,
            ..Self::tcp(0, 0, payload)
        }
    }

    pub(crate) fn header_len(&self) -> usize {
        let l4 = if self.udp { 8 } else { 20 + self.options.len() };
        l4 + if self.is_v6() { 40 } else { 20 }
    }

    /// The same between other addresses.
    pub(crate) fn between(self, source: IpAddr, destination: IpAddr) -> Self {
        Self {
            addresses: Some((source, destination)),
            ..self
        }
    }

    fn is_v6(&self) -> bool {
        self.addresses
            .map_or(self.v6, |(source, _)| source.is_ipv6())
    }

    fn addresses(&self) -> Vec<u8> {
        match self.addresses {
            Some((IpAddr::V4(source), IpAddr::V4(destination))) => {
                [source.octets(), destination.octets()].concat()
            }
            Some((IpAddr::V6(source), IpAddr::V6(destination))) => {
                [source.octets(), destination.octets()].concat()
            }
            Some(mixed) => panic!("{mixed:?}"),
            None if self.v6 => {
                let mut both = [0; 32];
                (both[0], both[15]) = (0xfd, self.host);
                (both[16], both[31]) = (0xfd, 0xfe);
                both.to_vec()
            }
            None => vec![10, 0, 0, self.host, 10, 0, 1, 254],
        }
    }

    /// The frame, from its Ethernet header on.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut l4 = Vec::new();
        l4.extend(self.sport.to_be_bytes());
        l4.extend(self.dport.to_be_bytes());
        if self.udp {
            l4.extend(narrow(8 + self.payload.len()).to_be_bytes());
            l4.extend([0, 0]);
        } else {
            l4.extend(self.seq.to_be_bytes());
            l4.extend(self.ack.to_be_bytes());
            l4.extend([
                u8::try_from(self.options.len() / 4 + 5).unwrap() << 4,
                self.flags,
            ]);
            l4.extend(self.window.to_be_bytes());
            l4.extend([0, 0, 0, 0]);
            l4.extend(&self.options);
        }
        l4.extend(&self.payload);

        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        let protocol = if self.udp { 17 } else { 6 };
        if self.is_v6() {
            frame.extend([0x86, 0xdd, 0x60 | self.tos >> 4, self.tos << 4]);
            frame.extend(self.flow_label.to_be_bytes());
            frame.extend(narrow(l4.len()).to_be_bytes());
            frame.extend([protocol, self.ttl]);
        } else {
            frame.extend([8, 0, 0x45, self.tos]);
            frame.extend(narrow(20 + l4.len()).to_be_bytes());
            frame.extend(self.id.to_be_bytes());
            frame.extend([if self.df { 0x40 } else { 0 }, 0, self.ttl, protocol, 0, 0]);
        }
        frame.extend(self.addresses());
        frame.extend(l4);
        fix_ip(&mut frame);
        let at = Offsets::of(&frame);
        let pseudo = fold(pseudo(&frame, frame.len() - at.l4));
        put16(&mut frame, at.checksum, pseudo);
        if !self.partial {
            finish(&mut frame, at.l4, at.checksum);
        }
        frame
    }
}

/// `count` bytes that repeat late.
pub(crate) fn payload(count: usize) -> Vec<u8> {
    (0_u32..)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .take(count)
        .collect()
}

/// An ICMP echo request.
pub(crate) fn icmp(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    let mut frame = Spec::udp(payload).between(source, destination).build();
    let at = Offsets::of(&frame);
    (frame[at.protocol], frame[at.l4]) = if at.v6 { (58, 128) } else { (1, 8) };
    frame[at.l4 + 1..at.payload].copy_from_slice(&[0, 0, 0, 0, 7, 0, 1]);
    fix_ip(&mut frame);
    if at.v6 {
        let pseudo = fold(pseudo(&frame, frame.len() - at.l4));
        put16(&mut frame, at.l4 + 2, pseudo);
    }
    finish(&mut frame, at.l4, at.l4 + 2);
    frame
}

/// Makes an IPv4 packet that ends where its frame ends the fragment at `offset` bytes.
pub(crate) fn fragment(mut frame: Vec<u8>, offset: u16, more: bool) -> Vec<u8> {
    put16(&mut frame, 20, offset >> 3 | u16::from(more) << 13);
    fix_ip(&mut frame);
    frame
}

/// `inner` in a tunnel of this VNI; `outer` gives all of the outer headers but the UDP payload.
pub(crate) fn vxlan(outer: &Spec, vni: u32, inner: &[u8]) -> Vec<u8> {
    let header = (0x08_u64 << 56 | u64::from(vni) << 8).to_be_bytes();
    let payload = [&header, inner].concat();
    Spec {
        udp: true,
        payload,
        ..outer.clone()
    }
    .build()
}

/// Whether the L4 checksum of a TCP or UDP packet that ends where its frame ends is right.
pub(crate) fn l4_checksum_is_right(frame: &[u8]) -> bool {
    let at = Offsets::of(frame);
    let udp = frame[at.protocol] == 17;
    if udp && get16(frame, at.checksum) == 0 {
        return true;
    }
    let sum = pseudo(frame, frame.len() - at.l4) + sum16(&frame[at.l4..]);
    fold(sum) == 0xffff
}

/// A frame without what routers change: link addresses, time to live and with it the checksum.
pub(crate) fn without_hops(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let v6 = frame[12] == 0x86;
    frame[..12].fill(0);
    frame[if v6 { 21 } else { 22 }] = 0;
    if !v6 {
        frame[24..26].fill(0);
    }
    frame
}

/// The time to live or hop limit of a frame.
pub(crate) fn hop_limit(frame: &[u8]) -> u8 {
    frame[if frame[12] == 0x86 { 21 } else { 22 }]
}

/// DSCP and ECN of a frame.
pub(crate) fn tos(frame: &[u8]) -> u8 {
    if frame[12] == 0x86 {
        frame[14] << 4 | frame[15] >> 4
    } else {
        frame[15]
    }
}

/// Whether the L4 checksum of a TCP or UDP packet that ends where its frame ends is, or happens to
/// be, what an unfinished one is. Of wrong checksums, too, one in 65536 looks so; where unfinished
/// ones are accepted, it is mended.
pub(crate) fn looks_partial(frame: &[u8]) -> bool {
    let at = Offsets::of(frame);
    get16(frame, at.checksum) == fold(pseudo(frame, frame.len() - at.l4))
}

/// Whether the IPv4 header checksum is right; IPv6 has none.
pub(crate) fn ip_checksum_is_right(frame: &[u8]) -> bool {
    frame[12] == 0x86 || fold(sum16(&frame[14..34])) == 0xffff
}

/// Whether the IP length is the frame's.
pub(crate) fn ip_len_is_right(frame: &[u8]) -> bool {
    let ends = if frame[12] == 0x86 {
        54 + usize::from(get16(frame, 18))
    } else {
        14 + usize::from(get16(frame, 16))
    };
    ends == frame.len()
}

/// Checks lengths and all checksums, with etherparse as the judge.
#[cfg(test)]
pub(crate) fn verify(frame: &[u8]) {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let ip_len = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            usize::from(header.total_len)
        }
        NetSlice::Ipv6(ip) => usize::from(ip.header().payload_length()) + 40,
        other => panic!("{other:?}"),
    };
    assert_eq!(14 + ip_len, frame.len());
    match (packet.net.unwrap(), packet.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            let sum = tcp.calc_checksum_ipv4(src, dst).unwrap();
            assert_eq!(tcp.checksum(), sum);
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(src, dst).unwrap());
        }
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            let sum = header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
            assert_eq!(udp.checksum(), sum.unwrap());
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            let sum = header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload());
            assert_eq!(udp.checksum(), sum.unwrap());
        }
        other => panic!("{other:?}"),
    }
}

/// Where the headers of a frame are; no IPv4 options here.
pub(crate) struct Offsets {
    pub(crate) v6: bool,
    pub(crate) protocol: usize,
    pub(crate) l4: usize,
    pub(crate) checksum: usize,
    pub(crate) payload: usize,
}

impl Offsets {
    pub(crate) fn of(frame: &[u8]) -> Self {
        let v6 = frame[12] == 0x86;
        let protocol = if v6 { 20 } else { 23 };
        let l4 = if v6 { 54 } else { 34 };
        let udp = frame[protocol] == 17;
        // A fragment or an ICMP message may end before.
        let tcp_len = frame
            .get(l4 + 12)
            .map_or(0, |byte| usize::from(byte >> 4) * 4);
        Self {
            v6,
            protocol,
            l4,
            checksum: l4 + if udp { 6 } else { 16 },
            payload: l4 + if udp { 8 } else { tcp_len },
        }
    }
}

/// Writes the IP lengths and the IPv4 header checksum that the frame's length demands.
pub(crate) fn fix_ip(frame: &mut [u8]) {
    let len = frame.len();
    if frame[12] == 0x86 {
        put16(frame, 18, narrow(len - 54));
    } else {
        put16(frame, 16, narrow(len - 14));
        put16(frame, 24, 0);
        let sum = fold(sum16(&frame[14..34]));
        put16(frame, 24, !sum);
    }
}

/// Sums from `start`, the field included, and writes the complement there. Zero becomes 0xffff for
/// UDP, as it must; `skb_checksum_help` does so for TCP too, `tcp_gso_segment` does not.
pub(crate) fn finish(frame: &mut [u8], start: usize, field: usize) {
    let udp = field - start == 6;
    let checksum = match !fold(sum16(&frame[start..])) {
        0 if udp => 0xffff,
        checksum => checksum,
    };
    put16(frame, field, checksum);
}

pub(crate) fn pseudo(frame: &[u8], l4_len: usize) -> u64 {
    let at = Offsets::of(frame);
    let addresses = if at.v6 { 22..54 } else { 26..34 };
    sum16(&frame[addresses]) + u64::from(frame[at.protocol]) + u64::try_from(l4_len).unwrap()
}

pub(crate) fn sum16(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
    bytes.chunks(2).map(|pair| u64::from(word(pair))).sum()
}

pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap()
}

pub(crate) fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn narrow(n: usize) -> u16 {
    u16::try_from(n).unwrap()
}
