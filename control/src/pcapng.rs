//! Records as a pcapng file (draft-ietf-opsawg-pcapng): the blocks that a capture needs.
//!
//! Each interface of the file is a port at one point of the packet path, so that a reader can filter by
//! either; a packet's comment says what its bytes cannot. At the end each has its statistics. Records that
//! found no room are counted for all ports together, so they are told of an interface of their own.

use std::collections::BTreeMap;
use std::io::{self, Write};

use podway_proto::watch::{WatchPoint, WatchRecord};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;

const COMMENT: u16 = 1;
const USER_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_TEXT: u16 = 3;
/// Its value is the negative power of ten that timestamps count.
const TIME_RESOLUTION: u16 = 9;
const NANOSECONDS: u8 = 9;
const PACKET_FLAGS: u16 = 2;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
const PACKETS_RECEIVED: u16 = 4;
const PACKETS_DROPPED: u16 = 5;

/// Writes records to a pcapng file as they come.
#[derive(Debug)]
pub struct PcapngWriter<W> {
    out: W,
    snap: u32,
    /// Interfaces of the file by port and point.
    interfaces: BTreeMap<(Option<String>, WatchPoint), Interface>,
}

#[derive(Debug, Clone, Copy)]
struct Interface {
    number: u32,
    packets: u64,
}

impl<W: Write> PcapngWriter<W> {
    /// Begins the file. Packets in it have up to `snap` bytes.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(out: W, snap: u32) -> io::Result<Self> {
        let mut writer = Self {
            out,
            snap,
            interfaces: BTreeMap::new(),
        };
        let mut block = Block::default();
        block.u32(BYTE_ORDER_MAGIC);
        // Version 1.0; a section of any length.
        block.u16(1);
        block.u16(0);
        block.put(&[0xff; 8]);
        let program = concat!("podway ", env!("CARGO_PKG_VERSION"));
        block.option(USER_APPLICATION, program.as_bytes());
        writer.write(SECTION_HEADER, block)?;
        Ok(writer)
    }

    /// Adds a packet, and before it its interface, if that is new.
    ///
    /// # Errors
    /// What the system says.
    pub fn add(&mut self, record: &WatchRecord) -> io::Result<()> {
        let interface = self.interface(record)?;
        let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut block = Block::default();
        block.u32(interface);
        block.time(record.time);
        block.u32(length(record.bytes.len()));
        block.u32(record.length.max(length(record.bytes.len())));
        block.put(&record.bytes);
        block.pad();
        block.option(COMMENT, comment(record).as_bytes());
        let direction = match record.point {
            WatchPoint::Ingress | WatchPoint::Decap => Some(INBOUND),
            WatchPoint::Egress => Some(OUTBOUND),
            WatchPoint::Dropped => None,
        };
        if let Some(direction) = direction {
            block.option(PACKET_FLAGS, &direction.to_le_bytes());
        }
        self.write(ENHANCED_PACKET, block)
    }

    /// Hands over what was written.
    ///
    /// # Errors
    /// What the system says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Ends the file, at `time`: how many packets each interface has, and how many records were `lost`.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(mut self, time: u64, lost: u64) -> io::Result<()> {
        let mut all: Vec<Interface> = self.interfaces.values().copied().collect();
        all.sort_by_key(|interface| interface.number);
        // Of which interface they would have been is not known: then none says that it lost nothing.
        let dropped = (lost == 0).then_some(0);
        for Interface { number, packets } in all {
            self.statistics(number, time, packets, dropped)?;
        }
        if lost > 0 {
            let number = self.next_number();
            self.describe("lost", "records of all ports that found no room")?;
            self.statistics(number, time, lost, Some(lost))?;
        }
        self.flush()
    }

    /// The number of a record's interface, which is counted there.
    fn interface(&mut self, record: &WatchRecord) -> io::Result<u32> {
        let name = record.interface().map(str::to_owned);
        let key = (name, record.point);
        if let Some(interface) = self.interfaces.get_mut(&key) {
            interface.packets += 1;
            return Ok(interface.number);
        }
        // A packet that was made here came by no port.
        self.describe(key.0.as_deref().unwrap_or("none"), record.point.name())?;
        let number = self.next_number();
        self.interfaces
            .insert(key, Interface { number, packets: 1 });
        Ok(number)
    }

    fn next_number(&self) -> u32 {
        u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX)
    }

    fn describe(&mut self, name: &str, text: &str) -> io::Result<()> {
        let mut block = Block::default();
        block.u16(LINKTYPE_ETHERNET);
        block.u16(0);
        block.u32(self.snap);
        block.option(INTERFACE_NAME, name.as_bytes());
        block.option(INTERFACE_TEXT, text.as_bytes());
        block.option(TIME_RESOLUTION, &[NANOSECONDS]);
        self.write(INTERFACE_DESCRIPTION, block)
    }

    fn statistics(
        &mut self,
        number: u32,
        time: u64,
        received: u64,
        dropped: Option<u64>,
    ) -> io::Result<()> {
        let mut block = Block::default();
        block.u32(number);
        block.time(time);
        block.option(PACKETS_RECEIVED, &received.to_le_bytes());
        if let Some(dropped) = dropped {
            block.option(PACKETS_DROPPED, &dropped.to_le_bytes());
        }
        self.write(INTERFACE_STATISTICS, block)
    }

    fn write(&mut self, kind: u32, mut block: Block) -> io::Result<()> {
        if block.has_options {
            block.u32(0);
        }
        // Type and length before it, the length behind it again.
        let length = u32::try_from(block.bytes.len() + 12).unwrap_or(u32::MAX);
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(&block.bytes)?;
        self.out.write_all(&length.to_le_bytes())
    }
}

