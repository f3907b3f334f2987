//! Counters: each written by one worker, read by anybody.
//!
//! A worker owns a [`Sheet`] and is its only writer, so an increment is a load, an add and a store,
//! all relaxed, which compile to the same code as a plain `u64`; no bus lock, no shared line. The
//! API thread reads while the worker writes and sums over workers. Sums are exact when the workers
//! are at rest.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam::utils::CachePadded;
use podway_proto::dataplane::BURST_SIZES;
use podway_xdp_redirect::MAX_PORTS;

use crate::fib::PortId;
use crate::last_drop::{LastDrop, Record};
use crate::verdict::DropReason;

/// A number that one thread writes.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the owning worker may.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0
            .store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// Replaces the value: for levels such as the number of free frames. Only the owner may.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value as of the writer's last store that is visible here.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one worker counted at one port. Received packets and sent ones are counted at the points
/// of truth: after the burst was taken from the ring, and after the kernel took the message.
#[derive(Debug, Default)]
pub struct PortSheet {
    /// Packets received, a super-frame counting one.
    pub rx_packets: Counter,
    /// Bytes received.
    pub rx_bytes: Counter,
    /// Frames received.
    pub rx_frames: Counter,
    /// Packets that left by this port, received on any or made here.
    pub tx_packets: Counter,
    /// Bytes handed to the kernel.
    pub tx_bytes: Counter,
    /// Messages handed to the kernel.
    pub tx_messages: Counter,
    /// Packets that left inside another one's message.
    pub joined: Counter,
    /// Segments that super-frames were cut to in user space.
    pub cut: Counter,
    /// ICMP errors made about packets that came by this port.
    pub icmp_sent: Counter,
    /// Packets for which no ICMP error was thought of, because of their rate.
    pub icmp_suppressed: Counter,
}

/// Packets of all ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Taken from ports.
    pub received: u64,
    /// Made here.
    pub made: u64,
    /// Taken by the kernel.
    pub sent: u64,
}

/// Messages of all ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Messages {
    /// Handed to the kernel.
    pub sent: u64,
    /// Packets that left inside another one's.
    pub joined: u64,
}

/// What one worker counted.
#[derive(Debug)]
pub struct Sheet {
    ports: Box<[CachePadded<PortSheet>]>,
    drops: Box<[Counter]>,
    last_drops: Box<[Record]>,
    /// Bursts with at least one packet, by their size: see [`BURST_SIZES`].
    burst_sizes: [Counter; BURST_SIZES.len()],
    /// Rounds of the loop.
    pub rounds: Counter,
    /// Times the worker blocked or dozed.
    pub sleeps: Counter,
    /// Bells that its TAP gave.
    pub bells: Counter,
    /// System calls to receive.
    pub rx_calls: Counter,
    /// System calls to send.
    pub tx_calls: Counter,
    /// System calls to find ready queues, and to wait for one.
    pub wait_calls: Counter,
    /// Nanoseconds from taking a burst to having recycled it.
    pub busy_nanoseconds: Counter,
    /// Level: frames in the pool.
    pub frames_pooled: Counter,
    /// Level: frames posted to the kernel.
    pub frames_posted: Counter,
    /// Level: frames in a chain of which the rest has not arrived.
    pub frames_held: Counter,
    /// Frames made for the worker.
    pub frames_made: Counter,
}

impl Default for Sheet {
    fn default() -> Self {
        Self {
            ports: (0..MAX_PORTS).map(|_| CachePadded::default()).collect(),
            drops: DropReason::ALL.iter().map(|_| Counter::default()).collect(),
            last_drops: DropReason::ALL.iter().map(|_| Record::default()).collect(),
            burst_sizes: Default::default(),
            rounds: Counter::default(),
            sleeps: Counter::default(),
            bells: Counter::default(),
            rx_calls: Counter::default(),
            tx_calls: Counter::default(),
            wait_calls: Counter::default(),
            busy_nanoseconds: Counter::default(),
            frames_pooled: Counter::default(),
            frames_posted: Counter::default(),
            frames_held: Counter::default(),
            frames_made: Counter::default(),
        }
    }
}

