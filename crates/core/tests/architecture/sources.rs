//! Reads the sources of a crate, module by module.

use std::fs;
use std::path::Path;

/// A module's path from the crate's root.
pub(crate) type ModulePath = Vec<String>;

/// One module of a crate: a file, or a part of a file in braces.
pub(crate) struct Source {
    /// Its path from the crate's root.
    pub(crate) path: ModulePath,
    /// Its items, without those for tests and without its submodules.
    pub(crate) items: Vec<syn::Item>,
}

/// All modules of the crate at `src`, without those for tests.
pub(crate) fn read(src: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    for root in ["lib.rs", "main.rs"].map(|root| src.join(root)).iter().filter(|root| root.exists()) {
        read_file(root, src, Vec::new(), &mut sources);
    }
    sources
}

fn read_file(file: &Path, folder: &Path, path: ModulePath, sources: &mut Vec<Source>) {
    let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    read_items(parsed.items, folder, path, sources);
}

fn read_items(items: Vec<syn::Item>, folder: &Path, path: ModulePath, sources: &mut Vec<Source>) {
    let mut own = Vec::new();
    for item in items.into_iter().filter(|item| !is_for_tests(attributes(item))) {
        let syn::Item::Mod(module) = item else {
            own.push(item);
            continue;
        };
        let name = module.ident.to_string();
        let below = folder.join(&name);
        let of_module: ModulePath = path.iter().cloned().chain([name.clone()]).collect();
        if let Some((_, items)) = module.content {
            read_items(items, &below, of_module, sources);
        } else {
            let flat = folder.join(format!("{name}.rs"));
            let file = if flat.exists() { flat } else { below.join("mod.rs") };
            read_file(&file, &below, of_module, sources);
        }
    }
    sources.push(Source { path, items: own });
}

/// Whether something is compiled for tests, fuzzing or documentation only.
pub(crate) fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        syn::Meta::List(list) if attribute.path().is_ident("cfg") => {
            let condition = list.tokens.to_string();
            let mut words = condition.split(|c: char| !c.is_alphanumeric() && c != '_');
            words.any(|word| ["test", "fuzzing", "doc"].contains(&word))
        }
        _ => attribute.path().is_ident("test"),
    })
}

/// The attributes of an item, for the kinds of items that are looked at.
pub(crate) fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
