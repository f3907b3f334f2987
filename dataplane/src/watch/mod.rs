//! Watching packets on their way, for who wants to see them: `podway capture` and `podway trace`.
//!
//! A worker looks at its [`Watches`] where a packet comes ([`Watches::came`]), where it is known where
//! it goes ([`Watches::decided`]), and where it is handed over ([`Watches::gathered`]) or dies
//! ([`Watches::dropped`], [`Watches::not_sent`]). Without a watch each of these is one test of a length.
//!
//! A packet is matched once, when it is decided: by the headers that [`crate::forward`] has read
//! anyway. It still is as it came then, but for outer headers, which lie in front of it, what lay behind
//! their datagram, and the checksum inside of a pod's own tunnel. What is rewritten next is kept if a watch
//! has taken the packet, or may when it dies.
//!
//! Records go through a [`ring`] for each watch to the API thread. One that is full costs records, never
//! packets.

mod came;
mod filter;
mod note;
mod ring;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use podway_proto::watch::{MAX_SNAP, MAX_WATCHES, WatchFlow, WatchPoint, WatchSpec};
use rustix::time::{ClockId, clock_gettime};

use crate::egress::Message;
use crate::fib::{PortId, Tables};
use crate::packet::Packet;
use crate::tunnel::{OUTER_V6_LEN, OuterHeader, encap, is_vxlan_for_us};
use crate::verdict::{DropReason, Send};
use crate::wire::glance::{Glanced, glance, glance_inside};
use crate::wire::{Headers, VxlanHeader, ethernet, vxlan};

pub use filter::{Filter, FilterError, Leaves, Seen};
pub use note::{Exit, ExitTo, Note};
pub use ring::{Reader, Writer, ring};

use came::Came;
use note::Points;

/// One watch at one worker.
#[derive(Debug)]
pub struct Watch {
    /// The watch's number, the same at each worker.
    id: u64,
    filter: Filter,
    points: Points,
    /// Bytes of each packet that are kept.
    snap: usize,
    /// One of so many packets that match is taken.
    sample: u32,
    /// Packets that all workers together may still take; `None`: any number.
    left: Option<Arc<AtomicU64>>,
    writer: Writer,
    /// Packets that matched since one was taken.
    passed: u32,
    /// Packets that were taken.
    taken: u64,
    /// Number of the packet in hand, if it was taken.
    packet: u64,
}

impl Watch {
    /// The part of one worker in a watch.
    pub fn new(
        id: u64,
        filter: Filter,
        spec: &WatchSpec,
        left: Option<Arc<AtomicU64>>,
        writer: Writer,
    ) -> Self {
        Self {
            id,
            filter,
            points: spec.points.iter().copied().collect(),
            snap: spec.snap.min(MAX_SNAP) as usize,
            sample: spec.sample,
            left,
            writer,
            passed: 0,
            taken: 0,
            packet: 0,
        }
    }

    /// Whether this packet, which matches, is taken: a sampled one, and within the limit.
    fn takes(&mut self) -> bool {
        self.passed += 1;
        if self.passed < self.sample {
            return false;
        }
        self.passed = 0;
        if let Some(left) = &self.left
            && left
                .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
                .is_err()
        {
            return false;
        }
        self.taken += 1;
        true
    }

    fn record<'p>(&mut self, note: Note, parts: impl Iterator<Item = &'p [u8]>, available: usize) {
        if self.points.has(note.point) {
            self.writer.write(note, self.snap.min(available), parts);
        }
    }
}

/// The watches of one worker, and what they know of the packet in hand.
#[derive(Debug)]
pub struct Watches {
    armed: Vec<Watch>,
    /// Matches what any of their filters does, but for those that want only what dies.
    any: Filter,
    /// Whether any of them may want bytes of a packet as it came when that dies, and only then: a filter
    /// that asks why.
    keeps_heads: bool,
    came: Came,
    /// Which of `armed` have taken the packet in hand, a bit each.
    taken: u8,
    /// Which it has been offered to: those that match, taken or not.
    offered: u8,
    /// When they did.
    time: u64,
}

const _: () = assert!(MAX_WATCHES <= 8, "a bit each");

impl Default for Watches {
    fn default() -> Self {
        Self {
            armed: Vec::with_capacity(MAX_WATCHES),
            any: Filter::any_of([]),
            keeps_heads: false,
            came: Came::default(),
            taken: 0,
            offered: 0,
            time: 0,
        }
    }
}

