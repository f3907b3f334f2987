//! The GSO socket: AF_PACKET with virtio-net headers.
//!
//! One system call hands over many packets and super-frames, for any interfaces, and a device with
//! the offload cuts them in hardware. What the kernel demands of a message (`packet_snd` in
//! net/packet/af_packet.c, `virtio_net_hdr_to_skb` in include/linux/virtio_net.h):
//!
//! - Without GSO the packet fits the interface's MTU, or it is EMSGSIZE. With GSO the MTU is not
//!   looked at, not even for the segments.
//! - With GSO the whole frame, Ethernet header included, stays below 64 KiB (GSO_LEGACY_MAX_SIZE),
//!   or the kernel cuts it before it leaves, on an interface with the offload as well.
//! - `hdr_len` bytes, and all up to the checksum field, go to the linear part of the packet, the
//!   rest to pages. 0 means all, for which 64 KiB of contiguous memory are hard to get.
//! - `NEEDS_CSUM` wants the folded sum of the pseudo-header in the checksum field, with the length
//!   of the whole super-frame. UDP_L4 is EINVAL without it, or with more than 128 segments.
//! - The network namespace's qdiscs are passed as by any sender. `PACKET_QDISC_BYPASS` is never
//!   set: that path drops what would have to be segmented in software.
#![allow(
    unsafe_code,
    reason = "messages are handed to the kernel by pointer; each block states its invariant"
)]

use std::ffi::c_int;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::message::{Message, VnetHeader};
use super::sources::Sources;
use crate::xsk::{Region, sys};

/// `PACKET_VNET_HDR` of linux/if_packet.h: each message begins with a [`VnetHeader`].
const PACKET_VNET_HDR: c_int = 15;

/// Bytes that may wait below the socket. The default of 208 KiB holds three super-frames; this
/// holds a burst of 64 of them, and the kernel doubles it for its own overhead. More would only
/// let a slow port delay packets that it could drop.
const SEND_BUFFER: c_int = 4 << 20;

/// The address family and the length of an address in the types of their fields.
#[expect(clippy::cast_possible_truncation, reason = "17 fits")]
const AF_PACKET: libc::sa_family_t = libc::AF_PACKET as libc::sa_family_t;
#[expect(clippy::cast_possible_truncation, reason = "20 fits")]
const ADDRESS_LEN: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

/// Messages and pieces that there is room for from the start; more grow the arrays once.
const MESSAGES: usize = 256;
const PIECES: usize = 4096;

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The socket's buffer or the interface's queue is full, or memory is short: the packet is
    /// lost, the next one may pass.
    #[error("the egress is full")]
    Full,
    /// The kernel refuses this message, with this error number: ENXIO and ENETDOWN say that the
    /// interface is gone or down, EMSGSIZE that the packet is longer than its MTU or has more than
    /// 1023 pieces, EINVAL that the offload metadata do not fit the packet, EFAULT that a piece
    /// lies outside its source.
    #[error("refused: {}", io::Error::from_raw_os_error(*.0))]
    Refused(i32),
}

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("AF_PACKET socket: cannot {step}: {source}: {remedy}")]
pub struct OpenError {
    step: &'static str,
    source: io::Error,
    remedy: &'static str,
}

/// One AF_PACKET socket, by which a worker sends to all its interfaces.
#[derive(Debug)]
pub struct PacketGso {
    fd: OwnedFd,
    batch: Batch,
}

impl PacketGso {
    /// Opens the socket. It is bound to no interface and no protocol, so it receives nothing.
    ///
    /// # Errors
    /// [`OpenError`] names the step, the reason and the remedy.
    pub fn new() -> Result<Self, OpenError> {
        let fd = sys::raw_socket(libc::AF_PACKET).map_err(|source| OpenError {
            step: "open it",
            source,
            remedy: "give the process the capability CAP_NET_RAW",
        })?;
        sys::set_option(fd.as_fd(), libc::SOL_PACKET, PACKET_VNET_HDR, 1_i32).map_err(
            |source| OpenError {
                step: "turn on virtio-net headers",
                source,
                remedy: "use a kernel with AF_PACKET offloads (CONFIG_PACKET)",
            },
        )?;
        let set = |name| sys::set_option(fd.as_fd(), libc::SOL_SOCKET, name, SEND_BUFFER);
        // Without CAP_NET_ADMIN the system's limit (net.core.wmem_max) holds: slower, not wrong.
        let _ = set(libc::SO_SNDBUFFORCE).or_else(|_| set(libc::SO_SNDBUF));
        Ok(Self {
            fd,
            batch: Batch::new(),
        })
    }

