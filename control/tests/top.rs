//! `podway top` on a terminal, a pseudo-terminal that a test holds the other end of, asking a daemon that
//! answers what the golden documents of the protocol say.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use podway_proto::CONTROL_SOCKET;
use podway_proto::codec;
use podway_proto::control::{Request, Response};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The documents of the protocol.
fn golden() -> Vec<Response> {
    let text = include_str!("../../proto/tests/golden/control-responses.json");
    serde_json::from_str(text).unwrap()
}

fn serve(stream: UnixStream) {
    let mut writer = stream.try_clone().unwrap();
    let find = |wanted: fn(&Response) -> bool| golden().into_iter().rev().find(wanted).unwrap();
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let response = match codec::decode(line.as_bytes()).unwrap() {
            Request::Hello { version } => Response::Hello { version, pid: 1 },
            Request::Counters => find(|r| matches!(r, Response::Counters { .. })),
            Request::Drops => find(|r| matches!(r, Response::Drops(_))),
            Request::Status => find(|r| matches!(r, Response::Status(_))),
            Request::NodeList => find(|r| matches!(r, Response::Nodes { .. })),
            other => panic!("{other:?}"),
        };
        if writer.write_all(&codec::encode(&response)).is_err() {
            return;
        }
    }
}

/// Both ends of a new terminal: what is on it, and itself.
fn terminal() -> (File, File) {
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&screen).unwrap();
    unlockpt(&screen).unwrap();
    let name = ptsname(&screen, Vec::new()).unwrap().into_string().unwrap();
    let terminal = File::options().read(true).write(true).open(name).unwrap();
    (File::from(screen), terminal)
}

fn modes(terminal: &File) -> String {
    format!("{:?}", tcgetattr(terminal).unwrap())
}

/// A program on a terminal of 80 by 24.
struct OnTerminal {
    child: Child,
    screen: File,
    terminal: File,
    seen: Vec<u8>,
}

impl OnTerminal {
    fn start(run_dir: &std::path::Path) -> Self {
        let (screen, terminal) = terminal();
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&terminal, size).unwrap();
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let child = Command::new(env!("CARGO_BIN_EXE_podway"))
            .arg("--run-dir")
            .arg(run_dir)
            .arg("top")
            .env("TERM", "xterm-256color")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        Self {
            child,
            screen,
            terminal,
            seen: Vec::new(),
        }
    }

    /// Reads until `text` is on the screen.
    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            let seen = String::from_utf8_lossy(&self.seen);
            assert!(Instant::now() < deadline, "no {text:?} in {seen:?}");
            let mut bytes = [0; 4096];
            let timeout = rustix::event::Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            let mut ready = [rustix::event::PollFd::from_borrowed_fd(
                self.screen.as_fd(),
                rustix::event::PollFlags::IN,
            )];
            if rustix::event::poll(&mut ready, Some(&timeout)).unwrap() == 0 {
                continue;
            }
            let count = self.screen.read(&mut bytes).unwrap();
            self.seen.extend(&bytes[..count]);
        }
    }
}

#[test]
fn it_shows_a_port_and_leaves_the_terminal_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join(CONTROL_SOCKET)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || serve(stream));
        }
    });
    let counters = golden().into_iter().find_map(|response| match response {
        Response::Counters { counters, .. } => Some(counters),
        _ => None,
    });
    let port = counters.unwrap().ports.into_keys().next().unwrap();
    for end in ["q", "\x03", "a signal"] {
        let mut top = OnTerminal::start(directory.path());
        // Raw as soon as it has begun to draw.
        top.wait_for(&port);
        top.wait_for("q quits");
        let while_drawing = modes(&top.terminal);
        match end {
            "a signal" => {
                let pid = Pid::from_child(&top.child);
                kill_process(pid, Signal::TERM).unwrap();
            }
            keys => top.screen.write_all(keys.as_bytes()).unwrap(),
        }
        // The usual screen, and the cursor.
        top.wait_for("\x1b[?1049l");
        top.wait_for("\x1b[?25h");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = top.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "{end:?} does not end it");
            thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{end:?}: {status}");
        // One that nobody has used.
        let (_screen, fresh) = terminal();
        let fresh = modes(&fresh);
        assert_eq!(modes(&top.terminal), fresh, "{end:?}");
        assert_ne!(while_drawing, fresh);
    }
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let output = Command::new(env!("CARGO_BIN_EXE_podway"))
        .arg("top")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        errors,
        "podway: podway top draws on a terminal, and standard output is none; use podway status \
         --verbose --watch\n"
    );
}
