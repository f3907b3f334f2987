//! A worker's way out: gathers the packets of a burst to messages and sends them.

use super::{Flush, Gather, Message, PacketGso, Pushed, SendError, TapGso, packet_gso};
use crate::clock::monotonic_nanoseconds;
use crate::counters::Sheet;
use crate::fib::Tables;
use crate::last_drop::LastDrop;
use crate::packet::Packet;
use crate::verdict::{DropReason, Send};
use crate::watch::Watches;
use crate::wire::flow_hash::SourcePorts;
use crate::xsk::Region;

/// Bytes of a message that was not sent that a watch may keep: the headers of both layers.
const NOT_SENT: usize = 256;

/// Gathering and the engines behind it.
#[derive(Debug)]
pub struct Egress {
    gather: Gather,
    socket: PacketGso,
    tap: Option<TapGso>,
}

impl Egress {
    /// An egress that sends by `socket`, and by `tap`, if there is one, what is to be cut on an
    /// uplink; tunnels have the outer source ports `ports`.
    pub fn new(socket: PacketGso, tap: Option<TapGso>, ports: SourcePorts) -> Self {
        let mut gather = Gather::new();
        gather.send_tunnels_whole(tap.is_some());
        gather.set_source_ports(ports);
        Self {
            gather,
            socket,
            tap,
        }
    }

    /// Takes one packet. Its frames must stay as they are until [`Egress::flush`]. `watches` see it
    /// leave or die.
    ///
    /// # Errors
    /// Why it does not leave; it is not counted yet.
    #[inline]
    pub fn push(
        &mut self,
        packet: &mut Packet<'_>,
        send: &Send<'_>,
        tables: &Tables,
        region: &Region,
        sheet: &Sheet,
        watches: &mut Watches,
    ) -> Result<(), DropReason> {
        let length = packet.len();
        let mut pushed = self.gather.push(packet, send, tables);
        if matches!(pushed, Pushed::Full) {
            self.flush(region, sheet, watches);
            pushed = self.gather.push(packet, send, tables);
        }
        let reason = match pushed {
            Pushed::Gathered => {
                watches.gathered(packet, send, length, || self.gather.source_port(send));
                return Ok(());
            }
            // An empty gathering is never full; the packet still gets its verdict.
            Pushed::Full => DropReason::EgressFull,
            Pushed::Drop(reason) => reason,
        };
        watches.dropped(reason, packet, Some(send), tables);
        Err(reason)
    }

    /// Sends what was gathered. A message that the kernel does not take is dropped: a full egress
    /// never holds up the worker.
    #[inline]
    pub fn flush(&mut self, region: &Region, sheet: &Sheet, watches: &mut Watches) {
        if self.gather.is_empty() {
            return;
        }
        let Flush { messages, headers } = self.gather.flush();
        let memory = Memory { region, headers };
        let mut calls = 0;
        let has_tap = self.tap.is_some();
        let by_tap = |message: &Message| has_tap && message.is_cut_on_uplink();
        // Messages leave in order, those that follow each other by the socket at once.
        for group in messages.chunk_by(|a, b| !by_tap(a) && !by_tap(b)) {
            if let ([message], Some(tap)) = (group, &mut self.tap)
                && message.is_cut_on_uplink()
            {
                calls += 1;
                let result = tap.send(message, region, headers);
                sent(message, result, &memory, sheet, watches);
                continue;
            }
            calls += self.socket.send(group, region, headers, |index, result| {
                if let Some(message) = group.get(index) {
                    sent(message, result, &memory, sheet, watches);
                }
            });
        }
        sheet.tx_calls.add(u64::from(calls));
        self.gather.clear();
    }
}

/// What the pieces of messages lie in.
struct Memory<'a> {
    region: &'a Region,
    headers: &'a [u8],
}

/// Counts what became of a message.
#[inline]
fn sent(
    message: &Message,
    result: Result<(), SendError>,
    memory: &Memory<'_>,
    sheet: &Sheet,
    watches: &mut Watches,
) {
    let mut not_sent = |reason| not_sent(message, reason, memory, sheet, watches);
    let packets = u64::from(message.packets);
    match result {
        Ok(()) => {
            let Some(port) = sheet.port(message.port) else {
                return;
            };
            port.tx_packets.add(packets);
            port.tx_bytes.add(u64::from(message.bytes));
            port.tx_messages.add(1);
            port.joined.add(u64::from(message.joined));
            port.cut.add(u64::from(message.cut));
        }
        Err(SendError::Full) => not_sent(DropReason::EgressFull),
        Err(SendError::Refused(_)) => not_sent(DropReason::EgressRefused),
    }
}

/// Counts a message that the kernel did not take; all its packets are known by its first headers.
#[cold]
fn not_sent(
    message: &Message,
    reason: DropReason,
    memory: &Memory<'_>,
    sheet: &Sheet,
    watches: &mut Watches,
) {
    let mut header = [0; NOT_SENT];
    let length = packet_gso::copy_head(message, memory.region, memory.headers, &mut header);
    let header = header.get(..length).unwrap_or(&header);
    watches.not_sent(reason, message, header);
    let bytes = message.bytes as usize;
    let last = LastDrop::new(monotonic_nanoseconds(), message.ifindex, bytes, header);
    sheet.drop_packets(reason, message.packets.into(), last);
}
