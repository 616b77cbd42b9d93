//! Reads the WasmPlugins back.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Gateway, MAX_SHARDS};
use crate::names::{App, Key, Text};
use crate::policy::{InheritedBlock, OnIngresses};

/// The number of the shard with that name, counted from 0; `None` if the name is not ours.
pub fn shard_index(name: &str, gateway: &Gateway) -> Option<usize> {
    let rest = name.strip_prefix(&*gateway.name)?;
    let index = if rest.is_empty() { 0 } else { rest.strip_prefix('-')?.parse().ok().filter(|n| *n > 0)? };
    // We do not write `-01`, and a huge number that was put there by hand must not make as many shards.
    let is_ours = rest.is_empty() || rest == format!("-{index}");
    (is_ours && index < MAX_SHARDS).then_some(index)
}

/// The shards that exist and must not be given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shards {
    /// The number of shards.
    pub count: usize,
    /// One of them lists Ingresses beside the Services.
    pub has_long_list: bool,
}

impl Shards {
    /// Adds the shard of that name. A name that is not ours adds nothing.
    pub(super) fn add(&mut self, name: &str, has_long_list: bool, gateway: &Gateway) {
        let Some(index) = shard_index(name, gateway) else { return };
        self.count = self.count.max(index + 1);
        self.has_long_list |= has_long_list;
    }
}

/// The shards among the objects, by their names.
pub fn existing<'a>(objects: impl IntoIterator<Item = (&'a str, &'a Value)>, gateway: &Gateway) -> Shards {
    let mut existing = Shards::default();
    for (name, object) in objects {
        existing.add(name, object.get("spec").is_some_and(has_long_list), gateway);
    }
    existing
}

/// Whether a `WasmPlugin`'s `spec` lists Ingresses as well as Services.
pub fn has_long_list(spec: &Value) -> bool {
    spec.pointer("/matchRules/1/ingress").is_some()
}

/// Whether a `WasmPlugin`'s `spec` has what each of ours has. A file that was cut off lacks the part that is written last.
pub(crate) fn is_whole(spec: &Value) -> bool {
    let has_rules = spec.get("matchRules").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
    has_rules && spec.get("url").is_some()
}

/// The Apps that the `WasmPlugins` block; a new leader inherits them.
///
/// The list for people names the Apps, and the rules name the closed Services. The object does not say which Service
/// belongs to which App, so every listed App of a namespace keeps all of the namespace's Services until its own are
/// known. Where the list for people was left out, each Service counts as an App of its own. The same applies to the
/// Ingresses of the objects that list the App.
pub fn blocked<'a>(objects: impl IntoIterator<Item = &'a Value>, gateway: &Gateway) -> Vec<InheritedBlock> {
    let mut found = Found::default();
    for (index, object) in objects.into_iter().enumerate() {
        found.take_in(index, object, &format!(".svc.{}", gateway.cluster_domain));
    }
    found.blocked()
}

/// The namespaces of the Apps that a `WasmPlugin`'s `spec` blocks. It reads them from the list for people and from the
/// rules, because that list may have been left out.
pub(crate) fn namespaces(spec: &Value, gateway: &Gateway) -> BTreeSet<Text> {
    let suffix = format!(".svc.{}", gateway.cluster_domain);
    let apps =
        list(spec, "/defaultConfig/violations").filter_map(|violation| violation.get("namespace")?.as_str());
    let services =
        list(spec, "/matchRules").flat_map(|rule| list(rule, "/service")).filter_map(Value::as_str);
    let of_services = services.filter_map(|host| Some(host.strip_suffix(&suffix)?.split_once('.')?.1));
    let ingresses =
        list(spec, "/matchRules").flat_map(|rule| list(rule, "/ingress")).filter_map(Value::as_str);
    let of_ingresses = ingresses.filter_map(|ingress| Some(ingress.split_once('/')?.0));
    apps.chain(of_services).chain(of_ingresses).map(Text::from).collect()
}

/// What several objects list.
#[derive(Default)]
struct Found {
    /// The Apps in the lists for people, with their accusations and the objects that list them.
    apps: BTreeMap<App, (BTreeSet<Key>, BTreeSet<usize>)>,
    /// The closed Services by namespace, with the objects that list them.
    services: BTreeMap<Text, BTreeMap<Text, BTreeSet<usize>>>,
    /// The Services that are closed on every route.
    plain: BTreeSet<Text>,
    /// The Services that count as Apps of their own, as namespace and name.
    alone: BTreeSet<(Text, Text)>,
    /// The Ingresses by namespace, each with the object that lists it.
    ingresses: BTreeMap<Text, BTreeSet<(usize, Text)>>,
}

