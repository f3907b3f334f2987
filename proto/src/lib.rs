//! The two protocols of Podway, as one documented pair of enums each.
//!
//! Both sockets speak the same way: one JSON document a line, a request answered by exactly one
//! response, in order. The first request of a connection is `hello` with the client's protocol
//! version; see [`VERSION`].
//!
//! - [`dataplane`]: what `podway-control` says to `podway-dataplane` over `dataplane.sock`.
//! - [`control`]: what `podway` (or any other client) says to `podway-control` over `control.sock`.
//! - [`types`]: the facts that both share: ports, nodes, routes, neighbours.
//! - [`config`]: the configuration file that both daemons read.
//! - [`codec`]: lines in and out, with the length limit.
//! - [`server`]: the serving side of both sockets.

pub mod codec;
pub mod config;
pub mod control;
pub mod dataplane;
mod error;
pub mod server;
pub mod types;

pub use error::{ErrorBody, ErrorCode};
pub use ipnet::IpNet;

/// Version of both protocols. A daemon refuses a client whose version differs from its own with
/// [`ErrorCode::VersionMismatch`] and names both.
pub const VERSION: u32 = 2;

/// Default directory of the sockets and of the state file; one per node, since network
/// namespaces share the file system.
pub const DEFAULT_RUN_DIR: &str = "/run/podway";
/// File name of the control daemon's socket inside the run directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// File name of the dataplane's socket inside the run directory.
pub const DATAPLANE_SOCKET: &str = "dataplane.sock";
