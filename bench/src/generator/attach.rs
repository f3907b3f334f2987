#![allow(
    unsafe_code,
    reason = "libbpf-rs has no tcx links and no choice of XDP mode"
)]
//! Programs on interfaces, as links that go with their owner.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use libbpf_rs::libbpf_sys;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use crate::{Error, Result};

/// Where a program runs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// Before all others of the ingress side of tc.
    TcIngress,
    /// In the driver.
    NativeXdp,
}

/// A program on an interface. Dropping it detaches.
#[derive(Debug)]
pub(super) struct Attachment {
    link: OwnedFd,
}

impl Attachment {
    /// Attaches to an interface of the calling thread's namespace.
    pub(super) fn new(program: BorrowedFd<'_>, place: Place, interface: &str) -> Result<Self> {
        let index = index(interface)?;
        let (kind, flags) = match place {
            Place::TcIngress => (libbpf_sys::BPF_TCX_INGRESS, 0),
            Place::NativeXdp => (libbpf_sys::BPF_XDP, libbpf_sys::XDP_FLAGS_DRV_MODE),
        };
        let options = libbpf_sys::bpf_link_create_opts {
            sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
            flags,
            ..Default::default()
        };
        // SAFETY: the program's descriptor is borrowed for the call; `options` is valid and its
        // size field says how much of it libbpf may read.
        let link = unsafe {
            libbpf_sys::bpf_link_create(program.as_raw_fd(), index, kind, &raw const options)
        };
        if link < 0 {
            let error = io::Error::from_raw_os_error(-link);
            return Err(Error::io(format!("attach to {interface}"))(error));
        }
        // SAFETY: the kernel has just made this descriptor and nobody else has it.
        let link = unsafe { OwnedFd::from_raw_fd(link) };
        Ok(Self { link })
    }
}

impl Drop for Attachment {
    /// Closing would not be enough: a child that another thread has forked holds a copy of the
    /// descriptor until it calls exec.
    fn drop(&mut self) {
        // SAFETY: the descriptor is open for as long as `self`. A failure says that the interface
        // has gone, and the attachment with it.
        unsafe { libbpf_sys::bpf_link_detach(self.link.as_raw_fd()) };
    }
}

/// The index of an interface of the calling thread's namespace.
pub(super) fn index(interface: &str) -> Result<i32> {
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None);
    let index = any.and_then(|any| netdevice::name_to_index(any, interface));
    let index = index.map_err(|errno| Error::io(interface)(errno.into()))?;
    i32::try_from(index).map_err(|_| Error::Unexpected(format!("{interface} has index {index}")))
}
