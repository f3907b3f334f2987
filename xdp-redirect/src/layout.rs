//! Keys and values of the program's maps as bytes, the Rust half of `bpf/shared.h`.
//!
//! Written out by hand rather than cast from `repr(C)` structs: it is little, needs no `unsafe`,
//! and a test compares every size with the compiled program.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::{Error, in_range};

/// How many counter slots there are. Slots of ports are below [`UNKNOWN_PORT_SLOT`].
pub const MAX_PORTS: u32 = 1024;
/// How many sockets there are, over all ports.
pub const MAX_SOCKETS: u32 = 4096;
/// How many workers there are.
pub const MAX_WORKERS: u32 = 64;
/// The counter slot of frames that came by an interface that is no port.
pub const UNKNOWN_PORT_SLOT: u32 = MAX_PORTS - 1;

/// `CONFIG_TRANSLATES` of `bpf/shared.h`.
pub(crate) const CONFIG_TRANSLATES: u16 = 0x1;
/// `CONFIG_DEFRAGMENTS` of `bpf/shared.h`.
pub(crate) const CONFIG_DEFRAGMENTS: u16 = 0x2;

/// The largest VXLAN network identifier: 24 bits (RFC 7348, section 5).
pub(crate) const MAX_VNI: u32 = (1 << 24) - 1;

/// What is behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The node's end of a pod's veth: packets come from one pod.
    Pod,
    /// An interface towards other nodes: packets come for pods, in VXLAN or as they are.
    Uplink,
}

/// What the program knows of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortEntry {
    /// What is behind it.
    pub role: Role,
    /// The interface's own MAC; frames to any other one are the kernel's.
    pub mac: [u8; 6],
    /// Where its packets are counted: below [`UNKNOWN_PORT_SLOT`], one for each port.
    pub slot: u32,
    /// Index of queue 0 in the map of sockets; queue `q` has `xsk_base + q`.
    pub xsk_base: u32,
    /// How many queues have an index; packets of further ones pass.
    pub queues: u32,
    /// The interface's MTU in bytes: a larger packet is a super-frame.
    pub mtu: u16,
    /// Whether a pod may send from addresses that are not its own.
    pub any_source: bool,
}

impl PortEntry {
    /// `struct port`, if slot and indexes are in range.
    pub(crate) fn encode(&self) -> Result<[u8; 24], Error> {
        in_range(
            "counter slot",
            self.slot.into(),
            (UNKNOWN_PORT_SLOT - 1).into(),
        )?;
        let end = u64::from(self.xsk_base) + u64::from(self.queues);
        in_range("end of a port's sockets", end, MAX_SOCKETS.into())?;
        let role = match self.role {
            Role::Pod => 0,
            Role::Uplink => 1,
        };
        let mut bytes = [0; 24];
        bytes[..6].copy_from_slice(&self.mac);
        bytes[6] = role;
        bytes[7] = self.any_source.into();
        bytes[8..12].copy_from_slice(&self.slot.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.xsk_base.to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.queues.to_ne_bytes());
        bytes[20..].copy_from_slice(&u32::from(self.mtu).to_ne_bytes());
        Ok(bytes)
    }
}

impl PortEntry {
    /// From `struct port`.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 24] = bytes.first_chunk()?;
        let (mac, rest) = bytes.split_first_chunk::<6>()?;
        let word = |at: usize| {
            let word = bytes.get(at..at + 4).and_then(|word| word.first_chunk());
            word.map_or(0, |word| u32::from_ne_bytes(*word))
        };
        Some(Self {
            role: match rest {
                [0, ..] => Role::Pod,
                _ => Role::Uplink,
            },
            mac: *mac,
            slot: word(8),
            xsk_base: word(12),
            queues: word(16),
            mtu: u16::try_from(word(20)).unwrap_or(u16::MAX),
            any_source: rest.get(1) != Some(&0),
        })
    }
}

/// A key whose length depends on the family: an address, or a prefix of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// For the map whose name ends in 4.
    V4([u8; 8], usize),
    /// For the map whose name ends in 6.
    V6([u8; 20], usize),
}

impl Key {
    /// An address in network byte order.
    pub(crate) fn address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => {
                let mut bytes = [0; 8];
                bytes[..4].copy_from_slice(&a.octets());
                Self::V4(bytes, 4)
            }
            IpAddr::V6(a) => {
                let mut bytes = [0; 20];
                bytes[..16].copy_from_slice(&a.octets());
                Self::V6(bytes, 16)
            }
        }
    }

    /// `struct prefix4` or `struct prefix6`: the length in host order, the address in network
    /// order without host bits.
    pub(crate) fn prefix(prefix: IpNet) -> Self {
        let length = u32::from(prefix.prefix_len()).to_ne_bytes();
        match prefix.network() {
            IpAddr::V4(a) => {
                let mut bytes = [0; 8];
                bytes[..4].copy_from_slice(&length);
                bytes[4..].copy_from_slice(&a.octets());
                Self::V4(bytes, 8)
            }
            IpAddr::V6(a) => {
                let mut bytes = [0; 20];
                bytes[..4].copy_from_slice(&length);
                bytes[4..].copy_from_slice(&a.octets());
                Self::V6(bytes, 20)
            }
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::V4(bytes, length) => &bytes[..*length],
            Self::V6(bytes, length) => &bytes[..*length],
        }
    }
}

/// `struct exit`.
pub(crate) fn exit(ifindex: u32, mac: [u8; 6]) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&ifindex.to_ne_bytes());
    bytes[4..10].copy_from_slice(&mac);
    bytes
}

