use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use mio::{Events, Poll};

use super::client::MAX_OUTPUT;
use super::*;
use crate::codec::MAX_LINE;

const FIRST: usize = 10;

/// A server whose clients' state is the number of lines that were taken.
struct Bench {
    poll: Poll,
    server: LineServer<u32>,
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let poll = Poll::new().unwrap();
        let path = directory.path().join("run").join("test.sock");
        let server = LineServer::bind(&path, poll.registry(), FIRST).unwrap();
        Self {
            poll,
            server,
            directory,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("run").join("test.sock")
    }

    fn connect(&mut self) -> BufReader<StdStream> {
        let stream = StdStream::connect(self.socket()).unwrap();
        let limit = Some(Duration::from_secs(10));
        stream.set_read_timeout(limit).unwrap();
        self.ready();
        BufReader::new(stream)
    }

    /// Passes on what the poll tells; whether it told anything.
    fn ready(&mut self) -> bool {
        let mut events = Events::with_capacity(256);
        self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        for event in &events {
            self.server.ready(event.token(), self.poll.registry());
        }
        !events.is_empty()
    }

    /// A round in which up to `limit` lines are answered by themselves. Gives them.
    fn round(&mut self, limit: usize) -> (Vec<String>, bool) {
        self.ready();
        let mut lines = Vec::new();
        self.server.take_lines(limit, |_, _, count, line| {
            *count += 1;
            lines.push(String::from_utf8_lossy(line).into_owned());
            Reply::Now([line, b"\n"].concat())
        });
        (lines, self.server.flush(self.poll.registry()))
    }

    /// Handles events, each line answered by its length and number, until there are none.
    fn handle_all(&mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            if events.is_empty() {
                return;
            }
            for event in &events {
                let registry = self.poll.registry();
                self.server
                    .handle(event.token(), registry, |_, count, line| {
                        *count += 1;
                        format!("{} {count}\n", line.len()).into_bytes()
                    });
            }
        }
    }
}

fn send(client: &mut BufReader<StdStream>, bytes: impl AsRef<[u8]>) {
    client.get_mut().write_all(bytes.as_ref()).unwrap();
}

fn receive(client: &mut BufReader<StdStream>) -> String {
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    line
}

fn code(line: &str) -> ErrorCode {
    let document: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(document["response"], "error");
    serde_json::from_value(document["code"].clone()).unwrap()
}

#[test]
fn the_directory_and_the_socket_are_for_the_group() {
    let bench = Bench::new();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bench.directory.path().join("run")), 0o750);
    assert_eq!(mode(&bench.socket()), 0o660);
}

#[test]
fn a_directory_that_lets_others_in_is_told() {
    let bench = Bench::new();
    let directory = bench.directory.path().join("run");
    for (mode, told) in [
        (0o750, false),
        (0o2750, false),
        (0o700, false),
        (0o755, true),
        (0o770, true),
        (0o1777, true),
    ] {
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
        let name = directory.display();
        let expected = format!(
            "{name} has mode {mode:04o}, wider than 0750: others come to the socket, and who may write \
             there can put another in its place; chmod 0750 {name}"
        );
        assert_eq!(too_wide(&directory), told.then_some(expected));
    }
    assert_eq!(bench.server.warning(), None, "of the one that it has made");
    let path = directory.join("other.sock");
    let server = LineServer::<()>::bind(&path, bench.poll.registry(), 0).unwrap();
    assert_eq!(server.warning().map(str::to_owned), too_wide(&directory));
}

#[test]
fn a_second_daemon_is_refused_and_a_stale_socket_is_replaced() {
    let bench = Bench::new();
    let path = bench.socket();
    let bind = || LineServer::<()>::bind_with(&path, bench.poll.registry(), 0, drop);
    assert_eq!(
        bind().unwrap_err().to_string(),
        format!(
            "another process serves {}; stop it, or give this one a --run-dir of its own",
            path.display()
        )
    );
    drop(bench.server);
    assert!(!path.exists(), "the socket goes with its server");
    let stranger = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(matches!(bind().unwrap_err(), BindError::InUse(_)));
    drop(stranger);
    assert!(path.exists());
    drop(bind().unwrap());
}

#[test]
fn a_daemon_that_is_ending_is_waited_for() {
    let bench = Bench::new();
    let path = bench.socket();
    let server = bench.server;
    let ending = std::thread::spawn(move || {
        std::thread::sleep(10 * BUSY_PAUSE);
        drop(server);
    });
    LineServer::<()>::bind(&path, bench.poll.registry(), 0).unwrap();
    ending.join().unwrap();
}

