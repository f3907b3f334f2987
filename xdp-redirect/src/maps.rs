//! Typed updates of what the program reads.
//!
//! Each call is one system call or one store, takes effect for the next packet, and is atomic: the
//! program sees the old or the new entry. Deleting what is not there succeeds.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ipnet::IpNet;
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};

use crate::error::{Error, in_range};
use crate::layout::{
    CONFIG_DEFRAGMENTS, CONFIG_TRANSLATES, Key, MAX_SOCKETS, MAX_VNI, MAX_WORKERS, PortEntry,
    UNKNOWN_PORT_SLOT, exit, route,
};
use crate::load::Redirect;
use crate::memory::{Heartbeat, Unsent};
use crate::ring::PacketRing;
use crate::stats::{Oversize, PortStats};

/// Value of maps in which presence is all that counts.
const PRESENT: [u8; 1] = [1];

impl Redirect {
    /// Lets packets through to the sockets.
    pub fn open_gate(&self) {
        self.set_gate(1);
    }

    /// Leaves every packet to the kernel, from the next one on each CPU. One store.
    pub fn close_gate(&self) {
        self.set_gate(0);
    }

    /// Whether the gate is open. It starts closed.
    pub fn gate_is_open(&self) -> bool {
        self.config.entries()[0].gate_open.load(Ordering::SeqCst) != 0
    }

    fn set_gate(&self, open: u32) {
        // Ordered after whatever this thread did to the maps before: those were system calls.
        self.config.entries()[0]
            .gate_open
            .store(open, Ordering::SeqCst);
    }

    /// Sets the UDP port of VXLAN on the uplinks. 0, as at the start: no tunnel is ours.
    pub fn set_vxlan_port(&self, port: u16) {
        self.config.entries()[0]
            .vxlan_port
            .store(port, Ordering::SeqCst);
    }

    /// Says whether rules of the node translate addresses (NAT), so that conntrack is asked about
    /// every connection, and those that it translates are left to the kernel. Not at the start.
    pub fn set_translates(&self, translates: bool) {
        self.set_flag(CONFIG_TRANSLATES, translates);
    }

    /// Says whether the kernel of the node puts IPv4 fragments together before it forwards them, as it
    /// does for conntrack: it then gets all of them, on every port and out of tunnels. Not at the
    /// start.
    pub fn set_defragments(&self, defragments: bool) {
        self.set_flag(CONFIG_DEFRAGMENTS, defragments);
    }

    fn set_flag(&self, flag: u16, on: bool) {
        let flags = &self.config.entries()[0].flags;
        if on {
            flags.fetch_or(flag, Ordering::SeqCst);
        } else {
            flags.fetch_and(!flag, Ordering::SeqCst);
        }
    }

    /// Takes tunnels of a VXLAN network in.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] above 2^24 - 1, [`Error::Full`].
    pub fn add_vni(&self, vni: u32) -> Result<(), Error> {
        in_range("VNI", vni.into(), MAX_VNI.into())?;
        set(
            &self.maps.vnis,
            "vnis",
            &vni.to_ne_bytes(),
            &PRESENT,
            || format!("VNI {vni}"),
        )
    }

