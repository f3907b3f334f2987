//! How many ICMP errors a port may cause: a token bucket for each.

use podway_xdp_redirect::MAX_PORTS;

use crate::fib::PortId;

/// Nanoseconds in which a port earns one error: 100 a second, of at most 1280 bytes each.
const INTERVAL: u64 = 10_000_000;

/// How many a port that was quiet may cause at once, as in Linux (`icmp_msgs_burst`): enough for a
/// traceroute that sends all its probes together.
const BURST: u64 = 50;

/// The buckets of one worker, each full at the start.
#[derive(Debug)]
pub(super) struct Limiter {
    /// By port: when its bucket will be full, in nanoseconds.
    full_at: Box<[u64]>,
}

impl Default for Limiter {
    fn default() -> Self {
        Self {
            full_at: (0..MAX_PORTS).map(|_| 0).collect(),
        }
    }
}

impl Limiter {
    /// Whether the port may cause an error at `now`, as [`Self::take`] would say.
    pub(super) fn has(&self, port: PortId, now: u64) -> bool {
        let full_at = self.full_at.get(usize::from(port.0));
        full_at.is_some_and(|full_at| full_at.saturating_sub(now) <= (BURST - 1) * INTERVAL)
    }

    /// Whether the port may cause an error at `now`, in nanoseconds of any clock that never goes back;
    /// if so it has one less.
    pub(super) fn take(&mut self, port: PortId, now: u64) -> bool {
        let has = self.has(port, now);
        if let (true, Some(full_at)) = (has, self.full_at.get_mut(usize::from(port.0))) {
            *full_at = (*full_at).max(now) + INTERVAL;
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: PortId = PortId(7);

    fn taken(limiter: &mut Limiter, port: PortId, now: u64) -> usize {
        (0..1000).take_while(|_| limiter.take(port, now)).count()
    }

    #[test]
    fn a_burst_then_one_for_each_interval() {
        let mut limiter = Limiter::default();
        let start = 123_456_789_000;
        assert_eq!(taken(&mut limiter, PORT, start), 50);
        assert_eq!(taken(&mut limiter, PORT, start + INTERVAL - 1), 0);
        assert_eq!(taken(&mut limiter, PORT, start + INTERVAL), 1);
        assert_eq!(taken(&mut limiter, PORT, start + 11 * INTERVAL), 10);
        // No more than a burst, however long it was quiet.
        assert_eq!(taken(&mut limiter, PORT, start + 1_000_000 * INTERVAL), 50);
    }

    #[test]
    fn each_port_has_its_own() {
        let mut limiter = Limiter::default();
        assert_eq!(taken(&mut limiter, PORT, 0), 50);
        assert_eq!(taken(&mut limiter, PortId(8), 0), 50);
        assert_eq!(taken(&mut limiter, PortId::NONE, 0), 0);
    }
}