impl Sheet {
    /// The counters of a port; `None` for an id that no port can have.
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&PortSheet> {
        self.ports.get(usize::from(id.0)).map(|sheet| &**sheet)
    }

    /// Counts a packet that came by a port, of so many bytes in so many frames.
    #[inline]
    pub fn received(&self, port: PortId, bytes: usize, frames: usize) {
        if let Some(port) = self.port(port) {
            port.rx_packets.add(1);
            port.rx_bytes.add(bytes as u64);
            port.rx_frames.add(frames as u64);
        }
    }

    /// Counts a burst of so many packets, which is at least one.
    #[inline]
    pub fn burst(&self, packets: usize) {
        // One alone has the first place, two the second, up to four the third.
        let doublings = packets.saturating_sub(1).checked_ilog2();
        let place = doublings.map_or(0, |doublings| doublings as usize + 1);
        if let Some(counter) = self.burst_sizes.get(place.min(BURST_SIZES.len() - 1)) {
            counter.add(1);
        }
    }

    /// Bursts by their size.
    pub fn burst_sizes(&self) -> Vec<u64> {
        self.burst_sizes.iter().map(Counter::get).collect()
    }

    /// Counts `packets` that died of `reason`, and keeps the last of them.
    #[cold]
    pub fn drop_packets(&self, reason: DropReason, packets: u64, last: LastDrop) {
        let slot = reason as usize;
        if let (Some(counter), Some(record)) = (self.drops.get(slot), self.last_drops.get(slot))
            && packets > 0
        {
            counter.add(packets);
            record.set(last);
        }
    }

    /// Packets that died of `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason as usize).map_or(0, Counter::get)
    }

    /// The last packet that died of `reason`.
    pub fn last_drop(&self, reason: DropReason) -> Option<LastDrop> {
        self.last_drops.get(reason as usize)?.get()
    }

    /// Sums over every port that ever was.
    pub fn totals(&self) -> Totals {
        Totals {
            received: self.sum(|s| &s.rx_packets),
            made: self.sum(|s| &s.icmp_sent),
            sent: self.sum(|s| &s.tx_packets),
        }
    }

    /// The same of messages.
    pub fn messages(&self) -> Messages {
        Messages {
            sent: self.sum(|s| &s.tx_messages),
            joined: self.sum(|s| &s.joined),
        }
    }

    fn sum(&self, field: fn(&PortSheet) -> &Counter) -> u64 {
        self.ports.iter().map(|sheet| field(sheet).get()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_slot() {
        let sheet = Sheet::default();
        for (n, &reason) in (1..).zip(DropReason::ALL) {
            sheet.drop_packets(reason, n, LastDrop::new(n, 1, 0, &[]));
            sheet.drop_packets(reason, 0, LastDrop::new(0, 2, 0, &[]));
        }
        for (n, &reason) in (1..).zip(DropReason::ALL) {
            assert_eq!(sheet.dropped(reason), n, "{}", reason.name());
            let last = sheet.last_drop(reason).unwrap();
            assert_eq!((last.at, last.ifindex), (n, 1), "{}", reason.name());
        }
    }

    #[test]
    fn bursts_are_counted_by_their_size() {
        let sheet = Sheet::default();
        for packets in [1, 1, 2, 3, 4, 5, 8, 9, 64, 65, 128, 129, 256, 257, 5000] {
            sheet.burst(packets);
        }
        assert_eq!(sheet.burst_sizes(), [2, 1, 2, 2, 1, 0, 1, 2, 4]);
    }

    #[test]
    fn totals_sum_over_ports() {
        let sheet = Sheet::default();
        sheet.port(PortId(0)).unwrap().rx_packets.add(3);
        sheet.port(PortId(1023)).unwrap().rx_packets.add(4);
        sheet.port(PortId(7)).unwrap().tx_packets.add(5);
        sheet.port(PortId(7)).unwrap().icmp_sent.add(2);
        let totals = Totals {
            received: 7,
            made: 2,
            sent: 5,
        };
        assert_eq!(sheet.totals(), totals);
        assert!(sheet.port(PortId(1024)).is_none());
    }
}
