//! Handing snapshots from the API thread to the workers.
//!
//! # Trade-offs
//!
//! - A worker looks at one shared word per burst; it reads nothing else, and writes nothing, while
//!   nothing is published.
//! - The publisher never waits for a worker, a worker never for the publisher.
//! - Snapshots that a worker skipped or still reads stay in memory: a worker that hangs holds
//!   back every snapshot since. They share nearly all of their pages.
//! - Readers are made with the publisher. There is no way to add one later.
//!
//! # How it works
//!
//! Each reader has a slot for one snapshot. [`Publisher::publish`] keeps the new snapshot in its
//! history, swaps it into every slot, and then stores its number to the version word (release).
//! [`Reader::refresh`] loads the version word (acquire) and, if that is above the number it has,
//! takes what is in its slot, lets go of what it had, and stores the number it took to its
//! `adopted` word (release).
//!
//! # Why it is sound
//!
//! Nothing here is unsafe: whatever the order, a reader holds a counted reference to what it
//! reads. What the order decides is which snapshot it sees, and who frees it:
//!
//! 1. *A reader that sees version `n` gets snapshot `n` or a later one.* The swap into the slot
//!    comes before the release store of `n`, and the acquire load that returns `n` comes before
//!    the reader's swap. Only this reader empties the slot, so it finds `n` or what replaced it;
//!    the swap itself is acquire and release and carries the snapshot's contents. If it finds a
//!    later one, the version word catches up and the reader, which compares numbers, does nothing.
//! 2. *No reader goes back.* Slots are filled in the order of publication, by one thread.
//! 3. *Snapshots are freed by the publisher.* It keeps each in its history until every `adopted`
//!    word is at or above a later number. The reader drops its reference before its release store
//!    to `adopted`, and the publisher's acquire load of it comes before its own drop; the slots
//!    hold only later snapshots. So the publisher's reference is the last.

use std::collections::VecDeque;

use crossbeam::utils::CachePadded;

use crate::sync::{Arc, AtomicU64, Ordering, Slot};

/// A published value with its number; the first is 0.
#[derive(Debug)]
struct Snapshot<T> {
    version: u64,
    value: T,
}

/// What a reader and the publisher share.
#[derive(Debug)]
struct Seat<T> {
    /// The newest snapshot that the reader has not taken.
    slot: Slot<Snapshot<T>>,
    /// Number of the snapshot that the reader reads; `u64::MAX` when it is gone. Written by the
    /// reader only.
    adopted: CachePadded<AtomicU64>,
}

/// The side that publishes: the API thread's.
#[derive(Debug)]
pub struct Publisher<T> {
    /// Number of the newest snapshot.
    version: Arc<CachePadded<AtomicU64>>,
    seats: Vec<Arc<Seat<T>>>,
    /// Every snapshot that a reader may hold, oldest first; the newest is always there.
    history: VecDeque<Arc<Snapshot<T>>>,
    published: u64,
}

/// The side that reads: a worker's.
#[derive(Debug)]
pub struct Reader<T> {
    current: Arc<Snapshot<T>>,
    version: Arc<CachePadded<AtomicU64>>,
    seat: Arc<Seat<T>>,
}

impl<T> Publisher<T> {
    /// A publisher whose `readers` readers start with `initial`, which is number 0.
    pub fn new(initial: T, readers: usize) -> (Self, Vec<Reader<T>>) {
        let version = Arc::new(CachePadded::new(AtomicU64::new(0)));
        let first = Arc::new(Snapshot {
            version: 0,
            value: initial,
        });
        let seats: Vec<_> = (0..readers)
            .map(|_| {
                Arc::new(Seat {
                    slot: Slot::new(),
                    adopted: CachePadded::new(AtomicU64::new(0)),
                })
            })
            .collect();
        let readers = seats
            .iter()
            .map(|seat| Reader {
                current: Arc::clone(&first),
                version: Arc::clone(&version),
                seat: Arc::clone(seat),
            })
            .collect();
        let publisher = Self {
            version,
            seats,
            history: VecDeque::from([first]),
            published: 0,
        };
        (publisher, readers)
    }