impl Found {
    fn take_in(&mut self, index: usize, object: &Value, suffix: &str) {
        for violation in list(object, "/spec/defaultConfig/violations") {
            let part = |name| violation.get(name).and_then(Value::as_str).unwrap_or_default();
            let app = App::new(part("namespace"), part("type"), part("name"));
            let key = Key::new(part("namespace"), part("pod"), part("process"));
            let (accused, objects) = self.apps.entry(app).or_default();
            objects.insert(index);
            if !key.pod.is_empty() {
                accused.insert(key);
            }
        }
        let is_whole = object.pointer("/spec/defaultConfig/omitted").is_none();
        for rule in list(object, "/spec/matchRules") {
            let is_on_ingresses = rule.get("ingress").is_some();
            for service in list(rule, "/service") {
                let service = service.as_str().and_then(|service| service.strip_suffix(suffix));
                let Some((name, namespace)) = service.and_then(|service| service.split_once('.')) else {
                    continue;
                };
                let host: Text = format!("{name}.{namespace}.svc").into();
                if !is_on_ingresses {
                    self.plain.insert(host.clone());
                }
                let namespace: Text = namespace.into();
                self.services.entry(namespace.clone()).or_default().entry(host).or_default().insert(index);
                if !is_whole {
                    self.alone.insert((namespace, name.into()));
                }
            }
            for ingress in list(rule, "/ingress").filter_map(Value::as_str) {
                let Some((namespace, _)) = ingress.split_once('/') else { continue };
                self.ingresses.entry(namespace.into()).or_default().insert((index, ingress.into()));
            }
        }
    }

    fn blocked(mut self) -> Vec<InheritedBlock> {
        let listed: BTreeSet<&Text> = self.apps.keys().map(|app| &app.namespace).collect();
        for (namespace, hosts) in self.services.iter().filter(|(namespace, _)| !listed.contains(namespace)) {
            let name = |host: &Text| host.split('.').next().unwrap_or_default().into();
            self.alone.extend(hosts.keys().map(|host| (namespace.clone(), name(host))));
        }
        let alone = self.alone.iter().map(|(namespace, name)| {
            let host: Text = format!("{name}.{namespace}.svc").into();
            let objects = self.services.get(namespace).and_then(|hosts| hosts.get(&host));
            let on_ingresses = self.on_ingresses(namespace, [&host], |index| {
                objects.is_some_and(|in_it| in_it.contains(&index))
            });
            let app = App::new(namespace.clone(), "app", name.clone());
            InheritedBlock {
                app,
                notified_at: None,
                accused: BTreeSet::new(),
                is_guess: true,
                services: vec![host],
                on_ingresses,
            }
        });
        let of_list = self.apps.iter().map(|(app, (accused, objects))| {
            let of_namespace = self.services.get(&app.namespace);
            let services: Vec<Text> = of_namespace.into_iter().flat_map(BTreeMap::keys).cloned().collect();
            // The further objects of a very large App do not list it for people.
            let is_its = |index: usize| objects.contains(&index) || !self.lists(&app.namespace, index);
            let on_ingresses = self.on_ingresses(&app.namespace, &services, is_its);
            InheritedBlock {
                app: app.clone(),
                notified_at: None,
                accused: accused.clone(),
                // The block of a guessed App is listed without a Pod.
                is_guess: accused.is_empty(),
                services,
                on_ingresses,
            }
        });
        // What is known replaces what is guessed.
        let all = alone.chain(of_list).map(|inherited| (inherited.app.clone(), inherited));
        all.collect::<BTreeMap<App, InheritedBlock>>().into_values().collect()
    }

    /// Whether the object at `index` lists an App of `namespace`.
    fn lists(&self, namespace: &Text, index: usize) -> bool {
        let from = App::new(namespace.clone(), "", "");
        let of_namespace = self.apps.range(from..).take_while(|(app, _)| app.namespace == *namespace);
        of_namespace.into_iter().any(|(_, (_, objects))| objects.contains(&index))
    }

    /// Which of these Services are closed on Ingresses only, with the Ingresses of the namespace in the objects for
    /// which `is_its` returns true.
    fn on_ingresses<'t>(
        &self,
        namespace: &Text,
        services: impl IntoIterator<Item = &'t Text>,
        is_its: impl Fn(usize) -> bool,
    ) -> OnIngresses {
        let ingresses = self.ingresses.get(namespace).into_iter().flatten();
        OnIngresses {
            services: services
                .into_iter()
                .filter(|service| !self.plain.contains(*service))
                .cloned()
                .collect(),
            ingresses: ingresses.filter(|(index, _)| is_its(*index)).map(|(_, name)| name.clone()).collect(),
        }
    }
}

fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}
