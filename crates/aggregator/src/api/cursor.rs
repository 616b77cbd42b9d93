//! Cursors: the place of the last entry of a page. The next page begins after it, whichever entries have come or gone meanwhile.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The place as JSON, in hexadecimal, which needs no escaping in a URL.
pub(super) fn write(place: &impl Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_vec(place)?;
    let digits = json.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    Ok(digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect())
}

/// `None` if `write` has not written it.
pub(super) fn read<C: Serialize + DeserializeOwned>(cursor: &str) -> Option<C> {
    let (pairs, []) = cursor.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| if byte.is_ascii_uppercase() { None } else { char::from(byte).to_digit(16) };
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok();
    let json: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
    let place: C = serde_json::from_slice(&json).ok()?;
    // One place has one name.
    (serde_json::to_vec(&place).ok()? == json).then_some(place)
}

#[cfg(test)]
mod tests {
    use procscan_core::names::Key;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else_is() {
        for process in ["xmrig", "a b\0ä…", "\u{1b}", ""] {
            let key = Key::new("ns-a", "p.0", process);
            let cursor = write(&key).unwrap();
            assert!(cursor.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            assert_eq!(read(&cursor), Some(key));
            assert_eq!(read::<Key>(&cursor[1..]), None);
            assert_eq!(read::<Key>(&cursor.to_uppercase()), None);
        }
        let hex = |text: &str| text.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        assert_eq!(read(&hex(r#"["a",7]"#)), Some(("a".to_owned(), 7)));
        for bad in ["", "{}", r#"["a"]"#, r#"["a", 7]"#, r#"["a",07]"#, r#"["a",7"#, r#"["\u0061",7]"#] {
            assert_eq!(read::<(String, u8)>(&hex(bad)), None, "{bad:?}");
        }
        // Not UTF-8, not hexadecimal, not ASCII.
        for bad in ["22ff22", "226g22", "22+822", "2261ä2"] {
            assert_eq!(read::<String>(bad), None, "{bad}");
        }
    }
}
