//! Cursors: the place of the last entry of a page. The next page begins after it, whichever entries have come or gone meanwhile.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::hex;

/// The place as JSON, in hexadecimal.
pub(super) fn write(place: &impl Serialize) -> serde_json::Result<String> {
    Ok(hex::encode(&serde_json::to_vec(place)?))
}

/// `None` if `write` has not written it.
pub(super) fn read<C: Serialize + DeserializeOwned>(cursor: &str) -> Option<C> {
    let json = hex::decode(cursor)?;
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
        let hex = |text: &str| hex::encode(text.as_bytes());
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
