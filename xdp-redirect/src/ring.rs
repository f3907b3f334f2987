#![allow(
    unsafe_code,
    reason = "maps the memory of a BPF ring buffer and shares it with the program"
)]
//! The ring of a worker: packets that the tcx program has copied to memory that the worker reads.
//!
//! It is a BPF ring buffer (kernel/bpf/ringbuf.c). Many CPUs write, one worker reads, without a
//! system call. The first page has the consumer's position, which is ours to write; the second the
//! producers', and then come the data, mapped twice in a row, so that a record that runs over
//! the end is contiguous. Each record has a header of eight bytes, whose first four are its length
//! and two flags: it is still being written, or it was given up.
//!
//! The ring itself wakes nobody. A worker that sleeps asks for a bell by its TAP: see
//! [`Heartbeat::fall_asleep`](crate::Heartbeat::fall_asleep).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::{io, slice};

use libbpf_rs::{MapHandle, MapType, libbpf_sys};

use crate::error::Error;

/// What precedes each record, `BPF_RINGBUF_HDR_SZ`.
const HEADER: usize = 8;
/// `BPF_RINGBUF_BUSY_BIT`: a producer still writes the record.
const BUSY: u32 = 1 << 31;
/// `BPF_RINGBUF_DISCARD_BIT`: the producer gave the record up.
const DISCARDED: u32 = 1 << 30;
/// `struct record` of `bpf/shared.h`.
const RECORD_HEADER: usize = 8;

/// A packet in a [`PacketRing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Counter slot of the port that it came by.
    pub slot: u16,
    /// The whole frame, from its Ethernet header on.
    pub bytes: &'a [u8],
}

/// The reader of a worker's ring.
#[derive(Debug)]
pub struct PacketRing {
    map: MapHandle,
    /// The consumer's page.
    consumer: NonNull<AtomicUsize>,
    /// The producers' page, and behind it the data, twice.
    producer: NonNull<AtomicUsize>,
    /// Bytes of a page.
    page: usize,
    /// Bytes of the data: a power of two.
    size: usize,
    /// Bytes that we have read so far, and that we have seen to be written; they wrap around, as the
    /// kernel's own do (`unsigned long`).
    position: usize,
    written: usize,
}

// SAFETY: the mappings belong to the process, not to a thread, and this is their only reader.
unsafe impl Send for PacketRing {}

impl PacketRing {
    /// Makes a ring of `size` bytes: a power of two of at least a page of the machine.
    ///
    /// # Errors
    /// [`Error::Ring`] for another size, or without memory for it.
    pub fn new(size: u32) -> Result<Self, Error> {
        Self::make(size).map_err(|source| Error::Ring { size, source })
    }

