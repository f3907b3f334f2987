//! Nothing stays behind, whatever ends the process.
//!
//! A cluster named `N` owns the network namespaces `N-*` (with every link, address, route and
//! process in them) and the directory `/run/N`. It is removed
//! - by its owner, when that is dropped;
//! - on SIGINT, SIGTERM and SIGHUP by a thread that waits for them, and on a panic where panics
//!   abort (release builds);
//! - after SIGKILL, which nobody can catch, by the next run: it sweeps the clusters whose maker
//!   is no longer alive. Their processes died with their maker (`PR_SET_PDEATHSIG`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{Error, Result};

/// Where `ip netns` keeps its names.
const NETNS_DIR: &str = "/run/netns";
/// Marks a cluster that outlives its maker on purpose.
const KEPT: &str = "kept";
/// A killed process goes when its sockets are closed; closing AF_XDP sockets waits for RCU grace
/// periods, 1.3 s for a hundred of them.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Names of the clusters of this process. The lock is held while a namespace is made or a
/// cluster removed, so that neither happens behind the other's back.
static OWNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static INSTALLED: Once = Once::new();

/// Fails once a signal has asked the process to end: no new step is begun then.
///
/// # Errors
/// [`Error::Interrupted`].
pub fn interrupted() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        Err(Error::Interrupted)
    } else {
        Ok(())
    }
}

/// The directory of a cluster.
pub fn directory(cluster: &str) -> PathBuf {
    Path::new("/run").join(cluster)
}

/// Takes responsibility for a cluster: from here on it is removed whatever happens. Makes its
/// directory.
pub(crate) fn own(cluster: &str) -> Result<()> {
    INSTALLED.call_once(install);
    let mut owned = lock();
    interrupted()?;
    let directory = directory(cluster);
    fs::create_dir_all(&directory).map_err(Error::io(format!("make {}", directory.display())))?;
    owned.insert(cluster.to_owned());
    Ok(())
}

/// Makes a network namespace of an owned cluster.
pub(crate) fn add_namespace(name: &str) -> Result<()> {
    let _lock = lock();
    interrupted()?;
    let output = Command::new("ip")
        .args(["netns", "add", name])
        .output()
        .map_err(Error::io("ip netns add"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: format!("ip netns add {name}"),
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Leaves a cluster alone when its maker ends.
///
/// # Errors
/// When the mark cannot be written.
pub fn keep(cluster: &str) -> Result<()> {
    let mark = directory(cluster).join(KEPT);
    fs::write(&mark, "").map_err(Error::io(format!("write {}", mark.display())))?;
    lock().remove(cluster);
    Ok(())
}

/// Removes a cluster: its processes, namespaces and directory. Goes on after an error and gives
/// them all; empty when nothing is left. What is not there is no error.
pub fn remove(cluster: &str) -> Vec<String> {
    let mut owned = lock();
    owned.remove(cluster);
    remove_unlocked(cluster)
}

/// Removes every cluster of `prefix`, kept ones too, unless its maker is still at work on it.
/// Gives the names of the removed ones and what went wrong.
pub fn remove_kept(prefix: &str) -> (Vec<String>, Vec<String>) {
    remove_where(prefix, |cluster, maker| {
        directory(cluster).join(KEPT).exists() || !is_alive(maker)
    })
}

/// Removes the clusters of `prefix` that a killed maker has left.
pub(crate) fn sweep(prefix: &str) {
    let (_, errors) = remove_where(prefix, |cluster, maker| {
        !directory(cluster).join(KEPT).exists() && !is_alive(maker)
    });
    for error in errors {
        eprintln!("podway-bench: sweeping an abandoned network: {error}");
    }
}

/// What is still there of a cluster that was removed: namespaces, processes, its directory and
/// the given XDP programs (by id; the kernel frees them a moment after their process). Empty
/// when nothing is.
pub fn leftovers(cluster: &str, programs: &BTreeSet<u32>) -> Vec<String> {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let found = look_for(cluster, programs);
        if found.is_empty() || Instant::now() >= deadline {
            return found;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn look_for(cluster: &str, programs: &BTreeSet<u32>) -> Vec<String> {
    let mut found: Vec<String> = namespaces(cluster)
        .into_iter()
        .map(|name| format!("namespace {name}"))
        .collect();
    if directory(cluster).exists() {
        found.push(format!("directory {}", directory(cluster).display()));
    }
    for (pid, command) in command_lines() {
        if command.contains(cluster) {
            found.push(format!("process {pid}: {command}"));
        }
    }
    for id in programs {
        let shown = Command::new("bpftool")
            .args(["prog", "show", "id", &id.to_string()])
            .output();
        match shown {
            Ok(output) if !output.status.success() => {}
            Ok(_) => found.push(format!("XDP program {id}")),
            Err(error) => found.push(format!("bpftool cannot be run: {error}")),
        }
    }
    found
}

fn install() {
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]);
    match signals {
        Ok(mut signals) => {
            thread::spawn(move || {
                if let Some(signal) = signals.forever().next() {
                    INTERRUPTED.store(true, Ordering::Relaxed);
                    eprintln!("\npodway-bench: removing the network ...");
                    remove_all(lock());
                    std::process::exit(128 + signal);
                }
            });
        }
        Err(error) => eprintln!("podway-bench: a signal will leave the network behind: {error}"),
    }
    if cfg!(panic = "abort") {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            default(panic);
            // Held by the panicking thread itself in the worst case; the next run sweeps then.
            if let Ok(owned) = OWNED.try_lock() {
                remove_all(owned);
            }
        }));
    }
}