impl Watches {
    /// Arms a watch; gives it back when there are as many as may be.
    pub fn arm(&mut self, watch: Watch) -> Option<Watch> {
        if self.armed.len() >= MAX_WATCHES {
            return Some(watch);
        }
        self.armed.push(watch);
        self.armed_have_changed();
        None
    }

    /// Disarms a watch and gives it back; `None` when there is no such one.
    pub fn disarm(&mut self, id: u64) -> Option<Watch> {
        let at = self.armed.iter().position(|watch| watch.id == id)?;
        let watch = self.armed.remove(at);
        self.armed_have_changed();
        Some(watch)
    }

    fn armed_have_changed(&mut self) {
        let early = Points::default()
            .and(WatchPoint::Ingress)
            .and(WatchPoint::Decap);
        let keeps_heads = |watch: &Watch| {
            watch.points.meet(early) && watch.snap > 0 && watch.filter.looks_at_reason()
        };
        self.keeps_heads = self.armed.iter().any(keeps_heads);
        // What dies is offered to all by itself.
        let of_the_living =
            |watch: &&Watch| watch.points != Points::default().and(WatchPoint::Dropped);
        let living = self.armed.iter().filter(of_the_living);
        self.any = Filter::any_of(living.map(|watch| &watch.filter));
        (self.taken, self.offered) = (0, 0);
    }

    /// A packet has come by `port`, and is as it came.
    #[inline]
    pub fn came(&mut self, packet: &Packet<'_>, port: PortId) {
        if self.armed.is_empty() {
            return;
        }
        (self.taken, self.offered) = (0, 0);
        self.came.remember(packet, port);
    }

    /// It is known where a packet goes; one that has come was not rewritten yet.
    #[inline]
    pub fn decided(&mut self, packet: &mut Packet<'_>, send: &Send<'_>) {
        if self.armed.is_empty() {
            return;
        }
        if self.keeps_heads && self.came.by != PortId::NONE {
            self.came.keep_head(packet);
        }
        if self.may_be_wanted(packet, send) {
            self.offer(packet, send);
        }
    }

    /// Whether a watch may want a packet that goes there. Most packets of a watched worker are wanted by
    /// none, and are done with here.
    #[inline(never)]
    fn may_be_wanted(&self, packet: &Packet<'_>, send: &Send<'_>) -> bool {
        if self.any.looks_at_vni() && packet.headroom() > self.came.headroom {
            return true;
        }
        let seen = Seen {
            headers: Some(&send.headers),
            came_by: self.came.by,
            came_through: None,
            leaves: Leaves::To(send.next_hop),
            reason: None,
        };
        self.any.matches(&seen)
    }

    #[inline(never)]
    fn offer(&mut self, packet: &mut Packet<'_>, send: &Send<'_>) {
        let came_through = self.came_through(packet);
        let seen = Seen {
            headers: Some(&send.headers),
            came_by: self.came.by,
            came_through,
            leaves: Leaves::To(send.next_hop),
            reason: None,
        };
        let possible = self.early(packet).and(WatchPoint::Egress);
        let new = self.take(&seen, possible);
        self.arrival(new, packet, Some(&send.headers), came_through, None);
    }

    /// Points at which the packet in hand may have a record of how it came.
    #[inline]
    fn early(&self, packet: &Packet<'_>) -> Points {
        let none = Points::default();
        match self.came.by {
            PortId::NONE => none,
            _ if packet.headroom() > self.came.headroom => {
                none.and(WatchPoint::Ingress).and(WatchPoint::Decap)
            }
            _ => none.and(WatchPoint::Ingress),
        }
    }

    /// Offers a packet to the watches that want a record at one of the `possible` points and that it was
    /// not offered to; those that take it.
    fn take(&mut self, seen: &Seen<'_>, possible: Points) -> u8 {
        let mut new = 0;
        for (n, watch) in self.armed.iter_mut().enumerate() {
            let bit = 1 << n;
            let is_new = self.offered & bit == 0 && watch.points.meet(possible);
            if is_new && watch.filter.matches(seen) {
                self.offered |= bit;
                if watch.takes() {
                    watch.packet = watch.taken;
                    new |= bit;
                }
            }
        }
        self.taken |= new;
        new
    }

