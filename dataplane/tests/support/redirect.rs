//! The smallest XDP program that redirects every packet to the socket of its queue, loaded by
//! bpf(2) so that these tests stand on nothing else of the project.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_MAP_CREATE: i32 = 0;
const BPF_MAP_UPDATE_ELEM: i32 = 2;
const BPF_PROG_LOAD: i32 = 5;
const BPF_LINK_CREATE: i32 = 28;

const BPF_MAP_TYPE_XSKMAP: u32 = 17;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_FUNC_REDIRECT_MAP: i32 = 51;
const XDP_PASS: i32 = 2;

/// Where the program runs.
#[derive(Clone, Copy)]
pub(crate) enum XdpMode {
    Generic = 2, // XDP_FLAGS_SKB_MODE
    Native = 4,  // XDP_FLAGS_DRV_MODE
}

/// An attached program and its map of sockets; detached when dropped.
pub(crate) struct Redirect {
    map: OwnedFd,
    _link: OwnedFd,
}

impl Redirect {
    pub(crate) fn attach(ifindex: u32, mode: XdpMode) -> Self {
        // map_type, key_size, value_size, max_entries
        let map = bpf(
            BPF_MAP_CREATE,
            &[BPF_MAP_TYPE_XSKMAP, 4, 4, 64].map(word).concat(),
        );
        let insns = [
            insn(0x61, 2, 1, 16, 0), // r2 = ctx->rx_queue_index
            insn(0x18, 1, BPF_PSEUDO_MAP_FD, 0, map.as_raw_fd()), // r1 = map
            insn(0, 0, 0, 0, 0),     // (second half)
            insn(0xb7, 3, 0, 0, XDP_PASS), // r3 = XDP_PASS
            insn(0x85, 0, 0, 0, BPF_FUNC_REDIRECT_MAP),
            insn(0x95, 0, 0, 0, 0), // exit
        ]
        .concat();
        let license = c"Apache-2.0";
        let mut load = Vec::new();
        load.extend(word(BPF_PROG_TYPE_XDP));
        load.extend(word(u32::try_from(insns.len() / 8).unwrap()));
        load.extend((insns.as_ptr().addr() as u64).to_ne_bytes());
        load.extend((license.as_ptr().addr() as u64).to_ne_bytes());
        load.extend([0; 8]); // log_level, log_size
        load.extend([0; 8]); // log_buf
        load.extend(word(0)); // kern_version
        load.extend(word(BPF_F_XDP_HAS_FRAGS));
        load.extend([0; 16]); // prog_name
        load.extend(word(0)); // prog_ifindex
        load.extend(word(BPF_XDP));
        let program = bpf(BPF_PROG_LOAD, &load);
        let program_fd = u32::try_from(program.as_raw_fd()).unwrap();
        let link = [program_fd, ifindex, BPF_XDP, mode as u32];
        let link = bpf(BPF_LINK_CREATE, &link.map(word).concat());
        Self { map, _link: link }
    }

    /// Redirects `queue` to `socket`.
    pub(crate) fn insert(&self, queue: u32, socket: BorrowedFd<'_>) {
        let value = socket.as_raw_fd();
        let mut update = Vec::new();
        update.extend(word(u32::try_from(self.map.as_raw_fd()).unwrap()));
        update.extend(word(0));
        update.extend((std::ptr::from_ref(&queue).addr() as u64).to_ne_bytes());
        update.extend((std::ptr::from_ref(&value).addr() as u64).to_ne_bytes());
        update.extend([0; 8]); // flags: BPF_ANY
        assert_eq!(call(BPF_MAP_UPDATE_ELEM, &update), 0);
    }
}

fn word(value: u32) -> [u8; 4] {
    value.to_ne_bytes()
}

/// One `struct bpf_insn`.
fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    [code, src << 4 | dst, o0, o1, i0, i1, i2, i3]
}

fn bpf(command: i32, attributes: &[u8]) -> OwnedFd {
    let fd = call(command, attributes);
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
}

fn call(command: i32, attributes: &[u8]) -> i64 {
    // SAFETY: the kernel reads the attributes; what they point to lives during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            attributes.as_ptr(),
            attributes.len(),
        )
    };
    let reason = std::io::Error::last_os_error();
    assert!(result >= 0, "bpf command {command}: {reason}");
    result
}
