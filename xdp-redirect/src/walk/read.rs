#![allow(
    unsafe_code,
    reason = "BPF_PROG_RUN and a clock have no safe interface here"
)]
//! What the rules read: headers of the frame, and the maps.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use libbpf_rs::{MapCore, MapFlags, MapHandle, libbpf_sys};
use podway_proto::reasons::PassCause;

use super::ETHERNET;
use crate::error::Error;
use crate::layout::{Key, PortEntry, route_mtu, udp_flow};
use crate::load::Redirect;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
/// The more-fragments bit and the offset.
const FRAGMENT: u16 = 0x3fff;

/// `struct ip` of `bpf/rules.h`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ip {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// Offset of its Ethernet header.
    pub(super) ethernet: usize,
    /// Offset of the first byte behind the header.
    pub(super) payload: usize,
    pub(super) length: usize,
    pub(super) available: usize,
    pub(super) super_frame: bool,
    pub(super) fragment: bool,
    pub(super) protocol: u8,
    pub(super) hops: u8,
}

/// Two bytes in network order.
pub(super) fn number(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = *bytes.get(at..)?.first_chunk()?;
    Some(Ipv4Addr::from(octets).into())
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = *bytes.get(at..)?.first_chunk()?;
    Some(Ipv6Addr::from(octets).into())
}

impl Ip {
    /// The header behind the EtherType at offset `at`.
    pub(super) fn read(frame: &[u8], at: usize) -> Result<Self, PassCause> {
        let start = at + 2;
        let bytes = frame.get(start..).unwrap_or_default();
        match number(frame, at) {
            IPV4 => Self::read_v4(bytes, start),
            IPV6 => Self::read_v6(bytes, start).ok_or(PassCause::Malformed),
            _ => Err(PassCause::NotIp),
        }
    }

    fn read_v4(bytes: &[u8], start: usize) -> Result<Self, PassCause> {
        let header: &[u8; 20] = bytes.first_chunk().ok_or(PassCause::Malformed)?;
        match header[0] {
            0x45 => {}
            0x46..=0x4f => return Err(PassCause::Options),
            _ => return Err(PassCause::Malformed),
        }
        let (Some(source), Some(destination)) = (v4(header, 12), v4(header, 16)) else {
            return Err(PassCause::Malformed);
        };
        Ok(Self {
            source,
            destination,
            ethernet: start - ETHERNET,
            payload: start + 20,
            length: number(header, 2).into(),
            available: 0,
            super_frame: false,
            fragment: number(header, 6) & FRAGMENT != 0,
            protocol: header[9],
            hops: header[8],
        })
    }

    fn read_v6(bytes: &[u8], start: usize) -> Option<Self> {
        let header: &[u8; 40] = bytes.first_chunk()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        Some(Self {
            source: v6(header, 8)?,
            destination: v6(header, 24)?,
            ethernet: start - ETHERNET,
            payload: start + 40,
            length: 40 + usize::from(number(header, 4)),
            available: 0,
            super_frame: false,
            fragment: false,
            protocol: header[6],
            hops: header[7],
        })
    }
}

/// Where an address is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Routed,
    Multicast,
    Link,
}

pub(super) fn scope(address: IpAddr) -> Scope {
    match address {
        IpAddr::V4(v4) => match v4.octets() {
            [224..=255, ..] => Scope::Multicast,
            [0 | 127, ..] | [169, 254, ..] => Scope::Link,
            _ => Scope::Routed,
        },
        IpAddr::V6(v6) => match v6.octets() {
            [0xff, ..] => Scope::Multicast,
            [0xfe, 0x80..=0xbf, ..] => Scope::Link,
            _ if v6.to_bits() <= 1 => Scope::Link,
            _ => Scope::Routed,
        },
    }
}

/// Who sends, by the frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sender {
    pub(super) address: IpAddr,
    /// Whether anybody may send so, on the pod's own link.
    pub(super) is_free: bool,
}

