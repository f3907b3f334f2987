//! A worker: a pinned thread that moves packets, and the loop that does it.
//!
//! A worker owns its queues, its frames, its egress socket and its counters. In its loop it takes
//! no lock, allocates nothing, logs nothing and retries nothing without bound; only commands, which
//! are rare, may allocate. The API thread gives them by a [`Link`]: bounded lock-free queues that
//! are looked at once a round.

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use podway_proto::perf::Stage;
use podway_xdp_redirect::Heartbeat;

use crate::answer::Answers;
use crate::clock::monotonic_nanoseconds;
use crate::counters::Sheet;
use crate::egress::Egress;
use crate::fib::{PortId, Reader, Tables};
use crate::forward::forward;
use crate::ingress::{Burst, Ingress, LEAST_POSTED};
use crate::last_drop::LastDrop;
use crate::limits::Limits;
use crate::packet::Packet;
use crate::stages::{Measured, Stages};
use crate::verdict::{DropReason, Verdict};
use crate::wait::{Rest, Waiter};
use crate::watch::{Watch, Watches};
use crate::xsk::{Frame, FramePool, Region};

/// Queues that a worker keeps frames for: a full node has 110 pods and an uplink of some queues.
const EXPECTED_QUEUES: usize = 128;

/// The queues of [`PortId::NONE`], which stand for many ports: the worker's TAP and its packet ring.
pub const TAP_QUEUE: u32 = 0;
/// See [`TAP_QUEUE`].
pub const RING_QUEUE: u32 = 1;

/// Bursts that empty a TAP's queue of 1000 packets, also when they are super-frames, of which a
/// burst takes one; and the largest packet ring, 8 MiB of 272-byte records, by 256.
const DRAIN_BURSTS: usize = 1024;

/// What a worker is made of.
#[derive(Debug)]
pub struct Worker {
    /// The memory that frames live in.
    pub region: Arc<Region>,
    /// The worker's free frames.
    pub pool: FramePool,
    /// The tables that were published last.
    pub tables: Reader<Tables>,
    /// What peers and paths take, of all workers; none where the kernel tells how to cut.
    pub limits: Option<Arc<Limits>>,
    /// Tells senders what became of packets that go no further.
    pub answers: Answers,
    /// Sends messages.
    pub egress: Egress,
    /// Finds ready queues and blocks.
    pub waiter: Waiter,
    /// What it counts.
    pub sheet: Arc<Sheet>,
    /// Who looks at its packets.
    pub watches: Watches,
    /// What it measures of some bursts.
    pub stages: Stages,
    /// Tells the programs on the ports that it is alive.
    pub heartbeat: Heartbeat,
    /// How the API thread reaches it.
    pub link: Arc<Link>,
    /// Its queues and the burst in hand; empty at the start.
    pub queues: Queues,
}

/// The queues of a worker.
#[derive(Debug, Default)]
pub struct Queues {
    /// By slot; a slot is reused when its queue is gone.
    served: Vec<Option<ServedQueue>>,
    /// Slots that gave packets in the round before or were found ready since.
    active: Vec<usize>,
    /// The slot of the packet ring, which is looked at in memory.
    packet_ring: Option<usize>,
    /// Frames that busy queues leave in the pool for queues that are yet to come.
    reserve: usize,
    /// Whether frames have moved since their levels were published.
    moved: bool,
    burst: Burst,
}

/// One queue of a port, or of what stands for many, as its worker serves it.
#[derive(Debug)]
pub struct ServedQueue {
    /// The port; [`PortId::NONE`] for a TAP or a packet ring.
    pub port: PortId,
    /// The queue's number on its interface.
    pub queue: u32,
    /// Where its packets come from.
    pub ingress: Ingress,
    /// Whether it is in the list of active slots.
    pub active: bool,
}

