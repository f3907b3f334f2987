//! Our end of a ring that is shared with the kernel.
//!
//! The fill and tx rings are produced by us and consumed by the kernel, the rx and completion
//! rings the other way round (Documentation/networking/af_xdp.rst). Both sides count with
//! free-running 32-bit indexes; `index & (capacity - 1)` is the slot.
//!
//! Ordering: the producer writes slots, then stores its index with Release; the consumer loads
//! that index with Acquire, reads the slots, then stores its own with Release, which the producer
//! loads with Acquire before it writes the slots again. So neither ever touches a slot that the
//! other still uses (net/xdp/xsk_queue.h has the same scheme on the kernel's side).
//!
//! The peer's index is loaded only when the cached copy says that the ring is full or empty: a
//! burst costs one load and one store of shared cache lines, whatever its length.

use std::sync::atomic::Ordering;

use super::sys::MappedRing;

/// The orderings of the scheme above, by name: what tests check in plain memory is then what the
/// kernel's rings use.
pub(super) const LOAD_INDEX: Ordering = Ordering::Acquire;
pub(super) const STORE_INDEX: Ordering = Ordering::Release;

/// Where a ring lies: memory mapped from the kernel, or plain memory in tests.
///
/// Indexes are loaded with [`LOAD_INDEX`] and stored with [`STORE_INDEX`].
///
/// # Safety
/// `capacity` is a power of two and never changes, and every slot, addressed by an index masked
/// with it, may be read and written. That reading and writing of one slot never overlap is what
/// [`Producer`] and [`Consumer`] guarantee, as long as each ring has one of each.
pub(super) unsafe trait Memory {
    /// What a slot holds.
    type Desc: Copy;

    /// Slots, a power of two.
    fn capacity(&self) -> u32;
    fn load_producer(&self) -> u32;
    fn store_producer(&self, index: u32);
    fn load_consumer(&self) -> u32;
    fn store_consumer(&self, index: u32);
    /// Whether the kernel waits for a system call before it goes on with this ring.
    fn needs_wakeup(&self) -> bool;
    /// Reads the slot of `index`.
    ///
    /// # Safety
    /// The caller is the ring's consumer, and the producer has published the slot.
    unsafe fn read(&self, index: u32) -> Self::Desc;
    /// Writes the slot of `index`.
    ///
    /// # Safety
    /// The caller is the ring's producer, and the consumer has released the slot.
    unsafe fn write(&self, index: u32, desc: Self::Desc);
}

/// The producing end: fill ring and tx ring.
#[derive(Debug)]
pub(super) struct Producer<M> {
    memory: M,
    /// Next index to write; what lies before `published` is the consumer's.
    written: u32,
    published: u32,
    /// The consumer's index as last seen.
    consumed: u32,
}

/// The consuming end: rx ring and completion ring.
#[derive(Debug)]
pub(super) struct Consumer<M> {
    memory: M,
    /// Next index to read; slots before `released` are the producer's again.
    read: u32,
    released: u32,
    /// The producer's index as last seen.
    produced: u32,
}

/// A producing end in memory shared with the kernel.
pub(super) type KernelProducer<D> = Producer<MappedRing<D>>;
/// A consuming end in memory shared with the kernel.
pub(super) type KernelConsumer<D> = Consumer<MappedRing<D>>;

impl<M: Memory> Producer<M> {
    /// Takes the producing end of `memory`, which must have no other.
    pub(super) fn new(memory: M) -> Self {
        let (published, consumed) = (memory.load_producer(), memory.load_consumer());
        Self {
            memory,
            written: published,
            published,
            consumed,
        }
    }

    /// Free slots, at least `wanted` of them if there are so many.
    #[inline]
    pub(super) fn room(&mut self, wanted: u32) -> u32 {
        if self.cached_room() < wanted {
            self.consumed = self.memory.load_consumer();
        }
        self.cached_room()
    }

    /// An index of the consumer that makes no sense leaves no room, and so no slot to write.
    #[inline]
    fn cached_room(&self) -> u32 {
        let used = self.written.wrapping_sub(self.consumed);
        self.memory.capacity().saturating_sub(used)
    }