    fn make(size: u32) -> io::Result<Self> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            ..Default::default()
        };
        let name = Some("podway_ring");
        let map = MapHandle::create(MapType::RingBuf, name, 0, 0, size, &options)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let size = size as usize;
        let write = libc::PROT_READ | libc::PROT_WRITE;
        let page = page_size();
        let consumer = map_memory(map.as_fd(), 0, page, write)?;
        // From here on `Drop` unmaps both.
        let mut ring = Self {
            map,
            consumer,
            producer: NonNull::dangling(),
            page,
            size: 0,
            position: 0,
            written: 0,
        };
        ring.producer = map_memory(ring.as_fd(), page, page + 2 * size, libc::PROT_READ)?;
        ring.size = size;
        Ok(ring)
    }

    /// Whether [`PacketRing::next`] has something to look at.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        if self.position == self.written {
            // SAFETY: the first word of the page that `make` mapped, for as long as `self`; the
            // kernel writes it atomically.
            let producer = unsafe { self.producer.as_ref() };
            // Acquire: the headers of the records before it are visible (smp_store_release in
            // __bpf_ringbuf_reserve).
            self.written = producer.load(Ordering::Acquire);
        }
        self.position == self.written
    }

    /// Bytes that wait to be read, of how many there is room for.
    pub fn level(&self) -> (usize, usize) {
        // SAFETY: the first word of the page that `make` mapped, for as long as `self`; the kernel
        // writes it atomically.
        let producer = unsafe { self.producer.as_ref() };
        let written = producer.load(Ordering::Relaxed);
        (written.wrapping_sub(self.position), self.size)
    }

    /// The next packet; `None` when there is none, or the next one is still being written.
    /// What was read before is still there until [`PacketRing::release`].
    #[inline]
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator's items could outlive the release"
    )]
    pub fn next(&mut self) -> Option<Record<'_>> {
        while !self.is_empty() {
            let header = self.header();
            if header & BUSY != 0 {
                return None;
            }
            let length = (header & !DISCARDED) as usize;
            let start = self.offset() + HEADER;
            self.position += (length + HEADER).next_multiple_of(8);
            if header & DISCARDED == 0 {
                return self.record(start, length);
            }
        }
        None
    }

    /// Gives the kernel back what was read.
    #[inline]
    pub fn release(&mut self) {
        // SAFETY: the first word of the page that `make` mapped, for as long as `self`; the kernel
        // only reads it.
        let consumer = unsafe { self.consumer.as_ref() };
        // Release: nothing of what was read is read later than this.
        consumer.store(self.position, Ordering::Release);
    }

    /// The first four bytes at our position.
    #[inline]
    fn header(&self) -> u32 {
        let header = self.data(self.offset()).cast::<AtomicU32>();
        // SAFETY: the offset is a multiple of eight below the size of the data, which are mapped
        // for as long as `self`; the kernel writes the word atomically.
        let header = unsafe { header.as_ref() };
        // Acquire: the record is visible once it is no longer busy (xchg in bpf_ringbuf_commit).
        header.load(Ordering::Acquire)
    }

    #[inline]
    fn record(&self, start: usize, length: usize) -> Option<Record<'_>> {
        let data = self.data(start).as_ptr();
        // SAFETY: a record that is no longer busy is complete, and lies within the two mappings
        // of the data, since the kernel reserves no more than their size. It is not written
        // before `release`, which needs `&mut self`.
        let bytes = unsafe { slice::from_raw_parts(data, length) };
        let (header, bytes) = bytes.split_first_chunk::<RECORD_HEADER>()?;
        let [a, b, c, d, e, f, _, _] = *header;
        Some(Record {
            slot: u16::from_ne_bytes([e, f]),
            bytes: bytes.get(..u32::from_ne_bytes([a, b, c, d]) as usize)?,
        })
    }

    #[inline]
    fn offset(&self) -> usize {
        // Positions count on, and the data go round.
        self.position & (self.size - 1)
    }

    /// The data from `offset` on.
    #[inline]
    fn data(&self, offset: usize) -> NonNull<u8> {
        // SAFETY: the data begin one page into the mapping, and `offset` is within them or their
        // second mapping.
        unsafe { self.producer.cast::<u8>().add(self.page + offset) }
    }
}

/// The map, for the program's map of rings.
impl AsFd for PacketRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl Drop for PacketRing {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `make` with this size, and no reference outlives `self`.
        // munmap fails only for bad arguments.
        unsafe { libc::munmap(self.consumer.as_ptr().cast(), self.page) };
        if self.size > 0 {
            // SAFETY: as above; without a size there is no second mapping.
            unsafe { libc::munmap(self.producer.as_ptr().cast(), self.page + 2 * self.size) };
        }
    }
}

/// Bytes of a page: 4096, or 16384 and more on some machines.
fn page_size() -> usize {
    // SAFETY: asks for a constant and touches no memory.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

fn map_memory(
    map: BorrowedFd<'_>,
    offset: usize,
    length: usize,
    protection: i32,
) -> io::Result<NonNull<AtomicUsize>> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            protection,
            libc::MAP_SHARED,
            map.as_raw_fd(),
            offset,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // mmap never returns null without MAP_FIXED.
    NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)
}
