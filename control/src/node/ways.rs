//! The ways to other nodes and routers: what the kernel says of each, asked when it may have changed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Node, RETRY_KERNEL};
use crate::dirt::Dirt;
use crate::netlink::Lookup;
use crate::observed::Stale;

/// Ways are asked again at most this often: a routing daemon that loads a table makes thousands
/// of changes a second, each of which may change any way.
pub(super) const WAYS_PERIOD: Duration = Duration::from_millis(50);
/// After all ways were asked for, nothing is asked for this many times as long as that took.
const WAYS_REST: u32 = 20;

impl Node {
    /// Asks for the ways that are needed and not known, and forgets those that are not needed.
    pub(super) fn ask_new_ways(&mut self, dirt: &mut Dirt, errors: &mut BTreeSet<String>) {
        let needed = self.world().needed_ways(&self.index);
        self.ways.retain(|address, _| needed.contains(address));
        let new = needed.into_iter();
        let new: Vec<IpAddr> = new.filter(|a| !self.ways.contains_key(a)).collect();
        self.ask_ways(&new, dirt, errors);
    }

    /// Asks again for the ways that may have changed, when it is time to.
    pub(super) fn ask_stale_ways(&mut self, now: Instant) -> BTreeSet<String> {
        let mut errors = BTreeSet::new();
        if self.stale_ways == Stale::default() || now < self.ways_due {
            return errors;
        }
        let stale = std::mem::take(&mut self.stale_ways);
        let addresses: Vec<IpAddr> = if stale.all {
            self.ways.keys().copied().collect()
        } else {
            let inside = stale.inside.iter();
            let ways = inside.flat_map(|p| self.ways.range(p.network()..=p.broadcast()));
            ways.map(|(address, _)| *address).collect()
        };
        if !addresses.is_empty() {
            let mut dirt = std::mem::take(&mut self.dirt);
            let asked = self.ask_ways(&addresses, &mut dirt, &mut errors);
            let took = now.elapsed();
            self.ways_due = now + WAYS_PERIOD.max(took * WAYS_REST);
            if !asked {
                self.stale_ways.merge(stale);
                self.ways_due = now + RETRY_KERNEL;
                // The error is told with theirs.
                dirt.objects = true;
            }
            self.dirt = dirt;
        }
        errors
    }

    /// Asks for ways; whether there are answers. Without them the ways stay what they were.
    fn ask_ways(
        &mut self,
        addresses: &[IpAddr],
        dirt: &mut Dirt,
        errors: &mut BTreeSet<String>,
    ) -> bool {
        match self.requests.lookup_all(addresses) {
            Ok(ways) => {
                let ways = addresses.iter().zip(ways);
                let changed = ways
                    .filter_map(|(address, way)| self.set_way(*address, way).then_some(*address));
                let changed = changed.collect();
                dirt.ways(&changed, &self.world(), &self.index);
                true
            }
            Err(error) => {
                errors.insert(error.to_string());
                false
            }
        }
    }

    /// Takes what the kernel says of a way; whether it is something else than before.
    fn set_way(&mut self, address: IpAddr, way: Option<Lookup>) -> bool {
        if let Some(expires) = way.as_ref().and_then(|way| way.expires) {
            // Not before it has gone: told again then without its end, it would stay for good.
            self.doubt(address, expires + WAYS_PERIOD);
        }
        let same = match (self.ways.get(&address), &way) {
            (Some(Some(old)), Some(new)) => old.agrees(new),
            (Some(None), None) => true,
            _ => false,
        };
        self.ways.insert(address, way);
        !same
    }

    /// Has the way to `address` asked again when `after` is over.
    pub(super) fn doubt(&mut self, address: IpAddr, after: Duration) {
        let at = Instant::now() + after;
        let due = self.doubtful.entry(address).or_insert(at);
        *due = at.min(*due);
    }

    /// Asks again for the ways of which it is time to. One that cannot be asked for stays what it
    /// was and is tried again.
    pub(super) fn ask_doubtful(&mut self, now: Instant) {
        let due = self.doubtful.iter().filter(|(_, at)| **at <= now);
        let due: Vec<IpAddr> = due.map(|(address, _)| *address).collect();
        for address in due {
            self.doubtful.remove(&address);
            if !self.ways.contains_key(&address) {
                continue;
            }
            match self.requests.lookup(address) {
                Ok(way) => {
                    let mtu = way.as_ref().and_then(|way| way.mtu);
                    if self.set_way(address, way) {
                        tracing::info!(%address, mtu, "the way to a node has changed");
                        let mut dirt = std::mem::take(&mut self.dirt);
                        dirt.ways(&BTreeSet::from([address]), &self.world(), &self.index);
                        self.dirt = dirt;
                    }
                }
                Err(error) => {
                    tracing::warn!("{error}");
                    self.doubt(address, RETRY_KERNEL);
                }
            }
        }
    }
}
