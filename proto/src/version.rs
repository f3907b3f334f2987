//! The version of the protocols, and what is said when two programs do not share it.

use crate::{ErrorBody, ErrorCode};

/// Version of both protocols. A daemon refuses a client whose version differs from its own with
/// [`ErrorCode::VersionMismatch`].
///
/// It is raised when something that is there is renamed, removed or means something else, and when an
/// answer may have a value that is none of those that a field could have before. New fields of answers
/// do not raise it: readers pass over what they do not know, and take what is missing for unknown. Nor
/// do new requests and new fields of requests: a daemon of before refuses them with
/// [`ErrorCode::BadRequest`].
///
/// A new field of a fact that the dataplane is told is left out of its JSON while it has its default:
/// facts are compared by hashes of that ([`crate::digest`]), and the other end may not know the field.
///
/// `{"request":"hello","version":N}`, its answer and the shape of an error are the same in all
/// versions, so that programs of any two releases understand why they do not go together.
pub const VERSION: u32 = 5;

/// The refusal when `client` and `daemon` speak different versions. Names both, and says which of
/// the two programs is older and has to be upgraded.
pub fn mismatch(client: u32, daemon: u32) -> ErrorBody {
    let older = if client < daemon { "client" } else { "daemon" };
    ErrorBody::new(
        ErrorCode::VersionMismatch,
        format!(
            "the client speaks protocol version {client} and the daemon {daemon}; upgrade the \
             {older}, which is older"
        ),
    )
}
