//! The names of nodes, Pods, violations and Apps.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shared immutable text, cloned by reference count, because the same names appear in ledger, snapshot and plan.
pub type Text = Arc<str>;

/// The name of a node. Names identify nodes, because an agent's Pod may be replaced and get another address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct NodeName(pub Text);

impl NodeName {
    /// A node's name from its text.
    pub fn new(name: impl Into<Text>) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A Pod, by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodRef {
    /// The Pod's namespace.
    pub namespace: Text,
    /// The Pod's name.
    pub pod: Text,
}

/// Identifies a violation by the same triple that the agent uses as its key.
///
/// Shared like a [`Text`], because ledger, snapshot, incident and plan each have it several times.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Key(Arc<KeyParts>);

/// The parts of a [`Key`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct KeyParts {
    /// The Pod's namespace, a DNS label.
    pub namespace: Text,
    /// The Pod's name, a DNS subdomain.
    pub pod: Text,
    /// The process name. The tenant can choose any text.
    pub process: Text,
}

impl Key {
    /// A key from its three parts.
    pub fn new(namespace: impl Into<Text>, pod: impl Into<Text>, process: impl Into<Text>) -> Self {
        Self(Arc::new(KeyParts { namespace: namespace.into(), pod: pod.into(), process: process.into() }))
    }

    /// The same as a view.
    pub(crate) fn view(&self) -> KeyRef<'_> {
        KeyRef { namespace: &self.namespace, pod: &self.pod, process: &self.process }
    }

    /// The Pod that this key's process runs in.
    pub fn pod_ref(&self) -> PodRef {
        PodRef { namespace: self.namespace.clone(), pod: self.pod.clone() }
    }
}

/// A view of a [`Key`], wherever its parts are. Ordered like keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct KeyRef<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
    pub process: &'a str,
}

/// The unit that is blocked: one application of one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct App(Arc<AppParts>);

/// The parts of an [`App`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct AppParts {
    /// The tenant's namespace.
    pub namespace: Text,
    /// `app`, `devbox`, or any other text from an agent.
    #[serde(rename = "type")]
    pub kind: Text,
    /// The application's name within its namespace and kind.
    pub name: Text,
}

impl App {
    /// An App from its three parts.
    pub fn new(namespace: impl Into<Text>, kind: impl Into<Text>, name: impl Into<Text>) -> Self {
        Self(Arc::new(AppParts { namespace: namespace.into(), kind: kind.into(), name: name.into() }))
    }
}

/// Implements [`Deref`] to the parts, and their order. Shared parts are equal without a comparison, because most keys
/// in large trees are of one namespace.
macro_rules! shared {
    ($name:ident, $parts:ident: $($part:ident),+) => {
        impl Deref for $name {
            type Target = $parts;

            fn deref(&self) -> &$parts {
                &self.0
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
            }
        }

        impl PartialOrd for $parts {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $parts {
            fn cmp(&self, other: &Self) -> Ordering {
                Ordering::Equal$(.then_with(|| compare(&self.$part, &other.$part)))+
            }
        }
    };
}

shared!(Key, KeyParts: namespace, pod, process);
shared!(App, AppParts: namespace, kind, name);

fn compare(one: &Text, other: &Text) -> Ordering {
    if Arc::ptr_eq(one, other) { Ordering::Equal } else { one.cmp(other) }
}

/// `namespace/kind/name`, with all unprintable characters escaped, because a tenant may choose the name.
impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}/{}",
            self.namespace.escape_debug(),
            self.kind.escape_debug(),
            self.name.escape_debug()
        )
    }
}

/// The part of `text` that can be in an object's name: at most 40 letters, digits and hyphens. It ends with a hyphen
/// unless it is empty. It is not unique, so a hash has to follow.
pub(crate) fn readable(text: &str) -> String {
    let valid = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let readable: String = text.chars().take(40).map(valid).collect();
    let readable = readable.trim_matches('-');
    if readable.is_empty() { String::new() } else { format!("{readable}-") }
}

/// The names that [`is_dns_label`] allows, as a text for people.
pub const LABEL: &str = "a Kubernetes name: a-z, 0-9 and -, 63 characters at most";
/// The names that [`is_dns_subdomain`] allows, as a text for people.
pub const SUBDOMAIN: &str = "a Kubernetes name: a-z, 0-9, - and ., 253 characters at most";

/// Whether `name` is a DNS label (RFC 1123): 1 to 63 of `a-z`, `0-9`, `-`, not at either end.
///
/// Kubernetes demands this of namespaces and of Services.
pub fn is_dns_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && matches!(bytes.first(), Some(b'a'..=b'z' | b'0'..=b'9'))
        && matches!(bytes.last(), Some(b'a'..=b'z' | b'0'..=b'9'))
        && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// Whether `name` is a DNS subdomain (RFC 1123): labels joined by dots, 253 characters at most.
///
/// Kubernetes demands this of Pods and of most other objects.
pub fn is_dns_subdomain(name: &str) -> bool {
    // A Pod's label may be longer than 63 as long as the whole fits, hence no check of each label's length.
    name.len() <= 253
        && name.split('.').all(|label| {
            let bytes = label.as_bytes();
            matches!(bytes.first(), Some(b'a'..=b'z' | b'0'..=b'9'))
                && matches!(bytes.last(), Some(b'a'..=b'z' | b'0'..=b'9'))
                && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_names_are_those_that_kubernetes_accepts() {
        for good in ["a", "ns-user1", "0-0", &"x".repeat(63)] {
            assert!(is_dns_label(good), "{good}");
            assert!(is_dns_subdomain(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a b", "ä", "a\n", &"x".repeat(64)] {
            assert!(!is_dns_label(bad), "{bad:?}");
        }
        assert!(is_dns_subdomain("web-0.a.b"));
        assert!(is_dns_subdomain(&"x".repeat(253)));
        for bad in ["", ".", "a..b", ".a", "a.", "../etc", &"x".repeat(254)] {
            assert!(!is_dns_subdomain(bad), "{bad:?}");
        }
    }

    #[test]
    fn keys_and_apps_are_ordered_by_their_parts_whether_these_are_shared_or_not() {
        let texts: Vec<Text> = ["", "a", "ab", "b"].map(Text::from).into();
        let all = || texts.iter().flat_map(|a| texts.iter().map(move |b| (a, b)));
        let triples: Vec<[&Text; 3]> =
            all().flat_map(|(a, b)| texts.iter().map(move |c| [a, b, c])).collect();
        for one in &triples {
            for other in &triples {
                let expected = one.cmp(other);
                let key = |[a, b, c]: [&Text; 3]| Key::new(a.clone(), b.clone(), c.clone());
                let app = |[a, b, c]: [&Text; 3]| App::new(a.clone(), b.clone(), c.clone());
                // The same texts, but not shared.
                let copy = Key::new(&**other[0], &**other[1], &**other[2]);
                assert_eq!(key(*one).cmp(&key(*other)), expected);
                assert_eq!(key(*one).cmp(&copy), expected);
                assert_eq!(key(*one).view().cmp(&copy.view()), expected, "as views are");
                assert_eq!(app(*one).cmp(&app(*other)), expected);
            }
        }
    }

    #[test]
    fn an_app_with_terminal_escapes_prints_harmlessly() {
        assert_eq!(App::new("ns-a", "app", "x\u{1b}[31m\n").to_string(), "ns-a/app/x\\u{1b}[31m\\n");
    }
}
