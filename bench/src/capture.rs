//! Every frame that leaves the uplinks, whole, as a pcap file for other programs to dissect.
//!
//! The frames are taken where [`crate::wiretap`] takes its sample, and kept in memory until the
//! end: this is for tests that send some thousand of them.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::net::{RecvFlags, recv};

use crate::netns::join;
use crate::topology::{Cluster, UPLINK};
use crate::wiretap::hear_departures;
use crate::{Error, Result};

/// Bytes of a frame that are kept: all of them.
const SNAP_LENGTH: usize = 65_535;
/// Receive buffer in bytes: frames are kept while the reader does not get its core.
const RECEIVE_BUFFER: usize = 64 << 20;
/// Frames with an Ethernet header (<https://www.tcpdump.org/linktypes.html>).
const LINKTYPE_ETHERNET: u32 = 1;

/// A frame and when it was seen, in microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// When it was seen.
    pub at: u64,
    /// Its bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
}

/// A capture that goes on.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Frame>>>>,
}

impl Capture {
    /// Captures what leaves the uplinks of all nodes, from the return of this call on.
    ///
    /// # Errors
    /// When a packet socket cannot be made.
    pub fn on(cluster: &Cluster) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut capture = Self {
            stop: Arc::clone(&stop),
            threads: Vec::new(),
        };
        let (ready, wait) = mpsc::channel();
        for node in cluster.nodes() {
            let (stop, ready) = (Arc::clone(&stop), ready.clone());
            let thread = node.netns.thread(move || {
                let socket = open()?;
                // Nobody waits any more when another thread has failed.
                let _ = ready.send(());
                drop(ready);
                read(&socket, &stop)
            });
            capture.threads.push(thread);
        }
        drop(ready);
        if wait.iter().take(cluster.nodes().len()).count() < cluster.nodes().len() {
            return Err(capture.finish().err().unwrap_or_else(|| {
                Error::Unexpected("a capture ended before it began".to_owned())
            }));
        }
        Ok(capture)
    }

    /// Ends the capture when no more frames wait, and gives them in the order in which they were
    /// seen.
    ///
    /// # Errors
    /// When a packet socket could not be made or read.
    pub fn finish(mut self) -> Result<Vec<Frame>> {
        self.stop.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads).into_iter();
        let frames = threads.map(join).collect::<Result<Vec<_>>>()?;
        let mut frames: Vec<_> = frames.into_iter().flatten().collect();
        frames.sort_by_key(|frame| frame.at);
        Ok(frames)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Writes frames to a pcap file (<https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap>).
///
/// # Errors
/// When the file cannot be written.
pub fn write_pcap(path: &Path, frames: &[Frame]) -> Result<()> {
    let what = || format!("write {}", path.display());
    fs::write(path, pcap(frames)).map_err(|error| Error::io(what())(error))
}

fn pcap(frames: &[Frame]) -> Vec<u8> {
    let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let bytes =
        |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_be_bytes()).collect() };
    // Microseconds; version 2.4; time zone and accuracy, both unused.
    let mut file = bytes(&[0xa1b2_c3d4, 2 << 16 | 4, 0, 0]);
    file.extend(bytes(&[narrow(SNAP_LENGTH), LINKTYPE_ETHERNET]));
    for frame in frames {
        let (seconds, micros) = (frame.at / 1_000_000, frame.at % 1_000_000);
        let kept = &frame.bytes[..frame.bytes.len().min(SNAP_LENGTH)];
        file.extend(bytes(&[
            u32::try_from(seconds).unwrap_or(u32::MAX),
            u32::try_from(micros).unwrap_or(0),
            narrow(kept.len()),
            narrow(frame.bytes.len()),
        ]));
        file.extend_from_slice(kept);
    }
    file
}

fn open() -> Result<OwnedFd> {
    let failed = Error::io("capture frames");
    let socket = hear_departures(UPLINK).map_err(failed)?;
    set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)
        .map_err(|errno| Error::io("set receive buffer")(errno.into()))?;
    Ok(socket)
}

/// Reads until `stop` is set and nothing has come for a moment.
fn read(socket: &OwnedFd, stop: &AtomicBool) -> Result<Vec<Frame>> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; SNAP_LENGTH];
    loop {
        match recv(socket, &mut buffer[..], RecvFlags::TRUNC) {
            Ok((held, _)) => frames.push(Frame {
                at: now(),
                bytes: buffer[..held].to_vec(),
            }),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(frames);
                }
            }
            Err(errno) => return Err(Error::io("capture frames")(errno.into())),
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_as_the_draft_says() {
        let frame = Frame {
            at: 7_000_009,
            bytes: vec![0xab; 3],
        };
        let expected = [
            &[0xa1, 0xb2, 0xc3, 0xd4, 0, 2, 0, 4][..],
            &[0; 8],
            &[0, 0, 0xff, 0xff, 0, 0, 0, 1],
            &[0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 3, 0, 0, 0, 3],
            &[0xab; 3],
        ];
        assert_eq!(pcap(&[frame]), expected.concat());
    }
}
