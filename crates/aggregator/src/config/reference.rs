//! Makes the reference of all keys in `docs/configuration.md`. Keys, order and defaults come from `Serialize`. Meanings come
//! from the comments of the fields (`JsonSchema`). Allowed values come from the validation (`Checks`).
//!
//! `make config-reference` writes it.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use schemars::generate::SchemaSettings;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};

use super::{Config, tree, values};

const BEGIN: &str = "<!-- keys: begin -->";
const END: &str = "<!-- keys: end -->";

/// A serialised value whose keys keep their order.
enum Node {
    Section(Vec<(String, Node)>),
    List(Vec<Node>),
    Leaf(Value),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyNode;
        impl<'de> Visitor<'de> for AnyNode {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Section(entries))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    entries.push(entry);
                }
                Ok(Node::List(entries))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Leaf(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Leaf(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Leaf(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Leaf(value.into()))
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Leaf(Value::Null))
            }
        }
        deserializer.deserialize_any(AnyNode)
    }
}

impl Node {
    fn value(&self) -> Value {
        match self {
            Self::Section(entries) => entries.iter().map(|(key, node)| (key.clone(), node.value())).collect(),
            Self::List(entries) => entries.iter().map(Self::value).collect(),
            Self::Leaf(value) => value.clone(),
        }
    }
}

/// One key.
struct Row {
    path: String,
    /// `None` where there is none: for a section, and for the keys of a list's entries.
    default: Option<Value>,
    allowed: String,
    meaning: String,
}

/// All keys of all sections, in the order of the types.
fn sections() -> Vec<(String, String, Vec<Row>)> {
    let mut config = Config::default();
    // Without an entry the keys of the list's entries would be missing.
    config.enforcement.exemptions.push(serde_json::from_value(json!({"reason": "x"})).unwrap());
    let tree: Node = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<Config>().to_value();
    let allowed = Config::default().check().allowed;
    let Node::Section(sections) = tree else { panic!("a section") };
    let section = |(name, node): &(String, Node)| {
        let schema = &schema["properties"][name];
        let Node::Section(keys) = node else { panic!("{name} has no keys") };
        let mut rows = Vec::new();
        for (key, node) in keys {
            add(&format!("{name}.{key}"), node, true, &schema["properties"][key], &allowed, &mut rows);
        }
        (name.clone(), description(schema), rows)
    };
    sections.iter().map(section).collect()
}

/// Adds `path` and the keys below it to `rows`.
fn add(
    path: &str,
    node: &Node,
    has_default: bool,
    schema: &Value,
    allowed: &[(&'static str, String)],
    rows: &mut Vec<Row>,
) {
    let recorded: Vec<&str> =
        allowed.iter().filter(|(it, _)| *it == path).map(|(_, allowed)| &**allowed).collect();
    assert!(recorded.len() <= 1, "{path}: {recorded:?}");
    let (mut meaning, variants) = (description(schema), variants(schema));
    for (name, about) in &variants {
        let _ = write!(meaning, " `{name}`: {about}");
    }
    assert!(!meaning.is_empty(), "{path} has no comment");
    let entries = match node {
        Node::List(entries) => entries.iter().find(|entry| matches!(entry, Node::Section(_))),
        _ => None,
    };
    rows.push(Row {
        path: path.to_owned(),
        default: match node {
            Node::Section(_) => None,
            Node::List(_) if entries.is_some() => Some(json!([])),
            other => Some(other.value()),
        }
        .filter(|_| has_default),
        allowed: recorded.first().map_or_else(|| by_type(path, schema, &variants), |it| (*it).to_owned()),
        meaning,
    });
    let (below, keys, has_default, schema) = match (node, entries) {
        (Node::Section(keys), _) => (path.to_owned(), keys, has_default, schema),
        (_, Some(Node::Section(keys))) => (format!("{path}[]"), keys, false, &schema["items"]),
        _ => return,
    };
    for (key, node) in keys {
        add(&format!("{below}.{key}"), node, has_default, &schema["properties"][key], allowed, rows);
    }
}

fn description(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The names that an enum has, each with its comment.
fn variants(schema: &Value) -> Vec<(String, String)> {
    let parts = ["oneOf", "anyOf"].iter().filter_map(|key| schema[*key].as_array()).flatten();
    let mut found: Vec<(String, String)> = Vec::new();
    for part in parts {
        match part["const"].as_str() {
            Some(name) => found.push((name.to_owned(), description(part))),
            None => found.extend(variants(part)),
        }
    }
    found
}

/// What a key may hold by its type alone.
fn by_type(path: &str, schema: &Value, variants: &[(String, String)]) -> String {
    if !variants.is_empty() {
        let names: Vec<String> = variants.iter().map(|(name, _)| format!("`{name}`")).collect();
        return names.join(", ");
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null").cloned().unwrap_or_default(),
        kind => kind.clone(),
    };
    match (kind.as_str().unwrap_or_default(), schema["format"].as_str(), schema["minimum"].as_u64()) {
        ("boolean", _, _) => "`true`, `false`",
        ("integer", _, Some(0)) => values::plain_type("usize"),
        ("integer", _, _) => values::plain_type("i32"),
        ("string", Some("ip"), _) => "an IP address",
        ("string", _, _) => "a text",
        ("array", _, _) => "a list",
        ("object", _, _) => "a section",
        other => panic!("{path}: {other:?}: {schema}"),
    }
    .to_owned()
}

/// A cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn default_cell(default: Option<&Value>) -> String {
    match default {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::String(text)) => format!("`{}`", cell(text)),
        Some(Value::Array(list)) => {
            let entries: Vec<String> = list.iter().map(Value::to_string).collect();
            format!("`[{}]`", cell(&entries.join(", ")))
        }
        Some(other) => format!("`{other}`"),
    }
}

fn reference() -> String {
    let mut text = String::new();
    for (name, about, rows) in sections() {
        let _ = write!(text, "\n### {name}\n\n{about}\n\n");
        text.push_str("| key | default | allowed | meaning |\n|---|---|---|---|\n");
        for Row { path, default, allowed, meaning } in rows {
            let (default, allowed) = (default_cell(default.as_ref()), cell(&allowed));
            let _ = writeln!(text, "| `{path}` | {default} | {allowed} | {} |", cell(&meaning));
        }
    }
    text.push('\n');
    text
}

/// The keys and defaults of a written reference, in their order.
fn keys(text: &str) -> Vec<(&str, &str)> {
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let mut cells = line.split(" | ");
        (cells.next().unwrap(), cells.next().unwrap_or_default())
    })
    .collect()
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(name)
}

