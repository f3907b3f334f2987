//! End-to-end tests: real daemons, real kernels underneath, pods in network namespaces.
//!
//! ```text
//! cargo build --release
//! PODWAY_BIN_DIR=target/release cargo test -p podway-bench --test e2e -- --ignored --test-threads=1
//! ```
//!
//! They need root and about five minutes, so plain `cargo test` leaves them out; `scripts/test`
//! runs them all. Each builds a network of its own (see `podway_bench::topology`), and ends with
//! [`support::Network::finish`]: both books of every dataplane balance, and nothing is left.

mod bgp;
mod dissect;
mod doctor;
mod drift;
mod ecmp;
mod firewall;
mod fragments;
mod health;
mod interop;
mod kernel;
mod kills;
mod kube_proxy;
mod links;
mod malformed;
mod matrix;
mod metrics;
mod mtu;
mod native;
mod neighbors;
mod order;
mod pmtu;
mod refusals;
mod restart;
mod segments;
mod services;
mod sockets;
mod spoof;
mod strangers;
mod support;
mod trace;
mod traffic;
mod troubles;
mod underlay6;
mod vnis;
mod watch;
