//! Waiting: which queues have packets, and what to do when none has.
//!
//! A busy worker looks only at the queues that gave packets in the round before, and asks the
//! kernel every few rounds which others have become ready; so that idle ports cost
//! nothing. A worker with nothing to do asks at once, and blocks as its [`WaitMode`] says; while an
//! adaptive one spins, it offers its core to everybody who wants it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use podway_proto::config::WaitMode;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

/// A blocked worker wakes at least this often to refresh its heartbeat.
const LONGEST_BLOCK: Duration = Duration::from_millis(100);
/// Rounds that a busy worker may spend on known queues before it looks for others.
const LOOK_AROUND: u32 = 8;
/// Ready queues taken from the kernel at once; the rest comes with the next look.
const EVENTS: usize = 64;
/// Event data of the wake-up: no slot has this number.
const WAKE: u64 = u64::MAX;

/// A worker's way to wait.
#[derive(Debug)]
pub struct Waiter {
    epoll: OwnedFd,
    wake: OwnedFd,
    mode: WaitMode,
    /// Nanoseconds that adaptive mode spins after the last packet.
    spin: u64,
    /// CLOCK_MONOTONIC nanoseconds of the last round that had a packet.
    last_packet: u64,
    rounds_since_look: u32,
}

/// Wakes a blocked worker from another thread.
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// Makes the worker's current or next wait return at once.
    pub fn wake(&self) {
        // A full counter means that a wake-up is pending, which is all that is wanted.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl Waiter {
    /// A waiter with no queue.
    ///
    /// # Errors
    /// What `epoll_create` and `eventfd` say.
    pub fn new(mode: WaitMode, spin: Duration) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self {
            epoll,
            wake,
            mode,
            spin: u64::try_from(spin.as_nanos()).unwrap_or(u64::MAX),
            last_packet: 0,
            rounds_since_look: 0,
        })
    }

    /// A handle that wakes this worker.
    ///
    /// # Errors
    /// What duplicating the descriptor says.
    pub fn waker(&self) -> io::Result<Waker> {
        Ok(Waker(self.wake.as_fd().try_clone_to_owned()?))
    }

    /// Watches the queue behind `fd` as `slot`.
    ///
    /// # Errors
    /// What `epoll_ctl` says.
    pub fn add(&self, fd: BorrowedFd<'_>, slot: usize) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(slot as u64),
            EventFlags::IN,
        )?)
    }

    /// Stops watching the queue behind `fd`.
    ///
    /// # Errors
    /// What `epoll_ctl` says.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// After a round: tells `ready` the slots that have packets, and blocks when the round had
    /// none and the mode allows it. `now` is CLOCK_MONOTONIC in nanoseconds. Returns whether it
    /// blocked.
    #[inline]
    pub fn wait(&mut self, busy: bool, now: u64, ready: impl FnMut(usize)) -> bool {
        if busy {
            self.last_packet = now;
            self.rounds_since_look += 1;
            if self.rounds_since_look < LOOK_AROUND {
                return false;
            }
        }
        self.rounds_since_look = 0;
        let block = !busy
            && match self.mode {
                WaitMode::Spin => false,
                WaitMode::Adaptive => now.saturating_sub(self.last_packet) >= self.spin,
                WaitMode::Sleep => true,
            };
        if !busy && !block && self.mode == WaitMode::Adaptive {
            // Whoever is to act on what was just sent may be waiting for this very core.
            rustix::thread::sched_yield();
        }
        self.look(block, ready);
        block
    }

    fn look(&mut self, block: bool, mut ready: impl FnMut(usize)) {
        let timeout = if block { LONGEST_BLOCK } else { Duration::ZERO };
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut events = [const { MaybeUninit::<Event>::uninit() }; EVENTS];
        // EINTR is the only error that a well-formed call has; the next round asks again.
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, Some(&timeout)) else {
            return;
        };
        for event in events {
            // A copy: the field of the packed kernel struct must not be borrowed.
            let data = event.data;
            match usize::try_from(data.u64()) {
                Ok(slot) if data.u64() != WAKE => ready(slot),
                _ => {
                    let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(waiter: &mut Waiter, busy: bool, now: u64) -> (bool, Vec<usize>) {
        let mut slots = Vec::new();
        let blocked = waiter.wait(busy, now, |slot| slots.push(slot));
        (blocked, slots)
    }

    #[test]
    fn adaptive_spins_after_a_packet_and_then_blocks() {
        let mut waiter = Waiter::new(WaitMode::Adaptive, Duration::from_micros(20)).unwrap();
        waiter.waker().unwrap().wake();
        assert_eq!(slots(&mut waiter, true, 1_000_000), (false, vec![]));
        assert_eq!(slots(&mut waiter, false, 1_019_999), (false, vec![]));
        waiter.waker().unwrap().wake();
        assert_eq!(slots(&mut waiter, false, 1_020_000), (true, vec![]));
    }

    #[test]
    fn spin_never_blocks_and_sleep_always_does() {
        let mut spin = Waiter::new(WaitMode::Spin, Duration::ZERO).unwrap();
        assert_eq!(slots(&mut spin, false, u64::MAX), (false, vec![]));
        let mut sleep = Waiter::new(WaitMode::Sleep, Duration::ZERO).unwrap();
        sleep.waker().unwrap().wake();
        assert_eq!(slots(&mut sleep, false, 0), (true, vec![]));
    }

    #[test]
    fn a_busy_worker_looks_around_now_and_then() {
        let mut waiter = Waiter::new(WaitMode::Adaptive, Duration::ZERO).unwrap();
        let queue = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        waiter.add(queue.as_fd(), 5).unwrap();
        let looks: Vec<_> = (0..16).map(|_| slots(&mut waiter, true, 0).1).collect();
        assert_eq!(looks.iter().filter(|l| l.as_slice() == [5]).count(), 2);
        assert_eq!(looks.iter().filter(|l| l.is_empty()).count(), 14);
        waiter.remove(queue.as_fd()).unwrap();
        assert_eq!(slots(&mut waiter, false, 0).1, Vec::<usize>::new());
    }
}
