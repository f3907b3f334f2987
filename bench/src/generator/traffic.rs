//! What the generated packets are.

use std::net::Ipv4Addr;

use etherparse::PacketBuilder;
use podway_proto::types::{MacAddr, Vni};
use serde::Serialize;

use crate::{Error, Result};

/// What the sink knows generated packets by: `MAGIC` in `bpf/shared.h`.
pub(super) const MAGIC: u32 = 0x506f_6477;
/// `MAX_FLOWS` in `bpf/shared.h`.
pub(super) const MAX_FLOWS: u32 = 16384;
/// UDP source port of flow 0.
pub(super) const FIRST_PORT: u16 = 10_000;
/// The discard service (RFC 863): nobody answers.
const DISCARD: u16 = 9;
const TTL: u8 = 64;
/// Ethernet 14, IPv4 20, UDP 8, magic and flow 8.
pub(super) const INNER_LENGTH: usize = 50;
/// Ethernet, IPv4, UDP and VXLAN headers.
pub(super) const OUTER_LENGTH: usize = 50;
/// Header bytes that the program writes, in whole words: `TUNNEL_WORDS` in `generate.bpf.c`.
const HEADERS_LENGTH: usize = (OUTER_LENGTH + INNER_LENGTH).next_multiple_of(8);
/// Shortest Ethernet frame without its check sequence.
const SHORTEST: u16 = 60;
/// A live frame has one page for headroom, packet and the kernel's own.
const LONGEST: u16 = 3000;

const IP_CHECKSUM: usize = 24;
const UDP_CHECKSUM: usize = 40;

/// One end of the packets' way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Ethernet address.
    pub mac: MacAddr,
    /// IPv4 address.
    pub ipv4: Ipv4Addr,
}

/// The tunnel that packets come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tunnel {
    /// Who encapsulated.
    pub from: Endpoint,
    /// Who shall decapsulate.
    pub to: Endpoint,
    /// VXLAN network.
    pub vni: Vni,
    /// UDP port of VXLAN.
    pub port: u16,
}

/// A stream of UDP datagrams over IPv4, all of one size, with valid checksums everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// The sender. In a tunnel, the inner packet's.
    pub from: Endpoint,
    /// The receiver.
    pub to: Endpoint,
    /// How many addresses are sent to, from that of `to` on, in turn by flow.
    pub destinations: u16,
    /// Flows, 1 to 16384: as many UDP source ports, in turn.
    pub flows: u16,
    /// Length of a packet in bytes with its Ethernet header, without frame check sequence and
    /// without tunnel: 60 to 3000.
    pub size: u16,
    /// The tunnel, if the packets come in one.
    pub tunnel: Option<Tunnel>,
}

/// A packet of flow 0 with its changing fields zero, and the sums over what does not change.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) frame: Vec<u8>,
    pub(super) ip_sum: u16,
    pub(super) udp_sum: u16,
    /// 0 without a tunnel.
    pub(super) outer_udp_sum: u16,
}

impl Traffic {
    pub(super) fn template(&self) -> Result<Template> {
        self.check()?;
        let payload_length = usize::from(self.size) - (INNER_LENGTH - 8);
        let mut payload = vec![0; payload_length];
        payload[..4].copy_from_slice(&MAGIC.to_be_bytes());
        let mut frame = packet(self.from, self.to, DISCARD, &payload)?;
        // The complement of a checksum is the sum of all but itself.
        let ip_sum = !take16(&mut frame, IP_CHECKSUM);
        let udp_sum = !take16(&mut frame, UDP_CHECKSUM);
        let Some(tunnel) = &self.tunnel else {
            return Ok(Template {
                frame,
                ip_sum,
                udp_sum,
                outer_udp_sum: 0,
            });
        };
        // RFC 7348, section 5: the I flag and the network.
        let mut payload = vec![0x08, 0, 0, 0];
        payload.extend((u32::from(tunnel.vni) << 8).to_be_bytes());
        payload.append(&mut frame);
        let mut frame = packet(tunnel.from, tunnel.to, tunnel.port, &payload)?;
        let outer_udp_sum = !take16(&mut frame, UDP_CHECKSUM);
        Ok(Template {
            frame,
            ip_sum,
            udp_sum,
            outer_udp_sum,
        })
    }

