#![allow(
    unsafe_code,
    reason = "maps the memory of BPF arrays and shares it with the program"
)]
//! The maps whose memory this process shares with the program: no system call to write them.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::layout::port_tag;

/// Types that any bytes of a map are valid for and that the kernel may read at any time: fields
/// are atomics, the rest is padding.
///
/// # Safety
/// The type must consist of atomic integers and padding alone.
pub(crate) unsafe trait Shared: Sync {}

/// `struct config`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct ConfigMemory {
    /// 0: the program passes everything.
    pub(crate) gate_open: AtomicU32,
    /// Host byte order; 0: no tunnels.
    pub(crate) vxlan_port: AtomicU16,
    /// `CONFIG_...`
    pub(crate) flags: AtomicU16,
}

// SAFETY: atomic integers only.
unsafe impl Shared for ConfigMemory {}

/// `struct heartbeat`: a cache line of its own for each worker.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct HeartbeatMemory {
    at_ns: AtomicU64,
    asleep: AtomicU32,
    /// The worker's thread, to which the kernel adds `FUTEX_OWNER_DIED`.
    owner: AtomicU32,
    pub(crate) bells: AtomicU64,
}

// SAFETY: atomic integers and padding.
unsafe impl Shared for HeartbeatMemory {}

impl HeartbeatMemory {
    /// When the worker has beaten last, in nanoseconds of `CLOCK_MONOTONIC`; `None` when it is not there
    /// or has ended.
    pub(crate) fn beaten_at(&self) -> Option<u64> {
        let ended = self.owner.load(Ordering::Relaxed) & OWNER_DIED != 0;
        let at = self.at_ns.load(Ordering::Relaxed);
        (at > 0 && !ended).then_some(at)
    }
}

/// `OWNER_DIED` of `bpf/shared.h`.
pub(crate) const OWNER_DIED: u32 = 0x4000_0000;

/// `struct unsent`: a cache line of its own for each worker.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct UnsentMemory {
    packets: AtomicU64,
    error: AtomicU32,
}

// SAFETY: atomic integers and padding.
unsafe impl Shared for UnsentMemory {}

/// The entries of a `BPF_F_MMAPABLE` array, shared with the kernel until dropped.
#[derive(Debug)]
pub(crate) struct Mapping<T: Shared> {
    entries: NonNull<T>,
    count: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and `T` is shared by atomics.
unsafe impl<T: Shared> Send for Mapping<T> {}
// SAFETY: as above; `Shared` demands `Sync`.
unsafe impl<T: Shared> Sync for Mapping<T> {}

impl<T: Shared> Mapping<T> {
    /// Maps `count` entries of the array `map`, whose value is `T`. The kernel refuses (EINVAL) to
    /// map more pages than the array has.
    pub(crate) fn new(map: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                count * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // mmap never returns null without MAP_FIXED; a page is aligned for any `T` here.
        let entries = NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { entries, count })
    }

    /// The entries.
    pub(crate) fn entries(&self) -> &[T] {
        // SAFETY: `new` mapped `count` entries, which stay mapped until `self` is dropped; any
        // bytes are a valid `T`, and the kernel's accesses meet atomics only.
        unsafe { std::slice::from_raw_parts(self.entries.as_ptr(), self.count) }
    }
}

impl<T: Shared> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: this mapping was made by `new` with this size, and no reference outlives `self`.
        // munmap fails only for bad arguments.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), self.count * size_of::<T>()) };
    }
}

/// A worker's sign of life, written by plain stores to memory that the program reads.
///
/// The program passes the packets of a worker's queues to the kernel when the last beat is older
/// than a second. A worker beats at each wake and at least every 100 ms. Dropping the handle takes
/// the worker out at once.
#[derive(Debug)]
pub struct Heartbeat {
    memory: Arc<Mapping<HeartbeatMemory>>,
    worker: usize,
    written_ns: Cell<u64>,
}

/// Beats closer together are not written: the program reads the line for every packet, and each
/// write takes it from the cores that do.
const LEAST_BETWEEN_NS: u64 = 1_000_000;

impl Heartbeat {
    pub(crate) fn new(memory: Arc<Mapping<HeartbeatMemory>>, worker: usize) -> Self {
        Self {
            memory,
            worker,
            written_ns: Cell::new(0),
        }
    }

    /// Says that the worker was alive at `now_ns`, to the millisecond: nanoseconds of
    /// `CLOCK_MONOTONIC`.
    #[inline]
    pub fn beat(&self, now_ns: u64) {
        // Wrapping: a time before the last one is written as well.
        if now_ns.wrapping_sub(self.written_ns.get()) >= LEAST_BETWEEN_NS {
            self.write(now_ns);
        }
    }

    fn write(&self, now_ns: u64) {
        self.written_ns.set(now_ns);
        if let Some(memory) = self.memory() {
            // Relaxed: nothing else is published by it.
            memory.at_ns.store(now_ns, Ordering::Relaxed);
        }
    }