    /// Writes `desc` to the next slot, to be seen by the consumer after [`Producer::publish`];
    /// false when the ring is full.
    #[inline]
    pub(super) fn push(&mut self, desc: M::Desc) -> bool {
        if self.room(1) == 0 {
            return false;
        }
        // SAFETY: we are the only producer, and `room` has seen this slot released.
        unsafe { self.memory.write(self.written, desc) };
        self.written = self.written.wrapping_add(1);
        true
    }

    /// Hands the slots that were written to the consumer; true when there were any.
    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let any = self.written != self.published;
        if any {
            self.published = self.written;
            self.memory.store_producer(self.written);
        }
        any
    }

    /// Descriptors published and not yet taken by the consumer, as of now.
    #[inline]
    pub(super) fn pending(&mut self) -> u32 {
        self.consumed = self.memory.load_consumer();
        self.published.wrapping_sub(self.consumed)
    }

    /// See [`Memory::needs_wakeup`].
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.memory.needs_wakeup()
    }
}

impl<M: Memory> Consumer<M> {
    /// Takes the consuming end of `memory`, which must have no other.
    pub(super) fn new(memory: M) -> Self {
        let (produced, released) = (memory.load_producer(), memory.load_consumer());
        Self {
            memory,
            read: released,
            released,
            produced,
        }
    }

    /// Descriptors that wait to be read, at least `wanted` of them if there are so many.
    #[inline]
    pub(super) fn available(&mut self, wanted: u32) -> u32 {
        if self.cached_available() < wanted {
            self.produced = self.memory.load_producer();
        }
        self.cached_available()
    }

    /// An index of the producer that makes no sense leaves nothing to read.
    #[inline]
    fn cached_available(&self) -> u32 {
        let waiting = self.produced.wrapping_sub(self.read);
        if waiting > self.memory.capacity() {
            0
        } else {
            waiting
        }
    }

    /// Reads the next descriptor; its slot stays ours until [`Consumer::release`].
    #[inline]
    pub(super) fn pop(&mut self) -> Option<M::Desc> {
        if self.available(1) == 0 {
            return None;
        }
        // SAFETY: we are the only consumer, and `available` has seen this slot published.
        let desc = unsafe { self.memory.read(self.read) };
        self.read = self.read.wrapping_add(1);
        Some(desc)
    }

    /// Gives the slots that were read back to the producer.
    #[inline]
    pub(super) fn release(&mut self) {
        if self.released != self.read {
            self.released = self.read;
            self.memory.store_consumer(self.read);
        }
    }
}

#[cfg(test)]
mod tests {
    //! Both ends in plain memory. With the feature `loom` the same memory is checked for every order of
    //! loads and stores that the language allows.

    use super::*;

    #[cfg(all(test, feature = "loom"))]
    use loom::{cell::UnsafeCell, sync::Arc, sync::atomic::AtomicU32, thread};
    #[cfg(not(all(test, feature = "loom")))]
    use std::{sync::Arc, sync::atomic::AtomicU32, thread};

    /// loom's cell, without its checks.
    #[cfg(not(all(test, feature = "loom")))]
    struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    #[cfg(not(all(test, feature = "loom")))]
    impl<T> UnsafeCell<T> {
        fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }

    struct Slots {
        producer: AtomicU32,
        consumer: AtomicU32,
        slots: Vec<UnsafeCell<u64>>,
    }

    #[derive(Clone)]
    struct Plain(Arc<Slots>);

    impl Plain {
        /// An empty ring whose indexes begin at `start`.
        fn new(capacity: u32, start: u32) -> Self {
            assert!(capacity.is_power_of_two());
            Self(Arc::new(Slots {
                producer: AtomicU32::new(start),
                consumer: AtomicU32::new(start),
                slots: (0..capacity).map(|_| UnsafeCell::new(0)).collect(),
            }))
        }

        fn ends(&self) -> (Producer<Self>, Consumer<Self>) {
            (Producer::new(self.clone()), Consumer::new(self.clone()))
        }

        fn slot(&self, index: u32) -> &UnsafeCell<u64> {
            &self.0.slots[(index & (self.capacity() - 1)) as usize]
        }
    }

