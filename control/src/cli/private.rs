//! Files that hold packets, which are their owner's alone.

use std::fs::{self, File, FileType};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens `path` to be written anew, with mode 0600.
///
/// A file that is there is removed first and not cut: nobody who may read it, by its mode, as its owner,
/// under another name or because it is open, reads what is written now. A link is not followed, since it
/// may be somebody else's choice of the file; a FIFO or a device is written to as it is.
///
/// # Errors
/// What the system says; a link.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let is_in_place = |kind: FileType| kind.is_fifo() || kind.is_char_device();
    match fs::symlink_metadata(path).map(|found| found.file_type()) {
        Ok(kind) if kind.is_symlink() => {
            let message = "it is a symbolic link, which may lead to a file of somebody else";
            return Err(io::Error::other(message));
        }
        Ok(kind) if is_in_place(kind) => {
            let file = File::options()
                .write(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)?;
            // What was looked at and what was opened may be two.
            return match is_in_place(file.metadata()?.file_type()) {
                true => Ok(file),
                false => Err(io::Error::other("it was changed by somebody else just now")),
            };
        }
        Ok(kind) if kind.is_file() => fs::remove_file(path)?,
        // There is none, or the next call says what is wrong.
        _ => {}
    }
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::process::Command;
    use std::thread;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn what_is_written_is_nobody_elses() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.pcapng");
        create(&path).unwrap().write_all(b"first, longer").unwrap();
        assert_eq!(mode(&path), 0o600);

        // A file that all may read, that has another name, and that somebody reads.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let other = directory.path().join("other");
        fs::hard_link(&path, &other).unwrap();
        let mut reader = File::open(&path).unwrap();
        create(&path).unwrap().write_all(b"second").unwrap();
        assert_eq!(
            (mode(&path), fs::read(&path).unwrap()),
            (0o600, b"second".to_vec())
        );
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "first, longer");
        assert_eq!(fs::read(&other).unwrap(), b"first, longer");
    }

    #[test]
    fn a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, target) = (
            directory.path().join("link"),
            directory.path().join("target"),
        );
        symlink(&target, &path).unwrap();
        for _ in 0..2 {
            let error = create(&path).unwrap_err().to_string();
            assert!(error.starts_with("it is a symbolic link"), "{error}");
            // The second time it leads to a file.
            match target.exists() {
                false => fs::write(&target, "as it was").unwrap(),
                true => assert_eq!(fs::read(&target).unwrap(), b"as it was"),
            }
        }
    }

    #[test]
    fn a_fifo_and_a_device_stay_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        let made = Command::new("mkfifo")
            .args(["-m", "0620"])
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        let reader = thread::spawn({
            let path = path.clone();
            move || fs::read(path).unwrap()
        });
        create(&path).unwrap().write_all(b"packets").unwrap();
        assert_eq!(reader.join().unwrap(), b"packets");
        assert_eq!(mode(&path), 0o620);
        create(Path::new("/dev/null"))
            .unwrap()
            .write_all(b"packets")
            .unwrap();
        assert!(
            fs::metadata("/dev/null")
                .unwrap()
                .file_type()
                .is_char_device()
        );
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = create(directory.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        let error = create(&directory.path().join("none/out")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
