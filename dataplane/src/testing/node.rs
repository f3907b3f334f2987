//! A node without sockets: frames in by a port, messages out, as in a worker's burst.

use std::sync::Arc;

use super::kernel::Out;
use crate::answer::Answer;
use crate::egress::{Gather, Message, Pushed};
use crate::fib::{PortId, Tables};
use crate::forward::forward;
use crate::limits::Limits;
use crate::packet::{MAX_CHAIN, Offload, Packet};
use crate::tunnel::{Decapped, decap};
use crate::verdict::{DropReason, Send, Verdict};
use crate::watch::Watches;
use crate::wire::flow_hash::SourcePorts;
use crate::xsk::{CHUNK_SIZE, Frame, Region};

/// What chunks hold before a frame is put there, and around it for ever.
const GUARD: u8 = 0xa5;

/// How far before a frame's data the packet path may write: a VXLAN header.
const VXLAN_LEN: usize = 8;

/// And where the packet is turned into an ICMP error: IPv6 and ICMP headers, too.
const ANSWER_ROOM: usize = 40 + 8 + VXLAN_LEN;

/// Frames of a node: eight of the longest chains.
const FRAMES: usize = 8 * MAX_CHAIN;

/// Tables, memory and gathering of one node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) tables: Tables,
    region: Arc<Region>,
    free: Vec<Frame>,
    held: Vec<Held>,
    gather: Gather,
    sent: Vec<Out>,
    /// Bytes per frame of the packets that come next.
    pub(crate) chunk: usize,
    /// Bytes free before the head.
    pub(crate) headroom: usize,
    /// What the kernel says of the packets that come next.
    pub(crate) offload: Option<Offload>,
    /// What was overheard; `None`: nothing is.
    pub(crate) limits: Option<Limits>,
    /// Whether [`Node::receive`] answers what is dropped, at any rate.
    pub(crate) answers: bool,
    /// Answers that were gathered.
    pub(crate) answered: u32,
    /// Who looks at what [`Node::receive`] forwards.
    pub(crate) watches: Watches,
}

/// A frame and where its data was put.
#[derive(Debug)]
struct Held {
    frame: Frame,
    start: usize,
    len: usize,
    /// How far before its data may be written.
    room: usize,
}

/// A packet that [`forward`] sends: what it decided, and the bytes that it left.
#[derive(Debug)]
pub(crate) struct Forwarded<'t> {
    pub(crate) send: Send<'t>,
    pub(crate) bytes: Vec<u8>,
}

impl Node {
    pub(crate) fn new(tables: Tables) -> Self {
        let (region, free) = Region::new(u32::try_from(FRAMES).unwrap()).unwrap();
        Self {
            tables,
            region,
            free,
            held: Vec::new(),
            gather: Gather::new(),
            sent: Vec::new(),
            chunk: 3500,
            headroom: 256,
            offload: None,
            limits: None,
            answers: false,
            answered: 0,
            watches: Watches::default(),
        }
    }

    /// Says whether super-frames go into tunnels whole.
    pub(crate) fn send_tunnels_whole(&mut self, whole: bool) {
        self.gather.send_tunnels_whole(whole);
    }

