//! Egress: from verdicts to messages to the kernel.
//!
//! [`Gather`] makes messages of the packets of a burst; a [`Message`] is a virtio-net header and
//! the pieces of one packet or super-frame; [`PacketGso`] and, for what is to be cut on an uplink,
//! [`TapGso`] hand them to the kernel. [`Egress`] is all of it together, as a worker uses it.

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
mod sources;
mod tap_gso;
#[cfg(test)]
mod testing;

pub use engine::Egress;
pub(crate) use gather::segment_of;
pub use gather::{Flush, Gather, Pushed};
pub use message::{Message, Piece, TunnelLayers, VnetHeader};
pub use packet_gso::{OpenError, PacketGso, SendError};
pub use tap_gso::TapGso;
