mod property;

use std::os::unix::fs::PermissionsExt;

use ipnet::IpNet;
use podway_proto::control::{NodeSpec, PortRoleSpec, PortSpec, RouteSpec, ViaSpec};
use rustix::thread::CapabilitySet;
use tempfile::TempDir;

use super::*;

fn node(name: &str, number: u8) -> Entry {
    Entry::Node(NodeSpec {
        name: name.into(),
        underlay: [192, 168, 1, number].into(),
        underlay6: None,
        pod_cidrs: vec![IpNet::new([10, 0, number, 0].into(), 24).unwrap()],
        vtep_mac: None,
        mode: None,
    })
}

fn route(number: u8, node: &str) -> Entry {
    Entry::Route(RouteSpec {
        prefix: prefix(number),
        via: ViaSpec::Node {
            node: node.into(),
            vni: None,
        },
    })
}

fn prefix(number: u8) -> IpNet {
    IpNet::new([10, number, 0, 0].into(), 16).unwrap()
}

fn uplink(interface: &str) -> Entry {
    Entry::Port(PortSpec {
        interface: interface.into(),
        role: PortRoleSpec::Uplink {
            accept_partial_checksums: Some(false),
        },
    })
}

/// A directory, and a model of the state in it.
struct Bench {
    directory: TempDir,
    state: Desired,
}

impl Bench {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            state: Desired::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn open(&self) -> Store {
        let (store, state) = Store::open(self.directory.path()).unwrap();
        assert_eq!(state, self.state);
        store
    }

    fn save(&mut self, store: &mut Store, changes: &[Entry]) {
        changes
            .iter()
            .cloned()
            .for_each(|entry| entry.put(&mut self.state));
        store.save(changes, &self.state).unwrap();
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Files beside the lock.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != LOCK).collect();
        names.sort();
        names
    }

    /// Two files with node b, then route 9, of which the newer has a line for route 8 and one
    /// for an uplink.
    fn two_generations() -> Self {
        let mut bench = Self::new();
        let mut store = bench.open();
        bench.save(&mut store, &[node("b", 1)]);
        bench.save(&mut store, &[route(9, "b")]);
        drop(store);
        let mut store = bench.open();
        bench.save(&mut store, &[route(8, "b")]);
        bench.save(&mut store, &[uplink("eth0"), Entry::NoRoute(prefix(9))]);
        bench
    }

    /// Changes one digit of line `number` of a file.
    fn damage(&self, name: &str, number: usize) {
        let mut lines: Vec<String> = self.text(name).lines().map(str::to_owned).collect();
        let line = &mut lines[number - 1];
        let at = line.rfind(|c: char| c.is_ascii_digit()).unwrap();
        let digit = if line[at..].starts_with('7') {
            "3"
        } else {
            "7"
        };
        line.replace_range(at..=at, digit);
        fs::write(self.path(name), lines.join("\n") + "\n").unwrap();
    }

    fn refusal(&self) -> String {
        Store::open(self.directory.path()).unwrap_err().to_string()
    }

    /// What comes after the file's name in a refusal, if going on means `is`.
    fn offer(&self, what: &str, is: &str) -> String {
        let directory = self.directory.path().display();
        format!(
            "the state file {directory}/state.json is {what}; it was left as it is. To go on with \
             {is}, run\n  podway-control --state-dir {directory} --restore-state"
        )
    }
}

const CHANGED: &str = "its checksum is another's: it was changed, or a line before it is missing";

#[test]
fn missing_directories_are_made() {
    let mut bench = Bench::new();
    let below = bench.path("a/b");
    let (mut store, _) = Store::open(&below).unwrap();
    bench.save(&mut store, &[node("b", 1)]);
    drop(store);
    let (_, state) = Store::open(&below).unwrap();
    assert_eq!(state, bench.state);
    for directory in [bench.path("a"), below] {
        let mode = fs::metadata(directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o750);
    }
}