#[test]
fn a_dataplane_with_a_hundred_sockets_is_waited_for() {
    // When it has let go of the path; whether it is got.
    for (ends, got) in [(0, true), (1300, true), (2990, true), (3500, false)] {
        let ends = Duration::from_millis(ends);
        let waited = std::cell::Cell::new(Duration::ZERO);
        let claimed = insist(
            || Ok(waited.get() >= ends),
            |pause| waited.set(waited.get() + pause),
        );
        assert_eq!(claimed.unwrap(), got, "{ends:?}");
        assert_eq!(waited.get(), ends.min(BUSY_RETRY), "{ends:?}");
    }
    let failed = insist(|| Err(ErrorKind::Other.into()), |_| panic!("it waits"));
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Other);
}

#[test]
fn a_path_that_cannot_be_is_named() {
    let bench = Bench::new();
    let path = bench.socket().join("below").join("test.sock");
    let error = LineServer::<()>::bind(&path, bench.poll.registry(), 0).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot make {}: Not a directory (os error 20); choose a --run-dir that this user \
             may write",
            path.parent().unwrap().display()
        )
    );
}

#[test]
fn each_client_has_its_state_and_its_answers_in_order() {
    let mut bench = Bench::new();
    let (mut one, mut two) = (bench.connect(), bench.connect());
    send(&mut one, "a\nbb\n");
    send(&mut two, "ccc\nno");
    bench.handle_all();
    assert_eq!(receive(&mut one), "1 1\n");
    assert_eq!(receive(&mut one), "2 2\n");
    assert_eq!(receive(&mut two), "3 1\n");
    send(&mut two, "w\n");
    bench.handle_all();
    assert_eq!(receive(&mut two), "3 2\n");
}

#[test]
fn what_came_with_one_event_is_answered_to_the_end() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    let count = 10 * LINES_PER_EVENT + 1;
    send(&mut client, "x\n".repeat(count));
    bench.handle_all();
    for number in 1..=count {
        assert_eq!(receive(&mut client), format!("1 {number}\n"));
    }
}

#[test]
fn clients_take_turns() {
    let mut bench = Bench::new();
    let (mut many, mut few) = (bench.connect(), bench.connect());
    send(&mut many, "m1\nm2\nm3\nm4\nm5\n");
    send(&mut few, "f1\n");
    assert_eq!(bench.round(3), (to_strings(&["m1", "f1", "m2"]), true));
    send(&mut few, "f2\n");
    assert_eq!(bench.round(3), (to_strings(&["f2", "m3", "m4"]), true));
    assert_eq!(bench.round(3), (to_strings(&["m5"]), false));
}

fn to_strings(texts: &[&str]) -> Vec<String> {
    texts.iter().copied().map(str::to_owned).collect()
}

#[test]
fn an_answer_that_comes_later_keeps_the_order() {
    let mut bench = Bench::new();
    let (mut client, mut other) = (bench.connect(), bench.connect());
    send(&mut client, "question\nnext\n");
    bench.ready();
    let mut asked = None;
    bench.server.take_lines(10, |id, _, _, line| {
        assert_eq!(line, b"question");
        assert_eq!(asked.replace(id), None);
        Reply::Later
    });
    let registry = bench.poll.registry();
    assert!(!bench.server.flush(registry), "nothing is to be taken");
    send(&mut other, "meanwhile\n");
    assert_eq!(bench.round(10), (to_strings(&["meanwhile"]), false));

    bench.server.respond(asked.unwrap(), b"answer\n".to_vec());
    let registry = bench.poll.registry();
    assert!(bench.server.flush(registry), "no event tells of `next`");
    assert_eq!(bench.round(10), (to_strings(&["next"]), false));
    assert_eq!(receive(&mut client), "answer\n");
    assert_eq!(receive(&mut client), "next\n");
}

#[test]
fn who_has_said_its_last_word_still_gets_its_answers() {
    let mut bench = Bench::new();
    let mut client = bench.connect();
    send(&mut client, "one\ntwo\n");
    let end = std::net::Shutdown::Write;
    client.get_mut().shutdown(end).unwrap();
    bench.handle_all();
    assert_eq!(receive(&mut client), "3 1\n");
    assert_eq!(receive(&mut client), "3 2\n");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert!(bench.server.clients.is_empty());
}

#[test]
fn a_last_answer_closes_its_connection_only() {
    let mut bench = Bench::new();
    let (mut client, mut other) = (bench.connect(), bench.connect());
    send(&mut client, "last\n");
    bench.ready();
    bench
        .server
        .take_lines(10, |_, _, _, _| Reply::Last(b"end\n".to_vec()));
    assert!(!bench.server.flush(bench.poll.registry()));
    assert_eq!(receive(&mut client), "end\n");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    send(&mut other, "still\n");
    bench.handle_all();
    assert_eq!(receive(&mut other), "5 1\n");
}

