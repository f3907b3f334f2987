//! Desired state of a node: the daemon `podway-control` and the command line `podway`.
//!
//! A change comes in by [`clients`], is checked against all else that was told by [`state`], is
//! added to the file by [`store`], and then brought into force by [`node`], which puts together
//! what was told and what the kernel shows:
//!
//! ```text
//! control.sock -> clients -> node: state -> store
//!                             |      |
//!   kernel -> netlink -> observed -> world -> facts -> session -> dataplane.sock
//!                                         \-> kernel::want -> kernel -> netlink -> kernel
//! ```
//!
//! Everything between the sockets is pure and compared as a whole: what should be is computed from
//! scratch, and only the difference to what is there is done. So a restart of any side, a missed
//! event and a change by somebody else all heal in the same way.
//!
//! - [`settings`]: the configuration file, validated.
//! - [`routing`]: which routes the dataplane is told. [`report`]: answers to questions. [`cli`] and [`show`]: the command line.
//! - [`overview`]: a node at a glance. [`top`]: on a terminal.
//! - [`watch`]: packets that pass now. [`flows`]: added up. [`pcapng`]: as a file.
//! - [`trace`]: what would happen to a packet.
//! - [`bulk`]: many entries at once, all or none.
//! - [`import`]: routes that a routing daemon tells.
//! - [`nftables`]: packets that leave the cluster, and tunnels of strangers.
//! - [`health`]: whether other nodes are reached.
//! - [`metrics`]: a page for Prometheus, by a client of this daemon's own socket, and the [`tally`] of
//!   its clients' requests.
//! - [`bundle`]: what a report of a bug needs, in one archive.
//! - [`doctor`]: what a node needs, checked on the machine itself, with or without the daemons.
//! - [`path_mtu`]: when a router says that tunnels' packets are too large.
//! - [`daemon`]: arguments and the one loop. It waits for the disk and for the kernel's answers, and
//!   for the program `nft` at most three seconds at a time.

pub mod bulk;
pub mod bundle;
pub mod checksum;
pub mod cli;
pub mod clients;
pub mod daemon;
pub mod dirt;
pub mod doctor;
pub mod entry;
pub mod facts;
pub mod flows;
#[cfg(test)]
mod golden;
pub mod health;
mod icmp;
pub mod import;
pub mod index;
pub mod kernel;
pub mod metrics;
pub mod netfilter;
pub mod netlink;
pub mod nftables;
pub mod node;
pub mod observed;
pub mod overview;
pub mod path_mtu;
pub mod pcapng;
pub mod program;
pub mod report;
pub mod reverse_path;
pub mod routing;
pub mod session;
pub mod settings;
pub mod show;
pub mod state;
pub mod store;
pub mod tally;
pub mod top;
pub mod trace;
pub mod watch;
pub mod world;

/// The commit that this is built of; `unknown` where neither the environment of the build nor a repository
/// has told.
const COMMIT: &str = env!("PODWAY_COMMIT");

/// What `--version` tells; `-V` leaves the commit out.
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("PODWAY_COMMIT"),
    ")"
);
