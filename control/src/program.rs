//! Programs of others, each with a time that it has to end in.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Seek as _, Write as _};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Where programs are looked for: services may be started without the directories for root.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs `program` on `input` and gives what it says.
///
/// # Errors
/// `NotFound` when there is no such program; `TimedOut` when it has not ended within `patience`, and
/// was killed; or what it complains of.
pub fn run(program: &str, args: &[&str], input: &str, patience: Duration) -> io::Result<String> {
    // Files in memory, not pipes: nobody waits for somebody to read or to write.
    let file = || memfd_create(program, MemfdFlags::CLOEXEC).map(File::from);
    let (mut stdin, mut stdout, mut stderr) = (file()?, file()?, file()?);
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    let mut child = Command::new(program)
        .args(args)
        .env("PATH", PATH)
        .stdin(stdin)
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()?;
    let ended = ends_within(&child, patience);
    if !matches!(ended, Ok(true)) {
        let _ = child.kill();
        // One that waits inside of the kernel ends when the kernel lets go of it.
        let _ = std::thread::Builder::new().spawn(move || child.wait());
        ended?;
        let words = format!("{program} has not ended within {patience:?}, and was killed");
        return Err(io::Error::new(ErrorKind::TimedOut, words));
    }
    let text = |file: &mut File| -> io::Result<String> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    if child.wait()?.success() {
        text(&mut stdout)
    } else {
        let words = text(&mut stderr)?;
        Err(io::Error::other(format!("{program}: {}", words.trim())))
    }
}

/// Whether a process ends in time.
fn ends_within(child: &Child, patience: Duration) -> io::Result<bool> {
    let handle = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return Ok(result? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn a_program_is_given_all_and_gives_all() {
        // More than pipes hold.
        let text = "table\n".repeat(200_000);
        let said = run("cat", &[], &text, PATIENCE).unwrap();
        assert!(said == text, "{} bytes", said.len());
        let error = run("sh", &["-c", "echo no >&2; exit 3"], "", PATIENCE).unwrap_err();
        assert_eq!(error.to_string(), "sh: no");
        let error = run("podway-no-such-program", &[], "", PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let begin = Instant::now();
        let patience = Duration::from_millis(100);
        let error = run("sleep", &["1000"], "", patience).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let words = "sleep has not ended within 100ms, and was killed";
        assert_eq!(error.to_string(), words);
        assert!(begin.elapsed() < PATIENCE);
    }
}