    /// Leaves tunnels of a VXLAN network to the kernel.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn del_vni(&self, vni: u32) -> Result<(), Error> {
        del(&self.maps.vnis, "vnis", &vni.to_ne_bytes(), || {
            format!("VNI {vni}")
        })
    }

    /// Sets what the program knows of an interface, by its index.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a counter slot or socket index beyond the maps, [`Error::Full`].
    pub fn set_port(&self, ifindex: u32, port: &PortEntry) -> Result<(), Error> {
        let value = port.encode()?;
        set(
            &self.maps.ports,
            "ports",
            &ifindex.to_ne_bytes(),
            &value,
            || interface(ifindex),
        )
    }

    /// Forgets an interface: its packets pass.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn del_port(&self, ifindex: u32) -> Result<(), Error> {
        del(&self.maps.ports, "ports", &ifindex.to_ne_bytes(), || {
            interface(ifindex)
        })
    }

    /// Puts an AF_XDP socket at an index: the port's `xsk_base` plus the queue that the socket is
    /// bound to. Bind it first: the kernel drops what is redirected into one that is not bound, or
    /// is bound to another interface or queue. A closed socket leaves the map by itself.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]; [`Error::Map`] when the descriptor is no AF_XDP socket.
    pub fn set_socket(&self, index: u32, socket: BorrowedFd<'_>) -> Result<(), Error> {
        in_range("socket index", index.into(), (MAX_SOCKETS - 1).into())?;
        let value = socket.as_raw_fd().to_ne_bytes();
        set(
            &self.maps.sockets,
            "sockets",
            &index.to_ne_bytes(),
            &value,
            || entry(index),
        )
    }

    /// Takes the socket at an index away: its packets pass.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Map`].
    pub fn del_socket(&self, index: u32) -> Result<(), Error> {
        in_range("socket index", index.into(), (MAX_SOCKETS - 1).into())?;
        del(&self.maps.sockets, "sockets", &index.to_ne_bytes(), || {
            entry(index)
        })
    }

    /// Says whose heartbeat guards the socket at an index. It is worker 0 when nothing is said.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Map`].
    pub fn set_queue_worker(&self, index: u32, worker: u32) -> Result<(), Error> {
        in_range("socket index", index.into(), (MAX_SOCKETS - 1).into())?;
        in_range("worker", worker.into(), (MAX_WORKERS - 1).into())?;
        let (key, value) = (index.to_ne_bytes(), worker.to_ne_bytes());
        set(
            &self.maps.queue_workers,
            "queue_workers",
            &key,
            &value,
            || entry(index),
        )
    }

    /// Says by which TAP a worker receives what the classifier redirects: an interface index; 0 for
    /// none.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Map`].
    pub fn set_tap(&self, worker: u32, tap: u32) -> Result<(), Error> {
        in_range("worker", worker.into(), (MAX_WORKERS - 1).into())?;
        let (key, value) = (worker.to_ne_bytes(), tap.to_ne_bytes());
        set(&self.maps.taps, "taps", &key, &value, || {
            format!("worker {worker}")
        })
    }

    /// Gives a worker a ring, to which the classifier copies what needs no TAP. Without one, all
    /// goes to the TAP. The map keeps the ring's memory after the reader is gone.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Map`].
    pub fn set_ring(&self, worker: u32, ring: &PacketRing) -> Result<(), Error> {
        in_range("worker", worker.into(), (MAX_WORKERS - 1).into())?;
        let (key, value) = (worker.to_ne_bytes(), ring.as_fd().as_raw_fd().to_ne_bytes());
        set(&self.maps.rings, "rings", &key, &value, || {
            format!("worker {worker}")
        })
    }

    /// Says which interface a slot's packets leave by when they are written to a TAP, and its MAC.
    /// Interface index 0 takes the exit away: such packets are dropped, and their writer is told
    /// ([`Unsent`]).
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Map`].
    pub fn set_exit(&self, slot: u32, ifindex: u32, mac: [u8; 6]) -> Result<(), Error> {
        in_range("counter slot", slot.into(), (UNKNOWN_PORT_SLOT - 1).into())?;
        let (key, value) = (slot.to_ne_bytes(), exit(ifindex, mac));
        set(&self.maps.exits, "exits", &key, &value, || {
            format!("slot {slot}")
        })
    }

    /// Adds or replaces a fast-path prefix. `mtu` is the largest L3 packet in bytes that its route
    /// carries; 0 says that the route is known but unresolved, so that its packets pass even under
    /// a shorter prefix that is resolved. Host bits are ignored.
    ///
    /// # Errors
    /// [`Error::Map`], also when the map is full.
    pub fn add_prefix(&self, prefix: IpNet, mtu: u16) -> Result<(), Error> {
        let key = Key::prefix(prefix);
        let (map, name) = self.prefixes(&key);
        set(map, name, key.bytes(), &route(mtu), || prefix.to_string())
    }

    /// Withdraws a prefix. Do it before the FIB forgets the route.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn del_prefix(&self, prefix: IpNet) -> Result<(), Error> {
        let key = Key::prefix(prefix);
        let (map, name) = self.prefixes(&key);
        del(map, name, key.bytes(), || prefix.to_string())
    }

    /// Adds an address of the node itself: packets to it are the kernel's, tunnels to it end here.
    ///
    /// # Errors
    /// [`Error::Full`].
    pub fn add_local(&self, address: IpAddr) -> Result<(), Error> {
        let key = Key::address(address);
        let (map, name) = self.local(&key);
        set(map, name, key.bytes(), &PRESENT, || address.to_string())
    }

    /// Forgets an address of the node.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn del_local(&self, address: IpAddr) -> Result<(), Error> {
        let key = Key::address(address);
        let (map, name) = self.local(&key);
        del(map, name, key.bytes(), || address.to_string())
    }

    /// Adds or moves an address of a pod to the port with an interface index: the port accepts it
    /// as a source, uplinks accept it as a destination.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for index 0, which no interface has; [`Error::Full`].
    pub fn add_pod(&self, address: IpAddr, ifindex: u32) -> Result<(), Error> {
        if ifindex == 0 {
            return Err(Error::OutOfRange {
                what: "interface index",
                value: 0,
                largest: u32::MAX.into(),
            });
        }
        let key = Key::address(address);
        let (map, name) = self.pods(&key);
        set(map, name, key.bytes(), &ifindex.to_ne_bytes(), || {
            address.to_string()
        })
    }

    /// Forgets an address of a pod.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn del_pod(&self, address: IpAddr) -> Result<(), Error> {
        let key = Key::address(address);
        let (map, name) = self.pods(&key);
        del(map, name, key.bytes(), || address.to_string())
    }

    /// What was counted in a slot since it was cleared, summed over CPUs. Packets in flight may be
    /// counted on one CPU and not yet on another.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Map`].
    pub fn counters(&self, slot: u32) -> Result<PortStats, Error> {
        in_range("counter slot", slot.into(), UNKNOWN_PORT_SLOT.into())?;
        let found = self
            .maps
            .counters
            .lookup_percpu(&slot.to_ne_bytes(), MapFlags::ANY);
        let cpus = found.map_err(|source| Error::Map {
            map: "counters",
            action: "read",
            key: entry(slot),
            source,
        })?;
        let mut stats = PortStats::default();
        for cpu in cpus.unwrap_or_default() {
            stats.add(&cpu);
        }
        Ok(stats)
    }

    /// Sets a slot's counters to zero, for its next port. Packets that pass meanwhile may or may
    /// not be counted, so detach the port first.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Map`].
    pub fn clear_slot(&self, slot: u32) -> Result<(), Error> {
        in_range("counter slot", slot.into(), UNKNOWN_PORT_SLOT.into())?;
        let failed = |source| Error::Map {
            map: "counters",
            action: "clear",
            key: entry(slot),
            source,
        };
        let cpus = libbpf_rs::num_possible_cpus().map_err(failed)?;
        let zeroes = vec![vec![0; PortStats::SIZE]; cpus];
        let counters = &self.maps.counters;
        counters
            .update_percpu(&slot.to_ne_bytes(), &zeroes, MapFlags::ANY)
            .map_err(failed)
    }

    /// The last packet of a slot that was left to the kernel because its route carries less.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Map`].
    pub fn oversize(&self, slot: u32) -> Result<Option<Oversize>, Error> {
        in_range("counter slot", slot.into(), UNKNOWN_PORT_SLOT.into())?;
        let found = self
            .maps
            .oversize
            .lookup_percpu(&slot.to_ne_bytes(), MapFlags::ANY);
        let cpus = found.map_err(|source| Error::Map {
            map: "oversize",
            action: "read",
            key: entry(slot),
            source,
        })?;
        let cpus = cpus.unwrap_or_default();
        let last = cpus.iter().filter_map(|cpu| Oversize::decode(cpu));
        Ok(last.max_by_key(|(at, _)| *at).map(|(_, packet)| packet))
    }

    /// Forgets it, for the slot's next port.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Map`].
    pub fn forget_oversize(&self, slot: u32) -> Result<(), Error> {
        in_range("counter slot", slot.into(), UNKNOWN_PORT_SLOT.into())?;
        let failed = |source| Error::Map {
            map: "oversize",
            action: "clear",
            key: entry(slot),
            source,
        };
        let cpus = libbpf_rs::num_possible_cpus().map_err(failed)?;
        let zeroes = vec![vec![0; Oversize::SIZE]; cpus];
        let oversize = &self.maps.oversize;
        oversize
            .update_percpu(&slot.to_ne_bytes(), &zeroes, MapFlags::ANY)
            .map_err(failed)
    }

    /// The heartbeat of a worker, for it to keep. Dropping it stops the worker's queues, so do not
    /// take a second one for a worker that lives.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn heartbeat(&self, worker: u32) -> Result<Heartbeat, Error> {
        in_range("worker", worker.into(), (MAX_WORKERS - 1).into())?;
        Ok(Heartbeat::new(
            Arc::clone(&self.heartbeats),
            worker as usize,
        ))
    }

    /// What a worker learns of the packets that it writes to its TAP, for it to keep.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn unsent(&self, worker: u32) -> Result<Unsent, Error> {
        in_range("worker", worker.into(), (MAX_WORKERS - 1).into())?;
        let [worker, ..] = worker.to_le_bytes();
        Ok(Unsent::new(Arc::clone(&self.unsent), worker))
    }

    /// Bells that the programs have sent to a worker's TAP, and that it has got unless they found the
    /// TAP's queue full.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn bells(&self, worker: u32) -> Result<u64, Error> {
        in_range("worker", worker.into(), (MAX_WORKERS - 1).into())?;
        let memory = self.heartbeats.entries().get(worker as usize);
        Ok(memory.map_or(0, |memory| memory.bells.load(Ordering::Relaxed)))
    }

    fn prefixes(&self, key: &Key) -> (&MapHandle, &'static str) {
        match key {
            Key::V4(..) => (&self.maps.prefixes4, "prefixes4"),
            Key::V6(..) => (&self.maps.prefixes6, "prefixes6"),
        }
    }

    fn local(&self, key: &Key) -> (&MapHandle, &'static str) {
        match key {
            Key::V4(..) => (&self.maps.local4, "local4"),
            Key::V6(..) => (&self.maps.local6, "local6"),
        }
    }

    fn pods(&self, key: &Key) -> (&MapHandle, &'static str) {
        match key {
            Key::V4(..) => (&self.maps.pods4, "pods4"),
            Key::V6(..) => (&self.maps.pods6, "pods6"),
        }
    }
}

fn interface(ifindex: u32) -> String {
    format!("interface {ifindex}")
}

fn entry(index: u32) -> String {
    format!("entry {index}")
}

/// Adds or replaces an entry.
fn set(
    map: &MapHandle,
    name: &'static str,
    key: &[u8],
    value: &[u8],
    what: impl FnOnce() -> String,
) -> Result<(), Error> {
    map.update(key, value, MapFlags::ANY)
        .map_err(|source| match source.kind() {
            ErrorKind::TooBig => Error::Full {
                map: name,
                limit: map.max_entries(),
                key: what(),
            },
            _ => Error::Map {
                map: name,
                action: "set",
                key: what(),
                source,
            },
        })
}

/// Deletes an entry, or does nothing when there is none.
fn del(
    map: &MapHandle,
    name: &'static str,
    key: &[u8],
    what: impl FnOnce() -> String,
) -> Result<(), Error> {
    match map.delete(key) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(Error::Map {
            map: name,
            action: "delete",
            key: what(),
            source,
        }),
        _ => Ok(()),
    }
}
