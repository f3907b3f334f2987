//! The test network of Podway and what is measured on it.
//!
//! Everything happens in network namespaces that this crate makes and removes: nodes with pods
//! behind veths, joined by an underlay. The demo, the end-to-end tests and the benchmarks share
//! this one description of the network.
//!
//! - [`topology`]: [`topology::Cluster`], the nodes, pods, links and addresses.
//! - [`netns`]: commands and threads inside a network namespace; waiting with a deadline.
//! - [`cleanup`]: nothing stays behind, whatever ends the process.
//! - [`link`](mod@link): offloads and counters of one interface.
//! - [`kernel`]: the kernel as contender: VXLAN device in flannel's style, native routes.
//! - [`podway`]: the daemons and the command line, used as an operator uses them.
//! - [`ovs`], [`baseline`]: peers, Open vSwitch and the plainest forwarder on `xsk-rs`.
//! - [`contender`]: who carries the pods' packets; putting one in charge and taking it away.
//! - [`iperf`], [`ping`], [`cpu`]: what is measured.
//! - [`generator`]: packets at a known rate, the highest rate without loss, packets per CPU-second.
//! - [`latency`]: round trips of a client and a server of our own.
//! - [`frames`]: raw frames and numbered datagrams, for the end-to-end tests.
//! - [`watch`], [`wiretap`]: what it cost, and whether it was true.
//! - [`capture`]: all frames of the uplinks in a file, for other programs to judge.
//! - [`prometheus`]: a Prometheus server, and what it holds.
//! - [`suite`]: every contender on every wire, interleaved; the report.
//! - [`scale`]: many routes and nodes: times of full syncs and of one change, memory.
//! - [`takeover`]: what ends and hangs of the daemons cost running traffic.
//! - [`monitoring`]: the picture of the dashboard.
//! - [`demo`]: the article's table.
//!
//! All of it needs root and `iproute2`, `ethtool`, `iperf3` and `iputils-ping`; `scripts/setup`
//! installs them.

pub mod baseline;
pub mod capture;
pub mod cleanup;
pub mod contender;
pub mod cpu;
pub mod demo;
mod error;
pub mod frames;
pub mod generator;
pub mod inspection;
pub mod iperf;
pub mod kernel;
pub mod latency;
pub mod link;
pub mod monitoring;
pub mod netns;
mod overlay;
pub mod ovs;
pub mod ping;
pub mod podway;
mod process;
pub mod prometheus;
pub mod scale;
pub mod suite;
pub mod takeover;
pub mod topology;
pub mod watch;
pub mod wiretap;

pub use error::{Error, Result};
