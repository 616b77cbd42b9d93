//! Limits the length of files and functions.

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// The most lines of a file.
const MAX_FILE_LINES: usize = 500;
/// The most lines of a function, its signature included.
const MAX_FUNCTION_LINES: usize = 70;

/// The functions of a file, with their lines.
#[derive(Default)]
struct Functions(Vec<(String, usize)>);

impl Functions {
    fn note(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let lines = body.span().end().line + 1 - signature.span().start().line;
        self.0.push((signature.ident.to_string(), lines));
    }

    /// Notes the functions among the tokens of a macro.
    fn note_in(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            match (token, &tokens[at + 1..]) {
                (TokenTree::Ident(word), [TokenTree::Ident(name), rest @ ..]) if word == "fn" => {
                    if let Some(body) = rest.iter().find(|token| is_block(token)) {
                        let lines = body.span().end().line + 1 - word.span().start().line;
                        self.0.push((name.to_string(), lines));
                    }
                }
                (TokenTree::Group(group), _) => self.note_in(group.stream()),
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.note(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.note(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(body) = &function.default {
            self.note(&function.sig, body);
        }
        visit::visit_trait_item_fn(self, function);
    }

    /// Finds the functions in a call of a macro, as `proptest!` has them: their parameters are no Rust.
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.note_in(call.tokens.clone());
    }
}

fn is_block(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}

/// All Rust files of the workspace, tests included.
fn files() -> Vec<PathBuf> {
    let root = crate::root();
    let mut folders: Vec<PathBuf> = crate::CRATES.iter().map(|folder| root.join(folder)).collect();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop().filter(|folder| folder.is_dir()) {
        for entry in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                files.push(entry);
            }
        }
    }
    files
}

fn shown(path: &Path) -> String {
    let root = crate::root();
    path.strip_prefix(&root).unwrap_or(path).display().to_string()
}

/// The error for `name` if it has more `lines` than `limit`.
fn too_long(name: &str, lines: usize, limit: usize) -> Option<String> {
    (lines > limit).then(|| format!("{name}: {lines} lines, {limit} are allowed"))
}

#[test]
fn functions_in_macros_are_found() {
    let text = "proptest! {\n#[test]\nfn law(n in 0..3) {\n}\nmod more {\nfn inner() {}\n}\n}\nfn plain() {}";
    let mut functions = Functions::default();
    functions.visit_file(&syn::parse_file(text).unwrap());
    assert_eq!(functions.0, [("law".to_owned(), 2), ("inner".to_owned(), 1), ("plain".to_owned(), 1)]);
}

#[test]
fn files_and_functions_are_short() {
    let files = files();
    assert!(files.len() > 50, "the workspace's files were not found: {files:?}");
    let mut found = Vec::new();
    for file in files {
        let (text, name) = (fs::read_to_string(&file).unwrap(), shown(&file));
        found.extend(too_long(&name, text.lines().count(), MAX_FILE_LINES));
        let mut functions = Functions::default();
        functions.visit_file(&syn::parse_file(&text).unwrap());
        let long = functions.0.into_iter();
        found.extend(long.filter_map(|(function, lines)| {
            too_long(&format!("{name}::{function}"), lines, MAX_FUNCTION_LINES)
        }));
    }
    found.sort();
    assert!(found.is_empty(), "too long:\n{}", found.join("\n"));
}
