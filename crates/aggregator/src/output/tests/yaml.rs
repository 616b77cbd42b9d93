//! Texts that are written without quotes.

use proptest::prelude::*;
use regex::Regex;

use super::*;

/// Texts that YAML readers take for something else when they have no quotes.
///
/// YAML 1.1: the regular expressions of the language-independent types of the YAML 1.1 type repository,
/// <https://yaml.org/type/>, which resolve plain scalars: `null`, `bool`, `int`, `float`, `timestamp`, `merge` and `value`.
/// (`binary`, `omap`, `pairs`, `set` and `yaml` need a tag or an indicator.) The repository's `bool` has `y` and `n`.
///
/// YAML 1.2: the core schema, <https://yaml.org/spec/1.2.2/#103-core-schema>. Its numbers need no sign in an exponent, and have
/// `0o`.
const IMPLICIT: [(&str, &str); 16] = [
    ("null", r"~|null|Null|NULL|"),
    ("bool", "y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF"),
    ("int, base 2", r"[-+]?0b[0-1_]+"),
    ("int, base 8", r"[-+]?0[0-7_]+"),
    ("int, base 10", r"[-+]?(0|[1-9][0-9_]*)"),
    ("int, base 16", r"[-+]?0x[0-9a-fA-F_]+"),
    ("int, base 60", r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+"),
    ("float, base 10", r"[-+]?([0-9][0-9_]*)?\.[0-9.]*([eE][-+][0-9]+)?"),
    ("float, base 60", r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*"),
    ("float, infinity and NaN", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    ("date", r"[0-9]{4}-[0-9]{2}-[0-9]{2}"),
    (
        "time",
        r"[0-9]{4}-[0-9][0-9]?-[0-9][0-9]?([Tt]|[ \t]+)[0-9][0-9]?:[0-9]{2}:[0-9]{2}(\.[0-9]*)?(([ \t]*)Z|([ \t]*)[-+][0-9][0-9]?(:[0-9]{2})?)?",
    ),
    ("merge and value", "<<|="),
    ("1.2: int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    ("1.2: float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    ("1.2: infinity and NaN", r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN"),
];

/// The type that a reader gives to a plain scalar; `None` if it reads a string.
fn implicit(text: &str) -> Option<&'static str> {
    let is = |pattern: &str| Regex::new(&format!("^(?:{pattern})$")).unwrap().is_match(text);
    IMPLICIT.iter().find(|(_, pattern)| is(pattern)).map(|(name, _)| *name)
}

/// The file with an object that has `text` as a field and as the name of a field.
fn written(text: &str) -> (String, serde_json::Value) {
    let temp = tempfile::tempdir().unwrap();
    let mut all = objects(&["web"], 0);
    all[0].spec["defaultConfig"] = serde_json::json!({"value": text, "list": [text], "key": {text: "x"}});
    put(&Directory::open(temp.path()).unwrap(), &all).unwrap();
    (fs::read_to_string(temp.path().join(PLUGIN)).unwrap(), serde_json::to_value(&all[0]).unwrap())
}

/// The three scalars that `written` has made of its text, as they are in the file.
fn scalars(file: &str) -> [&str; 3] {
    let after =
        |start: &str| file.lines().find_map(|line| line.trim_start_matches(' ').strip_prefix(start)).unwrap();
    let line_after = |start: &str| {
        let mut lines = file.lines().skip_while(|line| line.trim() != start);
        lines.nth(1).unwrap().trim_start_matches(' ')
    };
    let item = line_after("list:").strip_prefix("- ").unwrap();
    [after("value: "), item, line_after("key:").strip_suffix(": x").unwrap()]
}

fn is_quoted(scalar: &str) -> bool {
    scalar.starts_with(['"', '\''])
}

/// Whether each of the scalars is read as `text` by readers of YAML 1.1 and 1.2.
fn is_read_as_itself(text: &str) -> Result<(), String> {
    let (file, object) = written(text);
    let back: serde_json::Value = serde_saphyr::from_str(&file).map_err(|e| format!("{e}: {file}"))?;
    if back != object {
        return Err(format!("read as something else: {file}"));
    }
    for scalar in scalars(&file) {
        let is_plain = !is_quoted(scalar);
        if let Some(name) = implicit(scalar).filter(|_| is_plain) {
            return Err(format!("{scalar:?} is read as {name}"));
        }
        if is_plain && scalar != text {
            return Err(format!("{text:?} is written as {scalar}"));
        }
        // A text that begins with an indicator, or has one in it, is no plain text in YAML 1.1 (productions 22 and 152 to 156).
        let begins =
            ["- ", "? ", ": ", ",", "[", "]", "{", "}", "#", "&", "*", "!", "|", ">", "'", "%", "@", "`"];
        let has_indicator = begins.iter().any(|start| scalar.starts_with(start))
            || scalar.contains(": ")
            || scalar.contains(" #")
            || scalar.ends_with(':');
        if is_plain && has_indicator {
            return Err(format!("{scalar:?} is no plain text"));
        }
    }
    Ok(())
}

/// Texts that readers take for something else, or can't read, without quotes.
const NEEDING_QUOTES: [&str; 55] = [
    "",
    "~",
    "null",
    "Null",
    "yes",
    "Y",
    "n",
    "no",
    "On",
    "off",
    "TRUE",
    "0",
    "-1",
    "+1_000",
    "0x1F",
    "0b10",
    "017",
    "0o17",
    "190:20:30",
    "190:20:30.15",
    "1e3",
    "1.5",
    ".5",
    "1.",
    "1.2.3",
    "-.inf",
    ".NaN",
    "2001-12-14",
    "2001-12-14t21:59:43.10-05:00",
    "2001-12-14 21:59:43.10 -5",
    "<<",
    "=",
    "---",
    "- a",
    "? a",
    "a: b",
    "a #b",
    "#a",
    "&a",
    "*a",
    "!a",
    "|",
    ">",
    "'a",
    "\"a",
    "%a",
    "@a",
    "`a",
    "[a]",
    "{a}",
    " a",
    "a ",
    "a\nb",
    "\u{7}",
    "a:",
];

#[test]
fn texts_have_quotes_only_where_they_need_them() {
    for text in [
        "WasmPlugin",
        "extensions.higress.io/v1alpha1",
        "web-7.ns-a.svc.cluster.local",
        "procscan-violations",
        "1a",
        "a b",
        "v1",
    ] {
        assert_eq!(scalars(&written(text).0), [text; 3]);
    }
    for text in NEEDING_QUOTES {
        assert!(scalars(&written(text).0).iter().all(|scalar| is_quoted(scalar)), "{text:?}");
        assert_eq!(is_read_as_itself(text), Ok(()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text_is_read_as_itself_by_readers_of_both_versions(text in any::<String>()) {
        prop_assert_eq!(is_read_as_itself(&text), Ok(()));
    }

    /// Texts that are like numbers, dates, booleans and syntax.
    #[test]
    fn texts_that_are_nearly_something_else_are_read_as_themselves(
        text in "[-+]?[0-9_.:eExobOXB]{0,8}|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ][0-9:.Z+ -]{0,16})?|[-?:,#&*!|>'\"%@` a]{0,6}|[yYnNoOfFtTrRuUeEsSlLaAiI~.=<]{1,5}"
    ) {
        prop_assert_eq!(is_read_as_itself(&text), Ok(()));
    }
}