/// What lies between the lengths of a block. Numbers are little-endian.
#[derive(Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    has_options: bool,
}

impl Block {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn u16(&mut self, number: u16) {
        self.put(&number.to_le_bytes());
    }

    fn u32(&mut self, number: u32) {
        self.put(&number.to_le_bytes());
    }

    /// Nanoseconds since 1970, the upper half first.
    fn time(&mut self, nanoseconds: u64) {
        let [a, b, c, d, low @ ..] = nanoseconds.to_be_bytes();
        self.u32(u32::from_be_bytes([a, b, c, d]));
        self.u32(u32::from_be_bytes(low));
    }

    /// To the next multiple of four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let value = value.get(..u16::MAX.into()).unwrap_or(value);
        self.has_options = true;
        self.u16(code);
        self.u16(u16::try_from(value.len()).unwrap_or(u16::MAX));
        self.put(value);
        self.pad();
    }
}

/// What a packet's bytes do not say.
fn comment(record: &WatchRecord) -> String {
    let mut text = match &record.reason {
        Some(reason) => format!("{}: {reason}", record.point),
        None => record.point.to_string(),
    };
    text += &format!(", worker {}, packet {}", record.worker, record.packet);
    if let Some(segment) = record.segment {
        text += &format!(", segments of {segment}");
    }
    let node = record.next_hop.as_ref().and_then(|to| to.node.as_deref());
    if let Some(node) = node {
        text += &format!(", to {node}");
    }
    text
}

#[cfg(test)]
mod tests {
    use podway_proto::watch::WatchNextHop;

    use super::*;

    fn record() -> WatchRecord {
        WatchRecord {
            time: 0x0102_0304_0506_0708,
            worker: 1,
            packet: 7,
            point: WatchPoint::Ingress,
            came_by: Some("veth-a".into()),
            length: 1500,
            segment: None,
            frames: 1,
            flow: None,
            vni: None,
            tunnel_from: None,
            route: None,
            next_hop: None,
            reason: None,
            bytes: vec![0xa5; 5],
        }
    }

