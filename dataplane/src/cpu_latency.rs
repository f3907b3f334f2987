//! How deep CPUs may sleep while the dataplane runs (linux/Documentation/power/pm_qos_interface.rst).
//!
//! A core that has nothing to do sleeps, and takes 1 to 150 microseconds to wake up, on a virtual
//! machine as long as its hypervisor takes. A packet waits for that wherever it wakes somebody: a
//! worker, a program in a pod. The request is the machine's, not one core's, and ends with the
//! process, however it ends.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::time::Duration;

const DEVICE: &str = "/dev/cpu_dma_latency";

/// A request that CPUs wake up within a time, as long as it is held.
#[derive(Debug)]
pub struct CpuLatency(#[expect(dead_code, reason = "closing the file ends the request")] File);

impl CpuLatency {
    /// Asks that CPUs wake up within `most`; less than a microsecond: that they do not sleep at all.
    ///
    /// # Errors
    /// Where the kernel has no such device, or for want of the permission, which root has.
    pub fn request(most: Duration) -> io::Result<Self> {
        let microseconds = i32::try_from(most.as_micros()).unwrap_or(i32::MAX);
        let mut device = OpenOptions::new().write(true).open(DEVICE)?;
        device.write_all(&microseconds.to_ne_bytes())?;
        Ok(Self(device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// What holds for the machine now, in microseconds.
    fn current() -> i32 {
        let mut bytes = [0; 4];
        let mut device = File::open(DEVICE).unwrap();
        device.read_exact(&mut bytes).unwrap();
        i32::from_ne_bytes(bytes)
    }

    #[test]
    fn a_request_holds_as_long_as_it_is_kept() {
        let before = current();
        let strict = CpuLatency::request(Duration::from_micros(3)).unwrap();
        assert_eq!(current(), before.min(3));
        let stricter = CpuLatency::request(Duration::ZERO).unwrap();
        assert_eq!(current(), 0);
        drop(stricter);
        assert_eq!(current(), before.min(3));
        drop(strict);
        assert_eq!(current(), before);
    }
}
