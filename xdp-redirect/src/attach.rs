#![allow(
    unsafe_code,
    reason = "libbpf-rs attaches XDP links without a choice of mode, and no tcx links"
)]
//! Attaching the programs to an interface, as links that this process owns.
//!
//! A link rather than a netlink attachment: the kernel detaches when the last descriptor closes,
//! so a killed process leaves no program behind.

use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;
use libbpf_rs::query::ProgInfoIter;

use crate::load::{Capture, Redirect};

/// `NETDEV_XDP_ACT_XSK_ZEROCOPY` of linux/netdev.h.
const XSK_ZEROCOPY: u64 = 8;

/// Where in the kernel the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum XdpMode {
    /// In the driver, before the packet has an skb. On a veth this takes TSO from the other end.
    Native,
    /// On the finished skb: any driver, and super-frames arrive whole. It switches GRO off on the
    /// interface.
    Generic,
}

impl XdpMode {
    /// The mode that is not this one.
    fn other(self) -> Self {
        match self {
            Self::Native => Self::Generic,
            Self::Generic => Self::Native,
        }
    }
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// Which mode to attach in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModeChoice {
    /// The given mode if the driver takes it, else the other.
    Auto(XdpMode),
    /// Native or an error.
    Native,
    /// Generic or an error.
    Generic,
}

/// Why the program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The interface has an XDP program already.
    #[error(
        "{interface} already has the XDP program {program}; remove it \
         (ip link set dev {interface} xdp off), or stop the process that holds it"
    )]
    Busy {
        /// Interface name.
        interface: String,
        /// Name and id of the program there, as far as it could be found.
        program: String,
    },
    /// There is no such interface in this network namespace.
    #[error("there is no interface with index {ifindex} in this network namespace")]
    NoDevice {
        /// The index.
        ifindex: u32,
    },
    /// The process may not attach.
    #[error("may not attach to {interface}: run as root, or with CAP_BPF and CAP_NET_ADMIN")]
    Permission {
        /// Interface name.
        interface: String,
    },
    /// The driver or the kernel refused each mode that was asked for.
    #[error("cannot attach to {interface}: {reason}")]
    Refused {
        /// Interface name.
        interface: String,
        /// Which mode was refused and why.
        reason: String,
    },
}

/// A program on an interface. Dropping it detaches, as does the end of the process.
#[derive(Debug)]
struct Link(OwnedFd);

impl Drop for Link {
    /// Closing would not be enough: a child that another thread has forked holds a copy of the
    /// descriptor until it calls exec, and the program would stay for as long.
    fn drop(&mut self) {
        // SAFETY: the descriptor is open for as long as `self`. A failure says that the interface
        // has gone, and the attachment with it.
        unsafe { libbpf_sys::bpf_link_detach(self.0.as_raw_fd()) };
    }
}

/// A program at the tcx ingress of an interface. Dropping it detaches, as does the end of the
/// process.
#[derive(Debug)]
pub struct TcxAttachment {
    _link: Link,
}

/// The XDP program on an interface. Dropping it detaches, as does the end of the process.
#[derive(Debug)]
pub struct Attachment {
    _link: Link,
    ifindex: u32,
    mode: XdpMode,
    reason: Option<String>,
}

impl Attachment {
    /// The interface.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The mode that was got.
    pub fn mode(&self) -> XdpMode {
        self.mode
    }

    /// Why not the preferred mode, when it is not.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

impl Redirect {
    /// Attaches the program to an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// See [`AttachError`]. With [`ModeChoice::Auto`] the second mode is tried only when the first
    /// was refused for what the driver can do, never when the interface is taken or gone.
    pub fn attach(&self, ifindex: u32, choice: ModeChoice) -> Result<Attachment, AttachError> {
        let (first, second) = match choice {
            ModeChoice::Auto(preferred) => (preferred, Some(preferred.other())),
            ModeChoice::Native => (XdpMode::Native, None),
            ModeChoice::Generic => (XdpMode::Generic, None),
        };
        let interface = interface_name(ifindex).ok_or(AttachError::NoDevice { ifindex })?;
        let attachment = |link, mode, reason| Attachment {
            _link: link,
            ifindex,
            mode,
            reason,
        };
        let refused = match self.create_link(ifindex, first) {
            Ok(link) => return Ok(attachment(link, first, None)),
            Err(error) => refusal(ifindex, &interface, first, &error)?,
        };
        let Some(second) = second else {
            return Err(AttachError::Refused {
                interface,
                reason: refused,
            });
        };
        match self.create_link(ifindex, second) {
            Ok(link) => Ok(attachment(link, second, Some(refused))),
            Err(error) => {
                let also = refusal(ifindex, &interface, second, &error)?;
                Err(AttachError::Refused {
                    interface,
                    reason: format!("{refused}; {also}"),
                })
            }
        }
    }

    fn create_link(&self, ifindex: u32, mode: XdpMode) -> io::Result<Link> {
        let flags = match mode {
            XdpMode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
            XdpMode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
        };
        create_link(self.as_fd(), ifindex, libbpf_sys::BPF_XDP, flags)
    }

    /// Attaches the classifier to the tcx ingress of an interface of the calling thread's network
    /// namespace: it redirects to the TAPs of the workers.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach_classifier(&self, ifindex: u32) -> Result<TcxAttachment, AttachError> {
        tcx(self.classify.as_fd(), ifindex)
    }

    /// Attaches to the tcx ingress of a TAP the program that sends what a worker writes there.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach_transmitter(&self, ifindex: u32) -> Result<TcxAttachment, AttachError> {
        tcx(self.transmit.as_fd(), ifindex)
    }
}

