//! A worker's way out: gathers the packets of a burst to messages and sends them.

use super::{Flush, Gather, Message, PacketGso, Pushed, SendError, TapGso};
use crate::counters::Sheet;
use crate::fib::Tables;
use crate::packet::Packet;
use crate::verdict::{DropReason, Send};
use crate::wire::flow_hash::SourcePorts;
use crate::xsk::Region;

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

    /// Takes one packet. Its frames must stay as they are until [`Egress::flush`].
    #[inline]
    pub fn push(
        &mut self,
        packet: &mut Packet<'_>,
        send: &Send<'_>,
        tables: &Tables,
        region: &Region,
        sheet: &Sheet,
    ) {
        let mut pushed = self.gather.push(packet, send, tables);
        if matches!(pushed, Pushed::Full) {
            self.flush(region, sheet);
            pushed = self.gather.push(packet, send, tables);
        }
        match pushed {
            Pushed::Gathered => {}
            // An empty gathering is never full; the packet still gets its verdict.
            Pushed::Full => sheet.drop_packets(DropReason::EgressFull, 1),
            Pushed::Drop(reason) => sheet.drop_packets(reason, 1),
        }
    }

    /// Sends what was gathered. A message that the kernel does not take is dropped: a full egress
    /// never holds up the worker.
    #[inline]
    pub fn flush(&mut self, region: &Region, sheet: &Sheet) {
        if self.gather.is_empty() {
            return;
        }
        let Flush { messages, headers } = self.gather.flush();
        let mut calls = 0;
        let has_tap = self.tap.is_some();
        let by_tap = |message: &Message| has_tap && message.is_cut_on_uplink();
        // Messages leave in order, those that follow each other by the socket at once.
        for group in messages.chunk_by(|a, b| !by_tap(a) && !by_tap(b)) {
            if let ([message], Some(tap)) = (group, &mut self.tap)
                && message.is_cut_on_uplink()
            {
                calls += 1;
                sent(message, tap.send(message, region, headers), sheet);
                continue;
            }
            calls += self.socket.send(group, region, headers, |index, result| {
                if let Some(message) = group.get(index) {
                    sent(message, result, sheet);
                }
            });
        }
        sheet.tx_calls.add(u64::from(calls));
        self.gather.clear();
    }
}

/// Counts what became of a message.
#[inline]
fn sent(message: &Message, result: Result<(), SendError>, sheet: &Sheet) {
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
        Err(SendError::Full) => sheet.drop_packets(DropReason::EgressFull, packets),
        Err(SendError::Refused(_)) => sheet.drop_packets(DropReason::EgressRefused, packets),
    }
}
