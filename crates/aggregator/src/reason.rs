//! Checks the reasons that operators give. The command line, the HTTP API and the configuration accept the same
//! reasons.

/// The maximum number of characters of a reason, and of a part of an exemption. The CRDs have the same limit.
pub(crate) const MAX_REASON_CHARS: usize = 1024;

/// The text of errors for what is expected as a reason.
pub(crate) const ALLOWED: &str = "a text of up to 1024 characters that is not blank";

/// What is wrong with `text` as a reason; `None` if it is valid.
pub(crate) fn mistake(text: &str) -> Option<String> {
    if text.trim().is_empty() {
        return Some("an empty reason".to_owned());
    }
    let len = text.chars().count();
    (len > MAX_REASON_CHARS).then(|| format!("a reason of {len} characters"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_not_blank_and_has_a_bounded_number_of_characters() {
        for allowed in ["x", " x ", "\u{e9}".repeat(MAX_REASON_CHARS).as_str()] {
            assert_eq!(mistake(allowed), None, "{allowed}");
        }
        for blank in ["", " ", "\t\n", "\u{3000}"] {
            assert_eq!(mistake(blank).as_deref(), Some("an empty reason"), "{blank:?}");
        }
        assert_eq!(
            mistake(&"x".repeat(MAX_REASON_CHARS + 1)).as_deref(),
            Some("a reason of 1025 characters")
        );
        assert!(ALLOWED.contains(&MAX_REASON_CHARS.to_string()));
    }
}