    /// Asks to be woken for the next packet in the worker's ring. Look at the ring once more before
    /// sleeping: it may have come already. That this is enough: the store here and that look are
    /// ordered by a fence, and the program looks at the flag after the packet is in the ring
    /// (`rings_bell()` in `redirect.bpf.c`); so one of both sees the other. What wakes is a frame
    /// that the worker's TAP gives, see [`is_bell`](crate::is_bell).
    #[inline]
    pub fn fall_asleep(&self) {
        if let Some(memory) = self.memory() {
            memory.asleep.store(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
    }

    /// Takes [`Heartbeat::fall_asleep`] back: nobody need wake the worker.
    #[inline]
    pub fn wake_up(&self) {
        if let Some(memory) = self.memory() {
            memory.asleep.store(0, Ordering::Relaxed);
        }
    }

    /// Has the kernel tell the program at once when the calling thread ends, however it ends: the worker's
    /// word is the thread's only robust futex (set_robust_list(2), `exit_robust_list` in
    /// kernel/futex/core.c). A process that is killed has its files closed much later, port by port.
    ///
    /// For the worker's own thread, which must use no robust mutex.
    pub fn mark_the_end_of_this_thread(&self) {
        let Some(memory) = self.memory() else { return };
        let thread = thread_id();
        memory.owner.store(thread, Ordering::Relaxed);
        // Never freed: the kernel reads both when the thread ends.
        let head = Box::leak(Box::new(RobustHead {
            next: std::ptr::null(),
            offset: 0,
            pending: std::ptr::null(),
        }));
        let start = (&raw const *head).cast();
        let entry: &RobustEntry = Box::leak(Box::new(RobustEntry { next: start }));
        head.next = &raw const *entry;
        let word = (&raw const memory.owner) as isize;
        head.offset = word.wrapping_sub((&raw const *entry) as isize);
        // SAFETY: the list is a ring of the head and one entry that live for ever; of the word the
        // kernel changes nothing unless it holds this thread's id. Without the list (an error) the
        // program finds the worker dead a second later.
        unsafe {
            libc::syscall(
                libc::SYS_set_robust_list,
                &raw const *head,
                size_of::<RobustHead>(),
            )
        };
    }

    fn memory(&self) -> Option<&HeartbeatMemory> {
        self.memory.entries().get(self.worker)
    }
}

/// `struct robust_list` of linux/futex.h.
#[repr(C)]
struct RobustEntry {
    next: *const RobustEntry,
}

/// `struct robust_list_head`.
#[repr(C)]
struct RobustHead {
    next: *const RobustEntry,
    /// From an entry to its futex, in bytes.
    offset: isize,
    pending: *const RobustEntry,
}

/// The id of the calling thread.
fn thread_id() -> u32 {
    // SAFETY: asks for a number and touches no memory.
    let id = unsafe { libc::gettid() };
    id.unsigned_abs()
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.write(0);
    }
}

/// A worker's view of what it wrote to its TAP and did not leave, which the program on the TAP tells
/// in memory: the write itself succeeds.
#[derive(Debug)]
pub struct Unsent {
    memory: Arc<Mapping<UnsentMemory>>,
    worker: u8,
    /// Packets that were told before.
    seen: u64,
}

impl Unsent {
    pub(crate) fn new(memory: Arc<Mapping<UnsentMemory>>, worker: u8) -> Self {
        let mut unsent = Self {
            memory,
            worker,
            seen: 0,
        };
        let _ = unsent.take();
        unsent
    }

    /// What the worker writes in place of the source MAC address of a packet that is to leave by the
    /// port of a counter slot.
    #[inline]
    pub fn tag(&self, slot: u16) -> [u8; 6] {
        let mut tag = port_tag(slot);
        tag[3] = self.worker;
        tag
    }

    /// Why a packet that was written since the last call has not left, as an error number; `None`
    /// when all have. The program runs within the write, so that this is about the last one.
    #[inline]
    pub fn take(&mut self) -> Option<i32> {
        let memory = self.memory.entries().get(usize::from(self.worker))?;
        // Relaxed: this thread's system call ran the program.
        let packets = memory.packets.load(Ordering::Relaxed);
        if packets == self.seen {
            return None;
        }
        self.seen = packets;
        i32::try_from(memory.error.load(Ordering::Relaxed)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{align_of, offset_of};

    #[test]
    fn layouts_are_those_of_the_program() {
        assert_eq!(size_of::<ConfigMemory>(), 8);
        assert_eq!(offset_of!(ConfigMemory, gate_open), 0);
        assert_eq!(offset_of!(ConfigMemory, vxlan_port), 4);
        assert_eq!(offset_of!(ConfigMemory, flags), 6);
        assert_eq!(size_of::<HeartbeatMemory>(), 64);
        assert_eq!(offset_of!(HeartbeatMemory, asleep), 8);
        assert_eq!(offset_of!(HeartbeatMemory, owner), 12);
        assert_eq!(offset_of!(HeartbeatMemory, bells), 16);
        assert_eq!(align_of::<HeartbeatMemory>(), 64);
        assert_eq!(size_of::<UnsentMemory>(), 64);
        assert_eq!(offset_of!(UnsentMemory, error), 8);
    }

    #[test]
    fn a_handle_can_go_to_its_worker() {
        fn is_send<T: Send>() {}
        is_send::<Heartbeat>();
        is_send::<Unsent>();
    }
}
