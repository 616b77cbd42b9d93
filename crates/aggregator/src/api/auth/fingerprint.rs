//! Fingerprints of secrets: they are stored and compared instead of the secrets.

use std::fmt;

use ring::hmac;
use ring::rand::SystemRandom;

use super::AuthError;

/// Stands for a secret, within the life of this process.
///
/// The time of a comparison reveals something of the fingerprints, but nothing of the secrets: without the key, the
/// fingerprint of a guess is not known.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint([u8; 32]);

/// Makes fingerprints, by a key of its own.
pub(super) struct Fingerprints(hmac::Key);

impl fmt::Debug for Fingerprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprints")
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint")
    }
}

impl From<hmac::Tag> for Fingerprint {
    fn from(tag: hmac::Tag) -> Self {
        let mut bytes = [0; 32];
        for (byte, of_tag) in bytes.iter_mut().zip(tag.as_ref()) {
            *byte = *of_tag;
        }
        Self(bytes)
    }
}

impl Fingerprints {
    pub(super) fn new() -> Result<Self, AuthError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        key.map(Self).map_err(|_| AuthError::NoRandomNumbers)
    }

    pub(super) fn of(&self, secret: &[u8]) -> Fingerprint {
        Fingerprint::from(hmac::sign(&self.0, secret))
    }

    /// Of several texts in their order. Other texts have another fingerprint, even if they are the same one after the other.
    pub(super) fn of_all<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Fingerprint {
        let mut context = hmac::Context::with_key(&self.0);
        for text in texts {
            context.update(&text.len().to_be_bytes());
            context.update(text.as_bytes());
        }
        Fingerprint::from(context.sign())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_one_fingerprint_and_no_other_process_has_the_same() {
        let (one, other) = (Fingerprints::new().unwrap(), Fingerprints::new().unwrap());
        assert_eq!(one.of(b"secret"), one.of(b"secret"));
        assert_ne!(one.of(b"secret"), one.of(b"secret2"));
        assert_ne!(one.of(b"secret"), other.of(b"secret"));
        assert_ne!(one.of(b"secret").0[16..], [0; 16]);
        assert_eq!(one.of_all(["a", "bc"]), one.of_all(["a", "bc"]));
        assert_ne!(one.of_all(["a", "bc"]), one.of_all(["ab", "c"]));
        assert_ne!(one.of_all(["a", ""]), one.of_all(["a"]));
    }
}
