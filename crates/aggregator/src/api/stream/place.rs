//! The identifiers of events, by which a client resumes.
//!
//! Of a reader of one namespace they are sealed: their numbers would count the events of other tenants.

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::hex;

/// Writes and reads identifiers. One of another process is not read.
pub(super) struct Places {
    key: LessSafeKey,
    random: SystemRandom,
    /// Tells this process from others.
    epoch: u64,
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Places")
    }
}

impl Places {
    /// `None` if the system gives no random numbers.
    pub(super) fn new() -> Option<Self> {
        let random = SystemRandom::new();
        let (mut key, mut epoch) = ([0; 16], [0; 8]);
        random.fill(&mut key).ok()?;
        random.fill(&mut epoch).ok()?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).ok()?);
        Some(Self { key, random, epoch: u64::from_be_bytes(epoch) })
    }

    /// The identifier of the event with this number, for a reader of `namespace` or of all.
    pub(super) fn write(&self, number: u64, namespace: Option<&str>) -> Option<String> {
        let Some(namespace) = namespace else { return Some(format!("{:016x}-{number}", self.epoch)) };
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut sealed = number.to_be_bytes().to_vec();
        let of_namespace = Aad::from(namespace.as_bytes());
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), of_namespace, &mut sealed)
            .ok()?;
        Some(hex::encode(&[&nonce[..], &sealed].concat()))
    }

    /// The number in an identifier; `None` if this process has not written it for such a reader.
    pub(super) fn read(&self, identifier: &str, namespace: Option<&str>) -> Option<u64> {
        let Some(namespace) = namespace else {
            let (epoch, number) = identifier.split_once('-')?;
            return number.parse().ok().filter(|_| epoch == format!("{:016x}", self.epoch));
        };
        let bytes = hex::decode(identifier)?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let opened = self.key.open_in_place(nonce, Aad::from(namespace.as_bytes()), &mut sealed).ok()?;
        Some(u64::from_be_bytes(opened.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_read_by_its_own_process_for_its_own_reader_only() {
        let (own, other) = (Places::new().unwrap(), Places::new().unwrap());
        for namespace in [None, Some("ns-a")] {
            let identifier = own.write(7, namespace).unwrap();
            assert_eq!(own.read(&identifier, namespace), Some(7));
            assert_eq!(other.read(&identifier, namespace), None);
            assert_eq!(own.read(&identifier, Some("ns-b")), None);
        }
        // It tells nothing of the number: the same event has another one each time.
        let [one, two] = [(); 2].map(|()| own.write(7, Some("ns-a")).unwrap());
        assert!(one != two && one.len() == two.len());
        for bad in ["", "-", "7", "zz", "0", &one[1..], &one[2..], &"0".repeat(72), "é"] {
            assert_eq!((own.read(bad, None), own.read(bad, Some("ns-a"))), (None, None), "{bad}");
        }
    }
}
