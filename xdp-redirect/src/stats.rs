//! Counters of the program. Their causes are `podway_proto::reasons`, the Rust half of those in
//! `bpf/shared.h`.

use std::net::IpAddr;
use std::ops::AddAssign;

use podway_proto::reasons::{PassCause, RefuseCause};

/// What the program counted for one slot, summed over CPUs. A super-frame counts one, unless it is so
/// large that the kernel cuts it on its way to a TAP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortStats {
    /// Packets for a worker. A socket may still lose them for want of a posted frame or of room in
    /// its rx ring, as its own statistics tell, a TAP for want of room in its queue.
    pub redirected: u64,
    /// Those of them for which the worker's [`PacketRing`](crate::PacketRing) had no room.
    pub ring_full: u64,
    /// Packets left to the kernel, indexed by [`PassCause`].
    pub passed: [u64; PassCause::COUNT],
    /// Packets that nobody has, indexed by [`RefuseCause`].
    pub refused: [u64; RefuseCause::COUNT],
}

impl Default for PortStats {
    fn default() -> Self {
        Self {
            redirected: 0,
            ring_full: 0,
            passed: [0; PassCause::COUNT],
            refused: [0; RefuseCause::COUNT],
        }
    }
}

impl PortStats {
    /// Size of `struct port_counters` in bytes.
    pub(crate) const SIZE: usize = 8 * (2 + PassCause::COUNT + RefuseCause::COUNT);

    /// Packets passed for one cause.
    pub fn passed_for(&self, cause: PassCause) -> u64 {
        self.passed[cause as usize]
    }

    /// Each cause with its count, zeroes included.
    pub fn passed_by_cause(&self) -> impl Iterator<Item = (PassCause, u64)> + '_ {
        PassCause::ALL.iter().copied().zip(self.passed)
    }

    /// Packets refused for one cause.
    pub fn refused_for(&self, cause: RefuseCause) -> u64 {
        self.refused[cause as usize]
    }

    /// Each cause to refuse with its count, zeroes included.
    pub fn refused_by_cause(&self) -> impl Iterator<Item = (RefuseCause, u64)> + '_ {
        RefuseCause::ALL.iter().copied().zip(self.refused)
    }

    /// Adds one CPU's `struct port_counters`; bytes beyond it are ignored.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let mut words = bytes
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("chunks of eight bytes")));
        let sums = [&mut self.redirected, &mut self.ring_full]
            .into_iter()
            .chain(&mut self.passed)
            .chain(&mut self.refused);
        for sum in sums {
            // Wrapping as the program's own counters do, after centuries.
            *sum = sum.wrapping_add(words.next().unwrap_or(0));
        }
    }
}

impl AddAssign for PortStats {
    fn add_assign(&mut self, other: Self) {
        self.redirected += other.redirected;
        self.ring_full += other.ring_full;
        for (sum, count) in self.passed.iter_mut().zip(other.passed) {
            *sum += count;
        }
        for (sum, count) in self.refused.iter_mut().zip(other.refused) {
            *sum += count;
        }
    }
}

/// A packet that was left to the kernel because its route carries less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oversize {
    /// Its source; in a tunnel that of the packet inside, as all of this.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Bytes of the IP packet.
    pub length: u32,
    /// Bytes that the route carries.
    pub mtu: u16,
}

impl Oversize {
    /// Size of `struct oversize` in bytes.
    pub(crate) const SIZE: usize = 48;

    /// When it came, and what it was; `None` if there was none yet.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(u64, Self)> {
        let bytes: &[u8; Self::SIZE] = bytes.first_chunk()?;
        let (at, rest) = bytes.split_first_chunk::<8>()?;
        let (source, rest) = rest.split_first_chunk::<16>()?;
        let (destination, rest) = rest.split_first_chunk::<16>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let &[a, b, c, d] = rest else {
            return None;
        };
        let version = u16::from_ne_bytes([c, d]);
        let address = |bytes: &[u8; 16]| match version {
            6 => IpAddr::from(*bytes),
            _ => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
        };
        let at = u64::from_ne_bytes(*at);
        let packet = Self {
            source: address(source),
            destination: address(destination),
            length: u32::from_ne_bytes(*length),
            mtu: u16::from_ne_bytes([a, b]),
        };
        (at > 0).then_some((at, packet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entries of the list in the header: symbol, name, help.
    fn header_causes(list: &str) -> Vec<[String; 3]> {
        let header = include_str!("bpf/shared.h");
        let list = header.split(list).nth(1).unwrap();
        let list = list.split("\n\n").next().unwrap();
        list.split("X(")
            .skip(1)
            .map(|entry| {
                let (symbol, rest) = entry.split_once(", \"").unwrap();
                let (name, rest) = rest.split_once("\", \"").unwrap();
                let (help, _) = rest.split_once("\")").unwrap();
                [symbol, name, help].map(str::to_owned)
            })
            .collect()
    }

    #[test]
    fn both_sides_have_the_same_causes_in_the_same_order() {
        let here: Vec<_> = PassCause::ALL
            .iter()
            .map(|cause| {
                [
                    cause.name().to_uppercase(),
                    cause.name().to_owned(),
                    cause.meaning().to_owned(),
                ]
            })
            .collect();
        assert_eq!(here, header_causes("#define PASS_CAUSES(X)"));
        let refused: Vec<_> = RefuseCause::ALL
            .iter()
            .map(|cause| {
                [
                    cause.name().to_uppercase(),
                    cause.name().to_owned(),
                    cause.meaning().to_owned(),
                ]
            })
            .collect();
        assert_eq!(refused, header_causes("#define REFUSE_CAUSES(X)"));
    }

    #[test]
    fn counters_of_cpus_add_up() {
        let mut bytes = Vec::new();
        for word in 1..=2 + (PassCause::COUNT + RefuseCause::COUNT) as u64 {
            bytes.extend(word.to_ne_bytes());
        }
        assert_eq!(bytes.len(), PortStats::SIZE);
        let mut stats = PortStats::default();
        stats.add(&bytes);
        stats.add(&bytes);
        assert_eq!((stats.redirected, stats.ring_full), (2, 4));
        assert_eq!(stats.passed_for(PassCause::GateClosed), 6);
        assert_eq!(
            stats.passed_for(PassCause::Translated),
            2 * (2 + PassCause::COUNT as u64)
        );
        assert_eq!(stats.passed_by_cause().count(), PassCause::COUNT);
        assert_eq!(
            stats.refused_for(RefuseCause::OwnSource),
            2 * (2 + PassCause::COUNT + RefuseCause::COUNT) as u64
        );
        assert_eq!(stats.refused_by_cause().count(), RefuseCause::COUNT);
        let mut slots = stats;
        slots += stats;
        stats.add(&bytes);
        stats.add(&bytes);
        assert_eq!(slots, stats, "and so do those of slots");
    }
}
