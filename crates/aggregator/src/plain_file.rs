//! Reads files that the configuration or a command names, or that other programs may write. Only regular files are
//! read, because opening a pipe waits for a writer, and a device may never end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// The maximum size in bytes of a file of the configuration, of targets, of rules or of a script.
pub(crate) const MAX_TEXT: u64 = 16 << 20;

/// Opens a regular file, or the regular file that a symbolic link leads to. Any other file is an error of the kind
/// `InvalidInput`, and opening does not wait for it.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // Checked before the file is opened, because opening a device may change it.
    check(&fs::metadata(path)?)?;
    open_with(path, OFlags::NONBLOCK)
}

/// Opens a regular file. A symbolic link is an error of the kind `InvalidInput` too, wherever it leads.
pub(crate) fn open_itself(path: &Path) -> io::Result<File> {
    check(&fs::symlink_metadata(path)?)?;
    open_with(path, OFlags::NONBLOCK | OFlags::NOFOLLOW)
}

fn open_with(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// The text of a regular file of up to `max` bytes.
pub(crate) fn read_text(path: &Path, max: u64) -> io::Result<String> {
    let mut text = String::new();
    let read = open(path)?.take(max + 1).read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read > max) {
        let problem = format!("it is larger than {} MiB", max >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok(text)
}

fn check(metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let what = match metadata.file_type() {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_symlink() => "a symbolic link",
        _ => "a pipe, a socket or a device",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_largest_size_is_read_and_a_larger_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("text");
        fs::write(&path, "x".repeat(2 << 20)).unwrap();
        assert_eq!(read_text(&path, 2 << 20).unwrap().len(), 2 << 20);
        fs::write(&path, "x".repeat((2 << 20) + 1)).unwrap();
        let error = read_text(&path, 2 << 20).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (io::ErrorKind::FileTooLarge, "it is larger than 2 MiB")
        );
    }

    #[test]
    fn a_link_is_read_as_the_file_that_it_leads_to() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("text"), directory.path().join("link"));
        fs::write(&path, "a").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read_text(&link, 1).unwrap(), "a");
        assert_eq!(open_itself(&path).unwrap().metadata().unwrap().len(), 1);
        let error = open_itself(&link).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (io::ErrorKind::InvalidInput, "it is a symbolic link, not a regular file")
        );
    }

    #[test]
    fn a_file_that_is_not_regular_is_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for (path, what) in [
            (pipe.as_path(), "it is a pipe, a socket or a device, not a regular file"),
            (Path::new("/dev/zero"), "it is a pipe, a socket or a device, not a regular file"),
            (directory.path(), "it is a directory, not a regular file"),
        ] {
            assert_eq!(read_text(path, 1).unwrap_err().to_string(), what);
            assert_eq!(open_itself(path).unwrap_err().to_string(), what);
        }
    }
}
