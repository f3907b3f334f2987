//! The documents agree with the tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use podway_proto::dataplane::{Books, PortCounters, WorkerCounters};
use podway_proto::reasons::{self, Explanation, Fate, Place};

fn fields<T: Default + serde::Serialize>() -> Vec<String> {
    let serde_json::Value::Object(fields) = serde_json::to_value(T::default()).unwrap() else {
        panic!("counters are documents");
    };
    fields.keys().cloned().collect()
}

#[test]
fn every_counter_is_documented() {
    let text = include_str!("../../docs/counters.md");
    let names = fields::<PortCounters>()
        .into_iter()
        .chain(fields::<WorkerCounters>())
        .chain(fields::<Books>());
    let missing: Vec<_> = names.filter(|name| !text.contains(name.as_str())).collect();
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn reasons_are_those_of_the_documentation() {
    let text = include_str!("../../docs/counters.md");
    let rows: BTreeSet<_> = text.lines().collect();
    for reason in reasons::all() {
        let Explanation { name, meaning, .. } = reason;
        let places: Vec<_> = reason.places.iter().map(Place::to_string).collect();
        for place in &places {
            let row = format!("| `{place}` |");
            assert!(rows.iter().any(|line| line.starts_with(&row)), "{place}");
        }
        let row = match reason.fate {
            Fate::Drop => format!("| `{name}` | {} | {meaning} |", places.join(", ")),
            Fate::Lose | Fate::Refuse | Fate::Pass => format!("| `{name}` | {meaning} |"),
        };
        assert!(rows.contains(row.as_str()), "{row}");
    }
}

/// The names of all tests in the Rust files below a directory.
fn tests_below(directory: &Path, tests: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, tests);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut lines = text.lines().map(str::trim);
            while lines.any(|line| line == "#[test]") {
                // Other attributes may come between.
                let name = lines.find_map(|line| line.strip_prefix("fn ")?.split('(').next());
                tests.extend(name.map(str::to_owned));
            }
        }
    }
}

/// The words in backticks of the last cell of each row of the tables in a document, header rows left
/// out.
fn last_cells(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<_> = text.lines().collect();
    let is_header = |n: usize| lines.get(n + 1).is_some_and(|next| next.starts_with("|--"));
    let rows = (0..lines.len()).filter(|n| lines[*n].starts_with("| ") && !is_header(*n));
    let cells = rows.map(|n| lines[n].trim_end_matches('|').rsplit('|').next());
    cells
        .map(|cell| cell.unwrap().split('`').skip(1).step_by(2).collect())
        .collect()
}

#[test]
fn tests_that_the_documents_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut tests = BTreeSet::new();
    for directory in [
        "dataplane",
        "xdp-redirect",
        "control",
        "bench/src",
        "bench/tests",
    ] {
        tests_below(&root.join(directory), &mut tests);
    }
    for document in [
        include_str!("../../docs/vxlan.md"),
        include_str!("../../docs/conformance.md"),
    ] {
        let rows = last_cells(document);
        assert!(rows.len() > 20, "{}", rows.len());
        for row in &rows {
            assert!(!row.is_empty(), "a row without a test");
            let missing: Vec<_> = row.iter().filter(|name| !tests.contains(**name)).collect();
            assert!(missing.is_empty(), "{missing:?}");
        }
    }
}
