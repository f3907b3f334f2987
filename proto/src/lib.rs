//! The two protocols of Podway, as one documented pair of enums each.
//!
//! Both sockets speak the same way: one JSON document a line, a request answered by exactly one
//! response, in order. The first request of a connection is `hello` with the client's protocol
//! version; see [`VERSION`].
//!
//! - [`dataplane`]: what `podway-control` says to `podway-dataplane` over `dataplane.sock`.
//! - [`control`]: what `podway` (or any other client) says to `podway-control` over `control.sock`.
//! - [`types`]: the facts that both share: ports, nodes, routes, neighbours.
//! - [`reasons`]: why packets are dropped, refused or left to the kernel, and what to do about it.
//! - [`trace`]: what would happen to a packet.
//! - [`perf`]: what workers spend their time on.
//! - [`digest`]: whether both ends hold the same facts.
//! - [`entries`]: all that was told as one document, and differences between two of them.
//! - [`watch`]: what a watch of the packet path is to record, and records.
//! - [`config`]: the configuration file that both daemons read.
//! - [`codec`]: lines in and out, with the length limit.
//! - [`server`]: the serving side of both sockets.
//! - `log` (a feature): the logs of both daemons.
//! - [`client`]: the asking side, for `podway` and for programs of others.

pub mod client;
pub mod codec;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod digest;
pub mod entries;
mod error;
pub mod fnv;
pub mod hex;
#[cfg(feature = "log")]
pub mod log;
pub mod perf;
pub mod reasons;
pub mod server;
pub mod trace;
pub mod types;
mod version;
pub mod watch;

pub use error::{ErrorBody, ErrorCode};
pub use ipnet::IpNet;
pub use version::{VERSION, mismatch};

/// Default directory of the sockets; one per node, since network namespaces share the file system.
pub const DEFAULT_RUN_DIR: &str = "/run/podway";
/// File name of the control daemon's socket inside the run directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// File name of the dataplane's socket inside the run directory.
pub const DATAPLANE_SOCKET: &str = "dataplane.sock";
