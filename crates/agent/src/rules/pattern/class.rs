//! Sets of characters: in brackets, and those with names.

use std::fmt::Write as _;

use regex::Regex;

use super::{Flags, PatternError, cursor::Cursor, syntax};

/// Matches nothing. It stands for the halves of surrogate pairs, which no text has.
pub(super) const NOTHING: &str = r"[^\x{0}-\x{10ffff}]";

/// Go's own sets have ASCII characters only; `\s` lacks the vertical tab that `[:space:]` has.
const ESCAPED: [(&str, &str); 3] = [("d", "0-9"), ("s", r"\x{9}\x{a}\x{c}\x{d}\x{20}"), ("w", "0-9A-Za-z_")];
const POSIX: [(&str, &str); 14] = [
    ("alnum", "0-9A-Za-z"),
    ("alpha", "A-Za-z"),
    ("ascii", r"\x{0}-\x{7f}"),
    ("blank", r"\x{9}\x{20}"),
    ("cntrl", r"\x{0}-\x{1f}\x{7f}"),
    ("digit", "0-9"),
    ("graph", r"\x{21}-\x{7e}"),
    ("lower", "a-z"),
    ("print", r"\x{20}-\x{7e}"),
    ("punct", r"\x{21}-\x{2f}\x{3a}-\x{40}\x{5b}-\x{60}\x{7b}-\x{7e}"),
    ("space", r"\x{9}-\x{d}\x{20}"),
    ("upper", "A-Z"),
    ("word", "0-9A-Za-z_"),
    ("xdigit", "0-9A-Fa-f"),
];

fn folded(class: String, flags: Flags) -> String {
    if flags.folds { format!("(?i:{class})") } else { class }
}

/// A set that begins with a backslash, such as `\d` or `\p{Greek}`; `None` if none begins here.
pub(super) fn named(rest: &mut Cursor<'_>, flags: Flags) -> Result<Option<String>, PatternError> {
    Ok(unfolded(rest)?.map(|class| folded(class, flags)))
}

fn unfolded(rest: &mut Cursor<'_>) -> Result<Option<String>, PatternError> {
    match perl(rest) {
        Some(class) => Ok(Some(class)),
        None => unicode(rest),
    }
}

/// A set in brackets.
pub(super) fn bracketed(rest: &mut Cursor<'_>, flags: Flags) -> Result<String, PatternError> {
    let whole = rest.text();
    rest.eat("[");
    let is_negated = rest.eat("^");
    let mut items = String::new();
    // A bracket that closes stands for itself if it is the first.
    let mut is_first = true;
    while is_first || !rest.starts_with("]") {
        if rest.peek().is_none() {
            return syntax("a bracket that is not closed", whole);
        }
        is_first = false;
        if let Some(class) = posix(rest)? {
            items.push_str(&class);
        } else if let Some(class) = unfolded(rest)? {
            items.push_str(&class);
        } else {
            range(rest, whole, &mut items)?;
        }
    }
    rest.eat("]");
    if items.is_empty() {
        items.push_str(NOTHING);
    }
    Ok(folded(format!("[{}{items}]", if is_negated { "^" } else { "" }), flags))
}

/// One character, or all from one to another.
fn range(rest: &mut Cursor<'_>, whole: &str, items: &mut String) -> Result<(), PatternError> {
    let from_here = rest.text();
    let low = member(rest, whole)?;
    let mut high = low;
    let is_range = rest.starts_with("-") && !rest.starts_with("-]") && rest.text() != "-";
    if is_range {
        rest.eat("-");
        high = member(rest, whole)?;
    }
    if high < low {
        let part = from_here.strip_suffix(rest.text()).unwrap_or(from_here);
        return syntax("a range whose end is before its beginning", part);
    }
    // The halves of surrogate pairs are in no text, and the `regex` crate does not take them.
    for (low, high) in [(low, high.min(0xd7ff)), (low.max(0xe000), high)] {
        if low <= high {
            // Writing into a string does not fail.
            let _ = write!(items, r"\x{{{low:x}}}-\x{{{high:x}}}");
        }
    }
    Ok(())
}

fn member(rest: &mut Cursor<'_>, whole: &str) -> Result<u32, PatternError> {
    match rest.peek() {
        None => syntax("a bracket that is not closed", whole),
        Some('\\') => rest.escape(),
        Some(plain) => {
            rest.bump();
            Ok(u32::from(plain))
        }
    }
}

/// `[:name:]` or `[:^name:]`, inside of brackets.
fn posix(rest: &mut Cursor<'_>) -> Result<Option<String>, PatternError> {
    let Some((name, _)) = rest.text().strip_prefix("[:").and_then(|rest| rest.split_once(":]")) else {
        return Ok(None);
    };
    let (is_negated, plain) = name.strip_prefix('^').map_or((false, name), |plain| (true, plain));
    let Some((_, members)) = POSIX.iter().find(|(known, _)| *known == plain) else {
        return syntax("a set of characters that Go does not know", format!("[:{name}:]"));
    };
    rest.split_at(":]");
    Ok(Some(format!("[{}{members}]", if is_negated { "^" } else { "" })))
}

/// `\d`, `\s`, `\w`, and their complements `\D`, `\S`, `\W`.
fn perl(rest: &mut Cursor<'_>) -> Option<String> {
    ESCAPED.iter().find_map(|(name, members)| {
        if rest.eat(&format!("\\{name}")) {
            return Some(format!("[{members}]"));
        }
        rest.eat(&format!("\\{}", name.to_ascii_uppercase())).then(|| format!("[^{members}]"))
    })
}

/// `\pL`, `\p{Greek}`, and their complements `\PL`, `\P{Greek}`, `\p{^Greek}`.
fn unicode(rest: &mut Cursor<'_>) -> Result<Option<String>, PatternError> {
    let whole = rest.text();
    let mut is_negated = rest.starts_with(r"\P");
    if !rest.eat(r"\p") && !rest.eat(r"\P") {
        return Ok(None);
    }
    let (mut name, mut is_named) = (rest.text(), false);
    if rest.eat("{") {
        (name, is_named) = rest.split_at("}");
    } else if let Some(letter) = rest.bump() {
        name = name.get(..letter.len_utf8()).unwrap_or_default();
        is_named = true;
    }
    if let Some(plain) = name.strip_prefix('^') {
        name = plain;
        is_negated = !is_negated;
    }
    let Some(set) = set(name).filter(|_| is_named) else {
        let part = whole.strip_suffix(rest.text()).unwrap_or(whole);
        return syntax("a set of Unicode characters that is not known", part);
    };
    Ok(Some(format!("[{}{set}]", if is_negated { "^" } else { "" })))
}

/// The form of a general category or a script for the `regex` crate. It takes other properties in the same form, but Go does
/// not.
fn set(name: &str) -> Option<String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_- ".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_name) {
        return None;
    }
    let canonical: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    match canonical.as_str() {
        "any" | "assigned" | "ascii" => return Some(format!(r"\p{{{canonical}}}")),
        "cs" | "surrogate" => return Some(NOTHING.to_owned()),
        _ => {}
    }
    let sets = ["gc", "sc"].map(|property| format!(r"\p{{{property}={name}}}"));
    sets.into_iter().find(|set| Regex::new(set).is_ok())
}
