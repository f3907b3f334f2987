//! What tests with real sockets need: a network namespace, a veth pair, the smallest XDP program
//! that redirects, and a sender and a capture of raw frames.
//!
//! ```text
//!   one network namespace, made for one test, without IP addresses
//!   +-----------------------------------------------------------+
//!   |  GSO socket, capture -- far ===== near -- AF_XDP socket   |
//!   |                                  (XDP program)            |
//!   +-----------------------------------------------------------+
//! ```
#![allow(
    unsafe_code,
    reason = "namespaces, bpf(2) and raw sockets have no safe interface here"
)]
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod frames;
pub(crate) mod gathered;
pub(crate) mod namespace;
#[path = "../../src/testing/packets.rs"]
pub(crate) mod packets;
pub(crate) mod raw;
pub(crate) mod redirect;
pub(crate) mod streams;
#[path = "../../src/testing/tcp_options.rs"]
pub(crate) mod tcp_options;

use podway_dataplane::xsk::{FramePool, Queue, QueueConfig, Region, Umem, XskError};

pub(crate) use namespace::in_namespace;
pub(crate) use raw::{Capture, Sender};

/// The veth pair of one test.
pub(crate) struct Pair {
    /// Index of the end that AF_XDP sockets are on.
    pub(crate) near: u32,
    /// Index of the other end.
    pub(crate) far: u32,
}

impl Pair {
    /// Makes the pair with `queues` queues at each end.
    pub(crate) fn new(queues: u32) -> Self {
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        namespace::ip(&format!(
            "link add far {queues} type veth peer name near {queues}"
        ));
        for link in ["far", "near"] {
            namespace::ip(&format!("link set {link} up"));
        }
        for link in ["far", "near"] {
            namespace::wait_for(link);
        }
        Self {
            near: namespace::ifindex("near"),
            far: namespace::ifindex("far"),
        }
    }
}

/// The veth pair and the registered memory of one test.
pub(crate) struct Bench {
    pub(crate) near: u32,
    pub(crate) far: u32,
    pub(crate) umem: Umem,
    pub(crate) pool: FramePool,
}

impl Bench {
    /// Makes a [`Pair`] and registers `frames` frames.
    pub(crate) fn new(queues: u32, frames: u32) -> Self {
        let Pair { near, far } = Pair::new(queues);
        let (region, frames) = Region::new(frames).unwrap();
        Self {
            near,
            far,
            umem: Umem::new(region).unwrap(),
            pool: FramePool::new(frames),
        }
    }

    /// Opens a queue of the near end.
    pub(crate) fn open(&mut self, queue: u32, config: &QueueConfig) -> Result<Queue, XskError> {
        self.umem
            .open_queue(self.near, queue, config, &mut self.pool)
    }

    /// Puts the frames of a closed queue back and asserts that none was lost.
    pub(crate) fn close(&mut self, queue: Queue) {
        for frame in queue.close() {
            self.pool.put(frame);
        }
        assert_eq!(self.pool.available(), self.pool.made());
    }

    /// Receives whole packets until `count` have come or none comes for a while.
    pub(crate) fn receive(&mut self, queue: &mut Queue, count: usize) -> Vec<Vec<u8>> {
        let region = std::sync::Arc::clone(self.umem.region());
        let (mut packets, mut packet) = (Vec::new(), Vec::new());
        namespace::patiently(|| {
            queue.rx.receive(64, |frame, more| {
                packet.extend_from_slice(region.bytes(&frame));
                self.pool.put(frame);
                if !more {
                    packets.push(std::mem::take(&mut packet));
                }
            });
            packets.len() >= count
        });
        assert_eq!(packet, b"", "half a packet");
        packets
    }
}
