//! A watch at the dataplane, as a client has it. `podway capture`, `podway flows` and `podway trace live`
//! read one until it is over, `podway top` for its flows.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podway_proto::DATAPLANE_SOCKET;
use podway_proto::client::{ClientError, DataplaneClient};
use podway_proto::dataplane::{Request, Response, Status};
use podway_proto::watch::{WatchSpec, Watched};

/// Where the dataplane is, and how long to wait for its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Its socket.
    pub socket: PathBuf,
    /// How long to wait for each answer.
    pub timeout: Duration,
}

impl Reach {
    /// The dataplane's socket, or the one in the run directory.
    pub fn new(socket: Option<&Path>, run_dir: &Path, timeout: Duration) -> Self {
        let in_run_dir = || run_dir.join(DATAPLANE_SOCKET);
        Self {
            socket: socket.map_or_else(in_run_dir, Path::to_owned),
            timeout,
        }
    }
}

/// A watch that is armed until it is ended or dropped: its connection is its life.
#[derive(Debug)]
pub struct Watch {
    client: DataplaneClient,
    lost: u64,
}

impl Watch {
    /// Arms a watch.
    ///
    /// # Errors
    /// When the dataplane cannot be reached or refuses.
    pub fn begin(reach: &Reach, spec: WatchSpec) -> Result<Self, ClientError> {
        let mut client = DataplaneClient::connect(&reach.socket, reach.timeout)?;
        client.call(&Request::WatchBegin(spec))?;
        Ok(Self { client, lost: 0 })
    }

    /// Arms another in place of this one, whose records are forgotten.
    ///
    /// # Errors
    /// As [`Watch::begin`]; then there is none.
    pub fn replace(&mut self, spec: WatchSpec) -> Result<(), ClientError> {
        self.end()?;
        self.client.call(&Request::WatchBegin(spec))?;
        self.lost = 0;
        Ok(())
    }

    /// Disarms it. What was recorded until now can still be read.
    ///
    /// # Errors
    /// When the dataplane does not answer.
    pub fn end(&mut self) -> Result<(), ClientError> {
        self.client.call(&Request::WatchEnd).map(drop)
    }

    /// What was recorded since the last time, which may be nothing: nobody waits.
    ///
    /// # Errors
    /// When the dataplane does not answer.
    pub fn read(&mut self) -> Result<Watched, ClientError> {
        match self.client.call(&Request::WatchRead)? {
            Response::Watched(watched) => {
                self.lost = watched.lost;
                Ok(watched)
            }
            _ => Err(self.nonsense("watch-read was answered by something else")),
        }
    }

    /// Records of this watch that found no room, as of the last read.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// What the dataplane is.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.client.call(&Request::Status)? {
            Response::Status(status) => Ok(status),
            _ => Err(self.nonsense("status was answered by something else")),
        }
    }

    fn nonsense(&self, message: &str) -> ClientError {
        self.client.nonsense(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_named_or_in_the_run_directory() {
        let socket = |named: Option<&str>| {
            let reach = Reach::new(named.map(Path::new), Path::new("/run/a"), Duration::ZERO);
            reach.socket.to_str().unwrap().to_owned()
        };
        assert_eq!(socket(None), "/run/a/dataplane.sock");
        assert_eq!(socket(Some("/b.sock")), "/b.sock");
    }
}
