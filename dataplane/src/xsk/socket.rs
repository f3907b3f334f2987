//! AF_XDP sockets: the anchor that registers the region, and the queues that share it.
//!
//! The region is registered once, by an anchor socket that is bound to the loopback device in copy
//! mode and never carries a packet. Copy-mode queues bind with `XDP_SHARED_UMEM` to it and inherit
//! its mode and its flags (`xp_assign_dev_shared` in net/xdp/xsk_buff_pool.c): copy mode,
//! need-wakeup, multi-buffer. A zero-copy queue cannot share with a copy-mode anchor, so it
//! registers the same memory again; frames cross between the two kinds all the same.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::error::{Step, XskError};
use super::ledger::Ledger;
use super::ring::{Consumer, KernelConsumer, KernelProducer, Producer};
use super::rx::RxQueue;
use super::sys::{self, MappedRing};
use super::tx::{TX_METADATA_LEN, TxQueue};
use super::umem::{CHUNK_SIZE, Frame, FramePool, Region};
use crate::sys::interface::Interface;

/// Closing an AF_XDP socket waits for an RCU grace period, 5-20 ms and more with many sockets,
/// during which its queue is still taken. A restart must live with that.
const BUSY_RETRY: Duration = Duration::from_secs(1);
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Kernel 6.17: most frames that one wake sends in copy mode. Not in libc yet.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Bytes that copy-mode sending may have in flight: the default of 208 KiB holds fewer than a
/// hundred frames with their overhead.
const SEND_BUFFER: libc::c_int = 4 << 20;

/// The address family in the type of its field.
#[expect(clippy::cast_possible_truncation, reason = "44 fits")]
const AF_XDP: libc::sa_family_t = libc::AF_XDP as libc::sa_family_t;

/// Smallest ring, for the ones that the kernel demands and nobody uses.
const UNUSED_RING: u32 = 2;

/// An open AF_XDP socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    fn open(place: &str) -> Result<Self, XskError> {
        let fd = sys::raw_socket(libc::AF_XDP)
            .map_err(|source| XskError::new(place, Step::Open, source, ""))?;
        Ok(Self { fd })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn set_ring_size(&self, place: &str, ring: Ring, size: u32) -> Result<(), XskError> {
        // A size beyond c_int becomes one that the kernel refuses.
        let size = libc::c_int::try_from(size).unwrap_or(-1);
        sys::set_option(self.fd(), libc::SOL_XDP, ring.option(), size)
            .map_err(|source| XskError::new(place, Step::MakeRing(ring.name()), source, ""))
    }
}

/// The four rings.
#[derive(Debug, Clone, Copy)]
enum Ring {
    Fill,
    Rx,
    Tx,
    Completion,
}

impl Ring {
    fn name(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Rx => "rx",
            Self::Tx => "tx",
            Self::Completion => "completion",
        }
    }

    fn option(self) -> libc::c_int {
        match self {
            Self::Fill => libc::XDP_UMEM_FILL_RING,
            Self::Rx => libc::XDP_RX_RING,
            Self::Tx => libc::XDP_TX_RING,
            Self::Completion => libc::XDP_UMEM_COMPLETION_RING,
        }
    }

    fn page_offset(self) -> libc::off_t {
        match self {
            Self::Fill => 0x1_0000_0000, // XDP_UMEM_PGOFF_FILL_RING
            Self::Rx => libc::XDP_PGOFF_RX_RING,
            Self::Tx => libc::XDP_PGOFF_TX_RING,
            Self::Completion => 0x1_8000_0000, // XDP_UMEM_PGOFF_COMPLETION_RING
        }
    }
}

/// How a queue is to be opened. Sizes are descriptors and powers of two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueConfig {
    /// Size of the rx ring.
    pub rx_size: u32,
    /// Size of the fill ring.
    pub fill_size: u32,
    /// Size of the tx ring; `None` for a queue that does not send.
    pub tx_size: Option<u32>,
    /// Size of the completion ring, of use only with a tx ring.
    pub completion_size: u32,
    /// Frames posted before the bind: i40e and ice take for granted that a ring's worth is there.
    pub posted: usize,
    /// Whether to try zero-copy mode first.
    pub try_zero_copy: bool,
    /// How long to wait for a queue that is taken.
    pub busy_retry: Duration,
}