    /// Gives `value` to the readers, which take it at their next [`Reader::refresh`], and frees
    /// what they no longer read. Returns its number.
    pub fn publish(&mut self, value: T) -> u64 {
        self.published += 1;
        let snapshot = Arc::new(Snapshot {
            version: self.published,
            value,
        });
        self.history.push_back(Arc::clone(&snapshot));
        for seat in &self.seats {
            // A snapshot that was never taken is in the history as well.
            drop(seat.slot.swap(Some(Arc::clone(&snapshot))));
        }
        self.version.store(self.published, Ordering::Release);
        self.reclaim();
        self.published
    }

    /// Frees the snapshots that every reader has left behind. Returns how many are still held,
    /// the newest one included.
    pub fn reclaim(&mut self) -> usize {
        let adopted = self.adopted_min();
        while self
            .history
            .front()
            .is_some_and(|oldest| oldest.version < adopted)
        {
            self.history.pop_front();
        }
        self.history.len()
    }

    /// Number of the newest snapshot.
    pub fn published(&self) -> u64 {
        self.published
    }

    /// Number of the oldest snapshot that a reader may still read; [`Publisher::published`] when
    /// every reader has taken the newest, or there is none.
    pub fn adopted_min(&self) -> u64 {
        self.seats
            .iter()
            .map(|seat| seat.adopted.load(Ordering::Acquire))
            .fold(self.published, u64::min)
    }

    /// The newest snapshot.
    pub fn current(&self) -> Option<&T> {
        self.history.back().map(|newest| &newest.value)
    }
}

impl<T> Reader<T> {
    /// Takes the newest snapshot, if one was published since the last call; whether it did. To be
    /// called once per burst. Frees nothing and does not wait.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        self.version.load(Ordering::Acquire) > self.current.version && self.take()
    }

    #[cold]
    fn take(&mut self) -> bool {
        let Some(newest) = self.seat.slot.swap(None) else {
            return false;
        };
        let version = newest.version;
        // The publisher's history still has the old one, so this drop frees nothing.
        self.current = newest;
        self.seat.adopted.store(version, Ordering::Release);
        true
    }

    /// The snapshot that was taken last.
    #[inline]
    pub fn get(&self) -> &T {
        &self.current.value
    }

    /// Its number.
    pub fn version(&self) -> u64 {
        self.current.version
    }
}