/// What the API thread tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve a queue. Answer: [`Reply::Attached`], after its frames are posted.
    Attach(Box<ServedQueue>),
    /// Forward what a queue still holds and give it up. Answer: [`Reply::Detached`].
    Detach(PortId, u32),
    /// Forward what TAP and packet ring hold. Answer: [`Reply::Drained`].
    Drain,
    /// Lend up to this many frames, to be posted to a new queue. Answer: [`Reply::Lent`].
    Lend(usize),
    /// Frames that come home. No answer.
    Frames(Vec<Frame>),
    /// Look at packets for somebody. Answer: [`Reply::Watching`].
    Watch(Box<Watch>),
    /// Look no more for the watch of that number. Answer: [`Reply::Unwatched`].
    Unwatch(u64),
    /// Give what was measured, and go on in this, which is empty. Answer: [`Reply::Measured`].
    Measured(Box<Measured>),
    /// End the thread.
    Stop,
}

/// What a worker answers.
#[derive(Debug)]
pub enum Reply {
    /// Frames that stay this worker's own.
    Lent(Vec<Frame>),
    /// What TAP and packet ring held at the time of the command is forwarded.
    Drained,
    /// The watch is armed.
    Watching,
    /// The watch, to be freed; `None` when the worker has no such one.
    Unwatched(Option<Box<Watch>>),
    /// What was measured since the last time.
    Measured(Box<Measured>),
    /// The queue is being served.
    Attached(PortId, u32),
    /// The queue could not be waited for; it comes back.
    Refused(Box<ServedQueue>, std::io::Error),
    /// The queue, to be closed; `None` when the worker has no such queue.
    Detached(Option<Box<ServedQueue>>),
}

/// The two queues between the API thread and a worker.
#[derive(Debug)]
pub struct Link {
    /// To the worker, each with a number.
    pub commands: ArrayQueue<(u64, Command)>,
    /// From the worker, each with the number of its command.
    pub replies: ArrayQueue<(u64, Reply)>,
}

impl Default for Link {
    fn default() -> Self {
        // The API thread waits for each answer, so that few are ever under way; but all queues of a
        // worker that is stuck may have to be given up.
        Self {
            commands: ArrayQueue::new(1024),
            replies: ArrayQueue::new(1024),
        }
    }
}

impl Worker {
    /// Moves packets until [`Command::Stop`].
    pub fn run(mut self) {
        self.heartbeat.mark_the_end_of_this_thread();
        while self.obey() {
            let start = monotonic_nanoseconds();
            self.heartbeat.beat(start);
            self.tables.refresh();

            let mut packets = 0;
            let mut position = 0;
            if self.queues.look_at_ring() {
                // First: what it has comes alone, and somebody may be waiting for it.
                packets += self.queues.packet_ring.map_or(0, |slot| self.serve(slot));
            }
            while let Some(&slot) = self.queues.active.get(position) {
                match self.serve(slot) {
                    0 => self.queues.deactivate(position),
                    served => (packets, position) = (packets + served, position + 1),
                }
            }

            self.sheet.rounds.add(1);
            if packets > 0 {
                self.queues.moved = true;
            } else if std::mem::take(&mut self.queues.moved) {
                self.publish_levels();
            }
            let now = if packets == 0 {
                start
            } else {
                monotonic_nanoseconds()
            };
            self.sheet.busy_nanoseconds.add(now - start);
            self.rest(packets, now);
        }
    }

    /// After a round of `packets`: finds ready queues, and sleeps when it is time to.
    fn rest(&mut self, packets: usize, now: u64) {
        let mut rest = self.waiter.decide(packets, now);
        let asleep = rest == Rest::Block;
        if asleep {
            self.heartbeat.fall_asleep();
            if self.queues.look_at_ring() {
                rest = Rest::Look;
            }
        }
        let queues = &mut self.queues;
        if self.waiter.rest(rest, |slot| queues.activate(slot)) {
            self.sheet.sleeps.add(1);
        }
        self.sheet.wait_calls.add(u64::from(rest != Rest::Work));
        // Not in each round: the programs read that line for each packet.
        if asleep {
            self.heartbeat.wake_up();
        }
    }

