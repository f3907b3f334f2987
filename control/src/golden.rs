//! Files that tests compare text with, in `tests/golden`. `PODWAY_BLESS=1` writes them anew: then read
//! the difference.

use std::env;
use std::fs;
use std::path::Path;

/// Compares `text` with the file `name`.
pub(crate) fn golden(name: &str, text: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let path = directory.join(name);
    if env::var_os("PODWAY_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{name}: {error}; PODWAY_BLESS=1 writes it"));
    assert_eq!(text, golden, "{name}");
}

/// Compares a document, an indented field a line, with the file `name`.
pub(crate) fn golden_json(name: &str, document: &[u8]) {
    let document: serde_json::Value = serde_json::from_slice(document).unwrap();
    golden(
        name,
        &(serde_json::to_string_pretty(&document).unwrap() + "\n"),
    );
}