/// The text between the marks, with its place.
fn between(text: &str) -> (usize, usize) {
    let begin = text.find(BEGIN).expect(BEGIN) + BEGIN.len() + 1;
    (begin, text.find(END).expect(END))
}

#[test]
fn the_reference_in_the_documentation_is_that_of_the_types() {
    let path = file("docs/configuration.md");
    let mut text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = between(&text);
    let made = reference();
    if std::env::var_os("UPDATE").is_some() {
        text.replace_range(begin..end, &made);
        std::fs::write(&path, text).unwrap();
    } else {
        assert_eq!(&text[begin..end], made, "run `make config-reference`");
    }
}

#[test]
fn the_chinese_reference_has_the_same_keys_and_defaults() {
    let Ok(text) = std::fs::read_to_string(file("docs/configuration.zh-CN.md")) else { return };
    let (begin, end) = between(&text);
    let written = keys(&text[begin..end]);
    // An empty place between the marks is a table that is still to be written.
    assert!(written.is_empty() || written == keys(&reference()), "{written:#?}");
}

#[test]
fn the_example_has_every_key_in_the_order_of_the_types() {
    let text = std::fs::read_to_string(file("config.yaml")).unwrap();
    let read = |text: &str| serde_saphyr::from_str::<Node>(text).unwrap();
    let whole = text.replace("#~", "");
    let (all, in_force) = (paths("", &read(&whole)), tree::parse_yaml(&text).unwrap());
    let rows: Vec<Row> = sections().into_iter().flat_map(|(_, _, rows)| rows).collect();
    let of_types: Vec<&str> = rows.iter().map(|row| &*row.path).filter(|path| !path.contains("[]")).collect();
    assert_eq!(all, of_types);
    for Row { path, default, .. } in &rows {
        let Some(value) = values::at(&in_force, path).filter(|value| !value.is_object()) else { continue };
        assert_eq!(Some(value), default.as_ref(), "{path}");
    }
    // A key with a default shows it. Texts to tenants are too long for the example.
    for Row { path, default, .. } in rows.iter().filter(|row| !row.path.starts_with("notification.")) {
        let has_default = default.as_ref().is_some_and(|default| !default.is_null());
        assert!(!has_default || values::at(&in_force, path).is_some(), "{path}: {default:?}");
    }
}

/// The paths of all keys below the sections, in their order.
fn paths(above: &str, node: &Node) -> Vec<String> {
    let Node::Section(entries) = node else { return Vec::new() };
    let mut found = Vec::new();
    for (key, node) in entries {
        let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
        if !above.is_empty() {
            found.push(path.clone());
        }
        found.extend(paths(&path, node));
    }
    found
}