    /// Records a packet as it came, for the watches `new`, which have just taken it.
    fn arrival(
        &mut self,
        new: u8,
        packet: &mut Packet<'_>,
        headers: Option<&Headers>,
        vni: Option<u32>,
        sender: Option<IpAddr>,
    ) {
        if new == 0 {
            return;
        }
        self.time = now();
        if self.came.by == PortId::NONE {
            return;
        }
        let note = Note {
            sender: sender.or_else(|| self.sender(packet)),
            ..self.note(packet, headers, vni)
        };
        let Self { armed, came, .. } = self;
        // Of one that dies rewritten it is kept already, if it is wanted.
        came.keep_head(packet);
        let pulled = came.pulled(packet);
        let head = came.head();
        for watch in chosen(armed, new) {
            let number = watch.packet;
            for (point, length, skip) in [
                (WatchPoint::Ingress, came.length, 0),
                (
                    WatchPoint::Decap,
                    came.length.saturating_sub(pulled),
                    pulled,
                ),
            ] {
                if point == WatchPoint::Decap && pulled == 0 {
                    continue;
                }
                let kept = head.get(skip..).unwrap_or_default();
                let behind = head.len().max(skip).saturating_sub(pulled);
                let rest = packet.slices(behind, packet.len().saturating_sub(behind));
                let available = kept.len() + packet.len().saturating_sub(behind);
                let note = Note {
                    point,
                    packet: number,
                    length: narrow(length),
                    exit: None,
                    ..note
                };
                watch.record(note, [kept].into_iter().chain(rest), available);
            }
        }
    }

    /// A packet was handed over to leave as `send` says, in the tunnel with this source port. It had
    /// `length` bytes before; a header may have been put in front of it since.
    #[inline]
    pub fn gathered(
        &mut self,
        packet: &mut Packet<'_>,
        send: &Send<'_>,
        length: usize,
        source_port: impl FnOnce() -> u16,
    ) {
        if self.taken != 0 {
            self.leaves(packet, send, length, source_port());
        }
    }

    #[inline(never)]
    fn leaves(
        &mut self,
        packet: &mut Packet<'_>,
        send: &Send<'_>,
        length: usize,
        source_port: u16,
    ) {
        let mut header = [0; OUTER_V6_LEN];
        let outer = send.next_hop.tunnel().map_or(&[][..], OuterHeader::bytes);
        let header = header.get_mut(..outer.len()).unwrap_or_default();
        header.copy_from_slice(outer);
        encap::begin(header, send.headers.tos, source_port);
        let payload = vxlan::HEADER_LEN + length;
        encap::finish(header, u16::try_from(payload).unwrap_or(u16::MAX));
        let in_front = packet.len().saturating_sub(length);
        let came_through = self.came_through(packet);
        let note = Note {
            point: WatchPoint::Egress,
            length: narrow(header.len() + length),
            exit: Some(Exit::of(send)),
            ..self.note(packet, Some(&send.headers), came_through)
        };
        for watch in chosen(&mut self.armed, self.taken) {
            let packet_number = watch.packet;
            let note = Note {
                packet: packet_number,
                ..note
            };
            let parts = [&*header]
                .into_iter()
                .chain(packet.slices(in_front, length));
            watch.record(note, parts, header.len() + length);
        }
        self.forget();
    }

    /// A packet dies: before its way was known, or on the way that `send` says.
    #[inline]
    pub fn dropped(
        &mut self,
        reason: DropReason,
        packet: &mut Packet<'_>,
        send: Option<&Send<'_>>,
        tables: &Tables,
    ) {
        if !self.armed.is_empty() {
            self.dies(reason, packet, send, tables);
        }
    }

    #[cold]
    fn dies(
        &mut self,
        reason: DropReason,
        packet: &mut Packet<'_>,
        send: Option<&Send<'_>>,
        tables: &Tables,
    ) {
        let mut came_through = self.came_through(packet);
        let mut sender = None;
        let headers = match send {
            Some(send) => Some(send.headers),
            None => {
                let from_uplink = tables.port(self.came.by).is_some_and(|port| port.is_uplink);
                // A tunnel that is off already has another inside only if that is a pod's own.
                let still_on = from_uplink && came_through.is_none();
                let local = tables.local().filter(|_| still_on);
                let is_ours =
                    |outer: &Headers| local.is_some_and(|local| is_vxlan_for_us(outer, local));
                let glanced = glance_inside(packet.head(), is_ours, packet.len());
                came_through = came_through.or(glanced.and_then(|glanced| glanced.vni));
                sender = glanced.and_then(|glanced| glanced.sender);
                glanced.map(|glanced| glanced.headers)
            }
        };
        let seen = Seen {
            headers: headers.as_ref(),
            came_by: self.came.by,
            came_through,
            leaves: send.map_or(Leaves::Unknown, |send| Leaves::To(send.next_hop)),
            reason: Some(reason),
        };
        let possible = self.early(packet).and(WatchPoint::Dropped);
        let new = self.take(&seen, possible);
        self.arrival(new, packet, headers.as_ref(), came_through, sender);
        let note = Note {
            point: WatchPoint::Dropped,
            length: narrow(packet.len()),
            exit: send.map(Exit::of),
            reason: Some(reason),
            ..self.note(packet, headers.as_ref(), came_through)
        };
        for watch in chosen(&mut self.armed, self.taken) {
            let note = Note {
                packet: watch.packet,
                ..note
            };
            watch.record(note, packet.slices(0, packet.len()), packet.len());
        }
        self.forget();
    }

