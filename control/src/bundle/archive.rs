//! Files to bytes.

use std::io;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::Manifest;

/// The directory that all is in.
const ROOT: &str = "podway-bundle";

/// The files and the manifest as a compressed tar; it is the owner's alone to read.
pub(super) fn pack(files: &[(String, Vec<u8>, bool)], manifest: &Manifest) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let mut append = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(manifest.seconds);
        archive.append_data(&mut header, format!("{ROOT}/{name}"), bytes)
    };
    let text = serde_json::to_string_pretty(manifest)? + "\n";
    append("manifest.json", text.as_bytes())?;
    for (name, bytes, _) in files {
        append(name, bytes)?;
    }
    archive.into_inner()?.finish()
}
