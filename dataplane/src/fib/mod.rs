//! The tables: what the packet path looks up, and how facts become it.
//!
//! The API thread owns a [`Fib`]: facts go in by its methods, and [`Fib::build`] makes a
//! [`Tables`], an immutable snapshot that shares with the one before all that did not change. A
//! [`Publisher`] hands it to the workers, each of which has a [`Reader`].
//!
//! ```text
//! facts -> Fib { Facts, Rib { prefixes, LPM, Hops } } -> build -> Tables -> Publisher
//!                                                                 |                   |
//!                                           XdpDelta -> XDP maps <-            Reader (worker)
//! ```
//!
//! A change costs what it touches: a route the few entries and chunks of the longest-prefix match
//! that it covers, a neighbour, node or port the next hops that depend on it.

mod address;
mod build;
mod cow;
mod digest;
mod facts;
mod group;
mod hops;
pub mod lpm;
mod next_hop;
mod publish;
mod resolve;
mod rib;
mod tables;
mod xdp_delta;

pub use address::{Address, AddressSet, Prefix};
pub use build::{Build, Counts, Fib};
pub use facts::{FactError, MAX_PREFIXES, MIN_MTU, PortFacts};
pub use group::Group;
pub use next_hop::{L2Rewrite, NextHop, NextHopKind, PortId};
pub use publish::{Publisher, Reader};
pub use tables::{LocalTable, PortEntry, Tables};
pub use xdp_delta::{XdpDelta, XdpWrites};

#[cfg(test)]
mod tests;
