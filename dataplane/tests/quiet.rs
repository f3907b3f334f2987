//! On the path of a packet nothing is logged or printed: counters tell what happens there.

use std::fs;
use std::path::{Path, PathBuf};

/// What a worker calls, below `src`.
const PATH: [&str; 18] = [
    "answer",
    "clock.rs",
    "counters.rs",
    "egress",
    "fib",
    "forward.rs",
    "ingress",
    "last_drop.rs",
    "limits",
    "packet.rs",
    "stages.rs",
    "tunnel",
    "verdict.rs",
    "wait.rs",
    "watch",
    "wire",
    "worker.rs",
    "xsk",
];
/// Words that would say something.
const LOUD: [&str; 7] = [
    "tracing::",
    "println!",
    "eprintln!",
    "eprint!",
    "print!",
    "dbg!",
    "log::",
];

fn files(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap();
        entries.for_each(|entry| files(&entry.unwrap().path(), found));
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        found.push(path.to_owned());
    }
}

#[test]
fn nothing_is_logged_on_the_path_of_a_packet() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for part in PATH {
        let path = source.join(part);
        assert!(path.exists(), "{part} is elsewhere now");
        files(&path, &mut found);
    }
    assert!(found.len() > 50, "{found:?}");
    for file in found {
        let name = file.strip_prefix(&source).unwrap();
        let is_test = name.components().any(|part| {
            let part = part.as_os_str().to_string_lossy();
            part.contains("test")
        });
        let text = fs::read_to_string(&file).unwrap();
        // Unit tests are at the end of each file.
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for (number, line) in (1..).zip(code.lines()).filter(|_| !is_test) {
            let line = line.trim_start();
            let is_loud = LOUD.iter().any(|word| line.contains(word));
            assert!(
                !is_loud || line.starts_with("//"),
                "{}:{number}: {line}",
                name.display()
            );
        }
    }
}
