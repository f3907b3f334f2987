//! Which chunks a queue has given to the kernel.
//!
//! A frame that goes to a ring becomes a mark here, and only a mark becomes a frame again. So the
//! kernel cannot make a second token of a chunk by naming it twice, nor one of a chunk that it
//! never had (generic mode has repeated completions in the past), and at the end the marks say
//! which frames never came back.

use super::umem::{CHUNK_SIZE, Frame, Region};

/// One bit per chunk of the region, set while the kernel has the chunk.
#[derive(Debug)]
pub(super) struct Ledger {
    words: Vec<u64>,
    chunks: u32,
    marked: usize,
}

impl Ledger {
    /// A ledger for the chunks of `region`, none of them marked.
    pub(super) fn new(region: &Region) -> Self {
        let chunks = region.chunks();
        Self {
            words: vec![0; (chunks as usize).div_ceil(64)],
            chunks,
            marked: 0,
        }
    }

    /// Chunks that the kernel has.
    #[inline]
    pub(super) fn marked(&self) -> usize {
        self.marked
    }

    /// Whether [`Ledger::give`] would take the frame: its chunk is of this region and not marked.
    #[inline]
    pub(super) fn accepts(&self, frame: &Frame) -> bool {
        let chunk = frame.chunk();
        let word = self.words.get(chunk as usize / 64);
        chunk < self.chunks && word.is_some_and(|word| word & (1 << (chunk % 64)) == 0)
    }

    /// Takes the frame's token; the result is the address of its data, as rings name it. Gives the
    /// frame back when [`Ledger::accepts`] says no.
    #[inline]
    pub(super) fn give(&mut self, frame: Frame) -> Result<u64, Frame> {
        let chunk = frame.chunk();
        if !self.accepts(&frame) {
            return Err(frame);
        }
        if let Some(word) = self.words.get_mut(chunk as usize / 64) {
            *word |= 1 << (chunk % 64);
            self.marked += 1;
        }
        Ok(u64::from(chunk) * CHUNK_SIZE as u64 + frame.headroom() as u64)
    }

    /// Makes the frame again whose chunk has `address`, with `len` bytes of data from there on.
    /// `None`, and the mark stays, when the kernel does not have that chunk or the data would go
    /// beyond it.
    #[inline]
    pub(super) fn take(&mut self, address: u64, len: u32) -> Option<Frame> {
        let chunk = u32::try_from(address / CHUNK_SIZE as u64).ok()?;
        let start = usize::try_from(address % CHUNK_SIZE as u64).ok()?;
        let len = usize::try_from(len).ok()?;
        if start + len > CHUNK_SIZE {
            return None;
        }
        let word = self.words.get_mut(chunk as usize / 64)?;
        let bit = 1 << (chunk % 64);
        if *word & bit == 0 {
            return None;
        }
        *word &= !bit;
        self.marked -= 1;
        // SAFETY: the mark says that `give` has consumed this chunk's token, and the mark is gone.
        let mut frame = unsafe { Frame::remake(chunk) };
        frame.set_data(start, len);
        Some(frame)
    }

    /// Makes all marked frames again.
    pub(super) fn drain(mut self) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(self.marked);
        for chunk in 0..self.chunks {
            frames.extend(self.take(u64::from(chunk) * CHUNK_SIZE as u64, 0));
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_comes_back_and_once() {
        let (region, mut frames) = Region::new(70).unwrap();
        let mut ledger = Ledger::new(&region);
        let mut frame = frames.remove(66);
        assert!(frame.set_data(256, 9));
        assert_eq!(ledger.give(frame).unwrap(), 66 * 4096 + 256);
        assert_eq!(ledger.marked(), 1);

        let refused = [
            (65 * 4096, 0),        // never given
            (70 * 4096, 0),        // beyond the region
            (u64::MAX, 0),         // beyond any region
            (66 * 4096 + 1, 4096), // data beyond the chunk
            (66 * 4096, u32::MAX),
        ];
        for (address, len) in refused {
            assert!(ledger.take(address, len).is_none(), "{address} {len}");
        }
        let frame = ledger.take(66 * 4096 + 300, 100).unwrap();
        assert_eq!(
            (frame.chunk(), frame.headroom(), frame.len()),
            (66, 300, 100)
        );
        assert!(ledger.take(66 * 4096 + 300, 100).is_none());
        assert_eq!(ledger.marked(), 0);
    }

    #[test]
    fn a_frame_of_a_larger_region_is_not_taken() {
        let (region, _) = Region::new(65).unwrap();
        let (_other, mut frames) = Region::new(66).unwrap();
        let mut ledger = Ledger::new(&region);
        let frame = ledger.give(frames.remove(65)).unwrap_err();
        assert_eq!(frame.chunk(), 65);
        assert_eq!(ledger.marked(), 0);
    }

    #[test]
    fn what_never_came_back_is_made_again_at_the_end() {
        let (region, frames) = Region::new(130).unwrap();
        let mut ledger = Ledger::new(&region);
        for frame in frames {
            ledger.give(frame).unwrap();
        }
        assert!(ledger.take(64 * 4096, 0).is_some());
        let mut chunks: Vec<_> = ledger.drain().iter().map(Frame::chunk).collect();
        chunks.sort_unstable();
        let expected: Vec<_> = (0..130).filter(|&chunk| chunk != 64).collect();
        assert_eq!(chunks, expected);
    }
}