impl Default for QueueConfig {
    /// Small rings, since small hot memory wins; a burst of super-frames still fits.
    fn default() -> Self {
        Self {
            rx_size: 256,
            fill_size: 256,
            tx_size: None,
            completion_size: 256,
            posted: 256,
            try_zero_copy: false,
            busy_retry: BUSY_RETRY,
        }
    }
}

/// Whether packets are copied between the interface and the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BindMode {
    /// The device reads and writes the region.
    ZeroCopy,
    /// The kernel copies.
    Copy,
}

/// One queue of one interface. Give it back by [`Queue::close`]: dropping it loses its frames.
#[derive(Debug)]
#[must_use = "dropping a queue loses the frames that it posted"]
pub struct Queue {
    /// The receiving half.
    pub rx: RxQueue,
    /// The sending half, where one was asked for.
    pub tx: Option<TxQueue>,
    /// The mode that was got.
    pub mode: BindMode,
    /// Why not zero-copy, when that was tried.
    pub reason: Option<String>,
}

impl Queue {
    /// Closes the socket and returns every frame that the kernel had: posted, received and not
    /// taken, sent and not reaped.
    ///
    /// Blocks for an RCU grace period (5-50 ms), so it is not for a worker: hand the queue to the
    /// thread that opened it. Should somebody hold a duplicate of the socket, the kernel may still
    /// write to the frames.
    pub fn close(self) -> Vec<Frame> {
        let (socket, posted) = self.rx.into_parts();
        let mut ledgers = vec![posted];
        if let Some(tx) = self.tx {
            let (_same_socket, sent) = tx.into_parts();
            ledgers.push(sent);
        }
        if !close_last(socket) {
            // Better frames lost than frames that the kernel still writes to.
            return Vec::new();
        }
        ledgers.into_iter().flat_map(Ledger::drain).collect()
    }
}

/// The registration of the region that copy-mode queues share.
#[derive(Debug)]
pub struct Umem {
    region: Arc<Region>,
    anchor: Socket,
    metadata: bool,
}

impl Umem {
    /// Registers `region`.
    ///
    /// # Errors
    /// [`XskError`] without the capability, the memory limit or the kernel that AF_XDP needs, or
    /// when another process has the queue of the loopback device.
    pub fn new(region: Arc<Region>) -> Result<Self, XskError> {
        let place = "memory region";
        let anchor = Socket::open(place)?;
        let metadata = register(&anchor, place, &region)?;
        for (ring, size) in [
            (Ring::Fill, UNUSED_RING),
            (Ring::Completion, UNUSED_RING),
            (Ring::Rx, UNUSED_RING),
        ] {
            anchor.set_ring_size(place, ring, size)?;
        }
        let place = "memory region on loopback queue 0";
        let ifindex = sys::interface_index(c"lo").ok_or_else(|| {
            let remedy = "the network namespace has no loopback device lo";
            XskError::new(place, Step::Bind, io::Error::last_os_error(), remedy)
        })?;
        let flags = libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP | libc::XDP_USE_SG;
        let address = address(ifindex, 0, flags, 0);
        bind(anchor.fd(), &address, BUSY_RETRY).map_err(|source| {
            let remedy = match source.raw_os_error() {
                Some(libc::EBUSY) => {
                    "another dataplane or AF_XDP program runs in this network namespace: stop it"
                }
                _ => "",
            };
            XskError::new(place, Step::Bind, source, remedy)
        })?;
        Ok(Self {
            region,
            anchor,
            metadata,
        })
    }

    /// The region.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Whether tx rings take checksum requests (kernel 6.8 and newer).
    pub fn checksum_offload(&self) -> bool {
        self.metadata
    }

    /// Opens queue `queue` of interface `ifindex` and posts `config.posted` frames of `pool` to it.
    /// Waits as long as `config.busy_retry` says for a queue that is taken.
    ///
    /// # Errors
    /// [`XskError`] names the interface and queue, the step, the reason and the remedy. All frames
    /// are then back in `pool`.
    pub fn open_queue(
        &self,
        ifindex: u32,
        queue: u32,
        config: &QueueConfig,
        pool: &mut FramePool,
    ) -> Result<Queue, XskError> {
        let mut reason = None;
        if config.try_zero_copy {
            match self.open_in_mode(ifindex, queue, config, pool, BindMode::ZeroCopy) {
                Err(error) if !error.is_taken() => reason = Some(error.to_string()),
                done => return done,
            }
        }
        let mut opened = self.open_in_mode(ifindex, queue, config, pool, BindMode::Copy)?;
        opened.reason = reason;
        Ok(opened)
    }

