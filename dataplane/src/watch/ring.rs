//! How records get from a worker to the API thread: two rings of one writer and one reader each, made
//! before the watch begins. A record's bytes are written first, so that who finds its facts finds them.
//!
//! When either is full the record is lost and counted; the worker never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rtrb::{Consumer, Producer, RingBuffer};

use super::Note;

/// Records of a ring.
const NOTES: usize = 4096;
/// Bytes of the packets in them at most. Each worker has as much for each watch.
const MOST_BYTES: usize = 4 << 20;

/// The worker's end.
#[derive(Debug)]
pub struct Writer {
    notes: Producer<Note>,
    bytes: Producer<u8>,
    lost: Arc<AtomicU64>,
}

/// The API thread's end.
#[derive(Debug)]
pub struct Reader {
    notes: Consumer<Note>,
    bytes: Consumer<u8>,
    lost: Arc<AtomicU64>,
}

/// Both ends of a ring for records that keep up to `snap` bytes of their packets. Touches all of its
/// memory, so that the kernel has none to find while packets pass.
pub fn ring(snap: usize) -> (Writer, Reader) {
    let room = NOTES.saturating_mul(snap).min(MOST_BYTES).max(snap);
    let (mut notes, mut notes_out) = RingBuffer::new(NOTES);
    while notes.push(Note::default()).is_ok() {}
    while notes_out.pop().is_ok() {}
    let (mut bytes, mut bytes_out) = RingBuffer::new(room);
    if let Ok(all) = bytes.write_chunk(room) {
        all.commit_all();
    }
    if let Ok(all) = bytes_out.read_chunk(room) {
        all.commit_all();
    }
    let lost = Arc::new(AtomicU64::new(0));
    let writer = Writer {
        notes,
        bytes,
        lost: Arc::clone(&lost),
    };
    let reader = Reader {
        notes: notes_out,
        bytes: bytes_out,
        lost,
    };
    (writer, reader)
}

impl Writer {
    /// Writes a record with the first `most` bytes of `parts`, or counts it as lost.
    pub fn write<'p>(
        &mut self,
        mut note: Note,
        most: usize,
        mut parts: impl Iterator<Item = &'p [u8]>,
    ) {
        let full = self.notes.is_full();
        let chunk = self.bytes.write_chunk(most).ok().filter(|_| !full);
        let Some(mut chunk) = chunk else {
            // There is no other writer.
            self.lost
                .store(self.lost.load(Relaxed).wrapping_add(1), Relaxed);
            return;
        };
        let (first, second) = chunk.as_mut_slices();
        let mut part: &[u8] = &[];
        let mut kept = 0;
        for mut room in [first, second] {
            while !room.is_empty() {
                if part.is_empty() {
                    match parts.next() {
                        Some(next) => part = next,
                        None => break,
                    }
                }
                let count = part.len().min(room.len());
                let (now, later) = part.split_at(count);
                let (into, rest) = std::mem::take(&mut room).split_at_mut(count);
                into.copy_from_slice(now);
                (part, room) = (later, rest);
                kept += count;
            }
        }
        chunk.commit(kept);
        note.kept = u32::try_from(kept).unwrap_or(u32::MAX);
        // There is room: it was looked at, and only this end fills it.
        let _ = self.notes.push(note);
    }
}

impl Reader {
    /// The next record with its bytes.
    pub fn read(&mut self) -> Option<(Note, Vec<u8>)> {
        let note = self.notes.pop().ok()?;
        let mut bytes = vec![0; note.kept as usize];
        // They were written before.
        let _ = self.bytes.pop_entire_slice(&mut bytes);
        Some((note, bytes))
    }

    /// Records that found no room since the beginning.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(packet: u64) -> Note {
        Note {
            packet,
            ..Note::default()
        }
    }

    /// A byte that differs from packet to packet.
    fn byte(n: u64) -> u8 {
        n.to_le_bytes()[0]
    }

    /// What packet `n` says, in parts of odd sizes.
    fn said(n: u64) -> Vec<u8> {
        (0..n % 97).map(|at| byte(n * 31 + at)).collect()
    }

    #[test]
    fn records_come_out_as_they_went_in() {
        let (mut writer, mut reader) = ring(64);
        for n in 0..20_000 {
            let bytes = said(n);
            writer.write(note(n), 64, bytes.chunks(7));
            let (found, kept) = reader.read().unwrap();
            assert_eq!(found.packet, n);
            assert_eq!(kept, bytes[..bytes.len().min(64)]);
        }
        assert_eq!((reader.lost(), reader.read()), (0, None));
    }

    #[test]
    fn a_full_ring_loses_what_comes_and_keeps_what_is_there() {
        let (mut writer, mut reader) = ring(16);
        let many = NOTES as u64 + 5;
        (0..many).for_each(|n| writer.write(note(n), 16, [&[byte(n); 16][..]].into_iter()));
        assert_eq!(reader.lost(), 5);
        for n in 0..NOTES as u64 {
            assert_eq!(reader.read(), Some((note_of(n, 16), vec![byte(n); 16])));
        }
        assert_eq!(reader.read(), None);
        // One record may fill all of the bytes.
        let (mut writer, mut reader) = ring(MOST_BYTES);
        let all = vec![7; MOST_BYTES];
        writer.write(note(1), MOST_BYTES, [&all[..]].into_iter());
        writer.write(note(2), 1, [&all[..]].into_iter());
        writer.write(note(3), 0, [&all[..]].into_iter());
        assert_eq!(reader.lost(), 1);
        assert!(reader.read().unwrap().1 == all);
        assert_eq!(reader.read(), Some((note(3), Vec::new())));
    }

    fn note_of(packet: u64, kept: u32) -> Note {
        Note {
            kept,
            ..note(packet)
        }
    }

    #[test]
    fn no_reader_sees_parts_of_two_records() {
        let (mut writer, mut reader) = ring(96);
        let written = 200_000;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..written).for_each(|n| {
                    writer.write(note(n), 96, said(n).chunks(13));
                })
            });
            let (mut seen, mut last) = (0, None);
            while seen + reader.lost() < written {
                let Some((found, kept)) = reader.read() else {
                    continue;
                };
                assert!(last < Some(found.packet));
                assert_eq!(kept, said(found.packet));
                last = Some(found.packet);
                seen += 1;
            }
        });
    }
}
