//! Checks that no two modules of a crate use each other.
//!
//! A module and its own submodules count as one. Modules with the same parent must not use each other, directly or through others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::visit::{self, Visit};

use crate::sources::{self, ModulePath, attributes, is_for_tests};

/// The modules of one crate, with the items that they use.
#[derive(Default)]
pub(crate) struct Modules(BTreeMap<ModulePath, Module>);

/// The items that a module defines and uses.
#[derive(Default)]
struct Module {
    /// The imported paths, by their names in the module.
    imports: BTreeMap<String, Vec<String>>,
    /// The modules of which it imports everything.
    globs: Vec<Vec<String>>,
    /// The names of the items that it defines.
    items: BTreeSet<String>,
    /// All paths in it that begin with `crate`, `self` or `super`.
    paths: BTreeSet<Vec<String>>,
}

/// The uses between the submodules of one module: the user and the used one, with examples.
type Uses = BTreeMap<(String, String), BTreeSet<String>>;

impl Modules {
    /// Reads the modules of the crate at `src`.
    pub(crate) fn of(src: &Path) -> Self {
        let mut modules = Self::default();
        for source in sources::read(src) {
            let module = modules.0.entry(source.path).or_default();
            for item in &source.items {
                module.items.extend(name_of(item));
                module.visit_item(item);
            }
        }
        modules
    }

    /// The module that defines the item of `path`, as seen from the module `from`. Follows imports and re-exports.
    fn resolve(&self, from: &ModulePath, path: &[String], depth: usize) -> Option<ModulePath> {
        let mut at = if path.first()? == "crate" { Vec::new() } else { from.clone() };
        for (index, segment) in path.iter().enumerate() {
            match segment.as_str() {
                "crate" | "self" => continue,
                "super" => {
                    at.pop()?;
                    continue;
                }
                _ => {}
            }
            let below: ModulePath = at.iter().cloned().chain([segment.clone()]).collect();
            if self.0.contains_key(&below) {
                at = below;
                continue;
            }
            let module = self.0.get(&at)?;
            if depth > 8 || module.items.contains(segment) {
                break;
            }
            let rest = path.get(index + 1..)?;
            if let Some(import) = module.imports.get(segment) {
                let whole: Vec<String> = import.iter().chain(rest).cloned().collect();
                return self.resolve(&at, &whole, depth + 1);
            }
            let defines = |of: &ModulePath| {
                self.0
                    .get(of)
                    .is_some_and(|it| it.items.contains(segment) || it.imports.contains_key(segment))
            };
            let mut globs = module.globs.iter().filter_map(|glob| self.resolve(&at, glob, depth + 1));
            if let Some(of) = globs.find(defines) {
                return self.resolve(&of, &[&["self".to_owned()], path.get(index..)?].concat(), depth + 1);
            }
            break;
        }
        Some(at)
    }

    /// The uses between modules with the same parent, by that parent.
    pub(crate) fn uses(&self) -> BTreeMap<ModulePath, Uses> {
        let mut uses: BTreeMap<ModulePath, Uses> = BTreeMap::new();
        for (from, module) in &self.0 {
            for path in &module.paths {
                let Some(to) = self.resolve(from, path, 0) else { continue };
                let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                // One of them is in the other: they count as one module.
                let (Some(by), Some(of)) = (from.get(common), to.get(common)) else { continue };
                let example = format!("{} uses {}", from.join("::"), path.join("::"));
                let of_parent = uses.entry(from[..common].to_vec()).or_default();
                of_parent.entry((by.clone(), of.clone())).or_default().insert(example);
            }
        }
        uses
    }
}

/// The groups of modules that use each other, with an example of each use; empty if there are none.
fn circles(parent: &ModulePath, uses: &Uses) -> Vec<String> {
    let used_by = |from: &String| {
        let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(at) = next.pop() {
            next.extend(
                uses.keys().filter(|pair| pair.0 == *at && reached.insert(&pair.1)).map(|pair| &pair.1),
            );
        }
        reached
    };
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        uses.keys().map(|(user, _)| (user, used_by(user))).collect();
    let is_closed =
        |(user, used): &(String, String)| reached.get(used).is_some_and(|reached| reached.contains(user));
    let closed = uses.iter().filter(|(pair, _)| is_closed(pair));
    closed
        .map(|((user, used), examples)| {
            let example = examples.first().map(String::as_str).unwrap_or_default();
            format!("in `{}`: {user} uses {used}, and {used} uses {user}: {example}", parent.join("::"))
        })
        .collect()
}

impl Module {
    fn import(&mut self, before: &mut Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.import(before, &path.tree);
                before.pop();
            }
            syn::UseTree::Name(name) => self.import_as(before, &name.ident, &name.ident),
            syn::UseTree::Rename(rename) => self.import_as(before, &rename.ident, &rename.rename),
            syn::UseTree::Glob(_) => {
                self.note(before.clone());
                self.globs.push(before.clone());
            }
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(before, tree)),
        }
    }

    fn import_as(&mut self, before: &[String], name: &syn::Ident, here: &syn::Ident) {
        let mut path = before.to_vec();
        if name != "self" {
            path.push(name.to_string());
        }
        let here = if here == "self" { path.last().cloned().unwrap_or_default() } else { here.to_string() };
        self.note(path.clone());
        self.imports.insert(here, path);
    }

    fn note(&mut self, path: Vec<String>) {
        if matches!(path.first().map(String::as_str), Some("crate" | "self" | "super")) {
            self.paths.insert(path);
        }
    }
}

impl<'ast> Visit<'ast> for Module {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import(&mut Vec::new(), &item.tree);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.note(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    /// The arguments of a macro are no syntax tree, so a text that looks like a path counts as one.
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let text = call.tokens.to_string().replace(" :: ", "::");
        for word in text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':') {
            self.note(word.split("::").map(str::to_owned).collect());
        }
        visit::visit_macro(self, call);
    }
}

fn name_of(item: &syn::Item) -> Option<String> {
    let name = match item {
        syn::Item::Const(item) => &item.ident,
        syn::Item::Enum(item) => &item.ident,
        syn::Item::Fn(item) => &item.sig.ident,
        syn::Item::Macro(item) => item.ident.as_ref()?,
        syn::Item::Static(item) => &item.ident,
        syn::Item::Struct(item) => &item.ident,
        syn::Item::Trait(item) => &item.ident,
        syn::Item::Type(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

#[test]
fn no_two_modules_use_each_other() {
    let mut found = Vec::new();
    for folder in crate::CRATES {
        let Some(src) = crate::sources_of(folder) else { continue };
        let uses = Modules::of(&src).uses();
        found.extend(
            uses.iter().flat_map(|(parent, uses)| circles(parent, uses)).map(|it| format!("{folder}: {it}")),
        );
    }
    assert!(found.is_empty(), "modules that use each other:\n{}", found.join("\n"));
}

#[test]
fn a_circle_is_found_through_imports_re_exports_and_macros() {
    let folder = std::env::temp_dir().join(format!("procscan-architecture-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("lib.rs", "mod one; mod two; mod three; pub use self::three::Three;");
    write("one.rs", "use super::Three; #[cfg(test)] mod tests { use crate::two; }");
    write("two.rs", "use crate::one;");
    write("three.rs", "pub struct Three; fn f() { println!(\"{}\", crate::two::number()); }");
    let uses = Modules::of(&folder).uses();
    let found: Vec<String> = uses.iter().flat_map(|(parent, uses)| circles(parent, uses)).collect();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(found.len(), 3, "{found:#?}");
}
