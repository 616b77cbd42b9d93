//! Reads files of the proc file system.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Reads at most `limit` bytes of the file at `path`.
pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// As Go's `filepath.Base`, but for the empty path.
pub(super) fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() && !path.is_empty() {
        return "/";
    }
    trimmed.rsplit_once('/').map_or(trimmed, |(_, base)| base)
}

/// Text with U+FFFD for each byte that is not UTF-8.
pub(super) fn decode(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| {
        let mut text = String::new();
        for chunk in error.as_bytes().utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
        }
        text
    })
}

/// The number that a directory of the proc file system has for a name.
pub(super) fn number(name: &OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

/// Whether the error means that the process or its file no longer exists.
pub(super) fn has_ended(error: &io::Error) -> bool {
    const NO_SUCH_PROCESS: i32 = 3;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(NO_SUCH_PROCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_byte_is_one_replacement_character() {
        assert_eq!(decode(b"a\xe2\x82b\xff\xff".to_vec()), "a\u{fffd}\u{fffd}b\u{fffd}\u{fffd}");
    }
}