    /// A message that begins with `head` was not taken by the kernel: all of it is one record.
    #[cold]
    pub fn not_sent(&mut self, reason: DropReason, message: &Message, head: &[u8]) {
        if self.armed.is_empty() {
            return;
        }
        let (port, length) = (message.port, message.bytes);
        let glanced = glance_inside(head, |_| message.encapsulated, length as usize);
        let headers = glanced.as_ref().map(|Glanced { headers, .. }| headers);
        let seen = Seen {
            headers,
            came_by: PortId::NONE,
            came_through: None,
            leaves: Leaves::By(port, glanced.and_then(|glanced| glanced.vni)),
            reason: Some(reason),
        };
        for watch in &mut self.armed {
            let wants = watch.points.has(WatchPoint::Dropped);
            if !wants || !watch.filter.matches(&seen) || !watch.takes() {
                continue;
            }
            let note = Note {
                time: now(),
                packet: watch.taken,
                point: WatchPoint::Dropped,
                length,
                flow: headers.map(flow),
                exit: Some(Exit { port, to: None }),
                reason: Some(reason),
                ..Note::default()
            };
            watch.record(note, [head].into_iter(), head.len());
        }
    }

    /// The packet in hand has its last record. What may yet become of its frames was made here.
    fn forget(&mut self) {
        (self.taken, self.offered) = (0, 0);
        self.came.by = PortId::NONE;
    }

    /// The VNI of the tunnel that the packet came by: its header still lies in front of the packet.
    fn came_through(&self, packet: &mut Packet<'_>) -> Option<u32> {
        let pulled = packet.headroom().checked_sub(self.came.headroom)?;
        if self.came.by == PortId::NONE || pulled == 0 || !packet.push_front(vxlan::HEADER_LEN) {
            return None;
        }
        let header = packet.head().get(..vxlan::HEADER_LEN);
        let vni = header.map(|header| VxlanHeader::new_unchecked(header).vni().get());
        packet.pull_front(vxlan::HEADER_LEN);
        vni
    }

    /// Who has sent the tunnel that the packet came by, which is off: its headers still lie in front of
    /// the packet.
    fn sender(&self, packet: &mut Packet<'_>) -> Option<IpAddr> {
        let pulled = packet.headroom().checked_sub(self.came.headroom)?;
        if pulled == 0 || !packet.push_front(pulled) {
            return None;
        }
        let outer = glance(packet.head(), ethernet::HEADER_LEN, packet.len());
        packet.pull_front(pulled);
        outer.map(|outer| outer.src)
    }

    /// What the records of a packet have in common, which came through a tunnel with this VNI.
    fn note(&self, packet: &Packet<'_>, headers: Option<&Headers>, vni: Option<u32>) -> Note {
        Note {
            time: self.time,
            came_by: self.came.by,
            segment: packet.segment(),
            frames: u16::try_from(packet.frames()).unwrap_or(u16::MAX),
            flow: headers.map(flow),
            vni,
            ..Note::default()
        }
    }
}

/// Those of `armed` whose bit is set.
fn chosen(armed: &mut [Watch], bits: u8) -> impl Iterator<Item = &mut Watch> {
    let armed = armed.iter_mut().enumerate();
    armed.filter_map(move |(n, watch)| (bits & 1 << n != 0).then_some(watch))
}

fn flow(headers: &Headers) -> WatchFlow {
    WatchFlow {
        source: headers.src,
        destination: headers.dst,
        protocol: headers.protocol,
        source_port: headers.ports().map(|(source, _)| source),
        destination_port: headers.ports().map(|(_, destination)| destination),
    }
}

fn narrow(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// CLOCK_REALTIME in nanoseconds; no system call (vDSO).
fn now() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests;
