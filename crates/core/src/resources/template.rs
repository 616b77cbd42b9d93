//! Texts with `{placeholders}`, as operators write them in the configuration.

use std::fmt;

use serde::{Serialize, Serializer};

/// A text whose placeholders are known to be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Placeholder(&'static str),
}

/// What is wrong with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `{` without its `}`.
    #[error("a `{{` without its `}}`; a literal one is written `{{{{`")]
    Unclosed,
    /// A placeholder that is not among those allowed here.
    #[error("unknown placeholder `{{{name}}}`: expected one of {allowed}")]
    Unknown {
        /// What it says.
        name: String,
        /// What it may say.
        allowed: String,
    },
}

impl Template {
    /// Reads a template. `{{` stands for a literal `{`.
    pub fn parse(text: &str, allowed: &'static [&'static str]) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('{') {
                literal.push('{');
                rest = after;
                continue;
            }
            let (name, after) = after.split_once('}').ok_or(TemplateError::Unclosed)?;
            let known =
                allowed.iter().find(|known| **known == name).ok_or_else(|| TemplateError::Unknown {
                    name: name.chars().take(40).collect(),
                    allowed: allowed.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>().join(", "),
                })?;
            parts.push(Part::Text(std::mem::take(&mut literal)));
            parts.push(Part::Placeholder(known));
            rest = after;
        }
        literal.push_str(rest);
        parts.push(Part::Text(literal));
        Ok(Self { parts })
    }

    /// Whether it has that placeholder.
    pub fn uses(&self, placeholder: &str) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Placeholder(name) if *name == placeholder))
    }

    /// Fills in the placeholders. What is filled in is taken as it is: a `{` in it means nothing.
    pub(crate) fn fill<'a>(&self, value: impl Fn(&str) -> &'a str) -> String {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.as_str(),
                Part::Placeholder(name) => value(name),
            })
            .collect()
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(&text.replace('{', "{{")),
            Part::Placeholder(name) => write!(f, "{{{name}}}"),
        })
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: &[&str] = &["app", "contact"];

    #[test]
    fn placeholders_are_filled_and_what_is_filled_in_is_not_read_again() {
        let template = Template::parse("{app}: {{literal} ask {contact}", ALLOWED).unwrap();
        let filled = template.fill(|name| if name == "app" { "{contact}" } else { "ops" });
        assert_eq!(filled, "{contact}: {literal} ask ops");
        assert_eq!(Template::parse(&template.to_string(), ALLOWED).unwrap(), template);
    }

    #[test]
    fn mistakes_are_named_with_what_is_allowed() {
        let error = Template::parse("hi {ap}", ALLOWED).unwrap_err().to_string();
        assert_eq!(error, "unknown placeholder `{ap}`: expected one of {app}, {contact}");
        assert_eq!(Template::parse("hi {app", ALLOWED).unwrap_err(), TemplateError::Unclosed);
    }
}
