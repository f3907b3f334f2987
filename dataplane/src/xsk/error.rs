//! What can go wrong while a socket is set up, said so that an operator can act on it.

use std::io;

/// A socket could not be set up. Displays what, which step, the system's reason and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {step}: {source}{}{remedy}", if .remedy.is_empty() { "" } else { ": " })]
pub struct XskError {
    /// Interface and queue, or what else was being set up.
    place: String,
    step: Step,
    source: io::Error,
    remedy: String,
}

/// The step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Step {
    #[error("cannot open an AF_XDP socket")]
    Open,
    #[error("cannot register the memory region")]
    Register,
    #[error("cannot make the {0} ring")]
    MakeRing(&'static str),
    #[error("cannot map the {0} ring")]
    MapRing(&'static str),
    #[error("cannot read the layout of the rings")]
    Layout,
    #[error("cannot bind")]
    Bind,
}

impl XskError {
    pub(super) fn new(
        place: impl Into<String>,
        step: Step,
        source: io::Error,
        remedy: impl Into<String>,
    ) -> Self {
        let mut remedy = remedy.into();
        if remedy.is_empty() {
            remedy = general_remedy(step, source.raw_os_error().unwrap_or(0)).to_owned();
        }
        Self {
            place: place.into(),
            step,
            source,
            remedy,
        }
    }

    /// The system's error number, 0 when there is none.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }

    /// Whether somebody else has the queue.
    pub fn is_taken(&self) -> bool {
        self.step == Step::Bind && self.errno() == libc::EBUSY
    }
}

/// The remedy that follows from the step and the error number alone.
fn general_remedy(step: Step, errno: i32) -> &'static str {
    match (step, errno) {
        (Step::Open, libc::EPERM) => "give the process the capability CAP_NET_RAW",
        (Step::Open, libc::EAFNOSUPPORT) => "use a kernel built with CONFIG_XDP_SOCKETS",
        (Step::Register, libc::ENOBUFS) => {
            "raise the limit of locked memory (ulimit -l, LimitMEMLOCK=) or give the process \
             the capability CAP_IPC_LOCK"
        }
        (Step::Register, libc::ENOMEM) => "ask for fewer frames",
        (Step::MakeRing(_), libc::EINVAL) => "use a ring size that is a power of two",
        (Step::MakeRing(_) | Step::MapRing(_), libc::ENOMEM) => "use a smaller ring size",
        (Step::Bind, libc::ENODEV) => {
            "the interface is gone, or in another network namespace than the process"
        }
        (Step::Bind, libc::EINVAL) => "multi-buffer AF_XDP needs kernel 6.6 or newer",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_place_step_reason_and_remedy() {
        let error = XskError::new(
            "memory of the dataplane",
            Step::Open,
            io::Error::from_raw_os_error(libc::EPERM),
            "",
        );
        assert_eq!(
            error.to_string(),
            "memory of the dataplane: cannot open an AF_XDP socket: Operation not permitted \
             (os error 1): give the process the capability CAP_NET_RAW"
        );
        assert_eq!(error.errno(), libc::EPERM);
        assert!(!error.is_taken());
    }

    #[test]
    fn without_a_remedy_the_text_ends_with_the_reason() {
        let error = XskError::new(
            "eth0 queue 0",
            Step::MapRing("rx"),
            io::Error::from_raw_os_error(libc::EIO),
            "",
        );
        assert_eq!(
            error.to_string(),
            "eth0 queue 0: cannot map the rx ring: Input/output error (os error 5)"
        );
    }
}
