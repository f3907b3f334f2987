//! Egress: from verdicts to messages to the kernel.
//!
//! [`Gather`] makes messages of the packets of a burst; a [`Message`] is a virtio-net header and
//! the pieces of one packet or super-frame; [`PacketGso`] hands them to the kernel. [`Egress`] is
//! the three together, as a worker uses them.

mod cut;
mod drafts;
mod engine;
mod gather;
mod join;
pub mod message;
mod offload;
mod packet_gso;
#[cfg(test)]
mod properties;
mod run;
#[cfg(test)]
mod testing;

pub use engine::Egress;
pub use gather::{Flush, Gather, Pushed};
pub use message::{Message, Piece, VnetHeader};
pub use packet_gso::{OpenError, PacketGso, SendError};
