//! Why a command did not succeed, for people and for programs.

use std::io::{self, Write};
use std::process::ExitCode;

use podway_proto::client::ClientError;
use podway_proto::control::Response;
use podway_proto::entries::RefusedEntry;
use podway_proto::{ErrorBody, ErrorCode, codec};
use serde::Serialize;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Entries of a bulk were refused.
    #[error("{what}:\n{complaints}")]
    Entries {
        /// That nothing has changed.
        what: String,
        /// Some of them, for people.
        complaints: String,
        refused: Vec<RefusedEntry>,
    },
    /// A configuration file is wrong.
    #[error("{0}")]
    Config(String),
    /// What was named does not exist, and no daemon had to be asked.
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Usage(String),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl From<String> for Failure {
    fn from(complaint: String) -> Self {
        Self::Usage(complaint)
    }
}

impl Failure {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Client(ClientError::Refused(error)) if error.code.is_not_found() => 3,
            Self::NotFound(_) => 3,
            Self::Client(ClientError::Refused(_))
            | Self::Entries { .. }
            | Self::Config(_)
            | Self::Output(_) => 1,
            Self::Usage(_) => 2,
            Self::Client(_) => 4,
        }
    }

    /// A line for programs, in the shape that the daemon gives its refusals.
    fn document(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Document<'a> {
            #[serde(flatten)]
            error: Response,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            refused: &'a [RefusedEntry],
        }
        let (code, message, refused) = match self {
            Self::Client(ClientError::Refused(error)) => {
                (error.code, error.message.clone(), &[][..])
            }
            Self::Client(error) => (ErrorCode::Unavailable, error.to_string(), &[][..]),
            Self::Entries { what, refused, .. } => (ErrorCode::Invalid, what.clone(), &refused[..]),
            Self::Config(message) => (ErrorCode::Invalid, message.clone(), &[][..]),
            Self::NotFound(message) => (ErrorCode::NotFound, message.clone(), &[][..]),
            Self::Usage(message) => (ErrorCode::BadRequest, message.clone(), &[][..]),
            Self::Output(_) => (ErrorCode::System, self.to_string(), &[][..]),
        };
        codec::encode(&Document {
            error: Response::Error(ErrorBody { code, message }),
            refused,
        })
    }

    /// Tells it on standard error.
    pub(super) fn complain(&self, json: bool) -> ExitCode {
        let line = match json {
            true => self.document(),
            false => format!("podway: {self}\n").into_bytes(),
        };
        let _ = io::stderr().write_all(&line);
        ExitCode::from(self.exit_code())
    }
}

/// What is wrong with arguments, without the usage behind it.
pub(super) fn usage(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let complaint = text.split("\n\n").next().unwrap_or_default();
    let complaint = complaint.strip_prefix("error: ").unwrap_or(complaint);
    Failure::Usage(complaint.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use clap::Parser;
    use podway_proto::entries::EntryKey;

    use super::super::Cli;
    use super::*;
    use crate::golden::golden_json;

    fn entries() -> Failure {
        let name = "c".to_owned();
        Failure::Entries {
            what: "nothing is imported from a file".into(),
            complaints: "node c: it has no address".into(),
            refused: vec![RefusedEntry {
                entry: EntryKey::Node { name },
                error: ErrorBody::new(ErrorCode::Invalid, "it has no address"),
            }],
        }
    }

    #[test]
    fn each_failure_is_a_document() {
        let document = |failure: Failure| String::from_utf8(failure.document()).unwrap();
        let refused = ErrorBody::new(ErrorCode::NotFound, "there is no node c");
        assert_eq!(
            document(Failure::Client(ClientError::Refused(refused))),
            "{\"response\":\"error\",\"code\":\"not-found\",\"message\":\"there is no node c\"}\n"
        );
        golden_json("bulk-refused.json", &entries().document());
        assert_eq!(
            entries().to_string(),
            "nothing is imported from a file:\nnode c: it has no address"
        );
        let timed_out = ClientError::TimedOut {
            daemon: "podway-control",
            socket: PathBuf::new(),
            timeout: Duration::ZERO,
        };
        for (failure, code) in [
            (Failure::Client(timed_out), "unavailable"),
            (Failure::Config(String::new()), "invalid"),
            (Failure::NotFound(String::new()), "not-found"),
            (Failure::Usage(String::new()), "bad-request"),
            (Failure::Output(io::ErrorKind::StorageFull.into()), "system"),
        ] {
            let document = document(failure);
            assert!(
                document.contains(&format!("\"code\":\"{code}\"")),
                "{document}"
            );
        }
        let error = Cli::try_parse_from(["podway", "node", "set", "b"]).unwrap_err();
        assert_eq!(
            usage(&error).to_string(),
            "the following required arguments were not provided:\n  --underlay <IP>"
        );
    }

    #[test]
    fn each_failure_has_its_exit_code() {
        let failed = |error| Failure::Client(error).exit_code();
        let refused = |code| failed(ClientError::Refused(ErrorBody::new(code, "")));
        assert_eq!(refused(ErrorCode::Invalid), 1);
        assert_eq!(refused(ErrorCode::NotFound), 3);
        assert_eq!(refused(ErrorCode::NoSuchInterface), 3);
        assert_eq!(Failure::Usage(String::new()).exit_code(), 2);
        assert_eq!(entries().exit_code(), 1);
        let socket = PathBuf::new;
        let source = io::Error::from(io::ErrorKind::NotFound);
        let unreachable = ClientError::Unreachable {
            daemon: "podway-control",
            socket: socket(),
            source,
        };
        assert_eq!(failed(unreachable), 4);
        let timed_out = ClientError::TimedOut {
            daemon: "podway-control",
            socket: socket(),
            timeout: Duration::ZERO,
        };
        assert_eq!(failed(timed_out), 4);
    }
}