/// A counter slot in place of a MAC address: so the programs tell a port to the reader of a TAP,
/// and the writer tells them. `PORT_TAG` of `bpf/shared.h`.
pub fn port_tag(slot: u16) -> [u8; 6] {
    let [high, low] = slot.to_be_bytes();
    [0x02, 0x70, 0x77, 0, high, low]
}

/// Whether a frame that a TAP gives is no packet: it wakes the worker, whose ring has the packet.
/// `BELL_TAG` of `bpf/shared.h`.
pub fn is_bell(mac: [u8; 6]) -> bool {
    mac == [0x02, 0x70, 0x77, 1, 0, 0]
}

/// The slot that [`port_tag`] wrote; `None` for any other MAC address.
pub fn tagged_port(mac: [u8; 6]) -> Option<u16> {
    let [0x02, 0x70, 0x77, 0, high, low] = mac else {
        return None;
    };
    Some(u16::from_be_bytes([high, low]))
}

/// `struct udp_flow`: source and destination, with their ports.
pub(crate) fn udp_flow(source: (IpAddr, u16), destination: (IpAddr, u16)) -> [u8; 36] {
    let mut bytes = [0; 36];
    for (address, at) in [(source.0, 0), (destination.0, 16)] {
        let key = Key::address(address);
        let address = key.bytes();
        bytes[at..at + address.len()].copy_from_slice(address);
    }
    bytes[32..34].copy_from_slice(&source.1.to_be_bytes());
    bytes[34..].copy_from_slice(&destination.1.to_be_bytes());
    bytes
}

/// The MTU in `struct route`.
pub(crate) fn route_mtu(bytes: &[u8]) -> u16 {
    bytes
        .first_chunk()
        .map_or(0, |mtu| u16::from_ne_bytes(*mtu))
}

/// `struct route`.
pub(crate) fn route(mtu: u16) -> [u8; 4] {
    let [a, b] = mtu.to_ne_bytes();
    [a, b, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: PortEntry = PortEntry {
        role: Role::Uplink,
        mac: [2, 0, 0, 0, 0, 9],
        slot: 7,
        xsk_base: 4090,
        queues: 6,
        mtu: 1500,
        any_source: false,
    };

    #[test]
    fn flags_are_those_of_the_program() {
        let header = include_str!("bpf/shared.h");
        for (name, flag) in [
            ("CONFIG_TRANSLATES", CONFIG_TRANSLATES),
            ("CONFIG_DEFRAGMENTS", CONFIG_DEFRAGMENTS),
        ] {
            let line = format!("#define {name} {flag:#x}\n");
            assert!(header.contains(&line), "{line}");
        }
    }

    #[test]
    fn a_port_is_laid_out_as_the_program_reads_it() {
        let bytes = PORT.encode().unwrap();
        assert_eq!(bytes[..8], [2, 0, 0, 0, 0, 9, 1, 0]);
        assert_eq!(bytes[8..12], 7u32.to_ne_bytes());
        assert_eq!(bytes[12..16], 4090u32.to_ne_bytes());
        assert_eq!(bytes[16..20], 6u32.to_ne_bytes());
        assert_eq!(bytes[20..], 1500u32.to_ne_bytes());
        for any_source in [false, true] {
            for role in [Role::Pod, Role::Uplink] {
                let port = PortEntry {
                    role,
                    any_source,
                    ..PORT
                };
                let read = PortEntry::decode(&port.encode().unwrap());
                assert_eq!(read, Some(port));
            }
        }
        assert_eq!(PortEntry::decode(&bytes[1..]), None);
    }

    #[test]
    fn a_route_is_read_as_it_is_written() {
        assert_eq!(route_mtu(&route(1450)), 1450);
        assert_eq!(route_mtu(&[]), 0);
    }

    #[test]
    fn a_port_beyond_the_maps_is_refused() {
        let slot = PortEntry {
            slot: UNKNOWN_PORT_SLOT,
            ..PORT
        }
        .encode()
        .unwrap_err();
        assert_eq!(
            slot.to_string(),
            "counter slot 1023 is out of range; the largest is 1022"
        );
        let end = PortEntry { queues: 7, ..PORT }.encode().unwrap_err();
        assert!(end.to_string().contains("4097"), "{end}");
        assert!(
            PortEntry {
                xsk_base: u32::MAX,
                queues: u32::MAX,
                ..PORT
            }
            .encode()
            .is_err()
        );
    }

    #[test]
    fn a_tag_tells_its_slot() {
        for slot in [0, 7, 1022, u16::MAX] {
            assert_eq!(tagged_port(port_tag(slot)), Some(slot));
            assert!(!is_bell(port_tag(slot)));
        }
        let bell = [0x02, 0x70, 0x77, 1, 0, 0];
        assert!(is_bell(bell));
        assert_eq!(tagged_port(bell), None);
        assert_eq!(tagged_port([0x02, 0x70, 0x77, 1, 0, 7]), None);
        assert_eq!(tagged_port([0xff; 6]), None);
    }

    #[test]
    fn keys_are_in_network_order_without_host_bits() {
        let v4 = Key::prefix("10.1.2.3/24".parse().unwrap());
        assert_eq!(v4.bytes()[..4], 24u32.to_ne_bytes());
        assert_eq!(v4.bytes()[4..], [10, 1, 2, 0]);
        let v6 = Key::prefix("2001:db8::ffff/64".parse().unwrap());
        assert_eq!(v6.bytes()[..4], 64u32.to_ne_bytes());
        assert_eq!(
            v6.bytes()[4..],
            [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            Key::address("10.1.2.3".parse().unwrap()).bytes(),
            [10, 1, 2, 3]
        );
        assert_eq!(Key::address("::1".parse().unwrap()).bytes().len(), 16);
    }
}