fn tcx(program: BorrowedFd<'_>, ifindex: u32) -> Result<TcxAttachment, AttachError> {
    let interface = interface_name(ifindex).ok_or(AttachError::NoDevice { ifindex })?;
    let refused = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENODEV) => AttachError::NoDevice { ifindex },
        Some(libc::EPERM | libc::EACCES) => AttachError::Permission { interface },
        _ => AttachError::Refused {
            interface,
            reason: format!("tcx (Linux 6.6 or newer is needed): {error}"),
        },
    };
    let link = create_link(program, ifindex, libbpf_sys::BPF_TCX_INGRESS, 0).map_err(refused)?;
    Ok(TcxAttachment { _link: link })
}

fn create_link(
    program: BorrowedFd<'_>,
    ifindex: u32,
    kind: libbpf_sys::bpf_attach_type,
    flags: u32,
) -> io::Result<Link> {
    let _quiet = Capture::start();
    let ifindex = c_int::try_from(ifindex).map_err(|_| no_device())?;
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags,
        ..Default::default()
    };
    // SAFETY: the program's descriptor is borrowed, so open; `options` is valid and its size field
    // says how much of it libbpf may read.
    let link = unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex, kind, &raw const options)
    };
    if link < 0 {
        return Err(io::Error::from_raw_os_error(-link));
    }
    // SAFETY: the kernel has just made this descriptor (close-on-exec) and nobody else has it.
    Ok(Link(unsafe { OwnedFd::from_raw_fd(link) }))
}

/// Whether the driver of an interface takes AF_XDP sockets without a copy, by what it says of
/// itself (netdev netlink family, `xsk-zerocopy`).
pub fn offers_zero_copy(ifindex: u32) -> bool {
    query(ifindex).is_some_and(|answer| answer.feature_flags & XSK_ZEROCOPY != 0)
}

fn query(ifindex: u32) -> Option<libbpf_sys::bpf_xdp_query_opts> {
    let _quiet = Capture::start();
    let mut answer = libbpf_sys::bpf_xdp_query_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let ifindex = c_int::try_from(ifindex).ok()?;
    // SAFETY: `answer` is valid for writes and its size field bounds them.
    let failed = unsafe { libbpf_sys::bpf_xdp_query(ifindex, 0, &raw mut answer) };
    (failed == 0).then_some(answer)
}

/// Why a mode was refused, when another one may be taken instead; otherwise the error.
fn refusal(
    ifindex: u32,
    interface: &str,
    mode: XdpMode,
    error: &io::Error,
) -> Result<String, AttachError> {
    let interface = interface.to_owned();
    let why = match error.raw_os_error() {
        // EEXIST: a program is there in the other mode.
        Some(libc::EBUSY | libc::EEXIST) => {
            let program = attached_program(ifindex).unwrap_or_else(|| "of another owner".into());
            return Err(AttachError::Busy { interface, program });
        }
        Some(libc::ENODEV) => return Err(AttachError::NoDevice { ifindex }),
        Some(libc::EPERM | libc::EACCES) => return Err(AttachError::Permission { interface }),
        Some(libc::EOPNOTSUPP) if mode == XdpMode::Native => "its driver has no native XDP",
        Some(libc::EINVAL | libc::ERANGE) if mode == XdpMode::Native => {
            "its driver refuses the program with the present MTU, queues or offloads"
        }
        _ => return Ok(format!("{mode} XDP: {error}")),
    };
    Ok(format!("{mode} XDP: {why} ({error})"))
}

/// Name and id of the program on an interface.
fn attached_program(ifindex: u32) -> Option<String> {
    let answer = query(ifindex)?;
    let ids = [
        answer.prog_id,
        answer.drv_prog_id,
        answer.skb_prog_id,
        answer.hw_prog_id,
    ];
    let id = ids.into_iter().find(|id| *id != 0)?;
    let name = ProgInfoIter::default()
        .find(|program| program.id == id)
        .map_or_else(String::new, |program| {
            format!("'{}' ", program.name.to_string_lossy())
        });
    Some(format!("{name}(id {id})"))
}

/// The name of an interface in the calling thread's network namespace.
fn interface_name(ifindex: u32) -> Option<String> {
    let mut name: [c_char; libc::IF_NAMESIZE] = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that if_indextoname(3) demands.
    if unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) }.is_null() {
        return None;
    }
    // SAFETY: on success the buffer holds a string that ends with a zero.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) };
    Some(name.to_string_lossy().into_owned())
}

fn no_device() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal_of(mode: XdpMode, errno: i32) -> Result<String, String> {
        refusal(u32::MAX, "eth7", mode, &io::Error::from_raw_os_error(errno))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_a_driver_cannot_do_is_a_reason() {
        let text = refusal_of(XdpMode::Native, libc::EOPNOTSUPP).unwrap();
        assert!(
            text.starts_with("native XDP: its driver has no native XDP ("),
            "{text}"
        );
        let text = refusal_of(XdpMode::Native, libc::ERANGE).unwrap();
        assert!(text.contains("MTU"), "{text}");
        let text = refusal_of(XdpMode::Generic, libc::ENOMEM).unwrap();
        assert!(text.starts_with("generic XDP: "), "{text}");
    }

    #[test]
    fn a_taken_or_missing_interface_is_an_error_with_the_remedy() {
        for errno in [libc::EBUSY, libc::EEXIST] {
            let text = refusal_of(XdpMode::Native, errno).unwrap_err();
            assert!(text.contains("ip link set dev eth7 xdp off"), "{text}");
        }
        let text = refusal_of(XdpMode::Native, libc::ENODEV).unwrap_err();
        assert!(text.contains("no interface with index"), "{text}");
        let text = refusal_of(XdpMode::Generic, libc::EPERM).unwrap_err();
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
    }
}