    // SAFETY: the rings under test keep reader and writer of a slot apart.
    unsafe impl Sync for Slots {}

    // SAFETY: the capacity is a power of two, which `new` asserts, and `slot` masks.
    unsafe impl Memory for Plain {
        type Desc = u64;

        fn capacity(&self) -> u32 {
            u32::try_from(self.0.slots.len()).unwrap()
        }

        fn load_producer(&self) -> u32 {
            self.0.producer.load(LOAD_INDEX)
        }

        fn store_producer(&self, index: u32) {
            self.0.producer.store(index, STORE_INDEX);
        }

        fn load_consumer(&self) -> u32 {
            self.0.consumer.load(LOAD_INDEX)
        }

        fn store_consumer(&self, index: u32) {
            self.0.consumer.store(index, STORE_INDEX);
        }

        fn needs_wakeup(&self) -> bool {
            false
        }

        unsafe fn read(&self, index: u32) -> u64 {
            // SAFETY: the caller says that nobody writes the slot; loom checks it.
            self.slot(index).with(|slot| unsafe { *slot })
        }

        unsafe fn write(&self, index: u32, desc: u64) {
            // SAFETY: the caller says that nobody else uses the slot; loom checks it.
            self.slot(index).with_mut(|slot| unsafe { *slot = desc });
        }
    }

    /// Sends 0, 1, 2, ... up to `count` from one thread to another.
    fn transfer(ring: &Plain, count: u64) {
        let (mut producer, mut consumer) = ring.ends();
        let sender = thread::spawn(move || {
            let mut next = 0;
            while next < count {
                if producer.push(next) {
                    next += 1;
                    producer.publish();
                } else {
                    thread::yield_now();
                }
            }
        });
        let mut expected = 0;
        while expected < count {
            match consumer.pop() {
                Some(desc) => {
                    assert_eq!(desc, expected);
                    expected += 1;
                    consumer.release();
                }
                None => thread::yield_now(),
            }
        }
        sender.join().unwrap();
        assert_eq!(consumer.pop(), None);
    }

    #[cfg(all(test, feature = "loom"))]
    #[test]
    fn descriptors_arrive_in_order_in_every_interleaving() {
        // Three descriptors through two slots: one slot is used again. Indexes wrap on the way.
        loom::model(|| transfer(&Plain::new(2, u32::MAX - 1), 3));
    }

    #[cfg(not(all(test, feature = "loom")))]
    #[test]
    fn descriptors_arrive_in_order_across_threads() {
        transfer(&Plain::new(8, u32::MAX - 1000), 50_000);
    }

    #[cfg(not(all(test, feature = "loom")))]
    #[test]
    fn nothing_is_seen_before_publish_nor_reused_before_release() {
        let (mut producer, mut consumer) = Plain::new(4, u32::MAX - 1).ends();
        for desc in 0..4 {
            assert!(producer.push(desc));
        }
        assert!(!producer.push(4));
        assert_eq!(consumer.pop(), None);

        assert!(producer.publish());
        assert!(!producer.publish());
        assert_eq!(producer.pending(), 4);
        assert_eq!((consumer.pop(), consumer.pop()), (Some(0), Some(1)));
        assert!(!producer.push(4));

        consumer.release();
        assert_eq!(producer.pending(), 2);
        assert_eq!(producer.room(4), 2);
        assert!(producer.push(4));
        producer.publish();
        assert_eq!(consumer.available(1), 2);
        assert_eq!(consumer.available(3), 3);
        let rest: Vec<_> = std::iter::from_fn(|| consumer.pop()).collect();
        assert_eq!(rest, [2, 3, 4]);
    }

    #[cfg(not(all(test, feature = "loom")))]
    #[test]
    fn a_peer_index_out_of_range_stops_the_ring() {
        let ring = Plain::new(4, 10);
        let (mut producer, mut consumer) = ring.ends();
        ring.store_consumer(20);
        assert_eq!(producer.room(1), 4, "cached");
        producer.push(0);
        assert_eq!(producer.room(4), 0);
        assert!(!producer.push(1));
        ring.store_producer(9);
        assert_eq!(consumer.pop(), None);
    }
}
