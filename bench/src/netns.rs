//! Commands and threads inside a network namespace.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Error, Result, cleanup};

/// A named network namespace. This is the name only; [`crate::topology::Cluster`] owns the thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// The namespace of that name, which need not exist yet.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Its name, as `ip netns exec` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command to be run inside. The process dies with the thread that started it, so that
    /// even a killed test leaves nothing running. Both wrappers end in `execve`: the process id
    /// is the program's own.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "ip", "netns", "exec", &self.name]);
        command.arg(program);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// See [`run`].
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        run(self.command(program).args(args))
    }

    /// Starts a command that goes on in the background, its output discarded.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, program: &str, args: &[&str]) -> Result<Child> {
        let mut command = self.command(program);
        command.args(args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        spawn(&mut command)
    }

    /// Runs lines of `ip -batch`, each an `ip` command without the word `ip`, one after another
    /// until the first that fails.
    ///
    /// # Errors
    /// With the failing line in the text.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "-batch", "-"]);
        batch(command, lines)
    }

    /// Runs lines of `bridge -batch`, as [`Netns::ip`] does.
    ///
    /// # Errors
    /// With the failing line in the text.
    pub fn bridge(&self, lines: &[String]) -> Result<()> {
        let mut command = Command::new("bridge");
        command.args(["-n", &self.name, "-batch", "-"]);
        batch(command, lines)
    }

    /// Sets kernel parameters of the namespace, written `name=value`.
    ///
    /// # Errors
    /// When one does not exist or refuses the value.
    pub fn sysctl(&self, settings: &[&str]) -> Result<()> {
        self.run("sysctl", &[&["-q", "-w"], settings].concat())
            .map(drop)
    }

    /// Runs a function on a thread of its own inside the namespace: sockets that it makes belong
    /// there. (File systems do not change: `/sys` still shows the namespace of the caller.)
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> JoinHandle<Result<T>> {
        let path = format!("/run/netns/{}", self.name);
        thread::spawn(move || {
            let namespace = File::open(&path).map_err(Error::io(&path))?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|errno| Error::io(format!("enter {path}"))(errno.into()))?;
            work()
        })
    }
}

/// Waits for a thread of [`Netns::thread`].
///
/// # Errors
/// What the thread returned.
///
/// # Panics
/// When the thread did, with its own words.
pub fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs a command to its end and gives what it wrote to standard output.
///
/// # Errors
/// [`Error::Command`] with its standard error when it fails, [`Error::Interrupted`] instead of
/// starting it once a signal has asked the process to end.
pub fn run(command: &mut Command) -> Result<String> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = spawn(command)?;
    let output = child
        .wait_with_output()
        .map_err(Error::io(describe(command)))?;
    cleanup::interrupted()?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let words = if stderr.trim().is_empty() {
        stdout.trim()
    } else {
        stderr.trim()
    };
    Err(Error::Command {
        command: describe(command),
        status: output.status,
        stderr: words.to_owned(),
    })
}

/// Starts a command.
///
/// # Errors
/// When it cannot be started, and [`Error::Interrupted`] as for [`run`].
pub fn spawn(command: &mut Command) -> Result<Child> {
    cleanup::interrupted()?;
    let what = describe(command);
    command.spawn().map_err(Error::io(what))
}

/// Asks `probe` again and again until it gives a value.
///
/// # Errors
/// [`Error::Timeout`] with the last reason that `probe` gave for not yet.
pub fn wait_until<T>(
    what: &str,
    within: Duration,
    mut probe: impl FnMut() -> std::result::Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= deadline => {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    after: within,
                    last,
                });
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
        cleanup::interrupted()?;
    }
}

fn batch(mut command: Command, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    cleanup::interrupted()?;
    let program = describe(&command);
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command)?;
    let mut text = lines.join("\n");
    text.push('\n');
    let written = child.stdin.take().map(|mut pipe| {
        // A refused line ends the batch before it has read the rest: the exit status tells.
        pipe.write_all(text.as_bytes())
    });
    let output = child.wait_with_output().map_err(Error::io(&program))?;
    if output.status.success() {
        return written.unwrap_or(Ok(())).map_err(Error::io(program));
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    // "Command failed -:3" names the line by number.
    let line = stderr
        .lines()
        .find_map(|l| l.strip_prefix("Command failed -:")?.parse::<usize>().ok())
        .and_then(|number| lines.get(number.checked_sub(1)?))
        .map_or_else(|| lines.join("; "), Clone::clone);
    Err(Error::Command {
        command: format!("{program}: {line}"),
        status: output.status,
        stderr: stderr.trim().to_owned(),
    })
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_tells_its_own_words() {
        let error = run(Command::new("sh").args(["-c", "echo no such luck >&2; exit 3"]));
        assert_eq!(
            error.unwrap_err().to_string(),
            "`sh -c echo no such luck >&2; exit 3` ended with exit status: 3: no such luck"
        );
    }

    #[test]
    fn waiting_gives_the_value_or_the_last_reason() {
        let mut left = 3;
        let value = wait_until("three", Duration::from_secs(5), || {
            left -= 1;
            if left == 0 {
                Ok(7)
            } else {
                Err("more".to_owned())
            }
        });
        assert_eq!(value.unwrap(), 7);
        let error = wait_until::<()>("never", Duration::ZERO, || Err("nothing".to_owned()));
        assert_eq!(
            error.unwrap_err().to_string(),
            "never: not within 0 s; last seen: nothing"
        );
    }
}
