//! Errors as they cross a socket.

use serde::{Deserialize, Serialize};

/// A refused request: a code for programs and a sentence for people, which says what to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorBody {
    /// What kind of refusal this is.
    pub code: ErrorCode,
    /// One sentence: what was wrong and what to change.
    pub message: String,
}

impl ErrorBody {
    /// An error of `code` that says `message`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// The kinds of refusal. Append only: clients match on the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The line is not a request of this protocol.
    BadRequest,
    /// The line is longer than [`crate::codec::MAX_LINE`]; the connection is closed.
    LineTooLong,
    /// Client and daemon speak different protocol versions.
    VersionMismatch,
    /// The named thing does not exist.
    NotFound,
    /// The thing to be added exists already with other values.
    AlreadyExists,
    /// A value is of the right form and cannot be used here.
    Invalid,
    /// The named interface does not exist in the daemon's network namespace.
    NoSuchInterface,
    /// Something that the request needs is taken by somebody else.
    Busy,
    /// The process lacks a capability or the socket's peer a right.
    PermissionDenied,
    /// The kernel or the device lacks a feature.
    Unsupported,
    /// The other daemon cannot be reached.
    Unavailable,
    /// A system call failed for a reason that has no code of its own.
    System,
}
