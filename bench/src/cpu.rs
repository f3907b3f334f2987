//! CPU time, of the machine and of one process.

use std::fs;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{Error, Result};

/// Ticks per second of the times in `/proc`: USER_HZ, 100 on every architecture that Rust's
/// standard library runs on (linux/include/asm-generic/param.h).
const USER_HZ: u64 = 100;

/// CPU time that the machine has spent since it booted, idling, waiting for I/O and time stolen
/// by the hypervisor left out.
///
/// # Errors
/// When `/proc/stat` cannot be read.
pub fn machine_busy() -> Result<Duration> {
    parse_machine(&read("/proc/stat")?)
        .ok_or_else(|| Error::Unexpected("/proc/stat has no line for all CPUs".to_owned()))
}

/// CPU time that a process has spent, in user and kernel mode.
///
/// # Errors
/// When there is no such process.
pub fn process_busy(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    parse_process(&read(&path)?)
        .ok_or_else(|| Error::Unexpected(format!("{path} is not understood")))
}

/// Resident memory of a process in bytes.
///
/// # Errors
/// When there is no such process.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    parse_resident(&read(&path)?)
        .ok_or_else(|| Error::Unexpected(format!("{path} is not understood")))
}

/// Restricts this thread, and the processes and threads that it starts from here on, to one
/// core, or to all of them again.
///
/// # Errors
/// When there is no such core.
pub fn pin_this_thread(core: Option<usize>) -> Result<()> {
    let mut set = CpuSet::new();
    let all = 0..CpuSet::MAX_CPU;
    all.filter(|cpu| core.is_none_or(|core| core == *cpu))
        .for_each(|cpu| set.set(cpu));
    sched_setaffinity(None, &set)
        .map_err(|errno| Error::io(format!("pin to core {core:?}"))(errno.into()))
}

/// Runs something that may use all cores, and start processes that may, from a thread that is
/// pinned. The thread is then pinned as it was.
///
/// # Errors
/// What `run` gives, or when the thread cannot be pinned.
pub fn on_all_cores<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    let failed = |errno: rustix::io::Errno| Error::io("pin this thread")(errno.into());
    let before = sched_getaffinity(None).map_err(failed)?;
    pin_this_thread(None)?;
    let result = run();
    sched_setaffinity(None, &before).map_err(failed)?;
    result
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(Error::io(path))
}

fn parse_machine(text: &str) -> Option<Duration> {
    // cpu user nice system idle iowait irq softirq steal guest guest_nice; guest is in user.
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map_while(|f| f.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields[..] else {
        return None;
    };
    Some(ticks(user + nice + system + irq + softirq))
}

fn parse_process(text: &str) -> Option<Duration> {
    // The second field is the name in brackets, which may hold blanks and brackets; utime and
    // stime are fields 14 and 15.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(ticks(user + system))
}

fn parse_resident(text: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?
        .trim();
    let kibibytes: u64 = rest.strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

fn ticks(number: u64) -> Duration {
    Duration::from_millis(number * (1000 / USER_HZ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_iowait_and_steal_are_no_work() {
        let text = "cpu  100 20 30 99999 555 4 6 777 50 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n";
        assert_eq!(parse_machine(text), Some(Duration::from_millis(1600)));
        assert_eq!(parse_machine("intr 1\n"), None);
    }

    #[test]
    fn a_process_may_have_any_name() {
        let text = "42 (a) b (c) S 1 42 42 0 -1 4194560 5 0 0 0 130 7 0 0 20 0 3 0 1 1 1";
        assert_eq!(parse_process(text), Some(Duration::from_millis(1370)));
        assert_eq!(parse_process("42 (a) S 1"), None);
    }

    #[test]
    fn resident_memory_is_in_bytes() {
        let text = "Name:\tx\nVmHWM:\t  900 kB\nVmRSS:\t   812 kB\n";
        assert_eq!(parse_resident(text), Some(812 * 1024));
        assert_eq!(parse_resident("Name:\tx\n"), None);
        assert!(resident_bytes(std::process::id()).unwrap() > 0);
    }

    #[test]
    fn a_pinned_thread_has_one_core() {
        std::thread::spawn(|| {
            pin_this_thread(Some(0)).unwrap();
            let cores = || std::thread::available_parallelism().unwrap().get();
            assert_eq!(cores(), 1);
            let all = on_all_cores(|| Ok(cores())).unwrap();
            assert_eq!(cores(), 1);
            pin_this_thread(None).unwrap();
            assert_eq!(cores(), all);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn this_process_has_a_time() {
        assert!(process_busy(std::process::id()).is_ok());
        assert!(machine_busy().unwrap() > Duration::ZERO);
    }
}
