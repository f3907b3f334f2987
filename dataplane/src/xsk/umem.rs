//! The memory region, its frames and the pools that hold them.
//!
//! One mapping serves the whole process. It is divided into chunks of [`CHUNK_SIZE`] bytes, and
//! each chunk has exactly one [`Frame`], made once when the region is made. Whoever holds the
//! token may read and write the chunk; that is what makes the accessors below sound without a
//! lock, also across threads.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::egress::Piece;

/// Bytes of a chunk: one page, the unit that AF_XDP's aligned mode demands.
pub const CHUNK_SIZE: usize = 4096;

/// The mapping that frames live in.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    chunks: u32,
}

// SAFETY: the mapping is plain memory that lives until the last `Arc<Region>` is dropped; bytes
// are reached only through a `Frame`, of which each chunk has one.
unsafe impl Send for Region {}
// SAFETY: as above; a shared `Region` gives access to a chunk only to the holder of its token.
unsafe impl Sync for Region {}

impl Region {
    /// Maps memory for `chunks` frames and makes their tokens.
    ///
    /// # Errors
    /// What `mmap` says; `InvalidInput` for no chunk at all or 4 GiB and more.
    pub fn new(chunks: u32) -> io::Result<(Arc<Self>, Vec<Frame>)> {
        let length = usize::try_from(chunks)
            .ok()
            .and_then(|n| n.checked_mul(CHUNK_SIZE));
        let Some(length) = length.filter(|&n| n > 0 && u32::try_from(n).is_ok()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a region has 1 chunk to 4 GiB",
            ));
        };
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no
        // memory that anybody else has.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Huge pages where the machine has some: each copy looks fewer addresses up. Without them,
        // or where an operator has switched them off, the region is of small ones.
        // SAFETY: the range is the mapping above; the advice changes nothing in its bytes.
        unsafe { libc::madvise(address, length, libc::MADV_HUGEPAGE) };
        let base = NonNull::new(address.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        let frames = (0..chunks)
            .map(|chunk| Frame {
                chunk,
                start: 0,
                len: 0,
            })
            .collect();
        Ok((Arc::new(Self { base, chunks }), frames))
    }

    /// Length of the mapping in bytes.
    pub fn len(&self) -> usize {
        self.chunks as usize * CHUNK_SIZE
    }

    /// Never: a region has at least one chunk.
    pub fn is_empty(&self) -> bool {
        self.chunks == 0
    }

    /// Number of chunks.
    pub(super) fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Start of the mapping, for registration and for system calls that read from it.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The bytes of `frame` that hold data.
    #[inline]
    pub fn bytes(&self, frame: &Frame) -> &[u8] {
        // SAFETY: `slot` lies inside the mapping (checked there), and the borrow of the chunk's
        // only token keeps writers away.
        unsafe { std::slice::from_raw_parts(self.slot(frame), frame.len.into()) }
    }

    /// The bytes of `frame` that hold data, to be changed.
    #[inline]
    pub fn bytes_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        // SAFETY: `slot` lies inside the mapping (checked there), and the exclusive borrow of the
        // chunk's only token keeps everybody else away.
        unsafe { std::slice::from_raw_parts_mut(self.slot(frame), frame.len.into()) }
    }

    #[inline]
    fn slot(&self, frame: &Frame) -> *mut u8 {
        assert!(frame.chunk < self.chunks, "a frame of another region");
        let offset = frame.chunk as usize * CHUNK_SIZE + usize::from(frame.start);
        // SAFETY: the chunk is one of ours, and a frame keeps `start + len <= CHUNK_SIZE`.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and with the last reference
        // nobody can reach it any more. A kernel that still has it registered holds its pages.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len()) };
    }
}

/// The one token of a chunk: neither copied nor cloned, given up to a ring and got back from it.
///
/// `start` and `len` say where its data lies, so that a header is pushed or pulled by moving
/// `start`.
#[derive(Debug)]
pub struct Frame {
    chunk: u32,
    start: u16,
    len: u16,
}

