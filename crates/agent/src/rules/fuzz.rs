//! Laws of rule files and their patterns.
#![allow(clippy::panic, clippy::expect_used, reason = "a broken law stops the run")]

use serde_json::{Value, json};

use super::{Pattern, PatternError, Problem, Rules, RulesError};

/// How many lines are taken for patterns, and their longest length: large ones take long to compile.
const PATTERNS: usize = 8;
const LONGEST: usize = 256;

/// Laws of a rules file, and of each of its lines taken for a pattern.
///
/// # Panics
/// Panics if a law is broken.
pub fn rules(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    file(&text);
    let lines: Vec<&str> = text.lines().filter(|line| line.len() <= LONGEST).take(PATTERNS).collect();
    for line in &lines {
        pattern(line, &lines);
        quoted(line);
    }
    together(&lines);
}

/// A file has the same rules when it is read again, alone or in a `ConfigMap`.
fn file(text: &str) {
    let summary = |read: &Result<Rules, RulesError>| match read {
        Ok(rules) => {
            format!("{:?}", rules.refused().iter().map(|refused| &refused.problem).collect::<Vec<_>>())
        }
        Err(RulesError::NoneLeft(first) | RulesError::Exemption(first)) => format!("{:?}", first.problem),
        Err(_) => "refused".to_owned(),
    };
    let read = Rules::from_yaml(text);
    assert_eq!(summary(&Rules::from_yaml(text)), summary(&read));
    match &read {
        Ok(rules) => {
            for refused in rules.refused() {
                assert!(refused.place.contains("detectionRules."), "{refused}");
            }
            // A manifest within a manifest is not read, nor is a file of several documents.
            let is_file = !text.contains("ConfigMap") && !text.contains("---");
            if is_file && text.contains("detectionRules") {
                let manifest = json!({"kind": "ConfigMap", "data": {"other": "a: [", "rules.yaml": text}});
                assert_eq!(summary(&Rules::from_yaml(&yaml(&manifest))), summary(&read), "{manifest}");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// JSON is YAML, except for some characters that YAML requires to be escaped.
fn yaml(tree: &Value) -> String {
    let escape = |sign: char| match sign {
        ' '..='~' => sign.to_string(),
        _ => format!("\\U{:08x}", u32::from(sign)),
    };
    tree.to_string().chars().map(escape).collect()
}

/// A pattern in a group is accepted or refused as without it, and has the same meaning.
fn pattern(text: &str, samples: &[&str]) {
    match Pattern::new(text) {
        Err(PatternError::Syntax { problem, part }) => {
            assert!(problem != super::pattern::NO_FORM, "{text}");
            assert!(text.contains(&part), "{part} in {text}");
        }
        Err(PatternError::Depth | PatternError::Size(_)) => {}
        Ok(pattern) => {
            assert_eq!(pattern.as_str(), text);
            // An open quotation would include the end of the group.
            if text.contains(r"\Q") {
                return;
            }
            for (way, other) in [
                ("grouped", format!("(?:{text})")),
                ("named", format!("(?P<a>(?i-i)(?:{text}))")),
                ("one of two", format!("(?:{text})|[^\\x{{0}}-\\x{{10ffff}}]")),
                ("once", format!("(?:{text}){{1}}")),
            ] {
                match Pattern::new(&other) {
                    Ok(other) => {
                        for sample in samples.iter().chain(&["", "a", text]) {
                            assert_eq!(
                                other.is_match(sample),
                                pattern.is_match(sample),
                                "{way}: {text} on {sample}"
                            );
                        }
                    }
                    Err(error) => {
                        assert!(!matches!(error, PatternError::Syntax { .. }), "{way}: {text}: {error}");
                    }
                }
            }
        }
    }
}

/// A quoted pattern matches its own text and no other.
fn quoted(text: &str) {
    if text.contains(r"\E") {
        return;
    }
    for pattern in [format!(r"^\Q{text}\E$"), format!(r"(?s:^)\Q{text}\E\z")] {
        let pattern = Pattern::new(&pattern).expect("quoted text");
        assert!(pattern.is_match(text), "{text}");
        assert!(!pattern.is_match(&format!("{text}x")) && !pattern.is_match(&format!("x{text}")), "{text}");
    }
}

/// Patterns that can't be used are named, and the others are in force.
fn together(lines: &[&str]) {
    let file = yaml(&json!({"detectionRules": {"blacklist": {"processes": lines}}}));
    let usable: Vec<Pattern> =
        lines.iter().filter(|line| !line.is_empty()).filter_map(|line| Pattern::new(line).ok()).collect();
    match Rules::from_yaml(&file) {
        Ok(rules) => {
            assert_eq!(rules.refused().len(), lines.len() - usable.len(), "{file}");
            for line in lines {
                let hit = rules.judge(&[(*line).to_owned()], "");
                let expected = usable.iter().find(|pattern| pattern.is_match(line)).map(Pattern::as_str);
                assert_eq!(hit.map(|hit| hit.regex).as_deref(), expected, "{file} on {line}");
            }
        }
        Err(RulesError::NoneLeft(first)) => {
            assert!(usable.is_empty() && !matches!(first.problem, Problem::NotRead(_)), "{file}");
        }
        Err(error) => panic!("{file}: {error}"),
    }
}
