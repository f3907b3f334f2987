use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::*;
use crate::ErrorCode;
use crate::control::{Request, Response};
use crate::entries::Entries;

const SECOND: Duration = Duration::from_secs(1);

/// A daemon of another release, as lines: each thing that a client says gets the next of `answers`.
/// It closes when it has given all.
struct Peer {
    directory: tempfile::TempDir,
    thread: JoinHandle<Vec<String>>,
}

impl Peer {
    fn answering(answers: &'static [&'static str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let mut heard = Vec::new();
            for answer in answers {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                heard.push(line);
                stream.write_all(answer.as_bytes()).unwrap();
            }
            heard
        });
        Self { directory, thread }
    }

    fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.directory.path().join("socket"), SECOND)
    }

    /// What it heard.
    fn heard(self) -> Vec<String> {
        self.thread.join().unwrap()
    }
}

const HELLO: &str = "{\"response\":\"hello\",\"version\":5,\"pid\":7}\n";

#[test]
fn calls_are_answered_one_by_one() {
    let peer = Peer::answering(&[
        HELLO,
        "{\"response\":\"done\"}\n",
        "{\"response\":\"error\",\"code\":\"not-found\",\"message\":\"no\"}\n",
    ]);
    let mut client = peer.connect().unwrap();
    let name = || "b".to_owned();
    let request = Request::NodeDel { name: name() };
    assert_eq!(client.call(&request).unwrap(), Response::Done);
    match client.call(&request) {
        Err(ClientError::Refused(error)) => {
            assert_eq!(error, ErrorBody::new(ErrorCode::NotFound, "no"));
        }
        other => panic!("{other:?}"),
    }
    let lost = client.call(&request).unwrap_err();
    assert!(matches!(lost, ClientError::Lost { .. }), "{lost:?}");
    let asked = "{\"request\":\"node-del\",\"name\":\"b\"}\n";
    assert_eq!(
        peer.heard(),
        ["{\"request\":\"hello\",\"version\":5}\n", asked, asked]
    );
}

#[test]
fn a_bulk_is_begun_handed_over_and_ended() {
    const DONE: &str = "{\"response\":\"done\"}\n";
    let peer = Peer::answering(&[
        HELLO,
        DONE,
        DONE,
        "{\"response\":\"bulk-done\",\"removed\":{},\"added\":{}}\n",
    ]);
    let mut client = peer.connect().unwrap();
    let route = crate::control::RouteSpec {
        prefix: "10.9.0.0/16".parse().unwrap(),
        via: crate::control::ViaSpec::Node {
            node: "b".into(),
            vni: None,
        },
    };
    let entries = Entries {
        routes: vec![route],
        ..Entries::default()
    };
    let mut held = Vec::new();
    let options = BulkOptions {
        dry_run: true,
        ..BulkOptions::default()
    };
    let answer = client.bulk(options, &entries, |count| held.push(count));
    assert!(answer.unwrap().unwrap().is_empty());
    assert_eq!(held, [1]);
    assert_eq!(
        peer.heard()[1..],
        [
            "{\"request\":\"bulk-begin\",\"replace\":false,\"dry_run\":true}\n",
            "{\"request\":\"bulk-part\",\"nodes\":[],\"routes\":[{\"prefix\":\"10.9.0.0/16\",\
             \"via\":{\"kind\":\"node\",\"node\":\"b\"}}],\"ports\":[]}\n",
            "{\"request\":\"bulk-end\"}\n",
        ]
    );
}

#[test]
fn a_daemon_of_another_version_is_told_apart() {
    // An older one refuses in words of its own. One that answers all the same is as good.
    let older =
        "{\"response\":\"error\",\"code\":\"version-mismatch\",\"message\":\"its words\"}\n";
    let newer = "{\"response\":\"hello\",\"version\":6,\"pid\":7,\"more\":true}\n";
    for (answer, words) in [
        (older, "its words"),
        (
            newer,
            "the client speaks protocol version 5 and the daemon 6; upgrade the client, which is \
             older",
        ),
    ] {
        let answers: &'static [&'static str] = Box::leak(Box::new([answer]));
        match Peer::answering(answers).connect() {
            Err(ClientError::Refused(error)) => {
                assert_eq!(error, ErrorBody::new(ErrorCode::VersionMismatch, words));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_no_daemon_is_told_apart() {
    for (answers, expected) in [
        (&["HTTP/1.1 400 Bad Request\r\n"][..], "expected value"),
        (&["{\"response\":\"done\"}\n"], "not answered by hello"),
        (&["{\"response\":\"what\"}\n"], "unknown variant"),
    ] {
        let error = Peer::answering(answers).connect().unwrap_err();
        assert!(matches!(error, ClientError::Nonsense { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = Peer::answering(&["{\"resp"]).connect().unwrap_err();
    assert!(matches!(error, ClientError::Lost { .. }), "{error:?}");
}

#[test]
fn nobody_at_the_socket_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let error = Client::connect(&directory.path().join("socket"), SECOND).unwrap_err();
    assert!(
        matches!(error, ClientError::Unreachable { .. }),
        "{error:?}"
    );
}

#[test]
fn a_daemon_that_hangs_costs_the_timeout_however_it_hangs() {
    let timeout = Duration::from_millis(300);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let hangs = |what: &str| {
        let begin = Instant::now();
        let error = Client::connect(&path, timeout).unwrap_err();
        assert!(
            matches!(error, ClientError::TimedOut { .. }),
            "{what}: {error:?}"
        );
        let took = begin.elapsed();
        assert!(
            took >= timeout && took < 5 * timeout,
            "{what}: took {took:?}"
        );
    };

    // It takes a connection, and says a little all the time.
    let listener = UnixListener::bind(&path).unwrap();
    let dribbling = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while stream.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    hangs("no whole answer");
    dribbling.join().unwrap();

    // It takes no connection, and its queue is full.
    std::fs::remove_file(&path).unwrap();
    let listener = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    hangs("no connection");
}