    fn open_in_mode(
        &self,
        ifindex: u32,
        queue: u32,
        config: &QueueConfig,
        pool: &mut FramePool,
        mode: BindMode,
    ) -> Result<Queue, XskError> {
        let interface =
            sys::interface_name(ifindex).unwrap_or_else(|| format!("interface {ifindex}"));
        let place = format!("{interface} queue {queue}");
        let socket = Socket::open(&place)?;
        let metadata = match mode {
            BindMode::ZeroCopy => register(&socket, &place, &self.region)?,
            BindMode::Copy => self.metadata,
        };
        let mut opened = make_rings(socket, &place, &self.region, config, metadata)?;
        opened.rx.fill_from(pool, config.posted);
        let (flags, shared) = match mode {
            BindMode::ZeroCopy => (
                libc::XDP_ZEROCOPY | libc::XDP_USE_NEED_WAKEUP | libc::XDP_USE_SG,
                0,
            ),
            BindMode::Copy => (libc::XDP_SHARED_UMEM, self.anchor.fd().as_raw_fd()),
        };
        let address = address(ifindex, queue, flags, shared);
        let bound = bind(opened.rx.fd(), &address, config.busy_retry)
            .and_then(|()| zero_copy(opened.rx.fd()));
        match bound {
            Ok(zero_copy) => {
                opened.mode = if zero_copy {
                    BindMode::ZeroCopy
                } else {
                    BindMode::Copy
                };
                Ok(opened)
            }
            Err(source) => {
                for frame in opened.close() {
                    pool.put(frame);
                }
                let remedy = bind_remedy(&interface, queue, &source);
                Err(XskError::new(place, Step::Bind, source, remedy))
            }
        }
    }
}

/// Registers `region` on `socket`; whether TX metadata could be registered with it (kernel 6.8).
fn register(socket: &Socket, place: &str, region: &Region) -> Result<bool, XskError> {
    let chunk = u32::try_from(CHUNK_SIZE).unwrap_or(0);
    let metadata = u32::try_from(TX_METADATA_LEN).unwrap_or(0);
    match sys::register_region(socket.fd(), region, chunk, metadata) {
        Ok(()) => return Ok(true),
        // The answer of an older kernel to a flag that it does not know.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        Err(source) => return Err(XskError::new(place, Step::Register, source, "")),
    }
    sys::register_region(socket.fd(), region, chunk, 0)
        .map_err(|source| XskError::new(place, Step::Register, source, ""))?;
    Ok(false)
}