#[test]
fn a_line_over_the_limit_closes_its_connection_only() {
    let mut bench = Bench::new();
    let (mut good, mut bad) = (bench.connect(), bench.connect());
    bad.get_mut().set_nonblocking(true).unwrap();
    let line = vec![b'x'; MAX_LINE + 1];
    let mut sent = 0;
    while sent < line.len() {
        match bad.get_mut().write(&line[sent..]) {
            Ok(count) => sent += count,
            Err(_) => bench.handle_all(),
        }
    }
    bench.handle_all();
    bad.get_mut().set_nonblocking(false).unwrap();
    assert_eq!(code(&receive(&mut bad)), ErrorCode::LineTooLong);
    assert_eq!(bad.read(&mut [0]).unwrap(), 0);
    send(&mut good, "still\n");
    bench.handle_all();
    assert_eq!(receive(&mut good), "5 1\n");
}

#[test]
fn the_65th_client_takes_the_place_of_the_most_silent_one() {
    let mut bench = Bench::new();
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| bench.connect()).collect();
    // The first has spoken since, so that the second is silent for longest.
    send(&mut clients[0], "\n");
    bench.handle_all();
    assert_eq!(receive(&mut clients[0]), "0 1\n");
    clients.push(bench.connect());
    let mut silent = clients.remove(1);
    assert_eq!(code(&receive(&mut silent)), ErrorCode::Busy);
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    for client in &mut clients {
        send(client, "\n");
    }
    bench.handle_all();
    for (number, client) in clients.iter_mut().enumerate() {
        let count = if number == 0 { 2 } else { 1 };
        assert_eq!(receive(client), format!("0 {count}\n"));
    }
    drop(clients);
    bench.handle_all();
    assert!(bench.server.clients.is_empty());
}

#[test]
fn a_thousand_connections_lock_nobody_else_out() {
    use std::process::{Command, Stdio};
    let mut bench = Bench::new();
    let mut other = bench.connect();
    // A process of its own: what it holds is let go of first.
    let path = bench.server.path.display();
    let program = format!(
        "use IO::Socket::UNIX; my @all; \
         push @all, IO::Socket::UNIX->new(Peer => '{path}') || die $! for 1..1000; \
         $| = 1; print \"all\\n\"; <STDIN>"
    );
    let mut crowd = Command::new("perl")
        .args(["-e", &program])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(crowd.stdout.take().unwrap());
    let told = std::thread::spawn(move || {
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        line
    });
    while !told.is_finished() {
        bench.handle_all();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(told.join().unwrap(), "all\n");
    bench.handle_all();
    assert_eq!(bench.server.clients.len(), MAX_CLIENTS);
    send(&mut other, "still here\n");
    let mut late = bench.connect();
    send(&mut late, "late\n");
    bench.handle_all();
    assert_eq!(receive(&mut other), "10 1\n");
    assert_eq!(receive(&mut late), "4 1\n");
    drop(crowd.stdin.take());
    crowd.wait().unwrap();
    bench.handle_all();
    assert_eq!(bench.server.clients.len(), 2);
}

/// Sends lines until nothing moves any more; how many bytes were taken off its hands.
fn flood(bench: &mut Bench, client: &mut BufReader<StdStream>) -> usize {
    client.get_mut().set_nonblocking(true).unwrap();
    let lines = b"a question of some length\n".repeat(1000);
    let mut sent = 0;
    loop {
        match client.get_mut().write(&lines[sent % lines.len()..]) {
            Ok(count) => sent += count,
            Err(_) if !bench.ready() && !bench.round(1000).1 => break,
            Err(_) => {}
        }
        assert!(sent < 64 << 20, "the server reads without end");
    }
    client.get_mut().set_nonblocking(false).unwrap();
    sent
}

#[test]
fn a_client_that_does_not_read_is_not_read_and_holds_up_nobody() {
    let mut bench = Bench::new();
    let mut silent = bench.connect();
    let sent = flood(&mut bench, &mut silent);
    assert!(sent > MAX_OUTPUT, "{sent}");
    let mut other = bench.connect();
    send(&mut other, "hello\n");
    assert_eq!(bench.round(10), (to_strings(&["hello"]), false));
    assert_eq!(receive(&mut other), "hello\n");

    // It gets every answer once it reads: as many bytes as it sent, in whole lines.
    let whole = sent / 26 * 26;
    let mut got = 0;
    let mut bytes = vec![0; 1 << 20];
    while got < whole {
        got += silent.read(&mut bytes).unwrap();
        bench.round(1000);
    }
    assert_eq!(got, whole);
}

#[test]
fn hello_comes_first_and_in_our_version() {
    let mut handshake = Handshake::default();
    assert_eq!(handshake.check().unwrap_err().code, ErrorCode::BadRequest);
    let refusal = handshake.hello(VERSION + 1).unwrap_err();
    assert_eq!(refusal, mismatch(VERSION + 1, VERSION));
    assert!(handshake.check().is_err());
    handshake.hello(VERSION).unwrap();
    assert_eq!(handshake.check(), Ok(()));
}