    /// One burst of one queue: receive, forward, send, recycle, refill. Returns its packets.
    fn serve(&mut self, slot: usize) -> usize {
        let Queues {
            served,
            burst,
            reserve,
            ..
        } = &mut self.queues;
        let Some(queue) = served.get_mut(slot).and_then(Option::as_mut) else {
            return 0;
        };
        self.stages.start(&mut queue.ingress, &self.pool);
        queue
            .ingress
            .receive(queue.port, burst, &mut self.pool, &self.region);
        self.sheet.bells.add(burst.take_bells());
        self.sheet.rx_calls.add(burst.take_calls());
        let packets = burst.len();
        if packets == 0 {
            return 0;
        }
        self.stages.received(&queue.ingress, burst);
        let tables = self.tables.get();
        for (port, mut packet) in burst.packets(&self.region) {
            self.sheet.received(port, packet.len(), packet.frames());
            self.watches.came(&packet, port);
            let send = match forward(&mut packet, port, tables) {
                Verdict::Send(mut send) => {
                    if let Some(limits) = &self.limits {
                        limits.apply(&packet, &mut send, tables);
                    }
                    self.watches.decided(&mut packet, &send);
                    send.rewrite(&mut packet);
                    Some(send)
                }
                Verdict::Drop(reason) => {
                    self.watches.dropped(reason, &mut packet, None, tables);
                    drop_packet(&self.sheet, reason, &packet, port, tables);
                    let sheet = &self.sheet;
                    let answer = (self.answers).answer(&mut packet, port, reason, tables, sheet);
                    answer.inspect(|send| self.watches.decided(&mut packet, send))
                }
            };
            let Some(send) = send else { continue };
            let pushed = self.egress.push(
                &mut packet,
                &send,
                tables,
                &self.region,
                &self.sheet,
                &mut self.watches,
            );
            if let Err(reason) = pushed {
                drop_packet(&self.sheet, reason, &packet, port, tables);
            }
        }
        self.stages.lap(Stage::Forward);
        (self.egress).flush(&self.region, &self.sheet, &mut self.watches);
        self.stages.lap(Stage::Send);
        self.sheet.burst(packets);
        burst.recycle(&mut self.pool);
        queue.ingress.refill(&mut self.pool, *reserve);
        self.stages.end(packets);
        packets
    }

    /// Carries out what the API thread has asked for; false when the worker is to end.
    fn obey(&mut self) -> bool {
        while let Some((number, command)) = self.link.commands.pop() {
            let reply = match command {
                Command::Attach(queue) => self.attach(queue),
                Command::Detach(port, queue) => self.detach(port, queue),
                Command::Drain => {
                    for slot in [TAP_QUEUE, RING_QUEUE].map(|q| self.slot_of(PortId::NONE, q)) {
                        let Some(slot) = slot else { continue };
                        // Other ports may keep it busy: bounded by what its queue holds.
                        let _ = (0..DRAIN_BURSTS).find(|_| self.serve(slot) == 0);
                    }
                    Reply::Drained
                }
                Command::Lend(count) => {
                    Reply::Lent(std::iter::from_fn(|| self.pool.get()).take(count).collect())
                }
                Command::Frames(frames) => {
                    frames.into_iter().for_each(|frame| self.pool.put(frame));
                    self.publish_levels();
                    continue;
                }
                Command::Watch(watch) => match self.watches.arm(*watch) {
                    None => Reply::Watching,
                    back => Reply::Unwatched(back.map(Box::new)),
                },
                Command::Unwatch(id) => Reply::Unwatched(self.watches.disarm(id).map(Box::new)),
                Command::Measured(empty) => Reply::Measured(self.stages.exchange(empty)),
                Command::Stop => return false,
            };
            // The API thread has few commands under way and takes each reply, so that there is room.
            drop(self.link.replies.push((number, reply)));
            self.publish_levels();
        }
        true
    }