#[test]
fn each_group_of_changes_is_a_line() {
    let mut bench = Bench::new();
    let mut store = bench.open();
    assert_eq!(bench.files(), [""; 0]);
    bench.save(&mut store, &[node("b", 1)]);
    bench.save(&mut store, &[route(9, "b"), uplink("eth0")]);
    bench.save(&mut store, &[Entry::NoRoute(prefix(9))]);
    let lines = [
        r#"{"crc":"e7b4aa9b","schema":2,"generation":1,"entries":1}"#,
        r#"{"crc":"32b617ef","put":[{"node":{"name":"b","underlay":"192.168.1.1","pod_cidrs":["10.0.1.0/24"]}}]}"#,
        r#"{"crc":"e86b7adf","put":[{"route":{"prefix":"10.9.0.0/16","via":{"kind":"node","node":"b"}}},{"port":{"interface":"eth0","role":{"kind":"uplink","accept_partial_checksums":false}}}]}"#,
        r#"{"crc":"3228703a","put":[{"no-route":"10.9.0.0/16"}]}"#,
    ];
    assert_eq!(bench.text(FILE), lines.join("\n") + "\n");
    let mode = fs::metadata(bench.path(FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(bench.files(), [FILE]);

    // A start begins a new file and keeps this one.
    let before = bench.text(FILE);
    drop(store);
    let store = bench.open();
    assert_eq!(bench.files(), [FILE, PREVIOUS]);
    assert_eq!(bench.text(PREVIOUS), before);
    let now = bench.text(FILE);
    assert!(now.contains("\"generation\":2,\"entries\":2}\n"), "{now}");
    assert_eq!(now.lines().count(), 3);
    // One that finds nothing added leaves it.
    drop(store);
    bench.open();
    assert_eq!(bench.text(FILE), now);
}

#[test]
fn a_file_that_has_grown_is_written_anew() {
    let mut bench = Bench::new();
    let mut store = bench.open();
    let mut changes = 0;
    let mut before = String::new();
    loop {
        store.tidy(&bench.state);
        if bench.path(PREVIOUS).exists() {
            break;
        }
        let name = format!("{changes:0200}");
        bench.save(&mut store, &[node(&name, 1), Entry::NoNode(name.clone())]);
        changes += 1;
        before = bench.text(FILE);
    }
    assert!(before.len() as u64 >= LEAST_ADDED);
    assert_eq!(bench.text(PREVIOUS), before);
    assert_eq!(bench.text(FILE).lines().count(), 1);
    assert_eq!(bench.files(), [FILE, PREVIOUS]);
    bench.save(&mut store, &[node("b", 1)]);
    drop(store);
    bench.open();
}

#[test]
fn there_is_a_whole_file_at_every_moment_of_writing_it_anew() {
    let bench = Bench::two_generations();
    let (old, older) = (bench.text(FILE), bench.text(PREVIOUS));
    drop(bench.open());
    let new = bench.text(FILE);
    let moments: [&[(&str, &str)]; 6] = [
        &[(FILE, &old), (PREVIOUS, &older), (TEMPORARY, "")],
        &[
            (FILE, &old),
            (PREVIOUS, &older),
            (TEMPORARY, &new[..new.len() / 2]),
        ],
        &[(FILE, &old), (PREVIOUS, &older), (TEMPORARY, &new)],
        &[
            (FILE, &old),
            (PREVIOUS, &older),
            (TEMPORARY, &new),
            (LINK, &old),
        ],
        &[(FILE, &old), (PREVIOUS, &old), (TEMPORARY, &new)],
        &[(FILE, &new), (PREVIOUS, &old)],
    ];
    for files in moments {
        for name in bench.files() {
            fs::remove_file(bench.path(&name)).unwrap();
        }
        for (name, text) in files {
            fs::write(bench.path(name), text).unwrap();
        }
        let mut store = bench.open();
        assert_eq!(bench.text(FILE), new);
        assert_eq!(bench.text(PREVIOUS), old);
        store.save(&[uplink("eth1")], &bench.state).unwrap();
        assert_eq!(bench.files(), [FILE, PREVIOUS]);
    }
}

#[test]
fn a_file_of_schema_1_is_converted_and_kept() {
    let bench = Bench {
        state: Bench::two_generations().state,
        ..Bench::new()
    };
    let text = r#"{
  "schema": 1,
  "nodes": {
    "b": {
      "name": "b",
      "underlay": "192.168.1.1",
      "pod_cidrs": [
        "10.0.1.0/24"
      ]
    }
  },
  "routes": [
    {
      "prefix": "10.8.0.0/16",
      "via": {
        "kind": "node",
        "node": "b"
      }
    }
  ],
  "ports": {
    "eth0": {
      "kind": "uplink",
      "accept_partial_checksums": false
    }
  }
}
"#;
    fs::write(bench.path(FILE), text).unwrap();
    drop(bench.open());
    assert_eq!(bench.text(PREVIOUS), text);
    let converted = bench.text(FILE);
    assert!(converted.contains("\"schema\":2,\"generation\":1,\"entries\":3}"));
    // The new one follows the old one, as any other.
    bench.damage(FILE, 2);
    let is = "what state.json.previous says, which is all that was \
              acknowledged";
    assert_eq!(
        bench.refusal(),
        bench.offer(&format!("damaged in line 2: {CHANGED}"), is)
    );
    Store::restore(bench.directory.path()).unwrap();
    bench.open();
}

#[test]
fn what_is_no_state_file_is_refused_and_kept() {
    let bench = Bench::new();
    for (text, complaint) in [
        (
            "",
            "damaged in line 1: the file is empty; no good state is beside it.",
        ),
        ("\0\0\0\0", "damaged in line 1: it is cut off;"),
        (
            "nonsense\n",
            "damaged in line 1: it does not begin with a checksum;",
        ),
        ("{\"crc\":\"12345678\"", "damaged in line 1: it is cut off;"),
        (
            "{\n\"schema\":1,\n\"nodes\":{},\n\"routes\":[],\n\"ports\":7}",
            "damaged in line 5: it",
        ),
        (
            "{\n\"schema\":1,\n\"nodes\":{},\n",
            "damaged in line 4: it cannot be read: EOF",
        ),
        (
            "{\"schema\":3,\"anything\":[]}",
            "is of schema 3, and this program knows 2; install",
        ),
    ] {
        fs::write(bench.path(FILE), text).unwrap();
        let error = bench.refusal();
        assert!(error.contains(complaint), "{error}");
        let error = Store::restore(bench.directory.path())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no good state is beside it") || text.contains('3'),
            "{error}"
        );
        assert_eq!(bench.text(FILE), text);
        assert_eq!(bench.files(), [FILE]);
    }
    let (mut chain, mut text) = (Chain::default(), Vec::new());
    let (schema, generation, entries) = (3, 1, 0);
    let head = Head {
        schema,
        generation,
        entries,
    };
    chain.head(&mut text, head);
    fs::write(bench.path(FILE), text).unwrap();
    assert!(bench.refusal().contains("is of schema 3"));
}

