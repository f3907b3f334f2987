//! Waiting: which queues have packets, and what to do when none has.
//!
//! A busy worker looks only at the queues that gave packets in the round before, and asks the
//! kernel every few rounds which others have become ready; so that idle ports cost
//! nothing. A worker with nothing to do asks at once, and blocks as its [`WaitMode`] says. An adaptive
//! one may be told to spin a short time before; it offers its core to everybody who wants it
//! meanwhile, and who has work for more than a moment keeps it for as long as the scheduler lets him,
//! so that this is for cores with little else to do. When so many packets come that the next ones are
//! surely there soon, it dozes: it sleeps a short time that no packet in its ring cuts short, so that
//! idle time is idle, and the next burst a long one.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use podway_proto::config::WaitMode;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

/// A blocked worker wakes at least this often to refresh its heartbeat. Nanoseconds.
const LONGEST_BLOCK: u64 = 100_000_000;
/// Rounds that a busy worker may spend on known queues before it looks for others.
const LOOK_AROUND: u32 = 8;
/// Ready queues taken from the kernel at once; the rest comes with the next look.
const EVENTS: usize = 64;
/// Event data of the wake-up: no slot has this number.
const WAKE: u64 = u64::MAX;

/// Packets per second from which on an adaptive worker dozes.
const DOZE_RATE: u64 = 50_000;
/// Nanoseconds over which the rate is taken.
const RATE_WINDOW: u64 = 200_000;