impl Frame {
    /// Length of the data in bytes.
    #[inline]
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty frame is no special case"
    )]
    pub fn len(&self) -> usize {
        self.len.into()
    }

    /// Bytes free in front of the data.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.start.into()
    }

    /// Places the data: `len` bytes from `start`. False, and nothing changes, when that would go
    /// beyond the chunk.
    #[inline]
    pub fn set_data(&mut self, start: usize, len: usize) -> bool {
        let fits = start.checked_add(len).is_some_and(|end| end <= CHUNK_SIZE);
        if let (true, Ok(start), Ok(len)) = (fits, u16::try_from(start), u16::try_from(len)) {
            (self.start, self.len) = (start, len);
        }
        fits
    }

    /// Moves the start `count` bytes to the front; false, and nothing changes, when the headroom
    /// is too small.
    #[inline]
    pub fn push_front(&mut self, count: usize) -> bool {
        match self.headroom().checked_sub(count) {
            Some(start) => self.set_data(start, self.len() + count),
            None => false,
        }
    }

    /// Takes `count` bytes off the front; false, and nothing changes, when there are fewer.
    #[inline]
    pub fn pull_front(&mut self, count: usize) -> bool {
        match self.len().checked_sub(count) {
            Some(len) => self.set_data(self.headroom() + count, len),
            None => false,
        }
    }

    /// Cuts the data to at most `len` bytes.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        let len = self.len().min(len);
        self.set_data(self.headroom(), len);
    }

    /// The part `range` of the data as a piece of a message, cut to what there is. It names the
    /// bytes; it does not keep the frame, so send the message before the frame is recycled.
    #[inline]
    pub fn piece(&self, range: Range<usize>) -> Piece {
        let end = range.end.min(self.len());
        let begin = range.start.min(end);
        let offset = self.chunk as usize * CHUNK_SIZE + self.headroom() + begin;
        Piece::of_region(offset, end - begin)
    }

    /// Number of the chunk, from 0.
    #[inline]
    pub(super) fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Makes the token of `chunk` again, with no data.
    ///
    /// # Safety
    /// The chunk's token was consumed, and this is the first remaking since.
    #[inline]
    pub(super) unsafe fn remake(chunk: u32) -> Self {
        Self {
            chunk,
            start: 0,
            len: 0,
        }
    }
}

/// The free frames of one worker. Last in, first out: the hottest chunk is used next.
#[derive(Debug)]
pub struct FramePool {
    free: Vec<Frame>,
    made: usize,
}

impl FramePool {
    /// A pool of `frames`, all of which it counts as made for its worker. The first is given out
    /// first.
    pub fn new(mut frames: Vec<Frame>) -> Self {
        frames.reverse();
        Self {
            made: frames.len(),
            free: frames,
        }
    }

    /// Takes a frame with no data in it.
    #[inline]
    pub fn get(&mut self) -> Option<Frame> {
        self.free.pop()
    }

    /// Gives a frame back.
    #[inline]
    pub fn put(&mut self, mut frame: Frame) {
        (frame.start, frame.len) = (0, 0);
        debug_assert!(
            self.free.len() < self.made,
            "more frames come back than were made"
        );
        debug_assert!(
            self.free
                .iter()
                .rev()
                .take(64)
                .all(|f| f.chunk != frame.chunk),
            "frame {} comes back twice",
            frame.chunk
        );
        self.free.push(frame);
    }

    /// Free frames.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Frames made for this pool, free or not.
    pub fn made(&self) -> usize {
        self.made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_moves_its_start_within_its_chunk() {
        let (region, mut frames) = Region::new(2).unwrap();
        let mut frame = frames.remove(1);
        assert!(frame.set_data(256, 4));
        region.bytes_mut(&mut frame).copy_from_slice(b"data");
        assert!(frame.push_front(2));
        region.bytes_mut(&mut frame)[..2].copy_from_slice(b"->");
        assert_eq!(region.bytes(&frame), b"->data");
        assert!(frame.pull_front(3));
        assert_eq!(region.bytes(&frame), b"ata");
        assert!(!frame.pull_front(4));
        assert!(!frame.push_front(260));
        assert!(!frame.set_data(4090, 7));
        assert_eq!((frame.headroom(), frame.len()), (257, 3));
    }

    #[test]
    fn a_region_makes_each_token_once() {
        let (region, frames) = Region::new(64).unwrap();
        assert_eq!(region.len(), 64 * CHUNK_SIZE);
        let chunks: Vec<_> = frames.iter().map(Frame::chunk).collect();
        assert_eq!(chunks, (0..64).collect::<Vec<_>>());
        assert!(Region::new(0).is_err());
        assert!(Region::new(1 << 20).is_err());
    }

    #[test]
    fn a_pool_gives_the_hottest_frame_first() {
        let (_region, frames) = Region::new(4).unwrap();
        let mut pool = FramePool::new(frames);
        let frame = pool.get().unwrap();
        let chunk = frame.chunk();
        assert_eq!((pool.available(), pool.made()), (3, 4));
        pool.put(frame);
        assert_eq!(pool.get().unwrap().chunk(), chunk);
    }
}