    /// Length of the frames as they are sent, in bytes.
    pub fn frame_length(&self) -> usize {
        let outer = self.tunnel.map_or(0, |_| OUTER_LENGTH);
        usize::from(self.size) + outer
    }

    fn check(&self) -> Result<()> {
        let refused = |what: String| Err(Error::Unexpected(what));
        if !(SHORTEST..=LONGEST).contains(&self.size) {
            return refused(format!(
                "packets have {SHORTEST} to {LONGEST} bytes, not {}",
                self.size
            ));
        }
        if self.flows == 0 || u32::from(self.flows) > MAX_FLOWS {
            return refused(format!(
                "there are 1 to {MAX_FLOWS} flows, not {}",
                self.flows
            ));
        }
        let [.., high, low] = self.to.ipv4.octets();
        let first = u16::from_be_bytes([high, low]);
        if self.destinations == 0 || first.checked_add(self.destinations - 1).is_none() {
            return refused(format!(
                "{} addresses from {} on differ in more than 16 bits",
                self.destinations, self.to.ipv4
            ));
        }
        Ok(())
    }
}

impl Template {
    /// What the program writes in front of each frame, in the machine's words.
    pub(super) fn headers(&self) -> [u64; HEADERS_LENGTH / 8] {
        let mut words = [0; HEADERS_LENGTH / 8];
        for (word, bytes) in words.iter_mut().zip(self.frame.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        words
    }
}

fn packet(from: Endpoint, to: Endpoint, port: u16, payload: &[u8]) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(from.mac.0, to.mac.0)
        .ipv4(from.ipv4.octets(), to.ipv4.octets(), TTL)
        .udp(0, port);
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    let written = builder.write(&mut frame, payload);
    written.map_err(|error| Error::Unexpected(format!("building a packet: {error}")))?;
    Ok(frame)
}

/// The 16-bit word at an offset, which becomes zero.
fn take16(frame: &mut [u8], offset: usize) -> u16 {
    let word = u16::from_be_bytes([frame[offset], frame[offset + 1]]);
    frame[offset..offset + 2].fill(0);
    word
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn traffic(tunnel: bool) -> Traffic {
        let endpoint = |last| Endpoint {
            mac: MacAddr([2, 0, 0, 0, 0, last]),
            ipv4: Ipv4Addr::new(10, 0, last, 10),
        };
        Traffic {
            from: endpoint(1),
            to: endpoint(2),
            destinations: 1,
            flows: 1,
            size: 60,
            tunnel: tunnel.then(|| Tunnel {
                from: endpoint(3),
                to: endpoint(4),
                vni: Vni::try_from(0x01_0203).unwrap(),
                port: 4789,
            }),
        }
    }

    #[test]
    fn frames_have_the_length_asked_for() {
        for size in [60, 64, 1400] {
            let plain = Traffic {
                size,
                ..traffic(false)
            };
            assert_eq!(plain.template().unwrap().frame.len(), usize::from(size));
            let tunnel = Traffic {
                size,
                ..traffic(true)
            };
            let frame = tunnel.template().unwrap().frame;
            assert_eq!(frame.len(), usize::from(size) + 50);
            assert_eq!(frame.len(), tunnel.frame_length());
            assert_eq!(frame[42..50], [8, 0, 0, 0, 1, 2, 3, 0]);
            assert_eq!(frame[92..96], MAGIC.to_be_bytes());
        }
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let valid = traffic(false);
        let cases = [
            Traffic { size: 59, ..valid },
            Traffic {
                size: 3001,
                ..valid
            },
            Traffic { flows: 0, ..valid },
            Traffic {
                flows: 16385,
                ..valid
            },
            Traffic {
                destinations: 0,
                ..valid
            },
            // 10.0.2.10 and 65014 more would end in 10.1.0.0.
            Traffic {
                destinations: 65015,
                ..valid
            },
        ];
        for case in cases {
            assert!(case.template().is_err(), "{case:?}");
        }
        let most = Traffic {
            destinations: 65014,
            ..valid
        };
        assert!(most.template().is_ok());
    }
}