fn remove_all(mut owned: MutexGuard<'_, BTreeSet<String>>) {
    while let Some(cluster) = owned.pop_first() {
        for error in remove_unlocked(&cluster) {
            eprintln!("podway-bench: {error}");
        }
    }
}

fn remove_unlocked(cluster: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let names = namespaces(cluster);
    // All at once: closing sockets takes each process its own while.
    for name in &names {
        for pid in processes(name) {
            kill(pid);
        }
    }
    for name in &names {
        if let Err(error) = remove_namespace(name) {
            errors.push(error);
        }
    }
    match fs::remove_dir_all(directory(cluster)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            errors.push(format!("{}: {error}", directory(cluster).display()));
        }
        _ => {}
    }
    errors
}

fn remove_namespace(name: &str) -> std::result::Result<(), String> {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        let left = processes(name);
        if left.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            return Err(format!("namespace {name}: processes {left:?} do not end"));
        }
        left.into_iter().for_each(kill);
        thread::sleep(Duration::from_millis(5));
    }
    let output = Command::new("ip").args(["netns", "del", name]).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("ip netns del {name}: {error}")),
    }
}

fn remove_where(prefix: &str, condemned: impl Fn(&str, u32) -> bool) -> (Vec<String>, Vec<String>) {
    let _lock = lock();
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    for (cluster, maker) in clusters(prefix) {
        if condemned(&cluster, maker) {
            errors.extend(remove_unlocked(&cluster));
            removed.push(cluster);
        }
    }
    (removed, errors)
}

/// The clusters that have a namespace or a directory, with the process id of their maker.
fn clusters(prefix: &str) -> BTreeSet<(String, u32)> {
    let names = entries(Path::new(NETNS_DIR)).chain(entries(Path::new("/run")));
    names
        .filter_map(|name| {
            // "<pid>" or, for further clusters of one process, "<pid>.<n>"
            let rest = name.strip_prefix(prefix)?.strip_prefix('-')?;
            let number = rest.split('-').next()?;
            let pid = number.split('.').next()?.parse().ok()?;
            Some((format!("{prefix}-{number}"), pid))
        })
        .collect()
}

fn namespaces(cluster: &str) -> Vec<String> {
    let own = format!("{cluster}-");
    let mut names: Vec<_> = entries(Path::new(NETNS_DIR))
        .filter(|name| name.starts_with(&own))
        .collect();
    names.sort();
    names
}

/// The processes whose main thread is in a namespace.
fn processes(namespace: &str) -> Vec<u32> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let Some(wanted) = identity(&Path::new(NETNS_DIR).join(namespace)) else {
        return Vec::new();
    };
    // A zombie has left its namespaces, its link can no longer be followed.
    process_ids()
        .filter(|pid| identity(Path::new(&format!("/proc/{pid}/ns/net"))) == Some(wanted))
        .collect()
}

fn command_lines() -> impl Iterator<Item = (u32, String)> {
    process_ids()
        .filter(|&pid| pid != std::process::id())
        .filter_map(|pid| {
            let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
            Some((pid, text.trim().to_owned()))
        })
}

fn process_ids() -> impl Iterator<Item = u32> {
    entries(Path::new("/proc")).filter_map(|name| name.parse().ok())
}

fn entries(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// A zombie does no more, even if nobody waits for it.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    // The state follows the name in brackets.
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself meanwhile.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn lock() -> MutexGuard<'static, BTreeSet<String>> {
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}
