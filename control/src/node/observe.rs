//! What the node sees: the kernel, by a mirror that events keep, routers' errors, and other nodes.

use std::time::Instant;

use super::ways::WAYS_PERIOD;
use super::{Node, RETRY_KERNEL, unless_whole};
use crate::netlink::{self, Event};
use crate::observed::Observed;
use crate::path_mtu;

impl Node {
    /// Takes in what the kernel tells.
    pub fn follow_kernel(&mut self) {
        match self.monitor.drain() {
            Ok(events) => {
                for event in events {
                    self.follow(event);
                }
            }
            Err(netlink::Overrun) => {
                tracing::warn!("changes of the kernel were lost; taking everything anew");
                self.import.doubt();
                self.take_anew();
            }
        }
        self.stale_ways.merge(self.observed.take_stale_ways());
        self.table.follow();
        self.netfilter.follow();
    }

    /// Takes the mirror anew. Where that fails it stays what it is, and is tried again.
    pub(super) fn take_anew(&mut self) {
        let before = self.mirror_error.take();
        self.mirror_error = match self.requests.dump_all() {
            Ok((events, whole)) => {
                self.observed = Observed::from_dump(events);
                self.dirt.all = true;
                unless_whole(whole)
            }
            Err(error) => Some(format!("changes of the kernel were lost: {error}")),
        };
        if let Some(error) = &self.mirror_error {
            if before.as_ref() != Some(error) {
                tracing::error!("{error}");
            }
            self.retry_kernel = Some(Instant::now() + RETRY_KERNEL);
        }
    }

    /// Reads the table that routes are taken from anew, where events have not told all.
    pub(super) fn read_table(&mut self, now: Instant) {
        let Some(table) = self.import.due(now) else {
            return;
        };
        match self.requests.dump_table(table) {
            Ok((routes, whole)) => self.dirt.all |= self.import.replace(routes, whole, now),
            Err(error) => {
                tracing::warn!("{error}");
                self.import.failed(now);
            }
        }
    }

    fn follow(&mut self, event: Event) {
        let link = match &event {
            Event::Link(link) => Some(link.index),
            Event::LinkGone { index } => Some(*index),
            _ => None,
        };
        let name = link.and_then(|index| self.observed.link(index));
        let name = name.map(|link| link.name.clone());
        let imported = self.import.apply(&event);
        if self.observed.apply(event.clone()) || imported {
            let mut dirt = std::mem::take(&mut self.dirt);
            dirt.event(&event, name.as_deref(), &self.world(), &self.index);
            self.dirt = dirt;
        }
    }

    /// Takes in what routers say. The kernel takes it in only after it has given it to us.
    pub fn follow_errors(&mut self) {
        let nodes = self.errors.as_mut().map(path_mtu::Errors::drain);
        for node in nodes.into_iter().flatten() {
            if self.ways.contains_key(&node) {
                self.doubt(node, WAYS_PERIOD);
            }
        }
    }

    /// Takes in what other nodes ask and answer; see [`crate::health::Health::receive`] for `idle`.
    pub fn follow_health(&mut self, idle: Instant) {
        if let Some(health) = &mut self.health {
            health.receive(idle);
        }
    }
}
