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
