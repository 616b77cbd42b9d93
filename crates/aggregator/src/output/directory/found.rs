//! Whether a file whose name may be ours is ours, and whether it is whole.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use procscan_core::resources::Kind;
use serde_json::Value;

use super::HEADER;
use crate::plain_file;

/// How much of a file is read. Ours are far smaller: what is cut here was changed by another program.
const MAX_FILE: u64 = 16 << 20;

/// What a file is whose name may be ours.
pub(in crate::output) enum Found {
    /// A file that begins with our header, with its text.
    Ours(String),
    /// Empty, or only the beginning of our header: a file of ours that was cut short.
    Cut,
    /// A file of another program.
    Foreign,
    /// No regular file, for this reason. So it is not ours, and is not read.
    Junk(String),
    /// A file that the system can't read, for this reason. It may be ours.
    Unreadable(String),
}

/// What is wrong with a file of ours.
pub(super) enum Damage {
    /// It can't be read as an object of ours.
    Unparsable,
    /// See [`Found::Cut`].
    Cut,
}

impl Found {
    /// Reads the file at `path`; `None` if there is none. Links are not followed: what one leads to is not ours.
    pub(in crate::output) fn at(path: &Path) -> Option<Self> {
        match Self::read(path) {
            Ok(found) => Some(found),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Some(Self::Junk(e.to_string())),
            Err(e) => Some(Self::Unreadable(format!("it can't be read: {e}"))),
        }
    }

    fn read(path: &Path) -> io::Result<Self> {
        let mut file = plain_file::open_itself(path)?;
        let mut bytes = Vec::with_capacity(HEADER.len());
        Read::by_ref(&mut file).take(HEADER.len() as u64).read_to_end(&mut bytes)?;
        if bytes != HEADER.as_bytes() {
            return Ok(if HEADER.as_bytes().starts_with(&bytes) { Self::Cut } else { Self::Foreign });
        }
        file.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(Self::Ours(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Why no program can read objects from the file at `path`, if so. A link to a regular file is another program's.
    pub(super) fn problem(&self, path: &Path) -> Option<String> {
        match self {
            Self::Ours(_) | Self::Cut | Self::Foreign => None,
            Self::Junk(_) if fs::metadata(path).is_ok_and(|found| found.is_file()) => None,
            Self::Junk(problem) | Self::Unreadable(problem) => Some(problem.clone()),
        }
    }

    /// The text of a file that begins with our header; `None` for any other.
    pub(super) fn ours(self) -> Option<String> {
        match self {
            Self::Ours(text) => Some(text),
            Self::Cut | Self::Foreign | Self::Junk(_) | Self::Unreadable(_) => None,
        }
    }

    /// The text of a file that begins with our header, however damaged it is; `None` for any other.
    pub(in crate::output) fn text(&self) -> Option<&str> {
        match self {
            Self::Ours(text) => Some(text),
            Self::Cut | Self::Foreign | Self::Junk(_) | Self::Unreadable(_) => None,
        }
    }

    /// The object of a kind that blocks in a file of such a name, or what is wrong with it; `None` if it is another program's.
    pub(super) fn object(&self, kind: Kind) -> Result<Option<Value>, String> {
        match self {
            Self::Ours(text) => parse_whole(text, kind).map(Some),
            Self::Cut => Err("it is empty, or cut short".to_owned()),
            // A version before this one wrote through a link, so what it leads to may block Apps.
            Self::Junk(problem) | Self::Unreadable(problem) => Err(problem.clone()),
            Self::Foreign => Ok(None),
        }
    }
}

/// The object in a text.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    // Snippets of the file would make errors longer than one line.
    let options = serde_saphyr::options! { with_snippet: false };
    match serde_saphyr::from_str_with_options(text, options) {
        Ok(object @ Value::Object(_)) => Ok(object),
        Ok(_) => Err("there is no object in it".to_owned()),
        Err(e) => Err(e.to_string().split_whitespace().collect::<Vec<_>>().join(" ")),
    }
}

/// The object of a kind that blocks in a text. A text that was cut off after a whole line can be parsed, but lacks the part that
/// is written last.
pub(super) fn parse_whole(text: &str, kind: Kind) -> Result<Value, String> {
    let object = parse(text)?;
    let is_whole = |content| kind.blocking().is_none_or(|blocking| blocking.is_whole(content));
    match kind.content(&object) {
        Some(content) if is_whole(content) => Ok(object),
        _ => Err(format!("a part of its {} is missing", kind.content_field())),
    }
}