    /// Sends `messages` in order. Their pieces lie in `region` and in `headers`.
    ///
    /// `done` is called once for each message with its index and what became of it. A message that
    /// fails is not tried again and does not hold back those after it; no call blocks. Returns the
    /// number of system calls, at most two per message.
    pub fn send(
        &mut self,
        messages: &[Message],
        region: &Region,
        headers: &[u8],
        mut done: impl FnMut(usize, Result<(), SendError>),
    ) -> u32 {
        let sources = Sources::new(region, headers);
        let mut batch = self.batch.fill(messages, &sources, &mut done);
        let mut calls = 0;
        while !batch.is_empty() {
            calls += 1;
            match batch.send(self.fd.as_fd()) {
                Ok(sent) => batch.take(sent).for_each(|index| done(index, Ok(()))),
                Err(libc::EINTR) => {}
                Err(errno) => batch
                    .take(1)
                    .for_each(|index| done(index, Err(classify(errno)))),
            }
        }
        calls
    }
}

/// Copies the first bytes of a message that was just handed to the kernel to `into`; returns how many.
pub(super) fn copy_head(
    message: &Message,
    region: &Region,
    headers: &[u8],
    into: &mut [u8],
) -> usize {
    let sources = Sources::new(region, headers);
    let mut copied = 0;
    for piece in &message.pieces {
        let (Some(iovec), Some(room)) = (sources.iovec(*piece), into.get_mut(copied..)) else {
            break;
        };
        let length = iovec.iov_len.min(room.len());
        // SAFETY: the piece lies inside its source (checked by `iovec`), which is borrowed here;
        // `room` is another's and as long. As for the kernel that has just read them, the frames of
        // a message that is not cleared are this worker's, and nobody writes to them meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(iovec.iov_base.cast(), room.as_mut_ptr(), length) };
        copied += length;
    }
    copied
}

pub(super) fn classify(errno: i32) -> SendError {
    match errno {
        libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => SendError::Full,
        errno => SendError::Refused(errno),
    }
}

/// The arrays of one `sendmmsg`, kept to be reused.
#[derive(Debug)]
struct Batch {
    iovecs: Vec<libc::iovec>,
    addresses: Vec<libc::sockaddr_ll>,
    /// Positions in `messages` of those that go to the kernel, with the range of their iovecs.
    entries: Vec<Entry>,
    headers: Vec<libc::mmsghdr>,
}

#[derive(Debug)]
struct Entry {
    index: usize,
    first: usize,
    count: usize,
}

// SAFETY: the pointers within are written and followed within one `send`, which borrows what they
// point to; between calls they are not used.
unsafe impl Send for Batch {}

/// The filled arrays during one `send`, which borrows the messages: what is left to be sent.
struct Filled<'a> {
    headers: &'a mut [libc::mmsghdr],
    entries: &'a [Entry],
}

impl Batch {
    fn new() -> Self {
        Self {
            iovecs: Vec::with_capacity(PIECES),
            addresses: Vec::with_capacity(MESSAGES),
            entries: Vec::with_capacity(MESSAGES),
            headers: Vec::with_capacity(MESSAGES),
        }
    }

