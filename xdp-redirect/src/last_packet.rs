//! The last packet of each cause to pass, to refuse and to lose, as the programs keep it
//! (`bpf/last_packet.h`).

use libbpf_rs::{MapCore, MapFlags};
use podway_proto::reasons::{PassCause, RefuseCause};

use crate::error::Error;
use crate::load::Redirect;

/// Bytes of a packet that are kept: Ethernet, IPv6, UDP, VXLAN, and in it Ethernet, IPv6 and the ports.
/// `KEPT_BYTES` of `bpf/shared.h`.
pub const KEPT_BYTES: usize = 128;

/// How often is read again what is being written. It takes nanoseconds, and happens once in a tick.
const TRIES: usize = 10;

/// The index of the last packet that found the ring of its worker full.
const RING_FULL: usize = PassCause::COUNT + RefuseCause::COUNT;

/// How many packets are kept on each CPU.
#[cfg(test)]
pub(crate) const LAST_PACKETS: usize = RING_FULL + 1;

/// A packet that a program did not forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastPacket {
    /// When: coarse CLOCK_MONOTONIC in nanoseconds.
    pub at_ns: u64,
    /// The interface that it came by.
    pub ifindex: u32,
    /// Its size in bytes, Ethernet header included.
    pub bytes: u32,
    /// Its first bytes, up to [`KEPT_BYTES`], as it came.
    pub header: Vec<u8>,
}

impl LastPacket {
    /// Size of `struct last_packet` in bytes.
    pub(crate) const SIZE: usize = 8 + 4 * 4 + KEPT_BYTES;

    /// From `struct last_packet`; `None` if there was none yet.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SIZE] = bytes.first_chunk()?;
        let (at, rest) = bytes.split_first_chunk()?;
        let (words, rest) = rest.split_first_chunk::<16>()?;
        let word = |at: usize| {
            let word = words.get(at..).and_then(|word| word.first_chunk());
            word.map_or(0, |word| u32::from_ne_bytes(*word))
        };
        let at_ns = u64::from_ne_bytes(*at);
        let header = rest.get(..word(8) as usize)?;
        (at_ns > 0).then(|| Self {
            at_ns,
            ifindex: word(0),
            bytes: word(4),
            header: header.to_vec(),
        })
    }
}

impl Redirect {
    /// The last packet that was left to the kernel for a cause: of those of one tick of the coarse clock
    /// (1 to 10 ms), the first on its CPU.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn last_passed(&self, cause: PassCause) -> Result<Option<LastPacket>, Error> {
        self.last_packet(cause as usize)
    }

    /// Likewise the last that was refused.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn last_refused(&self, cause: RefuseCause) -> Result<Option<LastPacket>, Error> {
        self.last_packet(PassCause::COUNT + cause as usize)
    }

    /// Likewise the last for which a worker's [`PacketRing`](crate::PacketRing) had no room.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn last_ring_full(&self) -> Result<Option<LastPacket>, Error> {
        self.last_packet(RING_FULL)
    }

    /// The newest over all CPUs.
    fn last_packet(&self, index: usize) -> Result<Option<LastPacket>, Error> {
        let mut before = self.copies(index)?;
        let mut tries = TRIES;
        loop {
            let again = self.copies(index)?;
            // Two copies that are equal are of one packet, unless nobody had the time to write it.
            let pairs = before.iter().zip(&again);
            let whole = pairs.filter(|(before, again)| before == again && is_quiet(again));
            let whole: Vec<_> = whole.map(|(_, again)| again).collect();
            tries -= 1;
            if whole.len() == again.len() || tries == 0 {
                let last = whole.into_iter().filter_map(|cpu| LastPacket::decode(cpu));
                return Ok(last.max_by_key(|last| last.at_ns));
            }
            before = again;
        }
    }

    /// The place of a cause on each CPU.
    fn copies(&self, index: usize) -> Result<Vec<Vec<u8>>, Error> {
        let [a, b, c, d, ..] = index.to_le_bytes();
        let key = u32::from_le_bytes([a, b, c, d]).to_ne_bytes();
        let found = self.maps.last_packets.lookup_percpu(&key, MapFlags::ANY);
        let found = found.map_err(|source| Error::Map {
            map: "last_packets",
            action: "read",
            key: format!("entry {index}"),
            source,
        })?;
        Ok(found.unwrap_or_default())
    }
}

/// Whether nobody writes there: it has a time, or was never written.
fn is_quiet(cpu: &[u8]) -> bool {
    cpu.first_chunk() != Some(&[0; 8]) || cpu.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(at_ns: u64, ifindex: u32, length: u32, kept: u32, header: &[u8]) -> Vec<u8> {
        let mut bytes = at_ns.to_ne_bytes().to_vec();
        for word in [ifindex, length, kept, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(header);
        bytes.resize(LastPacket::SIZE, 0xee);
        bytes
    }

    #[test]
    fn a_packet_is_read_as_the_program_writes_it() {
        let header: Vec<_> = (0..128).collect();
        let read = LastPacket::decode(&bytes(7, 3, 1500, 128, &header)).unwrap();
        let told = LastPacket {
            at_ns: 7,
            ifindex: 3,
            bytes: 1500,
            header: header.clone(),
        };
        assert_eq!(read, told);
        let short = LastPacket::decode(&bytes(7, 3, 60, 60, &header)).unwrap();
        assert_eq!((short.bytes, &*short.header), (60, &header[..60]));
        assert_eq!(LastPacket::decode(&bytes(0, 3, 60, 60, &header)), None);
        assert_eq!(LastPacket::decode(&bytes(7, 3, 60, 129, &header)), None);
        assert_eq!(LastPacket::decode(&[]), None);
    }

    #[test]
    fn what_is_being_written_is_told_from_what_never_was() {
        assert!(is_quiet(&[0; LastPacket::SIZE]));
        assert!(is_quiet(&bytes(1, 3, 60, 60, &[])));
        assert!(!is_quiet(&bytes(0, 3, 60, 60, &[])));
    }

    #[test]
    fn as_much_is_kept_as_the_program_keeps() {
        let header = include_str!("bpf/shared.h");
        assert!(header.contains(&format!("#define KEPT_BYTES {KEPT_BYTES}\n")));
    }
}
