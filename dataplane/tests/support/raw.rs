//! Raw frames in and out of the far end.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use podway_dataplane::egress::{Message, PacketGso, Piece, SendError, VnetHeader};
use podway_dataplane::fib::PortId;
use podway_dataplane::xsk::{CHUNK_SIZE, Frame, Region};

/// Sends frames by the GSO socket, from memory of its own.
pub(crate) struct Sender {
    socket: PacketGso,
    region: Arc<Region>,
    frames: Vec<Frame>,
}

impl Sender {
    pub(crate) fn new() -> Self {
        let (region, frames) = Region::new(1024).unwrap();
        Self {
            socket: PacketGso::new().unwrap(),
            region,
            frames,
        }
    }

    /// Sends each of `packets` to `ifindex`, all in one call: what became of each, and the number
    /// of system calls.
    pub(crate) fn send_all(
        &mut self,
        ifindex: u32,
        packets: &[(Vec<u8>, VnetHeader)],
    ) -> (Vec<Result<(), SendError>>, u32) {
        let mut free = self.frames.iter_mut();
        let mut messages = Vec::new();
        for (bytes, vnet) in packets {
            let mut pieces = Vec::<Piece>::new();
            for part in bytes.chunks(CHUNK_SIZE) {
                let frame = free.next().unwrap();
                assert!(frame.set_data(0, part.len()));
                self.region.bytes_mut(frame).copy_from_slice(part);
                pieces.push(frame.piece(0..part.len()));
            }
            messages.push(Message {
                port: PortId(0),
                ifindex,
                ethertype: u16::from_be_bytes([bytes[12], bytes[13]]),
                vnet: *vnet,
                tunnel: None,
                uplink: false,
                encapsulated: false,
                bytes: u32::try_from(bytes.len()).unwrap(),
                packets: 1,
                joined: 0,
                cut: 0,
                pieces,
            });
        }
        let mut results = vec![None; packets.len()];
        let calls = self
            .socket
            .send(&messages, &self.region, &[], |index, result| {
                assert_eq!(
                    results[index].replace(result),
                    None,
                    "message {index} twice"
                );
            });
        (results.into_iter().map(Option::unwrap).collect(), calls)
    }

    /// Sends one packet.
    pub(crate) fn send(
        &mut self,
        ifindex: u32,
        bytes: &[u8],
        vnet: VnetHeader,
    ) -> Result<(), SendError> {
        let (results, calls) = self.send_all(ifindex, &[(bytes.to_vec(), vnet)]);
        assert_eq!(calls, 1);
        results[0]
    }

    /// Sends finished packets, which must all be taken.
    pub(crate) fn send_plain(&mut self, ifindex: u32, packets: &[Vec<u8>]) {
        let packets: Vec<_> = packets
            .iter()
            .map(|bytes| (bytes.clone(), VnetHeader::default()))
            .collect();
        let (results, _) = self.send_all(ifindex, &packets);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
}

/// Sees every frame that arrives at an interface, with its offload metadata.
pub(crate) struct Capture {
    fd: OwnedFd,
}

/// A frame that was captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Captured {
    pub(crate) vnet: VnetHeader,
    pub(crate) bytes: Vec<u8>,
}

const PACKET_VNET_HDR: i32 = 15;
const PACKET_IGNORE_OUTGOING: i32 = 23;

impl Capture {
    pub(crate) fn new(ifindex: u32) -> Self {
        // SAFETY: takes integers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let capture = Self { fd };
        capture.set(libc::SOL_PACKET, PACKET_VNET_HDR, 1_i32);
        capture.set(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1_i32);
        capture.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64_i32 << 20);
        let timeout = libc::timeval {
            tv_sec: 0,
            tv_usec: 300_000,
        };
        capture.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, timeout);
        let address = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).unwrap(),
            sll_protocol: u16::try_from(libc::ETH_P_ALL).unwrap().to_be(),
            sll_ifindex: i32::try_from(ifindex).unwrap(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the kernel reads the address, whose length is told.
        let result = unsafe {
            libc::bind(
                capture.fd.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                u32::try_from(size_of_val(&address)).unwrap(),
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        capture
    }

    fn set<T>(&self, level: i32, name: i32, value: T) {
        // SAFETY: the kernel reads the value, whose length is told.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(&value).cast(),
                u32::try_from(size_of::<T>()).unwrap(),
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// Sees from now on only what was sent by a tx queue.
    pub(crate) fn only_by_queue(&self, queue: u16) {
        // The queue of the skb (SKF_AD_OFF + SKF_AD_QUEUE, linux/filter.h), all bytes or none.
        let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
        let mut steps = [
            step(0x20, 0, 0xffff_f000 + 24),
            step(0x15, 1, queue.into()),
            step(0x06, 0, u32::MAX),
            step(0x06, 0, 0),
        ];
        let program = libc::sock_fprog {
            len: 4,
            filter: steps.as_mut_ptr(),
        };
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program);
    }

    /// The next frame; `None` when none comes for 300 ms.
    pub(crate) fn next(&self) -> Option<Captured> {
        let mut buffer = vec![0_u8; 128 << 10];
        // SAFETY: the kernel writes at most the buffer's length.
        let length = unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        let length = usize::try_from(length).ok()?;
        let word = |at: usize| u16::from_ne_bytes([buffer[at], buffer[at + 1]]);
        Some(Captured {
            vnet: VnetHeader {
                flags: buffer[0],
                gso_type: buffer[1],
                hdr_len: word(2),
                gso_size: word(4),
                csum_start: word(6),
                csum_offset: word(8),
            },
            bytes: buffer[10..length].to_vec(),
        })
    }

    /// Frames until none comes for 300 ms.
    pub(crate) fn rest(&self) -> Vec<Captured> {
        std::iter::from_fn(|| self.next()).collect()
    }
}
