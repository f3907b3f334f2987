//! What the reference router tells senders: RFC 1812, section 4.3, and RFC 4443.

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode as CodeV4};
use etherparse::icmpv6::{DestUnreachableCode, TimeExceededCode as CodeV6};
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};

use super::*;

impl Router {
    /// The ICMP error about a packet that [`Router::route`] drops for `reason`; `None` when there is to
    /// be none.
    pub(crate) fn answer(&self, arrival: &Arrival, reason: DropReason) -> Option<Departure> {
        let local = self.facts.local.as_ref()?;
        let uplink = matches!(self.ingress(arrival)?.role, PortRole::Uplink { .. });
        let mut packet = Packet::of(arrival);
        if uplink {
            self.decap(&mut packet).ok()?;
        }
        let fields = read(&packet).ok()?;
        packet.truncate(fields.end);
        packet.finish_for_quote(&fields, reason);

        let (sender, receiver) = (fields.source, fields.destination);
        if !packet.may_be_answered(&fields) || local.addresses.contains(&sender) {
            return None;
        }
        let l3_len = fields.end - ETHERNET;
        let mtu = match reason {
            DropReason::TtlExpired | DropReason::NoRoute => 0,
            DropReason::TooBig => {
                let mtu = self.next_hop(receiver).ok()?.mtu;
                let fragmentable = sender.is_ipv4() && packet.bytes[20] & 0x40 == 0;
                (l3_len > mtu.into() && !fragmentable).then_some(mtu)?
            }
            _ => return None,
        };
        let pod = if uplink { receiver } else { sender };
        let ours = local
            .addresses
            .iter()
            .filter(|one| one.is_ipv4() == pod.is_ipv4() && is_one_host_of_the_internet(**one));
        let source = *ours.max_by_key(|one| (common_bits(**one, pod), **one))?;
        let hop = self.next_hop(sender).ok()?;
        let mut bytes = [&hop.macs[0].0[..], &hop.macs[1].0, &packet.bytes[12..14]].concat();
        let quote = &packet.bytes[ETHERNET..];
        match (source, sender) {
            (IpAddr::V4(source), IpAddr::V4(sender)) => {
                let quote = &quote[..quote.len().min(576 - 28)];
                let kind = match reason {
                    DropReason::TtlExpired => {
                        Icmpv4Type::TimeExceeded(CodeV4::TtlExceededInTransit)
                    }
                    DropReason::NoRoute => {
                        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network)
                    }
                    _ => Icmpv4Type::DestinationUnreachable(
                        DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu },
                    ),
                };
                let mut ip = Ipv4Header {
                    dscp: IpDscp::try_new(tos(&packet.bytes) >> 2 | 0b11_0000).unwrap(),
                    total_len: narrow(28 + quote.len()),
                    dont_fragment: true,
                    time_to_live: 64,
                    protocol: IpNumber::ICMP,
                    source: source.octets(),
                    destination: sender.octets(),
                    ..Ipv4Header::default()
                };
                ip.header_checksum = ip.calc_header_checksum();
                bytes.extend_from_slice(&ip.to_bytes());
                bytes.extend_from_slice(&Icmpv4Header::with_checksum(kind, quote).to_bytes());
                bytes.extend_from_slice(quote);
            }
            (IpAddr::V6(source), IpAddr::V6(sender)) => {
                let quote = &quote[..quote.len().min(usize::from(hop.mtu).min(1280) - 48)];
                let kind = match reason {
                    DropReason::TtlExpired => Icmpv6Type::TimeExceeded(CodeV6::HopLimitExceeded),
                    DropReason::NoRoute => {
                        Icmpv6Type::DestinationUnreachable(DestUnreachableCode::NoRoute)
                    }
                    _ => Icmpv6Type::PacketTooBig {
                        mtu: mtu.max(1280).into(),
                    },
                };
                let ip = Ipv6Header {
                    payload_length: narrow(8 + quote.len()),
                    next_header: IpNumber::IPV6_ICMP,
                    hop_limit: 64,
                    source: source.octets(),
                    destination: sender.octets(),
                    ..Ipv6Header::default()
                };
                let (source, sender) = (source.octets(), sender.octets());
                let message = Icmpv6Header::with_checksum(kind, source, sender, quote).unwrap();
                bytes.extend_from_slice(&ip.to_bytes());
                bytes.extend_from_slice(&message.to_bytes());
                bytes.extend_from_slice(quote);
            }
            mixed => panic!("{mixed:?}"),
        }
        Some(Departure {
            bytes,
            port: hop.port,
            target: hop.target,
            max_l3_len: hop.mtu,
            partial_checksum: false,
        })
    }
}

impl Packet {
    /// Finishes the checksum of the packet itself. One inside, of a pod's own tunnel, is finished once
    /// it is known that the packet lives on.
    fn finish_for_quote(&mut self, fields: &Fields, reason: DropReason) {
        if reason != DropReason::TtlExpired {
            let _ = self.settle_checksum(fields, true);
        }
        let unfinished = match self.offload {
            Some(told) => told.unfinished.map(usize::from) == Some(fields.l4),
            None => self.looks_unfinished(fields),
        };
        match fields.protocol {
            _ if !unfinished || fields.fragment => {}
            TCP => self.finish_inside(fields.l4, 16),
            UDP => self.finish_inside(fields.l4, 6),
            _ => {}
        }
    }

    /// RFC 1812, section 4.3.2.7, and RFC 4443, section 2.4 (e).
    fn may_be_answered(&self, fields: &Fields) -> bool {
        let later_fragment = fields.fragment && get16(&self.bytes, 20) & 0x1fff != 0;
        let kind = self.head().get(fields.l4);
        let informs = match IpNumber(fields.protocol) {
            IpNumber::ICMP => matches!(kind, Some(0 | 8..=10 | 13..=18)),
            // And a redirect.
            IpNumber::IPV6_ICMP => matches!(kind, Some(128..=136 | 138..)),
            _ => true,
        };
        let ends = [fields.source, fields.destination];
        !later_fragment && informs && ends.into_iter().all(is_one_host_of_the_internet)
    }
}

fn is_one_host_of_the_internet(address: IpAddr) -> bool {
    let never = match address {
        IpAddr::V4(_) => &[
            "0.0.0.0/8",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ][..],
        IpAddr::V6(_) => &["::/128", "::1/128", "fe80::/10", "ff00::/8"],
    };
    let mut never = never.iter().map(|net| net.parse::<IpNet>().unwrap());
    !never.any(|net| net.contains(&address))
}

/// The longest prefix that has both.
fn common_bits(one: IpAddr, other: IpAddr) -> u8 {
    let longest = if one.is_ipv4() { 32 } else { 128 };
    let has_both = |len: &u8| IpNet::new(one, *len).unwrap().contains(&other);
    (0..=longest).rev().find(has_both).unwrap()
}