impl<T> Drop for Reader<T> {
    /// A reader that is gone holds nothing back. It may then be the one that frees its last
    /// snapshot: its worker has ended, there is no packet that would wait.
    fn drop(&mut self) {
        self.seat.adopted.store(u64::MAX, Ordering::Release);
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    #[test]
    fn a_reader_takes_the_newest_once() {
        let (mut publisher, mut readers) = Publisher::new("zero", 1);
        let reader = &mut readers[0];
        assert!(!reader.refresh());
        assert_eq!((*reader.get(), reader.version()), ("zero", 0));
        assert_eq!(publisher.publish("one"), 1);
        assert_eq!(publisher.publish("two"), 2);
        assert_eq!(*reader.get(), "zero", "nothing changes before refresh");
        assert!(reader.refresh());
        assert_eq!((*reader.get(), reader.version()), ("two", 2));
        assert!(!reader.refresh());
        assert_eq!(publisher.current(), Some(&"two"));
    }

    #[test]
    fn the_slowest_reader_holds_back() {
        let (mut publisher, mut readers) = Publisher::new(0, 2);
        publisher.publish(1);
        publisher.publish(2);
        assert_eq!(publisher.adopted_min(), 0);
        assert_eq!(publisher.reclaim(), 3);
        assert!(readers[0].refresh());
        assert_eq!(publisher.adopted_min(), 0);
        assert_eq!(publisher.reclaim(), 3);
        publisher.publish(3);
        assert!(readers[1].refresh());
        assert_eq!(publisher.adopted_min(), 2);
        assert_eq!(publisher.reclaim(), 2);
        drop(readers.remove(0));
        assert_eq!(publisher.adopted_min(), 3);
        assert_eq!(publisher.reclaim(), 1);
    }

    #[test]
    fn without_readers_nothing_is_kept() {
        let (mut publisher, _) = Publisher::new(0, 0);
        publisher.publish(1);
        assert_eq!(publisher.adopted_min(), 1);
        assert_eq!(publisher.reclaim(), 1);
    }

    /// A value that must not be dropped by another thread than the one that made it.
    struct FreedAtHome(u64, thread::ThreadId);

    impl Drop for FreedAtHome {
        fn drop(&mut self) {
            assert_eq!(thread::current().id(), self.1, "snapshot {}", self.0);
        }
    }

    #[test]
    fn readers_see_growing_numbers_and_free_nothing() {
        let home = thread::current().id();
        let (mut publisher, readers) = Publisher::new(FreedAtHome(0, home), 2);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let workers: Vec<_> = readers
                .into_iter()
                .map(|mut reader| {
                    let stop = &stop;
                    scope.spawn(move || {
                        let mut last = 0;
                        while !stop.load(std::sync::atomic::Ordering::Acquire) {
                            if reader.refresh() {
                                assert!(reader.get().0 > last);
                                last = reader.get().0;
                                assert_eq!(reader.version(), last);
                            }
                        }
                        reader.refresh();
                        assert_eq!(reader.get().0, 20_000);
                        // Home drops the last one.
                        reader
                    })
                })
                .collect();
            for number in 1..=20_000 {
                publisher.publish(FreedAtHome(number, home));
            }
            stop.store(true, std::sync::atomic::Ordering::Release);
            for worker in workers {
                drop(worker.join().unwrap());
            }
        });
        assert_eq!(publisher.reclaim(), 1);
    }
}

#[cfg(all(test, feature = "loom"))]
mod loom_tests {
    use loom::thread;

    use super::*;

    /// A value that must not be dropped by another thread than the one that made it.
    struct FreedAtHome(u64, thread::ThreadId);

    impl Drop for FreedAtHome {
        fn drop(&mut self) {
            assert_eq!(thread::current().id(), self.1, "snapshot {}", self.0);
        }
    }

    /// `preemptions` bounds how often a thread is stopped between two accesses; `None` tries every
    /// order.
    fn model(readers: usize, snapshots: u64, refreshes: usize, preemptions: Option<usize>) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = preemptions;
        builder.check(move || {
            let home = thread::current().id();
            let (mut publisher, readers) = Publisher::new(FreedAtHome(0, home), readers);
            let workers: Vec<_> = readers
                .into_iter()
                .map(|mut reader| {
                    thread::spawn(move || {
                        let mut last = 0;
                        for _ in 0..refreshes {
                            let seen = reader.version.load(Ordering::Acquire);
                            if reader.refresh() {
                                assert!(reader.version() > last, "went back");
                                last = reader.version();
                            }
                            assert!(reader.version() >= seen, "missed what was published");
                            assert_eq!(reader.get().0, reader.version());
                        }
                        reader
                    })
                })
                .collect();
            for number in 1..=snapshots {
                publisher.publish(FreedAtHome(number, home));
            }
            publisher.reclaim();
            let mut readers: Vec<_> = workers.into_iter().map(|w| w.join().unwrap()).collect();
            for reader in &mut readers {
                reader.refresh();
                assert_eq!(reader.version(), snapshots);
            }
            assert_eq!(publisher.adopted_min(), snapshots);
            assert_eq!(publisher.reclaim(), 1);
        });
    }

    #[test]
    fn one_reader_in_every_order() {
        model(1, 2, 2, None);
    }

    #[test]
    fn one_reader_and_three_snapshots() {
        model(1, 3, 2, Some(3));
    }

    #[test]
    fn two_readers_and_two_snapshots() {
        model(2, 2, 1, Some(2));
    }
}