/// Makes and maps the rings of a queue that is yet to be bound. Fill and completion ring are
/// demanded of every queue, also of one that does not send.
fn make_rings(
    socket: Socket,
    place: &str,
    region: &Arc<Region>,
    config: &QueueConfig,
    metadata: bool,
) -> Result<Queue, XskError> {
    let completion_size = config
        .tx_size
        .map_or(UNUSED_RING, |_| config.completion_size);
    socket.set_ring_size(place, Ring::Fill, config.fill_size)?;
    socket.set_ring_size(place, Ring::Completion, completion_size)?;
    socket.set_ring_size(place, Ring::Rx, config.rx_size)?;
    if let Some(size) = config.tx_size {
        socket.set_ring_size(place, Ring::Tx, size)?;
        prepare_sending(&socket, size);
    }
    let offsets: libc::xdp_mmap_offsets =
        sys::get_option(socket.fd(), libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)
            .map_err(|source| XskError::new(place, Step::Layout, source, ""))?;

    let socket = Arc::new(socket);
    let failed =
        |ring: Ring| move |source| XskError::new(place, Step::MapRing(ring.name()), source, "");
    // SAFETY: made above with this size; fill rings hold addresses; mapped here only.
    let fill = unsafe { map(&socket, Ring::Fill, config.fill_size, &offsets.fr) };
    let fill: KernelProducer<u64> = Producer::new(fill.map_err(failed(Ring::Fill))?);
    // SAFETY: made above with this size; rx rings hold descriptors; mapped here only.
    let rx = unsafe { map(&socket, Ring::Rx, config.rx_size, &offsets.rx) };
    let rx: KernelConsumer<libc::xdp_desc> = Consumer::new(rx.map_err(failed(Ring::Rx))?);
    let tx = match config.tx_size {
        None => None,
        Some(size) => {
            // SAFETY: made above with this size; tx rings hold descriptors; mapped here only.
            let tx = unsafe { map(&socket, Ring::Tx, size, &offsets.tx) };
            let tx: KernelProducer<libc::xdp_desc> = Producer::new(tx.map_err(failed(Ring::Tx))?);
            // SAFETY: made above with this size; completion rings hold addresses; mapped here
            // only.
            let completion =
                unsafe { map(&socket, Ring::Completion, completion_size, &offsets.cr) };
            let completion: KernelConsumer<u64> =
                Consumer::new(completion.map_err(failed(Ring::Completion))?);
            let (socket, region) = (Arc::clone(&socket), Arc::clone(region));
            Some(TxQueue::new(tx, completion, socket, region, size, metadata))
        }
    };
    Ok(Queue {
        rx: RxQueue::new(rx, fill, socket, Ledger::new(region)),
        tx,
        mode: BindMode::Copy,
        reason: None,
    })
}

/// # Safety
/// As [`MappedRing::map`].
unsafe fn map<D: Copy>(
    socket: &Socket,
    ring: Ring,
    size: u32,
    offsets: &libc::xdp_ring_offset,
) -> io::Result<MappedRing<D>> {
    // SAFETY: the caller's promise.
    unsafe { MappedRing::map(socket.fd(), ring.page_offset(), size, offsets) }
}

/// Lets one wake send a whole ring in copy mode. Both settings make sending faster and nothing
/// else, so a kernel or a missing capability that refuses them is no error.
fn prepare_sending(socket: &Socket, tx_size: u32) {
    let budget = libc::c_int::try_from(tx_size).unwrap_or(libc::c_int::MAX);
    let _ = sys::set_option(socket.fd(), libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, budget);
    let (level, name) = (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE);
    let _ = sys::set_option(socket.fd(), level, name, SEND_BUFFER);
}

fn address(ifindex: u32, queue: u32, flags: u16, shared: RawFd) -> libc::sockaddr_xdp {
    libc::sockaddr_xdp {
        sxdp_family: AF_XDP,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: shared.cast_unsigned(),
    }
}

/// Binds, and waits up to `patience` for a queue that is taken.
fn bind(fd: BorrowedFd<'_>, address: &libc::sockaddr_xdp, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match sys::bind(fd, address) {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                thread::sleep(BUSY_PAUSE);
            }
            done => return done,
        }
    }
}

/// Whether a bound socket is in zero-copy mode.
fn zero_copy(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let options: libc::xdp_options = sys::get_option(fd, libc::SOL_XDP, libc::XDP_OPTIONS)?;
    Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// The remedy for a queue that cannot be bound, as far as it depends on the interface.
fn bind_remedy(interface: &str, queue: u32, source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::EBUSY) => {
            "the queue is taken: stop the other AF_XDP program on this interface".to_owned()
        }
        Some(libc::EINVAL) => match Interface::by_name(interface).ok().map(|it| it.rx_queues) {
            Some(count) if queue >= count => format!(
                "the interface has {count} queues, numbered from 0: use one of them, or give it \
                 more (ethtool -L {interface})"
            ),
            Some(_) => String::new(),
            None => "the interface may have no such queue".to_owned(),
        },
        _ => String::new(),
    }
}

/// Closes the socket once nobody else has it: a thread that reads statistics may, and not for
/// long. False when somebody keeps it.
fn close_last(mut socket: Arc<Socket>) -> bool {
    let deadline = Instant::now() + BUSY_RETRY;
    loop {
        match Arc::try_unwrap(socket) {
            Ok(_closed_here) => return true,
            Err(_) if Instant::now() > deadline => return false,
            Err(shared) => socket = shared,
        }
        thread::yield_now();
    }
}
