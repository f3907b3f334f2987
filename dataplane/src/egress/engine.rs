//! A worker's way out: gathers the packets of a burst to messages and sends them.

use super::{Flush, Gather, PacketGso, Pushed, SendError};
use crate::counters::Sheet;
use crate::fib::Tables;
use crate::packet::Packet;
use crate::verdict::{DropReason, Send};
use crate::xsk::Region;

/// Gathering and the socket behind it.
#[derive(Debug)]
pub struct Egress {
    gather: Gather,
    socket: PacketGso,
}

impl Egress {
    /// An egress that sends by `socket`.
    pub fn new(socket: PacketGso) -> Self {
        Self {
            gather: Gather::new(),
            socket,
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
        let calls = self
            .socket
            .send(messages, region, headers, |index, result| {
                let Some(message) = messages.get(index) else {
                    return;
                };
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
                    Err(SendError::Refused(_)) => {
                        sheet.drop_packets(DropReason::EgressRefused, packets);
                    }
                }
            });
        sheet.tx_calls.add(u64::from(calls));
        self.gather.clear();
    }
}
