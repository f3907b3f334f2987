//! The AF_XDP layer: memory, frames as owned tokens, the four rings, sockets.
//!
//! - [`Region`], [`Frame`], [`FramePool`]: memory and its tokens.
//! - [`Umem`]: the region registered with the kernel; it opens each [`Queue`].
//! - [`RxQueue`], [`TxQueue`]: the halves of a queue, which take tokens and give them back.
//!
//! Nothing outside this folder sees a raw descriptor address: rings take and give [`Frame`]s.
#![allow(
    unsafe_code,
    reason = "memory shared with the kernel; each block states its invariant"
)]

mod error;
mod ledger;
mod ring;
mod rx;
mod socket;
mod statistics;
pub(crate) mod sys;
mod tx;
mod umem;

pub use error::XskError;
pub use rx::RxQueue;
pub use socket::{BindMode, Queue, QueueConfig, Umem};
pub use statistics::{Statistics, StatsHandle};
pub use tx::{TX_METADATA_LEN, TxMetadata, TxQueue, TxRefusal};
pub use umem::{CHUNK_SIZE, Frame, FramePool, Region};

use socket::Socket;
