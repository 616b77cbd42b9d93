//! What is known of the files without reading them again.
//!
//! Every pass compares all files with the plan, and nearly always all of them are as planned. So a file is read only if its
//! stamp has changed, and an object is rendered only if its inputs have changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::Metadata;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;

use jiff::{SignedDuration, Timestamp};
use procscan_core::resources::Draft;
use procscan_core::time::CompactTimestamp;

/// How long after its last change a file's stamp may still be that of another change: file systems count time in steps.
const STEP: SignedDuration = SignedDuration::from_secs(1);

/// A hash by this process's own secret. Without zero, so that an option of one takes no more.
pub(super) type Hash = NonZeroU64;

fn nonzero(hash: u64) -> Hash {
    Hash::new(hash).unwrap_or(Hash::MIN)
}

/// What changes with each change of a file. No program can set the time of the last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    changed: CompactTimestamp,
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        let nanos = i32::try_from(metadata.ctime_nsec()).unwrap_or(0);
        let changed = Timestamp::new(metadata.ctime(), nanos).unwrap_or(Timestamp::MAX).into();
        Self { inode: metadata.ino(), size: metadata.size(), changed }
    }
}

impl Stamp {
    /// Whether a change after now would give it another stamp.
    fn is_settled(self) -> bool {
        Timestamp::now().duration_since(self.changed.get()) > STEP
    }
}

/// What is known of a file. There is one for each notified tenant, so it is small.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Nothing while it could still be that of another content.
    stamp: Option<Stamp>,
    /// The hash of its text; nothing if it is not ours.
    pub(super) text: Option<Hash>,
    /// The fingerprint of what its text says.
    pub(super) from: Option<Hash>,
    /// The pass that last wanted it to be there.
    pub(super) wanted: u32,
    /// The look that last saw it.
    pub(super) seen: u32,
}

impl Known {
    /// A file that is not ours.
    pub(super) fn foreign(stamp: Stamp) -> Self {
        Self { text: None, ..Self::new(stamp, Hash::MIN) }
    }

    /// A file that can't be read, so it is read again at the next look.
    pub(super) fn unread() -> Self {
        Self { stamp: None, text: None, from: None, wanted: 0, seen: 0 }
    }

    /// A file of ours with a text of this hash.
    pub(super) fn new(stamp: Stamp, text: Hash) -> Self {
        Self {
            stamp: Some(stamp).filter(|stamp| stamp.is_settled()),
            text: Some(text),
            from: None,
            wanted: 0,
            seen: 0,
        }
    }

    /// What its text says is known by this fingerprint.
    pub(super) fn made_from(self, fingerprint: Hash) -> Self {
        Self { from: Some(fingerprint), ..self }
    }

    /// Wanted by that pass.
    pub(super) fn wanted_in(self, pass: u32) -> Self {
        Self { wanted: pass, ..self }
    }

    /// Seen by that look.
    pub(super) fn seen_by(self, look: u32) -> Self {
        Self { seen: look, ..self }
    }

    /// Whether it is still what it was.
    pub(super) fn is_like(&self, stamp: Stamp) -> bool {
        self.stamp == Some(stamp)
    }

    /// As it is now: what is known of the same text is still true.
    pub(super) fn seen_again(self, before: Option<&Known>) -> Self {
        match before.filter(|before| before.text.is_some() && before.text == self.text) {
            Some(before) => Self { stamp: self.stamp, ..*before },
            None => self,
        }
    }
}

/// Every file of ours, and those of others that end like them, by name.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) files: HashMap<Box<str>, Known>,
    /// What the kinds of permanent objects note of the content of theirs, as far as it is known.
    pub(super) notes: HashMap<Box<str>, u8>,
    /// The files from which no program can read objects, by name, each with the reason.
    pub(super) junk: BTreeMap<Box<str>, String>,
    /// The files that are empty or cut short, by name.
    pub(super) cut: BTreeSet<Box<str>>,
    /// Every file has been looked at once.
    pub(super) has_looked: bool,
    /// The number of the last pass.
    pub(super) pass: u32,
    look: u32,
    /// The directory's own stamp when all files were last looked at; nothing while it could still be that of other files.
    place: Option<Stamp>,
    /// How often only the directory has been looked at since.
    directory_checks: u32,
    hashing: RandomState,
}

/// In how many passes in a row it is enough that the directory's stamp is as before. A file that is made, removed, renamed or
/// replaced changes that stamp. A file that is written in place changes its own stamp only.
const MAX_DIRECTORY_CHECKS: u32 = 4;

impl Memory {
    /// Forgets what each text was made from.
    pub(super) fn forget_drafts(&mut self) {
        self.files.values_mut().for_each(|known| known.from = None);
    }

    /// Whether no file has changed, by the directory's own stamp.
    pub(super) fn is_enough(&mut self, place: Stamp) -> bool {
        let is_enough = self.place == Some(place) && self.directory_checks < MAX_DIRECTORY_CHECKS;
        self.directory_checks = if is_enough { self.directory_checks + 1 } else { 0 };
        is_enough
    }

    /// All files have been looked at, after the directory.
    pub(super) fn has_seen_all(&mut self, place: Stamp) {
        self.place = Some(place).filter(|place| place.is_settled());
    }

    /// Notes what is wrong with a file, or that nothing is.
    pub(super) fn note_junk(&mut self, name: &str, problem: Option<String>) {
        match problem {
            Some(problem) => drop(self.junk.insert(name.into(), problem)),
            None => drop(self.junk.remove(name)),
        }
    }

    /// Notes whether a file is empty or cut short.
    pub(super) fn note_cut(&mut self, name: &str, is_cut: bool) {
        if is_cut {
            self.cut.insert(name.into());
        } else {
            self.cut.remove(name);
        }
    }

    pub(super) fn next_pass(&mut self) -> u32 {
        self.pass = self.pass.wrapping_add(1);
        self.pass
    }

    pub(super) fn next_look(&mut self) -> u32 {
        self.look = self.look.wrapping_add(1);
        self.look
    }

    pub(super) fn hash(&self, text: &str) -> Hash {
        nonzero(self.hashing.hash_one(text))
    }

    /// The fingerprint of the inputs of a draft.
    pub(super) fn fingerprint(&self, draft: &Draft<'_>) -> Hash {
        nonzero(draft.fingerprint(&self.hashing))
    }
}
