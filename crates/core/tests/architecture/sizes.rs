//! How long files and functions may be.

use std::fs;
use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// The most lines of a file.
const MAX_FILE_LINES: usize = 500;
/// The most lines of a function, its signature included.
const MAX_FUNCTION_LINES: usize = 70;

/// Files and functions that are longer, with the lines that each may have. This list only gets shorter.
const LONGER: &[(&str, usize)] = &[
    ("crates/aggregator/src/kubernetes.rs", 533),
    ("crates/aggregator/src/output/tests/yaml.rs::only_what_needs_quotes_has_them", 74),
    ("crates/aggregator/src/policy_task/tests/stage.rs::over", 79),
    ("crates/aggregator/src/run.rs", 552),
    ("crates/aggregator/src/run.rs::start", 89),
    (
        "crates/aggregator/tests/demo.rs::a_real_forbidden_process_is_listed_blocked_told_and_released_by_the_rules",
        78,
    ),
    ("crates/aggregator/tests/faults.rs::two_hundred_nodes_with_every_fault_at_once", 95),
    (
        "crates/aggregator/tests/kill.rs::killed_at_fifty_moments_it_ends_where_an_unbroken_run_ends_and_every_block_has_its_decision",
        72,
    ),
    ("crates/core/src/ledger/absorbing.rs::take_in", 78),
    ("crates/core/src/ledger/quota/tests.rs", 547),
    ("crates/core/src/policy/evaluation/apply_brakes.rs::apply_brakes", 112),
    ("crates/core/src/policy/evaluation/apply_evidence.rs::apply_evidence", 112),
    ("crates/core/src/policy/evaluation/judge.rs::judge", 109),
    ("crates/core/src/policy/evaluation/mod.rs::decide", 71),
    ("crates/core/src/policy/incidents/persist/read.rs::restored", 108),
    ("crates/core/src/policy/incidents/persist/write.rs::status", 91),
    ("crates/core/src/policy/simulate.rs::simulate", 84),
    ("crates/core/src/report/json.rs::byte", 74),
    ("crates/core/src/report/tests.rs", 586),
    ("crates/core/src/resources/wasm_plugin/mod.rs::object", 75),
    ("crates/core/tests/domain/bad_rule.rs::a_bad_rule", 97),
    ("crates/core/tests/domain/persisting.rs", 575),
    ("crates/core/tests/domain/policy_laws.rs", 511),
    ("crates/core/tests/domain/policy_laws.rs::take", 78),
    (
        "crates/core/tests/domain/resources.rs::the_plain_list_has_a_bound_and_one_tenant_takes_nothing_from_the_others",
        77,
    ),
    ("crates/core/tests/domain/soak/events.rs::take", 86),
    (
        "e2e/tests/scenarios/control_plane.rs::every_verb_of_the_shipped_roles_is_needed_and_named_when_it_is_missing",
        76,
    ),
    (
        "e2e/tests/scenarios/control_plane.rs::the_manifests_are_accepted_and_their_configuration_works_inside_a_pod",
        82,
    ),
    (
        "e2e/tests/scenarios/many_namespaces.rs::many_namespaces_are_judged_within_two_rounds_and_then_cost_less_than_a_request_a_second",
        96,
    ),
    ("e2e/tests/scenarios/operators.rs::a_bad_rule_blocks_ten_and_each_further_one_only_by_approval", 90),
    (
        "e2e/tests/scenarios/scale.rs::twenty_thousand_apps_are_blocked_one_changes_one_shard_and_none_leaves_sentinels",
        84,
    ),
    ("e2e/tests/scenarios/state.rs::what_can_not_be_kept_is_not_done_and_is_done_as_soon_as_it_can", 89),
];

/// The functions of a file, with their lines.
#[derive(Default)]
struct Functions(Vec<(String, usize)>);

impl Functions {
    fn note(&mut self, signature: &syn::Signature, body: &syn::Block) {
        let lines = body.span().end().line + 1 - signature.span().start().line;
        self.0.push((signature.ident.to_string(), lines));
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

/// What is longer than `limit`, as `name` with its lines, unless the list of exceptions allows that many.
fn too_long(name: &str, lines: usize, limit: usize) -> Option<String> {
    let allowed = LONGER.iter().find(|(longer, _)| *longer == name).map_or(limit, |(_, lines)| *lines);
    (lines > allowed).then(|| format!("{name}: {lines} lines, {allowed} are allowed"))
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
