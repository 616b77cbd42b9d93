//! An object before it is made.
//!
//! Making an object costs much more than knowing that it would be the same again: an output that remembers what it has made an
//! object from makes only those that are new.

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};

use super::{Kind, Object, WritePolicy};

/// What an object will be called, and how to make it.
pub struct Draft<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: Cow<'a, str>,
    /// Its name.
    pub name: String,
    /// How an output looks after it.
    pub write_policy: WritePolicy,
    recipe: Box<dyn Recipe + 'a>,
}

trait Recipe {
    fn hash(&self, hasher: &mut dyn Hasher);
    fn make(&self) -> Object;
}

struct From<T, F> {
    inputs: T,
    make: F,
}

impl<T: Hash, F: Fn(&T) -> Object> Recipe for From<T, F> {
    fn hash(&self, mut hasher: &mut dyn Hasher) {
        self.inputs.hash(&mut hasher);
    }

    fn make(&self) -> Object {
        (self.make)(&self.inputs)
    }
}

impl<'a> Draft<'a> {
    /// The draft of an object that is made from `inputs` and the settings, and from nothing else.
    pub fn new<T: Hash + 'a>(
        kind: Kind,
        namespace: impl Into<Cow<'a, str>>,
        name: String,
        upkeep: WritePolicy,
        inputs: T,
        make: impl Fn(&T) -> Object + 'a,
    ) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name,
            write_policy: upkeep,
            recipe: Box::new(From { inputs, make }),
        }
    }

    /// Makes the object.
    pub fn object(&self) -> Object {
        self.recipe.make()
    }

    /// A hash that distinguishes its inputs from others, as long as the settings are the same. Tenants choose some of the inputs, so
    /// `hashing` has to be a secret: a tenant must not find two inputs with the same hash.
    pub fn fingerprint(&self, hashing: &impl BuildHasher) -> u64 {
        let mut hasher = hashing.build_hasher();
        self.recipe.hash(&mut hasher);
        hasher.finish()
    }
}

impl std::convert::From<Object> for Draft<'_> {
    /// An object that is made already.
    fn from(object: Object) -> Self {
        let (kind, upkeep) = (object.kind, object.write_policy);
        let (namespace, name) = (object.metadata.namespace.clone(), object.metadata.name.clone());
        let text = serde_json::to_string(&object).unwrap_or_default();
        Self::new(kind, namespace, name, upkeep, text, move |_| object.clone())
    }
}

impl fmt::Debug for Draft<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}
