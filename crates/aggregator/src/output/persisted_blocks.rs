//! Compares the persisted Incidents with what our files list, if one of the files is damaged.

use std::collections::BTreeSet;

use procscan_core::names::{App, Text, is_dns_label};

use crate::decided::PersistedBlocks;

/// The listed Apps without an Incident, and the listed Services that no Incident names, as texts in order. Services in the
/// namespace of such an App are left out.
pub(super) fn lacks(persisted: &PersistedBlocks, listed: &ListedBlocks) -> Vec<String> {
    let apps: Vec<&App> = listed.apps.difference(&persisted.apps).collect();
    let is_named = |namespace: &str| apps.iter().any(|app| *app.namespace == *namespace);
    let services = listed.services.difference(&persisted.services).filter(|service| {
        let namespace = service.split('.').nth(1).unwrap_or_default();
        !persisted.many.contains(namespace) && !is_named(namespace)
    });
    let services = services.map(|service| format!("Service {service}"));
    apps.iter().map(ToString::to_string).chain(services).collect()
}

/// The Apps and the closed Services that can be read in the text of a file of ours, however damaged it is.
#[derive(Debug, Default)]
pub(super) struct ListedBlocks {
    apps: BTreeSet<App>,
    services: BTreeSet<Text>,
}

impl ListedBlocks {
    /// Adds what can be read in `text`, line by line. We write each part of an App and each Service on its own line. A tenant's
    /// text stands after a key, and is quoted if it contains `: `. A line `type:` of a kind whose content has another form is
    /// taken for the type of an App.
    pub(super) fn read(&mut self, text: &str) {
        // A last line without its end may be cut off, and a part of a name looks like another name.
        let whole_lines = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let mut entry = ListEntry::default();
        // A plain text may end with a blank that is not ASCII.
        for line in whole_lines.lines().map(str::trim_ascii) {
            let item = line.strip_prefix("- ");
            if item.is_some() {
                entry = ListEntry::default();
            }
            let line = item.unwrap_or(line);
            match line.split_once(": ") {
                Some((key, value)) => self.apps.extend(entry.read(key, value)),
                None if item.is_some() => self.services.extend(text_of(line).as_deref().and_then(service)),
                None => {}
            }
        }
    }

    /// Whether nothing can be read.
    pub(super) fn is_empty(&self) -> bool {
        self.apps.is_empty() && self.services.is_empty()
    }
}

/// One entry of the list of violations, as far as it has been read.
#[derive(Default)]
struct ListEntry {
    name: Option<String>,
    namespace: Option<String>,
}

impl ListEntry {
    /// Reads one part of it. Returns the App when it is complete: its type is written last.
    fn read(&mut self, key: &str, value: &str) -> Option<App> {
        match key {
            "name" => self.name = text_of(value),
            "namespace" => self.namespace = text_of(value),
            "type" => {
                return Some(App::new(self.namespace.as_deref()?, text_of(value)?, self.name.as_deref()?));
            }
            _ => {}
        }
        None
    }
}

/// The text that a YAML scalar stands for.
fn text_of(scalar: &str) -> Option<String> {
    serde_saphyr::from_str(scalar).ok()
}

/// The Service of a host name, `service.namespace.svc` and the cluster's domain, whichever that was.
fn service(host: &str) -> Option<Text> {
    let mut parts = host.split('.');
    let (name, namespace) = (parts.next()?, parts.next()?);
    let is_service = parts.next()? == "svc" && is_dns_label(name) && is_dns_label(namespace);
    is_service.then(|| format!("{name}.{namespace}.svc").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_cut_anywhere_lists_nothing_that_the_whole_one_does_not_list() {
        let text = "spec:\n  defaultConfig:\n    violations:\n    - pod: web-0\n      namespace: ns-a\n      process: xmrig\n      \
            name: web\n      type: app\n    - pod: dev-0\n      namespace: ns-b\n      process: 'a: b'\n      name: 'on'\n      \
            type: devbox\n  matchRules:\n  - service:\n    - web.ns-a.svc.cluster.local\n    - dev.ns-b.svc.cluster.local\n";
        let listed = |text: &str| {
            let mut listed = ListedBlocks::default();
            listed.read(text);
            listed
        };
        let whole = listed(text);
        assert_eq!((whole.apps.len(), whole.services.len()), (2, 2), "{whole:?}");
        for end in 0..text.len() {
            let cut = listed(&text[..end]);
            assert!(
                cut.apps.is_subset(&whole.apps) && cut.services.is_subset(&whole.services),
                "{end}: {cut:?}"
            );
        }
    }
}
