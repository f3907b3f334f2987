#![allow(
    unsafe_code,
    reason = "namespaces, raw sockets and BPF_PROG_RUN have no safe interface"
)]
#![allow(dead_code, reason = "each test binary uses a part of it")]
//! What the tests of this crate share: a network namespace for each test, and a node to classify
//! packets on.

pub(crate) mod node;
pub(crate) mod packets;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::Command;

use libbpf_rs::libbpf_sys;

/// Runs `test` on a thread of its own in a new network namespace. The namespace has no name: it
/// goes, with all its links, when the thread ends, however it ends.
pub(crate) fn in_netns(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        // SAFETY: changes the namespace of this thread only.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(
            result,
            0,
            "these tests need root: {}",
            io::Error::last_os_error()
        );
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs ip(8) with arguments that have no spaces in them; answers with what it printed.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("iproute2");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes a veth pair that is up and says nothing by itself.
pub(crate) fn veth(name: &str, peer: &str, queues: u32) {
    ip(&format!(
        "link add {name} numrxqueues {queues} type veth peer name {peer} numrxqueues {queues}"
    ));
    for end in [name, peer] {
        ip(&format!("link set dev {end} addrgenmode none"));
        ip(&format!("link set dev {end} up"));
    }
}

/// The index of an interface of this namespace.
pub(crate) fn ifindex(name: &str) -> u32 {
    let name = CString::new(name).unwrap();
    // SAFETY: a valid string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{name:?}: {}", io::Error::last_os_error());
    index
}

/// Packets that have left by an interface of this namespace.
pub(crate) fn sent(name: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = table.lines().find_map(|line| {
        let (interface, columns) = line.split_once(':')?;
        (interface.trim() == name).then_some(columns)
    });
    // Eight columns of what has arrived, then bytes and packets of what has left.
    let mut columns = line.expect("the interface").split_whitespace();
    columns.nth(9).unwrap().parse().unwrap()
}

/// Nanoseconds of `CLOCK_MONOTONIC`, as heartbeats tell them.
pub(crate) fn now_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// The same as programs mostly read it: it stands still within a tick.
pub(crate) fn coarse_ns() -> u64 {
    clock(libc::CLOCK_MONOTONIC_COARSE)
}

fn clock(id: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is valid for writes.
    let result = unsafe { libc::clock_gettime(id, &raw mut now) };
    assert_eq!(result, 0);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// Waits until the coarse clock moves on.
pub(crate) fn next_tick() {
    let now = coarse_ns();
    while coarse_ns() == now {
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

fn socket(domain: i32, kind: i32) -> OwnedFd {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else has.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// An AF_XDP socket. It is bound to nothing: the map takes it, and `BPF_PROG_RUN` stops at the
/// program's verdict, before the kernel would look at the binding.
pub(crate) fn xdp_socket() -> OwnedFd {
    socket(libc::AF_XDP, libc::SOCK_RAW)
}

/// Sends a frame out of an interface.
pub(crate) fn send_frame(ifindex: u32, frame: &[u8]) {
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW);
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    address.sll_ifindex = i32::try_from(ifindex).unwrap();
    let length = u32::try_from(size_of_val(&address)).unwrap();
    // SAFETY: frame and address are valid for the lengths given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            length,
        )
    };
    assert_eq!(
        usize::try_from(sent),
        Ok(frame.len()),
        "{}",
        io::Error::last_os_error()
    );
}

/// What a program answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Pass,
    Redirect,
    Drop,
}

/// Runs the XDP program on a packet through `BPF_PROG_RUN`, as if it had come by a queue of an
/// interface of this namespace. `linear` bytes lie in the first buffer, the rest in further ones.
pub(crate) fn run(
    program: BorrowedFd<'_>,
    ifindex: u32,
    queue: u32,
    packet: &[u8],
    linear: usize,
) -> Action {
    let context = libbpf_sys::xdp_md {
        data_end: u32::try_from(linear).unwrap(),
        ingress_ifindex: ifindex,
        rx_queue_index: queue,
        ..Default::default()
    };
    match prog_run(program, packet, &context, &mut []) {
        1 => Action::Drop,
        2 => Action::Pass,
        4 => Action::Redirect,
        other => panic!("the program answered {other} to {packet:02x?}"),
    }
}

/// Longest packet that `BPF_PROG_RUN` makes an skb of: a page less what the kernel keeps there.
pub(crate) const LONGEST_SKB: usize = 3500;

/// Fields of `struct __sk_buff` (linux/bpf.h), as positions among its 32-bit words.
const SKB_IFINDEX: usize = 10;
const SKB_GSO_SIZE: usize = 44;

/// Runs a tcx program on a packet through `BPF_PROG_RUN`, as if it had come by an interface of this
/// namespace. It is a super-frame of segments of `segment` bytes; 0: it is none. Gives the packet as
/// the program leaves it, too. The queue is always 0: the kernel takes no other.
pub(crate) fn run_tcx(
    program: BorrowedFd<'_>,
    ifindex: u32,
    segment: u16,
    packet: &[u8],
) -> (Action, Vec<u8>) {
    let mut context = [0; SKB_GSO_SIZE + 1];
    context[SKB_IFINDEX] = ifindex;
    context[SKB_GSO_SIZE] = u32::from(segment);
    let mut left = vec![0; packet.len()];
    let action = match prog_run(program, packet, &context, &mut left) {
        // TCX_NEXT, -1.
        u32::MAX => Action::Pass,
        2 => Action::Drop,
        7 => Action::Redirect,
        other => panic!("the program answered {other} to {packet:02x?}"),
    };
    (action, left)
}

/// `BPF_PROG_RUN`: the answer, and in `left` the start of the packet afterwards.
fn prog_run<C>(program: BorrowedFd<'_>, packet: &[u8], context: &C, left: &mut [u8]) -> u32 {
    let size = u32::try_from(packet.len()).unwrap();
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: packet.as_ptr().cast(),
        data_size_in: size,
        ctx_in: std::ptr::from_ref(context).cast(),
        ctx_size_in: u32::try_from(size_of_val(context)).unwrap(),
        repeat: 1,
        ..Default::default()
    };
    if !left.is_empty() {
        options.data_out = left.as_mut_ptr().cast();
        options.data_size_out = u32::try_from(left.len()).unwrap();
    }
    // SAFETY: packet, context and `left` are valid for the sizes given, and `options` says how
    // large it is.
    let result = unsafe {
        libbpf_sys::bpf_prog_test_run_opts(program.as_fd().as_raw_fd(), &raw mut options)
    };
    assert_eq!(
        result,
        0,
        "BPF_PROG_RUN of {size} bytes: {}",
        io::Error::last_os_error()
    );
    options.retval
}