    /// The blocks of a file: type, and what lies between the lengths.
    fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
        let number = |bytes: &[u8]| u32::from_le_bytes(*bytes.first_chunk().unwrap());
        let mut found = Vec::new();
        while !file.is_empty() {
            let length = number(&file[4..]) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(number(&file[length - 4..]) as usize, length);
            found.push((number(file), &file[8..length - 4]));
            file = &file[length..];
        }
        found
    }

    #[test]
    fn the_blocks_are_those_of_the_draft() {
        let mut file = Vec::new();
        let mut writer = PcapngWriter::new(&mut file, 96).unwrap();
        writer.add(&record()).unwrap();
        let left = WatchRecord {
            point: WatchPoint::Egress,
            next_hop: Some(WatchNextHop {
                interface: Some("eth0".into()),
                node: Some("node-b".into()),
                ..WatchNextHop::default()
            }),
            segment: Some(1398),
            ..record()
        };
        writer.add(&left).unwrap();
        writer.add(&record()).unwrap();
        let dropped = WatchRecord {
            point: WatchPoint::Dropped,
            reason: Some("no_route".into()),
            came_by: None,
            length: 3,
            ..record()
        };
        writer.add(&dropped).unwrap();
        writer.flush().unwrap();
        let blocks = blocks(&file);
        let kinds: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION_HEADER, 1, 6, 1, 6, 6, 1, 6]);
        let bytes = |parts: &[&[u8]]| parts.concat();
        let interface = bytes(&[
            &[1, 0, 0, 0, 96, 0, 0, 0, 2, 0, 6, 0],
            b"veth-a\0\0",
            &[3, 0, 7, 0],
            b"ingress\0",
            &[9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0],
        ]);
        assert_eq!(blocks[1].1, interface);
        let packet = bytes(&[
            &[
                0, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5, 5, 0, 0, 0, 0xdc, 5, 0, 0,
            ],
            &[0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0, 0, 0, 1, 0, 27, 0],
            b"ingress, worker 1, packet 7\0",
            &[2, 0, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        ]);
        assert_eq!(blocks[2].1, packet);
        let text = |n: usize| String::from_utf8_lossy(blocks[n].1).into_owned();
        let said = "egress, worker 1, packet 7, segments of 1398, to node-b";
        assert!(text(4).contains(said));
        assert_eq!((blocks[4].1[0], blocks[5].1[0], blocks[7].1[0]), (1, 0, 2));
        assert!(text(6).contains("none") && text(6).contains("dropped"));
        assert!(text(7).contains("dropped: no_route, worker 1, packet 7"));
        // Never fewer than are there.
        assert_eq!(blocks[7].1[16..20], [5, 0, 0, 0]);
    }
    /// Interface, packets received and dropped of each block of statistics.
    fn statistics(file: &[u8], time: u64) -> Vec<(u32, u64, Option<u64>)> {
        let of_kind = |kind| {
            blocks(file)
                .into_iter()
                .filter(move |block| block.0 == kind)
        };
        let [a, b, c, d, low @ ..] = time.to_be_bytes().map(u32::from);
        let high = a << 24 | b << 16 | c << 8 | d;
        let low = low[0] << 24 | low[1] << 16 | low[2] << 8 | low[3];
        let statistics = of_kind(INTERFACE_STATISTICS).map(|(_, bytes)| {
            let short = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
            let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            assert_eq!((word(4), word(8)), (high, low));
            assert_eq!((short(12), short(14)), (PACKETS_RECEIVED, 8));
            let dropped = (word(24) != 0).then(|| {
                assert_eq!((short(24), short(26)), (PACKETS_DROPPED, 8));
                long(28)
            });
            let end = if dropped.is_some() { 36 } else { 24 };
            assert_eq!((word(end), bytes.len()), (0, end + 4));
            (word(0), long(16), dropped)
        });
        statistics.collect()
    }

    #[test]
    fn the_file_ends_with_what_was_recorded_and_lost() {
        let left = WatchRecord {
            point: WatchPoint::Egress,
            ..record()
        };
        let written = |lost| {
            let mut file = Vec::new();
            let mut writer = PcapngWriter::new(&mut file, 96).unwrap();
            for record in [&left, &record(), &record()] {
                writer.add(record).unwrap();
            }
            writer.finish(0x0a0b_0c0d_0e0f_1011, lost).unwrap();
            file
        };
        let of = |file: &[u8]| statistics(file, 0x0a0b_0c0d_0e0f_1011);
        // All is known: nothing was lost anywhere.
        let whole = written(0);
        assert_eq!(of(&whole), [(0, 1, Some(0)), (1, 2, Some(0))]);
        // Nobody knows of which port those were.
        let file = written(7);
        assert_eq!(of(&file), [(0, 1, None), (1, 2, None), (2, 7, Some(7))]);
        let last = blocks(&file).into_iter().rfind(|(kind, _)| *kind == 1);
        let text = String::from_utf8_lossy(last.unwrap().1).into_owned();
        assert!(
            text.contains("lost\u{3}\0") && text.contains("of all ports"),
            "{text:?}"
        );
        let mut nothing = Vec::new();
        let writer = PcapngWriter::new(&mut nothing, 96).unwrap();
        writer.finish(1, 0).unwrap();
        assert_eq!(blocks(&nothing).len(), 1);
    }
}