/// `None` where it is too short to tell, or no IP nor ARP.
pub(super) fn sender(frame: &[u8]) -> Option<Sender> {
    let header = frame.get(ETHERNET..)?;
    match number(frame, 12) {
        IPV6 => {
            let header: &[u8; 40] = header.first_chunk()?;
            let (source, destination) = (v6(header, 8)?, v6(header, 24)?);
            let is_free = scope(source) == Scope::Link && scope(destination) != Scope::Routed;
            let address = source;
            (header[0] >> 4 == 6).then_some(Sender { address, is_free })
        }
        IPV4 => {
            let header: &[u8; 20] = header.first_chunk()?;
            let (source, destination) = (v4(header, 12)?, v4(header, 16)?);
            let is_free = source.is_unspecified() && destination == Ipv4Addr::BROADCAST;
            let address = source;
            (header[0] >> 4 == 4).then_some(Sender { address, is_free })
        }
        ARP => {
            let arp: &[u8; 28] = header.first_chunk()?;
            let address = v4(arp, 14)?;
            let is_free = address.is_unspecified();
            Some(Sender { address, is_free })
        }
        _ => None,
    }
}

/// The UDP header at an offset, if it is whole.
pub(super) fn udp_header(frame: &[u8], at: usize) -> Option<[u8; 8]> {
    frame.get(at..)?.first_chunk().copied()
}

/// `bpf_ktime_get_coarse_ns()`.
pub(super) fn coarse_now() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is valid for writes. The clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// What `podway_ask` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// What is against the packet's connection.
    pub(super) cause: Option<PassCause>,
    /// Whether there is a socket.
    pub(super) socket: bool,
}

/// `ANSWER_OURS` and `ANSWER_SOCKET` of `bpf/shared.h`.
const ANSWER_OURS: u32 = 0xff;
const ANSWER_SOCKET: u32 = 0x100;
/// Position of the mark among the 32-bit words of `struct __sk_buff` (linux/bpf.h).
const SKB_MARK: usize = 2;
/// What `podway_ask` reads at most: Ethernet, IPv6 and ports.
const ASKED: usize = 14 + 40 + 4;