    /// Forwards a frame and does not send it.
    pub(crate) fn forward(
        &mut self,
        from: PortId,
        frame: &[u8],
    ) -> Result<Forwarded<'_>, DropReason> {
        self.in_packet(frame, VXLAN_LEN, |packet, tables| {
            match forward(packet, from, tables) {
                Verdict::Send(send) => {
                    send.rewrite(packet);
                    let bytes = bytes(packet);
                    Ok(Forwarded { send, bytes })
                }
                Verdict::Drop(reason) => Err(reason),
            }
        })
    }

    /// Forwards a frame, and gives the answer to its sender when it is dropped; `None` when it is sent,
    /// or dropped in silence.
    pub(crate) fn answer(&mut self, from: PortId, frame: &[u8]) -> Option<Forwarded<'_>> {
        self.in_answer(frame, |packet, tables| {
            match forward(packet, from, tables) {
                Verdict::Send(_) => None,
                Verdict::Drop(reason) => answer(packet, from, reason, tables),
            }
        })
    }

    /// The answer to a frame without outer headers that is dropped for `reason`.
    pub(crate) fn answer_for(
        &mut self,
        from: PortId,
        frame: &[u8],
        reason: DropReason,
    ) -> Option<Forwarded<'_>> {
        self.in_answer(frame, |packet, tables| answer(packet, from, reason, tables))
    }

    fn in_answer<'n>(
        &'n mut self,
        frame: &[u8],
        work: impl FnOnce(&mut Packet<'_>, &'n Tables) -> Option<Forwarded<'n>>,
    ) -> Option<Forwarded<'n>> {
        self.in_packet(frame, ANSWER_ROOM, work)
    }

    /// Pulls a frame's outer headers, if it is from a tunnel. The result is what [`decap`] says
    /// and what it leaves.
    pub(crate) fn decap(&mut self, frame: &[u8]) -> Result<(Decapped, Vec<u8>), DropReason> {
        self.in_packet(frame, VXLAN_LEN, |packet, tables| {
            decap(packet, tables).map(|outer| (outer, bytes(packet)))
        })
    }

    fn in_packet<'n, R>(
        &'n mut self,
        frame: &[u8],
        room: usize,
        work: impl FnOnce(&mut Packet<'_>, &'n Tables) -> R,
    ) -> R {
        let Self {
            tables,
            region,
            free,
            chunk,
            headroom,
            offload,
            ..
        } = self;
        let mut frames = place(region, free, frame, *chunk, *headroom);
        if let Some(head) = frames.first_mut() {
            head.room = room;
        }
        let result = in_packet(region, &mut frames, *offload, |packet| work(packet, tables));
        check_guards(region, &mut frames);
        free.extend(frames.into_iter().map(|held| held.frame));
        result
    }

    /// Forwards a frame and gathers it.
    pub(crate) fn receive(&mut self, from: PortId, frame: &[u8]) -> Result<(), DropReason> {
        self.receive_with(from, frame, |_, _, _| ())
    }

    /// As [`Node::receive`]; `look` sees what is sent: the packet as [`Send::rewrite`] has left it, or the
    /// answer to one that was dropped, with the reason.
    pub(crate) fn receive_with(
        &mut self,
        from: PortId,
        frame: &[u8],
        look: impl FnOnce(Option<DropReason>, &Send<'_>, &Packet<'_>),
    ) -> Result<(), DropReason> {
        if self.free.len() < frame.len().div_ceil(self.chunk).max(1) {
            self.send();
        }
        let mut frames = place(
            &self.region,
            &mut self.free,
            frame,
            self.chunk,
            self.headroom,
        );
        let Self {
            tables,
            region,
            gather,
            held,
            free,
            sent,
            offload,
            limits,
            answers,
            answered,
            watches,
            ..
        } = self;
        if let (true, Some(head)) = (*answers, frames.first_mut()) {
            head.room = ANSWER_ROOM;
        }
        let mut died_of = None;
        let pushed = in_packet(region, &mut frames, *offload, |packet| {
            watches.came(packet, from);
            let send = match forward(packet, from, tables) {
                Verdict::Send(mut send) => {
                    if let Some(limits) = limits {
                        limits.apply(packet, &mut send, tables);
                    }
                    watches.decided(packet, &send);
                    send.rewrite(packet);
                    send
                }
                Verdict::Drop(reason) => {
                    watches.dropped(reason, packet, None, tables);
                    let answer = Answer::to(packet, from, reason, tables).filter(|_| *answers);
                    let send = answer.and_then(|answer| answer.build(packet));
                    died_of = Some(reason);
                    let send = send.ok_or(reason)?;
                    watches.decided(packet, &send);
                    send
                }
            };
            look(died_of, &send, packet);
            let length = packet.len();
            let mut pushed = gather.push(packet, &send, tables);
            if pushed == Pushed::Full {
                flush(gather, region, held, free, sent);
                pushed = gather.push(packet, &send, tables);
            }
            match pushed {
                Pushed::Gathered => {
                    watches.gathered(packet, &send, length, || {
                        SourcePorts::ALL.of(send.flow_hash)
                    });
                    Ok(())
                }
                Pushed::Drop(reason) => {
                    watches.dropped(reason, packet, Some(&send), tables);
                    Err(reason)
                }
                Pushed::Full => panic!("an empty gathering is never full"),
            }
        });
        if pushed.is_ok() {
            held.append(&mut frames);
        } else {
            check_guards(region, &mut frames);
            free.extend(frames.into_iter().map(|held| held.frame));
        }
        match died_of {
            Some(reason) => {
                *answered += u32::from(pushed.is_ok());
                Err(reason)
            }
            None => pushed,
        }
    }

    /// All messages since the last call. Every frame is free after it.
    pub(crate) fn flush(&mut self) -> Vec<Out> {
        self.send();
        assert_eq!(self.free.len(), FRAMES, "frames are lost");
        std::mem::take(&mut self.sent)
    }

    fn send(&mut self) {
        let Self {
            region,
            gather,
            held,
            free,
            sent,
            ..
        } = self;
        flush(gather, region, held, free, sent);
    }
}

