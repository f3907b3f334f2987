//! Who is at the other end of a connection, and what that one may do.

use std::os::fd::AsFd;

use rustix::net::sockopt::socket_peercred;
use rustix::process::{Uid, geteuid};

use crate::{ErrorBody, ErrorCode};

/// The process at the other end, as it was when it connected (`SO_PEERCRED` of unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// 0 when the system does not say.
    process: i32,
    /// `None` when the system does not say.
    user: Option<Uid>,
}

impl Peer {
    pub(super) fn of(stream: impl AsFd) -> Self {
        let credentials = socket_peercred(stream).ok();
        Self {
            process: credentials.map_or(0, |peer| peer.pid.as_raw_nonzero().get()),
            user: credentials.map(|peer| peer.uid),
        }
    }

    pub(super) fn process(self) -> i32 {
        self.process
    }

    /// Checks that it may change something: root may, and the user that the daemon runs as. Who else
    /// can connect may ask.
    ///
    /// # Errors
    /// [`ErrorCode::PermissionDenied`], also when the system does not say who it is.
    pub fn check_change(self) -> Result<(), ErrorBody> {
        let own = geteuid();
        if self.user.is_some_and(|user| user.is_root() || user == own) {
            return Ok(());
        }
        let who = self.user.map_or_else(
            || "who is not known".to_owned(),
            |user| format!("user {}", user.as_raw()),
        );
        let allowed = match own {
            own if own.is_root() => "root".to_owned(),
            own => format!("root and user {}, which the daemon runs as", own.as_raw()),
        };
        Err(ErrorBody::new(
            ErrorCode::PermissionDenied,
            format!("{who} may only ask; changes are for {allowed}: use sudo"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn user(user: Option<u32>) -> Peer {
        Peer {
            process: 1,
            user: user.map(Uid::from_raw),
        }
    }

    #[test]
    fn root_and_the_own_user_may_change_and_nobody_else() {
        let own = geteuid().as_raw();
        for allowed in [0, own] {
            assert_eq!(user(Some(allowed)).check_change(), Ok(()));
        }
        for stranger in [own + 1, u32::MAX - 1] {
            let error = user(Some(stranger)).check_change().unwrap_err();
            assert_eq!(error.code, ErrorCode::PermissionDenied);
            let begin = format!("user {stranger} may only ask; changes are for root");
            assert!(error.message.starts_with(&begin), "{error}");
        }
        let error = user(None).check_change().unwrap_err();
        assert_eq!(error.code, ErrorCode::PermissionDenied);
        assert!(
            error.message.starts_with("who is not known may only ask"),
            "{error}"
        );
    }

    #[test]
    fn the_system_says_who_it_is() {
        let (here, _there) = UnixStream::pair().unwrap();
        let expected = Peer {
            process: std::process::id().try_into().unwrap(),
            user: Some(geteuid()),
        };
        assert_eq!(Peer::of(&here), expected);
    }
}