    /// Fills the arrays; messages that cannot even be told to the kernel go to `done` at once.
    fn fill<'a>(
        &'a mut self,
        messages: &'a [Message],
        sources: &Sources,
        done: &mut impl FnMut(usize, Result<(), SendError>),
    ) -> Filled<'a> {
        self.iovecs.clear();
        self.addresses.clear();
        self.entries.clear();
        self.headers.clear();
        for (index, message) in messages.iter().enumerate() {
            if let Err(error) = self.add(index, message, sources) {
                done(index, Err(error));
            }
        }
        // Both arrays have their final size, so pointers into them hold from here on.
        let iovecs = self.iovecs.as_mut_ptr();
        let addresses = self.addresses.as_mut_ptr();
        for (position, entry) in self.entries.iter().enumerate() {
            self.headers.push(header(
                addresses.wrapping_add(position),
                iovecs.wrapping_add(entry.first),
                entry.count,
            ));
        }
        Filled {
            headers: &mut self.headers,
            entries: &self.entries,
        }
    }

    fn add(&mut self, index: usize, message: &Message, sources: &Sources) -> Result<(), SendError> {
        let count = message.pieces.len() + 1;
        if count > libc::UIO_MAXIOV as usize {
            return Err(SendError::Refused(libc::EMSGSIZE));
        }
        let first = self.iovecs.len();
        self.iovecs.push(libc::iovec {
            iov_base: std::ptr::from_ref(&message.vnet).cast_mut().cast(),
            iov_len: size_of::<VnetHeader>(),
        });
        for &piece in &message.pieces {
            let Some(iovec) = sources.iovec(piece) else {
                self.iovecs.truncate(first);
                return Err(SendError::Refused(libc::EFAULT));
            };
            self.iovecs.push(iovec);
        }
        self.addresses.push(address(message));
        self.entries.push(Entry {
            index,
            first,
            count,
        });
        Ok(())
    }
}

impl Filled<'_> {
    fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }

    /// Tries to send all that is left. The number sent, at least 1, or the error number of the
    /// first: an error of a later one is not told, it shows when that one is first.
    fn send(&mut self, fd: BorrowedFd<'_>) -> Result<usize, i32> {
        let count = libc::c_uint::try_from(self.headers.len()).unwrap_or(libc::c_uint::MAX);
        // SAFETY: `headers` has `count` entries. `Batch::fill` made each: its address and its
        // iovecs lie in arrays that have not changed since, and the iovecs name a header that is
        // borrowed and pieces that were checked to lie in borrowed memory. The kernel reads all of
        // it and writes `msg_len` only.
        let sent = unsafe {
            libc::sendmmsg(
                fd.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT,
            )
        };
        match usize::try_from(sent) {
            // 0 is never the answer to at least one message; were it, the loop must still end.
            Ok(sent) => Ok(sent.max(1)),
            Err(_) => Err(io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO)),
        }
    }

    /// Takes the first `count` messages off; their indexes.
    fn take(&mut self, count: usize) -> impl Iterator<Item = usize> + use<'_> {
        let count = count.min(self.headers.len());
        let (_taken, left) = std::mem::take(&mut self.headers).split_at_mut(count);
        self.headers = left;
        let (taken, left) = self.entries.split_at_checked(count).unwrap_or_default();
        self.entries = left;
        taken.iter().map(|entry| entry.index)
    }
}

/// The interface is told by its index, so one socket serves them all; the protocol becomes the
/// packet's, in network byte order. The MAC addresses are in the packet.
fn address(message: &Message) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: AF_PACKET,
        sll_protocol: message.ethertype.to_be(),
        // Indexes are positive ints to the kernel; what is none finds no interface.
        sll_ifindex: i32::try_from(message.ifindex).unwrap_or(-1),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

/// A message to the kernel: its address, and its `count` iovecs from `iovecs` on.
fn header(
    address: *mut libc::sockaddr_ll,
    iovecs: *mut libc::iovec,
    count: usize,
) -> libc::mmsghdr {
    // SAFETY: pointers and integers, for which zero is a value. Some C libraries pad the structure
    // with private fields, so it cannot be written out.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_name = address.cast();
    header.msg_hdr.msg_namelen = ADDRESS_LEN;
    header.msg_hdr.msg_iov = iovecs;
    header.msg_hdr.msg_iovlen = count;
    header
}

#[cfg(test)]
mod tests {
    use super::super::message::Piece;
    use super::*;
    use crate::fib::PortId;
    use std::sync::Arc;

    fn message(pieces: Vec<Piece>) -> Message {
        Message {
            port: PortId(3),
            ifindex: 7,
            ethertype: 0x0800,
            vnet: VnetHeader {
                gso_size: 1448,
                ..VnetHeader::default()
            },
            tunnel: None,
            uplink: false,
            encapsulated: false,
            bytes: 0, // not looked at
            packets: 1,
            joined: 0,
            cut: 0,
            pieces,
        }
    }

