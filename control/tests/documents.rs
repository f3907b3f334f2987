//! What the programs print, whole: against the files of `golden` (`PODWAY_BLESS=1` writes them anew), and
//! against docs/json.md.

mod common;
#[path = "../src/golden.rs"]
mod golden;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use clap::CommandFactory;
use podway_control::cli::Cli;
use podway_proto::{CONTROL_SOCKET, DATAPLANE_SOCKET, VERSION};
use serde_json::{Value, json};

use golden::{golden, golden_json};

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn examples(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(file("../proto/tests/golden").join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The first of the protocol's examples that is an answer of this kind, and is as `like` says.
fn example(of: &[Value], kind: &str, like: impl Fn(&Value) -> bool) -> Value {
    let mut found = of.iter().filter(|answer| answer["response"] == kind);
    found.find(|answer| like(answer)).unwrap().clone()
}

/// What a program prints; it ends with success.
fn printed(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn podway(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podway"));
    command.args(words);
    command
}

/// Both daemons' sockets in a directory, behind which nobody thinks: each request has its answers, one
/// after the other, and the last one from then on.
struct Daemons(tempfile::TempDir);

impl Daemons {
    fn new() -> Self {
        let daemons = Self(tempfile::tempdir().unwrap());
        let (control, dataplane) = (
            examples("control-responses.json"),
            examples("dataplane-responses.json"),
        );
        let any = |_: &Value| true;
        let answers = |answer: &Value| -> bool { answer["dataplane"]["status"].is_object() };
        daemons.listen(
            CONTROL_SOCKET,
            &[
                ("status", vec![example(&control, "status", answers)]),
                ("counters", vec![example(&control, "counters", any)]),
                ("drops", vec![example(&control, "drops", any)]),
                ("node-list", vec![example(&control, "nodes", any)]),
                ("perf", vec![example(&control, "perf", any)]),
            ],
        );
        let watched = example(&dataplane, "watched", any);
        let end = json!({"response": "watched", "records": [], "lost": 3, "done": true});
        daemons.listen(
            DATAPLANE_SOCKET,
            &[
                ("status", vec![example(&dataplane, "status", any)]),
                ("watch-begin", vec![json!({"response": "watch-begun"})]),
                ("watch-read", vec![watched, end]),
            ],
        );
        daemons
    }

    fn listen(&self, name: &str, answers: &[(&str, Vec<Value>)]) {
        let listener = UnixListener::bind(self.0.path().join(name)).unwrap();
        let owned =
            |(request, answers): &(&str, Vec<Value>)| (request.to_string(), answers.clone());
        let answers: BTreeMap<String, Vec<Value>> = answers.iter().map(owned).collect();
        thread::spawn(move || {
            // A client at a time.
            for client in listener.incoming() {
                answer(client.unwrap(), answers.clone());
            }
        });
    }

    /// What the command line says.
    fn said(&self, words: &[&str]) -> String {
        printed(podway(&["--run-dir"]).arg(self.0.path()).args(words))
    }

    /// The documents that it prints, a line each.
    fn documents(&self, words: &[&str]) -> Vec<u8> {
        let said = self.said(&[&["--json"], words].concat());
        let documents = said.lines().map(|line| serde_json::from_str(line).unwrap());
        serde_json::to_vec(&documents.collect::<Vec<Value>>()).unwrap()
    }
}

fn answer(client: UnixStream, mut answers: BTreeMap<String, Vec<Value>>) {
    let mut out = client.try_clone().unwrap();
    for line in BufReader::new(client).lines().map_while(Result::ok) {
        let request: Value = serde_json::from_str(&line).unwrap();
        let name = request["request"].as_str().unwrap();
        let hello = json!({"response": "hello", "version": VERSION, "pid": 1});
        let answer = match answers.get_mut(name) {
            None if name == "hello" => hello,
            None => panic!("nobody knows {request}"),
            Some(answers) if answers.len() > 1 => answers.remove(0),
            Some(answers) => answers[0].clone(),
        };
        // The client may not wait for it.
        if writeln!(out, "{answer}").is_err() {
            return;
        }
    }
}

/// The help of each command, by the words that it is called by; of those that are shown.
fn helps(command: &clap::Command, words: &[&str], found: &mut Vec<(String, String)>) {
    let help = printed(podway(words).arg("--help"));
    found.push(([&["podway"], words].concat().join("-"), help));
    for command in command.get_subcommands() {
        if !command.is_hide_set() {
            helps(command, &[words, &[command.get_name()]].concat(), found);
        }
    }
}

#[test]
fn the_help_of_every_command_is_as_before() {
    let mut found = Vec::new();
    helps(&Cli::command(), &[], &mut found);
    assert!(found.len() > 30, "{}", found.len());
    for (name, help) in &found {
        golden(&format!("help/{name}.txt"), help);
    }
    // Of commands that are no more nothing is left.
    let files = fs::read_dir(file("tests/golden/help")).unwrap();
    let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let names = found.iter().map(|(name, _)| format!("{name}.txt"));
    assert_eq!(files.collect::<BTreeSet<_>>(), names.collect());
}

#[test]
fn a_reason_is_explained_without_a_daemon() {
    let words = ["explain", "no_route"];
    golden("explain.txt", &printed(&mut podway(&words)));
    let document = printed(podway(&["--json"]).args(words));
    golden_json("explain.json", document.as_bytes());
}

#[test]
fn what_workers_do_is_told_by_control() {
    let daemons = Daemons::new();
    // The same as in the unit test of show.
    golden("perf.txt", &daemons.said(&["perf"]));
    let document: Value = serde_json::from_str(&daemons.said(&["--json", "perf"])).unwrap();
    let control = examples("control-responses.json");
    assert_eq!(document, example(&control, "perf", |_| true));
}

#[test]
fn a_node_at_a_glance_is_one_document() {
    let daemons = Daemons::new();
    let document = daemons.said(&["--json", "status", "--verbose", "--since-start"]);
    assert_eq!(document.lines().count(), 1);
    golden_json("overview.json", document.as_bytes());
}

#[test]
fn what_a_watch_has_seen_is_told_in_three_ways() {
    let daemons = Daemons::new();
    for (words, name) in [
        (&["capture"][..], "capture"),
        (&["trace", "live"], "trace-live"),
        (&["flows"], "flows"),
    ] {
        golden(&format!("{name}.txt"), &daemons.said(words));
        golden_json(&format!("{name}.json"), &daemons.documents(words));
    }
}

/// Each line of a daemon's log is a document.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn a_log_in_json_has_a_document_on_each_line() {
    let cluster = common::Cluster::new();
    // Something to warn of: a directory that others may search.
    fs::create_dir(cluster.run_dir("a")).unwrap();
    fs::set_permissions(
        cluster.run_dir("a"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let mut command = cluster.daemon("a", "uplink = 'eth0'\n", &[]);
    command.args(["--log-format", "json", "--log", "debug"]);
    let mut daemon = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = Vec::new();
    let mut log = BufReader::new(daemon.stderr.take().unwrap()).lines();
    let is_ready = |line: &Value| line["fields"]["message"] == "ready";
    let parsed = |line: std::io::Result<String>| -> Value {
        let line = line.unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    loop {
        let line = parsed(log.next().expect("the daemon goes on"));
        lines.push(line);
        if is_ready(&lines[lines.len() - 1]) {
            break;
        }
    }
    common::run(Command::new("kill").args(["-TERM", &daemon.id().to_string()]));
    lines.extend(log.map(parsed));
    assert!(daemon.wait().unwrap().success());
    for line in &lines {
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["fields", "level", "target", "timestamp"], "{line}");
        assert!(line["fields"]["message"].is_string(), "{line}");
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    }
    let of_level = |level| lines.iter().filter(move |line| line["level"] == level);
    assert!(of_level("WARN").count() > 0, "{lines:?}");
    let ready = of_level("INFO").find(|line| is_ready(line)).unwrap();
    assert_eq!(ready["fields"]["node"], "a");
    assert_eq!(ready["target"], "podway_control::daemon");
}

/// A section of docs/json.md: what it says of each field.
type Section = BTreeMap<String, String>;

/// The tables of docs/json.md by their titles, as links name them.
fn documented() -> BTreeMap<String, Section> {
    let text = fs::read_to_string(file("../docs/json.md")).unwrap();
    let mut sections = BTreeMap::new();
    let mut section = None;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("##") {
            let title = title.trim_start_matches('#').trim().replace('`', "");
            section = Some(title.replace(' ', "-"));
            continue;
        }
        let row = line
            .strip_prefix("| `")
            .and_then(|row| row.split_once("` | "));
        if let (Some(title), Some((name, says))) = (&section, row) {
            let fields: &mut Section = sections.entry(title.clone()).or_default();
            let before = fields.insert(name.to_owned(), says.to_owned());
            assert_eq!(before, None, "{title}: {name} twice");
        }
    }
    sections
}

/// Compares documents with what is said of them.
struct Reader {
    sections: BTreeMap<String, Section>,
    /// Rows that a document has.
    met: BTreeSet<(String, String)>,
    wrong: BTreeSet<String>,
}

impl Reader {
    /// Notes what is not said of the fields of `value`, which are those of `section` behind `prefix`.
    fn read(&mut self, section: &str, prefix: &str, value: &Value) {
        let Value::Object(fields) = value else {
            return;
        };
        for (name, value) in fields {
            let Some((path, says)) = self.row(section, &format!("{prefix}{name}"), prefix) else {
                self.wrong
                    .insert(format!("{section}: nothing is said of {prefix}{name}"));
                continue;
            };
            let other = says
                .split_once("](#")
                .and_then(|(_, link)| link.split_once(')'));
            let other = other.map(|(title, _)| title.to_owned());
            let elements = match value {
                Value::Array(values) => values.as_slice(),
                one => std::slice::from_ref(one),
            };
            let behind = if value.is_array() { "[]." } else { "." };
            for element in elements {
                match &other {
                    Some(title) => self.read(&title.clone(), "", element),
                    None => self.read(section, &format!("{path}{behind}"), element),
                }
            }
            let says_null = says.contains("`null`");
            if value.is_null() && !says_null {
                self.wrong.insert(format!("{section}: {path} may be null"));
            }
        }
    }

    /// The row of a field: its name there, and what it says. A name may be any of a kind, and a field may
    /// be no more than the way to those that have rows.
    fn row(&mut self, section: &str, path: &str, prefix: &str) -> Option<(String, String)> {
        let rows = self.sections.get(section)?;
        if let Some(says) = rows.get(path) {
            self.met.insert((section.to_owned(), path.to_owned()));
            return Some((path.to_owned(), says.clone()));
        }
        let any = rows.keys().find_map(|row| {
            let word = row.strip_prefix(prefix)?.split(['.', '[']).next()?;
            let is_any = !word.is_empty() && word.chars().all(|c| c.is_ascii_uppercase());
            is_any.then(|| format!("{prefix}{word}"))
        });
        if let Some(any) = any {
            let says = rows.get(&any).cloned().unwrap_or_default();
            self.met.insert((section.to_owned(), any.clone()));
            return Some((any, says));
        }
        let is_way = rows.keys().any(|row| row.starts_with(&format!("{path}.")));
        is_way.then(|| (path.to_owned(), String::new()))
    }
}

#[test]
fn every_field_of_every_document_is_documented_and_the_other_way_round() {
    let mut documents = examples("control-responses.json");
    // What a connection begins with is not printed.
    documents.retain(|document| document["response"] != "hello");
    let traced = examples("dataplane-responses.json").into_iter();
    documents.extend(traced.filter(|document| document["response"] == "trace-packet"));
    for entry in fs::read_dir(file("tests/golden")).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            let document = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
            match document {
                Value::Array(several) => documents.extend(several),
                one => documents.push(one),
            }
        }
    }
    let mut reader = Reader {
        sections: documented(),
        met: BTreeSet::new(),
        wrong: BTreeSet::new(),
    };
    for document in &documents {
        match document["response"].as_str().unwrap() {
            // It is printed as an error.
            "bulk-refused" => {
                for refused in document["refused"].as_array().unwrap() {
                    reader.read("refused-entry", "", refused);
                }
            }
            kind => reader.read(kind, "", document),
        }
    }
    for (title, section) in &reader.sections {
        for name in section.keys() {
            if !reader.met.contains(&(title.clone(), name.clone())) {
                reader
                    .wrong
                    .insert(format!("{title}: no document has {name}"));
            }
        }
    }
    let wrong: Vec<String> = reader.wrong.into_iter().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
