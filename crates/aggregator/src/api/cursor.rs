//! Where a page ended: the key that was shown last. The next one begins after it, whatever has come or gone meanwhile.

use procscan_core::names::{Key, KeyParts, is_dns_label, is_dns_subdomain};

/// In hexadecimal, which needs no escaping in a URL: namespace, Pod and process, with a NUL in between, that neither of the first
/// two can have.
pub(super) fn write(key: &Key) -> String {
    let KeyParts { namespace, pod, process } = &**key;
    let bytes = [namespace, "\0", pod, "\0", process].map(str::as_bytes).concat();
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}

/// Nothing if it isn't what `write` has written.
pub(super) fn read(cursor: &str) -> Option<Key> {
    let (pairs, []) = cursor.as_bytes().as_chunks::<2>() else { return None };
    let digit = |byte: u8| if byte.is_ascii_uppercase() { None } else { char::from(byte).to_digit(16) };
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok();
    let text = String::from_utf8(pairs.iter().map(byte).collect::<Option<_>>()?).ok()?;
    let mut parts = text.splitn(3, '\0');
    let (namespace, pod, process) = (parts.next()?, parts.next()?, parts.next()?);
    let is_key = is_dns_label(namespace) && is_dns_subdomain(pod) && !process.is_empty();
    is_key.then(|| Key::new(namespace, pod, process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else_is() {
        for process in ["xmrig", "a b\0ä…", "\u{1b}"] {
            let key = Key::new("ns-a", "p.0", process);
            let cursor = write(&key);
            assert!(cursor.bytes().all(|byte| byte.is_ascii_alphanumeric()));
            assert_eq!(read(&cursor), Some(key));
            assert_eq!(read(&cursor[1..]), None);
        }
        let hex = |text: &str| text.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        assert_eq!(read(&hex("n\0p\0x")), Some(Key::new("n", "p", "x")));
        for bad in ["", "n", "n\0p", "n\0p\0", "\0p\0x", "N\0p\0x", "n\0P\0x", "n\0\0x"] {
            assert_eq!(read(&hex(bad)), None, "{bad:?}");
        }
        // Not UTF-8, not lower-case, not hexadecimal, not ASCII.
        for bad in ["6e007000ff", "6E00700078", "6e0070007g", "6e007000+8", "6e007000ä"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
