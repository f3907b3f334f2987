//! The programs that hand packets to workers, and their loader.
//!
//! An XDP program hands them to AF_XDP sockets, a tcx program by the same rules to the workers
//! themselves: TCP to a TAP, everything else to a ring in memory. One program serves every port and finds the role of each by its interface index in a map.
//! `bpf/rules.h` opens with the decision tree, and `bpf/shared.h` holds what both sides
//! agree on.
//!
//! | module | job |
//! |---|---|
//! | `load` | from the embedded object to a [`Redirect`]: descriptors, mapped memory |
//! | `maps` | typed updates of what the program reads |
//! | `layout` | keys and values of the maps as bytes |
//! | `memory` | the memory-mapped maps: gate, VXLAN port, heartbeats, what did not leave |
//! | `ring` | what the tcx program has copied for a worker, read in memory |
//! | `attach` | attaching to an interface: XDP in native or generic mode, tcx |
//! | `stats` | counters |
//! | `last_packet` | the last packet of each cause |
//! | `walk` | the same rules once more, for whoever asks what would happen |
//! | `error` | what can go wrong, with the remedy |
//!
//! Nothing is pinned: program, maps and links live as long as the descriptors of this process, so
//! that no XDP program stays behind a process that was killed.
//!
//! # Order of things
//!
//! Before the gate opens: maps filled, sockets bound (the kernel drops what is redirected into a
//! socket that is not), sockets set, heartbeats beating, programs attached. At the end the gate
//! closes first. A withdrawn prefix leaves the map before it leaves the FIB, an added one enters
//! the map after the FIB has it.

mod attach;
mod error;
mod last_packet;
mod layout;
mod load;
mod maps;
mod memory;
mod ring;
mod stats;
mod walk;

pub use attach::{AttachError, Attachment, ModeChoice, TcxAttachment, XdpMode, offers_zero_copy};
pub use error::Error;
pub use last_packet::{KEPT_BYTES, LastPacket};
pub use layout::{
    MAX_PORTS, MAX_SOCKETS, MAX_WORKERS, PortEntry, Role, UNKNOWN_PORT_SLOT, is_bell, port_tag,
    tagged_port,
};
pub use load::Redirect;
pub use memory::{Heartbeat, Unsent};
pub use podway_proto::reasons::{PassCause, RefuseCause};
pub use ring::{PacketRing, Record};
pub use stats::{Oversize, PortStats};
pub use walk::{Arrival, Fate, Finding, Kind, Walk, Way};