/// What a worker does after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// The next round.
    Work,
    /// Ask for ready queues.
    Look,
    /// Offer the core to others, then ask for ready queues.
    Spin,
    /// Ask for ready queues, and wait for one, but not for long.
    Doze,
    /// Ask for ready queues, and wait for one.
    Block,
}

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
    /// Nanoseconds that adaptive mode dozes; 0: never.
    doze: u64,
    /// Packets since a time, for the rate; and the rate of the time before, per second.
    window: (u64, u64),
    rate: u64,
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
    pub fn new(mode: WaitMode, spin: Duration, doze: Duration) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self {
            epoll,
            wake,
            mode,
            spin: nanoseconds(spin),
            last_packet: 0,
            rounds_since_look: 0,
            doze: nanoseconds(doze),
            window: (0, 0),
            rate: 0,
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

    /// What to do after a round of `packets`, at `now`: nanoseconds of CLOCK_MONOTONIC.
    #[inline]
    pub fn decide(&mut self, packets: usize, now: u64) -> Rest {
        self.window.0 += packets as u64;
        if packets > 0 {
            self.last_packet = now;
            self.rounds_since_look += 1;
            if self.rounds_since_look < LOOK_AROUND {
                return Rest::Work;
            }
            self.rounds_since_look = 0;
            return Rest::Look;
        }
        self.rounds_since_look = 0;
        match self.mode {
            WaitMode::Spin => Rest::Look,
            WaitMode::Sleep => Rest::Block,
            WaitMode::Adaptive => self.adapt(now),
        }
    }

    #[inline]
    fn adapt(&mut self, now: u64) -> Rest {
        let (packets, since) = self.window;
        let elapsed = now.saturating_sub(since);
        if elapsed >= RATE_WINDOW {
            self.rate = packets.saturating_mul(1_000_000_000) / elapsed;
            self.window = (0, now);
        }
        let idle = now.saturating_sub(self.last_packet);
        if self.rate >= DOZE_RATE && idle < self.doze {
            Rest::Doze
        } else if idle < self.spin {
            Rest::Spin
        } else {
            Rest::Block
        }
    }

    /// Does it, and tells `ready` the slots that have packets. Returns whether the worker slept.
    #[inline]
    pub fn rest(&mut self, rest: Rest, ready: impl FnMut(usize)) -> bool {
        match rest {
            Rest::Work => {}
            Rest::Look => self.look(0, ready),
            Rest::Spin => {
                // Whoever is to act on what was just sent may be waiting for this very core.
                rustix::thread::sched_yield();
                self.look(0, ready);
            }
            Rest::Doze => self.look(self.doze, ready),
            Rest::Block => self.look(LONGEST_BLOCK, ready),
        }
        matches!(rest, Rest::Doze | Rest::Block)
    }

    /// Waits for at most `nanoseconds`, less than a second.
    fn look(&mut self, nanoseconds: u64, mut ready: impl FnMut(usize)) {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
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

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(mode: WaitMode, spin: u64, doze: u64) -> Waiter {
        Waiter::new(
            mode,
            Duration::from_micros(spin),
            Duration::from_micros(doze),
        )
        .unwrap()
    }

    fn slots(waiter: &mut Waiter, rest: Rest) -> (bool, Vec<usize>) {
        let mut slots = Vec::new();
        let slept = waiter.rest(rest, |slot| slots.push(slot));
        (slept, slots)
    }

    #[test]
    fn adaptive_spins_after_a_packet_and_then_blocks() {
        let mut waiter = waiter(WaitMode::Adaptive, 20, 0);
        assert_eq!(waiter.decide(1, 1_000_000), Rest::Work);
        assert_eq!(waiter.decide(0, 1_019_999), Rest::Spin);
        assert_eq!(waiter.decide(0, 1_020_000), Rest::Block);
        waiter.waker().unwrap().wake();
        assert_eq!(slots(&mut waiter, Rest::Block), (true, vec![]));
    }

    #[test]
    fn adaptive_dozes_while_many_packets_come() {
        let mut waiter = waiter(WaitMode::Adaptive, 50, 60);
        // Eleven packets in 200 us are 55,000 a second.
        for (packets, at, want) in [(11, 190, Rest::Work), (0, 200, Rest::Doze)] {
            assert_eq!(waiter.decide(packets, at * 1000), want);
        }
        // Until the next look at the rate.
        waiter.decide(1, 390_000);
        assert_eq!(waiter.decide(0, 399_000), Rest::Doze);
        assert_eq!(waiter.decide(0, 400_000), Rest::Spin, "5,000 a second");
        assert_eq!(waiter.decide(0, 440_000), Rest::Block);
        let begin = std::time::Instant::now();
        assert_eq!(slots(&mut waiter, Rest::Doze), (true, vec![]));
        assert!(begin.elapsed() >= Duration::from_micros(60));
    }

    #[test]
    fn without_spinning_it_dozes_once_and_blocks() {
        let mut waiter = waiter(WaitMode::Adaptive, 0, 50);
        assert_eq!(waiter.decide(11, 200_000), Rest::Work);
        assert_eq!(waiter.decide(0, 200_000), Rest::Doze, "55,000 a second");
        assert_eq!(waiter.decide(0, 250_000), Rest::Block);
        waiter.decide(1, 390_000);
        assert_eq!(waiter.decide(0, 400_000), Rest::Block, "5,000 a second");
    }

    #[test]
    fn spin_never_blocks_and_sleep_always_does() {
        let mut spin = waiter(WaitMode::Spin, 0, 50);
        assert_eq!(spin.decide(0, u64::MAX), Rest::Look);
        let mut sleep = waiter(WaitMode::Sleep, 50, 50);
        assert_eq!(sleep.decide(0, 0), Rest::Block);
    }

    #[test]
    fn a_busy_worker_looks_around_now_and_then() {
        let mut waiter = waiter(WaitMode::Adaptive, 0, 0);
        let queue = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        waiter.add(queue.as_fd(), 5).unwrap();
        let mut looks = Vec::new();
        for _ in 0..16 {
            let rest = waiter.decide(1, 0);
            looks.push(slots(&mut waiter, rest).1);
        }
        assert_eq!(looks.iter().filter(|l| l.as_slice() == [5]).count(), 2);
        assert_eq!(looks.iter().filter(|l| l.is_empty()).count(), 14);
        waiter.remove(queue.as_fd()).unwrap();
        assert_eq!(slots(&mut waiter, Rest::Look), (false, vec![]));
    }
}