    fn attach(&mut self, mut queue: Box<ServedQueue>) -> Reply {
        let free = self.queues.served.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.queues.served.len());
        if let Some(fd) = queue.ingress.fd()
            && let Err(error) = self.waiter.add(fd, slot)
        {
            return Reply::Refused(queue, error);
        }
        let reply = Reply::Attached(queue.port, queue.queue);
        if matches!(queue.ingress, Ingress::PacketRing(_)) {
            self.queues.packet_ring = Some(slot);
        }
        self.queues.reserve = self.reserve();
        queue.ingress.refill(&mut self.pool, self.queues.reserve);
        queue.active = false;
        match self.queues.served.get_mut(slot) {
            Some(place) => *place = Some(*queue),
            None => self.queues.served.push(Some(*queue)),
        }
        self.queues.activate(slot);
        reply
    }

    fn slot_of(&self, port: PortId, queue: u32) -> Option<usize> {
        let is_it = |q: &Option<ServedQueue>| {
            q.as_ref()
                .is_some_and(|q| q.port == port && q.queue == queue)
        };
        self.queues.served.iter().position(is_it)
    }

    fn detach(&mut self, port: PortId, queue: u32) -> Reply {
        let Some(slot) = self.slot_of(port, queue) else {
            return Reply::Detached(None);
        };
        // Nothing is redirected here any more, so that this ends with what the ring holds.
        while self.serve(slot) > 0 {}
        self.queues.active.retain(|&active| active != slot);
        let queue = self.queues.served.get_mut(slot).and_then(Option::take);
        self.queues.reserve = self.reserve();
        if let Some(fd) = queue.as_ref().and_then(|queue| queue.ingress.fd()) {
            // A closed socket leaves the set by itself; this only makes it happen now.
            let _ = self.waiter.remove(fd);
        }
        Reply::Detached(queue.map(Box::new))
    }

    /// Levels for the frame book, which balances at each of these moments: when the worker comes to
    /// rest, and after a command. With many ports this is too much for each round.
    fn publish_levels(&self) {
        let served = || self.queues.served.iter().flatten();
        let sum =
            |level: fn(&Ingress) -> usize| served().map(|queue| level(&queue.ingress) as u64).sum();
        self.sheet.frames_made.set(self.pool.made() as u64);
        self.sheet.frames_pooled.set(self.pool.available() as u64);
        self.sheet.frames_posted.set(sum(Ingress::posted));
        self.sheet.frames_held.set(sum(Ingress::held));
    }

    /// Frames to be kept for the queues that may yet be attached, so that many ports at work do not
    /// starve the next one. Half of the frames stay with those that are there.
    fn reserve(&self) -> usize {
        let attached = self.queues.served.iter().flatten().count();
        let missing = EXPECTED_QUEUES.saturating_sub(attached);
        (missing * LEAST_POSTED).min(self.pool.made() / 2)
    }
}

impl Queues {
    /// Makes the packet ring active when something is in it; says whether it is so.
    #[inline]
    fn look_at_ring(&mut self) -> bool {
        let queue = self.packet_ring.and_then(|slot| self.served.get_mut(slot));
        let Some(Some(ServedQueue {
            ingress: Ingress::PacketRing(ring),
            ..
        })) = queue
        else {
            return false;
        };
        if ring.is_empty() {
            return false;
        }
        if let Some(slot) = self.packet_ring {
            self.activate(slot);
        }
        true
    }

    #[inline]
    fn activate(&mut self, slot: usize) {
        if let Some(Some(queue)) = self.served.get_mut(slot)
            && !std::mem::replace(&mut queue.active, true)
        {
            self.active.push(slot);
        }
    }

    /// Takes the slot at `position` off the active list.
    #[inline]
    fn deactivate(&mut self, position: usize) {
        let slot = self.active.swap_remove(position);
        if let Some(Some(queue)) = self.served.get_mut(slot) {
            queue.active = false;
        }
    }
}

/// Counts a packet that died, and keeps its header.
#[cold]
fn drop_packet(
    sheet: &Sheet,
    reason: DropReason,
    packet: &Packet<'_>,
    from: PortId,
    tables: &Tables,
) {
    let ifindex = tables.port(from).map_or(0, |port| port.ifindex);
    let now = monotonic_nanoseconds();
    let last = LastDrop::new(now, ifindex, packet.len(), packet.head());
    sheet.drop_packets(reason, 1, last);
}
