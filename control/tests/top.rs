//! `podway top` on a terminal, a pseudo-terminal that a test holds the other end of, asking daemons that
//! answer what the golden documents of the protocol say.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use podway_proto::control::{Request, Response};
use podway_proto::watch::Watched;
use podway_proto::{CONTROL_SOCKET, DATAPLANE_SOCKET, ErrorBody, ErrorCode, codec, dataplane};
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

/// A control that answers in the run directory.
fn control(run_dir: &Path) {
    let listener = UnixListener::bind(run_dir.join(CONTROL_SOCKET)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || serve(stream));
        }
    });
}

/// What a dataplane makes of who wants to watch.
#[derive(Debug, Clone, Copy)]
enum Mood {
    /// It closes the connection.
    Away,
    Refuses,
    Serves,
}

/// Serves a client, whose watch has the same records again and again, until the connection ends; whether
/// it had a watch, and ended it so.
fn serve_watch(stream: UnixStream, mood: &Mutex<Mood>) -> bool {
    use dataplane::{Request, Response};
    let mut writer = stream.try_clone().unwrap();
    let mut is_armed = false;
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let mood = *mood.lock().unwrap();
        let response = match (codec::decode(line.as_bytes()).unwrap(), mood) {
            (_, Mood::Away) => return false,
            (Request::Hello { version }, _) => Response::Hello { version, pid: 1 },
            (Request::WatchBegin(_), Mood::Refuses) => Response::Error(ErrorBody::new(
                ErrorCode::PermissionDenied,
                "user 7 may not",
            )),
            (Request::WatchBegin(_), Mood::Serves) => {
                is_armed = true;
                Response::WatchBegun
            }
            (Request::WatchEnd, _) => Response::Done,
            (Request::WatchRead, _) => Response::Watched(Watched {
                records: records(),
                ..Watched::default()
            }),
            (other, _) => panic!("{other:?}"),
        };
        thread::sleep(Duration::from_millis(10));
        if writer.write_all(&codec::encode(&response)).is_err() {
            break;
        }
    }
    is_armed
}

/// Those of a packet from 10.0.0.2 to node-b, of the documents of the protocol.
fn records() -> Vec<podway_proto::watch::WatchRecord> {
    let text = include_str!("../../proto/tests/golden/dataplane-responses.json");
    let golden: Vec<dataplane::Response> = serde_json::from_str(text).unwrap();
    let records = golden.into_iter().find_map(|response| match response {
        dataplane::Response::Watched(watched) => Some(watched.records),
        _ => None,
    });
    records.unwrap()
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
    fn start(run_dir: &Path) -> Self {
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

    /// Reads until `text` was written to the terminal.
    fn wait_for(&mut self, text: &str) {
        self.wait(text, |seen| String::from_utf8_lossy(seen).contains(text));
    }

    /// Reads until `text` stands on the screen.
    fn wait_to_see(&mut self, text: &str) {
        self.wait(text, |seen| picture(seen).contains(text));
    }

    fn wait(&mut self, text: &str, is_there: impl Fn(&[u8]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_there(&self.seen) {
            let seen = picture(&self.seen);
            assert!(Instant::now() < deadline, "no {text:?} in {seen}");
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

    /// Insists that it ends well.
    fn ends(&mut self, how: &str) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "{how:?} does not end it");
            thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success(), "{how:?}: {status}");
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What stands on the screen after all of that was written to it: text, where the cursor is sent, and
/// that all is cleared.
fn picture(written: &[u8]) -> String {
    let mut cells = [[' '; 80]; 24];
    let (mut row, mut column) = (0, 0);
    let text = String::from_utf8_lossy(written);
    let mut rest = text.chars();
    while let Some(char) = rest.next() {
        if char != '\x1b' {
            if let Some(cell) = cells.get_mut(row).and_then(|row| row.get_mut(column)) {
                *cell = char;
            }
            column += 1;
            continue;
        }
        let mut numbers = String::new();
        let end = rest.by_ref().find(|char| {
            let is_end = char.is_ascii_alphabetic();
            if !is_end {
                numbers.push(*char);
            }
            is_end
        });
        let numbers = numbers.trim_start_matches('[').split(';');
        let mut numbers = numbers.map(|number| number.parse().unwrap_or(1));
        match end {
            Some('H') => {
                let mut place = || numbers.next().unwrap_or(1usize).saturating_sub(1);
                (row, column) = (place(), place());
            }
            Some('J') => cells = [[' '; 80]; 24],
            _ => {}
        }
    }
    let lines = cells.iter().map(|row| row.iter().collect::<String>());
    lines
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

#[test]
fn it_shows_a_port_and_leaves_the_terminal_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    control(directory.path());
    // One that never answers holds up nothing.
    let _dataplane = UnixListener::bind(directory.path().join(DATAPLANE_SOCKET)).unwrap();
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
        top.ends(end);
        // One that nobody has used.
        let (_screen, fresh) = terminal();
        let fresh = modes(&fresh);
        assert_eq!(modes(&top.terminal), fresh, "{end:?}");
        assert_ne!(while_drawing, fresh);
    }
}

#[test]
fn flows_come_and_go_with_the_dataplane() {
    let directory = tempfile::tempdir().unwrap();
    control(directory.path());
    let mut top = OnTerminal::start(directory.path());
    top.wait_to_see("\ncannot reach podway-dataplane at ");

    let listener = UnixListener::bind(directory.path().join(DATAPLANE_SOCKET)).unwrap();
    let mood = Arc::new(Mutex::new(Mood::Refuses));
    let becomes = |now| *mood.lock().unwrap() = now;
    let of_dataplane = Arc::clone(&mood);
    let dataplane = thread::spawn(move || {
        let mut clients = listener.incoming().map(Result::unwrap);
        clients.find(|stream| serve_watch(stream.try_clone().unwrap(), &of_dataplane))
    });
    top.wait_to_see("\nuser 7 may not\n");
    for _ in 0..2 {
        becomes(Mood::Serves);
        top.wait_to_see(" flows with most traffic: 2 seen in ");
        top.wait_to_see("\n10.0.0.2:40000        10.0.1.2:9            udp    node-b ");
        becomes(Mood::Away);
        top.wait_to_see("\npodway-dataplane at ");
    }
    becomes(Mood::Serves);
    top.wait_to_see("\n10.0.0.2:40000 ");
    top.screen.write_all(b"q").unwrap();
    top.wait_for("\x1b[?1049l");
    top.ends("q");
    // With its connection goes the watch.
    dataplane.join().unwrap();
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