    fn region() -> Arc<Region> {
        Region::new(2).unwrap().0
    }

    /// Fills a batch; what was refused at once.
    fn fill(messages: &[Message], headers: &[u8]) -> (Batch, Vec<(usize, SendError)>) {
        let region = region();
        let sources = Sources::new(&region, headers);
        let (mut batch, mut refused) = (Batch::new(), Vec::new());
        batch.fill(messages, &sources, &mut |index, result| {
            refused.push((index, result.unwrap_err()));
        });
        (batch, refused)
    }

    #[test]
    fn a_message_is_its_vnet_header_and_its_pieces_in_order() {
        let headers = [0_u8; 64];
        let messages = [
            message(vec![Piece::of_headers(0, 42), Piece::of_region(4352, 1400)]),
            message(vec![Piece::of_headers(42, 22)]),
        ];
        let (batch, refused) = fill(&messages, &headers);
        assert_eq!(refused, []);
        let lengths: Vec<_> = batch.iovecs.iter().map(|iovec| iovec.iov_len).collect();
        assert_eq!(lengths, [10, 42, 1400, 10, 22]);
        let begins: Vec<_> = batch
            .iovecs
            .iter()
            .map(|iovec| iovec.iov_base.addr())
            .collect();
        assert_eq!(begins[0], std::ptr::from_ref(&messages[0].vnet).addr());
        assert_eq!(begins[1], headers.as_ptr().addr());
        assert_eq!(begins[4], headers.as_ptr().addr() + 42);
        let ranges: Vec<_> = batch
            .headers
            .iter()
            .map(|header| {
                let begin = header.msg_hdr.msg_iov.addr() - batch.iovecs.as_ptr().addr();
                (begin / size_of::<libc::iovec>(), header.msg_hdr.msg_iovlen)
            })
            .collect();
        assert_eq!(ranges, [(0, 3), (3, 2)]);
        assert_eq!(batch.addresses[1].sll_ifindex, 7);
        assert_eq!(batch.addresses[1].sll_protocol.to_ne_bytes(), [8, 0]);
    }

    #[test]
    fn a_piece_outside_its_source_takes_its_message_out_and_no_other() {
        let outside = [
            Piece::of_headers(60, 5),
            Piece::of_headers(65, 0),
            Piece::of_region(2 * 4096 - 1, 2),
            Piece::of_region(usize::MAX, usize::MAX),
        ];
        for piece in outside {
            let good = || message(vec![Piece::of_headers(60, 4), Piece::of_region(8191, 1)]);
            let bad = message(vec![Piece::of_headers(0, 14), piece]);
            let messages = [good(), bad, good()];
            let (batch, refused) = fill(&messages, &[0; 64]);
            assert_eq!(
                refused,
                [(1, SendError::Refused(libc::EFAULT))],
                "{piece:?}"
            );
            let left: Vec<_> = batch.entries.iter().map(|entry| entry.index).collect();
            assert_eq!(left, [0, 2]);
            assert_eq!(batch.iovecs.len(), 6);
        }
    }

    #[test]
    fn more_pieces_than_a_system_call_takes_are_refused() {
        let pieces = |count| message(vec![Piece::of_headers(0, 1); count]);
        let messages = [pieces(1023), pieces(1024)];
        let (batch, refused) = fill(&messages, &[0; 64]);
        assert_eq!(refused, [(1, SendError::Refused(libc::EMSGSIZE))]);
        assert_eq!(batch.headers.len(), 1);
    }

    #[test]
    fn errors_tell_a_full_egress_from_a_refused_message() {
        for errno in [libc::EAGAIN, libc::ENOBUFS, libc::ENOMEM] {
            assert_eq!(classify(errno), SendError::Full);
        }
        assert_eq!(classify(libc::EMSGSIZE), SendError::Refused(libc::EMSGSIZE));
        assert_eq!(
            SendError::Refused(libc::ENETDOWN).to_string(),
            "refused: Network is down (os error 100)"
        );
    }
}
