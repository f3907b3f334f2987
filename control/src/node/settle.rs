//! Brings kernel and dataplane in line with what was told and what is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ipnet::IpNet;
use podway_proto::control::PortRoleSpec;

use super::{Node, RETRY_KERNEL};
use crate::dirt::Dirt;
use crate::kernel::{self, DeviceWant, Want};
use crate::nftables::Rules;
use crate::reverse_path;
use crate::world::{LearnedMacs, World};

/// Rounds of looking and changing until the kernel stays as it is: the device, what is on it, and
/// what follows from its addresses. One more finds nothing to do.
const SETTLE_ROUNDS: u32 = 4;
/// Orders to the kernel before what it tells of them is read.
const ORDERS_AT_ONCE: usize = 4096;

impl Node {
    /// Brings kernel and dataplane in line if anything has changed.
    pub(super) fn settle(&mut self, now: Instant) {
        self.ask_doubtful(now);
        self.read_table(now);
        self.dirt.all |= self.netfilter.look(now);
        if self.dirt.all || self.dirt.objects {
            self.rules = Rules::of(&self.world());
        }
        self.table.keep(self.rules.as_ref(), now);
        let mut errors = self.ask_stale_ways(now);
        if self.retry_kernel.is_some_and(|at| now >= at) {
            self.retry_kernel = None;
            self.dirt.objects = true;
            self.dirt.routes.extend(self.route_errors.keys());
            if self.mirror_error.is_some() {
                self.take_anew();
            }
        }
        if self.dirt.is_empty() {
            return;
        }
        let mut settled = Dirt::default();
        for _ in 0..SETTLE_ROUNDS {
            let mut dirt = std::mem::take(&mut self.dirt);
            if dirt.all || dirt.objects {
                self.ask_new_ways(&mut dirt, &mut errors);
            }
            self.settle_kernel(now, &dirt, &errors);
            settled.merge(dirt);
            self.follow_kernel();
            if self.dirt.is_empty() {
                break;
            }
        }
        if settled.all || settled.ports {
            self.learn_macs();
        }
        let world = World {
            settings: &self.settings,
            desired: &self.desired,
            observed: &self.observed,
            ways: &self.ways,
            learned: &self.learned,
            import: &self.import,
            chains: self.netfilter.chains(),
        };
        if settled.all || settled.ports {
            self.reverse_path.follow(&world);
        }
        self.session.update(&world, &self.index, &settled);
        if let Some(health) = &mut self.health {
            health.update(&world, &settled, now);
        }
    }

    /// Brings those objects of the kernel in line that `dirt` names; what fails is tried again in
    /// a second, `way_errors` too.
    fn settle_kernel(&mut self, now: Instant, dirt: &Dirt, way_errors: &BTreeSet<String>) {
        let mut errors: Vec<String> = way_errors.iter().cloned().collect();
        let objects = dirt.all || dirt.objects;
        if objects {
            errors.extend(self.settle_devices());
        }
        let devices = kernel::devices(&self.world());
        let (mut orders, mut removals) = (Vec::new(), Vec::new());
        if objects {
            let want = Want::of(&self.world(), &self.index, &devices);
            (orders, removals) = kernel::orders(&self.observed, &want);
            errors.extend(want.errors);
        }
        let prefixes: Vec<IpNet> = if dirt.all {
            let told = self.index.prefixes(&self.desired);
            let imported = self.import.prefixes();
            let ours = self.observed.our_routes().keys().copied();
            let mut all: Vec<IpNet> = told.chain(imported).chain(ours).collect();
            all.sort_unstable();
            all.dedup();
            all
        } else {
            dirt.routes.iter().copied().collect()
        };
        let (mut routes, mut refused) = (Vec::new(), BTreeMap::new());
        for prefix in &prefixes {
            let want = kernel::route(&self.world(), &self.index, &devices, *prefix);
            let want = want.unwrap_or_else(|error| {
                refused.insert(*prefix, error);
                None
            });
            routes.extend(kernel::route_order(&self.observed, *prefix, want));
        }
        // For each route the kernel searches all gateways of the link, the newest first
        // (`fib_find_info` of net/ipv4/fib_semantics.c hashes by link, not by gateway): routes
        // through one gateway after the other are found at once.
        routes.sort_by_key(|order| order.route().map(|route| (route.link, route.gateway)));
        orders.extend(routes);
        orders.extend(removals);
        for some in orders.chunks(ORDERS_AT_ONCE) {
            for (position, error) in kernel::carry_out(&mut self.requests, some) {
                match some[position].route() {
                    Some(route) => drop(refused.insert(route.prefix, error)),
                    None => errors.push(error),
                }
            }
            // The kernel tells of each, and the monitor does not hold any number. Other nodes wait a
            // second for an answer.
            self.follow_kernel();
            self.follow_health(Instant::now());
        }
        for prefix in prefixes {
            match refused.remove(&prefix) {
                Some(error) => self.note_route_error(prefix, error),
                None => drop(self.route_errors.remove(&prefix)),
            }
        }
        if objects {
            for error in errors
                .iter()
                .filter(|error| !self.kernel_errors.contains(error))
            {
                tracing::warn!("{error}");
            }
            self.kernel_errors = errors;
        }
        if !(self.kernel_errors.is_empty() && self.route_errors.is_empty()) {
            self.retry_kernel.get_or_insert(now + RETRY_KERNEL);
        }
    }

    /// Brings the VXLAN devices in line; what is in the way.
    fn settle_devices(&mut self) -> Vec<String> {
        let (mut errors, mut done) = (Vec::new(), false);
        // First: one of them may have a VNI that another is to get.
        for index in kernel::stale_devices(&self.world()) {
            match self.requests.delete_link(index) {
                Ok(()) => done = true,
                Err(error) => errors.push(error.to_string()),
            }
        }
        for want in DeviceWant::all(&self.world()) {
            match kernel::apply_device(&mut self.requests, &self.observed, &want) {
                Ok(true) if !self.settings.also_vnis.is_empty() => {
                    done = true;
                    errors.extend(reverse_path::loosen(&want.name).err());
                }
                Ok(changed) => done |= changed,
                Err(error) => errors.push(error),
            }
        }
        if done {
            self.follow_kernel();
        }
        errors
    }

    /// Keeps what is wrong with a route, and logs it once.
    fn note_route_error(&mut self, prefix: IpNet, error: String) {
        if self.route_errors.get(&prefix) != Some(&error) {
            tracing::warn!("{error}");
            self.route_errors.insert(prefix, error);
        }
    }

    /// Notes the MACs that pods have answered with, and forgets those of links that are gone.
    fn learn_macs(&mut self) {
        let mut learned = LearnedMacs::new();
        for (interface, role) in &self.desired.ports {
            let PortRoleSpec::Pod {
                addresses,
                mac: None,
                ..
            } = role
            else {
                continue;
            };
            let Some(link) = self.observed.link_named(interface) else {
                continue;
            };
            let seen = addresses.iter().find_map(|address| {
                self.observed
                    .neighbor(link.index, *address)
                    .and_then(|neighbor| neighbor.mac)
            });
            let mac = seen.or_else(|| self.learned.get(interface).copied());
            learned.extend(mac.map(|mac| (interface.clone(), mac)));
        }
        self.learned = learned;
    }
}