#[test]
fn a_damaged_change_is_refused_and_what_came_before_it_is_offered() {
    let bench = Bench::two_generations();
    bench.damage(FILE, 4);
    let text = bench.text(FILE);
    let is = "what is whole of state.json, without what lines 4 to 5 \
              changed";
    assert_eq!(
        bench.refusal(),
        bench.offer(&format!("damaged in line 4: {CHANGED}"), is)
    );
    let said = Store::restore(bench.directory.path()).unwrap();
    let path = |name| bench.path(name).display().to_string();
    let expected = format!(
        "{} is now {is}; the damaged file is {}",
        path(FILE),
        path("state.json.damaged")
    );
    assert_eq!(said, expected);
    assert_eq!(bench.text("state.json.damaged"), text);
    let (_, state) = Store::open(bench.directory.path()).unwrap();
    let mut expected = Desired::default();
    for entry in [node("b", 1), route(9, "b")] {
        entry.put(&mut expected);
    }
    assert_eq!(state, expected);
    let said = Store::restore(bench.directory.path()).unwrap();
    assert!(said.ends_with(" is whole; nothing was done"), "{said}");
}

#[test]
fn of_a_damaged_snapshot_nothing_is_lost() {
    for line in [2, 3] {
        let bench = Bench::two_generations();
        bench.damage(FILE, line);
        let is = "what state.json.previous says and the 3 changes after it, which is all that was \
                  acknowledged";
        let what = format!("damaged in line {line}: {CHANGED}");
        assert_eq!(bench.refusal(), bench.offer(&what, is));
        Store::restore(bench.directory.path()).unwrap();
        assert_eq!(bench.files(), [FILE, "state.json.damaged", PREVIOUS]);
        // And again.
        drop(bench.open());
        bench.damage(FILE, line);
        let said = Store::restore(bench.directory.path()).unwrap();
        assert!(said.ends_with("state.json.damaged-2"), "{said}");
    }
}