/// Puts a frame into as many chunks as it takes, guards around it.
fn place(
    region: &Region,
    free: &mut Vec<Frame>,
    frame: &[u8],
    chunk: usize,
    headroom: usize,
) -> Vec<Held> {
    let empty: &[u8] = &[];
    let parts = frame.chunks(chunk).chain(frame.is_empty().then_some(empty));
    parts
        .enumerate()
        .map(|(n, part)| {
            let mut frame = free.pop().expect("a frame is free");
            assert!(frame.set_data(0, CHUNK_SIZE));
            region.bytes_mut(&mut frame).fill(GUARD);
            assert!(frame.set_data(headroom, part.len()));
            region.bytes_mut(&mut frame).copy_from_slice(part);
            Held {
                frame,
                start: headroom,
                len: part.len(),
                room: if n == 0 { VXLAN_LEN } else { 0 },
            }
        })
        .collect()
}

/// The answer to a packet that was dropped.
fn answer<'t>(
    packet: &mut Packet<'_>,
    from: PortId,
    reason: DropReason,
    tables: &'t Tables,
) -> Option<Forwarded<'t>> {
    let send = Answer::to(packet, from, reason, tables)?.build(packet)?;
    Some(Forwarded {
        send,
        bytes: bytes(packet),
    })
}

/// All bytes of a packet.
fn bytes(packet: &Packet<'_>) -> Vec<u8> {
    let bytes = packet.chunks().collect::<Vec<_>>().concat();
    assert_eq!(bytes.len(), packet.len());
    bytes
}

/// Shows the frames as a packet.
fn in_packet<R>(
    region: &Region,
    held: &mut Vec<Held>,
    offload: Option<Offload>,
    work: impl FnOnce(&mut Packet<'_>) -> R,
) -> R {
    let places: Vec<_> = held
        .iter()
        .map(|held| (held.start, held.len, held.room))
        .collect();
    let mut frames: Vec<_> = held.drain(..).map(|held| held.frame).collect();
    let packet = Packet::new(region, &mut frames).expect("there is a frame");
    let result = work(&mut packet.with_offload(offload));
    let put_back = |(frame, (start, len, room))| Held {
        frame,
        start,
        len,
        room,
    };
    held.extend(frames.into_iter().zip(places).map(put_back));
    result
}

/// Nothing outside a frame's data has changed, but for the room before the head.
fn check_guards(region: &Region, held: &mut [Held]) {
    for held in held {
        assert!(held.frame.set_data(0, CHUNK_SIZE));
        let bytes = region.bytes(&held.frame);
        let front = held.start.saturating_sub(held.room);
        let intact = |bytes: &[u8]| bytes.iter().all(|byte| *byte == GUARD);
        assert!(intact(&bytes[..front]), "written before a frame's data");
        assert!(
            intact(&bytes[held.start + held.len..]),
            "written behind a frame's data"
        );
    }
}

/// Reads all messages and frees their frames.
fn flush(
    gather: &mut Gather,
    region: &Region,
    held: &mut Vec<Held>,
    free: &mut Vec<Frame>,
    sent: &mut Vec<Out>,
) {
    let flush = gather.flush();
    // `sendmmsg` and the kernel's limits: see the constants of the drafts.
    assert!(flush.messages.len() <= 128, "too many messages");
    let frames = held.iter().map(|held| &held.frame);
    let read = |message: &Message| Out::read(message, flush.headers, region, frames.clone());
    for out in flush.messages.iter().map(read) {
        assert!(out.bytes.len() <= 65535, "a message too long");
        assert!(out.pieces <= 512, "too many pieces");
        sent.push(out);
    }
    gather.clear();
    assert!(gather.is_empty());
    check_guards(region, held);
    free.extend(held.drain(..).map(|held| held.frame));
}
