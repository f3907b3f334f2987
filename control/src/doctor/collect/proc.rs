//! Files of `/proc` and `/sys`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// What a file of one word says.
pub(super) fn word(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// What a file of one number says.
pub(super) fn number(path: &str) -> Option<u32> {
    word(path)?.parse().ok()
}

/// All processes.
pub(super) fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The processes of a program; the kernel keeps 15 letters of its name.
pub(super) fn called(name: &str) -> impl Iterator<Item = u32> {
    const KEPT: usize = 15;
    let kept = name.get(..KEPT).unwrap_or(name).to_owned();
    processes().filter(move |pid| word(&format!("/proc/{pid}/comm")).as_deref() == Some(&kept))
}

/// Device and inode of the network namespace of a process, which tell it from others.
pub(super) fn namespace(path: &str) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Whether a process is in the network namespace of this one.
pub(super) fn is_here(pid: u32) -> Option<bool> {
    let own = namespace("/proc/self/ns/net")?;
    Some(namespace(&format!("/proc/{pid}/ns/net"))? == own)
}

/// The effective capabilities of a process.
pub(super) fn capabilities(pid: u32) -> Option<u64> {
    effective(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn effective(status: &str) -> Option<u64> {
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Bytes that a process may lock.
pub(super) fn memlock(pid: u32) -> Option<u64> {
    locked(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

fn locked(limits: &str) -> Option<u64> {
    let mut lines = limits.lines();
    let line = lines.find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

/// Numbers of the BPF programs that a process holds, by itself or by links; `None` when that cannot be
/// seen.
pub(super) fn programs(pid: u32) -> Option<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?.flatten() {
        // One may be closed meanwhile.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let numbers = text
            .lines()
            .filter_map(|line| line.strip_prefix("prog_id:"));
        found.extend(numbers.filter_map(|number| number.trim().parse::<u32>().ok()));
    }
    Some(found)
}

/// Ticks of all processors: all, and those that were stolen.
pub(super) fn cpu_times() -> Option<(u64, u64)> {
    times(&fs::read_to_string("/proc/stat").ok()?)
}

fn times(stat: &str) -> Option<(u64, u64)> {
    const STEAL: usize = 7;
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    // The two behind it are in the first two already (proc(5)).
    let ticks = line
        .split_whitespace()
        .take(STEAL + 1)
        .map(str::parse::<u64>);
    let ticks: Vec<u64> = ticks.collect::<Result<_, _>>().ok()?;
    Some((ticks.iter().sum(), *ticks.get(STEAL)?))
}

/// Hundredths of the time between two that were stolen.
pub(super) fn stolen(before: Option<(u64, u64)>, after: Option<(u64, u64)>) -> Option<u64> {
    let ((all, stolen), (all_after, stolen_after)) = (before?, after?);
    let spent = all_after.saturating_sub(all);
    (stolen_after.saturating_sub(stolen) * 100).checked_div(spent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_processes_are_read() {
        let status = "Name:\tx\nCapInh:\t0000000000000000\nCapEff:\t000001ffffffffff\n";
        assert_eq!(effective(status), Some((1 << 41) - 1));
        assert_eq!(effective("Name:\tx\n"), None);
        let limits =
            "Limit  Soft Limit  Hard Limit  Units\nMax locked memory   65536    65536   bytes\n";
        assert_eq!(locked(limits), Some(65536));
        assert_eq!(
            locked(&limits.replace("65536", "unlimited")),
            Some(u64::MAX)
        );
        let own = std::process::id();
        assert_eq!(is_here(own), Some(true));
        assert!(capabilities(own).is_some() && memlock(own).is_some());
        assert_eq!(programs(own), Some(BTreeSet::new()));
        assert!(processes().any(|pid| pid == own));
    }

    #[test]
    fn stolen_time_is_a_share_of_what_was_spent() {
        let stat = "cpu  10 0 10 70 0 0 0 10 5 5\ncpu0 1 1 1 1\n";
        assert_eq!(times(stat), Some((100, 10)));
        assert_eq!(times("cpu  1 2\n"), None);
        assert_eq!(stolen(Some((100, 10)), Some((200, 35))), Some(25));
        assert_eq!(stolen(Some((100, 10)), Some((100, 10))), None);
        assert_eq!(stolen(None, Some((100, 10))), None);
        assert!(cpu_times().is_some());
    }
}