impl Redirect {
    /// Asks about the connection of a frame without a tunnel, and about the socket at an index.
    pub(super) fn ask(&self, frame: &[u8], socket: u32) -> Result<Answer, Error> {
        let packet = frame.get(..ASKED).unwrap_or(frame);
        let mut context = [0_u32; SKB_MARK + 1];
        context[SKB_MARK] = socket;
        let mut options = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
            data_in: packet.as_ptr().cast(),
            data_size_in: u32::try_from(packet.len()).unwrap_or(0),
            ctx_in: context.as_ptr().cast(),
            ctx_size_in: u32::try_from(size_of_val(&context)).unwrap_or(0),
            repeat: 1,
            ..Default::default()
        };
        // SAFETY: packet and context are valid for the sizes given, and `options` says how large it is.
        let failed =
            unsafe { libbpf_sys::bpf_prog_test_run_opts(self.ask.as_raw_fd(), &raw mut options) };
        if failed != 0 {
            return Err(Error::Ask(io::Error::from_raw_os_error(-failed)));
        }
        let cause = options.retval & ANSWER_OURS;
        Ok(Answer {
            cause: PassCause::ALL.get(cause as usize).copied(),
            socket: options.retval & ANSWER_SOCKET != 0,
        })
    }

    pub(super) fn read_port(&self, ifindex: u32) -> Result<Option<PortEntry>, Error> {
        let found = get(&self.maps.ports, "ports", &ifindex.to_ne_bytes())?;
        Ok(found.and_then(|bytes| PortEntry::decode(&bytes)))
    }

    pub(super) fn is_local(&self, address: IpAddr) -> Result<bool, Error> {
        let (map, name) = match address {
            IpAddr::V4(_) => (&self.maps.local4, "local4"),
            IpAddr::V6(_) => (&self.maps.local6, "local6"),
        };
        Ok(get(map, name, Key::address(address).bytes())?.is_some())
    }

    /// Index of the interface of the pod that has an address.
    pub(super) fn pod_of(&self, address: IpAddr) -> Result<Option<u32>, Error> {
        let (map, name) = match address {
            IpAddr::V4(_) => (&self.maps.pods4, "pods4"),
            IpAddr::V6(_) => (&self.maps.pods6, "pods6"),
        };
        word(map, name, Key::address(address).bytes())
    }

    /// The MTU of the longest prefix; 0 when it is unresolved.
    pub(super) fn route_to(&self, address: IpAddr) -> Result<Option<u16>, Error> {
        let (map, name) = match address {
            IpAddr::V4(_) => (&self.maps.prefixes4, "prefixes4"),
            IpAddr::V6(_) => (&self.maps.prefixes6, "prefixes6"),
        };
        let found = get(map, name, Key::prefix(address.into()).bytes())?;
        Ok(found.map(|bytes| route_mtu(&bytes)))
    }

    pub(super) fn has_vni(&self, vni: u32) -> Result<bool, Error> {
        Ok(get(&self.maps.vnis, "vnis", &vni.to_ne_bytes())?.is_some())
    }

    pub(super) fn queue_worker(&self, index: u32) -> Result<Option<u32>, Error> {
        word(
            &self.maps.queue_workers,
            "queue_workers",
            &index.to_ne_bytes(),
        )
    }

    pub(super) fn beaten_at(&self, worker: u32) -> Option<u64> {
        let memory = self.heartbeats.entries().get(worker as usize)?;
        memory.beaten_at()
    }

    pub(super) fn has_tap(&self, worker: u32) -> Result<bool, Error> {
        let tap = word(&self.maps.taps, "taps", &worker.to_ne_bytes())?;
        Ok(tap.is_some_and(|ifindex| ifindex != 0))
    }

    pub(super) fn has_ring(&self, worker: u32) -> Result<bool, Error> {
        Ok(word(&self.maps.rings, "rings", &worker.to_ne_bytes())?.is_some())
    }

    /// When a flow of UDP has last sent what is too large for the workers.
    pub(super) fn oversize_flow(
        &self,
        source: (IpAddr, u16),
        destination: (IpAddr, u16),
    ) -> Result<Option<u64>, Error> {
        let key = udp_flow(source, destination);
        let found = get(&self.maps.oversize_flows, "oversize_flows", &key)?;
        let at = found.and_then(|bytes| bytes.first_chunk().copied());
        Ok(at.map(u64::from_ne_bytes))
    }
}

fn get(map: &MapHandle, name: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    map.lookup(key, MapFlags::ANY).map_err(|source| Error::Map {
        map: name,
        action: "read",
        key: "an entry".to_owned(),
        source,
    })
}

fn word(map: &MapHandle, name: &'static str, key: &[u8]) -> Result<Option<u32>, Error> {
    let found = get(map, name, key)?;
    Ok(found
        .and_then(|bytes| bytes.first_chunk().copied())
        .map(u32::from_ne_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        for (address, expected) in [
            ("10.0.0.1", Scope::Routed),
            ("223.255.255.255", Scope::Routed),
            ("224.0.0.1", Scope::Multicast),
            ("255.255.255.255", Scope::Multicast),
            ("0.1.2.3", Scope::Link),
            ("127.0.0.1", Scope::Link),
            ("169.254.1.1", Scope::Link),
            ("169.253.1.1", Scope::Routed),
            ("ff02::1", Scope::Multicast),
            ("fe80::1", Scope::Link),
            ("febf::1", Scope::Link),
            ("fec0::1", Scope::Routed),
            ("::", Scope::Link),
            ("::1", Scope::Link),
            ("::2", Scope::Routed),
        ] {
            assert_eq!(scope(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn answers_are_those_of_the_header() {
        let header = include_str!("../bpf/shared.h");
        assert!(header.contains(&format!("#define ANSWER_OURS {ANSWER_OURS:#x}\n")));
        assert!(header.contains(&format!("#define ANSWER_SOCKET {ANSWER_SOCKET:#x}\n")));
        assert!(PassCause::COUNT < ANSWER_OURS as usize);
    }
}