#[test]
fn with_more_damage_less_is_offered() {
    let only = "what state.json.previous says, without what was changed after it";
    let first = Bench::two_generations();
    first.damage(FILE, 1);
    assert!(first.refusal().contains(only), "{}", first.refusal());
    let missing = Bench::two_generations();
    fs::remove_file(missing.path(FILE)).unwrap();
    let what = "missing, and the one before it is there";
    assert_eq!(missing.refusal(), missing.offer(what, only));
    for bench in [first, missing] {
        Store::restore(bench.directory.path()).unwrap();
        let (_, state) = Store::open(bench.directory.path()).unwrap();
        assert_eq!(
            Entry::all(&state).collect::<Vec<_>>(),
            [node("b", 1), route(9, "b")]
        );
    }

    let both = Bench::two_generations();
    both.damage(FILE, 2);
    both.damage(FILE, 5);
    let is = "what state.json.previous says and the change after it, without what line 5 changed";
    assert!(both.refusal().contains(is), "{}", both.refusal());

    let cut = Bench::two_generations();
    let text = cut.text(FILE);
    let lines: Vec<&str> = text.lines().collect();
    fs::write(cut.path(FILE), lines[..2].join("\n") + "\n").unwrap();
    let what = "damaged in line 3: it is missing: the file has 1 of its 2 entries";
    assert!(cut.refusal().contains(what), "{}", cut.refusal());

    let all = Bench::two_generations();
    all.damage(FILE, 2);
    all.damage(PREVIOUS, 2);
    let error = all.refusal();
    let path = all.path(FILE);
    let end = format!(
        "no good state is beside it. Move {}* away to start empty, and bring back by podway import \
         what podway export has written",
        path.display()
    );
    assert!(error.ends_with(&end), "{error}");
}

#[test]
fn a_file_that_was_moved_away_is_written_anew() {
    let mut bench = Bench::new();
    let mut store = bench.open();
    bench.save(&mut store, &[node("b", 1)]);
    fs::remove_file(bench.path(FILE)).unwrap();
    bench.save(&mut store, &[route(9, "b")]);
    fs::rename(bench.path(FILE), bench.path("elsewhere")).unwrap();
    fs::write(bench.path(FILE), "a stranger's").unwrap();
    bench.save(&mut store, &[route(8, "b")]);
    drop(store);
    bench.open();
}

#[test]
fn what_cannot_be_saved_is_refused_and_the_file_stays() {
    let mut bench = Bench::new();
    let mut store = bench.open();
    bench.save(&mut store, &[node("b", 1)]);
    fs::remove_file(bench.path(FILE)).unwrap();
    fs::create_dir(bench.path(TEMPORARY)).unwrap();
    let error = store
        .save(&[node("c", 2)], &bench.state)
        .unwrap_err()
        .to_string();
    let begin = format!("cannot write {}: ", bench.path(TEMPORARY).display());
    assert!(error.starts_with(&begin), "{error}");
    fs::remove_dir(bench.path(TEMPORARY)).unwrap();
    bench.save(&mut store, &[route(9, "b")]);
    drop(store);
    bench.open();
}

/// Runs `work` with a directory whose names can be changed and not be forced to the disk.
fn without_sync<T: Send>(directory: &Path, work: impl FnOnce() -> T + Send) -> T {
    let mode = |mode| fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o300);
    // Root reads every directory, but for a thread that has laid that down.
    let done = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut sets = rustix::thread::capabilities(None).unwrap();
            let reads = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
            sets.effective.remove(reads);
            rustix::thread::set_capabilities(None, sets).unwrap();
            work()
        });
        thread.join().unwrap()
    });
    mode(0o750);
    done
}

#[test]
fn a_change_that_is_refused_is_not_in_the_file_afterwards() {
    let mut bench = Bench::new();
    let mut store = bench.open();
    let state = |entries: &[Entry]| {
        let mut state = Desired::default();
        let entries = entries.iter().cloned();
        entries.for_each(|entry| entry.put(&mut state));
        state
    };
    let refused = |store: &mut Store, changes: &[Entry], before: &Desired, after: &Desired| {
        let error = without_sync(bench.directory.path(), || {
            let error = store.save(changes, after).unwrap_err();
            store.take_back(before);
            error.to_string()
        });
        let begin = format!("cannot write to {}: ", bench.directory.path().display());
        assert!(error.starts_with(&begin), "{error}");
    };
    // The first file, and one that takes the place of another.
    let after = state(&[node("b", 1)]);
    refused(&mut store, &[node("b", 1)], &bench.state, &after);
    drop(store);
    let mut store = bench.open();
    let before = after;
    store.save(&[node("b", 1)], &before).unwrap();
    fs::remove_file(bench.path(FILE)).unwrap();
    let after = state(&[node("b", 1), route(9, "b")]);
    refused(&mut store, &[route(9, "b")], &before, &after);
    assert_eq!(bench.files(), [FILE]);
    drop(store);
    bench.state = before;
    bench.open();
}

#[test]
fn one_process_has_the_directory() {
    let bench = Bench::new();
    let store = bench.open();
    let expected = format!(
        "another podway-control keeps its state in {}; stop it, or give this one a --state-dir of \
         its own",
        bench.directory.path().display()
    );
    assert_eq!(bench.refusal(), expected);
    let error = Store::restore(bench.directory.path()).unwrap_err();
    assert_eq!(error.to_string(), expected);
    drop(store);
    bench.open();
}
